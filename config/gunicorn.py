"""How gunicorn runs the relay: its options, its arbiter, and its worker, uvicorn with what the relay needs of it.

Stopping the relay (SIGTERM), in order: the arbiter says that all of it stops and tells the workers; `/readyz` turns 503
at once; requests are served for RELAY_DRAIN_SECONDS more, until the balancer has noticed; then nothing new is accepted,
requests on connections that are still open get 503, and exchanges under way are waited for up to RELAY_GRACEFUL_SECONDS
and cancelled then; the lifespan ends; and only a worker that is still there after the margin is killed by gunicorn.
SIGQUIT, which gunicorn sends on ^C, is the same without the waits.

Handing over (HUP, USR2): new workers take their place at the same listening socket, so the old ones refuse nobody. They
accept for HANDOVER_SECONDS more, while the new ones start, answer what comes on open connections with
`Connection: close`, and close those that stay idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import mmap
import os
import platform
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from uvicorn.config import Config
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from relay.serving import door, status
from relay.upstreams import listeners

logger = logging.getLogger(__name__)

SHUTDOWN_MARGIN_SECONDS = 2
"""What a worker gets, beyond the grace, to cancel what is left and to end its lifespan."""
KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s for which proxies in front usually keep idle connections, so that they close first."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES = 256 * 1024 * 1024
LARGEST_KEPT_BLOCK_BYTES = 32 * 1024 * 1024  # the most that glibc takes
HANG_SECONDS = 30
"""A worker whose event loop stood still for this long is killed."""


ACCEPTED_AT_ONCE = 8
"""Connections that a turn of the workers' event loops takes in, all workers together. uvloop takes in one for each
handle that listens, so a worker listens at each socket by several numbers: by one alone, a thousand callers who come
back together wait for a thousand turns, behind the requests of those who were let in before. All handles wake for who
comes alone, which costs a few microseconds, and is why many workers have fewer each."""
DEAF_TICKS = 20
"""Of uvicorn, which has ten in a second: when callers waited at each of them and none was let in, the worker listens
anew. uvloop stops listening, without a word, when it finds no file descriptor to turn callers away with."""
HANDOVER_SECONDS = 2
"""How long a worker whose place is taken still accepts: a new one needs about one to start."""

LOADED_BY_WORKERS = (
    *("config.door.lockout", "config.middleware", "config.static", "relay.admin.authorship"),
    *("relay.serving.application", "relay.serving.protocol", "uvicorn.lifespan.on", "uvicorn.loops.uvloop"),
)
"""Modules that nothing need have loaded before there are workers. All others of the relay's are loaded by now, but
`config.asgi`: it makes the application, and each worker has its own."""

_whole_relay_stops = mmap.mmap(-1, 1)
"""One byte that the arbiter writes and its workers, forked from it, read."""


def run(*, bind: str, workers: int) -> None:
    """Serve until told to stop. `bind` is an address or `fd://N`."""
    share_with_workers()
    Gunicorn(
        options(
            bind=bind,
            workers=workers,
            drain_seconds=settings.RELAY_DRAIN_SECONDS,
            graceful_seconds=settings.RELAY_GRACEFUL_SECONDS,
            log_level=settings.RELAY_LOG_LEVEL,
        )
    ).run()


def share_with_workers() -> None:
    """Load what every worker needs, and keep the collector off all that is loaded by now.

    Forked workers need not load it then, and share its memory for as long as nobody writes to it; a collection writes
    to every object that it looks at. A worker has 21 MiB of its own when it is ready, where it had 48 without this.
    """
    for name in LOADED_BY_WORKERS:
        import_module(name)
    gc.freeze()


class Gunicorn(BaseApplication):
    """gunicorn with these options, and the project's ASGI application loaded in each worker."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return import_string(settings.ASGI_APPLICATION)

    def run(self) -> None:
        try:
            RelayArbiter(self).run()
        except HaltServer as halt:  # gunicorn lets it out when a second worker fails while it stops for the first
            sys.exit(halt.exit_status)


class RelayArbiter(Arbiter):
    """gunicorn's arbiter, which lets workers know whether somebody takes their place."""

    def stop(self, graceful: bool = True) -> None:
        # Neither the one that a new arbiter (USR2) takes over from, nor that new one while the old one lives.
        alone = self.reexec_pid == 0 and self.master_pid == 0
        _whole_relay_stops[0] = alone
        super().stop(graceful)


def options(*, bind: str, workers: int, drain_seconds: int, graceful_seconds: int, log_level: str) -> dict[str, Any]:
    """gunicorn's settings. `bind` is an address or `fd://N`."""
    graceful_timeout = max(drain_seconds, HANDOVER_SECONDS) + graceful_seconds + SHUTDOWN_MARGIN_SECONDS
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
    """uvicorn's server, which says that it was told to stop as soon as it was told, and goes on for a while."""

    def __init__(
        self, config: Config, *, drain_seconds: float, is_whole_stop: Callable[[], bool], workers: int = 1
    ) -> None:
        super().__init__(config)
        self._accepts_at_once = max(1, ACCEPTED_AT_ONCE // workers)
        self._drain_seconds = drain_seconds
        self._is_whole_stop = is_whole_stop
        self._hands_over = False
        self._stops_at: float | None = None
        self._listeners: list[_Listener] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        for listening, server in zip(sockets or (), self.servers.copy(), strict=True):
            self._listeners.append(listener := _Listener(listening, server))
            await self._widen(listener)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGTERM:
            status.begin_draining()
            super().handle_exit(sig, frame)
        elif self._stops_at is None:
            self._captured_signals.append(sig)
            self._hands_over = not self._is_whole_stop()
            if not self._hands_over:
                status.begin_draining()
            self._stops_at = time.monotonic() + (HANDOVER_SECONDS if self._hands_over else self._drain_seconds)
            self._look_at_clock()

    async def on_tick(self, counter: int) -> bool:
        self._look_at_clock()
        seen = door.door_of(self.server_state).seen
        for place, listener in enumerate(self._listeners):
            if not self.should_exit:
                if listener.is_deaf(seen):
                    await self._listen_again(place)
                await self._widen(self._listeners[place])
        return await super().on_tick(counter)

    async def _listen_again(self, place: int) -> None:
        deaf = self._listeners[place]
        try:
            listening = deaf.take_spare()
            server = await self._listen(listening)
        except OSError:
            return  # there may be a descriptor at the next tick
        for old in deaf.servers:
            old.close()
            self.servers.remove(old)
        self._listeners[place] = _Listener(listening, server)
        logger.warning("The worker had stopped listening, for want of file descriptors. It listens again.")

    async def _widen(self, listener: _Listener) -> None:
        """Have as many handles listen as should; while descriptors are short, those that do have to be enough."""
        with contextlib.suppress(OSError):
            while len(listener.servers) < self._accepts_at_once:
                listener.servers.append(await self._listen(listener.dup()))

    async def _listen(self, listening: socket.socket) -> asyncio.Server:
        """Raises OSError."""
        try:
            server = await asyncio.get_running_loop().create_server(
                self._make_protocol, sock=listening, backlog=self.config.backlog
            )
        except OSError:
            listening.close()
            raise
        self.servers.append(server)
        return server

    def _make_protocol(self) -> asyncio.Protocol:
        """As uvicorn makes them."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def _look_at_clock(self) -> None:
        if self._stops_at is not None and time.monotonic() >= self._stops_at:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._hands_over:
            status.begin_handing_over()
        else:
            status.begin_refusing()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        await super().shutdown(sockets)

    def stop_now(self) -> None:
        """Stop without waiting for exchanges under way; they are cancelled and the lifespan still ends properly."""
        status.begin_draining()
        self.config.timeout_graceful_shutdown = 1
        self.should_exit = True
        for task in self.server_state.tasks:
            task.cancel()


class _Listener:
    """A socket that callers come to, seen from beside the event loop."""

    def __init__(self, listening: socket.socket, *servers: asyncio.Server) -> None:
        self.servers = list(servers)
        """Those that let in who comes to it."""
        self._poll = select.poll()
        self._poll.register(listening, select.POLLIN)
        self._listening = listening
        self._spare: socket.socket | None = None
        with contextlib.suppress(OSError):
            # To be there when there is no descriptor for another.
            self._spare = self.dup()
        self._ticks = 0
        self._seen = 0

    def dup(self) -> socket.socket:
        """The same socket by another number. Raises OSError."""
        return self._listening.dup()

    def is_deaf(self, seen: int) -> bool:
        """At each tick, with the number of connections that have come by then."""
        is_held_up = seen == self._seen and bool(self._poll.poll(0))
        self._ticks = self._ticks + 1 if is_held_up else 0
        self._seen = seen
        return self._ticks >= DEAF_TICKS

    def take_spare(self) -> socket.socket:
        """The same socket by another number, if need be by the last there is. Raises OSError."""
        spare, self._spare = self._spare, None
        return spare or self.dup()

    def close(self) -> None:
        if self._spare is not None:
            self._spare.close()


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
        self.config.timeout_graceful_shutdown = settings.RELAY_GRACEFUL_SECONDS

    async def _serve(self) -> None:
        """As UvicornWorker's, with our server."""
        keep_freed_memory()
        listeners.tell(self.sockets)
        self.config.app = self.wsgi
        server = DrainingServer(
            self.config,
            drain_seconds=settings.RELAY_DRAIN_SECONDS,
            is_whole_stop=lambda: bool(_whole_relay_stops[0]),
            workers=self.cfg.workers,
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.stop_now)
        # The sockets themselves: what gunicorn wraps them in, uvloop would close a second time.
        await server.serve(sockets=[listener.sock for listener in self.sockets])
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
