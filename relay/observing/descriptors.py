"""How many files this process may have open, how many it has, and what happens when they run out.

Theory of operation. The system gives a new file or socket the lowest number that is free. So the number itself tells,
at no cost, how many are in use at least: one at `callers_end` or beyond means that only the last ones are left. Those
are not for callers: `relay.serving.door` answers 503. The last half of them is not for upstreams either, to which
`relay.upstreams.dialing` does not connect then: so the database, the log and the stored snapshot can be opened whatever
comes in. Neither kind of loop does well without: asyncio logs each try to accept, uvloop hangs up on callers
and, should it find no descriptor for that, never listens again.

A shortage is told in the log once when it begins and once when it is over: `CALM_SECONDS` went by in which nothing was
refused, and there is room again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from relay.observing.families import Family, Sample
from relay.signals import server_shutdown, server_startup

logger = logging.getLogger(__name__)

MOST_KEPT = 64
"""Descriptors that are left to what the relay itself opens; an eighth of all where that is less."""
CALM_SECONDS = 5.0

_FOLDER = Path("/proc/self/fd")

USED_UP = (errno.EMFILE, errno.ENFILE)
"""This process's, or all of the machine's."""

OPEN = Family("process_open_fds", "gauge", "Open file descriptors, of the worker with the most.", merge="max")
MOST = Family("process_max_fds", "gauge", "How many file descriptors a worker may have.", merge="min")
REFUSED = Family(
    "relay_descriptor_refusals_total",
    "counter",
    "Connections not taken, or not made, because file descriptors had run out.",
)


class Descriptors:
    """Those of one process."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._refused = 0
        self._refused_before = 0
        """The shortage."""
        self._began_at: float | None = None
        self._last_refused_at = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._divide()

    def _divide(self) -> None:
        kept = min(MOST_KEPT, self.most // 8)
        self.upstreams_end = self.most - kept
        self.callers_end = self.most - 2 * kept
        self.farewells_end = self.callers_end + kept // 2
        """Beyond, who is refused is not listened to any further."""

    def measure(self) -> None:
        """Take the limit that is in force now."""
        self.most = soft_limit()
        self._divide()

    def refuse(self) -> None:
        """A connection was not taken or not made. On the event loop."""
        self._refused += 1
        self._last_refused_at = monotonic()
        if self._began_at is None:
            self._began_at = self._last_refused_at
            self._refused_before = self._refused - 1
            logger.error(
                "File descriptors have run out (%d are allowed): connections are refused until some are free again. "
                "The relay goes on with those it has.",
                self.most,
            )
            self._look_later()

    def _look_later(self) -> None:
        self._look = asyncio.get_running_loop().call_later(CALM_SECONDS, self._look_whether_over)

    def _look_whether_over(self) -> None:
        self._look = None
        if self._began_at is None:
            return
        if monotonic() - self._last_refused_at < CALM_SECONDS or next_number() >= self.callers_end:
            self._look_later()
            return
        logger.warning(
            "There are file descriptors again, after %.0f s; %d connections were refused.",
            monotonic() - self._began_at,
            self._refused - self._refused_before,
        )
        self._began_at = None

    def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._began_at = None

    def read(self) -> Iterator[tuple[Family, Sample]]:
        """For `/metrics`."""
        yield OPEN, ((), count_open())
        yield MOST, ((), self.most)
        yield REFUSED, ((), self._refused)


def soft_limit() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit if limit != resource.RLIM_INFINITY else 2**31 - 1


def next_number() -> int:
    """Of the descriptor that would be opened next; beyond any when there is none."""
    try:
        descriptor = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return 2**31
    os.close(descriptor)
    return descriptor


def count_open() -> int:
    """How many are open; 0 where the system does not tell."""
    try:
        # Since Linux 6.2 it is the folder's size; counting ten thousand takes milliseconds.
        return _FOLDER.stat().st_size or sum(1 for _ in _FOLDER.iterdir())
    except OSError:
        return 0


descriptors = Descriptors(soft_limit())


async def _open(**_: Any) -> None:
    descriptors.measure()
    logger.info("This worker may have %d files and sockets open.", descriptors.most)


async def _close(**_: Any) -> None:
    descriptors.close()


def connect_signals() -> None:
    server_startup.connect(_open, dispatch_uid="relay.observing.descriptors")
    server_shutdown.connect(_close, dispatch_uid="relay.observing.descriptors")
