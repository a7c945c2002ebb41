"""Active checks: asks targets how they are, once for all workers of a machine, and tells the verdicts to each of them.

Theory of operation. Whoever holds the lock in the data folder leads: it checks every target of every upstream that has
a check (`relay.rules.health`), and writes the unhealthy ones to a file. The others look at that file every
`LOOK_SECONDS`, and try for the lock: the system gives it free with the process that held it. So checks arrive once an
interval, whatever the number of workers, and verdicts outlive the worker that came to them. The leader touches the lock
to say that it is at work; of one that has not for `DOUBTED_SECONDS` nothing is believed. Without a folder a worker
checks for itself.

One timer stands for all checks, at the moment of the next; at most `MAX_CHECKS` are under way, and those that are due
beyond it wait. A check goes out through the pool of its target, by its upstream's rules, TLS and guard, and shows no
credential but the client certificate. What says nothing about the target (a pool that is full, a machine without
descriptors) is no result.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx

from relay import conf
from relay.catalog import Snapshot, Target, Upstream
from relay.observing.episodes import Episode
from relay.observing.families import Family, Sample
from relay.observing.metrics import metrics
from relay.rules.health import Check, Verdict
from relay.signals import server_shutdown, server_startup
from relay.upstreams import client as client_room
from relay.upstreams import faults, targets
from relay.upstreams.messages import SeamRequest

logger = logging.getLogger(__name__)

MAX_CHECKS = 64
"""Under way at a time."""
MOST_READ_BYTES = 64 * 1024
"""Of an answer's body."""
JITTER = 0.1
"""Of the interval, either way: what began together does not stay together."""
LOOK_SECONDS = 1.0
"""How often a worker looks at what the leader says, or says that it leads."""
DOUBTED_SECONDS = 30.0
"""A leader that was not heard of for so long is not believed."""
FORMAT = 1

_LOCK = "health-lock"
_VERDICTS = "health"

CHECKS = Family("relay_health_checks_total", "counter", "Active checks of targets.", ("upstream", "outcome"))
HEALTHY = Family(
    "relay_target_healthy",
    "gauge",
    "Whether a target is healthy, as its checks say.",
    ("upstream", "target"),
    merge="min",
)

Key = tuple[str, str]
"""An upstream's slug and a target's name."""


class Finding(NamedTuple):
    """Why a target counts as unhealthy, and since when, in seconds since the epoch."""

    reason: str
    since: float


def report(folder: Path) -> dict[Key, Finding] | None:
    """The unhealthy targets, as the leader of this machine found them; None when nobody is checking."""
    try:
        return _read(folder / _VERDICTS) if _is_led(folder) else None
    except (OSError, ValueError):
        return None


class _Job:
    """One target that is checked."""

    __slots__ = ("check", "due", "key", "reason", "since", "target", "upstream", "verdict")

    def __init__(self, upstream: Upstream, target: Target, finding: Finding | None) -> None:
        self.key = (upstream.slug, target.name)
        self.verdict = Verdict(is_healthy=finding is None)
        self.reason, self.since = finding or ("", 0.0)
        self.due = math.inf
        """On the loop's clock; infinite while it is being checked."""
        self.follow(upstream, target)

    def follow(self, upstream: Upstream, target: Target) -> None:
        self.upstream = upstream
        self.target = target
        self.check = cast(Check, upstream.check)


class Checker:
    """One worker's part in it. Belongs to an event loop; `draw` gives numbers from 0 to 1."""

    def __init__(self, folder: Path | None, *, draw: Callable[[], float] = random.random) -> None:
        self._loop = asyncio.get_running_loop()
        self._folder = folder
        self._draw = draw
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="relay-health")
        self._trouble = Episode(
            logger,
            f"What checks of targets find cannot be shared in {folder}",
            "What checks of targets find is shared again",
        )
        self._lock: int | None = None
        self._newest: Snapshot | None = None
        self._snapshot: Snapshot | None = None
        """What the jobs were made from."""
        self._jobs: dict[Key, _Job] = {}
        self._due: list[tuple[float, int, _Job]] = []
        """A heap of moments. Only the one that its job has for due counts."""
        self._number = 0
        self._waiting: deque[_Job] = deque()
        """Due, and more than may be under way."""
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look_again)
        self._writing: asyncio.Future[None] | None = None
        self._has_news = False
        self._seen: tuple[int, int] | None = None
        self._found: Mapping[Key, Finding] = {}
        """What the file said last."""
        self._counts: dict[Key, int] = {}
        """Of results, by slug and outcome."""

    @property
    def leads(self) -> bool:
        return self._lock is not None or self._folder is None

    def follow(self, snapshot: Snapshot) -> None:
        """After each poll of the catalog, with the snapshot in force."""
        self._newest = snapshot
        self._look()

    async def stop(self) -> None:
        """No check is under way afterwards, all that was found is written, and another worker may lead."""
        self._looking.cancel()
        self._waiting.clear()
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        while self._writing is not None:
            await asyncio.wait([self._writing])
        self._due.clear()
        self._thread.shutdown(wait=False)
        self._give_up_lead()

    # Who checks.

    def _look_again(self) -> None:
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look_again)
        self._look()

    def _look(self) -> None:
        snapshot = self._newest
        if snapshot is None:
            return
        if self._folder is not None:
            with self._trouble.told():
                self._settle_who_leads(self._folder, wants_to=snapshot.has_checks)
        if self.leads:
            if snapshot is not self._snapshot:
                self._snapshot = snapshot
                self._take_up(snapshot)
            self._write_news()

    def _settle_who_leads(self, folder: Path, *, wants_to: bool) -> None:
        if self._lock is not None:
            if _is_at(self._lock, folder / _LOCK):
                os.utime(self._lock)
                return
            # The folder was made anew, and with it another lock.
            self._give_up_lead()
        # Before it leads: of a leader that is long gone nothing is to be taken over.
        self._hear(folder)
        if wants_to:
            self._try_to_lead(folder)

    def _try_to_lead(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        else:
            self._lock = descriptor
            self._snapshot = None
            # What a leader of long ago left is replaced before this one is heard of, which is at the next look.
            self._has_news = True

    def _give_up_lead(self) -> None:
        """Whoever leads next checks; what is under way here has no effect any more."""
        self._jobs = {}
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _hear(self, folder: Path) -> None:
        """Go by what the leader found."""
        if not _is_led(folder):
            self._go_by({})
            self._seen = None
            return
        try:
            told = (folder / _VERDICTS).stat()
        except FileNotFoundError:
            return
        seen = (told.st_mtime_ns, told.st_ino)
        if seen != self._seen:
            try:
                self._go_by(_read(folder / _VERDICTS))
            except ValueError:
                logger.error("What checks of targets found cannot be read in %s: it is left as it was.", folder)
            self._seen = seen

    def _go_by(self, found: Mapping[Key, Finding]) -> None:
        self._found = found
        targets.unhealthy = frozenset(found)

    # What is checked.

    def _take_up(self, snapshot: Snapshot) -> None:
        before = self._jobs
        self._jobs = {}
        for upstream in snapshot.checked():
            for target in upstream.targets:
                job = before.get((upstream.slug, target.name))
                if job is None:
                    job = _Job(upstream, target, self._found.get((upstream.slug, target.name)))
                    # The first ones are spread over the interval: a start is no burst.
                    self._plan(job, job.check.interval_seconds * self._draw())
                elif job.upstream is not upstream:
                    job.follow(upstream, target)
                    if self._loop.time() + job.check.interval_seconds < job.due < math.inf:
                        self._plan(job, job.check.interval_seconds * self._draw())
                self._jobs[job.key] = job
        slugs = {slug for slug, _ in self._jobs}
        self._counts = {key: count for key, count in self._counts.items() if key[0] in slugs}
        if len(self._due) > 2 * len(self._jobs) + MAX_CHECKS:
            self._due = [entry for entry in self._due if self._counts_still(entry)]
            heapify(self._due)
        self._publish()

    def _counts_still(self, entry: tuple[float, int, _Job]) -> bool:
        moment, _, job = entry
        return job.due == moment and self._jobs.get(job.key) is job

    def _plan(self, job: _Job, seconds: float) -> None:
        self._number += 1
        job.due = self._loop.time() + seconds
        heappush(self._due, (job.due, self._number, job))
        self._set_timer()

    def _set_timer(self) -> None:
        if not self._due:
            return
        moment = self._due[0][0]
        if self._timer is not None:
            if self._timer_at <= moment:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(moment, self._begin_due)
        self._timer_at = moment

    def _begin_due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._due and self._due[0][0] <= now:
            entry = heappop(self._due)
            if self._counts_still(entry):
                entry[2].due = math.inf
                self._waiting.append(entry[2])
        self._begin_waiting()
        self._set_timer()

    def _begin_waiting(self) -> None:
        while self._waiting and len(self._running) < MAX_CHECKS:
            job = self._waiting.popleft()
            if self._jobs.get(job.key) is job:
                task = self._loop.create_task(self._run(job), name=f"relay-check-{job.key[0]}")
                self._running.add(task)
                task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            logger.error("A check failed.", exc_info=problem)
        self._begin_waiting()

    async def _run(self, job: _Job) -> None:
        try:
            reason = await _ask(job.upstream, job.target, job.check)
            if reason is not None and self._jobs.get(job.key) is job:
                self._heard(job, reason)
        finally:
            if self._jobs.get(job.key) is job:
                self._plan(job, job.check.interval_seconds * (1 + JITTER * (2 * self._draw() - 1)))

    def _heard(self, job: _Job, reason: str) -> None:
        count = (job.key[0], "bad" if reason else "good")
        self._counts[count] = self._counts.get(count, 0) + 1
        if not job.verdict.heard(is_good=not reason, check=job.check):
            return
        slug, name = job.key
        if reason:
            job.reason, job.since = reason, time.time()
            logger.warning("Upstream %s: target %s is unhealthy (%s).", slug, name, reason)
        else:
            logger.warning("Upstream %s: target %s is healthy again.", slug, name)
        self._publish()
        self._write_news()

    # What is told.

    def _publish(self) -> None:
        unhealthy = frozenset(key for key, job in self._jobs.items() if not job.verdict.is_healthy)
        if unhealthy != targets.unhealthy or unhealthy != frozenset(self._found):
            self._has_news = True
        targets.unhealthy = unhealthy

    def _write_news(self) -> None:
        if self._lock is None or self._folder is None or not self._has_news or self._writing is not None:
            return
        self._has_news = False
        jobs = (job for job in self._jobs.values() if not job.verdict.is_healthy)
        self._found = {job.key: Finding(job.reason, job.since) for job in jobs}
        document = json.dumps(
            {"format": FORMAT, "unhealthy": [[*key, *finding] for key, finding in self._found.items()]}
        )
        self._writing = self._loop.run_in_executor(self._thread, _write, self._folder / _VERDICTS, document)
        self._writing.add_done_callback(self._written)

    def _written(self, done: asyncio.Future[None]) -> None:
        self._writing = None
        problem = None if done.cancelled() else done.exception()
        if isinstance(problem, OSError):
            self._trouble.show(problem)
            self._has_news = True  # to be written at the next look
        else:
            self._write_news()

    def read(self) -> Iterator[tuple[Family, Sample]]:
        """For `/metrics`: what this worker found, if it leads."""
        for (slug, outcome), count in self._counts.items():
            yield CHECKS, ((metrics.series_of(slug), outcome), count)
        for (slug, name), job in self._jobs.items():
            series = metrics.series_of(slug)
            if series == slug:
                yield HEALTHY, ((series, name), int(job.verdict.is_healthy))


async def _ask(upstream: Upstream, target: Target, check: Check) -> str | None:
    """Why the target is not well; empty when it is, None when that is not to be said."""
    client = client_room.client
    if client is None:
        return None
    pairs = [
        (b"host", target.authority if upstream.target_host else upstream.authority),
        (b"user-agent", b"relay-health-check"),
        (b"accept", b"*/*"),
    ]
    extensions: dict[str, Any] = {"upstream": upstream, "place": target, "target": check.target}
    response: httpx.Response | None = None
    try:
        async with asyncio.timeout(check.timeout_seconds):
            response = await client.send(SeamRequest(check.method, pairs, stream=None, extensions=extensions))
            if response.status_code not in check.statuses:
                return f"status {response.status_code}"
            if check.body not in await _begin_of_body(response):
                return "the text is not in the answer"
            return ""
    except TimeoutError:
        return f"no answer within {check.timeout_seconds:g} s"
    except faults.SAYS_NOTHING:
        return None
    except httpx.HTTPError as problem:
        return str(problem) or type(problem).__name__
    finally:
        if response is not None:
            cast(httpx.SyncByteStream, response.stream).close()


async def _begin_of_body(response: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in cast(httpx.AsyncByteStream, response.stream):
        body += piece
        if len(body) > MOST_READ_BYTES:
            break
    return bytes(body[:MOST_READ_BYTES])


def _write(path: Path, document: str) -> None:
    """Whole or not at all."""
    fresh = path.with_name(f"{path.name}-new")
    fresh.write_text(document)
    fresh.replace(path)


def _is_led(folder: Path) -> bool:
    """Whether a leader was heard of lately."""
    try:
        return abs(time.time() - (folder / _LOCK).stat().st_mtime) < DOUBTED_SECONDS
    except FileNotFoundError:
        return False


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether this open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> dict[Key, Finding]:
    """Raises ValueError for what no worker of this code wrote, and OSError."""
    document = json.loads(path.read_text())
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError("another format")
    return {(slug, name): Finding(reason, since) for slug, name, reason, since in document.get("unhealthy", ())}


_checker: Checker | None = None


def follow(snapshot: Snapshot) -> None:
    """For the catalog's watcher."""
    if _checker is not None:
        _checker.follow(snapshot)


def read() -> Iterator[tuple[Family, Sample]]:
    """For `/metrics`."""
    return iter(()) if _checker is None else _checker.read()


async def _open(**_: Any) -> None:
    global _checker
    _checker = Checker(conf.current().store_folder)


async def _close(**_: Any) -> None:
    global _checker
    closing, _checker = _checker, None
    if closing is not None:
        await closing.stop()
    targets.unhealthy = frozenset()


def connect_signals() -> None:
    server_startup.connect(_open, dispatch_uid="relay.upstreams.health")
    server_shutdown.connect(_close, dispatch_uid="relay.upstreams.health")
