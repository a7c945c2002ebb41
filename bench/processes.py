"""Servers as process groups on a core of their own, and what memory they hold.

Every server is stopped when its `with` block ends, however it ends. Resident memory is the sum over a server's
processes; pages that they share count for each, so growth says more than the sum.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import psutil

START_SECONDS = 60
STOP_SECONDS = 5
SAMPLE_SECONDS = 0.05
QUIET_SHARE = 0.05
"""A server that uses less than this share of its core is done with what it was asked."""


class Failed(Exception):
    """A figure that could not be had; the message is the reason as the report prints it."""


class Server:
    """A process and its children, on one core, with their output in a file."""

    def __init__(
        self, command: Sequence[str], *, core: int | None, env: Mapping[str, str], log: Path, cwd: Path | None = None
    ) -> None:
        self.log = log
        self.core = core
        with log.open("ab") as output, on_core(core):
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill()

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._process.pid

    def tell(self, number: signal.Signals) -> None:
        """Send its first process a signal."""
        self._process.send_signal(number)

    def has_ended(self) -> bool:
        """Whether it has, and well. Raises Failed when it ended with a code."""
        if self._process.poll():
            self.require_alive()
        return self._process.returncode is not None

    def kill(self) -> None:
        """End the whole group, whatever of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def require_alive(self) -> None:
        """Raise Failed with the end of its output when the server is gone."""
        if self._process.poll() is not None:
            raise Failed(f"the server ended with code {self._process.returncode}: {self.last_line() or 'no output'}")

    def last_line(self) -> str:
        """Of its output."""
        return self.log.read_text(errors="replace").strip().rpartition("\n")[2]

    def wait_until(self, answers: Callable[[], bool]) -> None:
        """Wait until `answers` is true. Raises Failed when the server ends or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            self.require_alive()
            if time.monotonic() > deadline:
                raise Failed(f"no answer within {START_SECONDS} s of its start")
            time.sleep(0.05)

    def wait_until_quiet(self, *, at_most_seconds: float = 10) -> None:
        """Let what the last load left behind run out, so that it does not slow the next."""
        deadline = time.monotonic() + at_most_seconds
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(0.2)
            now = self.cpu_seconds()
            if now - before < 0.2 * QUIET_SHARE:
                return
            before = now

    def processes(self) -> list[psutil.Process]:
        try:
            leader = psutil.Process(self._process.pid)
            return [leader, *leader.children(recursive=True)]
        except psutil.Error:
            return []

    def resident_bytes(self) -> int:
        return _sum_resident(self.processes())

    def cpu_seconds(self) -> float:
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total


class MemoryWatch:
    """`with MemoryWatch(server) as watch:` keeps `watch.peak_bytes`, and ends a server that would take the machine."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._limit = psutil.virtual_memory().available * 6 // 10
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0
        self.overran = False

    def __enter__(self) -> Self:
        self.peak_bytes = self._server.resident_bytes()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()
        if self.overran and (error is None or isinstance(error, Failed)):
            raise Failed(f"stopped at {self.peak_bytes / 2**30:.1f} GiB of memory")

    def _watch(self) -> None:
        processes = self._server.processes()
        while not self._left.wait(SAMPLE_SECONDS):
            if not all(process.is_running() for process in processes):
                processes = self._server.processes()
            self.peak_bytes = max(self.peak_bytes, _sum_resident(processes))
            if self.peak_bytes > self._limit and not self.overran:
                self.overran = True
                self._server.kill()


class ForeignLoad:
    """`with ForeignLoad(server) as foreign:` gives `foreign.share`, the part of the server's core that others used."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.share = 0.0

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._foreign_before = self._foreign_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        used = self._foreign_seconds() - self._foreign_before
        self.share = max(0.0, used / (time.monotonic() - self._started))

    def _foreign_seconds(self) -> float:
        if self._server.core is None:
            return 0.0
        core = psutil.cpu_times(percpu=True)[self._server.core]  # without interrupts, which the load itself causes
        return float(core.user + core.nice + core.system) - self._server.cpu_seconds()


def two_cores() -> tuple[int | None, int | None]:
    """The core for servers and the core for load and origin; None for both where they cannot be had."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What this thread starts inside stays on `core`."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def interrupt_when_told_to_end() -> None:
    """Have SIGTERM end this process as ^C does, so that what it started is ended by it."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def raise_open_files_limit(wanted: int = 0) -> int:
    """As many open files as this user may have, for this process and all that it starts. Root may have more than that:
    it gets `wanted` where the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(hard, wanted)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        return most
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _sum_resident(processes: Sequence[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total
