"""The cookies that the relay keeps for upstreams in jar mode: used at once, shared with other workers, kept for good.

Theory of operation. The event loop has each jar in memory: it chooses from it for a request, and takes an answer's
cookies into it. What changed waits, by cookie, until the room's one thread writes it, a batch at a time; nothing on the
request path waits for that. When the revision moved, the same thread reads the jars that may have changed, and what has
not been written yet is put on top, so that this worker's own cookies never go back in time. A database that fails costs
nothing but the sharing: what waits is written later.

Bounds: those of `relay.rules.jar` for each jar, `MOST_WAITING` for what waits to be written of one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from relay.catalog import jar_rows, loader
from relay.catalog.snapshot import Snapshot, Upstream
from relay.rules import jar
from relay.rules.jar import Cookie, Key
from relay.signals import server_shutdown, server_startup

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.25
START_SECONDS = 5.0
"""How long the start waits for the jars to be read: a database that does not answer must not hold it."""
RETRY_SECONDS = 5.0
"""After a failure of the database."""
MOST_WAITING = 256
CLOSE_SECONDS = 1.0
"""How long the end waits for the last cookies to be written."""

_Changes = dict[Key, Cookie | None]


class Jars:
    """All jars of one process. The module's `jars` is the one that requests use."""

    def __init__(self) -> None:
        self._jars: jar_rows.Jars = {}
        self._waiting: dict[str, _Changes] = {}
        self._being_written: dict[str, _Changes] = {}
        self._revision: int | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._read_again = False
        self._failing = False

    # What requests ask.

    def cookie_header(self, upstream: Upstream, path: bytes) -> bytes | None:
        """The Cookie value for a request to this path of the upstream."""
        kept = self._jars.get(upstream.slug)
        if not kept:
            return None
        return jar.cookie_header(
            kept.values(), host=upstream.host.encode(), path=path, secure=upstream.scheme == "https", now=time.time()
        )

    def take(self, upstream: Upstream, values: Iterable[bytes], path: bytes) -> None:
        """Keep what an answer for this path set."""
        now = time.time()
        kept = self._jars.setdefault(upstream.slug, {})
        for value in values:
            cookie = jar.read_set_cookie(value, host=upstream.host.encode(), path=path, now=now)
            if cookie is None:
                continue
            stored = kept.get(cookie.key)
            if cookie.has_expired(now):
                if stored is not None:
                    del kept[cookie.key]
                    self._tell(upstream.slug, cookie.key, None)
            elif jar.is_news(cookie, stored):
                kept[cookie.key] = cookie
                self._tell(upstream.slug, cookie.key, cookie)
        for key in jar.overflow(kept, now):
            del kept[key]
            self._tell(upstream.slug, key, None)

    def _tell(self, slug: str, key: Key, cookie: Cookie | None) -> None:
        waiting = self._waiting.setdefault(slug, {})
        waiting.pop(key, None)
        waiting[key] = cookie
        if len(waiting) > MOST_WAITING:
            # The oldest news is the least: whoever reads the jar bounds it as well.
            del waiting[next(iter(waiting))]
        self._flush_later(FLUSH_SECONDS)

    # The thread beside the event loop.

    async def start(self) -> None:
        """Read all jars. A failure is logged: the watcher says of the database what there is to say."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="relay-jars")
        self._revision = None
        self._reading = asyncio.get_running_loop().create_task(self._keep_reading(), name="relay-jars-reading")
        await asyncio.wait([self._reading], timeout=START_SECONDS)

    def follow(self, snapshot: Snapshot) -> None:
        """Told by the catalog's watcher after each poll: read what may have changed since the last look."""
        if self._thread is None or snapshot.revision == self._revision:
            return
        if self._reading is not None:
            self._read_again = True
            return
        self._reading = asyncio.get_running_loop().create_task(self._keep_reading(), name="relay-jars-reading")

    async def _keep_reading(self) -> None:
        try:
            while True:
                self._read_again = False
                await self._read()
                if not self._read_again:
                    return
        finally:
            self._reading = None

    async def _read(self) -> None:
        if self._thread is None:
            return
        loop = asyncio.get_running_loop()
        try:
            revision, slugs, found = await loop.run_in_executor(self._thread, jar_rows.load, self._revision)
        except Exception as problem:
            self._failed("read", problem)
            return
        self._recovered()
        self._revision = revision
        for slug in set(self._jars) if slugs is None else slugs:
            self._jars.pop(slug, None)
        self._jars.update(found)
        for changes in (self._being_written, self._waiting):
            for slug, cookies in changes.items():
                kept = self._jars.setdefault(slug, {})
                for key, cookie in cookies.items():
                    if cookie is None:
                        kept.pop(key, None)
                    else:
                        kept[key] = cookie

    def _flush_later(self, seconds: float) -> None:
        if self._thread is not None and self._timer is None and self._writing is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._writing = asyncio.get_running_loop().create_task(self._write(), name="relay-jars-writing")

    async def _write(self) -> None:
        """Write what waits. What could not be written waits on, under what has come since."""
        loop = asyncio.get_running_loop()
        self._being_written, self._waiting = self._waiting, {}
        pause = FLUSH_SECONDS
        try:
            await loop.run_in_executor(self._thread, jar_rows.save, self._being_written)
            self._recovered()
        except Exception as problem:
            self._failed("written", problem)
            pause = RETRY_SECONDS
            for slug, changes in self._being_written.items():
                merged = changes | self._waiting.get(slug, {})
                self._waiting[slug] = dict(list(merged.items())[-MOST_WAITING:])
        finally:
            self._being_written = {}
            self._writing = None
            self._flush_later(pause)

    async def stop(self) -> None:
        """Write what waits, and give the thread's connection back. A database that hangs is left to its time-outs."""
        thread = self._thread
        if thread is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and self._writing is None:
            self._flush()
        under_way = self._under_way()
        if under_way:
            _, late = await asyncio.wait(under_way, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
        self._thread = None  # so that a failed batch is not tried again
        released = asyncio.wrap_future(thread.submit(loader.release_connections))
        await asyncio.wait([released], timeout=CLOSE_SECONDS)
        thread.shutdown(wait=False)
        self._jars.clear()
        self._waiting.clear()

    def _under_way(self) -> set[asyncio.Task[None]]:
        return {task for task in (self._writing, self._reading) if task is not None}

    def _failed(self, what: str, problem: Exception) -> None:
        if not self._failing:
            self._failing = True
            # Never its text: drivers put addresses there.
            logger.error("The jars of cookies cannot be %s (%s); it is tried again.", what, type(problem).__name__)

    def _recovered(self) -> None:
        if self._failing:
            self._failing = False
            logger.warning("The jars of cookies are read and written again.")


jars = Jars()


def connect_signals() -> None:
    """Have the server's start-up and shutdown start and stop the room. Any number of times."""
    server_startup.connect(_on_startup, dispatch_uid="relay.catalog.jars")
    server_shutdown.connect(_on_shutdown, dispatch_uid="relay.catalog.jars")


async def _on_startup(**_: Any) -> None:
    await jars.start()


async def _on_shutdown(**_: Any) -> None:
    await jars.stop()
