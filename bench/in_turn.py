"""Rates of one server at several numbers of connections, measured in turns of a fraction of a second.

Theory of operation. Each number has a wrk of its own, which connects once and is stopped (SIGSTOP) but in its turn, so
the connections of the others are open and idle meanwhile. What else the machine does in one moment falls on few of the
turns, and what it does for longer on those of all. A turn's answers are counted by who gave them: wrk tells of its
whole time only. What connecting costs is not in these rates; `put_load` has it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.load import SCRIPT, find_tool, parse_wrk
from bench.processes import Failed

TURN_SECONDS = 0.3
SETTLE_SECONDS = 0.1
"""Until a load that goes on is at its work."""
LONGEST_SECONDS = 3600
TIME_OUT_SECONDS = 20
"""An answer that came while its load was stopped is not late. wrk has a counter for each microsecond of it."""
END_TRIES = 10
END_SECONDS = 1
"""For each of them."""


@dataclass(frozen=True, slots=True)
class InTurn:
    """Requests per second by number of connections, and how many of all answers were errors."""

    rates: dict[int, float]
    errors: int


class HeldLoad:
    """`with HeldLoad(url, connections=32) as load:` connects; load is put in `with load.going_on():`."""

    def __init__(self, url: str, *, connections: int) -> None:
        options = ["-t1", f"-c{connections}", f"-d{LONGEST_SECONDS}s", f"--timeout={TIME_OUT_SECONDS}s"]
        self._command = [find_tool("wrk"), *options, "-s", str(SCRIPT), url]

    def __enter__(self) -> HeldLoad:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Raises Failed when it ended."""
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGSTOP)
            if self._process.returncode is None:  # it goes on until the signal has reached all of its threads
                os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._require_alive()

    def end(self) -> int:
        """How many errors there were. Raises Failed when it did not do its work."""
        self._require_alive()
        self._process.send_signal(signal.SIGCONT)
        for _ in range(END_TRIES):
            # Any of its threads may get it, and wrk ends when the first one does.
            self._process.send_signal(signal.SIGINT)
            try:
                output, _ = self._process.communicate(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            return parse_wrk(output).errors
        raise Failed("wrk did not end")

    def _require_alive(self) -> None:
        if self._process.poll() is not None:
            said = "".join(self._process.communicate()).strip().splitlines()
            raise Failed(f"wrk ended: {said[-1] if said else self._process.returncode}")


def put_loads_in_turn(
    url: str, ways: Sequence[int], *, turns: int, warm_up_seconds: Callable[[int], float], served: Callable[[], int]
) -> InTurn:
    """`turns` of each number of connections in `ways`, there and back. `served` tells how many requests were answered
    so far, by whoever answers them in the end. Raises Failed."""
    answered, seconds = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    with ExitStack() as stack:
        loads = {}
        for connections in ways:
            loads[connections] = load = stack.enter_context(HeldLoad(url, connections=connections))
            with load.going_on():
                time.sleep(warm_up_seconds(connections))
        for turn in range(turns):
            for connections in ways if turn % 2 == 0 else reversed(ways):
                with loads[connections].going_on():
                    time.sleep(SETTLE_SECONDS)
                    before, began = served(), time.perf_counter()
                    time.sleep(TURN_SECONDS)
                    after, ended = served(), time.perf_counter()
                answered[connections] += after - before
                seconds[connections] += ended - began
        errors = 0
        for load in loads.values():
            errors += load.end()
    return InTurn({connections: answered[connections] / seconds[connections] for connections in ways}, errors)
