"""What `/metrics` tells: counts and times of exchanges, of all workers of this machine together.

Theory of operation. Each worker counts for itself, in plain numbers, with no lock and nothing shared. Every
`PUBLISH_SECONDS` a thread of its own writes them to a file in the folder that the settings name; whichever worker is
asked reads the others' files (`shelf`), adds its own numbers, and renders the sum (`families`). Without a folder a
worker tells of itself alone.

Series are bounded: the first `MAX_UPSTREAMS` upstreams that are called have their own, all others share one. Names
follow Prometheus' conventions; `outcome` is `ok`, `caller-gone`, `shutdown` or the type of a `RelayError`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from relay import conf
from relay.observing.access_log import Entry
from relay.observing.families import Family, Histogram, Numbers, Sample, render
from relay.observing.shelf import Shelf
from relay.signals import server_shutdown, server_startup

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 2.0
MAX_UPSTREAMS = 1000
OTHERS = "(others)"
"""The series that upstreams beyond the bound share. No slug has a parenthesis."""
NONE = ""
"""The series of requests that were refused before an upstream was found."""
LAG_SECONDS = 0.25
"""How often the event loop's lag is looked at."""
CLOSE_SECONDS = 1.0


class _Meter:
    """One upstream's counts."""

    __slots__ = ("bytes_in", "bytes_out", "connects", "ended", "heads", "queues", "totals")

    def __init__(self) -> None:
        self.ended: dict[tuple[str, int], int] = {}
        self.queues = Histogram()
        self.connects = Histogram()
        self.heads = Histogram()
        self.totals = Histogram()
        self.bytes_in = 0
        self.bytes_out = 0


EXCHANGES = Family(
    "relay_exchanges_total",
    "counter",
    "Requests answered or given up, by how they ended.",
    ("upstream", "outcome", "status_class"),
)
REQUEST_BYTES = Family("relay_request_body_bytes_total", "counter", "Bytes of bodies passed up.", ("upstream",))
RESPONSE_BYTES = Family("relay_response_body_bytes_total", "counter", "Bytes of bodies passed down.", ("upstream",))
QUEUE = Family(
    "relay_queue_seconds", "histogram", "How long exchanges waited for their turn, of those that had to.", ("upstream",)
)
CONNECT = Family(
    "relay_upstream_connect_seconds",
    "histogram",
    "Until there was a connection, name look-up and TLS included, of exchanges that no idle one was there for.",
    ("upstream",),
)
HEAD = Family(
    "relay_response_head_seconds", "histogram", "From the request until the answer's head is there.", ("upstream",)
)
TOTAL = Family("relay_exchange_seconds", "histogram", "From the request to its end.", ("upstream",))
WORKERS = Family("relay_workers", "gauge", "Workers of this machine that are alive.")
LAG = Family(
    "relay_event_loop_lag_seconds",
    "gauge",
    "The longest that a timer was late since the last publication, of the worst worker.",
    merge="max",
)
STARTED = Family(
    "relay_worker_start_time_seconds", "gauge", "When the oldest worker began, since the epoch.", merge="min"
)

Reading = Callable[[], Iterator[tuple[Family, Sample]]]
"""What another room tells when numbers are published: gauges it holds, counters it keeps."""


class Metrics:
    """One process's counts, and the door to those of the others."""

    def __init__(self) -> None:
        self._meters: dict[str, _Meter] = {}
        self._readings: list[Reading] = []
        self._started = time.time()
        self._worst_lag = 0.0
        self._shelf: Shelf | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._publishing: asyncio.TimerHandle | None = None
        self._lag_timer: asyncio.TimerHandle | None = None
        self._written: asyncio.Future[None] | None = None

    # On the request path.

    def ended(self, entry: Entry, now: float) -> None:
        """Count one request. `now` by `perf_counter()`. A microsecond and a half."""
        meter = self._meters.get(entry.slug) or self._new_meter(entry.slug)
        key = (entry.outcome, entry.status // 100)
        ended = meter.ended
        ended[key] = ended.get(key, 0) + 1
        meter.bytes_in += entry.bytes_in
        meter.bytes_out += entry.bytes_out
        meter.totals.count(now - entry.started)
        if entry.head_at:
            meter.heads.count(entry.head_at - entry.started)
        if entry.queued_seconds:
            meter.queues.count(entry.queued_seconds)
        if entry.phases:
            meter.connects.count(sum(entry.phases.values()))

    def _new_meter(self, slug: str) -> _Meter:
        if len(self._meters) >= MAX_UPSTREAMS and slug != NONE:
            slug = OTHERS
        return self._meters.setdefault(slug, _Meter())

    def series_of(self, slug: str) -> str:
        """The `upstream` label that numbers of this slug have; for readings, which share the bound."""
        return slug if slug in self._meters or len(self._meters) < MAX_UPSTREAMS else OTHERS

    # Beside it.

    def read_from(self, reading: Reading) -> None:
        """Have `reading` asked, on the event loop, whenever numbers are published. Again changes nothing."""
        if reading not in self._readings:
            self._readings.append(reading)

    def open(self, folder: Path | None) -> None:
        """Begin to publish, in `folder` where there is one. A folder that cannot be written is told once; the worker
        then tells of itself alone. What this process counted before is not told: it is of no worker, or of one that
        has ended and left its counts in the folder."""
        self._meters.clear()
        self._started = time.time()
        loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="relay-metrics")
        if folder is not None:
            try:
                self._shelf = Shelf(folder)
            except OSError as problem:
                logger.error("Metrics of workers cannot be put together in %s: %s.", folder, problem.strerror)
        self._lag_timer = loop.call_later(LAG_SECONDS, self._look_at_lag, loop.time() + LAG_SECONDS)
        self._publish()

    def _look_at_lag(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._worst_lag = max(self._worst_lag, now - due)
        self._lag_timer = loop.call_later(LAG_SECONDS, self._look_at_lag, now + LAG_SECONDS)

    def _publish(self) -> None:
        loop = asyncio.get_running_loop()
        self._publishing = loop.call_later(PUBLISH_SECONDS, self._publish)
        if self._shelf is not None and self._thread is not None and (self._written is None or self._written.done()):
            self._written = loop.run_in_executor(self._thread, self._shelf.put, self.numbers())
            self._worst_lag = 0.0

    async def text(self) -> str:
        """Prometheus' text format (version 0.0.4), of all workers."""
        own = self.numbers()
        if self._thread is None:
            return render(own)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._whole_text, own)

    def _whole_text(self, own: Numbers) -> str:
        if self._shelf is None:
            return render(own)
        # What was told once must not be less the next time, should this worker be killed in between.
        self._shelf.put(own)
        return render(self._shelf.sum_with(own))

    async def close(self) -> None:
        """Stop, and leave what was counted to the workers that stay."""
        for timer in (self._publishing, self._lag_timer):
            if timer is not None:
                timer.cancel()
        thread, self._thread = self._thread, None
        shelf, self._shelf = self._shelf, None
        if thread is not None and shelf is not None:
            last = asyncio.get_running_loop().run_in_executor(thread, shelf.end, self.numbers())
            _, stuck = await asyncio.wait([last], timeout=CLOSE_SECONDS)
            if stuck:
                last.cancel()
        if thread is not None:
            thread.shutdown(wait=False)

    def numbers(self) -> Numbers:
        """What this process has counted, and what its rooms tell now."""
        numbers = Numbers()
        for slug, meter in self._meters.items():
            for (outcome, status_class), count in meter.ended.items():
                numbers.add(EXCHANGES, ((slug, outcome, f"{status_class}xx" if status_class else "none"), count))
            numbers.add(REQUEST_BYTES, ((slug,), meter.bytes_in))
            numbers.add(RESPONSE_BYTES, ((slug,), meter.bytes_out))
            numbers.add_histogram(QUEUE, (slug,), meter.queues)
            numbers.add_histogram(CONNECT, (slug,), meter.connects)
            numbers.add_histogram(HEAD, (slug,), meter.heads)
            numbers.add_histogram(TOTAL, (slug,), meter.totals)
        numbers.add(WORKERS, ((), 1))
        numbers.add(LAG, ((), self._worst_lag))
        numbers.add(STARTED, ((), self._started))
        for reading in self._readings:
            for family, sample in reading():
                numbers.add(family, sample)
        return numbers


metrics = Metrics()


async def _open(**_: Any) -> None:
    metrics.open(conf.current().metrics_folder)


async def _close(**_: Any) -> None:
    await metrics.close()


def connect_signals() -> None:
    server_startup.connect(_open, dispatch_uid="relay.observing.metrics")
    server_shutdown.connect(_close, dispatch_uid="relay.observing.metrics")
