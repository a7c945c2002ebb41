"""How many exchanges an upstream has at a time, in this process: slots, and who waits for one.

Theory of operation. An exchange takes a slot before anything goes out, and gives it back when it ends. Where
`max_concurrent` are taken, further ones wait in the upstream's own queue, first come first served, for at most
`queue_timeout_seconds`; where `max_queued` wait, the next is refused at once. So an upstream that hangs holds its own
callers and nobody else's, and never more of them than an admin allowed.

A slot is handed over synchronously: it is given back only to be taken by the first who waits. Whoever gives up, at any
moment, leaves the queue, and passes on what it was handed in that very moment. The bounds that count are those of the
snapshot that the waiting exchange was decided from.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterator

from relay import errors
from relay.catalog import Upstream
from relay.observing.families import Family, Sample
from relay.observing.metrics import metrics

slots: Counter[str] = Counter()
"""Exchanges in flight per slug. A slug without any has no entry."""

_Queue = OrderedDict[asyncio.Future[None], int]
"""Those who wait, in their order, each with the `max_concurrent` that counts for it."""
_queues: dict[str, _Queue] = {}
"""A slug that nobody waits for has no entry."""

IN_FLIGHT = Family("relay_exchanges_in_flight", "gauge", "Exchanges under way.", ("upstream",))
QUEUED = Family("relay_exchanges_queued", "gauge", "Exchanges that wait for their turn.", ("upstream",))


def take(upstream: Upstream) -> bool:
    """Take a slot if one is free and nobody waits for it; else say that `wait` is to be called, which takes one later.
    It is given back once, by `give_back`. Raises `UpstreamFull` when too many wait."""
    slug = upstream.slug
    if slots[slug] < upstream.max_concurrent and slug not in _queues:
        slots[slug] += 1
        return True
    if len(_queues.get(slug, ())) >= upstream.max_queued:
        raise errors.UpstreamFull(f"{upstream.max_concurrent} exchanges, {upstream.max_queued} wait")
    return False


async def wait(upstream: Upstream) -> None:
    """Wait for a slot, and take it. Raises `QueueTimedOut` after the time-out. Right after `take` said no."""
    slug = upstream.slug
    queue = _queues.setdefault(slug, OrderedDict())
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    queue[turn] = upstream.max_concurrent
    # An edit may have raised the bound since the last slot came free.
    _hand_out(slug)
    try:
        async with asyncio.timeout(upstream.queue_timeout_seconds):
            await turn
    except BaseException as problem:
        if turn in queue:
            _leave(slug, queue, turn)
            _hand_out(slug)
        elif not turn.cancelled():
            # It was handed a slot in the very moment that it gave up.
            give_back(slug)
        if isinstance(problem, TimeoutError):
            raise errors.QueueTimedOut(f"{upstream.max_concurrent} exchanges") from None
        raise


def give_back(slug: str) -> None:
    """A slot came free: the first who waits has it."""
    slots[slug] -= 1
    _hand_out(slug)
    if not slots[slug]:
        del slots[slug]


def _hand_out(slug: str) -> None:
    queue = _queues.get(slug)
    while queue:
        turn, most = next(iter(queue.items()))
        if not turn.done():
            if slots[slug] >= most:
                return
            slots[slug] += 1
            turn.set_result(None)
        _leave(slug, queue, turn)


def _leave(slug: str, queue: _Queue, turn: asyncio.Future[None]) -> None:
    del queue[turn]
    if not queue:
        del _queues[slug]


def queued() -> dict[str, int]:
    """How many wait, per slug."""
    return {slug: len(queue) for slug, queue in _queues.items()}


def read() -> Iterator[tuple[Family, Sample]]:
    """For `/metrics`."""
    for slug, count in slots.items():
        yield IN_FLIGHT, ((metrics.series_of(slug),), count)
    for slug, queue in _queues.items():
        yield QUEUED, ((metrics.series_of(slug),), len(queue))
