"""Starting, draining and stopping: nothing is served half-ready, nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from relay.serving.status import begin_draining
from relay.signals import server_shutdown, server_startup
from relay.upstreams import bulkheads
from relay.upstreams import client as client_room
from tests.behaviour.conftest import Relayed
from tests.caller import Answer, Caller, Ended, request_bytes
from tests.origin import Gate, Origin, drip, hang, reply
from tests.serving_ground import Ground

GET = request_bytes(b"/relay/o/x", host=b"localhost")


@pytest.fixture
def failing_start() -> Iterator[None]:
    async def refuse(**_: object) -> None:
        raise RuntimeError("there is no table")

    server_startup.connect(refuse)
    yield
    server_startup.disconnect(refuse)


@pytest.fixture
def failing_end() -> Iterator[None]:
    async def refuse(**_: object) -> None:
        raise RuntimeError("cannot let go")

    server_shutdown.connect(refuse)
    yield
    server_shutdown.disconnect(refuse)


async def test_a_start_that_fails_is_reported_and_nothing_stays_open(
    failing_start: None, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match="start-up failed"):
        await Ground().__aenter__()
    assert "The relay cannot start: there is no table" in caplog.messages
    assert client_room.client is None


async def test_one_room_that_cannot_end_keeps_no_other_from_ending(
    failing_end: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with Ground():
        assert client_room.client is not None
    assert client_room.client is None
    assert any("cannot let go" in message for message in caplog.messages)


async def test_the_end_closes_the_client_and_every_idle_connection(origin: Origin, relayed: Relayed) -> None:
    origin.on(b"/x", reply())
    relayed("one")
    relayed("two")
    async with Ground() as ground, Caller(ground.port) as caller:
        for path in (b"/relay/one/x", b"/relay/two/x"):
            assert (await caller.get(path)).status == 200
        assert origin.open_connections == 2
    assert client_room.client is None
    await origin.until_connections(0)


async def test_a_second_lifespan_in_the_same_process_serves_like_the_first(origin: Origin, relayed: Relayed) -> None:
    origin.on(b"/x", reply(body=b"fine"))
    relayed()
    for _ in range(2):
        async with Ground() as ground, Caller(ground.port) as caller:
            assert (await caller.get(b"/readyz")).status == 200
            assert (await caller.get(b"/relay/o/x")).data == b"fine"
        await origin.until_connections(0)


async def test_draining_is_told_by_readyz_and_exchanges_go_on(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    gate = Gate()
    origin.on(b"/x", drip([b"one"], gate))
    relayed()
    async with Caller(ground.port) as streaming:
        await streaming.send(GET)
        await streaming.read_head()
        begin_draining()
        answer = await caller.get(b"/readyz")
        assert answer.status == 503
        assert json.loads(answer.data)["status"] == "draining"
        assert (await caller.get(b"/healthz")).status == 200
        gate.open(2)
        assert (await streaming.read_body()).ended is Ended.CHUNKED


async def test_an_exchange_under_way_is_waited_for(origin: Origin, relayed: Relayed) -> None:
    gate = Gate()
    origin.on(b"/x", drip([b"one"], gate))
    relayed()
    async with Ground(graceful_seconds=10) as ground, Caller(ground.port) as caller:
        await caller.send(GET)
        await caller.read_head()
        ground.server.stop()
        gate.open(2)
        body = await caller.read_body()
        assert (body.data, body.ended) == (b"one", Ended.CHUNKED)


async def test_past_the_grace_a_stream_is_cut_off_and_not_ended(
    origin: Origin, relayed: Relayed, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    origin.on(b"/x", drip([b"one"], gate))
    relayed()
    async with Ground(graceful_seconds=1) as ground, Caller(ground.port) as caller:
        await caller.send(GET)
        await caller.read_head()
        exchange = await origin.next_exchange()
        ground.server.stop()
        assert not (await caller.read_body()).ended.cleanly
        async with asyncio.timeout(1):
            await exchange.closed.wait()
    assert client_room.client is None
    assert not bulkheads.slots
    assert not [record for record in caplog.records if record.exc_info], "one line for all, and no traceback for each"


async def test_past_the_grace_who_still_waits_for_the_head_is_told(
    origin: Origin, relayed: Relayed, caplog: pytest.LogCaptureFixture
) -> None:
    origin.on(b"/x", hang())
    relayed()
    async with Ground(graceful_seconds=1) as ground, Caller(ground.port) as caller:
        await caller.send(GET)
        await origin.next_exchange()
        ground.server.stop()
        head = await caller.read_head()
        answer = Answer(head, await caller.read_body())
        assert answer.status == 503
        assert json.loads(answer.data)["type"] == "urn:relay:error:draining"
        assert answer.values(b"retry-after") == [b"1"]
    await origin.until_connections(0)
    assert not bulkheads.slots
    assert not [record for record in caplog.records if record.exc_info]


async def test_who_calls_before_start_up_or_after_the_end_is_told_to_try_again(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    relayed()
    await client_room.close_client()
    answer = await caller.get(b"/relay/o/x")
    assert answer.status == 503
    assert json.loads(answer.data)["type"] == "urn:relay:error:draining"
    assert logging.getLogger("uvicorn.error").filters, "and still quiet about it"
