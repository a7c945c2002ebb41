"""Who gets the next exchange: by load, by turns or by key, all in proportion to weights, and never who may not."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from fractions import Fraction
from hashlib import blake2b
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.balancing import MAX_POINTS, POINTS_OF_LIGHTEST, Ring, RoundRobin, least_outstanding

BELOW_ONE = 1 - 2**-53
"""The largest number that a draw can give."""


def drawing(*numbers: float) -> Callable[[], float]:
    """Gives these and no more."""
    return iter(numbers).__next__


def grid(steps: int) -> list[float]:
    """Numbers spread evenly from 0 to 1, none where two candidates meet."""
    return [(step + 0.5) / steps for step in range(steps)]


@st.composite
def groups(draw: st.DrawFn, *, most: int = 8, heaviest: int = 9) -> tuple[list[int], list[int]]:
    """Weights, and some candidates, at least one."""
    weights = draw(st.lists(st.integers(1, heaviest), min_size=1, max_size=most))
    candidates = draw(st.lists(st.sampled_from(range(len(weights))), min_size=1, unique=True))
    return candidates, weights


# Two at random, the less busy of them.


def test_of_one_candidate_nothing_is_drawn() -> None:
    assert least_outstanding([3], [1, 1, 1, 5], [0, 0, 0, 99], drawing()) == 3


@pytest.mark.parametrize(
    ("weights", "outstanding", "chosen"),
    [
        ([1, 1], [1, 0], 1),
        ([1, 1], [0, 1], 0),
        ([1, 1], [0, 0], 0),  # the first drawn
        ([1, 3], [0, 1], 1),
        ([1, 3], [0, 2], 0),  # the same for their weights
        ([1, 3], [0, 3], 0),
        ([2, 1], [1, 0], 0),
        ([2, 1], [2, 0], 1),
        ([10**6, 1], [10**6, 0], 1),
        ([10**6, 1], [10**6 - 1, 0], 0),
    ],
)
def test_the_less_busy_for_its_weight_is_taken(weights: list[int], outstanding: list[int], chosen: int) -> None:
    assert least_outstanding([0, 1], weights, outstanding, drawing(0.0, 0.5)) == chosen


def test_where_both_are_as_busy_the_first_drawn_is_taken() -> None:
    assert least_outstanding([0, 1], [1, 1], [4, 4], drawing(0.49, 0.5)) == 0
    assert least_outstanding([0, 1], [1, 1], [4, 4], drawing(0.51, 0.5)) == 1


def test_the_first_is_drawn_by_weight() -> None:
    weights, as_busy = [1, 2, 3, 6], [4, 9, 14, 29]
    drawn = Counter(least_outstanding(range(4), weights, as_busy, drawing(number, 0.5)) for number in grid(12))
    assert drawn == {0: 1, 1: 2, 2: 3, 3: 6}


@pytest.mark.parametrize("idle", [0, 1, 2])
def test_two_different_ones_are_drawn_both_by_weight(idle: int) -> None:
    """The one that is idle is chosen whenever it is one of the two."""
    weights = [1, 2, 3]
    outstanding = [0 if index == idle else 1000 for index in range(3)]
    chosen = [least_outstanding(range(3), weights, outstanding, drawing(*two)) for two in product(grid(60), repeat=2)]
    chance = Fraction(weights[idle], 6) + sum(
        Fraction(weights[first], 6) * Fraction(weights[idle], 6 - weights[first]) for first in {0, 1, 2} - {idle}
    )
    assert Fraction(chosen.count(idle), len(chosen)) == chance


@given(
    groups(),
    st.data(),
    st.floats(min_value=0, max_value=BELOW_ONE),
    st.floats(min_value=0, max_value=BELOW_ONE),
)
def test_the_chosen_is_a_candidate_and_never_busier_than_all_others(
    group: tuple[list[int], list[int]], data: st.DataObject, first: float, second: float
) -> None:
    candidates, weights = group
    outstanding = data.draw(st.lists(st.integers(0, 50), min_size=len(weights), max_size=len(weights)))
    chosen = least_outstanding(candidates, weights, outstanding, drawing(first, second))
    assert chosen in candidates
    loads = {index: Fraction(outstanding[index] + 1, weights[index]) for index in candidates}
    assert len(candidates) == 1 or any(loads[other] >= loads[chosen] for other in candidates if other != chosen)


@pytest.mark.parametrize("drawn", [0.0, BELOW_ONE, 1.0])
@pytest.mark.parametrize("count", [2, 3, 64])
def test_draws_at_the_edge_choose_a_candidate(drawn: float, count: int) -> None:
    """Also one of 1, which none should give."""
    assert least_outstanding(range(count), [1] * count, [0] * count, drawing(drawn, drawn)) in {0, count - 1}


# Turns.


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        ([1], "aaa"),
        ([1, 1], "abab"),
        ([1, 1, 1], "abcabc"),
        ([5, 1, 1], "aabacaa" * 2),  # nginx's own example
        ([3, 1], "aaba" * 2),
        ([2, 2, 1], "abcab" * 2),
        ([1, 4], "bbabb" * 2),
    ],
)
def test_turns_are_smooth(weights: list[int], turns: str) -> None:
    robin, everyone = RoundRobin(weights), range(len(weights))
    assert "".join("abc"[robin.next(everyone)] for _ in turns) == turns


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 3))
def test_in_each_round_everyone_has_its_weight_of_turns(weights: list[int], rounds: int) -> None:
    robin, everyone = RoundRobin(weights), range(len(weights))
    for _ in range(rounds):
        assert Counter(robin.next(everyone) for _ in range(sum(weights))) == Counter(dict(enumerate(weights)))


@given(st.integers(2, 20), st.integers(1, 9))
def test_where_weights_are_equal_the_same_order_comes_again_and_again(count: int, weight: int) -> None:
    robin, everyone = RoundRobin([weight] * count), range(count)
    assert [robin.next(everyone) for _ in range(3 * count)] == list(everyone) * 3


@given(groups(), st.integers(1, 40))
def test_who_is_no_candidate_might_as_well_not_be_there(group: tuple[list[int], list[int]], turns: int) -> None:
    candidates, weights = group
    some = RoundRobin(weights)
    alone = RoundRobin([weights[index] for index in candidates])
    for _ in range(turns):
        assert some.next(candidates) == candidates[alone.next(range(len(candidates)))]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_whoever_was_away_and_when_turns_are_fair_from_now_on(weights: list[int], data: st.DataObject) -> None:
    """No flood for who comes back, no drought: a few turns more or less at most (the carpool problem's bound)."""
    robin, everyone = RoundRobin(weights), range(len(weights))
    present = st.sets(st.sampled_from(everyone), min_size=1).map(sorted)
    for candidates in data.draw(st.lists(present, max_size=40)):
        assert robin.next(candidates) in candidates
    turns = Counter(robin.next(everyone) for _ in range(4 * sum(weights)))
    for index, weight in enumerate(weights):
        assert abs(turns[index] - 4 * weight) <= len(weights)


# The ring.

KEYS = [b"key-%d" % number for number in range(3000)]
UNIQUE_NAMES = st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=8, unique=True)


def named(count: int) -> list[bytes]:
    return [b"https://10.0.0.%d:8443" % number for number in range(count)]


def found(
    names: Sequence[bytes], weights: Sequence[int], candidates: Collection[int], keys: Iterable[bytes]
) -> list[bytes]:
    ring = Ring(names, weights)
    return [names[ring.find(key, candidates)] for key in keys]


def test_same_key_same_target_in_every_process_and_release() -> None:
    """Where this fails, every cache behind a relay is cold after the next update."""
    ring = Ring([b"a", b"b", b"c"], [1, 2, 3])
    keys = [b"", b"/", b"192.0.2.1", b"2001:db8::1", b"session=1", b"session=2", b"session=3", b"\xff" * 500]
    assert [ring.find(key, range(3)) for key in keys] == [0, 2, 0, 2, 1, 0, 2, 2]


@given(UNIQUE_NAMES, st.data())
def test_the_first_candidate_clockwise_is_found(names: list[bytes], data: st.DataObject) -> None:
    """As the definition has it, point by point."""
    everyone = range(len(names))
    weights = data.draw(st.lists(st.integers(1, 4), min_size=len(names), max_size=len(names)))
    candidates = data.draw(st.sets(st.sampled_from(everyone), min_size=1))
    circle: list[tuple[int, int]] = []
    for index in candidates:
        for number in range(weights[index] * POINTS_OF_LIGHTEST // min(weights)):
            digest = blake2b((number // 8).to_bytes(4, "big") + names[index]).digest()
            circle.append((int.from_bytes(digest[number % 8 * 8 :][:8], "big"), index))
    circle.sort()
    ring = Ring(names, weights)
    for key in KEYS[:100]:
        point = int.from_bytes(blake2b(key, digest_size=8).digest(), "big")
        assert ring.find(key, candidates) == circle[bisect_left(circle, (point, -1)) % len(circle)][1]


@given(UNIQUE_NAMES, st.data())
def test_the_order_of_names_does_not_matter(names: list[bytes], data: st.DataObject) -> None:
    weights = {name: data.draw(st.integers(1, 5)) for name in names}
    shuffled = data.draw(st.permutations(names))
    everyone = range(len(names))
    one = found(names, [weights[name] for name in names], everyone, KEYS[:200])
    assert one == found(shuffled, [weights[name] for name in shuffled], everyone, KEYS[:200])


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 1], [3, 1, 2, 1], [1] * 20])
def test_without_a_target_only_its_keys_move(weights: list[int]) -> None:
    names, everyone = named(len(weights)), range(len(weights))
    before = found(names, weights, everyone, KEYS)
    for gone in everyone:
        rest = [index for index in everyone if index != gone]
        after = found(names, weights, rest, KEYS)
        assert names[gone] not in after
        assert all(new == old for old, new in zip(before, after, strict=True) if old != names[gone])


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 1], [3, 1, 2, 1], [1] * 64])
def test_a_target_that_is_removed_for_good_is_as_one_that_is_no_candidate(weights: list[int]) -> None:
    names = named(len(weights))
    assert found(names[1:], weights[1:], range(len(names) - 1), KEYS) == found(
        names, weights, range(1, len(names)), KEYS
    )


def test_the_keys_of_one_that_is_gone_are_shared_by_the_others() -> None:
    names = named(5)
    before = found(names, [1] * 5, range(5), KEYS)
    after = found(names, [1] * 5, range(1, 5), KEYS)
    heirs = Counter(new for old, new in zip(before, after, strict=True) if old == names[0])
    assert set(heirs) == set(names[1:])
    assert max(heirs.values()) < heirs.total() / 2


@pytest.mark.parametrize("weights", [[1, 1], [1] * 5, [1] * 10, [1, 2, 3], [5, 1, 1], [1, 1, 20], [7] * 4])
def test_keys_are_spread_by_weight_to_within_a_third(weights: list[int]) -> None:
    keys = [b"key-%d" % number for number in range(20_000)]
    shares = Counter(found(named(len(weights)), weights, range(len(weights)), keys))
    for name, weight in zip(named(len(weights)), weights, strict=True):
        assert shares[name] / len(keys) == pytest.approx(weight / sum(weights), rel=1 / 3)


@pytest.mark.parametrize("weights", [[1] * 64, [1, 1000], [1, 10**9], [1] * 63 + [10**6], [1000, 1], [1] * 200])
def test_a_ring_is_bounded_and_everyone_is_on_it(weights: list[int]) -> None:
    ring, everyone = Ring(named(len(weights)), weights), range(len(weights))
    assert len(ring._points) <= MAX_POINTS + len(weights)
    assert len(ring._owners) == 2 * len(ring._points)
    assert set(ring._owners) == set(everyone)
    for index in everyone:
        assert ring.find(b"key", {index}) == index


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 2, 3], [1] * 64])
def test_only_the_proportion_of_weights_counts(weights: list[int]) -> None:
    everyone = range(len(weights))
    hundredfold = [weight * 100 for weight in weights]
    assert Ring(named(len(weights)), weights)._points == Ring(named(len(weights)), hundredfold)._points
    assert found(named(len(weights)), weights, everyone, KEYS) == found(
        named(len(weights)), hundredfold, everyone, KEYS
    )


def test_who_weighs_next_to_nothing_has_one_point() -> None:
    ring = Ring(named(2), [1, 10**9])
    assert list(ring._owners).count(0) == 2  # twice around


def test_weights_too_far_apart_for_the_points_are_still_far_apart() -> None:
    assert found(named(2), [1, 1000], range(2), KEYS).count(named(2)[0]) < len(KEYS) / 200


def test_names_and_weights_go_together() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Ring(named(3), [1, 1])
