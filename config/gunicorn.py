"""How gunicorn runs the relay: its options and its worker, uvicorn with what the relay needs of it.

Shutting down, in order: SIGTERM reaches a worker; the application is told at once that it drains; uvicorn stops to
accept and waits for exchanges under way up to RELAY_GRACEFUL_SECONDS, then cancels them; the lifespan ends; and only a
worker that is still there after the margin is killed by gunicorn. SIGQUIT, which gunicorn sends on ^C, is the same
without the wait.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from gunicorn.arbiter import Arbiter
from uvicorn.config import Config
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

SHUTDOWN_MARGIN_SECONDS = 2
"""What a worker gets, beyond the grace, to cancel what is left and to end its lifespan."""
KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s for which proxies in front usually keep idle connections, so that they close first."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES = 256 * 1024 * 1024
LARGEST_KEPT_BLOCK_BYTES = 32 * 1024 * 1024  # the most that glibc takes
HANG_SECONDS = 30
"""A worker whose event loop stood still for this long is killed."""


def options(*, bind: str, workers: int, graceful_seconds: int, log_level: str) -> dict[str, Any]:
    """gunicorn's settings. `bind` is an address or `fd://N`."""
    graceful_timeout = graceful_seconds + SHUTDOWN_MARGIN_SECONDS
    shared_memory = Path("/dev/shm")  # noqa: S108 - the heartbeat files there are unlinked as soon as they are open
    return {
        "bind": bind,
        "workers": workers,
        "worker_class": f"{__name__}.{RelayWorker.__name__}",
        "proc_name": "relay",
        "graceful_timeout": graceful_timeout,
        # uvicorn's heartbeat stops while a worker drains: a limit below the grace would kill it then.
        "timeout": graceful_timeout + HANG_SECONDS,
        "keepalive": KEEP_ALIVE_SECONDS,
        "max_requests": 0,
        # One listening socket for all: with SO_REUSEPORT, connections waiting at a worker that ends would be reset.
        "reuse_port": False,
        # Each worker opens its own database connections and threads, which do not survive a fork.
        "preload_app": False,
        # Otherwise gunicorn opens a socket for commands in the home folder.
        "control_socket_disable": True,
        # A heartbeat file on a disk can block the worker.
        "worker_tmp_dir": str(shared_memory) if os.access(shared_memory, os.W_OK) else None,
        "errorlog": "-",
        "accesslog": None,
        "loglevel": log_level.lower(),
    }


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks for the next piece of a body instead of giving them back and asking anew.

    Pieces are large enough that it would. With 32 connections and 1 MiB bodies, keeping them took the system time of a
    request from 535 to 283 us in one comparison; with 256 connections nothing was gained. What is kept is bounded by
    what was in use at once, and by `KEPT_BYTES`. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK_BYTES)


class DrainingServer(Server):
    """uvicorn's server, which says that it was told to stop as soon as it was told."""

    def __init__(self, config: Config, *, begin_draining: Callable[[], None]) -> None:
        super().__init__(config)
        self._begin_draining = begin_draining

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._begin_draining()
        super().handle_exit(sig, frame)

    def stop_now(self) -> None:
        """Stop without waiting for exchanges under way; they are cancelled and the lifespan still ends properly."""
        self._begin_draining()
        self.config.timeout_graceful_shutdown = 1
        self.should_exit = True
        for task in self.server_state.tasks:
            task.cancel()


class RelayWorker(UvicornWorker):
    """A gunicorn worker with uvicorn's parts fixed: which ones are installed by chance must not decide."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 - uvicorn_worker's own name and type
        "loop": "uvloop",
        "http": "relay.serving.protocol:RelayProtocol",
        "ws": "none",
        "lifespan": "on",
        # Upstreams send their own; `relay.serving` adds a Date where it is missing.
        "server_header": False,
        "date_header": False,
        # `relay.rules.forwarding` decides whom to believe, and needs to see the peer.
        "proxy_headers": False,
        "access_log": False,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config.timeout_graceful_shutdown = max(0, self.cfg.graceful_timeout - SHUTDOWN_MARGIN_SECONDS)

    async def _serve(self) -> None:
        """As UvicornWorker's, with our server."""
        keep_freed_memory()
        from relay.serving.status import begin_draining  # needs Django set up, which loading the application did

        self.config.app = self.wsgi
        server = DrainingServer(self.config, begin_draining=begin_draining)
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.stop_now)
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
