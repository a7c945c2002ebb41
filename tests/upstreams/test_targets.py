"""Which target gets an exchange, and what stays known of targets through failures, edits and callers that leave."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest

from relay import catalog
from relay.catalog import Target, Upstream
from relay.observing.metrics import MAX_UPSTREAMS, metrics
from relay.rules.balancing import Balancing
from relay.rules.breaker import BreakerPolicy, State
from relay.upstreams import targets
from relay.upstreams.targets import Crew, Seat, crew_of

AT_ONCE = BreakerPolicy(consecutive_failures=1, failure_rate=None, open_seconds=5.0, probes_to_close=1)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(targets, "monotonic", clock)
    monkeypatch.setattr(random, "random", random.Random(7).random)
    return clock


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(targets, "_crews", {})
    before = catalog.current()
    yield
    catalog.publish(before)


def at(host: str, **fields: Any) -> Target:
    return Target(host=host, port=80, authority=host.encode(), **fields)


def upstream(*places: Target, slug: str = "o", **fields: Any) -> Upstream:
    given: dict[str, Any] = {
        "slug": slug,
        "revision": 1,
        "scheme": "http",
        "host": "o.example",
        "port": 80,
        "authority": b"o.example",
        "base_path": b"",
        "listed_targets": places,
        "breaker": AT_ONCE,
    }
    return Upstream(**given | fields)


def publish(*upstreams: Upstream) -> None:
    catalog.publish(catalog.Snapshot(upstreams, revision=catalog.current().revision + 1))


A, B, C = at("a"), at("b"), at("c")


def taken(crew: Crew, key: bytes | None = None, tried: tuple[int, ...] = ()) -> Seat:
    seat = crew.seat(key, tried=tried)
    assert seat is not None
    return seat


def visited(crew: Crew, times: int = 40, key: bytes | None = None, tried: tuple[int, ...] = ()) -> set[str]:
    """Where that many exchanges go, each over before the next."""
    hosts = set()
    for _ in range(times):
        seat = taken(crew, key, tried)
        hosts.add(seat.target.host)
        seat.leave()
    return hosts


def break_down(crew: Crew, *hosts: str) -> None:
    """Have each of these targets fail once."""
    for index, target in enumerate(crew.upstream.targets):
        if target.host in hosts:
            others = tuple(other for other in range(len(crew.members)) if other != index)
            seat = taken(crew, tried=others)
            seat.settle(succeeded=False)
            seat.leave()


def load(crew: Crew) -> list[int]:
    return [member.outstanding for member in crew.members]


# The choice.


def test_the_less_busy_of_two_gets_the_exchange() -> None:
    crew = crew_of(upstream(A, B))
    first = taken(crew)
    seats = [taken(crew) for _ in range(9)]
    assert load(crew) == [5, 5]
    for seat in [first, *seats]:
        seat.leave()
    assert load(crew) == [0, 0]


def test_exchanges_that_last_are_shared_by_weight() -> None:
    crew = crew_of(upstream(at("a", weight=1), at("b", weight=3)))
    for _ in range(40):
        taken(crew)
    assert load(crew) == [10, 30]


def test_round_robin_takes_turns_by_weight() -> None:
    crew = crew_of(upstream(at("a", weight=2), at("b", weight=1), balancing=Balancing.ROUND_ROBIN))
    assert [taken(crew).target.host for _ in range(6)] == ["a", "b", "a", "a", "b", "a"]


def test_the_same_key_goes_to_the_same_target_while_that_is_in_use() -> None:
    crew = crew_of(upstream(A, B, C, balancing=Balancing.HEADER, balancing_header=b"x-session"))
    homes = {key: visited(crew, 3, key) for key in (b"%d" % number for number in range(60))}
    assert {len(hosts) for hosts in homes.values()} == {1}
    assert set().union(*homes.values()) == {"a", "b", "c"}
    break_down(crew, "b")
    for key, hosts in homes.items():
        now = visited(crew, 3, key)
        assert len(now) == 1
        assert now == hosts or hosts == {"b"}


def test_without_a_key_a_ring_shares_by_load() -> None:
    crew = crew_of(upstream(A, B, balancing=Balancing.HEADER, balancing_header=b"x-session"))
    for _ in range(10):
        taken(crew)
    assert load(crew) == [5, 5]


@pytest.mark.parametrize("balancing", list(Balancing))
def test_what_was_tried_is_avoided(balancing: Balancing) -> None:
    crew = crew_of(upstream(A, B, C, balancing=balancing, balancing_header=b"x"))
    assert visited(crew, key=b"k", tried=(0,)) <= {"b", "c"}
    assert visited(crew, key=b"k", tried=(0, 2)) == {"b"}
    assert crew.seat(b"k", tried=(0, 1, 2)) is None


# Breakers, checks, backups.


def test_a_target_that_fails_is_left_out_until_a_probe_of_it_succeeds(clock: Clock) -> None:
    crew = crew_of(upstream(A, B))
    break_down(crew, "a")
    assert visited(crew) == {"b"}
    clock.now += 10
    probe = taken(crew, tried=(1,))
    assert visited(crew) == {"b"}, "one probe at a time"
    probe.settle(succeeded=True)
    probe.leave()
    assert visited(crew) == {"a", "b"}


def test_a_probe_that_fails_leaves_it_out_for_twice_as_long(clock: Clock) -> None:
    crew = crew_of(upstream(A, B))
    break_down(crew, "a")
    clock.now += 6
    break_down(crew, "a")
    clock.now += 9
    assert visited(crew) == {"b"}
    clock.now += 3
    assert visited(crew) == {"a", "b"}


def test_a_probes_place_comes_free_when_its_caller_leaves(clock: Clock) -> None:
    crew = crew_of(upstream(A, B))
    break_down(crew, "a")
    clock.now += 10
    for _ in range(3):
        probe = taken(crew, tried=(1,))
        assert crew.seat(None, tried=(1,)) is None
        probe.leave()
    assert crew.members[0].breaker.state(clock.now) is State.HALF_OPEN


def test_an_exchange_that_fails_twice_has_failed_once() -> None:
    two_in_a_row = BreakerPolicy(consecutive_failures=2, failure_rate=None)
    crew = crew_of(upstream(A, B, breaker=two_in_a_row))
    seat = taken(crew, tried=(1,))
    seat.settle(succeeded=False)
    seat.settle(succeeded=False)
    assert crew.members[0].breaker.retry_at is None, "one exchange fails once"
    seat.leave()


def test_an_answer_that_breaks_off_counts_against_its_target() -> None:
    crew = crew_of(upstream(A, B))
    seat = taken(crew, tried=(1,))
    seat.settle(succeeded=True)
    assert crew.members[0].breaker.retry_at is None
    seat.settle(succeeded=False)
    seat.leave()
    assert visited(crew) == {"b"}
    assert load(crew) == [0, 0]


def test_backups_are_for_when_no_other_is_in_use(clock: Clock) -> None:
    crew = crew_of(upstream(A, B, at("spare", is_backup=True)))
    assert visited(crew) == {"a", "b"}
    break_down(crew, "a")
    assert visited(crew) == {"b"}
    break_down(crew, "b")
    assert visited(crew) == {"spare"}
    clock.now += 10
    assert visited(crew) == {"a", "b"}


def test_a_retry_goes_to_a_backup_when_the_others_were_tried() -> None:
    crew = crew_of(upstream(A, at("spare", is_backup=True)))
    assert visited(crew, tried=(0,)) == {"spare"}


def test_what_checks_call_unhealthy_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = crew_of(upstream(A, B, at("spare", is_backup=True)))
    monkeypatch.setattr(targets, "unhealthy", frozenset({("o", "a:80"), ("another", "b:80")}))
    assert visited(crew) == {"b"}
    monkeypatch.setattr(targets, "unhealthy", frozenset({("o", "a:80"), ("o", "b:80")}))
    assert visited(crew) == {"spare"}


def test_checks_that_leave_none_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = crew_of(upstream(A, B, at("spare", is_backup=True)))
    everything = frozenset((("o", "a:80"), ("o", "b:80"), ("o", "spare:80")))
    monkeypatch.setattr(targets, "unhealthy", everything)
    assert visited(crew) == {"a", "b"}
    break_down(crew, "a")
    assert visited(crew) == {"b"}, "breakers count all the same"
    break_down(crew, "b")
    assert visited(crew) == {"spare"}


def test_breakers_that_leave_none_say_when_to_come_again(clock: Clock) -> None:
    crew = crew_of(upstream(A, B))
    break_down(crew, "a")
    clock.now += 2
    break_down(crew, "b")
    assert crew.seat(None) is None
    error = crew.unavailable()
    assert (error.status, error.type) == (503, "targets-unavailable")
    first_open_at_most = 5.0 * 1.1
    assert error.retry_after_seconds is not None
    assert 3 <= error.retry_after_seconds <= first_open_at_most - 2 + 1
    clock.now += 3600
    assert crew.unavailable().retry_after_seconds == 1, "a probe is out"


def test_no_target_that_is_switched_on_says_so() -> None:
    crew = crew_of(upstream())
    assert crew.seat(None) is None
    assert "switched on" in crew.unavailable().detail


def test_the_log_tells_once_that_a_target_is_left_alone_and_once_that_it_is_back(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    crew = crew_of(upstream(A, B))
    slow = taken(crew, tried=(1,))
    with caplog.at_level(logging.INFO, "relay.upstreams.targets"):
        break_down(crew, "a")
        slow.settle(succeeded=False)
        clock.now += 10
        break_down(crew, "a")
        clock.now += 20
        probe = taken(crew, tried=(1,))
        probe.settle(succeeded=True)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("Upstream o: exchanges with its target a:80 fail; it is left alone for 5.")
    assert lines[1] == "Upstream o: its target a:80 is in use again."
    for seat in (slow, probe):
        seat.leave()
    assert load(crew) == [0, 0]


# What edits leave.


def test_what_is_known_survives_edits_of_other_upstreams_and_of_this_one() -> None:
    first = upstream(A, B)
    publish(first)
    break_down(crew_of(first), "a")
    busy = taken(crew_of(first))
    publish(first, upstream(C, at("d"), slug="other"))
    assert crew_of(first).members[0].breaker.retry_at is not None
    edited = upstream(C, at("a", weight=7), B, revision=2)
    publish(edited)
    crew = crew_of(edited)
    assert load(crew) == [0, 0, 1]
    assert visited(crew, tried=(0,)) == {"b"}
    busy.leave()
    assert load(crew) == [0, 0, 0]


def test_a_weight_that_was_edited_counts_at_once() -> None:
    publish(before := upstream(A, B))
    crew_of(before)
    publish(after := upstream(A, at("b", weight=3), revision=2))
    for _ in range(40):
        taken(crew_of(after))
    assert load(crew_of(after)) == [10, 30]


def test_a_breaker_goes_by_the_edited_policy() -> None:
    publish(before := upstream(A, B))
    crew_of(before)
    publish(after := upstream(A, B, revision=2, breaker=BreakerPolicy(consecutive_failures=2, failure_rate=None)))
    break_down(crew_of(after), "a")
    assert visited(crew_of(after)) == {"a", "b"}
    break_down(crew_of(after), "a")
    assert visited(crew_of(after)) == {"b"}


def test_an_older_snapshot_shares_what_is_known_and_takes_nothing_over() -> None:
    older, newer = upstream(A, B, C), upstream(A, B, revision=2)
    publish(older)
    leaving = taken(crew_of(older), tried=(0, 1))
    publish(newer)
    crew = crew_of(newer)
    break_down(crew_of(older), "a")
    assert visited(crew) == {"b"}
    late = taken(crew_of(older), tried=(0, 2))
    assert load(crew) == [0, 1]
    assert crew_of(newer) is crew
    leaving.leave()
    late.leave()
    assert load(crew) == [0, 0]


def test_a_restored_database_with_a_lower_revision_is_the_newer_picture() -> None:
    publish(before := upstream(A, B, revision=900))
    crew_of(before)
    publish(restored := upstream(A, B, revision=3))
    assert crew_of(restored) is crew_of(restored)


def test_a_target_that_was_taken_away_and_came_back_begins_anew() -> None:
    publish(both := upstream(A, B))
    break_down(crew_of(both), "a")
    publish(other := upstream(B, C, revision=2))
    crew_of(other)
    publish(again := upstream(A, B, revision=3))
    assert visited(crew_of(again)) == {"a", "b"}


def test_upstreams_that_are_gone_are_forgotten() -> None:
    crew_of(upstream(A, B, slug="stays"))
    crew_of(upstream(A, B, slug="gone"))
    targets.keep({"stays"}.__contains__)
    assert list(targets._crews) == ["stays"]


# What metrics see.


def told() -> dict[tuple[str, ...], float]:
    return {(family.name, *labels): value for family, (labels, value) in targets.read()}


def test_metrics_have_each_targets_load_and_its_breakers_state(clock: Clock) -> None:
    crew = crew_of(upstream(A, B))
    break_down(crew, "a")
    seat = taken(crew)
    assert told() == {
        ("relay_target_exchanges", "o", "a:80"): 0,
        ("relay_target_exchanges", "o", "b:80"): 1,
        ("relay_target_breakers", "o", "a:80", "open"): 1,
        ("relay_target_breakers", "o", "b:80", "closed"): 1,
    }
    clock.now += 10
    assert told()["relay_target_breakers", "o", "a:80", "half_open"] == 1
    seat.leave()


def test_upstreams_beyond_the_bound_have_no_series_of_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    crew_of(upstream(A, B))
    monkeypatch.setattr(metrics, "_meters", {str(number): None for number in range(MAX_UPSTREAMS)})
    assert told() == {}
