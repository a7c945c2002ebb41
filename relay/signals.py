"""The relay's signals. `server_startup` and `server_shutdown` are sent from the ASGI lifespan, once per worker."""

from __future__ import annotations

from django.dispatch import Signal

server_startup = Signal()
"""Sent with `asend()` before the worker takes requests; a receiver that raises keeps the worker from starting."""

server_shutdown = Signal()
"""Sent with `asend_robust()` after the last exchange ended or the graceful time-out passed."""
