"""The circuit breaker of one target: it stops sending where exchanges fail, and finds out by itself when they succeed.

Theory of operation. A breaker is closed while `retry_at` is None, open until that time, and half open from then on: it
becomes half open by time alone, so no timer has to fire, and no sequence of events leaves it open for good. While
closed it counts two things: failures in a row, which find a dead target within a few exchanges, and the share of
failures in a window, which finds one that fails now and then. While half open a few exchanges at a time go through as
probes: enough successes in a row close it, one failure opens it again for twice as long. A probe's verdict counts
whenever it comes while half open. All other exchanges began before it opened, or were sent because there was nowhere
else to go: while it is not closed their verdicts say nothing.

`begin` is told when an exchange is sent, and later, once, one of `succeeded`, `failed` and `dropped`. A probe holds its
place until then, so the verdict is to come with the answer's head, not at the end of a stream that may last for hours.
Where the rest of an answer fails after its head succeeded, that is one `failed` more, and no probe's.

The next opening after a closing lasts as long as the last one did, unless it was closed for `longest_open_seconds` in
between: who comes and goes is not let off with the first open time again and again. `now` is in seconds of a clock that
never goes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

BUCKETS = 10
"""That a window is counted in; what is older than the window leaves with a tenth of it at a time."""
JITTER = 0.1
"""The share of the open time that is added at most, so that workers do not all probe at once."""


class State(StrEnum):
    """As logs and metrics call it, too."""

    CLOSED = "closed"
    """Exchanges pass."""
    OPEN = "open"
    """None passes."""
    HALF_OPEN = "half_open"
    """A few pass, as probes."""


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When to open and how to close again. Raises ValueError for one by which a breaker could never close."""

    consecutive_failures: int = 5
    """In a row, that open it; 0: however many."""
    failure_rate: float | None = 0.5
    """The share of the window's exchanges that opens it, looked at with each failure; None: whatever share."""
    window_seconds: float = 10.0
    minimum_exchanges: int = 20
    """In the window, before their share counts."""
    open_seconds: float = 5.0
    """The first time; twice as long with each probe that fails."""
    longest_open_seconds: float = 60.0
    """Before the jitter."""
    probes: int = 1
    """At a time."""
    probes_to_close: int = 2
    """Successes in a row."""

    def __post_init__(self) -> None:
        if self.probes < 1 or self.probes_to_close < 1:
            raise ValueError("a breaker that is half open needs a probe to close")
        if self.window_seconds <= 0:
            raise ValueError("a window of no time holds no exchanges")


class Breaker:
    __slots__ = (
        "_closed_at",
        "_failures_in_row",
        "_open_seconds",
        "_policy",
        "_probes_in_flight",
        "_successes_in_row",
        "_window",
        "retry_at",
    )

    def __init__(self, policy: BreakerPolicy) -> None:
        self.retry_at: float | None = None
        """When probes may be sent, or could be since; None while closed. To be read only."""
        self._policy = policy
        self._window = _Window(policy.window_seconds)
        self._failures_in_row = 0
        self._open_seconds = 0.0
        """How long it was open last."""
        self._closed_at = 0.0
        self._probes_in_flight = 0
        """Also those of an earlier time half open."""
        self._successes_in_row = 0
        """Of probes, since it opened."""

    def retune(self, policy: BreakerPolicy) -> None:
        """Go on by another policy. What is open stays open as long as it was to; a window of another length begins
        empty."""
        if policy.window_seconds != self._policy.window_seconds:
            self._window = _Window(policy.window_seconds)
        self._policy = policy

    # Asked.

    def state(self, now: float) -> State:
        if self.retry_at is None:
            return State.CLOSED
        return State.OPEN if now < self.retry_at else State.HALF_OPEN

    def may_pass(self, now: float) -> bool:
        """Whether to send an exchange here: closed, or half open with a place for a probe."""
        return self.retry_at is None or (now >= self.retry_at and self._probes_in_flight < self._policy.probes)

    # Told.

    def begin(self, now: float) -> bool:
        """An exchange is sent. True when it is a probe, to be told again with its verdict."""
        if self.retry_at is None or not self.may_pass(now):
            return False
        self._probes_in_flight += 1
        return True

    def succeeded(self, now: float, is_probe: bool) -> None:
        if is_probe:
            self._probes_in_flight -= 1
        if self.retry_at is None:
            self._failures_in_row = 0
            self._window.count(now, failures=0)
        elif is_probe and now >= self.retry_at:
            self._successes_in_row += 1
            if self._successes_in_row >= self._policy.probes_to_close:
                self._close(now)

    def failed(self, now: float, is_probe: bool, draw: Callable[[], float]) -> None:
        """`draw` gives a number from 0 to 1, 1 excluded."""
        if is_probe:
            self._probes_in_flight -= 1
        if self.retry_at is None:
            self._failures_in_row += 1
            self._window.count(now, failures=1)
            if self._has_had_enough():
                is_steady = now - self._closed_at >= self._policy.longest_open_seconds
                self._open(now, 0.0 if is_steady else self._open_seconds, draw)
        elif is_probe and now >= self.retry_at:
            self._open(now, self._open_seconds * 2, draw)

    def dropped(self, is_probe: bool) -> None:
        """The exchange ended without a verdict, because its caller left, say."""
        if is_probe:
            self._probes_in_flight -= 1

    def _has_had_enough(self) -> bool:
        policy, window = self._policy, self._window
        if 0 < policy.consecutive_failures <= self._failures_in_row:
            return True
        if policy.failure_rate is None or window.exchanges < policy.minimum_exchanges:
            return False
        return window.failures / window.exchanges >= policy.failure_rate

    def _open(self, now: float, seconds: float, draw: Callable[[], float]) -> None:
        policy = self._policy
        self._open_seconds = min(max(seconds, policy.open_seconds), policy.longest_open_seconds)
        self.retry_at = now + self._open_seconds * (1 + JITTER * draw())
        self._successes_in_row = 0

    def _close(self, now: float) -> None:
        self.retry_at = None
        self._closed_at = now
        self._failures_in_row = 0
        self._window = _Window(self._policy.window_seconds)


class _Window:
    """Exchanges and failures of the last seconds: sums, and what will leave them, in a ring of buckets."""

    __slots__ = ("_bucket_seconds", "_exchanges", "_failures", "_number", "exchanges", "failures")

    def __init__(self, seconds: float) -> None:
        self.exchanges = 0
        self.failures = 0
        self._bucket_seconds = seconds / BUCKETS
        self._exchanges = [0] * BUCKETS
        self._failures = [0] * BUCKETS
        self._number = 0
        """Of the bucket that is counted in, by the clock."""

    def count(self, now: float, *, failures: int) -> None:
        """One exchange more."""
        number = int(now / self._bucket_seconds)
        if number > self._number:
            self._move_to(number)
        place = self._number % BUCKETS
        self._exchanges[place] += 1
        self._failures[place] += failures
        self.exchanges += 1
        self.failures += failures

    def _move_to(self, number: int) -> None:
        """Empty the buckets between, each once however long ago the last exchange was."""
        for passed in range(max(self._number, number - BUCKETS) + 1, number + 1):
            place = passed % BUCKETS
            self.exchanges -= self._exchanges[place]
            self.failures -= self._failures[place]
            self._exchanges[place] = self._failures[place] = 0
        self._number = number
