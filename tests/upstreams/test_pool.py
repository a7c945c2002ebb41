"""The pool over real sockets: who gets which connection, who waits, what leaves, and what may be sent again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from relay import catalog
from relay.upstreams import pool as pool_room
from relay.upstreams.connection import Connection
from relay.upstreams.transport import PooledTransport
from tests.behaviour.conftest import until
from tests.origin import Exchange, Gate, Origin, Script, drip, hang, raw, reply
from tests.upstreams.conftest import Seam, chunked_body, counted_body, emptied, whole

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
MANY = 1000


async def opened(seam: Seam, origin: Origin, number: int, *, between: Callable[[], None] = lambda: None) -> None:
    """`number` further connections, given back in the order in which they were made."""
    gates = {origin.connections_made + 1 + count: Gate() for count in range(number)}

    async def answer(exchange: Exchange) -> None:
        await gates[exchange.head.connection].wait()
        await exchange.send(OK)

    origin.on(b"/opened", answer)
    requests = len(origin.requests)
    idle = seam.pool.idle_connections
    asking = [asyncio.create_task(seam.get(b"/opened")) for _ in range(number)]
    await until(lambda: len(origin.requests) == requests + number, within=20)
    for count, gate in enumerate(gates.values(), start=idle + 1):
        gate.open()
        await until(partial(idle_are, seam, count))
        between()
    await asyncio.gather(*asking)


def idle_are(seam: Seam, count: int) -> bool:
    return seam.pool.idle_connections == count


async def connection_of(seam: Seam, origin: Origin, **given: Any) -> int:
    """Which connection an exchange goes through."""
    await seam.get(b"/x", **given)
    return origin.requests[-1].connection


def the_connection(seam: Seam) -> Connection:
    (connection,) = seam.pool._connections
    return connection


# Taking and giving back.


async def test_the_most_recently_used_connection_is_taken_first(origin: Origin, seam: Seam) -> None:
    origin.on(b"/x", reply())
    gate = Gate()
    origin.on(b"/long", drip([], gate))
    await opened(seam, origin, 3)
    assert [await connection_of(seam, origin) for _ in range(3)] == [3, 3, 3]
    on_three = await seam.ask(b"/long")
    assert [await connection_of(seam, origin) for _ in range(2)] == [2, 2]
    gate.open()
    await whole(on_three)
    assert await connection_of(seam, origin) == 3


async def test_taking_and_giving_back_cost_the_same_however_many_there_are(
    origin: Origin, seam: Seam, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In Python, so that comparing them within C is counted too.
    monkeypatch.setattr(Connection, "__eq__", lambda self, other: self is other)
    monkeypatch.setattr(Connection, "__hash__", lambda self: id(self) // 64)
    seam.rules(max_connections=MANY, connect_timeout_seconds=30)
    await opened(seam, origin, 10)
    of_ten = steps_of_an_exchange(seam)
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.send(OK)

    origin.on(b"/many", answer)
    asking = [asyncio.create_task(seam.get(b"/many")) for _ in range(MANY)]
    await until(lambda: len(origin.requests) == 10 + MANY, within=30)
    gate.open(MANY)
    await asyncio.gather(*asking)
    assert seam.pool.idle_connections == MANY
    assert steps_of_an_exchange(seam) == of_ten


def steps_of_an_exchange(seam: Seam) -> int:
    """Lines and calls, those into C too, of taking a connection and giving it back."""
    steps = 0

    def count(*_: object) -> Any:
        nonlocal steps
        steps += 1
        return count

    # A dictionary's own comparisons depend on where its keys fall; the last of ten runs has no rehashing in it.
    counts = []
    for _ in range(10):
        steps = 0
        traced = sys.gettrace()
        sys.settrace(count)
        sys.setprofile(count)
        try:
            connection = seam.pool._take()
            assert connection is not None
            seam.pool._free(connection)
        finally:
            sys.setprofile(None)
            sys.settrace(traced)
        counts.append(steps)
    return min(counts)


# Growing old.


class Clock:
    """Stands still in the place of the pool's loop, and holds the timers that were set by it."""

    def __init__(self, pool: pool_room.Pool) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time()
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self.create_future = self._loop.create_future
        pool._loop = self  # type: ignore[assignment]

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self._timers.append((when, callback))
        return asyncio.TimerHandle(when, callback, (), self._loop)

    @property
    def due(self) -> list[float]:
        return [when for when, _ in self._timers]

    def ring(self) -> None:
        """Time goes on to the one timer there is."""
        ((self.now, callback),) = self._timers
        self._timers.clear()
        callback()


async def test_one_timer_closes_the_oldest_and_is_set_anew_for_the_next(origin: Origin, seam: Seam) -> None:
    seam.rules(keepalive_seconds=10)
    origin.on(b"/closing", raw(CLOSING, then="keep"))
    origin.on(b"/x", reply())
    await seam.get(b"/closing")
    await origin.until_connections(0)
    clock = Clock(seam.pool)
    start = clock.now

    def a_second_later() -> None:
        clock.now += 1

    await opened(seam, origin, 3, between=a_second_later)
    assert clock.due == [start + 10]
    clock.ring()
    assert (seam.pool.idle_connections, clock.due) == (2, [start + 11])
    await origin.until_connections(2)
    # The youngest is used at second 10: it has ten more, and the timer stays where it was.
    assert await connection_of(seam, origin) == 4
    assert clock.due == [start + 11]
    clock.ring()
    assert (seam.pool.idle_connections, clock.due) == (1, [start + 20])
    clock.ring()
    assert (seam.pool.idle_connections, clock.due) == (0, [])
    await origin.until_connections(0)
    await until(lambda: seam.pool.open_connections == 0)


async def test_a_connection_closes_after_its_keep_alive_time(origin: Origin, seam: Seam) -> None:
    seam.rules(keepalive_seconds=0.05)
    origin.on(b"/x", reply())
    await seam.get(b"/x")
    assert seam.pool.idle_connections == 1
    await origin.until_connections(0)


async def test_without_keep_alive_a_connection_closes_at_once_though_others_wait(origin: Origin, seam: Seam) -> None:
    seam.rules(keepalive_seconds=0, max_connections=1)
    origin.on(b"/x", reply())
    await asyncio.gather(*(seam.get(b"/x") for _ in range(3)))
    assert [request.connection for request in origin.requests] == [1, 2, 3]
    assert seam.pool.idle_connections == 0
    await origin.until_connections(0)


# Waiting.


async def test_no_more_connections_are_open_than_the_upstream_allows(origin: Origin, seam: Seam) -> None:
    seam.rules(max_connections=2)
    gate = Gate()
    origin.on(b"/x", drip([], gate))
    asking = [asyncio.create_task(seam.get(b"/x")) for _ in range(5)]
    await until(lambda: len(origin.requests) == 2)
    assert (seam.pool.open_connections, seam.pool.waiting, origin.connections_made) == (2, 3, 2)
    gate.open(5)
    await asyncio.gather(*asking)
    assert origin.connections_made == 2


async def test_a_connection_that_is_being_made_counts(origin: Origin, seam: Seam) -> None:
    seam.rules(max_connections=1)
    origin.on(b"/closing", raw(CLOSING, then="keep"))
    origin.on(b"/x", reply())
    await seam.get(b"/closing")
    await until(lambda: seam.pool.open_connections == 0)
    dial, may_dial = seam.pool._dialer.dial, asyncio.Event()

    async def dial_late(make_protocol: Any, phases: Any) -> Any:
        await may_dial.wait()
        return await dial(make_protocol, phases)

    seam.pool._dialer.dial = dial_late  # type: ignore[method-assign]
    asking = [asyncio.create_task(seam.get(b"/x")) for _ in range(2)]
    await until(lambda: seam.pool.waiting == 1)
    assert (seam.pool.open_connections, origin.open_connections) == (1, 0)
    may_dial.set()
    await asyncio.gather(*asking)
    assert origin.connections_made == 2


async def test_a_connection_that_comes_free_goes_to_whoever_waits_longest(origin: Origin, seam: Seam) -> None:
    seam.rules(max_connections=1)
    gate = Gate()
    origin.otherwise(drip([], gate))
    asking = []
    for target in (b"/1", b"/2", b"/3", b"/4"):
        asking.append(asyncio.create_task(seam.get(target)))
        await until(lambda: len(origin.requests) + seam.pool.waiting == len(asking))
    gate.open(4)
    await asyncio.gather(*asking)
    assert [(request.connection, request.target) for request in origin.requests] == [
        (1, b"/1"),
        (1, b"/2"),
        (1, b"/3"),
        (1, b"/4"),
    ]


async def test_a_newcomer_does_not_overtake_who_waits(origin: Origin, seam: Seam) -> None:
    seam.rules(max_connections=1)
    gate = Gate()
    origin.otherwise(drip([], gate))
    first = asyncio.create_task(seam.get(b"/1"))
    await origin.next_exchange()
    second = asyncio.create_task(seam.get(b"/2"))
    await until(lambda: seam.pool.waiting == 1)
    newcomers: list[asyncio.Task[Any]] = []
    connection = the_connection(seam)
    on_free = connection._on_free

    def freed(connection: Connection) -> None:
        on_free(connection)
        if not newcomers:
            newcomers.append(asyncio.create_task(seam.get(b"/3")))

    connection._on_free = freed
    gate.open(3)
    await asyncio.gather(first, second)
    await asyncio.gather(*newcomers)
    assert [request.target for request in origin.requests] == [b"/1", b"/2", b"/3"]


async def test_a_place_that_comes_free_lets_the_first_who_waits_connect(origin: Origin, seam: Seam) -> None:
    seam.rules(max_connections=1)
    origin.otherwise(raw(CLOSING, then="keep"))
    await asyncio.gather(*(seam.get(b"/%d" % number) for number in range(4)))
    assert [(request.connection, request.target) for request in origin.requests] == [
        (1, b"/0"),
        (2, b"/1"),
        (3, b"/2"),
        (4, b"/3"),
    ]


async def test_a_failed_dial_lets_the_next_one_try(origin: Origin, seam: Seam) -> None:
    seam.rules(max_connections=1)
    origin.on(b"/x", reply())
    await seam.get(b"/x")
    pool = seam.pool
    the_connection(seam).close()
    dial, dials = pool._dialer.dial, 0

    async def fail_once(make_protocol: Any, phases: Any) -> Any:
        nonlocal dials
        dials += 1
        await asyncio.sleep(0)
        if dials == 1:
            raise httpx.ConnectError("no")
        return await dial(make_protocol)

    pool._dialer.dial = fail_once  # type: ignore[method-assign]
    outcomes = await asyncio.gather(seam.get(b"/x"), seam.get(b"/x"), return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes] == ["ConnectError", "Answer"]


async def test_waiting_ends_with_the_connect_time_out(origin: Origin, seam: Seam) -> None:
    seam.rules(max_connections=1, connect_timeout_seconds=0.05)
    gate = Gate()
    origin.on(b"/x", drip([], gate))
    first = asyncio.create_task(seam.get(b"/x"))
    await origin.next_exchange()
    with pytest.raises(httpx.PoolTimeout):
        await seam.get(b"/x")
    assert seam.pool.waiting == 0
    gate.open()
    await first


async def test_only_so_many_may_wait(origin: Origin, seam: Seam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_room, "MAX_WAITERS", 2)
    seam.rules(max_connections=1, connect_timeout_seconds=30)
    gate = Gate()
    origin.on(b"/x", drip([], gate))
    asking = [asyncio.create_task(seam.get(b"/x")) for _ in range(3)]
    await until(lambda: len(origin.requests) == 1)
    with pytest.raises(httpx.PoolTimeout, match="too many"):
        await seam.get(b"/x")
    gate.open(3)
    await asyncio.gather(*asking)


async def test_who_gives_up_waiting_is_passed_over(origin: Origin, seam: Seam) -> None:
    seam.rules(max_connections=1)
    gate = Gate()
    origin.otherwise(drip([], gate))
    asking = [asyncio.create_task(seam.get(b"/%d" % number)) for number in range(3)]
    await until(lambda: len(origin.requests) + seam.pool.waiting == 3)
    asking[1].cancel()
    gate.open(2)
    await asyncio.wait(asking)
    assert asking[1].cancelled()
    assert [request.target for request in origin.requests] == [b"/0", b"/2"]


@pytest.mark.parametrize("then_another", [False, True])
@pytest.mark.parametrize(("answer", "handed"), [(OK, "connection"), (CLOSING, "place")])
async def test_who_is_cancelled_in_the_moment_of_being_served_passes_it_on(
    origin: Origin, seam: Seam, answer: bytes, handed: str, then_another: bool
) -> None:
    seam.rules(max_connections=1)
    gate = Gate()

    async def gated(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.send(answer)

    origin.on(b"/1", gated)
    origin.on(b"/3", reply())
    asking = [asyncio.create_task(seam.get(b"/1"))]
    await origin.next_exchange()
    asking += [asyncio.create_task(seam.get(target)) for target in (b"/2", b"/3")[: 1 + then_another]]
    await until(lambda: seam.pool.waiting == 1 + then_another)
    connection = the_connection(seam)
    on_free, on_lost = connection._on_free, connection._on_lost

    def freed(connection: Connection) -> None:
        on_free(connection)
        asking[1].cancel()

    def lost(connection: Connection) -> None:
        on_lost(connection)
        asking[1].cancel()

    connection._on_free, connection._on_lost = freed, lost
    gate.open()
    await asyncio.wait(asking)
    assert asking[1].cancelled()
    assert [request.target for request in origin.requests] == [b"/1", b"/3"][: 1 + then_another]
    if handed == "connection":
        assert (seam.pool.open_connections, seam.pool.idle_connections, origin.connections_made) == (1, 1, 1)
    else:
        assert seam.pool.open_connections == origin.connections_made - 1 == then_another


# What leaves by itself.


async def send_unasked(exchange: Exchange) -> None:
    await exchange.send(OK)


async def end(exchange: Exchange) -> None:
    await exchange.close()


async def reset(exchange: Exchange) -> None:
    exchange.abort()


@pytest.mark.parametrize("depart", [send_unasked, end, reset])
async def test_an_idle_connection_the_upstream_is_done_with_leaves_at_once(
    origin: Origin, seam: Seam, depart: Script
) -> None:
    gate = Gate()

    async def answer_and_depart(exchange: Exchange) -> None:
        await exchange.send(OK)
        await gate.wait()
        await depart(exchange)

    origin.on(b"/departing", answer_and_depart)
    origin.on(b"/x", reply(body=b"right"))
    await seam.get(b"/departing")
    assert seam.pool.idle_connections == 1
    gate.open()
    await until(lambda: seam.pool.open_connections == 0)
    assert seam.pool.idle_connections == 0
    assert (await seam.get(b"/x", **counted_body(b"a"))).body == b"right"
    assert origin.requests[-1].connection == 2


@pytest.mark.parametrize("told", [lambda it: it.data_received(b"H"), lambda it: it.transport.close()])
async def test_a_connection_that_has_ended_is_not_handed_out_even_in_that_moment(
    origin: Origin, seam: Seam, told: Callable[[Connection], None]
) -> None:
    origin.on(b"/x", reply())
    await seam.get(b"/x")
    told(the_connection(seam))
    assert seam.pool._take() is None
    assert await connection_of(seam, origin) == 2


@pytest.mark.parametrize("told", [lambda it: it.data_received(b"H"), lambda it: it.transport.close()])
@pytest.mark.parametrize("given", [{}, {"body"}], ids=["GET", "POST"])
async def test_who_waited_and_is_handed_one_that_ends_in_that_moment_asks_on_another(
    origin: Origin, seam: Seam, given: set[str], told: Callable[[Connection], None]
) -> None:
    seam.rules(max_connections=1)
    gate = Gate()
    origin.on(b"/1", drip([], gate))
    origin.on(b"/2", reply(body=b"right"))
    first = asyncio.create_task(seam.get(b"/1"))
    await origin.next_exchange()
    second = asyncio.create_task(seam.get(b"/2", **(chunked_body(b"a", b"b") if given else {})))
    await until(lambda: seam.pool.waiting == 1)
    connection = the_connection(seam)
    on_free = connection._on_free

    def freed(connection: Connection) -> None:
        on_free(connection)
        told(connection)

    connection._on_free = freed
    gate.open()
    await first
    assert (await second).body == b"right"
    assert [(request.connection, request.target) for request in origin.requests] == [(1, b"/1"), (2, b"/2")]
    assert origin.requests[1].body == (b"ab" if given else b"")


async def test_a_connection_that_ended_is_not_kept_when_who_was_handed_it_gives_it_back(
    origin: Origin, seam: Seam
) -> None:
    seam.rules(max_connections=1)
    gate = Gate()
    origin.on(b"/1", drip([], gate))
    origin.on(b"/x", reply())
    asking = [asyncio.create_task(seam.get(b"/1"))]
    await origin.next_exchange()
    asking.append(asyncio.create_task(seam.get(b"/2")))
    await until(lambda: seam.pool.waiting == 1)
    connection = the_connection(seam)
    on_free = connection._on_free

    def freed(connection: Connection) -> None:
        on_free(connection)
        connection.connection_lost(None)
        asking[1].cancel()
        # It was made for this test only: the socket itself is still there.
        transport.abort()

    assert connection.transport is not None
    transport = connection.transport
    connection._on_free = freed
    gate.open()
    await asyncio.wait(asking)
    assert (seam.pool.open_connections, seam.pool.idle_connections) == (0, 0)
    assert await connection_of(seam, origin) == 2


# The end of a pool.


async def test_a_retired_pool_closes_when_its_last_exchange_ends(origin: Origin, seam: Seam) -> None:
    gate = Gate()
    origin.on(b"/long", drip([b"a"], gate))
    origin.on(b"/x", reply())
    long, other = await asyncio.gather(seam.ask(b"/long"), seam.ask(b"/x"))
    await whole(other)
    old = seam.pool
    newer = seam.rules()
    catalog.publish(catalog.Snapshot([newer], revision=newer.revision))
    try:
        await seam.get(b"/x")
    finally:
        catalog.publish(catalog.Snapshot())
    assert seam.pool is not old
    assert seam.transport.open_pools == 2
    assert old.open_connections == 2
    gate.open(2)
    assert (await whole(long)).body == b"a"
    assert seam.transport.open_pools == 1
    await origin.until_connections(1)
    assert old.open_connections == 0


async def test_a_request_of_an_older_revision_gets_a_pool_that_goes_with_it(origin: Origin, seam: Seam) -> None:
    older = seam.upstream
    newer = seam.rules()
    origin.on(b"/x", reply())
    await seam.get(b"/x")
    current = seam.pool
    catalog.publish(catalog.Snapshot([newer], revision=newer.revision))
    try:
        response = await seam.ask(b"/x", upstream=older)
        assert seam.transport.open_pools == 2
        await whole(response)
    finally:
        catalog.publish(catalog.Snapshot())
    assert (seam.transport.open_pools, seam.pool) == (1, current)
    await origin.until_connections(1)


@pytest.mark.parametrize("reused", [False, True])
async def test_closing_the_transport_fails_whoever_uses_it_and_connects_nowhere_anew(
    origin: Origin, reused: bool
) -> None:
    async with emptied(PooledTransport(), origin) as transport:
        seam = Seam(origin, transport)
        seam.rules(max_connections=1)
        origin.on(b"/hang", hang())
        origin.on(b"/x", reply())
        if reused:
            await seam.get(b"/x")
        asking = [asyncio.create_task(seam.get(b"/hang")) for _ in range(3)]
        await until(lambda: len(origin.requests) == 1 + reused)
        pool = seam.pool
        assert pool.waiting == 2
        await transport.aclose()
        outcomes = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 2)
        assert [isinstance(outcome, httpx.TransportError) for outcome in outcomes] == [True] * 3
        await origin.until_connections(0)
        await until(lambda: pool.open_connections == 0)
        assert (pool.exchanges, pool.waiting, origin.connections_made) == (0, 0, 1)


async def test_a_connection_made_while_the_transport_closes_is_closed(origin: Origin) -> None:
    async with emptied(PooledTransport(), origin) as transport:
        seam = Seam(origin, transport)
        origin.on(b"/closing", raw(CLOSING, then="keep"))
        await seam.get(b"/closing")
        pool = seam.pool
        dial, reached, may_return = pool._dialer.dial, asyncio.Event(), asyncio.Event()

        async def dial_late(make_protocol: Any, phases: Any) -> Any:
            made = await dial(make_protocol, phases)
            reached.set()
            await may_return.wait()
            return made

        pool._dialer.dial = dial_late  # type: ignore[method-assign]
        asking = asyncio.create_task(seam.get(b"/x"))
        await reached.wait()
        await transport.aclose()
        may_return.set()
        with pytest.raises(httpx.TransportError):
            await asking
        await origin.until_connections(0)
        assert (pool.open_connections, pool.exchanges) == (0, 0)


# Where the name leads by now.


def lead_to(seam: Seam, *addresses: str) -> list[frozenset[str] | None]:
    """From now on, and for an hour, the name leads to these; without any, nobody knows where. What was told so far."""
    told: list[frozenset[str] | None] = []

    def known() -> tuple[frozenset[str] | None, float]:
        told.append(frozenset(addresses) or None)
        return told[-1], asyncio.get_running_loop().time() + 3600.0

    seam.pool._dialer.known_addresses = known  # type: ignore[method-assign]
    seam.pool._look_at = 0.0
    return told


async def test_an_idle_connection_to_an_address_that_is_gone_serves_no_more(origin: Origin, seam: Seam) -> None:
    origin.on(b"/x", raw(OK, then="keep"))
    before = await connection_of(seam, origin)
    left = the_connection(seam)
    lead_to(seam, "192.0.2.7")
    assert await connection_of(seam, origin) != before
    assert not left.is_usable
    await until(lambda: seam.pool.open_connections == 1)


async def test_one_that_is_busy_is_closed_when_it_is_given_back(origin: Origin, seam: Seam) -> None:
    gate = Gate()
    origin.on(b"/long", drip([b"a", b"b"], gate))
    origin.on(b"/x", raw(OK, then="keep"))
    gate.open()
    response = await seam.ask(b"/long")
    busy = the_connection(seam)
    lead_to(seam, "192.0.2.7")
    await seam.get(b"/x")
    assert busy.is_left
    assert busy.is_usable
    gate.open(2)
    assert (await whole(response)).body == b"ab"
    assert not busy.is_usable
    await until(lambda: busy not in seam.pool._connections)


async def test_one_whose_address_is_named_stays(origin: Origin, seam: Seam) -> None:
    origin.on(b"/x", raw(OK, then="keep"))
    before = await connection_of(seam, origin)
    lead_to(seam, "192.0.2.7", "127.0.0.1")
    assert await connection_of(seam, origin) == before


async def test_while_nothing_is_known_connections_stay(origin: Origin, seam: Seam) -> None:
    origin.on(b"/x", raw(OK, then="keep"))
    before = await connection_of(seam, origin)
    asked = lead_to(seam)
    assert await connection_of(seam, origin) == before
    assert asked == [None]


async def test_the_name_is_asked_for_once_in_a_ttl(origin: Origin, seam: Seam) -> None:
    origin.on(b"/x", raw(OK, then="keep"))
    await seam.get(b"/x")
    asked = lead_to(seam, "127.0.0.1")
    for _ in range(5):
        await seam.get(b"/x")
    assert asked == [frozenset({"127.0.0.1"})]


async def test_a_service_that_moved_is_left_though_its_connections_never_rest(
    origin: Origin, seam: Seam, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads_to = ["127.0.0.1"]

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in leads_to]

    async def ask_ttl(_: str) -> float:
        return 300.0

    def pass_ttl() -> None:
        for answer in names._answers.values():
            answer.runs_out = 0.0
        seam.pool._look_at = 0.0

    names = seam.transport._names
    monkeypatch.setattr(names, "_ask_ttl", ask_ttl)
    async with Origin(host="127.0.0.2", port=origin.port) as moved:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        for place in (origin, moved):
            place.on(b"/x", raw(OK, then="keep"))
        seam.rules(host="moved.test")
        before = await connection_of(seam, origin)
        leads_to[:] = ["127.0.0.2"]
        pass_ttl()
        assert await connection_of(seam, origin) == before, "this one only has the name looked up"
        await until(lambda: not names._look_ups)
        seam.pool._look_at = 0.0
        await seam.get(b"/x")
        assert len(moved.requests) == 1
        await until(lambda: seam.pool.open_connections == 1)
        seam.pool.close()
        await moved.until_connections(0)


async def test_an_upstream_that_is_an_address_is_never_asked_about_again(origin: Origin, seam: Seam) -> None:
    origin.on(b"/x", raw(OK, then="keep"))
    await seam.get(b"/x")
    assert seam.pool._look_at == float("inf")


# Sending again.


def stale(how: str) -> Script:
    """Answers the first request of a connection and ends the connection at the second, without a byte."""
    seen: set[int] = set()

    async def script(exchange: Exchange) -> None:
        number = exchange.head.connection
        if number in seen:
            if how == "reset":
                exchange.abort()
            else:
                await exchange.close()
        else:
            seen.add(number)
            await exchange.read_body()
            head_only = exchange.head.method == b"HEAD"
            await exchange.send(OK.removesuffix(b"ok") if head_only else OK)

    return script


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
async def test_an_idempotent_request_on_a_stale_connection_is_sent_again_on_a_fresh_one(
    origin: Origin, seam: Seam, method: str, how: str
) -> None:
    origin.otherwise(stale(how))
    await seam.get(b"/x")
    assert (await seam.get(b"/x", method=method)).status == 200
    assert [request.connection for request in origin.requests] == [1, 1, 2]


@pytest.mark.parametrize("method", ["POST", "PATCH", "get", "BREW"])
async def test_any_other_request_is_sent_once(origin: Origin, seam: Seam, method: str) -> None:
    origin.otherwise(stale("close"))
    await seam.get(b"/x")
    with pytest.raises(httpx.RemoteProtocolError):
        await seam.get(b"/x", method=method)
    assert [request.connection for request in origin.requests] == [1, 1]


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_an_idempotent_request_with_a_body_is_sent_once(origin: Origin, seam: Seam, method: str) -> None:
    origin.otherwise(stale("close"))
    await seam.get(b"/x")
    with pytest.raises(httpx.RemoteProtocolError):
        await seam.get(b"/x", **counted_body(b"a") | {"method": method})
    assert len(origin.requests) == 2


async def test_a_request_on_a_new_connection_is_sent_once(origin: Origin, seam: Seam) -> None:
    origin.otherwise(raw(b"", then="close"))
    with pytest.raises(httpx.RemoteProtocolError):
        await seam.get(b"/x")
    assert len(origin.requests) == 1


@pytest.mark.parametrize("first_bytes", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", OK[:-1]])
async def test_nothing_is_sent_again_once_a_byte_of_an_answer_came(
    origin: Origin, seam: Seam, first_bytes: bytes
) -> None:
    origin.on(b"/x", reply())
    origin.on(b"/y", raw(first_bytes))
    await seam.get(b"/x")
    with pytest.raises(httpx.RemoteProtocolError):
        await seam.get(b"/y")
    assert len(origin.requests) == 2


async def test_one_request_meets_only_so_many_stale_connections_before_it_gets_a_new_one(
    origin: Origin, seam: Seam
) -> None:
    await opened(seam, origin, 4)
    origin.on(b"/x", raw(b""))
    with pytest.raises(httpx.RemoteProtocolError):
        await seam.get(b"/x")
    met = [request.connection for request in origin.requests if request.target == b"/x"]
    assert met == [4, 3, 5]
    assert seam.pool.idle_connections == 2


@pytest.mark.parametrize("most", [4, 1024])
async def test_however_many_connections_are_stale_an_idempotent_request_is_answered(
    origin: Origin, seam: Seam, most: int
) -> None:
    seam.rules(max_connections=most)
    await opened(seam, origin, 4)
    old = {request.connection for request in origin.requests}

    async def script(exchange: Exchange) -> None:
        if exchange.head.connection in old:
            await exchange.close()
        else:
            await exchange.send(OK)

    origin.on(b"/x", script)
    assert (await seam.get(b"/x")).status == 200
    met = [request.connection for request in origin.requests if request.target == b"/x"]
    assert met == [4, 3, 5]
    assert seam.pool.open_connections <= most


async def test_a_stale_connection_gives_its_place_to_the_one_that_is_made_instead(origin: Origin, seam: Seam) -> None:
    seam.rules(max_connections=1)
    origin.otherwise(stale("close"))
    await seam.get(b"/x")
    await seam.get(b"/x")
    assert (seam.pool.open_connections, origin.connections_made) == (1, 2)


# The request's head.


@pytest.mark.parametrize(
    "breaking",
    [
        {"target": b"/a\r\nX: 1"},
        {"target": b"/a\n"},
        {"pairs": [(b"x", b"1\r\ny: 2")]},
        {"pairs": [(b"x", b"1\r")]},
        {"pairs": [(b"x\n", b"1")]},
        {"pairs": [(b"x", b"\0")]},
    ],
)
async def test_what_would_break_out_of_the_head_is_never_sent(
    origin: Origin, seam: Seam, breaking: dict[str, Any]
) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        await seam.get(**breaking)
    assert origin.connections_made == 0
    assert seam.pool.exchanges == 0


async def test_a_response_closed_twice_leaves_its_pool_once(origin: Origin, seam: Seam) -> None:
    origin.on(b"/x", reply(body=b"x"))
    first, second = await seam.ask(b"/x"), await seam.ask(b"/x")
    await first.stream.aclose()  # type: ignore[union-attr]
    with contextlib.closing(first.stream):  # type: ignore[type-var]
        assert seam.pool.exchanges == 1
    assert seam.pool.exchanges == 1
    await second.stream.aclose()  # type: ignore[union-attr]
    assert seam.pool.exchanges == 0
