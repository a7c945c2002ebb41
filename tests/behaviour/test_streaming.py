"""Answers pass as they arrive, at the caller's pace, whatever their framing."""

from __future__ import annotations

import pytest

from tests.behaviour.conftest import Relayed, until_still
from tests.caller import Caller, Ended, request_bytes
from tests.origin import (
    Exchange,
    Gate,
    Origin,
    chunked,
    counted,
    drip,
    head_bytes,
    patterned,
    patterned_sha256,
    raw,
    sse,
)
from tests.serving_ground import Ground

MIB = 1024 * 1024
IN_FLIGHT_BYTES = 12 * MIB
"""What may be under way between a fast origin and a caller who stopped reading, in the kernel and in the relay."""


async def test_an_event_reaches_the_caller_before_the_next_one_is_sent(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    gate = Gate()
    relayed()
    origin.on(b"/events", sse(gate))
    await caller.send(request_bytes(b"/relay/o/events", host=b"localhost"))
    head = await caller.read_head()
    assert head.values(b"content-type") == [b"text/event-stream"]
    for number in range(1, 20):
        gate.open()
        assert await caller.read_chunk() == b"data: %d\n\n" % number


async def test_a_line_of_ndjson_reaches_the_caller_before_the_next_one_is_sent(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    gate = Gate()
    lines = [b'{"line": %d}\n' % number for number in range(5)]
    relayed()
    origin.on(b"/lines", drip(lines, gate, headers=[(b"Content-Type", b"application/x-ndjson")]))
    await caller.send(request_bytes(b"/relay/o/lines", host=b"localhost"))
    await caller.read_head()
    for line in lines:
        gate.open()
        assert await caller.read_chunk() == line
    gate.open()
    assert await caller.read_chunk() == b""
    assert caller.ended is Ended.CHUNKED


async def test_a_counted_body_arrives_piece_by_piece_and_keeps_its_length(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    gate = Gate()

    async def script(exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, [(b"Content-Length", b"15")]))
        for piece in (b"first", b"secon", b"third"):
            await gate.wait()
            await exchange.send(piece)

    relayed()
    origin.on(b"/counted", script)
    await caller.send(request_bytes(b"/relay/o/counted", host=b"localhost"))
    head = await caller.read_head()
    assert head.values(b"content-length") == [b"15"]
    assert not head.values(b"transfer-encoding")
    for piece in (b"first", b"secon", b"third"):
        gate.open()
        assert await caller.read_chunk() == piece
    assert caller.ended is Ended.COUNTED


async def test_a_chunked_body_arrives_whole_and_chunked(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    pieces = [patterned(size) for size in (1, 10, 100_000, 65_536, 3)]
    relayed()
    origin.on(b"/chunked", chunked(pieces))
    answer = await caller.get(b"/relay/o/chunked")
    assert answer.data == b"".join(pieces)
    assert answer.body.ended is Ended.CHUNKED


async def test_a_body_that_ends_with_its_connection_becomes_chunked(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    origin.on(b"/old", raw(b"HTTP/1.1 200 OK\r\n\r\n" + patterned(100_000)))
    answer = await caller.get(b"/relay/o/old")
    assert answer.data == patterned(100_000)
    assert answer.body.ended is Ended.CHUNKED
    assert (await caller.get(b"/relay/o/old")).data == patterned(100_000), "the caller's connection lives on"


async def test_a_body_of_nothing_ends_at_once(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/none", chunked([]))
    answer = await caller.get(b"/relay/o/none")
    assert (answer.status, answer.data, answer.body.ended) == (200, b"", Ended.CHUNKED)


@pytest.mark.parametrize("framing", ["counted", "chunked"])
async def test_a_caller_who_stops_reading_stops_the_origin_and_reading_on_gets_the_rest(
    origin: Origin, relayed: Relayed, ground: Ground, framing: str
) -> None:
    total = 48 * MIB

    async def in_chunks(exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, [(b"Transfer-Encoding", b"chunked")]))
        for offset in range(0, total, MIB):
            await exchange.send_chunk(patterned(MIB, offset=offset))
        await exchange.send_chunk(b"")

    relayed()
    origin.on(b"/much", counted(total, MIB) if framing == "counted" else in_chunks)
    async with Caller(ground.port, buffer_bytes=64 * 1024) as slow:
        await slow.send(request_bytes(b"/relay/o/much", host=b"localhost"))
        await slow.read_head()
        exchange = await origin.next_exchange()
        await until_still(lambda: exchange.sent)
        assert exchange.sent < IN_FLIGHT_BYTES
        body = await slow.read_body(keep=False)
    assert body.length == total
    assert body.ended.cleanly
    assert body.sha256 == patterned_sha256(total)


async def test_one_slow_reader_holds_nobody_else_up(origin: Origin, relayed: Relayed, ground: Ground) -> None:
    relayed()
    origin.on(b"/much", counted(32 * MIB, MIB))
    origin.on(b"/little", counted(1000))
    async with Caller(ground.port, buffer_bytes=64 * 1024) as slow, Caller(ground.port) as quick:
        await slow.send(request_bytes(b"/relay/o/much", host=b"localhost"))
        await slow.read_head()
        exchange = await origin.next_exchange()
        await until_still(lambda: exchange.sent)
        for _ in range(20):
            assert (await quick.get(b"/relay/o/little")).data == patterned(1000)
