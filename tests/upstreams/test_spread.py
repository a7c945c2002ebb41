"""Dials begin at each of a name's addresses in turn, and spare those that did not connect."""

from __future__ import annotations

import socket
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from relay.upstreams.egress import AddrInfo
from relay.upstreams.spread import SPARED_SECONDS, Spread


def v4(number: int) -> AddrInfo:
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{number}", 80))


def v6(number: int) -> AddrInfo:
    return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (f"2001:db8::{number}", 80, 0, 0))


def firsts(spread: Spread, found: list[AddrInfo], times: int, now: float = 0.0) -> list[AddrInfo]:
    return [spread.order(found, now)[0] for _ in range(times)]


addresses = st.lists(st.builds(v4, st.integers(1, 9)) | st.builds(v6, st.integers(1, 9)), min_size=1, unique=True)


@given(addresses, st.sets(st.integers(0, 8)), st.floats(0, 1, exclude_max=True), st.integers(1, 20))
def test_nothing_is_lost_and_what_is_spared_comes_last(
    found: list[AddrInfo], failed: set[int], start: float, dials: int
) -> None:
    spread = Spread(lambda: start)
    spared = [info for number, info in enumerate(found) if number in failed]
    spread.spare(spared, 0.0)
    for _ in range(dials):
        ordered = spread.order(found, 1.0)
        assert Counter(ordered) == Counter(found)
        assert set(ordered[len(found) - len(spared) :]) == set(spared)


@given(addresses, st.floats(0, 1, exclude_max=True))
def test_families_take_turns_and_the_preferred_one_begins(found: list[AddrInfo], start: float) -> None:
    families = [info[0] for info in Spread(lambda: start).order(found, 0.0)]
    of_each = min(Counter(families).values()) if len(set(families)) == 2 else 0
    assert families[0] == found[0][0]
    assert all(families[2 * turn] != families[2 * turn + 1] for turn in range(of_each))


@given(st.integers(1, 9), st.floats(0, 1, exclude_max=True))
def test_each_has_its_turn(count: int, start: float) -> None:
    found = [v4(number) for number in range(count)]
    assert Counter(firsts(Spread(lambda: start), found, 3 * count)) == dict.fromkeys(found, 3)


def test_workers_do_not_begin_at_the_same_one() -> None:
    found = [v4(number) for number in range(4)]
    begun = {Spread(lambda draw=draw: draw / 100).order(found, 0.0)[0] for draw in range(100)}  # type: ignore[misc]
    assert begun == set(found)


def test_what_did_not_connect_comes_last_for_a_while() -> None:
    found = [v4(1), v4(2), v4(3)]
    spread = Spread(lambda: 0.0)
    spread.spare([v4(2)], 100.0)
    for _ in range(6):
        assert spread.order(found, 100.0 + SPARED_SECONDS - 0.1)[-1] == v4(2)
    assert set(firsts(spread, found, 3, 100.0 + SPARED_SECONDS)) == set(found)


def test_the_turns_of_one_that_is_spared_are_shared_among_the_others() -> None:
    spread = Spread(lambda: 0.0)
    spread.spare([v4(2)], 0.0)
    assert Counter(firsts(spread, [v4(1), v4(2), v4(3)], 6)) == {v4(1): 3, v4(3): 3}


def test_the_other_family_begins_where_all_of_the_preferred_are_spared() -> None:
    spread = Spread(lambda: 0.0)
    spread.spare([v6(1)], 0.0)
    assert spread.order([v6(1), v4(1), v4(2)], 0.0)[-1] == v6(1)


def test_where_all_failed_all_are_tried() -> None:
    found = [v4(1), v4(2)]
    spread = Spread(lambda: 0.0)
    spread.spare(found, 0.0)
    assert set(spread.order(found, 0.0)) == set(found)


def test_what_a_name_no_longer_leads_to_is_forgotten() -> None:
    spread = Spread(lambda: 0.0)
    for number in range(100):
        spread.spare([v4(number)], 0.0)
        spread.order([v4(number), v4(200)], 0.0)
    assert len(spread._spared) == 1
