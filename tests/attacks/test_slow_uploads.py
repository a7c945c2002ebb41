"""Bodies that drip (R-U-Dead-Yet): who sends one byte now and then gets no slot and no connection for good.

Bytes go one by one, each when the one before has arrived, which is far below the rates asked for here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from relay.serving import body as body_room
from relay.upstreams import pace
from tests.attacks.conftest import Logged, Relayed, error_type, seconds, until
from tests.caller import Answer, Caller, request_bytes
from tests.origin import Exchange, Gate, Origin, chunked_head, hang, upload_sink
from tests.serving_ground import Ground

MIB = 1024 * 1024
GRACE = 0.2
COUNTED = [(b"Content-Length", b"1000000")]
CHUNKED = [(b"Transfer-Encoding", b"chunked")]
EXPECTING = [(b"Expect", b"100-continue"), *COUNTED]


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "GRACE_SECONDS", GRACE)


def post(pairs: list[tuple[bytes, bytes]], path: bytes = b"/relay/o/x") -> bytes:
    return request_bytes(path, pairs, method=b"POST", host=b"localhost")


class Echo:
    """An origin that answers early, and then each byte with that byte."""

    def __init__(self) -> None:
        self.arrived = 0

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(chunked_head(200, ()))
        while piece := await exchange.read_some(1):
            self.arrived += len(piece)
            await exchange.send_chunk(piece)
        await exchange.send_chunk(b"")


class Sink:
    """An origin that reads, and answers how much it was when the body has ended."""

    def __init__(self) -> None:
        self.arrived = 0

    async def __call__(self, exchange: Exchange) -> None:
        while piece := await exchange.read_some():
            self.arrived += len(piece)
        await exchange.send(b"HTTP/1.1 204 No Content\r\n\r\n")


async def dripping(caller: Caller, origin: Sink, *, framed: bool) -> AsyncIterator[int]:
    """Byte after byte, each as soon as the origin has the one before."""
    for sent in itertools.count(1):
        await caller.send(b"1\r\na\r\n" if framed else b"a")
        await until(lambda sent=sent: origin.arrived >= sent)  # type: ignore[misc]
        yield sent


async def drip(caller: Caller, origin: Sink, *, framed: bool = False) -> None:
    async for _ in dripping(caller, origin, framed=framed):
        pass


@pytest.mark.parametrize("framing", [COUNTED, CHUNKED, EXPECTING], ids=["counted", "chunked", "expecting"])
async def test_a_body_that_drips_is_cut_after_the_grace(
    origin: Origin,
    relayed: Relayed,
    ground: Ground,
    logged: Logged,
    until_at_rest: Callable[[], Awaitable[None]],
    framing: list[tuple[bytes, bytes]],
) -> None:
    relayed(min_upload_bytes_per_second=MIB)
    sink = Sink()
    origin.on(b"/x", sink)
    async with Caller(ground.port) as caller:
        await caller.send(post(framing))
        if framing is EXPECTING:
            assert (await caller.read_head()).status == 100
        attack = asyncio.create_task(drip(caller, sink, framed=framing is CHUNKED))
        head = await caller.read_head()
        answer = Answer(head, await caller.read_body())
        assert (answer.status, error_type(answer)) == (408, "upload-too-slow")
        assert answer.values(b"connection") == [b"close"]
        assert answer.values(b"proxy-status")[0].endswith(b"error=http_request_error")
        attack.cancel()
        await origin.until_connections(0)
    line = await logged.next()
    assert (line["status"], line["outcome"], line["error"]) == (408, "upload-too-slow", "http_request_error")
    assert line["detail"] == f"under {MIB} bytes a second"
    assert line["bytes_in"] >= sink.arrived > 1
    await until_at_rest()


@pytest.mark.parametrize("said", [b"", b"some of it"])
async def test_who_promises_a_body_and_is_silent_has_no_more_than_the_grace(
    origin: Origin, relayed: Relayed, ground: Ground, said: bytes
) -> None:
    relayed()
    origin.on(b"/x", hang())
    async with Caller(ground.port) as caller:
        await caller.send(post(COUNTED) + said)
        answer = Answer(await caller.read_head(), await caller.read_body())
    assert (answer.status, error_type(answer)) == (408, "upload-too-slow")
    await origin.until_connections(0)


async def test_who_keeps_the_rate_is_served_however_long_it_takes(
    origin: Origin, relayed: Relayed, ground: Ground
) -> None:
    relayed(min_upload_bytes_per_second=50_000)
    origin.on(b"/x", upload_sink())
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def evenly() -> AsyncIterator[bytes]:
        for _ in range(20):
            await seconds(GRACE / 4)
            yield bytes(5_000)

    async with Caller(ground.port) as caller:
        answer = await caller.get(b"/relay/o/x", method=b"POST", body=evenly())
    assert (answer.status, answer.data) == (200, b"100000")
    assert loop.time() - began > 4 * GRACE


async def test_an_upstream_that_takes_its_time_is_not_the_callers_fault(relayed: Relayed, ground: Ground) -> None:
    """The caller has the last of its body only when the upstream, which is late, has taken the rest: far more than
    all buffers between them hold."""
    taken, most = Gate(), 16 * MIB

    async def late(exchange: Exchange) -> None:
        exchange.pause_reading()
        await seconds(5 * GRACE)
        exchange.resume_reading()
        while exchange.head.body_length < most:
            await exchange.read_some()
        taken.open()
        await upload_sink()(exchange)

    async def fast_but_for_the_end() -> AsyncIterator[bytes]:
        for _ in range(16):
            yield bytes(most // 16)
        await taken.wait()
        await seconds(GRACE / 4)
        yield b"the end"

    async with Origin(buffer_bytes=16 * 1024) as narrow:
        narrow.on(b"/x", late)
        relayed(port=narrow.port, min_upload_bytes_per_second=2 * most)
        async with Caller(ground.port) as caller:
            answer = await caller.get(b"/relay/o/x", method=b"POST", body=fast_but_for_the_end())
        assert (answer.status, answer.data) == (200, b"%d" % (most + 7))


async def test_without_a_rate_a_body_may_drip(origin: Origin, relayed: Relayed, ground: Ground) -> None:
    relayed(min_upload_bytes_per_second=0)
    sink = Sink()
    origin.on(b"/x", sink)
    loop = asyncio.get_running_loop()
    async with Caller(ground.port) as caller:
        await caller.send(post(CHUNKED))
        began = loop.time()
        async for _ in dripping(caller, sink, framed=True):
            if loop.time() - began > 3 * GRACE:
                break
        await caller.send(b"0\r\n\r\n")
        assert (await caller.read_head()).status == 204


@pytest.mark.parametrize(("rate", "outcome"), [(0, "ok"), (MIB, "upload-too-slow")])
async def test_a_conversation_both_ways_needs_an_upstream_without_a_rate(
    origin: Origin, relayed: Relayed, ground: Ground, logged: Logged, rate: int, outcome: str
) -> None:
    relayed(min_upload_bytes_per_second=rate)
    origin.on(b"/x", echo := Echo())
    loop = asyncio.get_running_loop()
    async with Caller(ground.port) as caller:
        await caller.send(post(CHUNKED))
        assert (await caller.read_head()).status == 200
        began = loop.time()
        # What is sent may meet the reset already.
        with contextlib.suppress(ConnectionError):
            while loop.time() - began < 3 * GRACE and caller.ended is None:
                await caller.send(b"1\r\na\r\n")
                await caller.read_chunk()
            await caller.send(b"0\r\n\r\n")
        assert (await caller.read_body(keep=False)).ended.cleanly is (outcome == "ok")
    assert echo.arrived > 1
    line = await logged.next()
    assert (line["status"], line["outcome"]) == (200, outcome)


# Where no upstream takes the body.


@pytest.mark.parametrize("path", [b"/relay/nobody/x", b"/relay/get-alone/x"])
async def test_a_body_that_was_refused_is_not_waited_for(
    origin: Origin, relayed: Relayed, ground: Ground, monkeypatch: pytest.MonkeyPatch, path: bytes
) -> None:
    monkeypatch.setattr(body_room, "LINGER_SECONDS", GRACE)
    relayed("get-alone", methods=frozenset({"GET"}))
    await is_closed_under_the_drip(ground, path)
    assert origin.connections_made == 0


@pytest.mark.parametrize("path", [b"/healthz", b"/readyz", b"/metrics"])
async def test_a_body_for_a_page_that_wants_none_is_not_waited_for(path: bytes) -> None:
    async with Ground(keepalive_seconds=1) as ground:
        await is_closed_under_the_drip(ground, path)


async def is_closed_under_the_drip(ground: Ground, path: bytes) -> None:
    async with Caller(ground.port) as caller:
        await caller.send(post(COUNTED, path))
        head = await caller.read_head()
        await caller.read_body()
        attack = asyncio.create_task(drip_blindly(caller))
        assert (await caller.read_rest())[0] == b""
        assert head.status in (200, 404, 405)
        attack.cancel()
    await until(lambda: not ground.server.server_state.connections)


async def drip_blindly(caller: Caller) -> None:
    """Ten bytes in the grace, whoever takes them."""
    with contextlib.suppress(ConnectionError):
        while True:
            await caller.send(b"a")
            await seconds(GRACE / 10)
