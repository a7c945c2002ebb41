"""What an admin bounds stays bounded, and what was taken up to the bound is given back."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from relay.upstreams import bulkheads
from tests.behaviour.conftest import Relayed, until
from tests.caller import Answer, Caller, Ended, request_bytes
from tests.origin import Exchange, Gate, Origin, chunked, counted, drip, hang, head_bytes, patterned, raw, reply
from tests.serving_ground import Ground

GET = request_bytes(b"/relay/o/x", host=b"localhost")


def problem(answer: Answer) -> tuple[int, str]:
    return answer.status, json.loads(answer.data)["type"].removeprefix("urn:relay:error:")


# The answer's size.


@pytest.mark.parametrize("fields", [{}, {"max_buffered_bytes": 10_000}])
async def test_an_answer_that_tells_it_is_too_large_is_a_502(
    origin: Origin, relayed: Relayed, caller: Caller, fields: dict[str, int]
) -> None:
    relayed(max_response_bytes=999, **fields)
    origin.on(b"/x", counted(10_000_000))
    assert problem(await caller.get(b"/relay/o/x")) == (502, "response-too-large")
    await origin.until_connections(0)


async def test_an_answer_of_just_the_bound_passes(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(max_response_bytes=1000)
    origin.on(b"/counted", counted(1000))
    origin.on(b"/chunked", chunked([patterned(400), patterned(600, offset=400)]))
    for path in (b"/relay/o/counted", b"/relay/o/chunked"):
        assert (await caller.get(path)).data == patterned(1000)


async def test_an_answer_that_turns_out_too_large_is_cut_off_at_the_bound(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    gate = Gate()
    relayed(max_response_bytes=999)
    origin.on(b"/x", drip([patterned(500), patterned(500, offset=500)], gate))
    await caller.send(GET)
    assert (await caller.read_head()).status == 200
    gate.open()
    assert await caller.read_chunk() == patterned(500)
    gate.open()
    rest = await caller.read_body()
    assert (rest.data, rest.ended.cleanly) == (b"", False)
    await origin.until_connections(0)


async def test_what_a_bodiless_answer_tells_of_its_length_is_not_its_size(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(max_response_bytes=10)
    origin.on(b"/x", counted(1000))
    origin.on(b"/same", raw(head_bytes(304, [(b"Content-Length", b"1000")]), then="keep"))
    assert (await caller.get(b"/relay/o/x", method=b"HEAD")).values(b"content-length") == [b"1000"]
    assert (await caller.get(b"/relay/o/same")).status == 304


# How many at once.


async def test_one_exchange_too_many_is_told_when_to_try_again(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    gate = Gate()
    relayed(max_concurrent=2, max_queued=0)
    origin.on(b"/x", drip([b"one"], gate))
    async with Caller(ground.port) as first, Caller(ground.port) as second:
        for holder in (first, second):
            await holder.send(GET)
            await holder.read_head()
        answer = await caller.get(b"/relay/o/x")
        assert problem(answer) == (503, "upstream-full")
        assert answer.values(b"retry-after") == [b"1"]
        assert len(origin.requests) == 2
        gate.open(4)
        for holder in (first, second):
            assert (await holder.read_body()).ended is Ended.CHUNKED
        gate.open(2)
        assert (await caller.get(b"/relay/o/x")).status == 200


async def test_one_exchange_too_many_waits_for_its_turn(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    gate = Gate()
    relayed(max_concurrent=1)
    origin.on(b"/x", drip([b"one"], gate))
    origin.on(b"/y", reply(body=b"fine"))
    async with Caller(ground.port) as first:
        await first.send(GET)
        await first.read_head()
        waiting = asyncio.create_task(caller.get(b"/relay/o/y", method=b"POST", body=b"hello"))
        await until(lambda: bulkheads.queued() == {"o": 1})
        assert len(origin.requests) == 1
        gate.open(2)
        await first.read_body()
        assert (await waiting).data == b"fine"


async def test_a_turn_that_does_not_come_in_time_is_a_503(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    relayed(max_concurrent=1, queue_timeout_seconds=0.05)
    origin.on(b"/x", hang())
    async with Caller(ground.port) as holder:
        await holder.send(GET)
        await origin.next_exchange()
        answer = await caller.get(b"/relay/o/x")
    assert problem(answer) == (503, "queue-timeout")
    assert answer.values(b"retry-after") == [b"1"]
    assert answer.values(b"proxy-status")[0].endswith(b"error=connection_limit_reached")
    assert len(origin.requests) == 1


async def test_who_leaves_while_waiting_gives_its_place_to_the_next(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    relayed(max_concurrent=1)
    origin.on(b"/x", hang())
    origin.on(b"/y", reply(body=b"fine"))
    async with Caller(ground.port) as holder, Caller(ground.port) as leaving:
        await holder.send(GET)
        await origin.next_exchange()
        await leaving.send(request_bytes(b"/relay/o/y", host=b"localhost"))
        await until(lambda: bulkheads.queued() == {"o": 1})
        waiting = asyncio.create_task(caller.get(b"/relay/o/y"))
        await until(lambda: bulkheads.queued() == {"o": 2})
        leaving.close()
        await until(lambda: bulkheads.queued() == {"o": 1})
        holder.close()
        assert (await waiting).data == b"fine"


async def test_hundreds_who_wait_for_an_upstream_that_hangs_hold_up_no_other(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    relayed("hung", max_concurrent=1)
    relayed("free", max_concurrent=1, max_queued=0)
    origin.on(b"/x", hang())
    origin.on(b"/y", reply(body=b"fine"))
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(401):
            waiting = await stack.enter_async_context(Caller(ground.port))
            await waiting.send(request_bytes(b"/relay/hung/x", host=b"localhost"))
        await until(lambda: bulkheads.queued() == {"hung": 400})
        for _ in range(20):
            assert (await caller.get(b"/relay/free/y")).data == b"fine"
        assert bulkheads.queued() == {"hung": 400}
        assert bulkheads.slots == {"hung": 1}


async def test_a_full_upstream_fills_no_other(origin: Origin, relayed: Relayed, ground: Ground, caller: Caller) -> None:
    relayed("full", max_concurrent=1, max_queued=0)
    relayed("free", max_concurrent=1)
    origin.on(b"/x", hang())
    origin.on(b"/y", reply(body=b"fine"))
    async with Caller(ground.port) as holder:
        await holder.send(request_bytes(b"/relay/full/x", host=b"localhost"))
        await origin.next_exchange()
        assert (await caller.get(b"/relay/full/y")).status == 503
        assert (await caller.get(b"/relay/free/y")).data == b"fine"


@pytest.mark.parametrize("how", ["refused", "hung-up", "timed-out", "left"])
async def test_every_way_to_fail_gives_the_slot_back(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller, how: str
) -> None:
    gate = Gate()

    async def hang_up(exchange: Exchange) -> None:
        await exchange.close()

    relayed(max_concurrent=1, max_queued=0, head_timeout_seconds=0.1, max_response_bytes=10)
    origin.on(b"/refused", counted(11))
    origin.on(b"/hung-up", hang_up)
    origin.on(b"/timed-out", hang())
    origin.on(b"/left", drip([b"one"], gate))
    origin.on(b"/y", reply(body=b"fine"))
    for _ in range(3):
        if how == "left":
            async with Caller(ground.port) as leaving:
                await leaving.send(request_bytes(b"/relay/o/left", host=b"localhost"))
                await leaving.read_head()
            await until(lambda: not bulkheads.slots, within=1)
        else:
            assert (await caller.get(b"/relay/o/" + how.encode())).status in (502, 504)
    assert (await caller.get(b"/relay/o/y")).data == b"fine"


# Connections.


async def test_who_finds_no_free_connection_waits_for_one(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    gate = Gate()
    relayed(max_connections=1)
    origin.on(b"/x", drip([b"one"], gate))
    origin.on(b"/y", reply(body=b"fine"))
    async with Caller(ground.port) as first:
        await first.send(GET)
        await first.read_head()
        waiting = asyncio.create_task(caller.get(b"/relay/o/y"))
        await until(lambda: bulkheads.slots["o"] == 2)
        gate.open(2)
        assert (await first.read_body()).data == b"one"
        assert (await waiting).data == b"fine"
    assert origin.connections_made == 1


async def test_a_waiting_caller_gets_the_connection_of_one_who_left(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    relayed(max_connections=1)
    origin.on(b"/x", hang())
    origin.on(b"/y", reply(body=b"fine"))
    async with Caller(ground.port) as first:
        await first.send(GET)
        await origin.next_exchange()
        waiting = asyncio.create_task(caller.get(b"/relay/o/y"))
        await until(lambda: bulkheads.slots["o"] == 2)
    assert (await waiting).data == b"fine"


async def test_connections_are_used_again(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/x", reply(body=b"fine"))
    for body in (None, b"hello", [b"hello"]) * 3:
        assert (await caller.get(b"/relay/o/x", method=b"POST", body=body)).data == b"fine"
    assert origin.connections_made == 1


async def test_without_keep_alive_every_exchange_has_its_own_connection(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(keepalive_seconds=0)
    origin.on(b"/x", reply(body=b"fine"))
    for number in range(1, 4):
        assert (await caller.get(b"/relay/o/x")).data == b"fine"
        await origin.until_connections(0)
        assert origin.connections_made == number


async def test_an_idle_connection_is_closed_when_its_time_is_over(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(keepalive_seconds=0.2)
    origin.on(b"/x", reply(body=b"fine"))
    assert (await caller.get(b"/relay/o/x")).data == b"fine"
    assert origin.open_connections == 1
    await origin.until_connections(0)


async def test_an_origin_that_asks_to_close_is_left_alone(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/x", reply(headers=[(b"Connection", b"close")], body=b"fine"))
    for _ in range(2):
        assert (await caller.get(b"/relay/o/x")).data == b"fine"
        await origin.until_connections(0)
