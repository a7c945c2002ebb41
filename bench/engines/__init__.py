"""Engines of the relay that are measured beside its own: each is what `RELAY_TRANSPORT` of a settings module names."""
