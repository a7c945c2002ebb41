"""`{% load relay %}`."""
