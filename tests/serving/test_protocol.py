"""What the protocol makes of the bytes that arrive: each request once, as it was sent, however they were cut up."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import httptools
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.server import ServerState

from relay.serving.asgi import SENT_TARGET, Receive, Scope, Send
from relay.serving.protocol import KNOWN_METHODS, PASSED_BY_BYTES, RelayProtocol
from tests.caller import Caller, Ended
from tests.serving_ground import Ground

Told = dict[str, Any]


async def telling(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers JSON that tells what arrived."""
    if scope["type"] == "lifespan":
        return await live(receive, send)
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    told = json.dumps(
        {
            "method": scope["method"],
            "target": scope["extensions"][SENT_TARGET]["target"].decode(),
            "path": scope["path"],
            "raw_path": scope["raw_path"].decode(),
            "query": scope["query_string"].decode(),
            "names": [name.decode() for name, _ in scope["headers"]],
            "body": body.decode(),
        }
    ).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(told))]},
    )
    await send({"type": "http.response.body", "body": told})
    return None


async def live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


@pytest_asyncio.fixture
async def caller() -> AsyncIterator[Caller]:
    async with Ground(telling) as ground, Caller(ground.port) as caller:
        yield caller


async def told(caller: Caller) -> Told:
    head = await caller.read_head()
    body = (await caller.read_body()).data
    assert head.status == 200, body
    answer: Told = json.loads(body)
    return answer


async def turns(count: int = 5) -> None:
    """Let the server, which shares the loop, read what was sent."""
    for _ in range(count):
        await asyncio.sleep(0)


# Methods.

METHODS = [b"BREW", b"FOO", b"get", b"Get", b"head", b"GETX", b"GE", b"SETUP", b"PRIX", b"!#$%&'*+.^_`|~-1", b"X" * 64]


@pytest.mark.parametrize("method", METHODS)
async def test_a_method_that_is_a_token_arrives_as_it_was_sent(caller: Caller, method: bytes) -> None:
    for body in (b"", b"a body"):
        answer = await caller.get(b"/a?b", method=method, body=body or None)
        got = json.loads(answer.data)
        assert (got["method"], got["target"], got["body"]) == (method.decode(), "/a?b", body.decode())


@pytest.mark.parametrize("method", sorted(KNOWN_METHODS - {b"PRI", b"CONNECT"}))
async def test_the_known_methods_are_those_the_parser_knows(method: bytes) -> None:
    httptools.HttpRequestParser(object()).feed_data(method + b" / HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    "line",
    [
        b"B(EW / HTTP/1.1",
        b"BR\xc3\x8bW / HTTP/1.1",
        b"BREW\t/ HTTP/1.1",
        b" / HTTP/1.1",
        b"BREW",
        b"BREW  HTTP/1.1",
        b"BREW / HTTP/3.7",
        b"BREW / RTSP/1.0",
        b"X" * 65 + b" / HTTP/1.1",
        b"PRI * HTTP/2.0",
    ],
)
async def test_a_line_that_is_no_request_is_400(caller: Caller, line: bytes) -> None:
    await caller.send(line + b"\r\nHost: a\r\n\r\n")
    assert (await caller.read_head()).status == 400
    await caller.read_body()
    assert await caller.read_rest() == (b"", Ended.CLOSED)


@pytest.mark.parametrize("method", [b"BREW", b"GET"])
async def test_the_first_request_may_be_cut_anywhere(method: bytes) -> None:
    request = method + b" /a?b HTTP/1.1\r\nHost: a\r\n\r\n"
    async with Ground(telling) as ground:
        for cut in range(1, len(request)):
            async with Caller(ground.port) as caller:
                await caller.send(request[:cut])
                await turns()
                await caller.send(request[cut:])
                assert (await told(caller))["method"] == method.decode()


@pytest.mark.parametrize("body", [b"", b"0123456789"])
async def test_so_may_those_after_it(caller: Caller, body: bytes) -> None:
    request = b"BREW /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    for cut in range(1, len(request)):
        await caller.send(request[:cut])
        await turns()
        await caller.send(request[cut:])
        got = await told(caller)
        assert (got["method"], got["body"]) == ("BREW", body.decode())


async def test_a_request_may_come_byte_by_byte(caller: Caller) -> None:
    for method in (b"BREW", b"GET", b"M-SEARCH"):
        for byte in b"\r\n%b /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok" % method:
            await caller.send(bytes([byte]))
            await turns(2)
        assert (await told(caller))["method"] == method.decode()


async def test_empty_lines_before_a_request_are_passed_over(caller: Caller) -> None:
    for lines in (b"\r\n", b"\r\n\r\n\r\n", b"\n"):
        await caller.send(lines + b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await told(caller))["method"] == "BREW"
        await caller.send(lines + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await told(caller))["method"] == "GET"


# Several requests in one segment.

A_FEW = [
    (b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n", "GET", ""),
    (b"BREW /2 HTTP/1.1\r\nHost: a\r\n\r\n", "BREW", ""),
    (
        b"POST /3 HTTP/1.1\r\nContent-Length: 23\r\n\r\nFOO /x HTTP/1.1\r\nA: b\r\n",
        "POST",
        "FOO /x HTTP/1.1\r\nA: b\r\n",
    ),
    (b"get /4 HTTP/1.1\r\nContent-Length: 4\r\n\r\n\r\n\r\n", "get", "\r\n\r\n"),
    (b"brew /5 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nBREW\r\n0\r\n\r\n", "brew", "BREW"),
    (b"PUT /6 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nFOO /", "PUT", "FOO /"),
    (b"\r\nFOO /7 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n", "FOO", ""),
    (b"FOO /8 HTTP/1.1\r\nHost: a\r\n\r\n", "FOO", ""),
]
# What follows the chunked one begins with a method that the parser knows.
PIPELINED = b"".join(request for request, _, _ in A_FEW)
EXPECTED = [(method, f"/{number}", body) for number, (_, method, body) in enumerate(A_FEW, 1)]


async def test_pipelined_requests_arrive_each_as_it_was_sent(caller: Caller) -> None:
    await caller.send(PIPELINED)
    got = [await told(caller) for _ in A_FEW]
    assert [(one["method"], one["target"], one["body"]) for one in got] == EXPECTED


async def test_so_they_do_in_two_segments() -> None:
    for cut in range(1, len(PIPELINED)):
        assert await seen_of([PIPELINED[:cut], PIPELINED[cut:]]) == EXPECTED, cut


@settings(deadline=None)
@given(cuts=st.sets(st.integers(1, len(PIPELINED) - 1)))
def test_so_they_do_in_any_segments(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(PIPELINED)]
    segments = [PIPELINED[start:end] for start, end in itertools.pairwise(edges)]
    assert asyncio.run(seen_of(segments)) == EXPECTED


async def test_an_unknown_method_behind_a_chunked_body_is_400_after_the_answer(caller: Caller) -> None:
    chunked = b"PUT /1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
    await caller.send(chunked + b"BREW /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await told(caller))["body"] == "body"
    assert (await caller.read_head()).status == 400
    await caller.read_body()
    assert await caller.read_rest() == (b"", Ended.CLOSED)


async def test_what_is_no_request_is_400_after_the_answers_to_those_before_it(caller: Caller) -> None:
    await caller.send(b"GET /1 HTTP/1.1\r\n\r\nBREW /2 HTTP/1.1\r\n\r\n\x00\r\n\r\nGET /3 HTTP/1.1\r\n\r\n")
    assert [(await told(caller))["target"] for _ in range(2)] == ["/1", "/2"]
    assert (await caller.read_head()).status == 400
    await caller.read_body()
    assert await caller.read_rest() == (b"", Ended.CLOSED)


async def test_a_pipelined_request_whose_body_breaks_is_400_in_its_turn() -> None:
    begun: list[str] = []
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            begun.append(scope["path"])
            await go_on.wait()
        await telling(scope, receive, send)

    async with Ground(app) as ground, Caller(ground.port) as caller:
        await caller.send(b"GET /1 HTTP/1.1\r\n\r\nPUT /2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n")
        await turns()
        go_on.set()
        assert (await told(caller))["target"] == "/1"
        assert (await caller.read_head()).status == 400
        await caller.read_body()
        assert await caller.read_rest() == (b"", Ended.CLOSED)
    assert begun == ["/1"]


async def test_after_the_last_request_nothing_is_taken_for_another(caller: Caller) -> None:
    await caller.send(b"BREW /1 HTTP/1.1\r\nConnection: close\r\n\r\nBREW /2 HTTP/1.1\r\n\r\n")
    assert (await told(caller))["target"] == "/1"
    assert await caller.read_rest() == (b"", Ended.CLOSED)


async def test_a_request_whose_body_breaks_is_not_answered_in_the_middle_of_its_answer() -> None:
    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await live(receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"500")]})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        return None

    async with Ground(early) as ground, Caller(ground.port) as caller:
        await caller.send(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        await caller.read_head()
        await caller.send(b"no size\r\n")
        body = await caller.read_body()
    assert (body.data, body.ended) == (b"begun", Ended.TRUNCATED)


# Upgrades, CONNECT.


async def test_the_body_of_an_upgrade_that_is_declined_is_its_body(caller: Caller) -> None:
    upgrade = [(b"Connection", b"Upgrade"), (b"Upgrade", b"h2c")]
    hidden = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
    for _ in range(2):
        answer = await caller.get(b"/a", upgrade, method=b"POST", body=hidden)
        assert json.loads(answer.data)["body"] == hidden.decode()
    answer = await caller.get(b"/a", upgrade, method=b"BREW", body=[hidden, hidden])
    assert json.loads(answer.data)["body"] == 2 * hidden.decode()
    assert answer.values(b"connection") == [b"close"]
    assert await caller.read_rest() == (b"", Ended.CLOSED)


async def test_what_follows_connect_is_no_request(caller: Caller) -> None:
    await caller.send(b"CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await told(caller))["method"] == "CONNECT"
    assert await caller.read_rest() == (b"", Ended.CLOSED)


# The scope.


@pytest.mark.parametrize(
    "target",
    [b"/", b"/a?", b"/a?b?c", b"/a%20b%zz", b"//a//b", b"/a;b=c?d=/e", b"/a#b", b"/?a#b?c", b"http://a:1/b?c", b"*"],
)
async def test_path_and_query_are_as_uvicorn_tells_them(caller: Caller, target: bytes) -> None:
    got = json.loads((await caller.get(target, [(b"Host", b"a:1")])).data)
    parsed = httptools.parse_url(target)
    assert got["target"] == target.decode()
    assert (got["raw_path"], got["query"]) == (parsed.path.decode(), (parsed.query or b"").decode())


@settings(deadline=None)
@given(st.text("/?:;%@&=+$,.~[]'()!*ab09-_|\"<>^`{}\\", max_size=30))
def test_paths_and_queries_are_divided_as_uvicorn_does(rest: str) -> None:
    target = b"/" + rest.encode()
    seen: list[Scope] = []
    asyncio.run(seen_of([b"GET %b HTTP/1.1\r\n\r\n" % target], scopes=seen))
    parsed = httptools.parse_url(target)
    for scope in seen:
        assert (scope["raw_path"], scope["query_string"]) == (parsed.path, parsed.query or b"")


async def test_trailers_of_a_request_are_not_among_its_header_fields(caller: Caller) -> None:
    trailers = b"0\r\nX-Late: 1\r\nHost: b\r\n\r\n"
    await caller.send(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n" + trailers)
    got = await told(caller)
    assert (got["body"], got["names"]) == ("a", ["host", "transfer-encoding"])


LARGE = PASSED_BY_BYTES


@pytest.mark.parametrize(
    "cuts",
    [
        (),
        (LARGE,),
        (10, LARGE + 10),
        (LARGE, LARGE + 1, LARGE + 2),
        (LARGE - 1, 2 * LARGE - 2),
        (3 * LARGE,),
        (3 * LARGE + 4,),
        (3 * LARGE + 5 + 1,),
    ],
    ids=str,
)
def test_large_pieces_of_a_counted_body_go_past_the_parser_and_nothing_is_lost(cuts: tuple[int, ...]) -> None:
    body = bytes(97 + number % 26 for number in range(3 * LARGE + 5))
    head = b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    rest = body + b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nokGET /c HTTP/1.1\r\nHost: h\r\n\r\n"
    pieces = [rest[start:end] for start, end in itertools.pairwise((0, *cuts, len(rest)))]
    expected = [("PUT", "/a", body.decode()), ("POST", "/b", "ok"), ("GET", "/c", "")]
    assert asyncio.run(seen_of([head, *pieces])) == expected
    assert asyncio.run(seen_of([head + pieces[0], *pieces[1:]])) == expected


def test_a_body_past_the_parser_may_end_the_connection() -> None:
    head = b"PUT /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % LARGE
    following = b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n"
    assert asyncio.run(seen_of([head, bytes(LARGE) + following])) == [("PUT", "/a", "\0" * LARGE)]


# Keeping connections.


async def test_one_timer_closes_a_connection_that_was_idle_long_enough() -> None:
    async with Ground(telling, keepalive_seconds=1) as ground, Caller(ground.port) as caller:
        loop = asyncio.get_running_loop()
        await caller.get(b"/a")
        await asyncio.sleep(0.6)
        await caller.get(b"/a")
        answered_at = loop.time()
        (protocol,) = ground.server.server_state.connections
        assert isinstance(protocol, RelayProtocol)
        timer = protocol.timeout_keep_alive_task
        await caller.get(b"/a")
        assert protocol.timeout_keep_alive_task is timer
        assert await caller.read_rest() == (b"", Ended.CLOSED)
        assert loop.time() - answered_at >= 0.9


async def test_an_answer_that_takes_longer_than_idle_connections_live_is_not_cut_off() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await asyncio.sleep(1.3)
        await telling(scope, receive, send)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (telling if scope["type"] == "lifespan" else slow)(scope, receive, send)

    async with Ground(app, keepalive_seconds=1) as ground, Caller(ground.port) as caller:
        await caller.get(b"/a")
        assert (await caller.get(b"/slow")).status == 200
        assert (await caller.get(b"/a")).status == 200


async def test_every_pipelined_request_learns_that_the_caller_left() -> None:
    gone = asyncio.Event()

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await live(receive, send)
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()
        return None

    async with Ground(waiting) as ground:
        async with Caller(ground.port) as caller:
            await caller.send(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
            await turns()
        async with asyncio.timeout(2):
            await gone.wait()


async def test_requests_are_counted(caller: Caller) -> None:
    await caller.send(PIPELINED)
    for _ in A_FEW:
        await told(caller)
    async with Ground(telling) as ground:
        async with Caller(ground.port) as another:
            for _ in range(3):
                await another.get(b"/a")
        assert ground.server.server_state.total_requests == 3


# Without sockets, for what is tried at every cut.


class Wire:
    """A transport that takes everything and tells nothing."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self if name == "socket" else default

    def fileno(self) -> int:
        return 3

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 2

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def writelines(self, parts: list[bytes]) -> None:
        self.written.append(b"".join(parts))

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def seen_of(segments: list[bytes], scopes: list[Scope] | None = None) -> list[tuple[str, str, str]]:
    """(method, target, body) of each request that an application is given when these segments arrive."""
    seen: list[tuple[str, str, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        if scopes is not None:
            scopes.append(scope)
        seen.append((scope["method"], scope["extensions"][SENT_TARGET]["target"].decode(), body.decode()))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    loop = asyncio.get_running_loop()
    config = Config(app, interface="asgi3", ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    protocol = RelayProtocol(config=config, server_state=state, app_state={}, _loop=loop)
    protocol.connection_made(Wire())  # type: ignore[arg-type]  # as much of a transport as is needed
    for segment in segments:
        protocol.data_received(segment)
        await asyncio.sleep(0)
    while state.tasks:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    return seen
