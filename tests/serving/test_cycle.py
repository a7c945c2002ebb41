"""What an application says and what leaves for it, on real sockets: in how many writes, framed how, what is refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from relay.serving import cycle as cycle_room
from relay.serving.asgi import Message, Receive, Scope, Send
from relay.serving.cycle import EARLY_HINT, HELD_BYTES, KNOWN_NAMES, TRAILERS
from relay.serving.protocol import RelayProtocol
from tests.caller import Answer, Caller, Ended
from tests.serving_ground import Ground

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = bytes(range(256)) * 1024


def start(*pairs: tuple[bytes, bytes], status: int = 200, trailers: bool = False) -> Message:
    return {"type": "http.response.start", "status": status, "headers": pairs, "trailers": trailers}


def body(data: bytes | memoryview = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def counted(length: int) -> tuple[bytes, bytes]:
    return (b"content-length", b"%d" % length)


def saying(*messages: Message) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An application that says this in one turn of the event loop."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await live(receive, send)
        for message in messages:
            await send(message)
        return None

    return app


async def live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """What each call to a server's transport wrote, as the pieces it was given."""
    noted: list[list[Any]] = []

    class Noting:
        def __init__(self, transport: asyncio.Transport) -> None:
            self._transport = transport

        def __getattr__(self, name: str) -> Any:
            return getattr(self._transport, name)

        def write(self, data: Any) -> None:
            noted.append([data])
            self._transport.write(data)

        def writelines(self, pieces: Sequence[Any]) -> None:
            noted.append(list(pieces))
            self._transport.writelines(pieces)

    plain: Any = RelayProtocol.connection_made
    monkeypatch.setattr(RelayProtocol, "connection_made", lambda self, transport: plain(self, Noting(transport)))
    return noted


async def answer_of(*messages: Message, method: bytes = b"GET") -> Answer:
    async with Ground(saying(*messages)) as ground, Caller(ground.port) as caller:
        return await caller.get(b"/", method=method)


async def rest_of(*messages: Message, request: bytes = GET) -> tuple[bytes, Ended]:
    """All that is sent for a request until the connection ends."""
    async with Ground(saying(*messages)) as ground, Caller(ground.port) as caller:
        await caller.send(request)
        return await caller.read_rest()


# Writes.


@pytest.mark.parametrize(
    "messages",
    [
        (start(counted(5)), body(b"hello")),
        (start(counted(5)), body(b"hello", more=True), body()),
        (start(counted(5)), body(b"he", more=True), body(b"llo", more=True), body(b"")),
        (start(), body(b"hello")),
        (start(), body(b"hello", more=True), body()),
        (start(), body(b"he", more=True), body(b"llo", more=True), body()),
        (start(counted(5)), body(memoryview(b"hello"))),
    ],
)
async def test_a_small_answer_leaves_in_one_write(writes: list[list[Any]], messages: tuple[Message, ...]) -> None:
    answer = await answer_of(*messages)
    assert answer.data == b"hello"
    assert answer.body.ended.cleanly
    assert len(writes) == 1


async def test_nothing_is_held_back_beyond_a_turn() -> None:
    more = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await live(receive, send)
        await send(start())
        await more.wait()
        more.clear()
        await send(body(b"one", more=True))
        await more.wait()
        await send(body(b"two"))
        return None

    async with Ground(app) as ground, Caller(ground.port) as caller:
        await caller.send(GET)
        assert (await caller.read_head()).status == 200
        more.set()
        assert await caller.read_chunk() == b"one"
        more.set()
        assert await caller.read_chunk() == b"two"
        assert await caller.read_chunk() == b""


@pytest.mark.parametrize("large", [LARGE, memoryview(LARGE), memoryview(LARGE).cast("I")])
@pytest.mark.parametrize("pairs", [(), (counted(len(LARGE)),)])
async def test_a_large_piece_is_handed_on_as_it_is(
    writes: list[list[Any]], large: bytes | memoryview, pairs: tuple[tuple[bytes, bytes], ...]
) -> None:
    answer = await answer_of(start(*pairs), body(large))
    assert answer.data == LARGE
    (pieces,) = writes
    assert any(piece is large for piece in pieces)


async def test_what_is_held_is_bounded(writes: list[list[Any]]) -> None:
    piece = bytes(1024)
    count = 4 * HELD_BYTES // len(piece)
    answer = await answer_of(start(), *(body(piece, more=True) for _ in range(count)), body())
    assert answer.body.length == count * len(piece)
    assert len(writes) >= 4
    assert all(sum(map(len, pieces)) < 2 * HELD_BYTES for pieces in writes)


async def test_a_slow_reader_holds_the_application_back() -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        if scope["type"] == "lifespan":
            return await live(receive, send)
        await send(start())
        for _ in range(100):
            await send(body(LARGE, more=True))
            sent += 1
        await send(body())
        return None

    async with Ground(app) as ground, Caller(ground.port, buffer_bytes=8192) as caller:
        await caller.send(GET)
        await caller.read_head()
        await asyncio.sleep(0.3)
        assert sent < 50
        assert (await caller.read_body(keep=False)).length == 100 * len(LARGE)


# Heads.


async def test_heads_are_spelled_as_uvicorn_spells_them() -> None:
    sent, _ = await rest_of(
        start((b"X-Name", b"a\tb \xe9"), counted(2), (b"Connection", b"X, Close"), (b"x-name", b""), status=404),
        body(b"ok"),
    )
    head = b"x-name: a\tb \xe9\r\ncontent-length: 2\r\nconnection: X, Close\r\nx-name: \r\n\r\n"
    assert sent == b"HTTP/1.1 404 Not Found\r\n" + head + b"ok"


async def test_callers_that_want_no_other_answer_are_told_that_there_is_none() -> None:
    for request in (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), GET.replace(b"1.1", b"1.0")):
        sent, ended = await rest_of(start(counted(2)), body(b"ok"), request=request)
        assert sent == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
        assert ended is Ended.CLOSED


async def test_an_odd_status_has_no_reason() -> None:
    async with Ground(saying(start(counted(0), status=299), body())) as ground, Caller(ground.port) as caller:
        assert (await caller.get(b"/")).head.line == b"HTTP/1.1 299 "


@pytest.mark.parametrize("bad", [bytes([byte]) for byte in (*range(9), *range(10, 32), 127)] + [b"\r\n", b"\r\nX: y"])
async def test_no_value_breaks_out_of_its_line(bad: bytes, caplog: pytest.LogCaptureFixture) -> None:
    for value in (bad, b"a" + bad, b"a" + bad + b"b"):
        assert await rest_of(start((b"x-a", value), counted(0)), body()) == (b"", Ended.CLOSED)
    assert "Invalid HTTP header value." in caplog.text


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\r\nb", b"\n", b"a\x00", b"(", b'"', b"a\t"])
async def test_no_name_breaks_out_of_its_line(name: bytes, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert await rest_of(start((name, b"b"), counted(0)), body()) == (b"", Ended.CLOSED)
    assert "Invalid HTTP header name." in caplog.text


async def test_only_so_many_names_are_remembered() -> None:
    pairs = [(b"x-%d" % number, b"") for number in range(200)]
    before = dict(cycle_room._starts)
    try:
        for number in range(8):
            answer = await answer_of(start(*((name + b"-%d" % number, b"") for name, _ in pairs), counted(0)), body())
            assert len(answer.head.headers) == 201
        assert len(cycle_room._starts) == KNOWN_NAMES
    finally:
        cycle_room._starts.clear()
        cycle_room._starts.update(before)


async def test_long_names_pass_and_are_not_remembered() -> None:
    name = b"x-" + b"a" * cycle_room.KNOWN_NAME_BYTES
    answer = await answer_of(start((name, b"1"), counted(0)), body())
    assert answer.values(name) == [b"1"]
    assert name not in cycle_room._starts


# Bodies.


@pytest.mark.parametrize(
    ("length", "pieces", "arrives"),
    [(5, [b"hell"], b"hell"), (5, [b"hel", b"lo!"], b"hel"), (0, [b"a"], b""), (5, [], b"")],
)
async def test_a_body_of_another_length_than_it_said_ends_the_connection(
    length: int, pieces: list[bytes], arrives: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    sent, ended = await rest_of(start(counted(length)), *(body(piece, more=True) for piece in pieces), body())
    assert sent.partition(b"\r\n\r\n")[2] == arrives
    assert ended is Ended.CLOSED
    assert "than Content-Length" in caplog.text


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("pairs", [(), ((b"transfer-encoding", b"chunked"),), (counted(1234),)])
async def test_answers_without_a_body_have_none(status: int, pairs: tuple[tuple[bytes, bytes], ...]) -> None:
    async with Ground(saying(start(*pairs, status=status), body())) as ground, Caller(ground.port) as caller:
        for _ in range(2):
            answer = await caller.get(b"/")
            assert (answer.status, answer.head.headers) == (status, list(pairs))


@pytest.mark.parametrize("status", [204, 304])
async def test_a_body_where_there_is_none_is_an_error(status: int, caplog: pytest.LogCaptureFixture) -> None:
    sent, ended = await rest_of(start(status=status), body(b"a"))
    assert sent.partition(b"\r\n\r\n")[2] == b""
    assert ended is Ended.CLOSED
    assert "longer than Content-Length" in caplog.text


async def test_an_answer_to_head_leaves_its_body_out() -> None:
    for messages in ((start(counted(5)), body(b"hello")), (start(), body(b"he", more=True), body(b"llo"))):
        async with Ground(saying(*messages)) as ground, Caller(ground.port) as caller:
            for _ in range(2):
                answer = await caller.get(b"/", method=b"HEAD")
                assert answer.values(b"content-length") == ([b"5"] if len(messages) == 2 else [])
                assert answer.values(b"transfer-encoding") == []


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ((body(b"a"),), "Expected ASGI message 'http.response.start'"),
        ((start(counted(1)), start()), "Expected ASGI message 'http.response.body'"),
        ((start(counted(0)), body(), body()), "after response already completed"),
        ((start(counted(0)),), "returned without completing response"),
        ((), "returned without starting response"),
    ],
)
async def test_messages_out_of_turn_are_errors(
    messages: tuple[Message, ...], complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Ground(saying(*messages)) as ground, Caller(ground.port) as caller:
        await caller.send(GET)
        head = await caller.read_head()
        started = any(message["type"] == "http.response.start" for message in messages)
        assert head.status == (200 if started else 500)
        await caller.read_body()
        if len(messages) < 3:
            await caller.read_rest()
    assert complaint in caplog.text


# The request's body.


async def test_100_continue_waits_for_who_reads() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await live(receive, send)
        if scope["path"] == "/read":
            assert (await receive())["body"] == b"ok"
        await send(start(counted(0)))
        await send(body())
        return None

    expecting = b"PUT %b HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    async with Ground(app) as ground, Caller(ground.port) as caller:
        await caller.send(expecting % b"/read")
        assert (await caller.read_head()).status == 100
        await caller.send(b"ok")
        assert (await caller.read_head()).status == 200
        await caller.send(expecting % b"/other")
        assert (await caller.read_head()).status == 200


async def test_all_who_wait_learn_of_the_end() -> None:
    told: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await live(receive, send)
        await receive()
        waiting = [asyncio.create_task(receive()) for _ in range(2)]  # type: ignore[arg-type]  # it is a coroutine
        await asyncio.sleep(0)
        await send(start(counted(0)))
        await send(body())
        told.extend(await asyncio.gather(*waiting))
        return None

    async with Ground(app) as ground, Caller(ground.port) as caller:
        await caller.get(b"/")
        async with asyncio.timeout(2):
            while len(told) < 2:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0)
    assert told == 2 * [{"type": "http.disconnect"}]


# Early hints.


def hint(*links: bytes) -> Message:
    return {"type": EARLY_HINT, "links": links}


async def test_early_hints_come_before_the_answer() -> None:
    answer = await answer_of(
        hint(b"</a.css>; rel=preload", b"</b.js>"), hint(), hint(b"</c>"), start(counted(2)), body(b"ok")
    )
    assert answer.data == b"ok"
    assert [head.line for head in answer.interim] == 2 * [b"HTTP/1.1 103 Early Hints"]
    assert [head.headers for head in answer.interim] == [
        [(b"link", b"</a.css>; rel=preload"), (b"link", b"</b.js>")],
        [(b"link", b"</c>")],
    ]


async def test_an_early_hint_that_is_late_is_left_out() -> None:
    sent, _ = await rest_of(
        start(counted(2), (b"connection", b"close")), hint(b"</a>"), body(b"o", more=True), hint(b"</a>"), body(b"k")
    )
    assert sent.endswith(b"\r\n\r\nok")
    assert b"103" not in sent


async def test_no_early_hint_breaks_out_of_its_line() -> None:
    sent, _ = await rest_of(hint(b"</a>\r\nX: y"), start(counted(2)), body(b"ok"))
    assert sent.startswith(b"HTTP/1.1 500 ")


async def test_extensions_are_offered_to_whom_they_can_serve() -> None:
    offered: list[set[str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await live(receive, send)
        offered.append(set(scope["extensions"]))
        await send(hint(b"</a>"))
        await send(start(counted(0)))
        await send(body())
        return None

    async with Ground(app) as ground:
        for version, interim in ((b"1.1", 1), (b"1.0", 0)):
            async with Caller(ground.port) as caller:
                await caller.send(GET.replace(b"1.1", version).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                assert (await caller.read_rest())[0].count(b"103 Early Hints") == interim
    always = {"relay.target", "relay.disconnect", TRAILERS}
    assert offered == [always | {EARLY_HINT}, always]


# Trailers.

ASKING = b"GET / HTTP/1.1\r\nHost: a\r\nTE: deflate;q=0.5, Trailers\r\n\r\n"
CLOSE = (b"connection", b"close")


def trail(*pairs: tuple[bytes, bytes], more: bool = False) -> Message:
    return {"type": TRAILERS, "headers": pairs, "more_trailers": more}


async def test_trailers_come_after_the_last_chunk(writes: list[list[Any]]) -> None:
    sent, _ = await rest_of(
        start(CLOSE, (b"trailer", b"x-sum"), trailers=True),
        body(b"hello"),
        trail((b"X-Sum", b"1"), (b"x-b", b""), more=True),
        trail((b"x-sum", b"2")),
        request=ASKING,
    )
    assert sent.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\nx-b: \r\nx-sum: 2\r\n\r\n")
    assert len(writes) == 1


@pytest.mark.parametrize(
    ("request_bytes", "messages", "end"),
    [
        (GET, (start(CLOSE, trailers=True), body(b"ok")), b"\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        (ASKING, (start(CLOSE, counted(2), trailers=True), body(b"ok")), b"\r\n\r\nok"),
        (ASKING, (start(CLOSE, status=204, trailers=True), body()), b"\r\n\r\n"),
        (ASKING, (start(CLOSE, status=304, trailers=True), body()), b"\r\n\r\n"),
        (ASKING.replace(b"GET", b"HEAD"), (start(CLOSE, trailers=True), body(b"ok")), b"close\r\n\r\n"),
    ],
)
async def test_trailers_are_left_out_where_they_cannot_be_sent(
    request_bytes: bytes, messages: tuple[Message, ...], end: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    sent, _ = await rest_of(*messages, trail((b"x-sum", b"1")), request=request_bytes)
    assert sent.endswith(end)
    assert sent.count(b"x-sum") == 0
    assert "Exception" not in caplog.text


async def test_the_connection_goes_on_after_trailers() -> None:
    messages = (start(trailers=True), body(b"ok"), trail((b"x-sum", b"1")))
    async with Ground(saying(*messages)) as ground, Caller(ground.port) as caller:
        await caller.send(2 * ASKING)
        for _ in range(2):
            assert (await caller.read_head()).status == 200
            whole = await caller.read_body()
            assert (whole.data, whole.ended) == (b"ok", Ended.CHUNKED)


async def test_an_answer_is_not_whole_without_the_trailers_it_promised(caplog: pytest.LogCaptureFixture) -> None:
    sent, ended = await rest_of(start(trailers=True), body(b"ok"), request=ASKING)
    assert sent.endswith(b"2\r\nok\r\n0\r\n")
    assert ended is Ended.CLOSED
    assert "returned without completing response" in caplog.text


@pytest.mark.parametrize(
    "pair",
    [
        (b"Content-Length", b"5"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"close"),
        (b"host", b"a"),
        (b"trailer", b"x"),
        (b"content-encoding", b"gzip"),
        (b"x-a", b"b\r\n\r\nHTTP/1.1 200 OK"),
        (b"x-a\r\n", b"b"),
        (b"", b"b"),
    ],
)
async def test_trailers_that_would_frame_or_break_out_are_refused(
    pair: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    for messages in ((start(trailers=True), body(b"ok")), (start(counted(2), trailers=True), body(b"ok"))):
        sent, ended = await rest_of(*messages, trail((b"x-fine", b"1"), pair), request=ASKING)
        assert sent.endswith((b"\r\nok\r\n0\r\n", b"\r\n\r\nok"))
        assert ended is Ended.CLOSED
        assert "Exception in ASGI application" in caplog.text
        caplog.clear()


# The server's end.


async def test_a_shutdown_lets_the_answer_finish_and_then_closes() -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await live(receive, send)
        await send(start())
        await go_on.wait()
        await send(body(b"whole"))
        return None

    async with Ground(app, graceful_seconds=5) as ground, Caller(ground.port) as caller, Caller(ground.port) as idle:
        await caller.send(GET)
        await caller.read_head()
        ground.server.stop()
        assert await idle.read_rest() == (b"", Ended.CLOSED)
        go_on.set()
        assert (await caller.read_body()).data == b"whole"
        assert await caller.read_rest() == (b"", Ended.CLOSED)


async def test_the_default_fields_of_the_server_come_first() -> None:
    async with Ground(saying(start(counted(0)), body())) as ground, Caller(ground.port) as caller:
        ground.server.server_state.default_headers = [(b"server", b"a")]
        assert (await caller.get(b"/")).head.headers == [(b"server", b"a"), (b"content-length", b"0")]


async def test_the_servers_access_log_tells_of_requests(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "uvicorn.access")
    async with Ground(saying(start(counted(0)), body())) as ground:
        # The ground switched it off, and each connection looks once.
        monkeypatch.setattr(logging.getLogger("uvicorn.access"), "propagate", True)
        async with Caller(ground.port) as caller:
            await caller.get(b"/a?b", method=b"BREW")
    assert '"BREW /a?b HTTP/1.1" 200' in caplog.text
