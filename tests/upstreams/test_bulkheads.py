"""The laws of slots and queues, without a wire: who has a turn, when, and that none is ever lost."""

from __future__ import annotations

import asyncio
import random

import pytest

from relay import errors
from relay.catalog import Upstream
from relay.upstreams import bulkheads


def full(**bounds: float) -> Upstream:
    fields = {"max_concurrent": 1, "max_queued": 10, "queue_timeout_seconds": 60.0, **bounds}
    return Upstream(
        slug="o", revision=1, scheme="http", host="o.example", port=80, authority=b"o.example", base_path=b"", **fields
    )  # type: ignore[arg-type]


async def hold(upstream: Upstream) -> None:
    if not bulkheads.take(upstream):
        await bulkheads.wait(upstream)


async def queued(upstream: Upstream) -> asyncio.Task[None]:
    """Somebody who waits."""
    before = bulkheads.queued().get("o", 0)
    task = asyncio.create_task(hold(upstream))
    while bulkheads.queued().get("o", 0) == before:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)
    return task


@pytest.fixture(autouse=True)
async def nothing_is_left() -> None:
    assert not bulkheads.slots
    assert not bulkheads.queued()


async def test_turns_come_in_the_order_of_arrival() -> None:
    upstream = full()
    await hold(upstream)
    first, second = await queued(upstream), await queued(upstream)
    bulkheads.give_back("o")
    await first
    assert not second.done()
    assert bulkheads.slots == {"o": 1}
    bulkheads.give_back("o")
    await second
    bulkheads.give_back("o")
    assert (bulkheads.slots, bulkheads.queued()) == ({}, {})


async def test_nobody_passes_those_who_wait() -> None:
    upstream = full()
    await hold(upstream)
    waiting = await queued(upstream)
    bulkheads.give_back("o")
    assert not bulkheads.take(upstream)
    await waiting
    bulkheads.give_back("o")


async def test_one_too_many_is_refused_at_once() -> None:
    upstream = full(max_queued=1)
    await hold(upstream)
    waiting = await queued(upstream)
    with pytest.raises(errors.UpstreamFull):
        await hold(upstream)
    bulkheads.give_back("o")
    await waiting
    bulkheads.give_back("o")


async def test_a_wait_ends_at_its_deadline() -> None:
    upstream = full(queue_timeout_seconds=0.05)
    await hold(upstream)
    with pytest.raises(errors.QueueTimedOut):
        await hold(upstream)
    assert (bulkheads.slots, bulkheads.queued()) == ({"o": 1}, {})
    bulkheads.give_back("o")


async def test_who_leaves_the_queue_leaves_it_to_the_others() -> None:
    upstream = full()
    await hold(upstream)
    first, second = await queued(upstream), await queued(upstream)
    first.cancel()
    bulkheads.give_back("o")
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    bulkheads.give_back("o")


async def test_a_turn_that_came_in_the_moment_of_leaving_is_passed_on() -> None:
    upstream = full()
    await hold(upstream)
    first, second = await queued(upstream), await queued(upstream)
    bulkheads.give_back("o")
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    bulkheads.give_back("o")


async def test_a_raised_bound_counts_for_those_who_come_after_and_a_lowered_one_too() -> None:
    await hold(full())
    waiting = await queued(full())
    raised = asyncio.create_task(hold(full(max_concurrent=3)))
    await asyncio.sleep(0)
    assert not waiting.done()
    bulkheads.give_back("o")
    await asyncio.gather(waiting, raised)
    assert bulkheads.slots == {"o": 2}
    lowered = await queued(full())
    bulkheads.give_back("o")
    assert not lowered.done()
    bulkheads.give_back("o")
    await lowered
    bulkheads.give_back("o")


@pytest.mark.parametrize("seed", range(20))
async def test_no_slot_is_ever_lost_or_made(seed: int) -> None:
    chance = random.Random(seed)
    upstream = full(max_concurrent=3, max_queued=8)
    most = 0

    async def one() -> None:
        nonlocal most
        try:
            await hold(upstream)
        except errors.UpstreamFull:
            return
        try:
            most = max(most, bulkheads.slots["o"])
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            bulkheads.give_back("o")

    tasks = []
    for _ in range(200):
        tasks.append(asyncio.create_task(one()))
        if chance.random() < 0.5:
            await asyncio.sleep(0)
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert (bulkheads.slots, bulkheads.queued()) == ({}, {})
