"""Which of its targets an exchange goes to, and what this process knows of each of them.

Theory of operation. A `Crew` stands for the targets of an upstream as one snapshot has them. It chooses among those
that are in use: their breaker lets exchanges pass, and the checks (`relay.upstreams.health`) call them healthy. Backups
come only when no other is in use. Checks may be wrong about all targets alike, so when they leave none, they do not
count; breakers go by what became of exchanges, so when they leave none, callers are told when to come again. Where
there is one target, there is nothing to choose: it is never taken out of use.

What is known of a target (`Member`) goes by its address, and so outlives every edit that leaves it there. A `Seat` is
one exchange at one target: taken by `Crew.seat`, given back once, whatever becomes of the exchange.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from time import monotonic

from relay import errors
from relay.catalog import Target, Upstream
from relay.observing.families import Family, Sample
from relay.observing.metrics import metrics
from relay.rules.balancing import Balancing, RoundRobin, least_outstanding
from relay.rules.breaker import Breaker, State
from relay.rules.retries import Budget

RETRIES_PER_SECOND = 1.0
"""What an upstream with little traffic may retry all the same."""
MOST_RETRIES_SAVED = 100.0

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

    __slots__ = ("_is_probe", "_is_settled", "_member", "index", "target")

    def __init__(self, index: int, target: Target, member: Member, *, is_probe: bool) -> None:
        self.index = index
        self.target = target
        self._member = member
        self._is_probe = is_probe
        self._is_settled = False

    def settle(self, *, succeeded: bool) -> None:
        """What the target made of the exchange. A success may be followed by a failure: the head came, the end not."""
        breaker = self._member.breaker
        is_probe = self._is_probe and not self._is_settled
        self._is_settled = True
        if succeeded:
            breaker.succeeded(monotonic(), is_probe)
        else:
            breaker.failed(monotonic(), is_probe, random.random)

    def leave(self) -> None:
        """Once, at the end. What was not settled by then says nothing about the target."""
        self._member.outstanding -= 1
        if not self._is_settled:
            self._member.breaker.dropped(self._is_probe)


class Crew:
    """The targets of one picture of an upstream."""

    def __init__(self, upstream: Upstream, members: dict[str, Member], budget: Budget) -> None:
        """`members` are shared by all crews of the upstream; those that lack are added."""
        self.upstream = upstream
        self.budget = budget
        """Of retries."""
        self.members = [
            members.setdefault(target.name, Member(target.name, Breaker(upstream.breaker)))
            for target in upstream.targets
        ]
        weights = [target.weight for target in upstream.targets]
        self._weights = weights
        self._usual = tuple(index for index, target in enumerate(upstream.targets) if not target.is_backup)
        self._backups = tuple(index for index, target in enumerate(upstream.targets) if target.is_backup)
        self._turns = RoundRobin(weights) if upstream.balancing == Balancing.ROUND_ROBIN else None

    def seat(self, key: bytes | None, *, tried: Collection[int] = ()) -> Seat | None:
        """A seat at a target that is none of `tried`, or None where none is in use. `key`: what the same value of goes
        to the same target."""
        now = monotonic()
        index = self._choose(key, tried, now)
        if index is None:
            return None
        member = self.members[index]
        member.outstanding += 1
        return Seat(index, self.upstream.targets[index], member, is_probe=member.breaker.begin(now))

    def _choose(self, key: bytes | None, tried: Collection[int], now: float) -> int | None:
        members, slug = self.members, self.upstream.slug
        passing = [
            [index for index in tier if index not in tried and members[index].breaker.may_pass(now)]
            for tier in (self._usual, self._backups)
        ]
        for tier in passing:
            if unhealthy:
                tier = [index for index in tier if (slug, members[index].name) not in unhealthy]
            if tier:
                return self._pick(tier, key)
        for tier in passing:
            if tier:
                return self._pick(tier, key)
        return None

    def _pick(self, candidates: list[int], key: bytes | None) -> int:
        if len(candidates) == 1:
            return candidates[0]
        if self._turns is not None:
            return self._turns.next(candidates)
        ring = self.upstream.ring
        if ring is not None and key is not None:
            return ring.find(key, candidates)
        return least_outstanding(
            candidates, self._weights, [member.outstanding for member in self.members], random.random
        )

    def unavailable(self) -> errors.TargetsUnavailable:
        """What callers are told when no target is in use."""
        now = monotonic()
        moments = [member.breaker.retry_at for member in self.members]
        seconds = min((moment - now for moment in moments if moment is not None), default=1.0)
        detail = f"the breakers of {len(moments)} targets are open" if moments else "no target is switched on"
        return errors.TargetsUnavailable(detail, seconds=seconds)


_crews: dict[str, Crew] = {}
"""By slug. Each holds what is known of its upstream's targets, also for crews of older pictures."""


def crew_of(upstream: Upstream) -> Crew:
    """The crew for this picture of an upstream."""
    crew = _crews.get(upstream.slug)
    if crew is not None and crew.upstream is upstream:
        return crew
    return _joined(upstream, crew)


def _joined(upstream: Upstream, crew: Crew | None) -> Crew:
    if crew is None:
        budget = Budget(upstream.retry_share, RETRIES_PER_SECOND, MOST_RETRIES_SAVED)
        crew = _crews[upstream.slug] = Crew(upstream, {}, budget)
        return crew
    known = {member.name: member for member in crew.members}
    if upstream.revision < crew.upstream.revision:
        # Decided from an older snapshot: it shares what is known, and is gone with its exchange.
        return Crew(upstream, known, crew.budget)
    for member in crew.members:
        member.breaker.retune(upstream.breaker)
    crew.budget.share = upstream.retry_share
    crew = _crews[upstream.slug] = Crew(upstream, known, crew.budget)
    return crew


def keep(is_current: Callable[[str], bool]) -> None:
    """Forget the targets of upstreams that are there no more."""
    for slug in [slug for slug in _crews if not is_current(slug)]:
        del _crews[slug]


def read() -> Iterator[tuple[Family, Sample]]:
    """For `/metrics`: of upstreams with more than one target."""
    now = monotonic()
    for crew in _crews.values():
        if crew.upstream.sole_target is not None:
            continue
        slug = metrics.series_of(crew.upstream.slug)
        for member in crew.members:
            yield OUTSTANDING, ((slug, member.name), member.outstanding)
            state = member.breaker.state(now)
            for other in State:
                yield BREAKERS, ((slug, member.name, other.value), int(state is other))
