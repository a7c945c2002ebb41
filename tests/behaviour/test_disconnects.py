"""A caller may leave at any moment: the upstream's connection ends within a second and everything is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from unittest.mock import AsyncMock

import pytest

from relay.serving.body import Inbound
from relay.upstreams import bulkheads
from tests.behaviour.conftest import Relayed, until, until_still
from tests.caller import Caller, request_bytes
from tests.origin import Exchange, Gate, Origin, counted, drip, hang, head_bytes, silent_port
from tests.serving_ground import Ground

MIB = 1024 * 1024
CHUNKED = (b"Transfer-Encoding", b"chunked")

Leave = Callable[[Caller], None]
UntilAtRest = Callable[[], Awaitable[None]]

leaving = pytest.mark.parametrize("leave", [Caller.close, Caller.abort], ids=["close", "reset"])


async def until_closed(exchange: Exchange) -> None:
    async with asyncio.timeout(1):
        await exchange.closed.wait()


async def paused(exchange: Exchange) -> None:
    """A script that reads nothing, in the kernel or out of it."""
    exchange.pause_reading()
    await exchange.closed.wait()


@leaving
async def test_leaving_while_the_relay_connects(
    relayed: Relayed, caller: Caller, until_at_rest: UntilAtRest, leave: Leave
) -> None:
    with silent_port() as port:
        relayed(port=port)
        await caller.send(request_bytes(b"/relay/o/x", host=b"localhost"))
        await until(lambda: bulkheads.slots["o"])
        leave(caller)
        await until_at_rest()


@leaving
async def test_leaving_while_the_relay_waits_for_a_free_connection(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller, leave: Leave
) -> None:
    relayed(max_connections=1)
    origin.on(b"/x", hang())
    async with Caller(ground.port) as other:
        await other.send(request_bytes(b"/relay/o/x", host=b"localhost"))
        await origin.next_exchange()
        await caller.send(request_bytes(b"/relay/o/x", host=b"localhost"))
        await until(lambda: bulkheads.slots["o"] == 2)
        leave(caller)
        await until(lambda: bulkheads.slots["o"] == 1, within=1)
        assert origin.open_connections == 1


@leaving
async def test_leaving_while_the_head_is_waited_for(
    origin: Origin, relayed: Relayed, caller: Caller, until_at_rest: UntilAtRest, leave: Leave
) -> None:
    relayed()
    origin.on(b"/x", hang())
    await caller.send(request_bytes(b"/relay/o/x", host=b"localhost"))
    exchange = await origin.next_exchange()
    leave(caller)
    await until_closed(exchange)
    await until_at_rest()
    await origin.until_connections(0)


@leaving
async def test_leaving_in_the_middle_of_the_answer(
    origin: Origin, relayed: Relayed, caller: Caller, until_at_rest: UntilAtRest, leave: Leave
) -> None:
    gate = Gate()
    relayed()
    origin.on(b"/x", drip([b"one", b"two"], gate))
    await caller.send(request_bytes(b"/relay/o/x", host=b"localhost"))
    exchange = await origin.next_exchange()
    await caller.read_head()
    gate.open()
    assert await caller.read_chunk() == b"one"
    leave(caller)
    await until_closed(exchange)
    await until_at_rest()
    await origin.until_connections(0)


@leaving
async def test_leaving_without_having_read_the_answer(
    origin: Origin, relayed: Relayed, ground: Ground, until_at_rest: UntilAtRest, leave: Leave
) -> None:
    relayed()
    origin.on(b"/x", counted(64 * MIB, MIB))
    async with Caller(ground.port, buffer_bytes=64 * 1024) as slow:
        await slow.send(request_bytes(b"/relay/o/x", host=b"localhost"))
        await slow.read_head()
        exchange = await origin.next_exchange()
        await until_still(lambda: exchange.sent)
        leave(slow)
        await until_closed(exchange)
        await until_at_rest()


@leaving
@pytest.mark.parametrize("counted_body", [True, False])
async def test_leaving_during_an_upload_the_origin_reads(
    origin: Origin, relayed: Relayed, caller: Caller, until_at_rest: UntilAtRest, leave: Leave, counted_body: bool
) -> None:
    relayed()
    origin.on(b"/x", hang())
    framing = (b"Content-Length", b"1000000") if counted_body else CHUNKED
    await caller.send(request_bytes(b"/relay/o/x", [framing], method=b"POST", host=b"localhost"))
    await caller.send(b"5\r\nhello\r\n")
    exchange = await origin.next_exchange()
    await until(lambda: exchange.head.body_length)
    leave(caller)
    await until_closed(exchange)
    await until_at_rest()
    assert not exchange.head.body_is_whole, "a body that was cut off must not look whole"


@leaving
async def test_leaving_after_an_upload_while_the_head_is_waited_for(
    origin: Origin, relayed: Relayed, caller: Caller, until_at_rest: UntilAtRest, leave: Leave
) -> None:
    relayed()
    origin.on(b"/x", hang())
    await caller.send(request_bytes(b"/relay/o/x", method=b"POST", host=b"localhost", body=b"") + b"")
    exchange = await origin.next_exchange()
    leave(caller)
    await until_closed(exchange)
    await until_at_rest()


async def test_the_watch_goes_on_while_little_of_the_body_waits() -> None:
    messages = [{"type": "http.request", "body": b"hello", "more_body": True}] * 100 + [{"type": "http.disconnect"}]
    gone = asyncio.Event()
    inbound = Inbound(AsyncMock(side_effect=messages), on_gone=gone.set)
    inbound.expect_body()
    inbound.open()
    async with asyncio.timeout(1):
        await gone.wait()
    inbound.close()


async def stuck(caller: Caller) -> None:
    """Sends a body without end until nobody takes any more of it."""
    sent = 0

    async def send_on() -> None:
        nonlocal sent
        while True:
            await caller.send(b"10000\r\n" + bytes(65_536) + b"\r\n")
            sent += 1

    await caller.send(request_bytes(b"/relay/o/x", [CHUNKED], method=b"POST", host=b"localhost"))
    sending = asyncio.create_task(send_on())
    await until_still(lambda: sent)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


async def test_a_reset_during_an_upload_that_is_stuck_is_noticed(
    origin: Origin, relayed: Relayed, caller: Caller, until_at_rest: UntilAtRest
) -> None:
    relayed()
    origin.on(b"/x", paused)
    await stuck(caller)
    exchange = await origin.next_exchange()
    caller.abort()
    await until_closed(exchange)
    await until_at_rest()


async def test_a_close_during_an_upload_that_is_stuck_is_noticed_once_all_that_was_sent_has_arrived(
    origin: Origin, relayed: Relayed, ground: Ground, until_at_rest: UntilAtRest
) -> None:
    gate = Gate()

    async def script(exchange: Exchange) -> None:
        await gate.wait()
        while exchange.head.body_length < MIB:
            await exchange.read_some()
        await exchange.closed.wait()

    relayed()
    origin.on(b"/x", script)
    async with Caller(ground.port, buffer_bytes=64 * 1024) as caller:
        await stuck(caller)
        exchange = await origin.next_exchange()
        caller.close()
        gate.open()
        await until_closed(exchange)
        await until_at_rest()


async def test_a_close_whose_end_never_arrives_is_ended_by_the_idle_time_out(
    origin: Origin, relayed: Relayed, ground: Ground, until_at_rest: UntilAtRest
) -> None:
    """With every buffer on the way full, the caller's FIN waits in its own kernel: nobody could see it."""
    relayed(idle_timeout_seconds=0.3)
    origin.on(b"/x", paused)
    async with Caller(ground.port, buffer_bytes=64 * 1024) as caller:
        await stuck(caller)
        exchange = await origin.next_exchange()
        caller.close()
        await until_closed(exchange)
        await until_at_rest()


@leaving
@pytest.mark.parametrize("answer_began", [False, True])
async def test_leaving_during_buffered_delivery(
    origin: Origin, relayed: Relayed, caller: Caller, until_at_rest: UntilAtRest, leave: Leave, answer_began: bool
) -> None:
    async def script(exchange: Exchange) -> None:
        if answer_began:
            await exchange.send(head_bytes(200, [(b"Content-Length", b"1000")]) + b"some of it")
        await exchange.closed.wait()

    relayed(max_buffered_bytes=MIB)
    origin.on(b"/x", script)
    await caller.send(request_bytes(b"/relay/o/x", host=b"localhost"))
    exchange = await origin.next_exchange()
    if answer_began:
        await until(lambda: exchange.sent)
    leave(caller)
    await until_closed(exchange)
    await until_at_rest()


async def test_what_one_caller_left_behind_is_not_the_next_ones(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    """A connection with an answer under way never goes back into the pool."""
    gate = Gate()
    relayed()
    origin.on(b"/long", drip([b"one", b"two"], gate))
    origin.on(b"/x", counted(10))
    await caller.send(request_bytes(b"/relay/o/long", host=b"localhost"))
    exchange = await origin.next_exchange()
    await caller.read_head()
    caller.close()
    await until_closed(exchange)
    async with Caller(ground.port) as next_one:
        assert (await next_one.get(b"/relay/o/x")).body.length == 10
    assert origin.connections_made == 2


async def test_a_hundred_callers_leaving_at_once_leave_nothing(
    origin: Origin, relayed: Relayed, ground: Ground, until_at_rest: UntilAtRest
) -> None:
    relayed()
    origin.on(b"/x", hang())
    callers = [Caller(ground.port) for _ in range(100)]
    for caller in callers:
        await caller.__aenter__()
        await caller.send(request_bytes(b"/relay/o/x", host=b"localhost"))
    await origin.until_connections(100)
    for caller in callers:
        await caller.__aexit__(None, None, None)
    await origin.until_connections(0, within=1)
    await until_at_rest()
