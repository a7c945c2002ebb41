"""A pool lives as long as the saved upstream it was made for; an exchange ends as it began."""

from __future__ import annotations

import asyncio
import gc

import pytest
import pytest_asyncio

from relay import catalog
from relay.observing.access_log import Entry
from relay.serving.body import Inbound
from relay.serving.request import RelayRequest
from relay.upstreams import client as client_room
from relay.upstreams import exchange as relay_exchange
from relay.upstreams.messages import SeamRequest, SeamResponse
from relay.upstreams.transport import PooledTransport
from relay.upstreams.wire import Wire
from tests.behaviour.conftest import Relayed, until
from tests.caller import Caller, Ended, request_bytes
from tests.origin import Gate, Origin, Script, chunked, drip, echo, reply
from tests.serving_ground import Ground

GET = request_bytes(b"/relay/o/long", host=b"localhost")


@pytest_asyncio.fixture
async def transport(ground: Ground) -> PooledTransport:
    client = client_room.client
    assert client is not None
    assert isinstance(client.transport, PooledTransport)
    return client.transport


def tick() -> None:
    """What the watcher does after each poll."""
    client_room.retire_pools(catalog.current())


async def test_an_edit_makes_a_new_pool_and_closes_the_old_ones_connections(
    origin: Origin, relayed: Relayed, caller: Caller, transport: PooledTransport
) -> None:
    origin.on(b"/x", reply(body=b"fine"))
    for _ in range(3):
        relayed()
        assert (await caller.get(b"/relay/o/x")).data == b"fine"
        assert (await caller.get(b"/relay/o/x")).data == b"fine"
    assert origin.connections_made == 3
    assert transport.open_pools == 1
    await origin.until_connections(1)


async def test_an_exchange_finishes_as_it_began_through_an_edit(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller, transport: PooledTransport
) -> None:
    gate = Gate()
    origin.on(b"/long", drip([b"one", b"two"], gate))
    origin.on(b"/x", reply(body=b"fine"))
    relayed()
    async with Caller(ground.port) as streaming:
        await streaming.send(GET)
        await streaming.read_head()
        gate.open()
        assert await streaming.read_chunk() == b"one"
        relayed(max_response_bytes=100)
        tick()
        assert (await caller.get(b"/relay/o/x")).data == b"fine"
        assert transport.open_pools == 2
        assert origin.open_connections == 2
        gate.open(2)
        rest = await streaming.read_body()
        assert (rest.data, rest.ended) == (b"two", Ended.CHUNKED)
        await origin.until_connections(1)
    assert transport.open_pools == 1


async def test_an_exchange_finishes_though_its_upstream_is_removed(
    origin: Origin, relayed: Relayed, caller: Caller, transport: PooledTransport
) -> None:
    gate = Gate()
    origin.on(b"/long", drip([b"one"], gate))
    relayed()
    await caller.send(GET)
    await caller.read_head()
    catalog.publish(catalog.Snapshot(revision=99))
    tick()
    gate.open(2)
    assert (await caller.read_body()).data == b"one"
    assert (await caller.get(b"/relay/o/long")).status == 404
    await origin.until_connections(0)
    assert transport.open_pools == 0


async def test_a_removed_upstreams_idle_connections_close(
    origin: Origin, relayed: Relayed, caller: Caller, transport: PooledTransport
) -> None:
    origin.on(b"/x", reply(body=b"fine"))
    relayed()
    assert (await caller.get(b"/relay/o/x")).data == b"fine"
    catalog.publish(catalog.Snapshot(revision=99))
    tick()
    await origin.until_connections(0)
    assert transport.open_pools == 0


async def test_a_pool_that_serves_nobody_for_its_keep_alive_time_goes(
    origin: Origin, relayed: Relayed, caller: Caller, transport: PooledTransport
) -> None:
    origin.on(b"/x", reply(body=b"fine"))
    relayed(keepalive_seconds=0.2)
    assert (await caller.get(b"/relay/o/x")).data == b"fine"
    tick()
    assert transport.open_pools == 1
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(0.25, over.set)
    await over.wait()
    tick()
    assert transport.open_pools == 0
    await origin.until_connections(0)
    assert (await caller.get(b"/relay/o/x")).data == b"fine"


async def test_a_pool_with_an_exchange_is_not_idle_however_long_it_takes(
    origin: Origin, relayed: Relayed, caller: Caller, transport: PooledTransport
) -> None:
    gate = Gate()
    origin.on(b"/long", drip([b"one"], gate))
    relayed(keepalive_seconds=0)
    await caller.send(GET)
    await caller.read_head()
    tick()
    assert transport.open_pools == 1
    gate.open(2)
    assert (await caller.read_body()).data == b"one"
    await until(lambda: tick() or transport.open_pools == 0)


async def test_a_connection_never_serves_another_upstream_at_the_same_address(
    origin: Origin, relayed: Relayed, caller: Caller, transport: PooledTransport
) -> None:
    origin.on(b"/x", reply(body=b"fine"))
    relayed("one")
    relayed("two")
    for slug in (b"one", b"two") * 2:
        assert (await caller.get(b"/relay/%b/x" % slug)).data == b"fine"
    assert origin.connections_made == 2
    assert transport.open_pools == 2


async def test_hundreds_of_edits_leave_one_pool(
    origin: Origin, relayed: Relayed, caller: Caller, transport: PooledTransport
) -> None:
    origin.on(b"/x", reply(body=b"fine"))
    for _ in range(300):
        relayed()
        assert (await caller.get(b"/relay/o/x")).status == 200
    assert transport.open_pools == 1
    await origin.until_connections(1)


@pytest.mark.parametrize(
    ("script", "body"),
    [(reply(body=b"fine"), None), (chunked([b"fi", b"ne"]), None), (reply(204), None), (echo(), b"mirrored")],
    ids=["counted", "chunked", "bodiless", "upload"],
)
async def test_idle_connections_keep_nothing_of_what_they_carried(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller, script: Script, body: bytes | None
) -> None:
    origin.on(b"/x", script)
    relayed()
    kinds = (Entry, Inbound, RelayRequest, SeamRequest, SeamResponse, Wire, relay_exchange.Exchange)
    gc.collect()
    gc.disable()
    try:
        await caller.get(b"/relay/o/x", method=b"PUT" if body else b"GET", body=body)
        await until(lambda: not ground.server.server_state.tasks)
        assert len(ground.server.server_state.connections) == 1
        assert origin.open_connections == 1
        assert not [one for one in gc.get_objects() if isinstance(one, kinds)]
    finally:
        gc.enable()
