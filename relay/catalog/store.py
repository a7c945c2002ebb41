"""Keeps the last good snapshot in the data folder, so that the relay starts when the database is away.

Theory of operation. What is kept are the rows that the loader makes snapshots of, in a `row_file`; secrets are in it as
they are in the database, sealed, and the whole is sealed again. After a poll that brought another snapshot, and every
`CONFIRM_SECONDS` besides, a thread of the store's own looks: where the database still has what the file has, it is
touched, so that its time tells when it was last known to be right; else it is written anew, from the database, by one
worker of the machine. A look that settled nothing, because another worker was at it or because it is too soon, is taken
again after the next poll. What writing costs bounds how often it is done (`WRITING_SHARE`): only large tables notice.
Nothing here decides requests or ends a worker: a disk that is full or a folder that cannot be written is one line in
the log when it begins and one when it ends, and is tried again after pauses that grow.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from relay import vault
from relay.catalog import loader, row_file
from relay.catalog.row_file import RowsUnusable
from relay.catalog.snapshot import Snapshot

logger = logging.getLogger(__name__)

CONFIRM_SECONDS = 10.0
"""How often the file of a database that did not change is confirmed."""
WRITING_SHARE = 0.05
"""Of a machine's time, at most, is spent on writing: a file that takes 3 seconds is written once a minute, one that
takes 20 milliseconds after each poll that brought something."""
MOST_PAUSE_SECONDS = 300.0
"""Between two writings, however long one takes."""
DOUBTED_SECONDS = 300.0
"""A file that was not confirmed for so long is written anew, whatever it says: the database may be another by now."""
FIRST_RETRY_SECONDS = 1.0
MOST_RETRY_SECONDS = 10.0
"""Pauses between tries of a write that fails double up to this, unless trying takes so long that its share is up."""
STOP_SECONDS = 1.0

_NAME = "snapshot"
_COLUMNS = {name: table.columns for name, table in loader.TABLES.items()}


class Kept(NamedTuple):
    snapshot: Snapshot
    age_seconds: float
    """Since it was last known to be what the database has."""


def is_in(folder: Path) -> bool:
    """Whether something was kept there; whether it can be read shows when it is."""
    return (folder / _NAME).is_file()


class Store:
    """One worker's view of the file in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / _NAME
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="relay-store")
        self._stopping = threading.Event()
        self._keeping: asyncio.Future[None] | None = None
        self._settled_revision = -1
        """Of the snapshot that was in force when the file was last found or made right."""
        self._confirm_at = 0.0
        """When a file that is right is looked at again. This and the next by `time.monotonic()`."""
        self._retry_at = 0.0
        """No look before: the last one failed."""
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._failing = False

    async def load(self) -> Kept:
        """What is kept. Raises RowsUnusable."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    def follow(self, revision: int) -> None:
        """The database has just answered, and the snapshot in force has this revision: keep it, if that is due."""
        now = time.monotonic()
        is_due = revision != self._settled_revision or now >= self._confirm_at
        if self._keeping is None and is_due and now >= self._retry_at:
            self._keeping = asyncio.get_running_loop().run_in_executor(self._thread, self.keep, revision)
            self._keeping.add_done_callback(self._kept)

    def _kept(self, done: asyncio.Future[None]) -> None:
        self._keeping = None
        if not done.cancelled() and (problem := done.exception()) is not None:
            logger.error("The snapshot could not be stored.", exc_info=problem)

    async def stop(self) -> None:
        """What is being written is given up. A database that hangs is left to its own time-outs."""
        self._stopping.set()
        released = asyncio.wrap_future(self._thread.submit(loader.release_connections))
        await asyncio.wait([released], timeout=STOP_SECONDS)
        released.cancel()
        if self._keeping is not None:
            self._keeping.cancel()
        self._thread.shutdown(wait=False)

    # For the thread.

    def _load(self) -> Kept:
        with row_file.reading(self._path, _COLUMNS) as rows:
            return Kept(loader.load_from(rows), max(0.0, time.time() - rows.head.confirmed_at))

    def keep(self, revision: int) -> None:
        """Have the file say what the database has, unless another worker is at it. Never for a reason to stop.

        `revision` is that of the snapshot in force: what the database has is no older.
        """
        began = time.monotonic()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _alone(self._folder / "lock") as lock:
                is_settled = lock is not None and self._confirm_or_write(lock)
        except loader.CatalogUnreadable:
            pass  # the watcher tells of it
        except OSError as problem:
            self._failed(problem, spent=time.monotonic() - began)
        else:
            if is_settled:
                self._succeeded(revision)

    def _failed(self, problem: OSError, *, spent: float) -> None:
        self._retry_at = time.monotonic() + max(self._retry_seconds, min(spent / WRITING_SHARE, MOST_PAUSE_SECONDS))
        self._retry_seconds = min(self._retry_seconds * 2, MOST_RETRY_SECONDS)
        if not self._failing:
            self._failing = True
            logger.error(
                "The snapshot cannot be stored in %s (%s). The relay serves all the same, but would it start while the "
                "database is away, it would know no more than what was stored before.",
                self._folder,
                problem.strerror,
            )

    def _succeeded(self, revision: int) -> None:
        self._settled_revision = revision
        self._confirm_at = time.monotonic() + CONFIRM_SECONDS
        self._retry_seconds = FIRST_RETRY_SECONDS
        if self._failing:
            self._failing = False
            logger.warning("The snapshot is stored again.")

    def _confirm_or_write(self, lock: int) -> bool:
        """Whether the file now says what the database has."""
        with loader.reading_rows() as rows:
            began = time.time()
            revision = self._trusted_revision(began)
            if revision is not None and rows.are_those_of(revision):
                os.utime(self._path)
                return True
            if revision is not None and _says_wait(lock, began):
                return False  # writing has had its share of the time
            spent = -time.monotonic()
            row_file.write(
                self._path,
                _COLUMNS,
                rows.of,
                revision=rows.revision,
                confirmed_at=began,
                go_on=lambda: not self._stopping.is_set(),
            )
            spent += time.monotonic()
            # The lock's times say, to all workers, from when until when there may be no next writing.
            now = time.time()
            os.utime(lock, (now, now + min(spent / WRITING_SHARE, MOST_PAUSE_SECONDS)))
            return True

    def _trusted_revision(self, now: float) -> int | None:
        """Of the file, if this relay could start from it; None for one to be replaced, whatever the database has."""
        try:
            head = row_file.read_head(self._path)
        except RowsUnusable:
            return None
        right = head.has(_COLUMNS) and head.key == vault.keyring().newest_id
        return head.revision if right and 0 <= now - head.confirmed_at < DOUBTED_SECONDS else None


def _says_wait(lock: int, now: float) -> bool:
    """A clock that was put back in between, or far ahead, lets the next writing be."""
    noted = os.fstat(lock)
    return noted.st_atime <= now < noted.st_mtime


@contextmanager
def _alone(path: Path) -> Iterator[int | None]:
    """A descriptor of the locked file, or None: another worker of this machine has the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        yield None
    finally:
        os.close(descriptor)
