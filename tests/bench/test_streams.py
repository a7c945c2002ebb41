"""Event streams that are held: when they count as open, what they count, and when they are gone."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from bench import inner_origin, streams, transfers
from bench.streams import call
from bench.transfers import close_streams, open_streams
from tests.origin import Exchange, Gate, Origin, chunked_head, reply


@pytest.fixture(autouse=True)
def without_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "SETTLE_SECONDS", 0)


async def test_events_are_counted_however_they_are_cut(origin: Origin) -> None:
    rest = Gate()

    async def events(exchange: Exchange) -> None:
        await exchange.send(chunked_head(200, [(b"Content-Type", b"text/event-stream")]))
        await exchange.send_chunk(b"data: 1\n\nda")
        await rest.wait()
        for piece in (b"ta: 1", b"\n\n", b": a comment\n\ndata: 1\n\ndata: 1\n\n"):
            await exchange.send_chunk(piece)
        await exchange.send_chunk(b"")

    origin.on(b"/events", events)
    (stream,) = await open_streams(origin.port, "/events", 1)
    assert (stream.is_open, stream.events) == (True, 1)
    rest.open()
    await stream.gone
    assert (stream.is_open, stream.events) == (False, 4)


async def test_what_is_refused_is_not_open(origin: Origin) -> None:
    origin.otherwise(reply(503, body=b"data: 1\n\n"))
    assert await open_streams(origin.port, "/events", 3) == []


async def test_a_caller_tells_what_opened_and_what_became_of_it(
    origin: Origin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = asyncio.Event()
    over = Gate()

    async def events(exchange: Exchange) -> None:
        await exchange.send(chunked_head(200, ()))
        await exchange.send_chunk(b"data: 1\n\n")
        await over.wait()
        await exchange.send_chunk(b"")

    async def until_one_is_gone(streams: list[transfers.EventStream]) -> None:
        over.open()
        await asyncio.wait([stream.gone for stream in streams], return_when=asyncio.FIRST_COMPLETED)

    held: list[transfers.EventStream] = []

    async def opened(port: int, path: str, wanted: int) -> list[transfers.EventStream]:
        held.extend(await open_streams(port, path, wanted))
        await until_one_is_gone(held)
        return held

    async def closed(all_of_them: list[transfers.EventStream]) -> None:
        await close_streams(all_of_them)
        told.set()

    monkeypatch.setattr(streams, "open_streams", opened)
    monkeypatch.setattr(streams, "close_streams", closed)
    origin.on(b"/events", events)
    calling = asyncio.create_task(call(origin.port, "/events", 3, 0))
    lines: list[str] = []
    while len(lines) < 2:
        await asyncio.sleep(0)
        lines += capsys.readouterr().out.splitlines()
    calling.cancel()
    await told.wait()
    assert json.loads(lines[0]) == {"opened": 3}
    assert json.loads(lines[1]) == {"wanted": 3, "opened": 3, "still_open": 2, "fewest_events": 1}


async def test_the_origin_of_streams_goes_on_with_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner_origin, "BEAT_SECONDS", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        opening = asyncio.create_task(open_streams(listener.getsockname()[1], "/beats", 1))
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        answering = asyncio.create_task(inner_origin.answer(connection))
        (stream,) = await opening
        async with asyncio.timeout(5):
            while stream.events < 5:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0)
        await close_streams([stream])
        await answering
