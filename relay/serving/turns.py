"""How many requests begin in one turn of the event loop; the next ones wait for the next turn, in their order.

Theory of operation. With hundreds of callers a turn of the loop brings requests of many of them beside upstreams'
answers to earlier ones. Were all begun at once, each would be thrown out of the processor's caches by the others before
its upstream has answered. So a few begin, as many as fit, and then the loop is asked what came meanwhile: exchanges
under way end before more begin, and fewer are alive at a time. It costs an upstream's slowness nothing: no exchange is
waited for, and where the loop has nothing else to do the next turn comes at once.

Who waits is held as the bytes of the head that came, and by nothing else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

BEGUN_AT_ONCE = 16
"""Requests in one turn. With 8 the turns themselves cost a twentieth and more; 32 do no better and no worse."""


class Beginner(Protocol):
    loop: asyncio.AbstractEventLoop

    def begin(self) -> bool:
        """Go on with what waits; False when nothing does any more."""


class Turns:
    """Those of one event loop."""

    __slots__ = ("_begun", "_waiting")

    def __init__(self) -> None:
        self._begun = 0
        """In this turn."""
        self._waiting: deque[Beginner] = deque()

    def take(self, beginner: Beginner) -> bool:
        """Whether it may begin now; else its `begin` is called in a later turn."""
        begun = self._begun
        if begun == BEGUN_AT_ONCE:
            self._waiting.append(beginner)
            return False
        if not begun:
            beginner.loop.call_soon(self._next, beginner.loop)
        self._begun = begun + 1
        return True

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = self._waiting
        begun = 0
        try:
            while waiting and begun < BEGUN_AT_ONCE:
                begun += waiting.popleft().begin()
        finally:
            # However that ended: nobody may wait for a turn that never comes.
            self._begun = begun
            if begun or waiting:
                loop.call_soon(self._next, loop)

    def __len__(self) -> int:
        return len(self._waiting)
