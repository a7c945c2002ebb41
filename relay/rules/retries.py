"""Whether a request may be sent to an upstream once more, how many retries there may be, and how long each waits.

Three questions, each with its own answer. `may_repeat` is about one request: sent twice, would it do what it does once?
`Budget` is about all of them: retries are a share of the traffic, so an upstream that fails under load does not get
twice the load for it. `pause_seconds` spreads those that failed together, so they do not come back together.
"""

from __future__ import annotations

from collections.abc import Callable

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""RFC 9110 section 9.2.2: sent twice, they do what they do once. TRACE is one, too, and never relayed."""

PAUSE_CEILINGS = (0.025, 0.05, 0.1, 0.2, 0.25)
"""Seconds that the first retry waits at most, the second, and so on; the last is for all that follow."""

_WHOLE_TOKEN = 1 - 1e-9
"""What ten deposits of 0.1 come to is a little less than 1."""


def may_repeat(
    *,
    method: str,
    has_body: bool,
    is_replayable: bool,
    body_begun: bool,
    request_sent: bool,
    response_begun: bool,
) -> bool:
    """Whether a request that failed may be sent again, to the same target or another.

    A request that never left may, whatever its method, as long as its body can be given whole: nobody has asked it for
    a piece yet (`body_begun`), or it can be read from its start again (`is_replayable`). Once a byte may have reached
    the upstream (`request_sent`), only an idempotent one may, with no body or a replayable one, and only while no byte
    of an answer has come (`response_begun`).
    """
    if not request_sent:
        return not has_body or is_replayable or not body_begun
    return method in IDEMPOTENT_METHODS and not response_begun and (is_replayable or not has_body)


class Budget:
    """Retries of one upstream: a token bucket that its own traffic fills, in the way of Finagle and Envoy.

    A first attempt puts in `share` of a retry, and `at_least_per_second` comes in as time passes, for upstreams with
    little traffic. `most` is what it holds, and what it begins with. `now` is in seconds, of a clock that never goes
    back.
    """

    __slots__ = ("_at_least_per_second", "_deposits", "_most", "_then", "_tokens", "share")

    def __init__(self, share: float, at_least_per_second: float, most: float) -> None:
        self.share = share
        self._at_least_per_second = at_least_per_second
        self._most = most
        self._tokens = most
        self._deposits = 0
        """Since `_then`. Tokens that only grow may be bounded once, at the end."""
        self._then = 0.0
        """When `_tokens` was right. A full bucket is right at any time."""

    def deposit(self) -> None:
        """Count a first attempt."""
        self._deposits += 1

    def withdraw(self, now: float) -> bool:
        """Whether one more retry may be made; if so, it is paid for."""
        self._settle(now)
        may_retry = self._tokens >= _WHOLE_TOKEN
        if may_retry:
            self._tokens -= 1
        return may_retry

    def is_full(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        self._settle(now)
        return self._tokens == self._most

    def _settle(self, now: float) -> None:
        gained = self._deposits * self.share + (now - self._then) * self._at_least_per_second
        self._tokens = min(self._most, self._tokens + gained)
        self._deposits = 0
        self._then = now


def pause_seconds(retries_done: int, draw: Callable[[], float]) -> float:
    """How long to wait before the next retry: anything up to a ceiling that doubles ("full jitter").

    `draw` gives a number from 0 to 1, 1 excluded.
    """
    return draw() * PAUSE_CEILINGS[min(retries_done, len(PAUSE_CEILINGS) - 1)]
