"""`python -m bench.streams` (`make soak-streams`): idle event streams on one worker, and new exchanges beside them.

Each stream has an event at least every BEAT_SECONDS. None may be dropped or fall silent, and what new exchanges take
beside them is told next to what they took before. Ends with 1 when a stream or an exchange was lost. A stream takes two
descriptors of the relay: root raises the limit, others run with what they have. How to read it: `docs/benchmarks.md`.

Origins and callers are processes of their own, several where one would lack descriptors; a caller is started by this
module as `python -m bench.streams callers PORT PATH N SECONDS`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.leaks import MIB
from bench.origin import answers, free_port
from bench.processes import Failed, Server, raise_open_files_limit
from bench.proofs import prove, say
from bench.relays import one_worker, run_module
from bench.transfers import BEAT_SECONDS, close_streams, fetch, open_streams

WANTED_OPEN_FILES = 65_536
BESIDE_FILES = 300
"""Descriptors of the relay beside those of streams: its own, and those that it keeps back from callers."""
STREAMS_OF_A_CALLER = 5_000
BEFORE_SECONDS = 10.0
PROBE_EVERY_SECONDS = 0.05
OPENING_SECONDS = 300.0
"""For all streams."""
PATH, PROBED = "/relay/origin/beats", "/relay/origin/sink"


@dataclass(frozen=True, slots=True)
class Times:
    """Of new exchanges, one after another, each on a connection of its own: milliseconds, and how many failed."""

    milliseconds: list[float]
    failed: int = 0

    def share(self, of_all: float) -> float:
        """What so many of them took at most. Infinite when there are none."""
        if not self.milliseconds:
            return float("inf")
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(of_all * len(ordered)))]

    def __str__(self) -> str:
        return (
            f"{len(self.milliseconds):,} exchanges, median {self.share(0.5):.2f} ms, p99 {self.share(0.99):.2f} ms,"
            f" longest {self.share(1):.2f} ms, {self.failed} failed"
        )


@dataclass(frozen=True, slots=True)
class Held:
    """What one process of callers saw: of `wanted` streams how many opened, how many still are open, and the fewest
    events that one of these had."""

    wanted: int
    opened: int
    still_open: int
    fewest_events: int


@dataclass(frozen=True, slots=True)
class Outcome:
    open_files: int
    seconds: float
    held: list[Held]
    before: Times
    beside: Times
    before_bytes: int
    after_bytes: int

    @property
    def problems(self) -> list[str]:
        """What is wrong, a line each."""
        found = []
        for held in self.held:
            if held.opened < held.wanted:
                found.append(f"{held.wanted - held.opened} of {held.wanted} streams did not open")
            if held.still_open < held.opened:
                found.append(f"{held.opened - held.still_open} of {held.opened} streams were dropped")
            due = int(self.seconds / BEAT_SECONDS)
            if held.still_open and held.fewest_events < due:
                found.append(f"a stream had {held.fewest_events} events where {due} were due")
        if self.before.failed + self.beside.failed:
            found.append(f"{self.before.failed} exchanges failed before, {self.beside.failed} beside the streams")
        return found

    def __str__(self) -> str:
        opened = sum(held.opened for held in self.held)
        still_open = sum(held.still_open for held in self.held)
        grown = self.after_bytes - self.before_bytes
        each = f", {grown / opened / 1024:.1f} KiB a stream" if opened else ""
        ratio = self.beside.share(0.99) / self.before.share(0.99)
        return "\n".join(
            (
                f"{opened:,} streams open on one worker, {still_open:,} still so after {self.seconds:.0f} s;"
                f" fewest events of one: {min(held.fewest_events for held in self.held)}",
                f"limit of open files: {self.open_files:,}",
                f"memory: {self.before_bytes / MIB:.1f} MiB before, {self.after_bytes / MIB:.1f} with them{each}",
                f"before:  {self.before}",
                f"beside:  {self.beside}",
                f"p99 beside is {ratio:.2f} times that before",
            )
        )


def hold(streams: int, seconds: float, folder: Path) -> Outcome:
    """Raises Failed when it cannot be done."""
    open_files = raise_open_files_limit(WANTED_OPEN_FILES)
    needed = 2 * streams + BESIDE_FILES
    if open_files < needed:
        raise Failed(
            f"{open_files:,} open files are allowed and {needed:,} are needed: run as root, raise `ulimit -Hn`, or ask"
            f" for {(open_files - BESIDE_FILES) // 2:,} streams"
        )
    port_of_origin = free_port()
    with (
        run_module("inner_origin", str(port_of_origin), folder=folder) as origin,
        one_worker(folder, f"http://127.0.0.1:{port_of_origin}", held=streams) as (relay, port),
    ):
        origin.wait_until(lambda: answers(port_of_origin, "/sink"))
        time_exchanges(port, seconds=BEFORE_SECONDS / 5)  # to warm up
        before_bytes = relay.resident_bytes()
        before = time_exchanges(port, seconds=BEFORE_SECONDS)
        with ExitStack() as stack:
            callers = []
            for first in range(0, streams, STREAMS_OF_A_CALLER):
                few = min(STREAMS_OF_A_CALLER, streams - first)
                callers.append(stack.enter_context(_start_caller(port, few, seconds, folder / f"callers-{first}")))
            _wait_for_lines(callers, 1, OPENING_SECONDS)
            say("all streams are open that open")
            after_bytes = relay.resident_bytes()
            beside = time_exchanges(port, seconds=seconds)
            _wait_for_lines(callers, 2, OPENING_SECONDS)
            held = [Held(**json.loads(caller.last_line())) for caller in callers]
        relay.require_alive()
    return Outcome(
        open_files=open_files,
        seconds=seconds,
        held=held,
        before=before,
        beside=beside,
        before_bytes=before_bytes,
        after_bytes=after_bytes,
    )


def time_exchanges(port: int, *, seconds: float) -> Times:
    times = Times([])
    failed = 0
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        started = time.perf_counter()
        try:
            fetch(port, PROBED)
        except Failed as failure:
            say(f"  {failure}")
            failed += 1
        else:
            times.milliseconds.append((time.perf_counter() - started) * 1000)
        time.sleep(PROBE_EVERY_SECONDS)
    return Times(times.milliseconds, failed)


def _start_caller(port: int, streams: int, seconds: float, folder: Path) -> Server:
    folder.mkdir()
    return run_module("streams", "callers", str(port), PATH, str(streams), str(seconds), folder=folder)


def _wait_for_lines(callers: Sequence[Server], lines: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(len(caller.log.read_text().splitlines()) < lines for caller in callers):
        for caller in callers:
            caller.has_ended()
        if time.monotonic() > deadline:
            raise Failed(f"callers of streams were not done within {seconds:.0f} s")
        time.sleep(0.1)


async def call(port: int, path: str, wanted: int, seconds: float) -> None:
    """Hold so many streams; a line when those are open that open, and one with what became of them."""
    streams = await open_streams(port, path, wanted)
    print(json.dumps({"opened": len(streams)}), flush=True)
    try:
        await asyncio.sleep(seconds)
        alive = [stream for stream in streams if stream.is_open]
        fewest = min((stream.events for stream in alive), default=0)
        told = {"wanted": wanted, "opened": len(streams), "still_open": len(alive), "fewest_events": fewest}
        print(json.dumps(told), flush=True)
        # Left open until the measurement beside them is over.
        await asyncio.Event().wait()
    finally:
        await close_streams(streams)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description="Hold idle event streams.")
    parser.add_argument("--streams", type=int, default=10_000, metavar="N", help="how many (10000)")
    parser.add_argument("--minutes", type=float, default=5.0, metavar="M", help="how long, once all are open (5)")
    options = parser.parse_args(arguments)
    return prove("streams", lambda folder: hold(options.streams, options.minutes * 60, folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["callers"]:
        asyncio.run(call(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
    else:
        sys.exit(main())
