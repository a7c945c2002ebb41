"""Before any upstream is known: heads that never end, connections that never stop coming, forms without end."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pytest_django.fixtures import Settings

from relay.serving import door, forms
from relay.serving.asgi import Receive, Scope, Send
from relay.serving.body import LINGER_BYTES
from relay.serving.protocol import MOST_WAITING, RelayProtocol
from relay.upstreams import exchange
from tests.attacks.conftest import Logged, Relayed, error_type, refused_with, until
from tests.caller import Answer, Caller, Ended
from tests.origin import Gate, Origin, counted, drip, reply, sse, upload_sink
from tests.serving_ground import Ground

LIMIT = 65_536


def protocols(ground: Ground) -> list[RelayProtocol]:
    return [one for one in ground.server.server_state.connections if isinstance(one, RelayProtocol)]


# Slow heads.

BEGINNINGS = [
    b"G",
    b"GET",
    b"GET /relay/o/a",
    b"GET /relay/o/a HTTP/1.1\r\n",
    b"GET /relay/o/a HTTP/1.1\r\nHost: localhost",
    b"GET /relay/o/a HTTP/1.1\r\nHost: localhost\r\n\r",
    b"BREW /relay/o/a HTTP/1.1\r\nHost: loc",
    b"\r\n\r\nPOST / HTTP/1.1\r\nX: ",
]


@pytest.mark.parametrize("beginning", BEGINNINGS)
async def test_a_head_that_does_not_end_in_time_is_408(
    ground: Ground, logged: Logged, settings: Settings, beginning: bytes
) -> None:
    settings.RELAY_HEAD_TIMEOUT_SECONDS = 0.1
    async with Caller(ground.port) as caller:
        await caller.send(beginning)
        assert await refused_with(caller) == (408, "request-head-timeout")
    line = await logged.next()
    assert (line["status"], line["outcome"], line["client"]) == (408, "request-head-timeout", "127.0.0.1")


async def test_bytes_that_go_on_coming_do_not_put_the_deadline_off(ground: Ground, settings: Settings) -> None:
    settings.RELAY_HEAD_TIMEOUT_SECONDS = 0.2
    loop = asyncio.get_running_loop()
    async with Caller(ground.port) as caller:
        await caller.send(b"GET /relay/o/a HTTP/1.1\r\nX: ")
        began = loop.time()
        answer = asyncio.create_task(refused_with(caller))
        while not answer.done():
            await caller.send(b"a")
            await asyncio.sleep(0.01)
        assert await answer == (408, "request-head-timeout")
        assert 0.1 < loop.time() - began < 2 + door.LINGER_SECONDS


async def test_a_connection_that_says_nothing_is_closed_without_an_answer(ground: Ground, settings: Settings) -> None:
    settings.RELAY_HEAD_TIMEOUT_SECONDS = 0.1
    for said in (b"", b"\r\n"):
        async with Caller(ground.port) as caller:
            await caller.send(said)
            assert await caller.read_rest() == (b"", Ended.CLOSED)


async def test_each_head_of_a_kept_connection_has_its_own_time(
    origin: Origin, relayed: Relayed, ground: Ground, settings: Settings
) -> None:
    settings.RELAY_HEAD_TIMEOUT_SECONDS = 0.2
    relayed()
    async with Caller(ground.port) as caller:
        for _ in range(3):
            await asyncio.sleep(0.1)
            assert (await caller.get(b"/relay/o/a")).status == 404
        await caller.send(b"GET /relay/o/a HTTP/1.1\r\n")
        assert await refused_with(caller) == (408, "request-head-timeout")


async def test_the_next_heads_time_does_not_run_while_an_answer_is_under_way(
    origin: Origin, relayed: Relayed, ground: Ground, settings: Settings
) -> None:
    settings.RELAY_HEAD_TIMEOUT_SECONDS = 0.1
    gate = Gate()
    relayed()
    origin.on(b"/slow", drip([b"a"], gate))
    async with Caller(ground.port) as caller:
        await caller.send(b"GET /relay/o/slow HTTP/1.1\r\nHost: localhost\r\n\r\nGET /next")
        await caller.read_head()
        await asyncio.sleep(0.3)
        gate.open(2)
        assert (await caller.read_body()).ended is Ended.CHUNKED
        assert await refused_with(caller) == (408, "request-head-timeout")


async def test_a_body_and_an_event_stream_may_take_longer_than_a_head(
    origin: Origin, relayed: Relayed, ground: Ground, settings: Settings
) -> None:
    settings.RELAY_HEAD_TIMEOUT_SECONDS = 0.1
    gate = Gate()
    relayed()
    origin.on(b"/up", upload_sink())
    origin.on(b"/events", sse(gate))
    async with Caller(ground.port) as uploading, Caller(ground.port) as listening:
        await uploading.send(b"POST /relay/o/up HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\na")
        await listening.send(b"GET /relay/o/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await listening.read_head()
        await asyncio.sleep(0.3)
        gate.open()
        assert await listening.read_chunk() == b"data: 1\n\n"
        await uploading.send(b"b")
        assert (await uploading.read_head()).status == 200


# Endless heads: what has arrived is measured, not what is whole.

START = b"GET /relay/o/a HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /relay/o/up HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
ENDLESS = {
    "path": (b"GET /relay/o/", b"a" * 1000, 414, "target-too-long"),
    "query": (b"GET /relay/o/a?", b"a=b&" * 250, 414, "target-too-long"),
    "target of an unknown method": (b"BREW /", b"a" * 1000, 414, "target-too-long"),
    "name": (START, b"a" * 1000, 431, "headers-too-large"),
    "value": (START + b"X: ", b"a" * 1000, 431, "headers-too-large"),
    "blanks": (START + b"X:", b" " * 1000, 431, "headers-too-large"),
    "fields": (START, b"X: y\r\n" * 200, 431, "headers-too-large"),
    "trailer": (CHUNKED + b"0\r\nX: ", b"a" * 1000, 431, "headers-too-large"),
    "trailers": (CHUNKED + b"0\r\n", b"X: y\r\n" * 200, 431, "headers-too-large"),
    "chunk extension": (CHUNKED + b"1;", b"a" * 1000, 431, "headers-too-large"),
}


@pytest.mark.parametrize("piece_bytes", [700, 40_000, 400_000])
@pytest.mark.parametrize("part", ENDLESS)
async def test_what_has_no_end_is_refused_at_its_bound(
    origin: Origin, relayed: Relayed, ground: Ground, part: str, piece_bytes: int
) -> None:
    relayed()
    origin.on(b"/up", upload_sink())
    beginning, repeated, status, error = ENDLESS[part]
    flood = beginning + repeated * (1 + 4 * LIMIT // len(repeated))
    async with Caller(ground.port) as caller:
        answer = asyncio.create_task(refused_with(caller))
        for at in range(0, len(flood), piece_bytes):
            await caller.send(flood[at : at + piece_bytes])
            await asyncio.sleep(0)
        assert await answer == (status, error)
    assert [request for request in origin.requests if request.body_is_whole] == []


async def test_more_fields_than_may_be_are_431(ground: Ground, logged: Logged, settings: Settings) -> None:
    settings.RELAY_MAX_HEADER_FIELDS = 20
    async with Caller(ground.port) as caller:
        assert (await caller.get(b"/healthz", [(b"X", b"y")] * 19)).status == 200
        await caller.send(b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 21 + b"\r\n")
        assert await refused_with(caller) == (431, "too-many-headers")
    assert (await logged.next())["outcome"] == "too-many-headers"


async def test_a_target_of_just_the_bound_passes(ground: Ground, settings: Settings) -> None:
    settings.RELAY_MAX_TARGET_BYTES = 300
    async with Caller(ground.port) as caller:
        assert (await caller.get(b"/healthz?" + b"a" * 291)).status == 200
        await caller.send(b"GET /healthz?%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * 292))
        assert await refused_with(caller) == (414, "target-too-long")


# Connections.


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers of this machine count as if they came from elsewhere."""
    monkeypatch.setattr(door, "LOOPBACK", ())


async def test_an_address_has_so_many_connections_and_no_more(
    strangers: None, ground: Ground, logged: Logged, settings: Settings
) -> None:
    settings.RELAY_MAX_CONNECTIONS_PER_PEER = 3
    async with Caller(ground.port) as first, Caller(ground.port) as second:
        async with Caller(ground.port) as third, Caller(ground.port) as fourth:
            assert await refused_with(fourth) == (429, "too-many-connections")
            for caller in (first, second, third):
                assert (await caller.get(b"/healthz")).status == 200
        line = await logged.next()
        assert (line["outcome"], line["detail"]) == ("too-many-connections", "3 connections from 127.0.0.1")
        await until(lambda: len(protocols(ground)) == 2)
        async with Caller(ground.port) as again:
            assert (await again.get(b"/healthz")).status == 200


async def test_a_refused_caller_sees_why_although_it_has_sent_its_request(
    strangers: None, ground: Ground, settings: Settings
) -> None:
    settings.RELAY_MAX_CONNECTIONS_PER_PEER = 1
    async with Caller(ground.port) as first:
        assert (await first.get(b"/healthz")).status == 200
        async with Caller(ground.port) as second:
            await second.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000))
            assert await refused_with(second) == (429, "too-many-connections")


async def test_trusted_proxies_may_have_as_many_as_there_are(
    strangers: None, ground: Ground, settings: Settings
) -> None:
    settings.RELAY_MAX_CONNECTIONS_PER_PEER = 1
    settings.RELAY_TRUSTED_PROXIES = ("127.0.0.1/32",)
    async with Caller(ground.port) as first, Caller(ground.port) as second:
        for caller in (first, second):
            assert (await caller.get(b"/healthz")).status == 200


async def test_a_worker_has_so_many_connections_and_no_more(ground: Ground, logged: Logged, settings: Settings) -> None:
    settings.RELAY_MAX_CONNECTIONS = 2
    async with Caller(ground.port) as first, Caller(ground.port) as second:
        for _ in range(3):
            async with Caller(ground.port) as third:
                assert await refused_with(third) == (503, "server-full")
            assert (await logged.next())["outcome"] == "server-full"
        for caller in (first, second):
            assert (await caller.get(b"/healthz")).status == 200


async def test_who_does_not_go_after_a_refusal_is_closed_and_few_may_stay(
    ground: Ground, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_LINGERING", 1)
    monkeypatch.setattr(door, "LINGER_SECONDS", 0.2)
    settings.RELAY_MAX_CONNECTIONS = 1
    async with Caller(ground.port) as first:
        assert (await first.get(b"/healthz")).status == 200
        async with Caller(ground.port) as second, Caller(ground.port) as third:
            for caller in (second, third):
                await caller.read_head()
            # Neither closes. One is let stay for a moment, the other is not.
            await until(lambda: len(protocols(ground)) == 2)
            await until(lambda: len(protocols(ground)) == 1)


# Pipelining.


async def test_a_flood_of_pipelined_requests_waits_unread(origin: Origin, relayed: Relayed, ground: Ground) -> None:
    gate = Gate()
    relayed()
    origin.on(b"/slow", drip([], gate))
    origin.on(b"/a", reply(body=b"ok"))
    one = b"GET /relay/o/a HTTP/1.1\r\nHost: localhost\r\n\r\n"
    many = 3000
    async with Caller(ground.port, deadline_seconds=60) as caller:
        sending = asyncio.create_task(
            caller.send(b"GET /relay/o/slow HTTP/1.1\r\nHost: localhost\r\n\r\n" + one * many)
        )
        await origin.next_request()
        (protocol,) = protocols(ground)
        await until(lambda: len(protocol.pipeline) == MOST_WAITING)
        gate.open()
        most = 0
        for number in range(1 + many):
            assert (await caller.read_head()).status == 200, number
            await caller.read_body()
            most = max(most, len(protocol.pipeline))
        assert most <= MOST_WAITING
        await sending
    assert len(origin.requests) == 1 + many


async def test_a_flood_behind_a_chunked_body_is_cut(origin: Origin, relayed: Relayed, ground: Ground) -> None:
    relayed()
    origin.on(b"/up", upload_sink())
    one = b"GET /relay/o/a HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with Caller(ground.port) as caller:
        await caller.send(CHUNKED + b"0\r\n\r\n" + one * 200)
        answers = []
        while True:
            head = await caller.read_head()
            answers.append(Answer(head, await caller.read_body()))
            if head.status == 400:
                break
        assert len(answers) <= MOST_WAITING + 2
        assert error_type(answers[-1]) == "not-http"
        assert await caller.read_rest() == (b"", Ended.CLOSED)


async def test_what_a_refused_caller_goes_on_sending_is_thrown_away_for_a_moment(ground: Ground) -> None:
    taken = 0

    async def endless() -> Any:
        nonlocal taken
        while True:
            taken += 50_000
            yield bytes(50_000)

    async with Caller(ground.port) as caller:
        answer = await caller.get(b"/relay/nobody/a", method=b"POST", body=endless())
        assert (answer.status, error_type(answer)) == (404, "upstream-unknown")
        assert answer.values(b"connection") == [b"close"]
    assert taken < LINGER_BYTES + 8 * 1024 * 1024  # what the kernel's buffers hold


# The pages that Django answers, to anyone who asks.

FORM = b"POST /admin/login/ HTTP/1.1\r\nHost: localhost\r\n"


async def test_a_form_that_says_it_is_too_large_is_not_read(ground: Ground, logged: Logged, settings: Settings) -> None:
    settings.RELAY_MAX_FORM_BYTES = 1000
    async with Caller(ground.port) as caller:
        await caller.send(FORM + b"Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n")
        assert await refused_with(caller) == (413, "form-too-large")
    line = await logged.next()
    assert (line["method"], line["outcome"]) == ("POST", "form-too-large")


async def test_a_form_without_end_is_cut_off_at_the_bound(ground: Ground, settings: Settings) -> None:
    settings.RELAY_MAX_FORM_BYTES = 300_000
    taken = 0

    async def endless() -> Any:
        nonlocal taken
        while True:
            taken += 10_000
            yield b"a" * 10_000

    async with Caller(ground.port) as caller:
        answer = await caller.get(b"/admin/login/", method=b"POST", body=endless())
        assert (answer.status, error_type(answer)) == (413, "form-too-large")
    assert taken < 300_000 + 8 * 1024 * 1024  # what the kernel's buffers hold


async def test_a_form_that_does_not_arrive_is_408(
    ground: Ground, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "BODY_SECONDS", 0.1)
    async with Caller(ground.port) as caller:
        await caller.send(FORM + b"Content-Length: 10\r\n\r\nabc")
        assert await refused_with(caller) == (408, "form-timeout")
    assert (await logged.next())["detail"] == "3 bytes came in 0 s"


async def test_only_so_many_forms_are_worked_on_at_once_and_slow_ones_keep_nobody_out() -> None:
    running = most = 0
    go_on = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal running, most
        while (await receive()).get("more_body"):
            pass
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    bounded = forms.Forms(slow)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (kind := (await receive())["type"]) != "lifespan.shutdown":
                await send({"type": f"{kind}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await bounded(scope, receive, send)

    async with Ground(app) as ground, AsyncExitStack() as stack:
        slowly = [await stack.enter_async_context(Caller(ground.port)) for _ in range(forms.MOST_AT_ONCE + 5)]
        for caller in slowly:
            await caller.send(FORM + b"Content-Length: 10\r\n\r\nabc")
        at_once = [await stack.enter_async_context(Caller(ground.port)) for _ in range(forms.MOST_AT_ONCE + 5)]
        for caller in at_once:
            await caller.send(FORM + b"Content-Length: 3\r\n\r\nabc")
        await until(lambda: running == forms.MOST_AT_ONCE)
        go_on.set()
        assert [(await caller.read_head()).status for caller in at_once] == [204] * len(at_once)
        assert most == forms.MOST_AT_ONCE


# Answers that are not taken, or have to be held.


async def test_who_takes_nothing_of_its_answer_is_reset(
    origin: Origin, relayed: Relayed, ground: Ground, logged: Logged, settings: Settings
) -> None:
    settings.RELAY_STALL_TIMEOUT_SECONDS = 0.3
    relayed()
    origin.on(b"/large", counted(64 * 1024 * 1024))
    async with Caller(ground.port, buffer_bytes=8192) as caller:
        await caller.send(b"GET /relay/o/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await origin.next_request()
        outcomes = [(await logged.next(within=5))["outcome"] for _ in range(2)]
        assert sorted(outcomes) == ["caller-gone", "caller-stalled"]
        await origin.until_connections(0)
        assert (await caller.read_rest())[1] is Ended.RESET


@pytest.mark.parametrize("options", [b"", b"Connection: close\r\n"])
async def test_what_is_left_of_an_answer_when_the_connection_closes_is_not_kept_for_ever(
    origin: Origin, relayed: Relayed, ground: Ground, settings: Settings, options: bytes
) -> None:
    settings.RELAY_STALL_TIMEOUT_SECONDS = 0.3
    relayed()
    large = 8 * 1024 * 1024
    origin.on(b"/large", counted(large))
    ground.server.config.timeout_keep_alive = 1
    async with Caller(ground.port, buffer_bytes=8192) as caller:
        (protocol,) = protocols(ground)
        # Less than what stops a writer stays in the transport, behind what the kernel has taken.
        protocol.transport.set_write_buffer_limits(high=2 * large)
        await caller.send(b"GET /relay/o/large HTTP/1.1\r\nHost: localhost\r\n" + options + b"\r\n")
        await origin.next_request()
        await until(lambda: not protocols(ground), within=5)


async def test_a_head_in_pieces_is_not_counted_with_the_one_before(ground: Ground) -> None:
    async with Caller(ground.port) as caller:
        head = [b"BREW /healthz HTTP/1.1\r\nHost: a\r\nX: ", b"a" * 40_000, b"\r\n\r\n"]
        for pieces in (head, [b"".join(head)], head, [b"".join(head)]):
            for piece in pieces:
                await caller.send(piece)
                await asyncio.sleep(0.01)
            assert (await caller.read_head()).status == 200
            await caller.read_body()


async def test_a_refusal_is_said_once(ground: Ground, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    settings.RELAY_MAX_TARGET_BYTES = 300
    async with Caller(ground.port) as caller:
        await caller.send(b"GET /" + b"a" * 400 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await refused_with(caller) == (414, "target-too-long")
    await until(lambda: not protocols(ground))
    assert caplog.records == []


async def test_who_takes_it_slowly_is_served_to_the_end(
    origin: Origin, relayed: Relayed, ground: Ground, settings: Settings
) -> None:
    settings.RELAY_STALL_TIMEOUT_SECONDS = 0.5
    relayed()
    origin.on(b"/large", counted(4 * 1024 * 1024))
    began = asyncio.get_running_loop().time()
    async with Caller(ground.port, buffer_bytes=65_536, deadline_seconds=30) as caller:
        await caller.send(b"GET /relay/o/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await caller.read_head()
        read = 0
        while piece := await caller.read_chunk():
            read += len(piece)
            await asyncio.sleep(0.02)
        assert (read, caller.ended) == (4 * 1024 * 1024, Ended.COUNTED)
    assert asyncio.get_running_loop().time() - began > 0.5


async def test_callers_of_http_1_0_cannot_have_everything_held(
    origin: Origin, relayed: Relayed, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MOST_HELD_BYTES", 250_000)
    relayed()
    gate = Gate()
    origin.on(b"/large", drip([bytes(100_000)], gate))
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(Caller(ground.port)) for _ in range(5)]
        for caller in callers:
            await caller.send(b"GET /relay/o/large HTTP/1.0\r\nHost: localhost\r\n\r\n")
            await origin.next_request()
        gate.open(5)
        await until(lambda: exchange.held_bytes() == 200_000 and origin.open_connections == 2)
        gate.open(5)
        assert sorted([(await caller.read_head()).status for caller in callers]) == [200, 200, 503, 503, 503]
    await until(lambda: exchange.held_bytes() == 0)
