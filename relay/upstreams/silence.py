"""The timer behind every time-out while bytes move: it fails a reader instead of cancelling a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx


class Silence:
    """A timer that fails a reader after some seconds without progress. Watching anew costs no new timer."""

    __slots__ = ("_deadline", "_handle", "_loop", "_on_silence", "_problem", "_text")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_silence: Callable[[Exception], None]) -> None:
        self._loop = loop
        self._on_silence = on_silence
        self._deadline: float | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._problem: type[httpx.TransportError] | None = None
        self._text = ""

    def watch(self, seconds: float, problem: type[httpx.TransportError], text: str = "silence") -> None:
        """From now on, `seconds` of silence fail the reader with a `problem` that says `text`."""
        self._deadline = self._loop.time() + seconds
        self._problem = problem
        self._text = text
        handle = self._handle
        if handle is None:
            self._handle = self._loop.call_later(seconds, self._check)
        elif handle.when() > self._deadline:
            handle.cancel()
            self._handle = self._loop.call_later(seconds, self._check)

    def extend(self, seconds: float) -> None:
        """Something moved: if silence is watched, `seconds` of it are allowed anew."""
        if self._deadline is not None:
            self._deadline = self._loop.time() + seconds

    def pause(self) -> None:
        """Silence is now ours, not the other side's."""
        self._deadline = None

    def stop(self) -> None:
        """For good. Lets go of the reader too: a cycle would keep both until the garbage collector comes."""
        self._on_silence = _nobody
        self._deadline = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _check(self) -> None:
        self._handle = None
        if self._deadline is None or self._problem is None:
            return
        remaining = self._deadline - self._loop.time()
        if remaining > 0.001:
            self._handle = self._loop.call_later(remaining, self._check)
        else:
            self._on_silence(self._problem(self._text))


def _nobody(_: Exception) -> None:
    pass
