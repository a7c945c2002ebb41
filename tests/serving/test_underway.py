"""Who is judged again, when, and in what slices. The requests are stand-ins that note how they are cut."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pytest

from relay.catalog.roster import ApiKey, Consumer, Roster
from relay.catalog.snapshot import Snapshot
from relay.errors import RelayError
from relay.rules.grants import Grant
from relay.serving import underway
from relay.serving.underway import CUT_AT_ONCE, JUDGED_AT_ONCE, Admission, Underway


class Request:
    """What a sweep needs of a `RelayRequest`."""

    def __init__(self) -> None:
        self.admission: Admission | None = None
        self.cut_with: list[RelayError] = []

    def cut(self, error: RelayError) -> None:
        self.cut_with.append(error)


def caller(*, grants: Iterable[Grant] = (Grant(),)) -> Consumer:
    return Consumer(uuid4(), "somebody", {1: tuple(grants)}, (os.urandom(32),))


def snapshot(*consumers: Consumer, expires_at: float = math.inf) -> Snapshot:
    return Snapshot(roster=Roster((consumer, (ApiKey(consumer, "rk_p", expires_at),)) for consumer in consumers))


def entered(underway: Underway, consumer: Consumer, *, expires_at: float = math.inf) -> Any:
    request: Any = Request()
    underway.enter(request, Admission(consumer.digests[0], expires_at, 1, "GET", b"/x"))
    return request


async def test_none_is_judged_while_the_roster_is_the_same_and_nothing_expires() -> None:
    all_under_way, gone = Underway(), caller()
    empty = snapshot()
    all_under_way.judge_again(empty)
    request = entered(all_under_way, gone)
    all_under_way.judge_again(empty)
    assert request.cut_with == []
    all_under_way.judge_again(snapshot())
    assert [type(error).__name__ for error in request.cut_with] == ["KeyRevoked"]
    assert len(all_under_way) == 0


async def test_who_left_is_not_cut() -> None:
    all_under_way, gone = Underway(), caller()
    request = entered(all_under_way, gone)
    all_under_way.leave(request)
    all_under_way.judge_again(snapshot())
    assert request.cut_with == []


async def test_an_expiry_that_an_edit_brought_forward_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As rotating a key does, which leaves the old one a time of grace."""
    all_under_way, consumer = Underway(), caller()
    request = entered(all_under_way, consumer)
    rotated = snapshot(consumer, expires_at=time.time() + 60)
    all_under_way.judge_again(rotated)
    all_under_way.judge_again(rotated)
    assert request.cut_with == []
    monkeypatch.setattr(underway, "time", lambda: time.time() + 60)
    all_under_way.judge_again(rotated)
    assert [error.detail for error in request.cut_with] == ["expired key"]


async def test_an_expiry_that_an_edit_put_off_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    all_under_way, consumer = Underway(), caller()
    request = entered(all_under_way, consumer, expires_at=time.time() + 60)
    all_under_way.judge_again(snapshot(consumer))
    monkeypatch.setattr(underway, "time", lambda: time.time() + 61)
    all_under_way.judge_again(snapshot(consumer))
    assert request.cut_with == []


async def turn() -> None:
    """What was due in the event loop is done."""
    await asyncio.sleep(0)


async def test_many_are_judged_in_slices_with_the_loop_free_in_between() -> None:
    all_under_way, consumer = Underway(), caller()
    gone = caller()
    for _ in range(3 * JUDGED_AT_ONCE):
        entered(all_under_way, consumer)
    cut = [entered(all_under_way, gone) for _ in range(3 * CUT_AT_ONCE)]
    all_under_way.judge_again(snapshot(consumer))
    turns = 0
    while sum(len(request.cut_with) for request in cut) < len(cut):
        before = sum(len(request.cut_with) for request in cut)
        await turn()
        turns += 1
        assert sum(len(request.cut_with) for request in cut) - before <= CUT_AT_ONCE
        assert turns < 20
    assert len(all_under_way) == 3 * JUDGED_AT_ONCE


async def test_a_roster_that_comes_during_a_sweep_is_swept_by_as_well() -> None:
    all_under_way = Underway()
    first, second = caller(), caller()
    requests = [entered(all_under_way, consumer) for consumer in (first, second) for _ in range(JUDGED_AT_ONCE)]
    all_under_way.judge_again(snapshot(first, second))
    all_under_way.judge_again(snapshot(second))
    all_under_way.judge_again(snapshot())
    for _ in range(2 * len(requests) // CUT_AT_ONCE + 4):
        await turn()
    assert [len(request.cut_with) for request in requests] == [1] * len(requests)
    assert len(all_under_way) == 0


async def test_one_who_came_in_during_a_sweep_is_judged_by_the_next_roster() -> None:
    all_under_way, consumer, late = Underway(), caller(), caller()
    for _ in range(JUDGED_AT_ONCE + 1):
        entered(all_under_way, consumer)
    all_under_way.judge_again(snapshot(consumer, late))
    request = entered(all_under_way, late)
    all_under_way.judge_again(snapshot(consumer))
    for _ in range(8):
        await turn()
    assert len(request.cut_with) == 1
