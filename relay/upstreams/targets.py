"""Which of its targets an exchange goes to, and what this process knows of each of them.

Theory of operation. A `Crew` stands for the targets of an upstream as one snapshot has them, where there are several:
one alone is not chosen, nor ever taken out of use. A crew chooses among those that are in use: their breaker lets
exchanges pass, and the checks (`relay.upstreams.health`) call them healthy. Backups come only when no other is in use.
Checks may be wrong about all targets alike, so when they leave none, they do not count; breakers go by what became of
exchanges, so when they leave none, callers are told when to come again.

What is known of a target (`Member`) goes by its address, and so outlives every edit that leaves it there as one of
several. A `Seat` is one exchange at one target: taken by `Crew.seat`, given back once, whatever becomes of the
exchange. All is synchronous: between the choice and the seat nobody else chooses.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Iterator
from time import monotonic

from relay import catalog, errors
from relay.catalog import Target, Upstream
from relay.observing.families import Family, Sample
from relay.observing.metrics import OTHERS, metrics
from relay.rules.balancing import Balancing, RoundRobin, least_outstanding
from relay.rules.breaker import Breaker

logger = logging.getLogger(__name__)

BREAKERS = Family(
    "relay_target_breakers", "gauge", "Breakers of targets, one in each worker.", ("upstream", "target", "state")
)
OUTSTANDING = Family("relay_target_exchanges", "gauge", "Exchanges under way at targets.", ("upstream", "target"))

unhealthy: frozenset[tuple[str, str]] = frozenset()
"""Slug and target's name of those that checks call unhealthy."""


class Member:
    """What is known of one target."""

    __slots__ = ("breaker", "name", "outstanding")

    def __init__(self, name: str, breaker: Breaker) -> None:
        self.name = name
        self.breaker = breaker
        self.outstanding = 0


class Seat:
    """One exchange at one target."""

    __slots__ = ("_has_failed", "_is_probe", "_member", "_slug", "index", "is_settled", "target")

    def __init__(self, index: int, target: Target, member: Member, *, slug: str, is_probe: bool) -> None:
        self.index = index
        self.target = target
        self.is_settled = False
        """Whether the target's breaker was told."""
        self._has_failed = False
        self._member = member
        self._slug = slug
        self._is_probe = is_probe

    def settle(self, *, succeeded: bool) -> None:
        """What the target made of the exchange. A success may be followed by a failure: the head came, the end not."""
        if self._has_failed:
            return
        breaker = self._member.breaker
        is_probe = self._is_probe and not self.is_settled
        was_closed = breaker.retry_at is None
        self.is_settled = True
        if succeeded:
            breaker.succeeded(monotonic(), is_probe)
        else:
            self._has_failed = True
            breaker.failed(monotonic(), is_probe, random.random)
        if was_closed is not (breaker.retry_at is None):
            self._tell()

    def _tell(self) -> None:
        retry_at = self._member.breaker.retry_at
        if retry_at is None:
            logger.info("Upstream %s: its target %s is in use again.", self._slug, self._member.name)
        else:
            logger.warning(
                "Upstream %s: exchanges with its target %s fail; it is left alone for %.1f s, longer if that does not "
                "help.",
                self._slug,
                self._member.name,
                retry_at - monotonic(),
            )

    def leave(self) -> None:
        """Once, at the end. What was not settled by then says nothing about the target."""
        self._member.outstanding -= 1
        if not self.is_settled:
            self._member.breaker.dropped(self._is_probe)


class Crew:
    """The targets of one picture of an upstream."""

    __slots__ = ("_backups", "_turns", "_usual", "_weights", "members", "upstream")

    def __init__(self, upstream: Upstream, known: dict[str, Member]) -> None:
        """`known` are the members of the crew before, by name."""
        self.upstream = upstream
        self.members = [
            known.get(target.name) or Member(target.name, Breaker(upstream.breaker)) for target in upstream.targets
        ]
        self._weights = [target.weight for target in upstream.targets]
        self._usual = [index for index, target in enumerate(upstream.targets) if not target.is_backup]
        self._backups = [index for index, target in enumerate(upstream.targets) if target.is_backup]
        self._turns = RoundRobin(self._weights) if upstream.balancing == Balancing.ROUND_ROBIN else None

    def seat(self, key: bytes | None, *, tried: Collection[int] = ()) -> Seat | None:
        """A seat at a target that is none of `tried`, or None where none is in use. `key`: what the same value of goes
        to the same target."""
        now = monotonic()
        candidates = self._candidates(tried, now)
        if not candidates:
            return None
        index = self._pick(candidates, key)
        member = self.members[index]
        member.outstanding += 1
        return Seat(
            index,
            self.upstream.targets[index],
            member,
            slug=self.upstream.slug,
            is_probe=member.breaker.begin(now),
        )

    def _candidates(self, tried: Collection[int], now: float) -> list[int]:
        usual = self._passing(self._usual, tried, now)
        if not unhealthy:
            return usual or self._passing(self._backups, tried, now)
        backups = self._passing(self._backups, tried, now)
        return self._healthy(usual) or self._healthy(backups) or usual or backups

    def _passing(self, tier: list[int], tried: Collection[int], now: float) -> list[int]:
        members = self.members
        return [index for index in tier if members[index].breaker.may_pass(now) and index not in tried]

    def _healthy(self, tier: list[int]) -> list[int]:
        slug, members = self.upstream.slug, self.members
        return [index for index in tier if (slug, members[index].name) not in unhealthy]

    def _pick(self, candidates: list[int], key: bytes | None) -> int:
        if len(candidates) == 1:
            return candidates[0]
        if self._turns is not None:
            return self._turns.next(candidates)
        ring = self.upstream.ring
        if ring is not None and key is not None:
            return ring.find(key, candidates)
        outstanding = [member.outstanding for member in self.members]
        return least_outstanding(candidates, self._weights, outstanding, random.random)

    def unavailable(self) -> errors.TargetsUnavailable:
        """What callers are told when no target is in use."""
        now = monotonic()
        moments = [member.breaker.retry_at for member in self.members]
        seconds = min((moment - now for moment in moments if moment is not None), default=1.0)
        detail = f"the breakers of {len(moments)} targets are open" if moments else "no target is switched on"
        return errors.TargetsUnavailable(detail, seconds=seconds)


_crews: dict[str, Crew] = {}
"""By slug, of the newest picture that was seen. Crews of older ones share its members."""


def crew_of(upstream: Upstream) -> Crew:
    """The crew for this picture of an upstream."""
    crew = _crews.get(upstream.slug)
    if crew is not None and crew.upstream is upstream:
        return crew
    return _formed(upstream, crew)


def _formed(upstream: Upstream, before: Crew | None) -> Crew:
    if before is None:
        crew = _crews[upstream.slug] = Crew(upstream, {})
        return crew
    crew = Crew(upstream, {member.name: member for member in before.members})
    # Of what was decided from an older snapshot nothing stays: its crew is gone with its exchange.
    if catalog.current().find(upstream.slug.encode()) is upstream:
        for member in crew.members:
            member.breaker.retune(upstream.breaker)
        _crews[upstream.slug] = crew
    return crew


def keep(is_current: Callable[[str], bool]) -> None:
    """Forget the targets of upstreams that do not have several any more."""
    for slug in [slug for slug in _crews if not is_current(slug)]:
        del _crews[slug]


def read() -> Iterator[tuple[Family, Sample]]:
    """For `/metrics`: of the upstreams that have series of their own, each target's load and its breaker's state."""
    now = monotonic()
    for crew in _crews.values():
        slug = metrics.series_of(crew.upstream.slug)
        if slug == OTHERS:
            continue
        for member in crew.members:
            yield OUTSTANDING, ((slug, member.name), member.outstanding)
            yield BREAKERS, ((slug, member.name, member.breaker.state(now).value), 1)
