"""A connection after 101: bytes both ways at once, each side closed by itself, bounded both ways."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from relay.upstreams.connection import WRITE_BUFFER_BYTES
from relay.upstreams.duplex import DuplexStream
from relay.upstreams.transport import PooledTransport
from relay.upstreams.wire import PIECE_BYTES, READ_BUFFER_BYTES, Wire
from tests.behaviour.conftest import until, until_still
from tests.origin import Exchange, Gate, Origin, Script, patterned, raw, reply
from tests.upstreams.conftest import Seam, emptied

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: tunnel\r\n\r\n"
PAIRS = [(b"connection", b"upgrade"), (b"upgrade", b"tunnel")]
MUCH = 8 * 1024 * 1024


def tunnel(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> Script:
    """Switches, then the rest is between `talk` and the peer; the connection is closed when it returns."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(SWITCH)
        await talk(exchange._reader, exchange._writer)
        await exchange.close()

    return script


@contextlib.asynccontextmanager
async def switched(seam: Seam) -> AsyncIterator[DuplexStream]:
    response = await seam.ask(pairs=PAIRS, upgrade=True)
    try:
        assert response.status_code == 101
        yield response.extensions["network_stream"]
    finally:
        await response.stream.aclose()  # type: ignore[union-attr]


async def read_all(stream: DuplexStream, max_bytes: int = 64 * 1024) -> bytes:
    read = bytearray()
    while piece := await stream.read(max_bytes):
        assert len(piece) <= max_bytes
        read += piece
    return bytes(read)


@contextlib.asynccontextmanager
async def narrow() -> AsyncIterator[tuple[Origin, Seam]]:
    """A seam to an origin whose kernel buffers hold little."""
    async with Origin(buffer_bytes=16 * 1024) as origin, emptied(PooledTransport(), origin) as transport:
        yield origin, Seam(origin, transport)


async def test_bytes_flow_both_ways_at_once() -> None:
    async with narrow() as (origin, seam):

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while piece := await reader.read(64 * 1024):
                writer.write(piece)
                await writer.drain()

        origin.otherwise(tunnel(echo))
        sent = patterned(MUCH)
        async with switched(seam) as stream:

            async def write() -> None:
                for start in range(0, MUCH, 100_000):
                    await stream.write(sent[start : start + 100_000])
                stream.write_eof()

            writing = asyncio.create_task(write())
            assert await read_all(stream) == sent
            await writing


async def test_what_came_with_the_switch_is_read_first(origin: Origin, seam: Seam) -> None:
    origin.otherwise(raw(SWITCH + b"hello"))
    async with switched(seam) as stream:
        assert await read_all(stream) == b"hello"


async def test_a_read_gives_no_more_than_was_asked_for_and_loses_nothing(origin: Origin, seam: Seam) -> None:
    origin.otherwise(raw(SWITCH + patterned(1000)))
    async with switched(seam) as stream:
        assert await stream.read(1) == patterned(1)
        assert await stream.read(3) == patterned(3, offset=1)
        assert await read_all(stream, max_bytes=7) == patterned(996, offset=4)


async def test_a_read_gives_what_there_is_and_does_not_wait_for_more(origin: Origin, seam: Seam) -> None:
    async def ping_pong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(20):
            assert await reader.readexactly(4) == b"ping"
            writer.write(b"pong!")

    origin.otherwise(tunnel(ping_pong))
    async with switched(seam) as stream:
        for _ in range(20):
            await stream.write(b"ping")
            assert await stream.read(1024) == b"pong!"
        assert await stream.read(1024) == b""


async def test_writing_nothing_is_nothing(origin: Origin, seam: Seam) -> None:
    origin.otherwise(raw(SWITCH))
    async with switched(seam) as stream:
        assert await read_all(stream) == b""
        await stream.write(b"")


# Each side closes by itself.


async def test_after_the_upstream_closed_its_side_it_can_still_be_written_to(origin: Origin, seam: Seam) -> None:
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"that is all")
        writer.write_eof()
        received.set_result(await reader.read())

    origin.otherwise(tunnel(half))
    async with switched(seam) as stream:
        assert await read_all(stream) == b"that is all"
        assert await stream.read(10) == b""
        for number in range(5):
            await stream.write(b"%d" % number)
        stream.write_eof()
        assert await received == b"01234"


async def test_after_we_closed_our_side_the_upstream_can_still_be_read(origin: Origin, seam: Seam) -> None:
    async def last_word(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = await reader.read()
        for _ in range(5):
            writer.write(sent)
            await writer.drain()

    origin.otherwise(tunnel(last_word))
    async with switched(seam) as stream:
        await stream.write(b"abc")
        stream.write_eof()
        stream.write_eof()
        assert await read_all(stream) == b"abc" * 5


async def test_what_was_written_before_both_sides_closed_arrives_whole() -> None:
    async with narrow() as (origin, seam):
        gate = Gate()
        received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write_eof()
            await gate.wait()
            received.set_result(await reader.read())

        origin.otherwise(tunnel(slow))
        async with switched(seam) as stream:
            assert await read_all(stream) == b""
            await stream.write(patterned(WRITE_BUFFER_BYTES - 1))
            stream.write_eof()
        gate.open()
        assert await asyncio.wait_for(received, 2) == patterned(WRITE_BUFFER_BYTES - 1)


async def test_an_upstream_that_never_takes_the_last_bytes_does_not_hold_the_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("relay.upstreams.connection.CLOSING_SECONDS", 0.05)
    async with narrow() as (origin, seam):

        async def unread(exchange: Exchange) -> None:
            await exchange.send(SWITCH)
            exchange._writer.write_eof()
            exchange.pause_reading()
            await exchange.closed.wait()

        origin.otherwise(unread)
        async with switched(seam) as stream:
            assert await read_all(stream) == b""
            with pytest.raises(httpx.WriteTimeout):
                await stream.write(patterned(MUCH), timeout=0.05)
            stream.write_eof()
        await origin.until_connections(0)


async def test_closing_in_the_middle_resets_the_connection(origin: Origin, seam: Seam) -> None:
    ends: list[BaseException] = []

    async def script(exchange: Exchange) -> None:
        await exchange.send(SWITCH)
        try:
            await exchange._reader.read()
        except ConnectionError as end:
            ends.append(end)
            raise

    origin.otherwise(script)
    async with switched(seam) as stream:
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(httpx.WriteError):
            await stream.write(b"x")
        with pytest.raises(httpx.ReadError):
            await stream.read(1)
    await until(lambda: ends)
    assert isinstance(ends[0], ConnectionResetError)


async def test_a_read_under_way_ends_when_another_task_closes(origin: Origin, seam: Seam) -> None:
    async def wait(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    origin.otherwise(tunnel(wait))
    async with switched(seam) as stream:
        reading = asyncio.create_task(stream.read(1))
        await until(lambda: stream._wire._waiter is not None)
        await stream.aclose()
        with pytest.raises(httpx.ReadError):
            await asyncio.wait_for(reading, 2)


async def test_a_reset_is_told_to_reader_and_writer(origin: Origin, seam: Seam) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(SWITCH)
        await exchange._reader.readexactly(1)
        exchange.abort()

    origin.otherwise(script)
    async with switched(seam) as stream:
        await stream.write(b"x")
        with pytest.raises(httpx.RemoteProtocolError):
            await stream.read(1)
        with pytest.raises(httpx.WriteError):
            await stream.write(b"x")


async def test_a_reset_is_told_to_who_waits_to_write() -> None:
    async with narrow() as (origin, seam):
        gate = Gate()

        async def script(exchange: Exchange) -> None:
            await exchange.send(SWITCH)
            exchange.pause_reading()
            await gate.wait()
            exchange.abort()

        origin.otherwise(script)
        async with switched(seam) as stream:
            writing = asyncio.create_task(stream.write(patterned(MUCH)))
            await until(lambda: stream._connection._room is not None)
            gate.open()
            with pytest.raises(httpx.WriteError):
                await asyncio.wait_for(writing, 2)


# Bounds and time.


async def test_a_reader_that_does_not_read_stops_the_upstream() -> None:
    async with narrow() as (origin, seam):

        async def much(exchange: Exchange) -> None:
            await exchange.send(SWITCH)
            for offset in range(0, 3 * MUCH, 64 * 1024):
                await exchange.send(patterned(64 * 1024, offset=offset))
            await exchange.close()

        origin.otherwise(much)
        async with switched(seam) as stream:
            sent = await until_still(lambda: origin.exchanges[0].sent)
            assert sent < 3 * MUCH
            assert stream._wire._held <= READ_BUFFER_BYTES + 256 * 1024 + 2 * PIECE_BYTES
            assert await read_all(stream) == patterned(3 * MUCH)


async def test_a_read_that_timed_out_may_be_tried_again(origin: Origin, seam: Seam) -> None:
    seam.rules(idle_timeout_seconds=0.2)
    gate = Gate()

    async def late(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(b"late")

    origin.otherwise(tunnel(late))
    async with switched(seam) as stream:
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                await stream.read(10, timeout=0.02)
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(0.3, over.set)
        # Nobody reads now, so there is no silence to speak of.
        await over.wait()
        gate.open()
        assert await stream.read(10, timeout=2) == b"late"


async def test_an_upstream_that_says_nothing_is_given_up_after_the_idle_time_out(origin: Origin, seam: Seam) -> None:
    seam.rules(idle_timeout_seconds=0.05)

    async def wait(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    origin.otherwise(tunnel(wait))
    async with switched(seam) as stream:
        with pytest.raises(httpx.ReadTimeout):
            await stream.read(1)
    await origin.until_connections(0)


async def test_what_is_written_counts_against_silence(origin: Origin, seam: Seam) -> None:
    seam.rules(idle_timeout_seconds=0.8)

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"heard %d" % len(await reader.readexactly(10)))

    origin.otherwise(tunnel(listen))
    async with switched(seam) as stream:
        reading = asyncio.create_task(stream.read(100))
        for _ in range(10):
            over = asyncio.Event()
            asyncio.get_running_loop().call_later(0.1, over.set)
            await over.wait()
            await stream.write(b"x")
        assert await reading == b"heard 10"


async def test_a_write_that_timed_out_may_be_followed_by_another() -> None:
    async with narrow() as (origin, seam):
        gate = Gate()
        received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def late(exchange: Exchange) -> None:
            await exchange.send(SWITCH)
            exchange.pause_reading()
            await gate.wait()
            exchange.resume_reading()
            received.set_result(await exchange._reader.read())
            await exchange.close()

        origin.otherwise(late)
        async with switched(seam) as stream:
            with pytest.raises(httpx.WriteTimeout):
                await stream.write(patterned(MUCH), timeout=0.05)
            # What was handed over is on its way; only the waiting was given up.
            following = asyncio.create_task(stream.write(b"and more"))
            await asyncio.sleep(0)
            gate.open()
            await following
            stream.write_eof()
            assert await read_all(stream) == b""
            assert await received == patterned(MUCH) + b"and more"


# What the seam makes of it.


async def test_a_switched_connection_is_never_used_again(origin: Origin, seam: Seam) -> None:
    origin.on(b"/", raw(SWITCH))
    origin.on(b"/next", reply())
    async with switched(seam) as stream:
        assert await read_all(stream) == b""
    assert seam.pool.idle_connections == 0
    await seam.get(b"/next")
    assert [request.connection for request in origin.requests] == [1, 2]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"pairs": PAIRS},
        {"method": "POST", "pairs": [*PAIRS, (b"transfer-encoding", b"chunked")], "upgrade": True, "body": "endless"},
    ],
    ids=["nobody asked", "the extension is missing", "in the middle of a body"],
)
async def test_a_switch_out_of_turn_is_a_breach_of_the_protocol(
    origin: Origin, seam: Seam, given: dict[str, Any]
) -> None:
    async def switch(exchange: Exchange) -> None:
        await exchange.send(SWITCH)
        await exchange.closed.wait()

    async def endless() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.Event().wait()

    origin.otherwise(switch)
    if "body" in given:
        given = given | {"body": endless()}
    with pytest.raises(httpx.RemoteProtocolError):
        await seam.get(**given)
    await origin.until_connections(0)


async def test_who_was_not_switched_gets_an_answer_as_ever(origin: Origin, seam: Seam) -> None:
    origin.otherwise(reply(426, [(b"Upgrade", b"other")], b"no"))
    answer = await seam.get(pairs=PAIRS, upgrade=True)
    assert (answer.status, answer.body) == (426, b"no")
    await seam.get()
    assert origin.connections_made == 1


async def test_the_stream_knows_its_socket(origin: Origin, seam: Seam) -> None:
    origin.otherwise(raw(SWITCH, then="keep"))
    async with switched(seam) as stream:
        assert stream.get_extra_info("server_addr") == (origin.host, origin.port)
        assert stream.get_extra_info("client_addr")[0] == "127.0.0.1"
        assert stream.get_extra_info("socket").fileno() >= 0
        assert stream.get_extra_info("ssl_object") is None
        assert stream.get_extra_info("nothing") is None
        assert isinstance(stream._wire, Wire)
        await stream.aclose()
        await origin.until_connections(0)
        assert stream.get_extra_info("server_addr") is None
