"""Every phase has its own time-out, its own error and its own culprit."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from relay.upstreams.answers import MAX_INTERIM_ANSWERS
from tests.behaviour.conftest import Relayed, until_still
from tests.caller import Answer, Caller, Ended, request_bytes
from tests.origin import Exchange, Gate, Origin, chunked_head, counted, drip, hang, head_bytes, silent_port, sse
from tests.serving_ground import Ground

MIB = 1024 * 1024
SHORT = 0.2
POST = request_bytes(b"/relay/o/x", [(b"Content-Length", b"100000000")], method=b"POST", host=b"localhost")


def problem(answer: Answer) -> tuple[int, str]:
    return answer.status, json.loads(answer.data)["type"].removeprefix("urn:relay:error:")


async def answered(caller: Caller) -> tuple[int, str]:
    head = await caller.read_head()
    return problem(Answer(head, await caller.read_body()))


async def paused(exchange: Exchange) -> None:
    exchange.pause_reading()
    await exchange.closed.wait()


async def promising(exchange: Exchange) -> None:
    """Sends the head and a part of the body, and then nothing."""
    await exchange.send(head_bytes(200, [(b"Content-Length", b"1000")]) + b"some of it")
    await exchange.closed.wait()


async def test_connecting(relayed: Relayed, caller: Caller) -> None:
    with silent_port() as port:
        relayed(port=port, connect_timeout_seconds=SHORT)
        answer = await caller.get(b"/relay/o/x")
    assert problem(answer) == (504, "connect-timeout")
    assert answer.values(b"proxy-status")[0].endswith(b"error=connection_timeout")


async def test_waiting_for_a_free_connection_is_being_full(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    relayed(max_connections=1, connect_timeout_seconds=SHORT)
    origin.on(b"/x", hang())
    async with Caller(ground.port) as other:
        await other.send(request_bytes(b"/relay/o/x", host=b"localhost"))
        await origin.next_exchange()
        answer = await caller.get(b"/relay/o/x")
    assert problem(answer) == (503, "upstream-full")
    assert answer.values(b"retry-after") == [b"1"]


@pytest.mark.parametrize("body", [None, b"hello"])
async def test_waiting_for_the_head(origin: Origin, relayed: Relayed, caller: Caller, body: bytes | None) -> None:
    relayed(head_timeout_seconds=SHORT)
    origin.on(b"/x", hang())
    assert problem(await caller.get(b"/relay/o/x", method=b"POST", body=body)) == (504, "head-timeout")
    await origin.until_connections(0)


async def test_interim_answers_do_not_put_the_head_time_out_off(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    async def script(exchange: Exchange) -> None:
        for _ in range(MAX_INTERIM_ANSWERS):
            await exchange.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(exchange.closed.wait(), SHORT / 10)
        await exchange.closed.wait()

    relayed(head_timeout_seconds=SHORT)
    origin.on(b"/x", script)
    assert problem(await caller.get(b"/relay/o/x")) == (504, "head-timeout")


async def test_a_body_still_on_its_way_up_does_not_count_as_waiting_for_the_head(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    """The head's time begins when the origin has everything it could answer to."""
    gate = Gate()

    async def script(exchange: Exchange) -> None:
        await exchange.read_some()
        gate.open()
        await exchange.closed.wait()

    relayed(head_timeout_seconds=SHORT, idle_timeout_seconds=4 * SHORT)
    origin.on(b"/x", script)
    await caller.send(POST + b"begun")
    await gate.wait()
    assert await answered(caller) == (408, "caller-timeout")


async def test_silence_in_the_middle_of_the_answer_cuts_it_off(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(idle_timeout_seconds=SHORT)
    origin.on(b"/x", promising)
    answer = await caller.get(b"/relay/o/x")
    assert (answer.status, answer.data) == (200, b"some of it")
    assert not answer.body.ended.cleanly
    await origin.until_connections(0)


async def test_silence_in_the_middle_of_a_buffered_answer_is_an_error(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(idle_timeout_seconds=SHORT, max_buffered_bytes=MIB)
    origin.on(b"/x", promising)
    assert problem(await caller.get(b"/relay/o/x")) == (504, "idle-timeout")


async def test_a_sign_of_life_starts_the_silence_anew(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(idle_timeout_seconds=2 * SHORT)
    gate = Gate()
    origin.on(b"/x", sse(gate))
    await caller.send(request_bytes(b"/relay/o/x", host=b"localhost"))
    await caller.read_head()
    loop = asyncio.get_running_loop()
    for number in range(1, 5):
        loop.call_later(SHORT, gate.open)
        assert await caller.read_chunk() == b"data: %d\n\n" % number
    await caller.read_body()
    assert caller.ended is Ended.TRUNCATED


async def test_a_moving_upload_keeps_a_silent_answer_alive(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    """An upstream may begin its answer and say no more of it until it has the whole request."""
    relayed(idle_timeout_seconds=2 * SHORT)

    async def script(exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, [(b"Content-Length", b"4")]))
        await exchange.read_body()
        await exchange.send(b"done")

    origin.on(b"/x", script)
    await caller.send(request_bytes(b"/relay/o/x", [(b"Content-Length", b"6")], method=b"POST", host=b"localhost"))
    await caller.read_head()
    beat = Gate()
    for _ in range(6):
        asyncio.get_running_loop().call_later(SHORT, beat.open)
        await beat.wait()
        await caller.send(b"x")
    body = await caller.read_body()
    assert (body.data, body.ended) == (b"done", Ended.COUNTED)


async def test_a_moving_answer_keeps_a_silent_upload_alive(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(idle_timeout_seconds=2 * SHORT)
    gate = Gate()

    async def script(exchange: Exchange) -> None:
        await exchange.send(chunked_head(200, ()))
        while True:
            await gate.wait()
            await exchange.send_chunk(b"alive")

    origin.on(b"/x", script)
    await caller.send(POST + b"begun")
    await caller.read_head()
    for _ in range(6):
        asyncio.get_running_loop().call_later(SHORT, gate.open)
        assert await caller.read_chunk() == b"alive"


async def test_a_slow_reader_is_not_the_upstreams_silence(origin: Origin, relayed: Relayed, ground: Ground) -> None:
    relayed(idle_timeout_seconds=SHORT)
    origin.on(b"/x", counted(32 * MIB, MIB))
    paused_for_long = asyncio.Event()
    async with Caller(ground.port, buffer_bytes=64 * 1024) as slow:
        await slow.send(request_bytes(b"/relay/o/x", host=b"localhost"))
        await slow.read_head()
        exchange = await origin.next_exchange()
        await until_still(lambda: exchange.sent)
        asyncio.get_running_loop().call_later(3 * SHORT, paused_for_long.set)
        await paused_for_long.wait()
        body = await slow.read_body(keep=False)
    assert (body.length, body.ended) == (32 * MIB, Ended.COUNTED)


async def test_an_origin_that_stops_taking_the_body(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(idle_timeout_seconds=SHORT)
    origin.on(b"/x", paused)
    answer = await caller.get(b"/relay/o/x", method=b"POST", body=[bytes(65_536)] * 500)
    assert problem(answer) == (504, "upload-timeout")
    await origin.until_connections(0)


async def test_a_caller_who_stops_sending_the_body(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(idle_timeout_seconds=SHORT)
    origin.on(b"/x", hang())
    await caller.send(POST + b"begun")
    assert await answered(caller) == (408, "caller-timeout")
    await origin.until_connections(0)


async def test_a_caller_who_was_told_to_go_on_and_does_not(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(idle_timeout_seconds=SHORT)
    origin.on(b"/x", hang())
    head = [(b"Expect", b"100-continue"), (b"Content-Length", b"10")]
    await caller.send(request_bytes(b"/relay/o/x", head, method=b"POST", host=b"localhost"))
    assert (await caller.read_head()).status == 100
    assert await answered(caller) == (408, "caller-timeout")


@pytest.mark.parametrize("fields", [{}, {"max_buffered_bytes": MIB}])
async def test_the_total_before_the_head_is_an_error(
    origin: Origin, relayed: Relayed, caller: Caller, fields: dict[str, Any]
) -> None:
    relayed(total_timeout_seconds=SHORT, **fields)
    origin.on(b"/x", hang())
    assert problem(await caller.get(b"/relay/o/x")) == (504, "total-timeout")
    await origin.until_connections(0)


async def test_the_total_while_connecting_is_an_error(relayed: Relayed, caller: Caller) -> None:
    with silent_port() as port:
        relayed(port=port, total_timeout_seconds=SHORT)
        assert problem(await caller.get(b"/relay/o/x")) == (504, "total-timeout")


async def test_the_total_during_an_upload_is_an_error(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(total_timeout_seconds=SHORT)
    origin.on(b"/x", hang())
    await caller.send(POST + b"begun")
    assert await answered(caller) == (504, "total-timeout")
    await origin.until_connections(0)


async def test_the_total_after_the_head_cuts_the_answer_off(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(total_timeout_seconds=SHORT)
    gate = Gate()
    gate.open()
    origin.on(b"/x", drip([b"one", b"two"], gate))
    answer = await caller.get(b"/relay/o/x")
    assert (answer.status, answer.data) == (200, b"one")
    assert not answer.body.ended.cleanly
    await origin.until_connections(0)


async def test_the_total_ends_what_a_caller_never_reads(origin: Origin, relayed: Relayed, ground: Ground) -> None:
    relayed(total_timeout_seconds=SHORT)
    origin.on(b"/x", counted(32 * MIB, MIB))
    async with Caller(ground.port, buffer_bytes=64 * 1024) as slow:
        await slow.send(request_bytes(b"/relay/o/x", host=b"localhost"))
        await slow.read_head()
        await origin.next_exchange()
        await origin.until_connections(0)
        assert not (await slow.read_body(keep=False)).ended.cleanly


async def test_the_total_of_one_exchange_is_not_the_next_ones(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    """A timer that outlived its exchange would cut a stranger's."""
    gate = Gate()
    relayed(total_timeout_seconds=SHORT)
    origin.on(b"/quick", counted(10))
    assert (await caller.get(b"/relay/o/quick")).status == 200
    relayed(total_timeout_seconds=None)
    asyncio.get_running_loop().call_later(2 * SHORT, gate.open, 2)
    origin.on(b"/slow", drip([b"late"], gate))
    answer = await caller.get(b"/relay/o/slow")
    assert (answer.data, answer.body.ended) == (b"late", Ended.CHUNKED)


async def test_a_time_out_is_told_on_a_connection_that_lives_on(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(head_timeout_seconds=SHORT, total_timeout_seconds=10 * SHORT)
    origin.on(b"/x", hang())
    origin.on(b"/y", counted(10))
    assert (await caller.get(b"/relay/o/x")).status == 504
    assert (await caller.get(b"/relay/o/y")).status == 200
