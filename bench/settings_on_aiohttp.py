"""The project's settings with the old engine in the place of the new: the peer `relay-on-aiohttp`."""

from __future__ import annotations

from config.settings import *  # noqa: F403 - all of them, as they are

RELAY_TRANSPORT = "bench.engines.aiohttp_engine.PooledTransport"
