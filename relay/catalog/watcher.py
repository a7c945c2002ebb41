"""Keeps the published snapshot in step with the database: loads it at start-up, polls for edits, survives outages.

Theory of operation. One thread of the watcher's own does all the reading, so that no request's thread and no database
connection of a request is ever waited for, and the event loop only ever swaps a reference. A poll is one query for the
last revision; only when it moved is more read, and only what changed. A poll that fails or hangs leaves the snapshot in
force: the relay serves on, `state()` says so (`/readyz` shows it), and the log has one line when it begins and one when
it ends. Polls never overlap; one that hangs is waited for rather than joined by another.

When the database is away at the start, or does not answer, `relay.catalog.store` gives the snapshot that was kept
last. All is then as after a failing poll, and the first poll that succeeds reads everything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar, TypeVarTuple

from relay import catalog, conf
from relay.catalog import loader
from relay.catalog.row_file import RowsUnusable
from relay.catalog.snapshot import Snapshot, free_in_slices
from relay.catalog.store import Store
from relay.observing.families import Family, Sample
from relay.signals import server_shutdown, server_startup

logger = logging.getLogger(__name__)

_Arguments = TypeVarTuple("_Arguments")
_Loaded = TypeVar("_Loaded")

POLL_DEADLINE_SECONDS = 20.0
"""A poll that takes longer counts as failed until it ends. Reading 100,000 changes takes about five seconds."""
START_DEADLINE_SECONDS = 20.0
"""How long the start waits for a database that does not answer, where a stored snapshot can serve instead."""
STOP_SECONDS = 1.0
"""How long `stop` waits for a running poll."""


@dataclass(frozen=True, slots=True)
class CatalogState:
    """How well the catalog follows the database."""

    revision: int
    """Of the snapshot in force."""
    healthy: bool
    failing_since: str | None = None
    """When the first of the failing polls was noticed: ISO 8601, UTC."""
    error: str | None = None
    """Class name of what the last failing poll raised. Never its text: drivers put addresses there."""
    source: str = "database"
    """Of the snapshot in force; `store` from a start without the database until that is back."""
    age_seconds: float = field(default=0.0, compare=False)
    """Since the snapshot was last known to be what the database has."""


class Watcher:
    """One watch over the database, within one event loop. The module's functions are those of the process's one."""

    def __init__(
        self,
        *,
        poll_deadline_seconds: float = POLL_DEADLINE_SECONDS,
        start_deadline_seconds: float = START_DEADLINE_SECONDS,
    ) -> None:
        self._poll_deadline_seconds = poll_deadline_seconds
        self._start_deadline_seconds = start_deadline_seconds
        self._subscribers: list[Callable[[Snapshot], None]] = []
        self._failing_since: datetime | None = None
        """For people, by the wall clock; how long it was is told by the other, which never leaps."""
        self._began_failing_at = 0.0
        self._error: str | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._task: asyncio.Task[None] | None = None
        self._polling: asyncio.Future[None] | None = None
        self._confirmed_at = time.monotonic()
        self._store: Store | None = None
        self._source = "database"

    def state(self) -> CatalogState:
        return CatalogState(
            revision=catalog.current().revision,
            age_seconds=time.monotonic() - self._confirmed_at,
            healthy=self._failing_since is None,
            failing_since=None if self._failing_since is None else self._failing_since.isoformat(timespec="seconds"),
            error=self._error,
            source=self._source,
        )

    def subscribe(self, callback: Callable[[Snapshot], None]) -> Callable[[], None]:
        """Have `callback` called on the event loop after the start and each poll, with the snapshot in force.

        It should return at once. Subscribing again changes nothing. Returns what ends the subscription.
        """
        if callback not in self._subscribers:
            self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def start(self) -> None:
        """Load everything, publish it, begin to watch. Raises `CatalogUnreadable`: there is nothing to serve then."""
        if self._thread is not None:
            raise RuntimeError("the watcher has been started")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="relay-watcher")
        folder = conf.current().store_folder
        self._store = None if folder is None else Store(folder)
        try:
            snapshot = await self._load()
        except BaseException:
            await self.stop()
            raise
        catalog.publish(snapshot)
        self._tell_subscribers()
        logger.info("%d upstreams are live, revision %d.", len(snapshot), snapshot.revision)
        self._task = asyncio.create_task(self._watch(), name="relay-watcher")

    async def _load(self) -> Snapshot:
        """From the database, or else from the store."""
        loading = asyncio.ensure_future(self._in_thread(loader.load_all))
        try:
            _, late = await asyncio.wait([loading], timeout=self._start_deadline_seconds if self._store else None)
            if late:
                problem = loader.CatalogUnreadable("The database does not answer.", kind=TimeoutError.__name__)
                try:
                    snapshot = await self._load_stored(problem)
                except loader.CatalogUnreadable:
                    pass  # nothing is left but to wait
                else:
                    # It may answer yet.
                    self._polling = self._begin(self._take(loading))
                    return snapshot
            snapshot = await loading
        except loader.CatalogUnreadable as problem:
            return await self._load_stored(problem)
        except asyncio.CancelledError:
            loading.cancel()
            raise
        self._recovered(snapshot.revision)
        return snapshot

    async def _load_stored(self, problem: loader.CatalogUnreadable) -> Snapshot:
        """What to serve while the database has this problem. Raises `CatalogUnreadable` when there is nothing."""
        if self._store is None:
            raise problem
        try:
            kept = await self._store.load()
        except RowsUnusable as reason:
            text = f"{problem} No stored snapshot can stand in for it: {reason}."
            raise loader.CatalogUnreadable(text, kind=problem.kind) from None
        self._source = "store"
        self._failed(problem.kind, str(problem))
        self._confirmed_at = time.monotonic() - kept.age_seconds
        logger.warning("The relay starts with the snapshot it stored %.0f s ago.", kept.age_seconds)
        return kept.snapshot

    async def stop(self) -> None:
        """End the watch and give the thread's connections back. A poll that hangs is left to its own time-outs."""
        thread = self._thread
        if thread is None:
            return
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        # Its turn comes after the poll under way.
        released = asyncio.wrap_future(thread.submit(loader.release_connections))
        await asyncio.wait([released], timeout=STOP_SECONDS)
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait([self._polling])
            self._polling = None
        self._thread = None
        thread.shutdown(wait=False)
        if self._store is not None:
            await self._store.stop()
            self._store = None

    async def poll_now(self) -> None:
        """Have everything that committed before this call published when it returns, unless the database fails."""
        if self._thread is None:
            raise RuntimeError("the watcher has not been started")
        if self._polling is not None:
            # It may have looked before the commit.
            await asyncio.wait([self._polling])
        await asyncio.wait([self._begin_poll()])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(conf.current().catalog_poll_seconds)
            polling = self._begin_poll()
            _, late = await asyncio.wait([polling], timeout=self._poll_deadline_seconds)
            if late:
                self._failed(TimeoutError.__name__)
                await asyncio.wait([polling])

    def _begin_poll(self) -> asyncio.Future[None]:
        """The poll under way, or a new one."""
        if self._polling is None:
            self._polling = self._begin(self._poll())
        return self._polling

    def _begin(self, poll: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        polling = asyncio.ensure_future(poll)
        polling.add_done_callback(self._ended)
        return polling

    def _ended(self, polling: asyncio.Future[None]) -> None:
        if self._polling is polling:
            self._polling = None

    async def _poll(self) -> None:
        if self._source == "database":
            await self._take(self._in_thread(loader.load_changes, catalog.current()))
        else:
            # The store has what this database had, if it is the same one.
            await self._take(self._in_thread(loader.load_all))

    async def _take(self, loading: Awaitable[Snapshot | None]) -> None:
        """Publish what is being loaded, if anything."""
        try:
            snapshot = await loading
        except loader.CatalogUnreadable as problem:
            self._failed(problem.kind, str(problem))
        except Exception as problem:
            # Whatever it is, the snapshot in force is better than none.
            self._failed(type(problem).__name__)
        else:
            retired = [catalog.current()]
            if snapshot is not None:
                catalog.publish(snapshot)
            self._recovered(catalog.current().revision)
            if snapshot is not None:
                await self._in_thread(free_in_slices, retired, snapshot)
        self._tell_subscribers()

    async def _in_thread(self, load: Callable[[*_Arguments], _Loaded], *arguments: *_Arguments) -> _Loaded:
        if self._thread is None:
            raise RuntimeError("the watcher has been stopped")
        return await asyncio.get_running_loop().run_in_executor(self._thread, load, *arguments)

    def _tell_subscribers(self) -> None:
        for callback in list(self._subscribers):
            try:
                callback(catalog.current())
            except Exception:
                logger.exception("A subscriber of the catalog failed.")

    def _failed(self, kind: str, advice: str = "") -> None:
        self._error = kind
        if self._failing_since is None:
            self._failing_since = datetime.now(UTC)
            self._began_failing_at = time.monotonic()
            logger.error("Edits are not seen, the relay serves what it knows: %s", advice or f"a poll ended in {kind}.")

    def _recovered(self, revision: int) -> None:
        """The database has answered, and this is what it has."""
        self._confirmed_at = time.monotonic()
        self._source = "database"
        if self._store is not None:
            self._store.follow(revision)
        if self._failing_since is not None:
            logger.warning("Edits are seen again, after %.0f s.", time.monotonic() - self._began_failing_at)
            self._failing_since = self._error = None


REVISION = Family("relay_catalog_revision", "gauge", "Number of the last change that is in force.", merge="min")
AGE = Family(
    "relay_catalog_age_seconds", "gauge", "Since the catalog was last known to be what the database has.", merge="max"
)
UPSTREAMS = Family("relay_catalog_upstreams", "gauge", "Upstreams that are live.", merge="max")
CONSUMERS = Family("relay_catalog_consumers", "gauge", "Consumers that may call.", merge="max")


def read() -> Iterator[tuple[Family, Sample]]:
    """For `/metrics`."""
    snapshot, now = catalog.current(), state()
    yield REVISION, ((), now.revision)
    yield AGE, ((), now.age_seconds)
    yield UPSTREAMS, ((), len(snapshot))
    yield CONSUMERS, ((), len(snapshot.roster))


_watcher = Watcher()

start = _watcher.start
stop = _watcher.stop
poll_now = _watcher.poll_now
state = _watcher.state
subscribe = _watcher.subscribe


def connect_signals() -> None:
    """Have the server's start-up and shutdown start and stop the watch. Any number of times."""
    server_startup.connect(_on_startup, dispatch_uid="relay.catalog.watcher")
    server_shutdown.connect(_on_shutdown, dispatch_uid="relay.catalog.watcher")


async def _on_startup(**_: Any) -> None:
    await start()


async def _on_shutdown(**_: Any) -> None:
    await stop()
