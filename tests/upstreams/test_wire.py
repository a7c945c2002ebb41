"""One exchange over real sockets: the bytes that go out, what is made of what comes back, and when it is given up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from relay.upstreams import backlog, faults
from relay.upstreams import wire as wire_room
from relay.upstreams.connection import WRITE_BUFFER_BYTES, Connection
from relay.upstreams.transport import PooledTransport
from relay.upstreams.wire import READ_BUFFER_BYTES, Wire
from tests.behaviour.conftest import seconds, until, until_still, upstream_at
from tests.origin import (
    RESET_ON_CLOSE,
    Exchange,
    Gate,
    Origin,
    chunked,
    counted,
    drip,
    early,
    hang,
    head_bytes,
    patterned,
    raw,
    reply,
    truncate,
)
from tests.upstreams.conftest import Seam, chunked_body, counted_body, emptied, pieces, whole

ONE_READ_BYTES = 256 * 1024
"""What either loop takes from a socket at once."""
SMALL_BUFFERS = 16 * 1024
PIECE = patterned(8 * 1024)
CHUNKED = [(b"transfer-encoding", b"chunked")]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def wire_of(response: httpx.Response) -> Wire:
    assert isinstance(response.stream, Wire)
    return response.stream


def the_connection(seam: Seam) -> Connection:
    (connection,) = seam.pool._connections
    return connection


def unsent_bytes(seam: Seam) -> int:
    transport = the_connection(seam).transport
    assert transport is not None
    return transport.get_write_buffer_size()


@contextlib.asynccontextmanager
async def narrow() -> AsyncIterator[tuple[Origin, Seam]]:
    """A seam to an origin whose kernel buffers hold little."""
    async with Origin(buffer_bytes=SMALL_BUFFERS) as origin, emptied(PooledTransport(), origin) as transport:
        yield origin, Seam(origin, transport)


async def is_reused(seam: Seam, origin: Origin) -> bool:
    """Whether the next request goes out on the connection of the last one."""
    origin.on(b"/next", reply())
    before = origin.requests[-1].connection
    await seam.get(b"/next")
    return origin.requests[-1].connection == before


class Body:
    """A caller's body of which a test says when the next piece is there; knows how much was asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self.is_over = False
        self._pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    def give(self, *given: bytes | Exception | None) -> None:
        for piece in given:
            self._pieces.put_nowait(piece)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self.asked += 1
                piece = await self._pieces.get()
                if piece is None:
                    return
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.is_over = True


class Endless:
    """A caller's body that has always more; knows how much was taken."""

    def __init__(self, piece: bytes = PIECE) -> None:
        self.taken = 0
        self.is_over = False
        self._piece = piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self.taken += len(self._piece)
                yield self._piece
        finally:
            self.is_over = True


# What goes out.


async def test_the_head_goes_out_byte_for_byte(origin: Origin, seam: Seam) -> None:
    origin.otherwise(reply())
    pairs = [(b"X-Two", b"1"), (b"x-tWO", b"2"), (b"X-Byte", b"a \xff b"), (b"X-Empty", b"")]
    await seam.get(b"/a%2Fb//c;x?q=%zz&q=\xe9", method="BrEw", pairs=pairs)
    assert origin.requests[0].raw_head == (
        b"BrEw /a%2Fb//c;x?q=%zz&q=\xe9 HTTP/1.1\r\nhost: o\r\n"
        b"X-Two: 1\r\nx-tWO: 2\r\nX-Byte: a \xff b\r\nX-Empty: \r\n\r\n"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (counted_body, b"abcdefghijklm"),
        (chunked_body, b"3\r\nabc\r\na\r\ndefghijklm\r\n0\r\n\r\n"),
    ],
)
async def test_the_body_goes_out_piece_by_piece_in_its_framing(
    origin: Origin, seam: Seam, given: Any, expected: bytes
) -> None:
    seen = b""

    async def record(exchange: Exchange) -> None:
        nonlocal seen
        seen = await exchange._reader.readexactly(len(expected))
        exchange.head.body_is_whole = True
        await exchange.send(OK)

    origin.otherwise(record)
    # Empty pieces leave no trace; a chunk of no bytes would end the body.
    await seam.get(**given(b"", b"abc", b"", b"defghijklm", b""))
    assert seen == expected
    assert await is_reused(seam, origin)


async def test_requests_as_httpx_makes_them_are_carried_too(origin: Origin, seam: Seam) -> None:
    origin.otherwise(reply(body=b"ok"))
    extensions = {"upstream": seam.upstream, "target": b"/"}
    for content, framing in (
        (None, (b"Content-Length", b"0")),
        (b"abc", (b"Content-Length", b"3")),
        (pieces(b"ab", b"c"), (b"Transfer-Encoding", b"chunked")),
    ):
        request = httpx.Request("POST", "http://o/", content=content, extensions=extensions)
        assert (await whole(await seam.transport.handle_async_request(request))).body == b"ok"
        received = origin.requests[-1]
        assert framing in received.headers
        assert received.body == (b"" if content is None else b"abc")
    assert origin.connections_made == 1


async def test_a_body_without_framing_is_not_sent(origin: Origin, seam: Seam) -> None:
    origin.otherwise(reply())
    with pytest.raises(httpx.LocalProtocolError):
        await seam.get(method="POST", body=pieces(b"GET / HTTP/1.1\r\n\r\n"))
    assert origin.requests == []


@pytest.mark.parametrize("body", [(b"ab", b"cd"), (b"abcd",), (b"abc", b"d"), (b"a",), ()])
async def test_a_body_of_another_length_than_announced_resets_the_connection(
    origin: Origin, seam: Seam, body: tuple[bytes, ...]
) -> None:
    ends: list[BaseException] = []

    async def read(exchange: Exchange) -> None:
        try:
            await exchange.read_body()
            # What exceeds it came after the last byte that was announced.
            assert body == (b"abc", b"d")
            await exchange._reader.read()
        except ConnectionError as end:
            ends.append(end)
            raise

    origin.otherwise(read)
    with pytest.raises(httpx.LocalProtocolError):
        await seam.get(**counted_body(*body, length=3))
    await origin.until_connections(0)
    # There is nothing to see where the reset came before the head was read.
    await until(lambda: len(ends) == len(origin.requests))
    assert all(isinstance(end, ConnectionResetError) for end in ends)
    assert all(request.body in (None, b"abc") for request in origin.requests)


async def test_what_the_body_fails_with_reaches_whoever_reads_the_answer(origin: Origin, seam: Seam) -> None:
    origin.otherwise(hang())
    body = Body()
    body.give(b"a", LookupError("the caller went"))
    with pytest.raises(LookupError, match="the caller went"):
        await seam.get(method="POST", pairs=CHUNKED, body=body)
    await origin.until_connections(0)


# Who has to wait.


async def test_an_upstream_that_does_not_read_stops_the_callers_body() -> None:
    async with narrow() as (origin, seam):
        gate = Gate()
        total = 0

        async def read_late(exchange: Exchange) -> None:
            nonlocal total
            exchange.pause_reading()
            await gate.wait()
            exchange.resume_reading()
            while await exchange.read_some():
                pass
            await exchange.send(OK)

        origin.otherwise(read_late)
        may_end = False

        async def much() -> AsyncIterator[bytes]:
            nonlocal total
            while not may_end:
                piece = patterned(len(PIECE), offset=total)
                total += len(piece)
                yield piece

        asking = asyncio.create_task(seam.get(method="POST", pairs=CHUNKED, body=much()))
        await origin.next_exchange()
        await until_still(lambda: total)
        framing = 2 * len(b"2000\r\n\r\n")
        assert 0 < unsent_bytes(seam) <= WRITE_BUFFER_BYTES + len(PIECE) + framing
        may_end = True
        gate.open()
        assert (await asking).body == b"ok"
        assert origin.requests[0].body_length == total


async def test_a_reader_that_does_not_read_stops_the_upstream() -> None:
    async with narrow() as (origin, seam):
        total = 24 * 1024 * 1024
        origin.otherwise(counted(total))
        response = await seam.ask()
        wire, exchange = wire_of(response), origin.exchanges[0]
        await until_still(lambda: exchange.sent)
        assert READ_BUFFER_BYTES <= wire._held <= READ_BUFFER_BYTES + ONE_READ_BYTES + 2 * wire_room.PIECE_BYTES
        assert exchange.sent < total
        transport = the_connection(seam).transport
        assert transport is not None
        assert not transport.is_reading()
        seen, most = 0, 0
        async for piece in wire:
            assert piece == patterned(len(piece), offset=seen)
            seen += len(piece)
            most = max(most, wire._held)
        assert seen == total
        assert most <= READ_BUFFER_BYTES + ONE_READ_BYTES + 2 * wire_room.PIECE_BYTES
        assert await is_reused(seam, origin)


async def test_once_all_hold_much_each_holds_one_small_read_and_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.upstreams.backlog.AMPLE_BYTES", -1)
    before = backlog.held_bytes()
    async with narrow() as (origin, seam):
        total = 4 * 1024 * 1024
        origin.otherwise(counted(total))
        responses = [await seam.ask() for _ in range(3)]
        bound = backlog.SMALL_READ_BYTES + 2 * wire_room.PIECE_BYTES
        for exchange in origin.exchanges:
            await until_still(lambda exchange=exchange: exchange.sent)  # type: ignore[misc]
        assert 0 < backlog.held_bytes() - before <= len(responses) * bound
        seen = 0
        async for piece in wire_of(responses[0]):
            assert wire_of(responses[0])._held + len(piece) <= bound
            seen += len(piece)
        assert seen == total
        for response in responses:
            wire_of(response).close()
        assert backlog.held_bytes() == before


async def test_tiny_chunks_are_counted_with_what_they_cost() -> None:
    async with narrow() as (origin, seam):
        number = 500_000

        async def tiny(exchange: Exchange) -> None:
            await exchange.send(head_bytes(200, [(b"Transfer-Encoding", b"chunked")]))
            for _ in range(number // 1000):
                await exchange.send(b"1\r\na\r\n" * 1000)
            await exchange.send_chunk(b"")

        origin.otherwise(tiny)
        response = await seam.ask()
        wire = wire_of(response)
        await until_still(lambda: origin.exchanges[0].sent)
        fit = READ_BUFFER_BYTES // wire_room.PIECE_BYTES + ONE_READ_BYTES // len(b"1\r\na\r\n")
        assert len(wire._queue) <= fit
        assert (await whole(response)).body == b"a" * number


async def test_the_connection_is_free_as_soon_as_the_answer_is_there_though_nobody_read_it(
    origin: Origin, seam: Seam
) -> None:
    seam.rules(max_connections=1)
    origin.on(b"/body", reply(body=b"x" * 100_000))
    response = await seam.ask(b"/body")
    await until(lambda: seam.pool.idle_connections == 1)
    assert await is_reused(seam, origin)
    assert (await whole(response)).body == b"x" * 100_000


async def test_one_that_was_paused_reads_on_for_the_next_exchange(origin: Origin, seam: Seam) -> None:
    origin.on(b"/body", counted(READ_BUFFER_BYTES + 1000))
    response = await seam.ask(b"/body")
    connection = the_connection(seam)
    await until(lambda: seam.pool.idle_connections == 1 or not connection._is_reading)
    assert len((await whole(response)).body) == READ_BUFFER_BYTES + 1000
    assert await is_reused(seam, origin)


# Answers that end with their head.


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 404 Not Found\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nX: 1\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
async def test_an_answer_without_a_body_ends_with_its_head(
    origin: Origin, seam: Seam, method: str, answer: bytes
) -> None:
    origin.otherwise(raw(answer, then="keep"))
    answered = await seam.get(method=method)
    assert answered.body == b""
    assert answered.status == int(answer.split(b"HTTP/1.1 ")[-1][:3])
    assert await is_reused(seam, origin)


# Interim answers and Expect.


async def test_interim_answers_but_100_are_told_at_once(origin: Origin, seam: Seam) -> None:
    gate = Gate()

    async def hint(exchange: Exchange) -> None:
        await exchange.send(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\nlink: </b>\r\n\r\n"
        )
        await gate.wait()
        await exchange.send(b"HTTP/1.1 103 Early Hints\r\nlink: </c>\r\n\r\n" + OK)

    origin.otherwise(hint)
    told: asyncio.Queue[Any] = asyncio.Queue()
    asking = asyncio.create_task(seam.get(interim=lambda status, pairs: told.put_nowait((status, pairs))))
    assert await told.get() == (103, [(b"link", b"</a>"), (b"link", b"</b>")])
    gate.open()
    assert await told.get() == (103, [(b"link", b"</c>")])
    assert (await asking).body == b"ok"
    assert told.empty()


EXPECT = [*CHUNKED, (b"expect", b"100-continue")]


async def test_a_body_waits_for_100(origin: Origin, seam: Seam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_room, "CONTINUE_SECONDS", 30)
    gate, body = Gate(), Body()

    async def go_on_late(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await gate.wait()
        await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await exchange.read_body()
        await exchange.send(OK)

    origin.otherwise(go_on_late)
    hinted = asyncio.Event()
    asking = asyncio.create_task(seam.get(method="POST", pairs=EXPECT, body=body, interim=lambda *_: hinted.set()))
    await hinted.wait()
    assert body.asked == 0
    gate.open()
    body.give(b"abc", None)
    assert (await asking).body == b"ok"
    assert origin.requests[0].body == b"abc"
    assert await is_reused(seam, origin)


async def test_a_body_goes_out_when_100_does_not_come(
    origin: Origin, seam: Seam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_room, "CONTINUE_SECONDS", 0.02)
    origin.otherwise(reply(body=b"ok"))
    assert (await seam.get(method="POST", pairs=EXPECT, body=pieces(b"abc"))).body == b"ok"
    assert origin.requests[0].body == b"abc"
    assert await is_reused(seam, origin)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("status", [200, 302, 417])
async def test_a_final_answer_instead_of_100_means_that_the_body_is_never_asked_for(
    origin: Origin, seam: Seam, monkeypatch: pytest.MonkeyPatch, status: int, at_once: bool
) -> None:
    monkeypatch.setattr(wire_room, "CONTINUE_SECONDS", 30)
    body, gate = Body(), Gate()
    body.give(b"abc", None)

    async def answer(exchange: Exchange) -> None:
        await exchange.send(head_bytes(status, [(b"Content-Length", b"4")]) + (b"done" if at_once else b"do"))
        if not at_once:
            await gate.wait()
            await exchange.send(b"ne")
        await exchange.closed.wait()

    origin.otherwise(answer)
    response = await seam.ask(method="POST", pairs=EXPECT, body=body)
    assert response.status_code == status
    gate.open()
    assert (await whole(response)).body == b"done"
    assert (body.asked, origin.requests[0].body_length) == (0, 0)
    assert not await is_reused(seam, origin)


# Trailers.


async def test_trailers_are_there_once_the_body_has_ended(origin: Origin, seam: Seam) -> None:
    gate = Gate()

    async def script(exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, CHUNKED) + b"3\r\nabc\r\n")
        await gate.wait()
        await exchange.send(b"0\r\nx-sum: 1\r\nx-sum: 2\r\n\r\n")

    origin.otherwise(script)
    response = await seam.ask()
    stream = wire_of(response)
    assert await stream.read() == b"abc"
    trailers = response.extensions["trailers"]
    assert trailers == []
    gate.open()
    assert await stream.read() == b""
    assert trailers == response.extensions["trailers"] == [(b"x-sum", b"1"), (b"x-sum", b"2")]
    stream.close()
    assert await is_reused(seam, origin)


async def test_without_trailers_there_are_none(origin: Origin, seam: Seam) -> None:
    origin.otherwise(chunked([b"a", b"b"]))
    assert (await seam.get()).trailers == []


# Answers that come early.


async def test_an_early_error_stops_the_upload_and_the_connection_is_not_used_again(origin: Origin, seam: Seam) -> None:
    told = b"too large " * 10_000
    origin.otherwise(early(413, [], told, after_bytes=1, then="hold"))
    body = Endless()
    response = await seam.ask(method="POST", pairs=CHUNKED, body=body)
    await until(lambda: body.is_over)
    answer = await whole(response)
    assert (answer.status, answer.body) == (413, told)
    await origin.until_connections(0)
    assert not await is_reused(seam, origin)


async def test_an_early_error_is_read_to_its_end_though_the_upload_has_stopped(origin: Origin, seam: Seam) -> None:
    gate, body = Gate(), Body()

    async def refuse(exchange: Exchange) -> None:
        await exchange.send(head_bytes(403, CHUNKED) + b"2\r\nno\r\n")
        await gate.wait()
        await exchange.send(b"3\r\n no\r\n0\r\n\r\n")
        await exchange.closed.wait()

    origin.otherwise(refuse)
    response = await seam.ask(method="POST", pairs=CHUNKED, body=body)
    await until(lambda: body.is_over or not body.asked)
    gate.open()
    assert (await whole(response)).body == b"no no"
    assert not await is_reused(seam, origin)


async def test_after_an_early_success_both_bodies_flow(origin: Origin, seam: Seam) -> None:
    async def echo(exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, CHUNKED))
        while piece := await exchange.read_some():
            await exchange.send_chunk(piece)
        await exchange.send_chunk(b"")

    origin.otherwise(echo)
    body = Body()
    response = await seam.ask(method="POST", pairs=CHUNKED, body=body)
    stream = wire_of(response)
    for number in range(50):
        sent = b"piece %d" % number
        body.give(sent)
        assert await stream.read() == sent
    body.give(None)
    assert await stream.read() == b""
    stream.close()
    assert await is_reused(seam, origin)


async def test_much_may_flow_both_ways_at_once() -> None:
    async with narrow() as (origin, seam):

        async def echo(exchange: Exchange) -> None:
            await exchange.send(head_bytes(200, CHUNKED))
            while piece := await exchange.read_some():
                await exchange.send_chunk(piece)
            await exchange.send_chunk(b"")

        origin.otherwise(echo)
        number = 500
        answer = await seam.get(method="POST", pairs=CHUNKED, body=pieces(*[PIECE] * number))
        assert answer.body == PIECE * number
        assert await is_reused(seam, origin)


@pytest.mark.parametrize("status", [200, 413])
async def test_an_answer_that_ends_before_the_request_stops_it(origin: Origin, seam: Seam, status: int) -> None:
    origin.otherwise(early(status, [], b"enough", after_bytes=1, then="hold"))
    body = Body()
    body.give(b"a")
    response = await seam.ask(method="POST", pairs=CHUNKED, body=body)
    await until(lambda: body.is_over)
    answer = await whole(response)
    assert (answer.status, answer.body) == (status, b"enough")
    assert not await is_reused(seam, origin)


async def test_a_request_that_was_answered_but_not_taken_is_not_waited_for() -> None:
    """Its last bytes lie in the transport: the request counts as sent, and nobody will ever read it."""
    for answer in (OK, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"):
        async with narrow() as (origin, seam):
            sent = Gate()

            async def answer_unread(exchange: Exchange, answer: bytes = answer, sent: Gate = sent) -> None:
                exchange.pause_reading()
                await sent.wait()
                await exchange.send(answer)
                await exchange.closed.wait()

            origin.otherwise(answer_unread)

            async def fill(seam: Seam = seam) -> AsyncIterator[bytes]:
                while not unsent_bytes(seam):
                    yield PIECE
                    # What uvloop was given it writes at the end of the turn.
                    await asyncio.sleep(0)

            asking = asyncio.create_task(seam.get(method="POST", pairs=CHUNKED, body=fill()))
            exchange = await origin.next_exchange()
            await until(lambda seam=seam: not the_connection(seam).standing.may_send)  # type: ignore[misc]
            assert unsent_bytes(seam)
            sent.open()
            assert (await asking).body == b"ok"
            await asyncio.wait_for(exchange.closed.wait(), 2)
            await origin.until_connections(0)
            assert not await is_reused(seam, origin)


@pytest.mark.parametrize("reads", [True, False], ids=["after reading some", "unread"])
async def test_an_answer_that_came_before_a_reset_is_heard(reads: bool) -> None:
    async with narrow() as (origin, seam):
        gate = Gate()

        async def refuse(exchange: Exchange) -> None:
            if reads:
                await exchange.read_some()
            exchange.pause_reading()
            await gate.wait()
            await exchange.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
            exchange.abort()

        origin.otherwise(refuse)
        body = Endless()
        asking = asyncio.create_task(seam.get(method="POST", pairs=CHUNKED, body=body))
        await origin.next_exchange()
        await until_still(lambda: body.taken)
        gate.open()
        answer = await asking
        assert (answer.status, answer.body) == (413, b"too large")


@pytest.mark.parametrize("answered", [b"too large", b"too"])
async def test_an_answer_is_heard_though_the_next_piece_meets_the_reset_first(seam: Seam, answered: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seam.upstream = upstream_at(seam.origin, port=listener.getsockname()[1])

        async def overtaken() -> AsyncIterator[bytes]:
            # All of it within one turn of the loop, so that writing finds out before reading does.
            peer, _ = listener.accept()
            with peer:
                peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\n" + answered)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            yield PIECE

        asking = seam.get(method="POST", pairs=CHUNKED, body=overtaken())
        if answered == b"too large":
            answer = await asking
            assert (answer.status, answer.body) == (413, b"too large")
        else:
            with pytest.raises(faults.HungUp):
                await asking


async def test_half_an_answer_before_a_reset_is_no_answer() -> None:
    async with narrow() as (origin, seam):
        gate = Gate()

        async def refuse(exchange: Exchange) -> None:
            exchange.pause_reading()
            await gate.wait()
            await exchange.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo")
            exchange.abort()

        origin.otherwise(refuse)
        body = Endless()
        asking = asyncio.create_task(seam.get(method="POST", pairs=CHUNKED, body=body))
        await origin.next_exchange()
        await until_still(lambda: body.taken)
        gate.open()
        with pytest.raises(faults.HungUp):
            await asking


# The end of a connection.


@pytest.mark.parametrize("given", [{}, counted_body(b"a" * 100)], ids=["GET", "POST"])
async def test_an_answer_may_end_with_the_connection(origin: Origin, seam: Seam, given: dict[str, Any]) -> None:
    origin.otherwise(raw(b"HTTP/1.1 200 OK\r\n\r\n" + patterned(300_000)))
    if given:
        given = counted_body(b"a" * 100)
    assert (await seam.get(**given)).body == patterned(300_000)
    assert not await is_reused(seam, origin)


async def test_an_answer_that_ends_with_half_a_connection_stops_the_upload(origin: Origin, seam: Seam) -> None:
    async def half_close(exchange: Exchange) -> None:
        await exchange.read_some()
        await exchange.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        exchange._writer.write_eof()
        await exchange.closed.wait()

    origin.otherwise(half_close)
    body = Body()
    body.give(b"a")
    answer = await seam.get(method="POST", pairs=CHUNKED, body=body)
    assert answer.body == b"abc"
    await until(lambda: body.is_over)
    assert not await is_reused(seam, origin)


@pytest.mark.parametrize(
    "cut",
    [
        b"",
        b"HTTP/1.1 200 O",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n",
    ],
)
@pytest.mark.parametrize("then", ["close", "reset"])
async def test_an_answer_cut_short_is_never_taken_for_the_whole(
    origin: Origin, seam: Seam, cut: bytes, then: Any
) -> None:
    origin.otherwise(raw(cut, then=then))
    with pytest.raises(faults.HungUp):
        await seam.get()
    assert not await is_reused(seam, origin)


async def test_an_answer_that_would_end_with_the_connection_does_not_end_with_a_reset(
    origin: Origin, seam: Seam
) -> None:
    origin.otherwise(raw(b"HTTP/1.1 200 OK\r\n\r\nabc", then="reset"))
    with pytest.raises(faults.HungUp):
        await seam.get()


async def test_what_came_before_a_cut_is_handed_out_before_it_is_told(origin: Origin, seam: Seam) -> None:
    gate = Gate()

    async def cut(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc")
        await gate.wait()
        await exchange.close()

    origin.otherwise(cut)
    response = await seam.ask()
    gate.open()
    await until(lambda: seam.pool.open_connections == 0)
    stream = wire_of(response)
    assert await stream.read() == b"abc"
    for _ in range(2):
        with pytest.raises(faults.HungUp):
            await stream.read()
    stream.close()


@pytest.mark.parametrize(
    ("head", "reused"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x, Close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, close\r\n\r\n", False),
    ],
)
async def test_a_connection_is_used_again_as_the_answer_says(
    origin: Origin, seam: Seam, head: bytes, reused: bool
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(head + b"ok")
        if not reused:
            await exchange.closed.wait()

    origin.otherwise(answer)
    assert (await seam.get()).body == b"ok"
    assert await is_reused(seam, origin) is reused


@pytest.mark.parametrize("more", [b"H", OK])
async def test_bytes_behind_an_answer_are_no_ones(origin: Origin, seam: Seam, more: bytes) -> None:
    origin.otherwise(raw(OK + more, then="keep"))
    with pytest.raises(httpx.RemoteProtocolError):
        await seam.get()
    assert not await is_reused(seam, origin)


@pytest.mark.parametrize("garbage", [b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\nX: 1\n\n"])
async def test_what_is_not_http_is_refused(origin: Origin, seam: Seam, garbage: bytes) -> None:
    origin.otherwise(raw(garbage, then="keep"))
    with pytest.raises(httpx.RemoteProtocolError):
        await seam.get()
    await origin.until_connections(0)


async def test_an_exchange_that_fails_asks_for_no_more_of_the_callers_body(origin: Origin, seam: Seam) -> None:
    gate, body = Gate(), Body()

    async def cut(exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, CHUNKED))
        await gate.wait()
        await exchange.close()

    origin.otherwise(cut)
    response = await seam.ask(method="POST", pairs=CHUNKED, body=body)
    await until(lambda: body.asked)
    gate.open()
    await until(lambda: body.is_over)
    with pytest.raises(faults.HungUp):
        await whole(response)


async def test_garbage_within_the_body_fails_whoever_reads(origin: Origin, seam: Seam) -> None:
    gate = Gate()

    async def script(exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, CHUNKED) + b"3\r\nabc\r\n")
        await gate.wait()
        await exchange.send(b"zz\r\n")
        await exchange.closed.wait()

    origin.otherwise(script)
    response = await seam.ask()
    stream = wire_of(response)
    assert await stream.read() == b"abc"
    gate.open()
    with pytest.raises(httpx.RemoteProtocolError):
        await stream.read()
    await origin.until_connections(0)
    stream.close()


# Time.


async def test_a_head_that_does_not_come_in_time(origin: Origin, seam: Seam) -> None:
    seam.rules(head_timeout_seconds=0.05)
    origin.otherwise(hang())
    with pytest.raises(faults.HeadTimeout):
        await seam.get()
    await origin.until_connections(0)


async def test_interim_answers_do_not_put_the_head_off(origin: Origin, seam: Seam) -> None:
    seam.rules(head_timeout_seconds=0.1)

    async def processing(exchange: Exchange) -> None:
        for _ in range(20):
            await exchange.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            await seconds(0.03)

    origin.otherwise(processing)
    with pytest.raises(faults.HeadTimeout):
        await seam.get()


async def test_the_heads_time_begins_when_the_request_has_been_sent(origin: Origin, seam: Seam) -> None:
    seam.rules(head_timeout_seconds=0.05)
    origin.otherwise(hang())
    body = Body()
    asking = asyncio.create_task(seam.get(method="POST", pairs=CHUNKED, body=body))
    await origin.next_exchange()
    await seconds(0.15)
    assert not asking.done()
    body.give(None)
    with pytest.raises(faults.HeadTimeout):
        await asking


async def test_the_time_of_one_exchange_ends_with_it(origin: Origin, seam: Seam) -> None:
    seam.rules(head_timeout_seconds=0.1)
    origin.otherwise(reply())
    await seam.get()
    body = Body()
    asking = asyncio.create_task(seam.get(method="POST", pairs=CHUNKED, body=body))
    await seconds(0.25)
    body.give(None)
    assert (await asking).status == 200
    assert origin.connections_made == 1


async def test_a_body_that_does_not_go_on(origin: Origin, seam: Seam) -> None:
    seam.rules(idle_timeout_seconds=0.05)
    origin.otherwise(drip([], Gate()))
    response = await seam.ask()
    with pytest.raises(httpx.ReadTimeout) as failed:
        await whole(response)
    assert not isinstance(failed.value, faults.HeadTimeout)
    await origin.until_connections(0)


async def test_silence_while_nobody_reads_is_not_the_upstreams(origin: Origin, seam: Seam) -> None:
    seam.rules(idle_timeout_seconds=0.05)
    gate = Gate()
    origin.otherwise(drip([b"abc"], gate))
    response = await seam.ask()
    stream = wire_of(response)
    # One who gave up reading does not read.
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.read(), 0.01)
    await seconds(0.15)
    gate.open(2)
    assert (await whole(response)).body == b"abc"


async def test_an_upstream_that_takes_no_more() -> None:
    async with narrow() as (origin, seam):
        seam.rules(idle_timeout_seconds=0.1)

        async def read_nothing(exchange: Exchange) -> None:
            exchange.pause_reading()
            await exchange.closed.wait()

        origin.otherwise(read_nothing)
        body = Endless()
        with pytest.raises(httpx.WriteTimeout) as failed:
            await seam.get(method="POST", pairs=CHUNKED, body=body)
        assert not isinstance(failed.value, faults.CallerStalled)
        await until(lambda: body.is_over)


async def test_a_caller_that_sends_no_more(origin: Origin, seam: Seam) -> None:
    seam.rules(idle_timeout_seconds=0.05)
    origin.otherwise(hang())
    body = Body()
    body.give(b"a")
    with pytest.raises(faults.CallerStalled):
        await seam.get(method="POST", pairs=CHUNKED, body=body)
    await until(lambda: body.is_over)
    await origin.until_connections(0)


async def test_while_bodies_go_both_ways_what_moves_in_one_direction_counts_for_the_other(
    origin: Origin, seam: Seam
) -> None:
    seam.rules(idle_timeout_seconds=0.3)
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, CHUNKED))
        await exchange.read_body()
        for _ in range(3):
            await gate.wait()
            await exchange.send_chunk(b"x")
        await exchange.send_chunk(b"")

    origin.otherwise(answer)
    body = Body()
    response = await seam.ask(method="POST", pairs=CHUNKED, body=body)
    reading = asyncio.create_task(whole(response))
    for _ in range(5):
        body.give(b"a")
        await seconds(0.1)
    assert not reading.done()
    body.give(None)
    gate.open(3)
    assert (await reading).body == b"xxx"


# Closing.


async def close_again(stream: Wire) -> None:
    for _ in range(2):
        stream.close()
        await stream.aclose()


async def test_closing_in_the_middle_resets_the_connection_and_gives_everything_back(
    origin: Origin, seam: Seam
) -> None:
    origin.otherwise(counted(10 * 1024 * 1024))
    response = await seam.ask()
    stream = wire_of(response)
    await stream.read()
    await close_again(stream)
    assert seam.pool.exchanges == 0
    await origin.until_connections(0)


async def test_closing_in_the_middle_of_an_upload_stops_it(origin: Origin, seam: Seam) -> None:
    origin.otherwise(drip([], Gate()))
    body = Body()

    async def early_head(exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, CHUNKED))
        await exchange.closed.wait()

    origin.otherwise(early_head)
    response = await seam.ask(method="POST", pairs=CHUNKED, body=body)
    await until(lambda: body.asked)
    await close_again(wire_of(response))
    await until(lambda: body.is_over)
    await origin.until_connections(0)


async def test_closing_after_the_end_leaves_the_connection_alone(origin: Origin, seam: Seam) -> None:
    origin.otherwise(reply(body=b"abc"))
    response = await seam.ask()
    stream = wire_of(response)
    assert await stream.read() == b"abc"
    assert await stream.read() == b""
    await close_again(stream)
    assert await is_reused(seam, origin)


async def test_closing_late_does_not_touch_the_exchange_that_has_the_connection_now(origin: Origin, seam: Seam) -> None:
    origin.on(b"/1", reply(body=b"abc"))
    gate = Gate()
    origin.on(b"/2", drip([b"right"], gate))
    first = await seam.ask(b"/1")
    await until(lambda: seam.pool.idle_connections == 1)
    second = await seam.ask(b"/2")
    assert origin.connections_made == 1
    await close_again(wire_of(first))
    gate.open(2)
    assert (await whole(second)).body == b"right"


async def test_closing_after_a_failure_changes_nothing(origin: Origin, seam: Seam) -> None:
    origin.otherwise(truncate(5, 0))
    gate = Gate()

    async def cut(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await gate.wait()
        await exchange.close()

    origin.otherwise(cut)
    response = await seam.ask()
    gate.open()
    stream = wire_of(response)
    with pytest.raises(faults.HungUp):
        await stream.read()
    await close_again(stream)
    assert seam.pool.exchanges == 0


async def test_reading_what_was_closed_fails_and_does_not_hang(origin: Origin, seam: Seam) -> None:
    origin.on(b"/long", drip([], Gate()))
    origin.on(b"/whole", reply(body=b"abc"))
    for target in (b"/long", b"/whole"):
        response = await seam.ask(target)
        stream = wire_of(response)
        if target == b"/whole":
            await until(lambda: seam.pool.idle_connections == 1)
        stream.close()
        with pytest.raises(httpx.ReadError):
            await asyncio.wait_for(stream.read(), 2)


async def test_whoever_reads_is_told_when_somebody_else_closes(origin: Origin, seam: Seam) -> None:
    origin.otherwise(drip([], Gate()))
    stream = wire_of(await seam.ask())
    reading = asyncio.create_task(stream.read())
    await until(lambda: stream._waiter is not None)
    stream.close()
    with pytest.raises(httpx.ReadError):
        await asyncio.wait_for(reading, 2)


@pytest.mark.parametrize("with_body", [False, True])
async def test_cancelling_before_the_head_resets_the_connection(origin: Origin, seam: Seam, with_body: bool) -> None:
    origin.otherwise(hang())
    body = Body()
    given: dict[str, Any] = {"method": "POST", "pairs": CHUNKED, "body": body} if with_body else {}
    asking = asyncio.create_task(seam.get(**given))
    await origin.next_exchange()
    if with_body:
        await until(lambda: body.asked)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert seam.pool.exchanges == 0
    await until(lambda: body.is_over is with_body)
    await origin.until_connections(0)
