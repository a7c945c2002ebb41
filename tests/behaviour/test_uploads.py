"""Request bodies pass as they arrive, at the upstream's pace, and only after the decision to let them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import AsyncIterator
from typing import Literal

import httpx
import pytest

from relay.catalog import Upstream
from relay.upstreams import bulkheads
from relay.upstreams.transport import PooledTransport
from tests.behaviour.conftest import LOOPBACK, Relayed, until_still
from tests.caller import Caller, Ended, request_bytes
from tests.origin import (
    RESET_ON_CLOSE,
    Exchange,
    Gate,
    HeaderPairs,
    Origin,
    Received,
    early,
    echo,
    patterned,
    patterned_sha256,
    reply,
    upload_sink,
)
from tests.serving_ground import Ground

MIB = 1024 * 1024
IN_FLIGHT_BYTES = 12 * MIB
EXPECTING = (b"Expect", b"100-continue")
FRAMINGS: list[HeaderPairs] = [[(b"Content-Length", b"%d" % (3 * MIB))], [(b"Transfer-Encoding", b"chunked")]]


def framing_of(request: Received) -> list[tuple[bytes, bytes]]:
    return [pair for pair in request.headers if pair[0].lower() in (b"content-length", b"transfer-encoding")]


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 3 * MIB + 1])
async def test_a_counted_body_reaches_the_origin_whole_and_counted(
    origin: Origin, relayed: Relayed, caller: Caller, size: int
) -> None:
    relayed()
    origin.on(b"/take", echo())
    answer = await caller.get(b"/relay/o/take", method=b"POST", body=patterned(size))
    assert json.loads(answer.data)["body_sha256"] == patterned_sha256(size)
    assert framing_of(await origin.next_request()) == [(b"content-length", b"%d" % size)]


async def test_a_chunked_body_reaches_the_origin_whole_and_chunked(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    pieces = [patterned(size) for size in (1, 100_000, 7, 2 * MIB, 65_536)]
    relayed()
    origin.on(b"/take", echo())
    answer = await caller.get(b"/relay/o/take", method=b"PUT", body=pieces)
    assert json.loads(answer.data)["body_sha256"] == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert framing_of(await origin.next_request()) == [(b"transfer-encoding", b"chunked")]


async def test_an_empty_chunked_body_stays_chunked(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/take", echo())
    answer = await caller.get(b"/relay/o/take", method=b"POST", body=[])
    assert json.loads(answer.data)["body_length"] == 0
    assert framing_of(await origin.next_request()) == [(b"transfer-encoding", b"chunked")]


async def test_a_length_of_zero_is_told_and_none_is_not_invented(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    origin.on(b"/take", reply())
    await caller.get(b"/relay/o/take", method=b"POST", body=b"")
    assert framing_of(await origin.next_request()) == [(b"content-length", b"0")]
    for method in (b"POST", b"GET", b"DELETE"):
        await caller.get(b"/relay/o/take", method=method)
        assert framing_of(await origin.next_request()) == []


async def test_a_body_on_a_get_is_carried(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/search", echo())
    answer = await caller.get(b"/relay/o/search", body=b'{"query": 1}')
    assert json.loads(answer.data)["body_length"] == 12


@pytest.mark.parametrize("counted", [True, False])
async def test_a_piece_reaches_the_origin_before_the_next_one_is_sent(
    origin: Origin, relayed: Relayed, caller: Caller, counted: bool
) -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(exchange: Exchange) -> None:
        while piece := await exchange.read_some():
            arrived.put_nowait(piece)
        await exchange.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(10):
            yield b"piece %d" % number
            async with asyncio.timeout(2):
                assert await arrived.get() == b"piece %d" % number

    relayed()
    origin.on(b"/take", script)
    if counted:
        await caller.send(
            request_bytes(b"/relay/o/take", [(b"Content-Length", b"70")], method=b"POST", host=b"localhost")
        )
        async for piece in pieces():
            await caller.send(piece)
        assert (await caller.read_head()).status == 204
    else:
        assert (await caller.get(b"/relay/o/take", method=b"POST", body=pieces())).status == 204


async def test_an_origin_that_stops_reading_stops_the_caller_and_reading_on_gets_the_rest(
    origin: Origin, relayed: Relayed, ground: Ground
) -> None:
    gate = Gate()
    total = 48 * MIB
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for offset in range(0, total, 65_536):
            yield patterned(65_536, offset=offset)
            sent += 65_536

    async def script(exchange: Exchange) -> None:
        exchange.pause_reading()
        await gate.wait()
        exchange.resume_reading()
        await upload_sink()(exchange)

    relayed()
    origin.on(b"/take", script)
    async with Caller(ground.port, buffer_bytes=64 * 1024, deadline_seconds=15) as caller:
        answering = asyncio.create_task(caller.get(b"/relay/o/take", method=b"POST", body=pieces()))
        request = await origin.next_request()
        await until_still(lambda: sent)
        assert 0 < sent < IN_FLIGHT_BYTES
        gate.open()
        assert (await answering).data == b"%d" % total
    assert request.body_sha256 == patterned_sha256(total)


# Before the decision nothing is read.


REFUSALS = [
    pytest.param(b"/relay/nobody/x", {}, 404, id="unknown"),
    pytest.param(b"/relay/o/x", {"methods": frozenset({"GET"})}, 405, id="method"),
    pytest.param(b"/relay/o/x", {"open_to_anyone": False}, 401, id="key"),
    pytest.param(b"/relay/o/../x", {}, 400, id="path"),
    pytest.param(b"/relay/o/x", {"max_request_bytes": 999}, 413, id="size"),
    pytest.param(b"/relay/o/x", {"max_concurrent": 0, "max_queued": 0}, 503, id="full"),
]


@pytest.mark.parametrize(("path", "fields", "status"), REFUSALS)
async def test_who_may_not_send_is_not_told_to_go_on(
    origin: Origin, relayed: Relayed, caller: Caller, path: bytes, fields: dict[str, object], status: int
) -> None:
    relayed(**fields)
    head = request_bytes(path, [EXPECTING, (b"Content-Length", b"1000")], method=b"POST", host=b"localhost")
    await caller.send(head)
    answer = await caller.read_head()
    assert answer.status == status
    assert answer.values(b"connection") == [b"close"]
    await caller.read_body()
    caller.close()
    assert origin.connections_made == 0


async def test_who_may_send_is_told_to_go_on_and_then_answered(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    origin.on(b"/take", upload_sink())
    head = request_bytes(b"/relay/o/take", [EXPECTING, (b"Content-Length", b"5")], method=b"POST", host=b"localhost")
    await caller.send(head)
    assert (await caller.read_head()).status == 100
    assert await origin.next_request()
    await caller.send(b"hello")
    assert (await caller.read_head()).status == 200
    assert (await caller.read_body()).data == b"5"


@pytest.mark.parametrize(("path", "fields", "status"), REFUSALS)
async def test_a_refusal_reaches_a_caller_who_sends_first_and_reads_later(
    origin: Origin, relayed: Relayed, caller: Caller, path: bytes, fields: dict[str, object], status: int
) -> None:
    relayed(**fields)
    await caller.send(request_bytes(path, method=b"POST", host=b"localhost", body=bytes(MIB)) + bytes(MIB))
    assert (await caller.read_head()).status == status
    assert (await caller.read_body()).ended is Ended.COUNTED
    assert origin.connections_made == 0


async def test_a_refusal_leaves_the_connection_open_when_there_is_no_body(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    origin.on(b"/x", reply())
    assert (await caller.get(b"/relay/nobody/x")).status == 404
    assert (await caller.get(b"/relay/o/x")).status == 200


# Bounds, while streaming.


async def test_a_body_over_the_bound_is_cut_off_and_the_caller_told_while_still_sending(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(max_request_bytes=MIB)
    origin.on(b"/take", upload_sink())
    asked_for = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked_for
        while True:
            asked_for += 65_536
            yield bytes(65_536)

    answer = await caller.get(b"/relay/o/take", method=b"POST", body=endless())
    assert answer.status == 413
    assert json.loads(answer.data)["type"] == "urn:relay:error:request-too-large"
    assert answer.values(b"connection") == [b"close"]
    exchange = await origin.next_exchange()
    await asyncio.wait_for(exchange.closed.wait(), 1)
    assert exchange.head.body_length <= MIB
    assert not exchange.head.body_is_whole


async def test_a_body_of_just_the_bound_passes(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(max_request_bytes=MIB)
    origin.on(b"/take", upload_sink())
    assert (await caller.get(b"/relay/o/take", method=b"POST", body=bytes(MIB))).data == b"%d" % MIB
    assert (await caller.get(b"/relay/o/take", method=b"POST", body=[bytes(MIB)])).data == b"%d" % MIB


async def test_slot_and_upstream_are_given_back_before_the_rest_of_a_refused_body_is_waited_for(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(max_request_bytes=10)
    origin.on(b"/take", upload_sink())
    head = request_bytes(b"/relay/o/take", [(b"Transfer-Encoding", b"chunked")], method=b"POST", host=b"localhost")
    await caller.send(head + b"14\r\n01234567890123456789\r\n")
    assert (await caller.read_head()).status == 413
    await caller.read_body()
    assert not bulkheads.slots
    await origin.until_connections(0)


# An answer that does not wait for the body's end.


@pytest.mark.parametrize("then", ["read", "hold", "close"])
@pytest.mark.parametrize("after_bytes", [0, 1, 300_000])
@pytest.mark.parametrize("counted", [True, False])
async def test_an_early_answer_reaches_the_caller(
    origin: Origin,
    relayed: Relayed,
    caller: Caller,
    then: Literal["read", "hold", "close"],
    after_bytes: int,
    counted: bool,
) -> None:
    relayed()
    origin.on(b"/take", early(422, body=b"not this", after_bytes=after_bytes, then=then))
    body = bytes(3 * MIB)
    answer = await caller.get(b"/relay/o/take", method=b"POST", body=body if counted else [body])
    assert (answer.status, answer.data) == (422, b"not this")


@pytest.mark.parametrize("attempt", range(5))
async def test_an_early_answer_survives_the_reset_that_follows_it(
    origin: Origin, relayed: Relayed, caller: Caller, attempt: int
) -> None:
    async def script(exchange: Exchange) -> None:
        while exchange.head.body_length < 200_000:
            await exchange.read_some()
        await exchange.send(b"HTTP/1.1 422 No\r\nContent-Length: 8\r\n\r\nnot this")
        exchange.abort()

    relayed()
    origin.on(b"/take", script)
    answer = await caller.get(b"/relay/o/take", method=b"POST", body=[bytes(65_536)] * 200)
    assert (answer.status, answer.data) == (422, b"not this")


async def test_an_answer_that_came_before_the_reset_is_heard_though_a_write_met_the_reset_first() -> None:
    """The second piece is written without the loop having looked at the socket since answer and reset arrived."""
    may_answer, has_reset = threading.Event(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def answer_and_reset() -> None:
        link, _ = listener.accept()
        with link:
            link.recv(65_536)
            may_answer.wait(5)
            link.sendall(b"HTTP/1.1 422 No\r\nContent-Length: 8\r\n\r\nnot this")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        has_reset.set()

    class Pieces(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"first"
            may_answer.set()
            assert has_reset.wait(5)
            for _ in range(10):
                yield bytes(65_536)

    port = listener.getsockname()[1]
    upstream = Upstream(
        slug="o",
        revision=1,
        scheme="http",
        host="127.0.0.1",
        port=port,
        authority=b"o",
        base_path=b"",
        allowed_networks=LOOPBACK,
    )
    request = httpx.Request(
        "POST",
        "http://upstream.invalid/",
        headers=[(b"host", b"o"), (b"transfer-encoding", b"chunked")],
        stream=Pieces(),
        extensions={"upstream": upstream, "target": b"/take"},
    )
    answering = threading.Thread(target=answer_and_reset)
    answering.start()
    async with PooledTransport() as transport:
        response = await transport.handle_async_request(request)
        assert response.status_code == 422
        assert await response.aread() == b"not this"
        assert transport.open_exchanges == 0
    answering.join()
    listener.close()


async def test_a_conversation_goes_on_both_ways_at_once(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while piece := await exchange.read_some():
            await exchange.send_chunk(piece.upper())
        await exchange.send_chunk(b"")

    relayed()
    origin.on(b"/talk", script)
    await caller.send(
        request_bytes(b"/relay/o/talk", [(b"Transfer-Encoding", b"chunked")], method=b"POST", host=b"localhost")
    )
    assert (await caller.read_head()).status == 200
    for word in (b"hello", b"and", b"goodbye"):
        await caller.send(b"%x\r\n%b\r\n" % (len(word), word))
        assert await caller.read_chunk() == word.upper()
    await caller.send(b"0\r\n\r\n")
    assert await caller.read_chunk() == b""
    assert caller.ended is Ended.CHUNKED
