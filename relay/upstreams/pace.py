"""The clock of a request's body on its way up: whose turn it is, and how long that may take.

Theory of operation. A body moves in turns: the caller's, while its next piece is waited for, and the upstream's, until
it has taken that piece. Both may be silent for the idle time-out. The caller has a rate to keep besides: with one byte
now and then it would hold a slot, a connection and the upstream for ever (R-U-Dead-Yet). It has `GRACE_SECONDS` of
patience to begin with, which its turns use up, and every byte earns it the time that a byte may take, as with Apache's
mod_reqtimeout. Turns of the upstream cost it nothing, so a slow upstream is never the caller's fault. And patience has
a bound, beyond which nothing is earned: who sent much at once cannot drip for days on the strength of it.

All of that is one deadline at a time, watched by one `Silence`: no timer for each piece.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import httpx

from relay.catalog import Upstream
from relay.upstreams import faults
from relay.upstreams.silence import Silence

GRACE_SECONDS = 20.0
"""How long a caller may keep the relay waiting, in all, before its bytes earn it more. Apache's default: a producer may
start slowly, a phone change its cell. Less would keep nobody out, for whoever sends at the lowest rate stays anyway."""


class UploadPace:
    """Of one body. `on_late` is told once, with the fault of whoever was too late."""

    __slots__ = ("_asked_at", "_idle", "_loop", "_most_patience", "_patience", "_rate", "_silence", "_slow")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, upstream: Upstream, on_late: Callable[[Exception], None]
    ) -> None:
        self._loop = loop
        self._silence = Silence(loop, on_late)
        self._idle = upstream.idle_timeout_seconds
        self._rate = upstream.min_upload_bytes_per_second
        self._slow = f"under {self._rate} bytes a second"
        self._patience = GRACE_SECONDS if self._rate else math.inf
        self._most_patience = max(self._idle, GRACE_SECONDS)
        self._asked_at: float | None = None
        """Since when the caller is waited for, while it is."""

    def await_caller(self) -> None:
        """Its next piece has to come."""
        self._asked_at = self._loop.time()
        self._watch_caller(self._patience)

    def await_upstream(self, piece_bytes: int) -> None:
        """A piece of so many bytes has come, which the upstream has to take."""
        asked_at, self._asked_at = self._asked_at, None
        if self._rate and asked_at is not None:
            waited = self._loop.time() - asked_at
            self._patience = min(self._patience - waited + piece_bytes / self._rate, self._most_patience)
        self._silence.watch(self._idle, httpx.WriteTimeout)

    def answer_moved(self) -> None:
        """While bodies go both ways, what moves in one direction breaks the other's silence too. It is no upload."""
        if self._asked_at is None:
            self._silence.extend(self._idle)
        else:
            self._watch_caller(self._patience - (self._loop.time() - self._asked_at))

    def stop(self) -> None:
        """For good."""
        self._asked_at = None
        self._silence.stop()

    def _watch_caller(self, patience: float) -> None:
        if patience < self._idle:
            self._silence.watch(patience, faults.UploadTooSlow, self._slow)
        else:
            self._silence.watch(self._idle, faults.CallerStalled)
