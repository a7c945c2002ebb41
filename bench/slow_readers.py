"""`python -m bench.slow_readers`: many callers that ask for 1 GiB each and read a few KiB a second.

A relay that waits for its readers holds little for each of them; one that reads ahead of them holds what they did not
take. Prints the worker's memory before, at its highest and at the end, and ends with 1 when it grew by more than
MOST_GROWN_BYTES or a reader was dropped. How to read it: `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.leaks import MIB
from bench.processes import MemoryWatch, raise_open_files_limit
from bench.proofs import prove
from bench.relays import one_worker, run_module, told_url
from bench.transfers import fetch

ASKED_BYTES = 1 << 30
READ_BYTES = 4096
MOST_GROWN_BYTES = 125 * MIB
CONNECT_SECONDS = 30.0
WARM_UP_PATH = "/relay/origin/counted/1000000"
WARM_UPS = 20
SETTLE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    readers: int
    seconds: float
    dropped: int
    read_bytes: int
    before_bytes: int
    peak_bytes: int
    end_bytes: int

    @property
    def problems(self) -> list[str]:
        """What is wrong, a line each."""
        found = []
        if self.dropped:
            found.append(f"{self.dropped} readers were dropped")
        if self.peak_bytes - self.before_bytes > MOST_GROWN_BYTES:
            found.append(f"it grew by more than {MOST_GROWN_BYTES / MIB:.0f} MiB")
        return found

    def __str__(self) -> str:
        grown = self.peak_bytes - self.before_bytes
        return "\n".join(
            (
                f"{self.readers} readers for {self.seconds:.0f} s, {self.read_bytes / MIB:.1f} MiB read by all of them",
                f"memory: {self.before_bytes / MIB:.1f} MiB before, {self.peak_bytes / MIB:.1f} at most,"
                f" {self.end_bytes / MIB:.1f} at the end",
                f"grown by {grown / MIB:.1f} MiB, {grown / self.readers / 1024:.0f} KiB a reader",
            )
        )


def read_slowly(readers: int, seconds: float, folder: Path) -> Outcome:
    """Raises Failed when it cannot be done."""
    raise_open_files_limit()
    with (
        run_module("rough_origin", folder=folder) as origin,
        one_worker(folder, told_url(origin), held=readers) as (relay, port),
    ):
        for _ in range(WARM_UPS):
            fetch(port, WARM_UP_PATH)
        time.sleep(SETTLE_SECONDS)
        before = relay.resident_bytes()
        with MemoryWatch(relay) as watch, _asking(port, readers) as links:
            read, dropped = _read_a_little(links, seconds)
            end = relay.resident_bytes()
        relay.require_alive()
    return Outcome(
        readers=readers,
        seconds=seconds,
        dropped=dropped,
        read_bytes=read,
        before_bytes=before,
        peak_bytes=watch.peak_bytes,
        end_bytes=end,
    )


@contextmanager
def _asking(port: int, readers: int) -> Iterator[list[socket.socket]]:
    """Connections, each with its request sent."""
    request = f"GET /relay/origin/counted/{ASKED_BYTES} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    with ExitStack() as stack:
        links = []
        for _ in range(readers):
            link = stack.enter_context(socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS))
            link.sendall(request)
            link.setblocking(False)
            links.append(link)
        yield links


def _read_a_little(links: Sequence[socket.socket], seconds: float) -> tuple[int, int]:
    """READ_BYTES of each, once a second. Gives how much was read, and of how many connections the end."""
    ends_at = time.monotonic() + seconds
    alive = list(links)
    read = 0
    while time.monotonic() < ends_at:
        round_over = time.monotonic() + 1
        for link in list(alive):
            with contextlib.suppress(BlockingIOError):
                try:
                    piece = link.recv(READ_BYTES)
                except ConnectionError:
                    piece = b""
                read += len(piece)
                if not piece:
                    alive.remove(link)
        time.sleep(max(0, round_over - time.monotonic()))
    return read, len(links) - len(alive)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.slow_readers", description="Read very slowly.")
    parser.add_argument("--readers", type=int, default=500, metavar="N", help="how many (500)")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="how long (60)")
    options = parser.parse_args(arguments)
    return prove("readers", lambda folder: read_slowly(options.readers, options.seconds, folder))


if __name__ == "__main__":
    sys.exit(main())
