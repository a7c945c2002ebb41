"""What bodies under way hold in this process together, both ways, and what that lets each of them hold.

Theory of operation. A `Wire` counts here what it took from its upstream until its reader, done with one piece, comes
for the next; `serving.body` does so with requests. While all of them hold little, reads are large and each body runs
ahead of its reader: that is what makes a fast one fast. Once they hold more than `AMPLE_BYTES` together, a read is
small, and none is begun for a body of which anything is held. So N slow readers cost `AMPLE_BYTES`, the last large
read over it, and N times `SMALL_READ_BYTES`. Nothing waits for room here, so nothing can wait for ever: a reader who
has nothing left is always read for.

How much a connection reads at once is the event loop's to say, until it is told otherwise: those that may read a body
are watched, and told at the moment when there is no longer ample room (`intake`), before any of them reads again.
"""

from __future__ import annotations

import threading
from typing import Protocol

AMPLE_BYTES = 32 * 1024 * 1024
"""What all answers may hold before each of them has to do with little."""
LARGE_READ_BYTES = 250 * 1024
"""As much as uvloop reads. It fits into `READ_BUFFER_BYTES`, so that an answer that is waited for runs two ahead."""
SMALL_READ_BYTES = 32 * 1024

_held_bytes = 0


class LargeReader(Protocol):
    """A connection that reads as the event loop has it."""

    def read_small(self) -> None:
        """From the next read on, read no more at once than there is room for. Called once."""


_large_readers: set[LargeReader] = set()


def held_bytes() -> int:
    """What answers hold at this moment."""
    return _held_bytes


def count(change: int) -> None:
    """An answer holds so much more, or less."""
    global _held_bytes
    _held_bytes += change
    if _large_readers and _held_bytes > AMPLE_BYTES:
        while _large_readers:
            _large_readers.pop().read_small()


def watch(reader: LargeReader) -> None:
    """Have it told as soon as there is no ample room, which may be now. Again changes nothing."""
    if is_ample():
        _large_readers.add(reader)
    else:
        reader.read_small()


def forget(reader: LargeReader) -> None:
    """It reads no more."""
    _large_readers.discard(reader)


def is_ample() -> bool:
    return _held_bytes <= AMPLE_BYTES


class ReadBuffer(threading.local):
    """Where an event loop, which has its thread to itself, reads to. Each read is copied from here before the next."""

    def __init__(self) -> None:
        self.large = memoryview(bytearray(LARGE_READ_BYTES))
        self.small = self.large[:SMALL_READ_BYTES]

    def room(self) -> memoryview:
        """For one read."""
        return self.large if _held_bytes <= AMPLE_BYTES else self.small


read_buffer = ReadBuffer()
