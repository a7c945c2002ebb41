"""An upstream with several targets: each gets its share, and what one fails at costs callers as little as can be.

Origins are numbered, and answer with their number.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest
import pytest_asyncio
import trustme

from relay import catalog
from relay.catalog import Target, Upstream
from relay.rules import retries
from relay.rules.balancing import Balancing
from relay.rules.breaker import BreakerPolicy, State
from relay.upstreams import budgets, targets, wire
from relay.upstreams import client as client_room
from relay.upstreams.targets import crew_of
from tests.behaviour.conftest import Issued, Logged, Names, Relayed, until
from tests.caller import Answer, Caller, Ended, request_bytes
from tests.origin import (
    Exchange,
    Gate,
    HeaderPairs,
    Origin,
    Script,
    early,
    echo,
    hang,
    head_bytes,
    raw,
    refusing_port,
    reply,
    serving_context,
    silent_port,
    truncate,
    upload_sink,
)
from tests.serving_ground import Ground

AT_ONCE = BreakerPolicy(consecutive_failures=1, failure_rate=None, open_seconds=5.0, probes_to_close=1)
NEVER = BreakerPolicy(consecutive_failures=0, failure_rate=None)
UntilAtRest = Callable[[], Awaitable[None]]
SOON = 0.05
"""Seconds, of a time-out that is to pass."""


class Clock:
    """The breakers' time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(targets, "monotonic", clock)
    return clock


@pytest.fixture(autouse=True)
def without_a_metrics_folder(settings: Any) -> None:
    """What other tests counted is not told."""
    settings.RELAY_METRICS_FOLDER = None


@pytest_asyncio.fixture
async def origins() -> AsyncIterator[list[Origin]]:
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(Origin()) for _ in range(3)]
        for number, origin in enumerate(made):
            origin.otherwise(reply(body=b"%d" % number))
        yield made


def at(place: Origin | int | str, /, **fields: Any) -> Target:
    """A target at an origin, at a port of this machine, or at a host and port."""
    if isinstance(place, Origin):
        place = place.port
    host, _, port = place.rpartition(":") if isinstance(place, str) else ("127.0.0.1", "", str(place))
    return Target(host=host, port=int(port), authority=f"{host}:{port}".encode(), **fields)


def at_each(origins: list[Origin]) -> tuple[Target, ...]:
    return tuple(at(origin) for origin in origins)


def problem(answer: Answer) -> tuple[int, str]:
    return answer.status, json.loads(answer.data)["type"].removeprefix("urn:relay:error:")


async def shares(
    caller: Caller,
    times: int,
    headers: HeaderPairs = (),
    *,
    path: bytes = b"/relay/o/x",
    method: bytes = b"GET",
    body: bytes | None = None,
) -> Counter[bytes]:
    """What that many requests, one after the other, were answered with."""
    seen: Counter[bytes] = Counter()
    for _ in range(times):
        answer = await caller.get(path, headers, method=method, body=body)
        assert answer.status == 200, answer.data
        seen[answer.data] += 1
    return seen


def asked(*origins: Origin) -> int:
    return sum(len(origin.requests) for origin in origins)


def state_of(upstream: Upstream, index: int) -> State:
    return crew_of(upstream).members[index].breaker.state(targets.monotonic())


# Balancing.


async def test_the_less_busy_target_is_asked_by_weight(origins: list[Origin], relayed: Relayed, ground: Ground) -> None:
    for origin in origins:
        origin.otherwise(hang())
    upstream = relayed(listed_targets=(at(origins[0]), at(origins[1], weight=3)))
    async with AsyncExitStack() as stack:
        for number in range(1, 13):
            caller = await stack.enter_async_context(Caller(ground.port))
            await caller.send(request_bytes(b"/relay/o/x", host=b"localhost"))
            await until(lambda: asked(*origins) == number)  # noqa: B023 - it is over before the next
        assert [member.outstanding for member in crew_of(upstream).members] == [3, 9]
    assert [len(origin.requests) for origin in origins] == [3, 9, 0]


async def test_round_robin_takes_turns_by_weight(origins: list[Origin], relayed: Relayed, caller: Caller) -> None:
    first, second, third = origins
    relayed(balancing=Balancing.ROUND_ROBIN, listed_targets=(at(first, weight=2), at(second), at(third)))
    assert await shares(caller, 4) == {b"0": 2, b"1": 1, b"2": 1}
    assert await shares(caller, 8) == {b"0": 4, b"1": 2, b"2": 2}


async def test_the_same_header_goes_to_the_same_target(origins: list[Origin], relayed: Relayed, caller: Caller) -> None:
    relayed(balancing=Balancing.HEADER, balancing_header=b"x-session", listed_targets=at_each(origins))
    homes = Counter[bytes]()
    for number in range(30):
        [(home, times)] = (await shares(caller, 2, [(b"X-Session", b"s%d" % number)])).items()
        assert times == 2
        homes[home] += 1
    assert set(homes) == {b"0", b"1", b"2"}
    assert set(await shares(caller, 30)) == {b"0", b"1", b"2"}, "who has no such header"


async def test_a_consumer_goes_to_the_same_target(
    origins: list[Origin], relayed: Relayed, issued: Issued, caller: Caller
) -> None:
    upstream = relayed(id=1, open_to_anyone=False, balancing=Balancing.CONSUMER, listed_targets=at_each(origins))
    homes = set()
    for number in range(12):
        key, _ = issued(upstream, f"shop-{number}")
        [home] = await shares(caller, 3, [(b"Relay-Key", key)])
        homes.add(home)
    assert len(homes) > 1


async def test_a_backup_is_asked_only_while_no_other_can_be(
    origins: list[Origin], relayed: Relayed, caller: Caller, clock: Clock
) -> None:
    first, second, spare = origins
    upstream = relayed(breaker=AT_ONCE, listed_targets=(at(first), at(second), at(spare, is_backup=True)))
    assert set(await shares(caller, 20)) == {b"0", b"1"}
    for origin in (first, second):
        origin.otherwise(reply(503))
    while State.CLOSED in (state_of(upstream, 0), state_of(upstream, 1)):
        assert (await caller.get(b"/relay/o/x")).status == 503
    assert set(await shares(caller, 10)) == {b"2"}
    first.otherwise(reply(body=b"0"))
    second.otherwise(reply(body=b"1"))
    clock.now += 10
    assert set(await shares(caller, 20)) == {b"0", b"1"}


# Dead targets.

Dead = Callable[[], Any]


@contextmanager
def refusing() -> Iterator[Target]:
    with refusing_port() as port:
        yield at(port)


@contextmanager
def stalling() -> Iterator[Target]:
    with silent_port() as port:
        yield at(port)


@contextmanager
def unresolved() -> Iterator[Target]:
    yield at("nowhere.example:80")


@contextmanager
def forbidden() -> Iterator[Target]:
    yield at("10.0.0.1:80")


@pytest.mark.parametrize("dead", [refusing, stalling, unresolved, forbidden])
@pytest.mark.parametrize(("method", "body"), [(b"GET", None), (b"POST", b"a body"), (b"POST", None), (b"BREW", b"x")])
async def test_a_target_that_cannot_be_reached_costs_callers_nothing(
    origins: list[Origin],
    relayed: Relayed,
    caller: Caller,
    names: Names,
    dead: Dead,
    method: bytes,
    body: bytes | None,
) -> None:
    with dead() as target:
        upstream = relayed(
            listed_targets=(target, at(origins[0])),
            balancing=Balancing.ROUND_ROBIN,
            connect_timeout_seconds=0.2,
            breaker=BreakerPolicy(consecutive_failures=3, failure_rate=None),
        )
        assert await shares(caller, 20, method=method, body=body) == {b"0": 20}
    assert state_of(upstream, 0) is State.OPEN
    assert {request.body for request in origins[0].requests} == {body or b""}
    assert asked(origins[0]) == 20


async def test_a_target_whose_tls_fails_costs_callers_nothing(
    relayed: Relayed, caller: Caller, authority: trustme.CA, names: Names
) -> None:
    names.answers["o.example"] = [["127.0.0.1"]]
    async with (
        Origin(tls=serving_context(trustme.CA(), "o.example")) as stranger,
        Origin(tls=serving_context(authority, "other.example")) as misnamed,
        Origin(tls=serving_context(authority, "o.example")) as good,
    ):
        good.otherwise(reply(body=b"good"))
        relayed(
            scheme="https",
            host="o.example",
            authority=b"o.example",
            ca_bundle=authority.cert_pem.bytes().decode(),
            listed_targets=tuple(at(origin) for origin in (stranger, misnamed, good)),
            balancing=Balancing.ROUND_ROBIN,
            max_retries=2,
        )
        for method, body in ((b"GET", None), (b"POST", b"a body")):
            assert await shares(caller, 8, method=method, body=body) == {b"good": 8}
        assert {request.server_name for request in good.requests} == {"o.example"}


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"])
async def test_what_does_once_what_it_does_twice_goes_to_another_target(
    origins: list[Origin], relayed: Relayed, caller: Caller, method: bytes, then: Any
) -> None:
    dying, good, _ = origins
    dying.otherwise(raw(b"", then=then))
    relayed(listed_targets=(at(dying), at(good)), balancing=Balancing.ROUND_ROBIN)
    for _ in range(4):
        assert (await caller.get(b"/relay/o/x", method=method)).status == 200
    assert (asked(dying), asked(good)) == (2, 4)


@pytest.mark.parametrize(
    ("method", "body"), [(b"POST", b"hello"), (b"POST", None), (b"PATCH", b"x"), (b"PUT", b"hello"), (b"GET", b"x")]
)
async def test_what_left_and_may_count_twice_is_not_sent_again(
    origins: list[Origin], relayed: Relayed, caller: Caller, method: bytes, body: bytes | None
) -> None:
    for origin in origins:
        origin.otherwise(raw(b""))
    relayed(listed_targets=at_each(origins), max_retries=5)
    for number in range(1, 5):
        assert problem(await caller.get(b"/relay/o/x", method=method, body=body)) == (502, "upstream-hung-up")
        assert asked(*origins) == number


async def test_an_upload_that_was_begun_is_not_sent_again(
    origins: list[Origin], relayed: Relayed, caller: Caller
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.read_some()
        exchange.abort()

    for origin in origins:
        origin.otherwise(script)
    relayed(listed_targets=at_each(origins), max_retries=5)
    answer = await caller.get(b"/relay/o/x", method=b"PUT", body=[b"a" * 1000] * 500)
    assert problem(answer) == (502, "upstream-hung-up")
    assert asked(*origins) == 1


async def test_a_body_that_nobody_asked_for_yet_is_whole_at_the_next_target(
    origins: list[Origin], relayed: Relayed, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Expect: 100-continue`: the caller is told to go on by the target that wants it, and only once."""
    monkeypatch.setattr(wire, "CONTINUE_SECONDS", 60)

    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await upload_sink()(exchange)

    origins[0].otherwise(script)
    with refusing_port() as port:
        relayed(listed_targets=(at(port), at(origins[0])), balancing=Balancing.ROUND_ROBIN)
        head = request_bytes(
            b"/relay/o/x",
            [(b"Expect", b"100-continue"), (b"Content-Length", b"5")],
            method=b"POST",
            host=b"localhost",
        )
        for _ in range(2):
            await caller.send(head)
            assert (await caller.read_head()).status == 100
            await caller.send(b"hello")
            assert (await caller.read_head()).status == 200
            assert (await caller.read_body()).data == b"5"


async def test_an_answer_that_was_begun_is_not_asked_for_again(
    origins: list[Origin], relayed: Relayed, caller: Caller
) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    for number, data in enumerate((hints, b"HTTP/1.1 200 O"), start=1):
        for origin in origins:
            origin.otherwise(raw(data))
        relayed(listed_targets=at_each(origins), max_retries=5)
        assert problem(await caller.get(b"/relay/o/x")) == (502, "upstream-hung-up")
        assert asked(*origins) == number


async def test_a_target_that_is_slow_is_not_doubled(origins: list[Origin], relayed: Relayed, caller: Caller) -> None:
    for origin in origins:
        origin.otherwise(hang())
    relayed(listed_targets=at_each(origins), max_retries=5, head_timeout_seconds=SOON)
    assert problem(await caller.get(b"/relay/o/x")) == (504, "head-timeout")
    assert asked(*origins) == 1


async def test_a_pooled_connection_that_died_is_no_failure_of_its_target(
    origins: list[Origin], relayed: Relayed, caller: Caller
) -> None:
    seen: set[int] = set()

    async def dying(exchange: Exchange) -> None:
        if exchange.head.connection in seen:
            await exchange.close()
            return
        seen.add(exchange.head.connection)
        await reply(body=b"0")(exchange)

    origins[0].otherwise(dying)
    upstream = relayed(
        listed_targets=at_each(origins[:2]), balancing=Balancing.ROUND_ROBIN, breaker=AT_ONCE, max_retries=0
    )
    assert await shares(caller, 12) == {b"0": 6, b"1": 6}
    assert state_of(upstream, 0) is State.CLOSED


# Breakers.


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_an_answer_that_says_unavailable_passes_and_opens_the_breaker(
    origins: list[Origin], relayed: Relayed, caller: Caller, status: int
) -> None:
    origins[0].otherwise(reply(status, [(b"Retry-After", b"7")], b"of the target"))
    upstream = relayed(
        listed_targets=at_each(origins[:2]),
        balancing=Balancing.ROUND_ROBIN,
        breaker=BreakerPolicy(consecutive_failures=2, failure_rate=None),
    )
    answers = [await caller.get(b"/relay/o/x") for _ in range(10)]
    passed = [answer for answer in answers if answer.status == status]
    assert [(answer.data, answer.values(b"retry-after")) for answer in passed] == [(b"of the target", [b"7"])] * 2
    assert state_of(upstream, 0) is State.OPEN
    assert asked(origins[0]) == 2


@pytest.mark.parametrize("status", [400, 404, 429, 500, 501])
async def test_other_errors_are_no_failures(
    origins: list[Origin], relayed: Relayed, caller: Caller, status: int
) -> None:
    origins[0].otherwise(reply(status))
    upstream = relayed(listed_targets=at_each(origins[:2]), balancing=Balancing.ROUND_ROBIN, breaker=AT_ONCE)
    assert Counter([(await caller.get(b"/relay/o/x")).status for _ in range(6)]) == {status: 3, 200: 3}
    assert state_of(upstream, 0) is State.CLOSED


async def test_a_breaker_opens_half_opens_and_closes_again(
    origins: list[Origin], relayed: Relayed, caller: Caller, clock: Clock
) -> None:
    dying, good, _ = origins
    dying.otherwise(raw(b""))
    upstream = relayed(listed_targets=(at(dying), at(good)), balancing=Balancing.ROUND_ROBIN, breaker=AT_ONCE)
    assert await shares(caller, 10) == {b"1": 10}
    assert asked(dying) == 1
    clock.now += 6
    assert await shares(caller, 10) == {b"1": 10}, "the probe that fails costs its caller nothing"
    assert asked(dying) == 2
    dying.otherwise(reply(body=b"0"))
    clock.now += 6
    assert await shares(caller, 10) == {b"1": 10}, "it is open for twice as long"
    clock.now += 6
    assert await shares(caller, 10) == {b"0": 5, b"1": 5}
    assert state_of(upstream, 0) is State.CLOSED


async def test_a_probe_whose_caller_leaves_says_nothing_and_lets_the_next_one_through(
    origins: list[Origin], relayed: Relayed, ground: Ground, caller: Caller, clock: Clock, until_at_rest: UntilAtRest
) -> None:
    first, second, _ = origins
    first.otherwise(reply(503))
    upstream = relayed(listed_targets=(at(first), at(second)), balancing=Balancing.ROUND_ROBIN, breaker=AT_ONCE)
    while state_of(upstream, 0) is State.CLOSED:
        await caller.get(b"/relay/o/x")
    first.otherwise(hang())
    clock.now += 10
    async with AsyncExitStack() as stack:
        for _ in range(2):
            # Whoever has the first one's turn waits for its answer.
            other = await stack.enter_async_context(Caller(ground.port))
            await other.send(request_bytes(b"/relay/o/x", host=b"localhost"))
        await until(lambda: crew_of(upstream).members[0].outstanding)
        assert await shares(caller, 6) == {b"1": 6}, "one probe at a time"
    await until_at_rest()
    first.otherwise(reply(body=b"0"))
    assert set(await shares(caller, 6)) == {b"0", b"1"}


async def test_an_answer_that_breaks_off_counts_against_its_target(
    origins: list[Origin], relayed: Relayed, caller: Caller, ground: Ground
) -> None:
    origins[0].otherwise(truncate(100_000, 50_000))
    upstream = relayed(listed_targets=at_each(origins[:2]), balancing=Balancing.ROUND_ROBIN, breaker=AT_ONCE)
    for _ in range(2):
        async with Caller(ground.port) as victim:
            answer = await victim.get(b"/relay/o/x")
            assert answer.data == b"1" or not answer.body.ended.cleanly
    assert state_of(upstream, 0) is State.OPEN
    assert await shares(caller, 6) == {b"1": 6}


async def test_callers_that_leave_blame_nobody(
    origins: list[Origin], relayed: Relayed, ground: Ground, until_at_rest: UntilAtRest
) -> None:
    for origin in origins:
        origin.otherwise(hang())
    upstream = relayed(listed_targets=at_each(origins), breaker=AT_ONCE)
    for number in range(1, 7):
        async with Caller(ground.port) as leaver:
            await leaver.send(request_bytes(b"/relay/o/x", host=b"localhost"))
            await until(lambda: asked(*origins) == number)  # noqa: B023 - it is over before the next
        await until_at_rest()
    assert {state_of(upstream, index) for index in range(3)} == {State.CLOSED}


async def test_a_target_that_lets_the_whole_time_pass_has_failed(
    origins: list[Origin], relayed: Relayed, caller: Caller
) -> None:
    origins[0].otherwise(hang())
    upstream = relayed(
        listed_targets=at_each(origins[:2]),
        balancing=Balancing.ROUND_ROBIN,
        breaker=AT_ONCE,
        total_timeout_seconds=0.5,
    )
    while state_of(upstream, 0) is State.CLOSED:
        answer = await caller.get(b"/relay/o/x", method=b"POST", body=b"whole")
        assert answer.status == 200 or problem(answer) == (504, "total-timeout")
    assert asked(origins[0]) == 1
    assert await shares(caller, 6) == {b"1": 6}


async def test_a_caller_who_lets_the_whole_time_pass_blames_nobody(
    origins: list[Origin], relayed: Relayed, caller: Caller
) -> None:
    upstream = relayed(listed_targets=at_each(origins[:2]), breaker=AT_ONCE, total_timeout_seconds=SOON)
    head = request_bytes(b"/relay/o/x", [(b"Content-Length", b"5")], method=b"POST", host=b"localhost")
    await caller.send(head + b"he")
    assert (await caller.read_head()).status == 504
    assert {state_of(upstream, index) for index in range(2)} == {State.CLOSED}


@pytest.mark.parametrize("listed", [True, False])
async def test_the_sole_target_is_never_taken_out_of_use(
    origins: list[Origin], relayed: Relayed, caller: Caller, listed: bool
) -> None:
    origins[0].otherwise(reply(503))
    place: dict[str, Any] = {"port": origins[0].port}
    relayed(breaker=AT_ONCE, **(place | ({"listed_targets": (at(origins[0]),)} if listed else {})))
    for _ in range(20):
        assert (await caller.get(b"/relay/o/x")).status == 503
    origins[0].otherwise(raw(b""))
    for _ in range(10):
        assert problem(await caller.get(b"/relay/o/x", method=b"POST")) == (502, "upstream-hung-up")
    assert asked(origins[0]) == 30
    origins[0].otherwise(reply(body=b"well again"))
    assert await shares(caller, 2) == {b"well again": 2}


async def test_when_all_are_out_of_use_callers_are_told_when_to_come_again(
    origins: list[Origin], relayed: Relayed, caller: Caller, clock: Clock
) -> None:
    for origin in origins[:2]:
        origin.otherwise(raw(b""))
    relayed(listed_targets=at_each(origins[:2]), breaker=AT_ONCE)
    assert problem(await caller.get(b"/relay/o/x")) == (502, "upstream-hung-up")
    assert asked(*origins) == 2, "each was tried"
    answer = await caller.get(b"/relay/o/x")
    assert problem(answer) == (503, "targets-unavailable")
    assert answer.values(b"retry-after") in ([b"5"], [b"6"])
    assert b"error=destination_unavailable" in answer.values(b"proxy-status")[0]
    assert asked(*origins) == 2
    for origin in origins[:2]:
        origin.otherwise(reply(body=b"well again"))
    clock.now += 10
    assert await shares(caller, 4) == {b"well again": 4}


async def test_without_a_target_that_is_switched_on_nothing_goes_out(
    origins: list[Origin], relayed: Relayed, caller: Caller, logged: Logged
) -> None:
    relayed(port=origins[0].port, listed_targets=())
    assert problem(await caller.get(b"/relay/o/x", method=b"POST", body=b"x")) == (503, "targets-unavailable")
    assert asked(*origins) == 0
    line = await logged.next()
    assert line["detail"] == "no target is switched on"
    assert "target" not in line


# Retries.


@pytest.mark.parametrize("most", [0, 1, 2])
async def test_retries_end_with_the_bound_of_their_upstream(
    origins: list[Origin], relayed: Relayed, caller: Caller, logged: Logged, most: int
) -> None:
    for origin in origins:
        origin.otherwise(raw(b""))
    relayed(listed_targets=at_each(origins), max_retries=most)
    assert problem(await caller.get(b"/relay/o/x")) == (502, "upstream-hung-up")
    assert sorted(len(origin.requests) for origin in origins) == [0] * (2 - most) + [1] * (most + 1)
    assert (await logged.next())["attempts"] == most + 1


async def test_when_each_target_was_tried_what_may_be_over_soon_is_tried_again(
    origins: list[Origin], relayed: Relayed, caller: Caller
) -> None:
    for origin in origins[:2]:
        origin.otherwise(raw(b""))
    relayed(listed_targets=at_each(origins[:2]), max_retries=3, breaker=NEVER)
    assert problem(await caller.get(b"/relay/o/x")) == (502, "upstream-hung-up")
    assert asked(*origins) == 4


async def test_what_will_not_be_over_soon_ends_when_each_target_was_tried(
    relayed: Relayed, caller: Caller, logged: Logged, names: Names
) -> None:
    relayed(listed_targets=(at("a.example:80"), at("b.example:80")), max_retries=5)
    assert problem(await caller.get(b"/relay/o/x")) == (502, "dns")
    assert (await logged.next())["attempts"] == 2
    assert sorted(names.asked) == ["a.example", "b.example"]


def made(outcome: str) -> float:
    return sum(value for _, (labels, value) in budgets.read() if labels == ("o", outcome))


async def test_retries_are_a_share_of_the_traffic(
    origins: list[Origin], relayed: Relayed, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "MOST_RETRIES_SAVED", 2.0)
    monkeypatch.setattr(budgets, "RETRIES_PER_SECOND", 0.0)
    origins[0].otherwise(raw(b""))
    relayed(port=origins[0].port, retry_share=0.5)
    sent, refused = made("sent"), made("over-budget")
    attempts = []
    for _ in range(7):
        before = asked(origins[0])
        assert problem(await caller.get(b"/relay/o/x")) == (502, "upstream-hung-up")
        attempts.append(asked(origins[0]) - before)
    assert attempts == [2, 2, 2, 1, 2, 1, 2]
    assert (made("sent") - sent, made("over-budget") - refused) == (5, 2)


async def test_without_a_share_there_is_no_retry(origins: list[Origin], relayed: Relayed, caller: Caller) -> None:
    origins[0].otherwise(raw(b""))
    relayed(port=origins[0].port, retry_share=0.0)
    assert problem(await caller.get(b"/relay/o/x")) == (502, "upstream-hung-up")
    assert asked(origins[0]) == 1


async def test_upstreams_that_do_well_keep_no_budget(origins: list[Origin], relayed: Relayed, caller: Caller) -> None:
    relayed(port=origins[0].port)
    await shares(caller, 3)
    assert budgets._budgets == {}
    origins[0].otherwise(raw(b""))
    await caller.get(b"/relay/o/x")
    budgets.keep()
    assert set(budgets._budgets) == {"o"}
    origins[0].otherwise(reply())
    for _ in range(5):
        await caller.get(b"/relay/o/x")
    budgets.keep()
    assert budgets._budgets == {}


async def test_a_retry_ends_with_the_total_time(
    origins: list[Origin],
    relayed: Relayed,
    caller: Caller,
    monkeypatch: pytest.MonkeyPatch,
    until_at_rest: UntilAtRest,
) -> None:
    monkeypatch.setattr(retries, "pause_seconds", lambda *_: 3600.0)
    origins[0].otherwise(raw(b""))
    relayed(listed_targets=at_each(origins[:2]), balancing=Balancing.ROUND_ROBIN, total_timeout_seconds=0.2)
    assert problem(await caller.get(b"/relay/o/x")) == (504, "total-timeout")
    await until_at_rest()
    assert asked(*origins) == 1


async def test_a_second_attempt_ends_with_the_total_time(
    origins: list[Origin],
    relayed: Relayed,
    caller: Caller,
    monkeypatch: pytest.MonkeyPatch,
    until_at_rest: UntilAtRest,
) -> None:
    monkeypatch.setattr(retries, "pause_seconds", lambda *_: 0.0)
    origins[0].otherwise(raw(b""))
    origins[1].otherwise(hang())
    relayed(listed_targets=at_each(origins[:2]), balancing=Balancing.ROUND_ROBIN, total_timeout_seconds=0.5)
    assert problem(await caller.get(b"/relay/o/x")) == (504, "total-timeout")
    await until_at_rest()
    assert asked(*origins) == 2


leaving = pytest.mark.parametrize("leave", [Caller.close, Caller.abort], ids=["close", "reset"])


@leaving
async def test_who_leaves_before_the_retry_leaves_nothing(
    origins: list[Origin],
    relayed: Relayed,
    caller: Caller,
    logged: Logged,
    monkeypatch: pytest.MonkeyPatch,
    until_at_rest: UntilAtRest,
    leave: Callable[[Caller], None],
) -> None:
    monkeypatch.setattr(retries, "pause_seconds", lambda *_: 3600.0)
    origins[0].otherwise(raw(b""))
    upstream = relayed(listed_targets=at_each(origins[:2]), balancing=Balancing.ROUND_ROBIN)
    await caller.send(request_bytes(b"/relay/o/x", host=b"localhost"))
    await until(lambda: crew_of(upstream).members[1].outstanding)
    leave(caller)
    await until_at_rest()
    line = await logged.next()
    assert (line["outcome"], line["attempts"]) == ("caller-gone", 1)
    assert asked(*origins) == 1


@leaving
async def test_who_leaves_in_the_second_attempt_leaves_nothing(
    origins: list[Origin],
    relayed: Relayed,
    caller: Caller,
    logged: Logged,
    until_at_rest: UntilAtRest,
    leave: Callable[[Caller], None],
) -> None:
    origins[0].otherwise(raw(b""))
    origins[1].otherwise(hang())
    upstream = relayed(listed_targets=at_each(origins[:2]), balancing=Balancing.ROUND_ROBIN, breaker=AT_ONCE)
    await caller.send(request_bytes(b"/relay/o/x", host=b"localhost"))
    exchange = await origins[1].next_exchange()
    leave(caller)
    await until_at_rest()
    async with asyncio.timeout(1):
        await exchange.closed.wait()
    line = await logged.next()
    assert (line["outcome"], line["attempts"], line["target"]) == ("caller-gone", 2, at(origins[1]).name)
    assert [state_of(upstream, index) for index in range(2)] == [State.OPEN, State.CLOSED]


async def test_a_relay_that_stops_tries_nothing_again(
    origins: list[Origin], relayed: Relayed, caller: Caller, until_at_rest: UntilAtRest
) -> None:
    for origin in origins:
        origin.otherwise(hang())
    upstream = relayed(listed_targets=at_each(origins), max_retries=5, breaker=AT_ONCE)
    await caller.send(request_bytes(b"/relay/o/x", host=b"localhost"))
    await until(lambda: asked(*origins) == 1)
    crew = crew_of(upstream)
    client = client_room.client
    assert client is not None
    await client.aclose()
    assert (await caller.read_head()).status == 502
    await until_at_rest()
    assert asked(*origins) == 1
    assert client.transport.open_pools == 0  # type: ignore[attr-defined]  # the relay's own transport
    assert {member.breaker.retry_at for member in crew.members} == {None}


# What is told.


async def test_the_log_has_the_last_target_and_the_attempts(
    origins: list[Origin], relayed: Relayed, caller: Caller, logged: Logged
) -> None:
    relayed(listed_targets=at_each(origins[:2]), balancing=Balancing.ROUND_ROBIN)
    await shares(caller, 2)
    for number in range(2):
        line = await logged.next()
        assert (line["target"], line["attempts"]) == (at(origins[number]).name, 1)
    origins[0].otherwise(raw(b""))
    await shares(caller, 1)
    line = await logged.next()
    assert (line["target"], line["attempts"]) == (at(origins[1]).name, 2)
    relayed(port=origins[2].port)
    await shares(caller, 1)
    line = await logged.next()
    assert (line["target"], line["attempts"]) == (at(origins[2]).name, 1)


async def test_metrics_have_targets_and_retries(origins: list[Origin], relayed: Relayed, caller: Caller) -> None:
    origins[0].otherwise(raw(b""))
    relayed(listed_targets=at_each(origins[:2]), balancing=Balancing.ROUND_ROBIN, breaker=AT_ONCE)
    sent = made("sent")
    await shares(caller, 4)
    text = (await caller.get(b"/metrics")).data.decode()
    dead, good = (at(origin).name for origin in origins[:2])
    assert f'relay_target_breakers{{upstream="o",target="{dead}",state="open"}} 1' in text
    assert f'relay_target_breakers{{upstream="o",target="{good}",state="closed"}} 1' in text
    assert f'relay_target_exchanges{{upstream="o",target="{good}"}} 0' in text
    assert f'relay_retries_total{{upstream="o",outcome="sent"}} {sent + 1}' in text


# Host, places, buffers.


@pytest.mark.parametrize(
    ("fields", "host"),
    [
        ({}, b"o.example"),
        ({"target_host": True}, b"target"),
        ({"caller_host": True}, b"localhost"),
    ],
    ids=["upstream", "target", "caller"],
)
async def test_each_target_is_asked_for_the_host_the_admin_chose(
    origins: list[Origin], relayed: Relayed, caller: Caller, fields: dict[str, Any], host: bytes
) -> None:
    for origin in origins[:2]:
        origin.otherwise(echo())
    relayed(
        host="o.example",
        authority=b"o.example",
        listed_targets=at_each(origins[:2]),
        balancing=Balancing.ROUND_ROBIN,
        **fields,
    )
    for _ in range(2):
        assert (await caller.get(b"/relay/o/x", [(b"Host", b"localhost")])).status == 200
    for origin in origins[:2]:
        [request] = origin.requests
        assert request.values(b"host") == [origin.authority.encode() if host == b"target" else host]
        assert request.headers[0][0].lower() == b"host"


async def test_a_retry_asks_the_next_target_for_its_own_host(
    origins: list[Origin], relayed: Relayed, caller: Caller
) -> None:
    origins[0].otherwise(raw(b""))
    relayed(target_host=True, listed_targets=at_each(origins[:2]), balancing=Balancing.ROUND_ROBIN)
    await shares(caller, 1)
    for origin in origins[:2]:
        assert origin.requests[0].values(b"host") == [origin.authority.encode()]


@pytest.mark.parametrize("target_host", [True, False])
async def test_tls_asks_for_the_name_that_host_has(
    relayed: Relayed, caller: Caller, authority: trustme.CA, names: Names, target_host: bool
) -> None:
    hosts = ["a.example", "b.example"]
    for name in hosts:
        names.answers[name] = [["127.0.0.1"]]

    def context(name: str) -> ssl.SSLContext:
        return serving_context(authority, name if target_host else "o.example")

    async with Origin(tls=context(hosts[0])) as first, Origin(tls=context(hosts[1])) as second:
        for origin in (first, second):
            origin.otherwise(reply(body=b"fine"))
        relayed(
            scheme="https",
            host="o.example",
            authority=b"o.example",
            target_host=target_host,
            ca_bundle=authority.cert_pem.bytes().decode(),
            listed_targets=tuple(at(f"{name}:{o.port}") for name, o in zip(hosts, (first, second), strict=True)),
            balancing=Balancing.ROUND_ROBIN,
        )
        assert await shares(caller, 4) == {b"fine": 4}
        seen = [{request.server_name for request in origin.requests} for origin in (first, second)]
        assert seen == ([{"a.example"}, {"b.example"}] if target_host else [{"o.example"}] * 2)


@pytest.mark.parametrize("target_host", [True, False])
async def test_places_of_whoever_was_asked_for_lead_to_the_relay(
    origins: list[Origin], relayed: Relayed, caller: Caller, target_host: bool
) -> None:
    def own(origin: Origin) -> bytes:
        return b"http://" + (origin.authority.encode() if target_host else b"o.example")

    for origin in origins[:2]:
        domain = b"127.0.0.1" if target_host else b"o.example"
        fields = [
            (b"Location", own(origin) + b"/v1/next"),
            (b"Set-Cookie", b"a=1; Path=/v1; Domain=" + domain),
        ]
        origin.otherwise(reply(302, fields))
    relayed(
        host="o.example",
        port=80,
        authority=b"o.example",
        base_path=b"/v1",
        target_host=target_host,
        listed_targets=at_each(origins[:2]),
        balancing=Balancing.ROUND_ROBIN,
    )
    for _ in range(2):
        answer = await caller.get(b"/relay/o/x")
        assert answer.values(b"location") == [b"/relay/o/next"]
        [cookie] = answer.values(b"set-cookie")
        assert cookie.startswith(b"relay.o.a=1; ")
        assert b"Path=/relay/o" in cookie
        assert b"omain" not in cookie
    assert [len(origin.requests) for origin in origins] == [1, 1, 0]


async def test_buffered_delivery_counts_what_breaks_off(
    origins: list[Origin], relayed: Relayed, caller: Caller
) -> None:
    origins[0].otherwise(truncate(1000, 10))
    upstream = relayed(
        listed_targets=at_each(origins[:2]),
        balancing=Balancing.ROUND_ROBIN,
        breaker=AT_ONCE,
        max_buffered_bytes=10_000,
    )
    assert [(await caller.get(b"/relay/o/x")).status for _ in range(2)] == [502, 200]
    assert state_of(upstream, 0) is State.OPEN
    assert await shares(caller, 4) == {b"1": 4}


# Edits.


async def test_edits_take_effect_and_running_exchanges_finish(
    origins: list[Origin], relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    """Added, switched off, taken away, and all but one: each while an exchange runs at the target."""
    finish = Gate()

    async def slowly(exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, [(b"Content-Length", b"4")]) + b"ab")
        await finish.wait()
        await exchange.send(b"cd")

    for origin in origins:
        origin.on(b"/slow", slowly)
    first, second, third = map(at, origins)
    relayed(listed_targets=(first, second))
    async with Caller(ground.port) as one, Caller(ground.port) as two:
        for running in (one, two):
            await running.send(request_bytes(b"/relay/o/slow", host=b"localhost"))
            assert (await running.read_head()).status == 200
        assert [len(origin.requests) for origin in origins] == [1, 1, 0]
        upstream = relayed(listed_targets=(first, second, third))
        assert [member.outstanding for member in crew_of(upstream).members] == [1, 1, 0]
        assert b"2" in await shares(caller, 20)
        relayed(listed_targets=(second, third))
        assert set(await shares(caller, 10)) == {b"2"}, "the one that has nothing to do"
        relayed(listed_targets=(third,))
        client_room.retire_pools(catalog.current())
        assert await shares(caller, 3) == {b"2": 3}
        finish.open(2)
        for running in (one, two):
            body = await running.read_body()
            assert (body.data, body.ended) == (b"abcd", Ended.COUNTED)
    for origin in origins[:2]:
        await origin.until_connections(0)


async def test_what_is_known_of_targets_survives_edits(origins: list[Origin], relayed: Relayed, caller: Caller) -> None:
    origins[0].otherwise(raw(b""))
    fields: dict[str, Any] = {"balancing": Balancing.ROUND_ROBIN, "breaker": AT_ONCE}
    relayed(listed_targets=at_each(origins[:2]), **fields)
    await shares(caller, 4)
    assert asked(origins[0]) == 1
    relayed("another", port=origins[2].port)
    client_room.retire_pools(catalog.current())
    await shares(caller, 4)
    relayed(listed_targets=at_each(origins), **fields)
    client_room.retire_pools(catalog.current())
    assert await shares(caller, 4) == {b"1": 2, b"2": 2}
    assert asked(origins[0]) == 1


async def test_targets_that_are_gone_are_forgotten(origins: list[Origin], relayed: Relayed, caller: Caller) -> None:
    relayed(listed_targets=at_each(origins))
    await shares(caller, 1)
    assert set(targets._crews) == {"o"}
    relayed(port=origins[0].port)
    client_room.retire_pools(catalog.current())
    assert targets._crews == {}


# All of it at once.


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_targets_and_callers_do_nothing_that_counts_arrives_twice_and_nothing_is_kept(
    origins: list[Origin], relayed: Relayed, ground: Ground, clock: Clock, seed: int
) -> None:
    chance = random.Random(seed)
    asked_for = 0
    scripts: list[Script] = [
        reply(body=b"fine"),
        reply(503),
        raw(b""),
        raw(b"", then="reset"),
        raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
        truncate(1000, 10),
        early(413, then="close"),
        hang(),
    ]

    async def misbehave(exchange: Exchange) -> None:
        await chance.choice(scripts)(exchange)

    async def call() -> None:
        for _ in range(8):
            await ask()

    async def ask() -> None:
        nonlocal asked_for
        asked_for += 1
        method = chance.choice([b"GET", b"PUT", b"POST", b"POST"])
        body = chance.choice([None, b"a body", [b"a" * 1000] * 3]) if method != b"GET" else None
        kind = b"once" if method == b"POST" or body is not None else b"often"
        patience = chance.choice([0.01, 0.05, 5.0])
        path = b"/relay/o/x?%d-%b" % (asked_for, kind)
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            async with asyncio.timeout(patience), Caller(ground.port) as caller:
                await caller.get(path, method=method, body=body)
        clock.now += chance.choice([0, 0, 3])

    for origin in origins:
        origin.otherwise(misbehave)
    with refusing_port() as port:
        upstream = relayed(
            listed_targets=(at(port), at(origins[0], weight=2), at(origins[1]), at(origins[2], is_backup=True)),
            max_retries=3,
            max_concurrent=10,
            head_timeout_seconds=0.1,
            breaker=BreakerPolicy(consecutive_failures=3, minimum_exchanges=5, open_seconds=1.0),
        )
        await asyncio.gather(*(call() for _ in range(20)))
        # With breakers half open again and a full budget, one that may arrive often does.
        clock.now += 1000
        budgets.forget()
        for origin in origins:
            origin.otherwise(raw(b"", then="reset"))
        async with Caller(ground.port) as caller:
            await caller.get(b"/relay/o/x?last-often")
    arrived = Counter(request.target for origin in origins for request in origin.requests)
    assert {times for target, times in arrived.items() if target.endswith(b"once")} == {1}
    assert max(times for target, times in arrived.items() if target.endswith(b"often")) > 1
    await until(lambda: not any(member.outstanding for member in crew_of(upstream).members))
