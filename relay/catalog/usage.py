"""Writes to the database what the request path notes: when keys were last used, what report-only mode let pass.

Notes are kept in memory and written together by a thread of their own, at most every `WRITE_SECONDS`, so no request
ever waits for the database. Both tables of notes are bounded; beyond it new entries are dropped until the next write. A
batch that cannot be written is lost, and the log says so once: nothing is decided from it. Workers write on their own,
so a moment only ever replaces an earlier one, and counts are added to what is there.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from typing import Any

from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections, transaction

from relay import models
from relay.models.usage import Counts, add_counts
from relay.signals import server_shutdown, server_startup

logger = logging.getLogger(__name__)

WRITE_SECONDS = 10.0
CLOSE_SECONDS = 2.0
"""How long the end waits for the last batch."""
MAX_PENDING_KEYS = 100_000
MAX_PENDING_COUNTS = 10_000
STATEMENT_TIMEOUT_SECONDS = 10
SECONDS_A_DAY = 24 * 3600


class Usage:
    """One process's notes. The module's functions are those of that one. Notes taken while it is closed are dropped."""

    def __init__(self, *, write_seconds: float = WRITE_SECONDS) -> None:
        self._write_seconds = write_seconds
        self._last_used: dict[str, float] = {}
        """By the key's prefix, in seconds since the epoch."""
        self._counts: dict[tuple[int, str, int], int] = {}
        """By the upstream's id, the type of the error, and the day since the epoch."""
        self._thread: ThreadPoolExecutor | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._failing = False

    def open(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="relay-usage")

    def note_key(self, prefix: str, moment: float) -> None:
        """The key of this prefix was shown, in force."""
        before = self._last_used.get(prefix)
        if before is None:
            if self._thread is None or len(self._last_used) >= MAX_PENDING_KEYS:
                return
            self._schedule()
            self._last_used[prefix] = moment
        elif before < moment:
            self._last_used[prefix] = moment

    def note_would_refuse(self, upstream_id: int, reason: str, moment: float) -> None:
        """An upstream in report-only mode let a request pass."""
        key = (upstream_id, reason, int(moment // SECONDS_A_DAY))
        count = self._counts.get(key, 0)
        if count or (self._thread is not None and len(self._counts) < MAX_PENDING_COUNTS):
            self._schedule()
            self._counts[key] = count + 1

    def _schedule(self) -> None:
        if self._timer is None and self._writing is None:
            self._timer = asyncio.get_running_loop().call_later(self._write_seconds, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if self._thread is not None:
            self._writing = asyncio.get_running_loop().run_in_executor(self._thread, self._write, *self._take())
            self._writing.add_done_callback(self._written)

    def _written(self, done: asyncio.Future[None]) -> None:
        self._writing = None
        if self._thread is not None and (self._last_used or self._counts):
            self._schedule()

    def _take(self) -> tuple[dict[str, float], dict[tuple[int, str, int], int]]:
        taken = self._last_used, self._counts
        self._last_used, self._counts = {}, {}
        return taken

    def _write(self, last_used: dict[str, float], counts: dict[tuple[int, str, int], int]) -> None:
        """For the thread. Never raises."""
        try:
            write(last_used, {(key[0], key[1], _day(key[2])): count for key, count in counts.items()})
        except Exception as problem:
            # Of a driver's message nothing is told: it may hold addresses.
            if not self._failing:
                self._failing = True
                kind = type(problem.__cause__ or problem).__name__
                logger.error("When keys were last used, and what report-only mode let pass, is not kept: %s.", kind)
        else:
            if self._failing:
                self._failing = False
                logger.warning("When keys were last used, and what report-only mode let pass, is kept again.")

    async def close(self) -> None:
        """Write what waits, and stop. What is not written after `CLOSE_SECONDS` is lost."""
        thread, self._thread = self._thread, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if thread is None:
            return
        loop = asyncio.get_running_loop()
        pending = self._take()
        if any(pending):
            thread.submit(self._write, *pending)
        # Its turn comes after what is being written.
        last = loop.run_in_executor(thread, connections.close_all)
        _, late = await asyncio.wait([last], timeout=CLOSE_SECONDS)
        thread.shutdown(wait=False, cancel_futures=True)
        if late:
            logger.warning("The last notes on the use of keys were not written in time.")
            last.cancel()


def write(last_used: dict[str, float], counts: Counts) -> None:
    """One batch. A moment only replaces an earlier one; counts are added."""
    close_old_connections()
    try:
        with transaction.atomic():
            if connections[DEFAULT_DB_ALIAS].vendor == "postgresql":
                with connections[DEFAULT_DB_ALIAS].cursor() as cursor:
                    timeout = str(STATEMENT_TIMEOUT_SECONDS * 1000)
                    cursor.execute("SELECT set_config('statement_timeout', %s, true)", [timeout])
            if last_used:
                _write_moments(last_used)
            if counts:
                add_counts(counts, today=datetime.now(UTC).date())
    finally:
        close_old_connections()


def _write_moments(last_used: dict[str, float]) -> None:
    """One prepared statement for all of them: composed by the ORM they would keep the interpreter from the event loop
    for seconds. In one order everywhere, so that two workers never wait for each other's rows.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    quoted = connection.ops.quote_name
    column = quoted("last_used_at")
    rows = []
    for prefix, seconds in sorted(last_used.items()):
        moment = connection.ops.adapt_datetimefield_value(datetime.fromtimestamp(seconds, UTC))
        rows.append((moment, prefix, moment))
    with connection.cursor() as cursor:
        cursor.executemany(
            f"UPDATE {quoted(models.ApiKey._meta.db_table)} SET {column} = %s "  # noqa: S608 - names of our own
            f"WHERE {quoted('prefix')} = %s AND ({column} IS NULL OR {column} < %s)",
            rows,
        )


def _day(number: int) -> date:
    return date.fromordinal(date(1970, 1, 1).toordinal() + number)


_usage = Usage()

note_key = _usage.note_key
note_would_refuse = _usage.note_would_refuse


async def open_notes(**_: Any) -> None:
    _usage.open()


async def close_notes(**_: Any) -> None:
    await _usage.close()


def connect_signals() -> None:
    """Have the server's start-up and shutdown open and close the notes. Any number of times."""
    server_startup.connect(open_notes, dispatch_uid="relay.catalog.usage")
    server_shutdown.connect(close_notes, dispatch_uid="relay.catalog.usage")
