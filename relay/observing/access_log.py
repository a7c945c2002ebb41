"""One JSON line for each request on the relay path, whatever became of it.

Lines are collected and written together by a thread of their own, so a slow disk or a full pipe never holds the event
loop. The bound is `MAX_WAITING_LINES`: beyond it lines are dropped, counted, and the count is written; so are lines
that a full disk did not take. A line holds no query, no header and no body; `detail` is the relay's own words.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

from relay import conf
from relay.errors import RelayError
from relay.observing.episodes import Episode
from relay.observing.families import Family, Sample
from relay.signals import server_shutdown, server_startup

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.25
MAX_WAITING_LINES = 20_000
MAX_PATH_BYTES = 1024
"""What of a path is in its line, for callers decide how long one is."""
NEWLINE = ord("\n")
PHASES = ("pool", "dns", "connect", "proxy", "tls")
CLOSE_SECONDS = 1.0
"""How long the end waits for a reader that takes nothing."""


DROPPED = Family(
    "relay_access_log_dropped_lines_total",
    "counter",
    "Lines that were not written: too many waited, or writing failed.",
)


@dataclass(slots=True)
class Entry:
    """What is known of one request, filled in as it goes. Sizes in bytes; `started`, `head_at` by `perf_counter()`."""

    method: str
    request_id: bytes
    started: float
    client: str = ""
    slug: str = ""
    path: bytes = b""
    status: int = 0
    outcome: str = "ok"
    """`ok`, `caller-gone`, `shutdown`, or the type of the `RelayError`."""
    detail: str = ""
    error: str = ""
    """What went wrong in the words of RFC 9209 section 2.3, as `Proxy-Status` tells it to the caller."""
    consumer: str = ""
    """Whose key in force, or whose signature, was shown."""
    key: str = ""
    """Prefix of the well-formed key that was shown, in force or not; or the id of the signing key."""
    would_refuse: str = ""
    """Type of the `RelayError` that an upstream in report-only mode kept from the caller."""
    bytes_in: int = 0
    bytes_out: int = 0
    head_at: float = 0.0
    target: str = ""
    """Where at the upstream it went last: host and port."""
    attempts: int = 0
    """How often it was sent, or tried to be."""
    queued_seconds: float = 0.0
    """How long it waited for its turn at the upstream."""
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds that went by until it had a connection: `pool` (waiting for one), `dns`, `connect`, `proxy`, `tls`."""
    wall: float = field(default_factory=time.time)

    def failed(self, problem: RelayError) -> None:
        """How the request ended, unless it ends worse."""
        self.outcome, self.detail, self.error = problem.type, problem.detail, problem.proxy_status

    def line(self) -> str:
        """The entry as JSON. Put together by hand: a JSON encoder takes three times as long for a line a request."""
        total_ms = (time.perf_counter() - self.started) * 1000
        head_ms = f"{(self.head_at - self.started) * 1000:.2f}" if self.head_at else "null"
        path = self.path if len(self.path) <= MAX_PATH_BYTES else self.path[:MAX_PATH_BYTES] + b"..."
        extras = f',"target":{_quoted(self.target)},"attempts":{self.attempts}' if self.target else ""
        if self.error:
            extras += f',"error":"{self.error}"'
        if self.detail:
            extras += f',"detail":{_quoted(self.detail)}'
        if self.key:
            extras += f',"key":{_quoted(self.key)}'
            if self.consumer:
                extras += f',"consumer":{_quoted(self.consumer)}'
        if self.queued_seconds:
            extras += f',"queued_ms":{self.queued_seconds * 1000:.2f}'
        for phase in PHASES if self.phases else ():
            if phase in self.phases:
                extras += f',"{phase}_ms":{self.phases[phase] * 1000:.2f}'
        if self.would_refuse:
            extras += f',"would_refuse":{_quoted(self.would_refuse)}'
        return (
            f'{{"time":"{_iso(self.wall)}","request_id":{_quoted(self.request_id.decode("ascii"))},'
            f'"client":{_quoted(self.client)},"method":{_quoted(self.method)},"upstream":{_quoted(self.slug)},'
            f'"path":{_quoted(path.decode("ascii", "backslashreplace"))},"status":{self.status},'
            f'"outcome":{_quoted(self.outcome)},"bytes_in":{self.bytes_in},"bytes_out":{self.bytes_out},'
            f'"head_ms":{head_ms},"total_ms":{total_ms:.2f}{extras}}}'
        )


def _iso(wall: float) -> str:
    """ISO 8601 in UTC, with milliseconds."""
    second = int(wall)
    return f"{_iso_second(second)}.{int((wall - second) * 1000):03d}+00:00"


@lru_cache(maxsize=4)
def _iso_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class AccessLog:
    """Collects lines and writes them in batches. One per process."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._dropped = 0
        self._telling = 0
        """Dropped lines of which the batch that was taken last tells."""
        self._dropped_ever = 0
        self._ends_torn = False
        """What was last written has no end of its line."""
        self._trouble = Episode(
            logger, "The access log cannot be written, lines are lost", "The access log is written again"
        )
        self._descriptor: int | None = None
        self._owned = False
        self._thread: ThreadPoolExecutor | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[int] | None = None

    def open(self, where: str) -> None:
        """Begin to write to `where`: `stdout`, `off` or a path. Raises OSError when a path cannot be appended to."""
        if where == "off":
            return
        if where == "stdout":
            self._descriptor = sys.__stdout__.fileno() if sys.__stdout__ is not None else None
        else:
            self._descriptor = os.open(where, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
            self._owned = True
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="relay-access-log")

    def add(self, entry: Entry) -> None:
        if self._descriptor is None:
            return
        if len(self._lines) >= MAX_WAITING_LINES:
            self._count_dropped(1)
            return
        self._lines.append(entry.line())
        if self._timer is None and self._writing is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def _count_dropped(self, lines: int) -> None:
        self._dropped += lines
        self._dropped_ever += lines

    def _count_lost(self, lines: int) -> None:
        """Of the batch that was written last. A line that told of dropped ones was its last."""
        if lines and self._telling:
            self._dropped += self._telling
            lines -= 1
        self._count_dropped(lines)

    def _flush(self) -> None:
        self._timer = None
        if self._thread is None or not self._lines:
            return
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(self._thread, self._write, self._take())
        self._writing.add_done_callback(self._written)

    def _written(self, done: asyncio.Future[int]) -> None:
        self._writing = None
        if not done.cancelled():
            self._count_lost(done.result())
        if self._lines and self._thread is not None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def _take(self) -> bytes:
        lines, self._lines = self._lines, []
        if self._dropped:
            lines.append(f'{{"time":"{_iso(time.time())}","outcome":"lines-dropped","count":{self._dropped}}}')
        self._telling, self._dropped = self._dropped, 0
        return ("\n".join(lines) + "\n").encode()

    def _write(self, batch: bytes) -> int:
        """How many lines were lost. For the thread."""
        left = memoryview(b"\n" + batch if self._ends_torn else batch)
        try:
            while left and self._descriptor is not None:
                taken = os.write(self._descriptor, left)
                self._ends_torn = left[taken - 1] != NEWLINE
                left = left[taken:]
        except OSError as problem:
            self._trouble.show(problem)
        else:
            self._trouble.pass_by()
        # Without the end of what was torn before.
        return min(bytes(left).count(NEWLINE), batch.count(NEWLINE))

    async def close(self) -> None:
        """Write what waits, and stop. What a stuck reader has not taken after `CLOSE_SECONDS` is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        thread, self._thread = self._thread, None
        if thread is not None:
            batch = self._take() if self._lines else b""
            last = asyncio.get_running_loop().run_in_executor(thread, self._write, batch)
            _, stuck = await asyncio.wait([last], timeout=CLOSE_SECONDS)
            thread.shutdown(wait=False)
            if stuck:
                # The thread may be in the middle of a write: its descriptor stays open.
                self._owned = False
                for waiting in (last, self._writing):
                    if waiting is not None:
                        waiting.cancel()
        if self._owned and self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None
        self._owned = False

    def read(self) -> Iterator[tuple[Family, Sample]]:
        """For `/metrics`."""
        yield DROPPED, ((), self._dropped_ever)


log = AccessLog()


async def open_log(**_: Any) -> None:
    log.open(conf.current().access_log)


async def close_log(**_: Any) -> None:
    await log.close()


def connect_signals() -> None:
    server_startup.connect(open_log, dispatch_uid="relay.observing.access_log")
    server_shutdown.connect(close_log, dispatch_uid="relay.observing.access_log")
