"""The test ground proves itself: scripted origin, raw caller and serving ground, without a relay between them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.caller import Caller, Ended
from tests.origin import (
    Exchange,
    Gate,
    MalformedRequest,
    Origin,
    Script,
    chunked,
    counted,
    drip,
    early,
    echo,
    hang,
    patterned,
    patterned_sha256,
    raw,
    refusing_port,
    reply,
    serving_context,
    silent_port,
    sse,
    truncate,
    upload_sink,
)
from tests.serving_ground import Ground, Message, ServedProcess

SMALL_BUFFERS = 16 * 1024
MORE_THAN_BUFFERS_HOLD = 16 * 1024 * 1024


# What the origin records.


async def test_the_record_holds_the_very_bytes_that_arrived(origin: Origin) -> None:
    origin.on(b"/a%2Fb//c;x", reply(body=b"ok"))
    line = b"PUT /a%2Fb//c;x?q=%zz&q=\xe9 HTTP/1.1"
    head = line + b"\r\nhost: x\r\nX-Twice: 1\r\nx-twice:\t 2 \r\nX-Empty:\r\nX-Byte: \xff\r\n"
    async with Caller(origin.port) as caller:
        await caller.send(head + b"Content-Length: 3\r\n\r\nabc")
        assert (await caller.read_head()).status == 200
    request = await origin.next_request()
    assert request.raw_head == head + b"Content-Length: 3\r\n\r\n"
    assert request.line == line
    assert (request.method, request.path, request.version) == (b"PUT", b"/a%2Fb//c;x", b"HTTP/1.1")
    assert request.headers == [
        (b"host", b"x"),
        (b"X-Twice", b"1"),
        (b"x-twice", b"2"),
        (b"X-Empty", b""),
        (b"X-Byte", b"\xff"),
        (b"Content-Length", b"3"),
    ]
    assert request.values(b"X-TWICE") == [b"1", b"2"]
    assert (request.body, request.body_length, request.body_is_whole) == (b"abc", 3, True)
    assert request.body_sha256 == hashlib.sha256(b"abc").hexdigest()


async def test_a_chunked_body_is_recorded_without_its_framing_and_with_its_trailers(origin: Origin) -> None:
    origin.otherwise(reply())
    async with Caller(origin.port) as caller:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await caller.send(head + b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n")
        await caller.read_head()
    request = origin.requests[0]
    assert (request.body, request.trailers) == (b"abc0123456789", [(b"X-Sum", b"1")])


async def test_connections_are_numbered_and_reused(origin: Origin) -> None:
    origin.otherwise(reply())
    async with Caller(origin.port) as first, Caller(origin.port) as second:
        for caller in (first, first, second, first):
            await caller.get(b"/")
    assert [request.connection for request in origin.requests] == [1, 1, 2, 1]
    assert origin.connections_made == 2


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1\r\nConnection: x, Close"])
async def test_a_connection_that_is_to_close_is_closed(origin: Origin, version: bytes) -> None:
    origin.otherwise(reply())
    async with Caller(origin.port) as caller:
        await caller.send(b"GET / %b\r\n\r\n" % version)
        await caller.read_head()
        assert await caller.read_rest() == (b"", Ended.CLOSED)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\x00\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na",
        b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\na",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    ],
)
async def test_a_malformed_request_fails_the_test(request_bytes: bytes) -> None:
    with pytest.raises(ExceptionGroup) as failed:
        await send_and_see_the_end(request_bytes, script=reply())
    assert failed.group_contains(MalformedRequest)


async def test_an_assertion_in_a_script_fails_the_test() -> None:
    async def wrong(_exchange: Exchange) -> None:
        raise AssertionError("wrong")

    with pytest.raises(ExceptionGroup) as failed:
        await send_and_see_the_end(b"GET / HTTP/1.1\r\n\r\n", script=wrong)
    assert failed.group_contains(AssertionError, match="wrong")


async def send_and_see_the_end(request_bytes: bytes, *, script: Script) -> None:
    async with Origin() as origin, Caller(origin.port) as caller:
        origin.otherwise(script)
        await caller.send(request_bytes)
        await caller.read_rest()


async def test_what_nobody_scripted_is_a_404(origin: Origin) -> None:
    async with Caller(origin.port) as caller:
        assert (await caller.get(b"/nowhere")).status == 404


# How answers come and end.


async def test_a_reply_is_counted_and_bodiless_ones_have_no_body(origin: Origin) -> None:
    origin.on(b"/body", reply(201, [(b"X-A", b"1"), (b"X-A", b"2")], b"hello"))
    origin.on(b"/none", reply(204))
    origin.on(b"/same", reply(304, [(b"Content-Length", b"9")]))
    async with Caller(origin.port) as caller:
        answer = await caller.get(b"/body")
        assert (answer.status, answer.head.line, answer.data) == (201, b"HTTP/1.1 201 Created", b"hello")
        assert answer.head.headers == [(b"X-A", b"1"), (b"X-A", b"2"), (b"Content-Length", b"5")]
        assert answer.body.ended is Ended.COUNTED
        head_only = await caller.get(b"/body", method=b"HEAD")
        assert (head_only.values(b"content-length"), head_only.body.ended) == ([b"5"], Ended.BODILESS)
        assert (await caller.get(b"/none")).body.ended is Ended.BODILESS
        assert (await caller.get(b"/same")).body.ended is Ended.BODILESS
        assert (await caller.get(b"/body")).data == b"hello"


async def test_chunks_arrive_one_by_one(origin: Origin) -> None:
    origin.otherwise(chunked([b"a", b"bc" * 50_000, b"d"], trailers=[(b"X-T", b"1")]))
    async with Caller(origin.port) as caller:
        await caller.send(b"GET / HTTP/1.1\r\n\r\n")
        await caller.read_head()
        chunks = [await caller.read_chunk() for _ in range(4)]
        assert chunks == [b"a", b"bc" * 50_000, b"d", b""]
        assert caller.ended is Ended.CHUNKED
        assert (await caller.get(b"/", method=b"HEAD")).body.ended is Ended.BODILESS
        assert (await caller.get(b"/")).body.length == 100_002


CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNFRAMED_HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    ("script", "data", "ended"),
    [
        (truncate(10, 4), patterned(4), Ended.TRUNCATED),
        (truncate(10, 4, then="reset"), patterned(4), Ended.RESET),
        (raw(CHUNKED_HEAD + b"3\r\nabc\r\n"), b"abc", Ended.TRUNCATED),
        (raw(CHUNKED_HEAD + b"3\r\nabc\r\n5\r\nde"), b"abcde", Ended.TRUNCATED),
        (raw(CHUNKED_HEAD + b"3\r\nabc\r"), b"abc", Ended.TRUNCATED),
        (raw(CHUNKED_HEAD + b"3\r\nabc\r\n0\r\n"), b"abc", Ended.TRUNCATED),
        (raw(CHUNKED_HEAD + b"3\r\nabc\r\n", then="reset"), b"abc", Ended.RESET),
        (raw(CHUNKED_HEAD + b"3\r\nabc\r\n0\r\n\r\n"), b"abc", Ended.CHUNKED),
        (raw(UNFRAMED_HEAD + b"abc"), b"abc", Ended.CLOSED),
        (raw(UNFRAMED_HEAD + b"abc", then="reset"), b"abc", Ended.RESET),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", then="keep"), b"abc", Ended.COUNTED),
    ],
)
async def test_the_caller_tells_how_a_body_ended(origin: Origin, script: Script, data: bytes, ended: Ended) -> None:
    origin.otherwise(script)
    async with Caller(origin.port) as caller:
        answer = await caller.get(b"/")
    assert (answer.data, answer.body.ended) == (data, ended)
    assert answer.body.ended.cleanly is (ended not in (Ended.TRUNCATED, Ended.RESET))


async def test_a_reset_before_the_head_is_told_from_a_close(origin: Origin) -> None:
    origin.on(b"/reset", raw(b"HTTP/1.1 2", then="reset"))
    origin.on(b"/close", raw(b"HTTP/1.1 2"))
    async with Caller(origin.port) as caller:
        with pytest.raises(ConnectionResetError):
            await caller.get(b"/reset")
    async with Caller(origin.port) as caller:
        with pytest.raises(asyncio.IncompleteReadError):
            await caller.get(b"/close")


async def test_interim_answers_are_handed_over(origin: Origin) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await reply(200, body=b"ok")(exchange)

    origin.otherwise(script)
    async with Caller(origin.port) as caller:
        answer = await caller.get(b"/")
    assert ([head.status for head in answer.interim], answer.status, answer.data) == ([103], 200, b"ok")


async def test_drip_sends_a_chunk_when_its_gate_opens(origin: Origin) -> None:
    gate = Gate()
    origin.otherwise(drip([b"one", b"two"], gate))
    async with Caller(origin.port) as caller:
        await caller.send(b"GET / HTTP/1.1\r\n\r\n")
        assert (await caller.read_head()).status == 200
        exchange = await origin.next_exchange()
        for chunk in (b"one", b"two", b""):
            before = exchange.sent
            gate.open()
            assert await caller.read_chunk() == chunk
            assert exchange.sent == before + len(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        assert caller.ended is Ended.CHUNKED


async def test_an_event_stream_goes_on_until_the_reader_leaves(origin: Origin) -> None:
    gate = Gate()
    origin.otherwise(sse(gate))
    gate.open(2)
    async with Caller(origin.port) as caller:
        await caller.send(b"GET / HTTP/1.1\r\n\r\n")
        await caller.read_head()
        assert [await caller.read_chunk(), await caller.read_chunk()] == [b"data: 1\n\n", b"data: 2\n\n"]
    await origin.until_connections(0)


async def test_echo_tells_what_arrived(origin: Origin) -> None:
    origin.otherwise(echo())
    async with Caller(origin.port) as caller:
        answer = await caller.get(b"/p?q", [(b"X-B", b"\xe9")], method=b"POST", body=[b"ab", b"c"])
    told = json.loads(answer.data)
    assert told == {
        "line": "POST /p?q HTTP/1.1",
        "headers": [["Host", f"127.0.0.1:{origin.port}"], ["X-B", "\xe9"], ["Transfer-Encoding", "chunked"]],
        "connection": 1,
        "body_length": 3,
        "body_sha256": hashlib.sha256(b"abc").hexdigest(),
    }


# Large bodies, both ways.


async def test_large_bodies_arrive_whole_both_ways(origin: Origin) -> None:
    length = 3_000_000
    origin.on(b"/down", counted(length))
    origin.on(b"/up", upload_sink())
    expected = patterned_sha256(length)
    async with Caller(origin.port) as caller:
        down = await caller.get(b"/down", keep=False)
        assert (down.data, down.body.length, down.body.sha256, down.body.ended) == (
            b"",
            length,
            expected,
            Ended.COUNTED,
        )
        assert (await caller.get(b"/up", method=b"PUT", body=patterned(length))).data == b"%d" % length
    assert origin.requests[1].body_sha256 == expected
    assert origin.requests[1].body is None
    assert origin.exchanges[0].sent == length + len(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n")


def test_a_pattern_is_the_same_in_pieces() -> None:
    assert patterned(500, offset=7) + patterned(300, offset=507) == patterned(807)[7:]


async def test_a_slow_reader_holds_the_origin_back() -> None:
    async with Origin(buffer_bytes=SMALL_BUFFERS) as origin:
        origin.otherwise(counted(MORE_THAN_BUFFERS_HOLD))
        async with Caller(origin.port, buffer_bytes=SMALL_BUFFERS) as caller:
            await caller.send(b"GET / HTTP/1.1\r\n\r\n")
            await caller.read_head()
            await caller.read_chunk()
            exchange = await origin.next_exchange()
            assert exchange.sent < MORE_THAN_BUFFERS_HOLD / 8
            assert not exchange.closed.is_set()
        await origin.until_connections(0)


async def test_a_gated_sink_holds_the_sender_back() -> None:
    gate = Gate()
    async with Origin(buffer_bytes=SMALL_BUFFERS) as origin:
        origin.otherwise(upload_sink(gate))
        async with Caller(origin.port, buffer_bytes=SMALL_BUFFERS, deadline_seconds=0.3) as caller:
            await caller.send(b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % MORE_THAN_BUFFERS_HOLD)
            with pytest.raises(TimeoutError):
                await caller.send(bytes(MORE_THAN_BUFFERS_HOLD))
            assert (await origin.next_request()).body_length == 0
        gate.open(1000)
        await origin.until_connections(0)
    assert not origin.requests[0].body_is_whole


@pytest.mark.parametrize("then", ["read", "hold", "close"])
async def test_an_early_answer_is_seen_while_the_body_is_still_being_sent(origin: Origin, then: Any) -> None:
    origin.otherwise(early(413, [(b"Connection", b"close")], b"too much", after_bytes=1, then=then))
    never = asyncio.Event()

    async def endless() -> Any:
        yield b"first"
        await never.wait()

    async with Caller(origin.port) as caller:
        answer = await caller.get(b"/", method=b"PUT", body=endless())
        assert (answer.status, answer.data) == (413, b"too much")
    await origin.until_connections(0)


# Hanging up, from either side.


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_closed_fires_while_the_origin_hangs(origin: Origin, how: str) -> None:
    origin.otherwise(hang())
    async with Caller(origin.port) as caller:
        await caller.send(b"GET / HTTP/1.1\r\n\r\n")
        exchange = await origin.next_exchange()
        assert (origin.open_connections, exchange.closed.is_set()) == (1, False)
        getattr(caller, how)()
        async with asyncio.timeout(2):
            await exchange.closed.wait()
    assert origin.open_connections == 0


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_closed_fires_while_reading_is_paused(origin: Origin, how: str) -> None:
    async def look_away(exchange: Exchange) -> None:
        exchange.pause_reading()
        await exchange.closed.wait()

    origin.otherwise(look_away)
    async with Caller(origin.port) as caller:
        await caller.send(b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        exchange = await origin.next_exchange()
        await caller.send(b"unread")
        getattr(caller, how)()
        async with asyncio.timeout(2):
            await exchange.closed.wait()


async def test_reading_goes_on_where_it_was_paused(origin: Origin) -> None:
    gate = Gate()

    async def pause(exchange: Exchange) -> None:
        exchange.pause_reading()
        await gate.wait()
        exchange.resume_reading()
        await reply(body=b"ok")(exchange)

    origin.otherwise(pause)
    async with Caller(origin.port) as caller:
        await caller.send(b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\n")
        request = await origin.next_request()
        await caller.send(b"abc")
        gate.open()
        assert (await caller.read_head()).status == 200
    assert request.body == b"abc"


async def test_a_peer_that_hangs_up_in_the_middle_ends_a_script_quietly(origin: Origin) -> None:
    origin.otherwise(upload_sink())
    for beginning in (b"Content-Length: 9\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc", b"Half-A-Head"):
        async with Caller(origin.port) as caller:
            await caller.send(b"PUT / HTTP/1.1\r\n" + beginning)
            await origin.until_connections(1)
        await origin.until_connections(0)
    assert [request.body_is_whole for request in origin.requests] == [False, False]


async def test_connections_that_do_not_come_to_the_number_are_told(origin: Origin) -> None:
    async with Caller(origin.port):
        await origin.until_connections(1)
        with pytest.raises(AssertionError, match=r"1 connections are open after 0\.05 s, not 0"):
            await origin.until_connections(0, within=0.05)


async def test_leaving_the_origin_ends_what_still_runs() -> None:
    async with Origin() as origin:
        origin.otherwise(hang())
        caller = Caller(origin.port)
        await caller.__aenter__()
        await caller.send(b"GET / HTTP/1.1\r\n\r\n")
        await origin.next_request()
    assert origin.open_connections == 0
    assert (await caller.read_rest())[0] == b""
    await caller.__aexit__(None, None, None)


async def test_every_wait_of_the_caller_has_a_deadline(origin: Origin) -> None:
    origin.otherwise(hang())
    async with Caller(origin.port, deadline_seconds=0.05) as caller:
        with pytest.raises(TimeoutError):
            await caller.get(b"/")


# Where it listens.


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_tls_is_spoken_and_the_asked_name_recorded(authority: trustme.CA, host: Any) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with Origin(host=host, tls=serving_context(authority, "shop.example")) as origin:
        origin.otherwise(echo())
        assert origin.url == f"https://{origin.authority}"
        async with Caller(origin.port, host=host, tls=trusting, server_name="shop.example") as caller:
            assert (await caller.get(b"/", method=b"POST", body=b"x" * 100_000)).status == 200
            caller.close()
            await origin.until_connections(0)
    assert (origin.requests[0].server_name, origin.requests[0].body_length) == ("shop.example", 100_000)


@pytest.fixture
def tls_origin(authority: trustme.CA) -> Origin:
    return Origin(tls=serving_context(authority, "127.0.0.1"))


async def test_a_certificate_nobody_trusts_fails_the_handshake_alone(tls_origin: Origin) -> None:
    async with tls_origin:
        with pytest.raises(ssl.SSLCertVerificationError):
            async with Caller(tls_origin.port, tls=ssl.create_default_context()):
                pass
    assert tls_origin.requests == []


async def test_an_aborted_tls_answer_is_not_a_clean_end(authority: trustme.CA, tls_origin: Origin) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with tls_origin:
        tls_origin.otherwise(truncate(10, 4, then="reset"))
        async with Caller(tls_origin.port, tls=trusting) as caller:
            assert not (await caller.get(b"/")).body.ended.cleanly


async def test_a_refusing_port_refuses() -> None:
    with refusing_port() as port, pytest.raises(ConnectionRefusedError):
        await connect(port)


async def test_a_silent_port_never_answers() -> None:
    with silent_port() as port, pytest.raises(TimeoutError):
        await connect(port, deadline_seconds=0.1)


async def connect(port: int, *, deadline_seconds: float = 5.0) -> None:
    async with Caller(port, deadline_seconds=deadline_seconds):
        pass


# The serving ground.


class SmallApplication:
    """Says hello, or waits for the caller to leave, and notes what it saw."""

    def __init__(self, *, starts: bool = True) -> None:
        self.starts = starts
        self.seen: list[str] = []
        self.waiting = asyncio.Event()
        self.disconnected = asyncio.Event()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        elif scope["path"] == "/wait":
            self.waiting.set()
            while (await receive())["type"] != "http.disconnect":
                pass
            self.disconnected.set()
        elif scope["path"] == "/abort":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"X-A", b"1")]})
            await send({"type": "http.response.body", "body": b"hello"})

    async def live(self, receive: Any, send: Any) -> None:
        for _ in range(2):
            event = (await receive())["type"].removeprefix("lifespan.")
            self.seen.append(event)
            await send({"type": f"lifespan.{event}.{'complete' if self.starts else 'failed'}"})


async def test_the_ground_serves_an_application_between_startup_and_shutdown() -> None:
    application = SmallApplication()
    async with Ground(application) as ground, Caller(ground.port) as caller:
        assert application.seen == ["startup"]
        answer = await caller.get(b"/")
        assert (answer.status, answer.data) == (200, b"hello")
        assert answer.head.headers == [(b"x-a", b"1"), (b"transfer-encoding", b"chunked")]
    assert application.seen == ["startup", "shutdown"]


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_the_ground_tells_the_application_of_a_disconnect(how: str) -> None:
    application = SmallApplication()
    async with Ground(application) as ground, Caller(ground.port) as caller:
        await caller.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await application.waiting.wait()
        assert ground.running_requests == 1
        getattr(caller, how)()
        async with asyncio.timeout(2):
            await application.disconnected.wait()


async def test_an_application_that_stops_in_the_middle_aborts_the_answer() -> None:
    async with Ground(SmallApplication()) as ground, Caller(ground.port) as caller:
        answer = await caller.get(b"/abort")
    assert (answer.data, answer.body.ended) == (b"half", Ended.TRUNCATED)


async def test_a_startup_that_fails_is_raised() -> None:
    with pytest.raises(RuntimeError, match=r"start-up failed"):
        await enter(Ground(SmallApplication(starts=False)))


async def enter(ground: Ground | ServedProcess) -> None:
    async with ground:
        pass


SMALL_PROJECT = """
import http.server, os, pathlib, signal, sys

class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

data = pathlib.Path(os.environ["RELAY_DATA_DIR"])
match sys.argv[1:]:
    case ["first_run"]:
        (data / "made").touch()
    case ["fail"]:
        print("out")
        sys.exit("err")
    case ["serve", "--bind", address, "--workers", workers] if "BROKEN" not in os.environ:
        host, port = address.split(":")
        server = http.server.HTTPServer((host, int(port)), Ready)
        print(f"with {workers} workers, {sorted(os.environ)}, {(data / 'made').exists()}")
        print(f"Relay listening on http://127.0.0.1:{server.server_port} (admin: ...)")
        if "DEAF" in os.environ:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.fork()
        server.serve_forever()
    case _:
        sys.exit("broken indeed")
"""


@pytest.fixture
def small_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manage.py").write_text(SMALL_PROJECT)
    monkeypatch.setattr("tests.serving_ground.PROJECT", tmp_path)
    monkeypatch.setattr("tests.serving_ground.prepared_in", None)


@pytest.mark.usefixtures("small_project")
async def test_a_served_process_is_ready_when_entered_and_gone_when_left() -> None:
    async with ServedProcess(workers=2, environment={"OWN": "1"}) as served:
        line = await served.until_output("with 2 workers")
        assert "'OWN'" in line
        assert "'HOME'" not in line
        assert line.endswith("True")
        async with Caller(served.port) as caller:
            assert (await caller.get(b"/")).status == 200
        failed = await served.manage("fail")
        assert (failed.code, failed.out, failed.err) == (1, "out\n", "err\n")
        assert await served.stop() == -signal.SIGTERM
    assert not served.data_dir.exists()


@pytest.mark.usefixtures("small_project")
async def test_a_served_process_keeps_a_named_data_folder(tmp_path: Path) -> None:
    async with ServedProcess(data_dir=tmp_path):
        pass
    assert (tmp_path / "made").exists()


@pytest.mark.usefixtures("small_project")
async def test_a_process_that_does_not_serve_is_told_with_its_output() -> None:
    with pytest.raises(AssertionError, match=r"serve ended without saying .*\nbroken indeed"):
        await enter(ServedProcess(environment={"BROKEN": "1"}))


@pytest.mark.usefixtures("small_project")
async def test_a_process_that_does_not_stop_is_killed_with_its_children() -> None:
    async with ServedProcess(environment={"DEAF": "1"}, stop_seconds=0.3) as served:
        assert await served.stop() == -signal.SIGKILL
        assert await served.stop() == -signal.SIGKILL
