"""The project's settings with `bench.witness` in each worker."""

from __future__ import annotations

from config.settings import *  # noqa: F403 - all of them, as they are

ASGI_APPLICATION = "bench.witness.application"
