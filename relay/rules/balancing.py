"""Which of an upstream's targets gets the next exchange, in three ways an admin can choose from.

`least_outstanding` takes the less busy of two targets drawn at random: as good as looking at all of them, and workers
that know nothing of each other do not all run to the same one. `RoundRobin` takes turns. `Ring` sends what has the same
key to the same target, and hardly anything elsewhere when targets come and go.

Targets are indices. `candidates` are those that may be chosen this time (at least one), as health and earlier attempts
have it; weights are whole numbers from 1.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from hashlib import blake2b
from struct import Struct

POINTS_OF_LIGHTEST = 160
"""On a ring, of the target with the least weight; others have more by their weight."""
MAX_POINTS = 10_240
"""On a ring in all, but that each target has one at least: enough for 64 of the same weight. Where weights would make
it more, all get less in proportion."""


class Balancing(StrEnum):
    """As admins choose it."""

    LEAST = "least"
    ROUND_ROBIN = "round-robin"
    HEADER = "header"
    """A ring, by the value of a request header."""
    CONSUMER = "consumer"
    """A ring, by who calls."""


_NOBODY = -1
_EIGHT_POINTS = Struct(">8Q")


def least_outstanding(
    candidates: Sequence[int], weights: Sequence[int], outstanding: Sequence[int], draw: Callable[[], float]
) -> int:
    """Of two candidates, drawn with chances by weight, the one that would be less busy for its weight with one exchange
    more; the first drawn where both would be the same.

    `outstanding` counts the exchanges that each target has now. `draw` gives a number from 0 to 1, 1 excluded.
    """
    if len(candidates) == 1:
        return candidates[0]
    total = 0
    for index in candidates:
        total += weights[index]
    first = _drawn(int(draw() * total), candidates, weights, _NOBODY)
    second = _drawn(int(draw() * (total - weights[first])), candidates, weights, first)
    if (outstanding[second] + 1) * weights[first] < (outstanding[first] + 1) * weights[second]:
        return second
    return first


def _drawn(point: int, candidates: Sequence[int], weights: Sequence[int], without: int) -> int:
    """Whose `point` is, on a line on which each candidate but `without` is as long as its weight."""
    for index in candidates:
        if index != without:
            point -= weights[index]
            if point < 0:
                break
    return index


class RoundRobin:
    """Smooth weighted round robin, as nginx has it: each target its weight's share of the turns, spread evenly.

    Each candidate gains its weight with every turn, the one that has most gets the turn and pays what all gained. Who
    is no candidate neither gains nor pays, so nobody comes back to a flood of turns that it missed.
    """

    __slots__ = ("_credits", "_weights")

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = tuple(weights)
        self._credits = [0] * len(self._weights)

    def next(self, candidates: Sequence[int]) -> int:
        """Whose turn it is; the first of those that have equally much."""
        weights, credits = self._weights, self._credits
        gained = 0
        for index in candidates:
            weight = weights[index]
            credits[index] += weight
            gained += weight
        chosen = max(candidates, key=credits.__getitem__)
        credits[chosen] -= gained
        return chosen


class Ring:
    """A consistent hash: each target has points on a circle, and a key is for the next point clockwise from its own.

    Points are digests of the target's name, so all processes and machines agree, whatever order the names are in. Who
    has `POINTS_OF_LIGHTEST` points or more has its weight's share of the keys to within an eighth, nine times in ten,
    and is hardly ever off by more than a third. Where it is no candidate, its keys go to whoever comes next on the
    circle, and all others stay.
    """

    __slots__ = ("_owners", "_points")

    def __init__(self, names: Sequence[bytes], weights: Sequence[int]) -> None:
        """Names differ from each other."""
        placed: list[tuple[int, bytes, int]] = []
        for index, (name, count) in enumerate(zip(names, _point_counts(weights), strict=True)):
            placed += ((point, name, index) for point in _points(name, count))
        placed.sort()
        points, owners = array("Q"), array("I")
        for point, _, owner in placed:
            if owners and owners[-1] == owner:
                points[-1] = point  # the last of its owner's in a row stands for them all
            else:
                points.append(point)
                owners.append(owner)
        self._points = points
        self._owners = owners * 2
        """Twice around, so that looking on from any point never has to begin again."""

    def find(self, key: bytes, candidates: Collection[int]) -> int:
        """The first candidate clockwise from the key."""
        owners = self._owners
        position = bisect_left(self._points, int.from_bytes(blake2b(key, digest_size=8).digest(), "big"))
        while (owner := owners[position]) not in candidates:
            position += 1
        return owner


def _point_counts(weights: Sequence[int]) -> list[int]:
    total, lightest = sum(weights), min(weights)
    if total * POINTS_OF_LIGHTEST <= MAX_POINTS * lightest:
        return [weight * POINTS_OF_LIGHTEST // lightest for weight in weights]
    return [max(1, weight * MAX_POINTS // total) for weight in weights]


def _points(name: bytes, count: int) -> list[int]:
    """The first `count` of a name's endless row of points: fewer are the same without the last."""
    points: list[int] = []
    for number in range(-(-count // 8)):
        points += _EIGHT_POINTS.unpack(blake2b(number.to_bytes(4, "big") + name).digest())
    return points[:count]
