"""What stands before and behind an answer: early hints, trailers, and the word to go on with a body."""

from __future__ import annotations

import pytest

from relay.upstreams import wire
from tests.behaviour.conftest import Relayed
from tests.caller import Caller, request_bytes
from tests.origin import Exchange, Origin, chunked_head, early, raw, reply

HINTS = (
    b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nLink: <https://cdn.example/b>\r\nX-A: 1\r\n\r\n"
    b"HTTP/1.1 103 Early Hints\r\nX-A: 1\r\n\r\n"
    b"HTTP/1.1 103 Early Hints\r\nLink: <c>\r\n\r\n"
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TE = (b"TE", b"trailers")
EXPECTING = (b"Expect", b"100-continue")


async def test_early_hints_pass_with_their_links_led_to_the_relay(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    origin.on(b"/x", raw(HINTS + OK, then="keep"))
    for _ in range(2):
        answer = await caller.get(b"/relay/o/x")
        assert (answer.status, answer.data) == (200, b"ok")
        assert [(head.status, head.headers) for head in answer.interim] == [
            (103, [(b"link", b"</relay/o/a.css>; rel=preload"), (b"link", b"<https://cdn.example/b>")]),
            (103, [(b"link", b"<c>")]),
        ]
    assert origin.connections_made == 1


async def test_early_hints_come_before_a_head_that_takes_long(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await exchange.closed.wait()

    relayed()
    origin.on(b"/x", script)
    await caller.send(request_bytes(b"/relay/o/x", host=b"localhost"))
    assert (await caller.read_head()).status == 103


async def test_trailers_pass_to_who_asked_for_them(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    tail = b"2\r\nok\r\n0\r\nX-Sum: 1\r\nX-Sum: \xff\r\nSet-Cookie: a=b\r\nConnection: x\r\n\r\n"
    origin.on(b"/x", raw(chunked_head(200, [(b"Trailer", b"X-Sum")]) + tail, then="keep"))
    for asked in (True, False):
        answer = await caller.get(b"/relay/o/x", [TE] if asked else [])
        assert (answer.status, answer.data) == (200, b"ok")
        assert answer.body.trailers == ([(b"x-sum", b"1"), (b"x-sum", b"\xff")] if asked else [])
        assert answer.values(b"trailer") == ([b"X-Sum"] if asked else [])
        told = (await origin.next_request()).headers
        assert ((b"te", b"trailers") in told, (b"connection", b"te") in told) == (asked, asked)
    assert origin.connections_made == 1


async def test_a_buffered_answer_has_no_trailers(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(max_buffered_bytes=100)
    origin.on(
        b"/x", raw(chunked_head(200, [(b"Trailer", b"X-Sum")]) + b"2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n", then="keep")
    )
    answer = await caller.get(b"/relay/o/x", [TE])
    assert (answer.data, answer.values(b"content-length"), answer.values(b"trailer")) == (b"ok", [b"2"], [])


async def test_the_caller_is_told_to_go_on_when_the_upstream_says_so(
    origin: Origin, relayed: Relayed, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "CONTINUE_SECONDS", 3600.0)
    asked: list[bytes] = []

    async def script(exchange: Exchange) -> None:
        asked.extend(exchange.head.values(b"expect"))
        await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await exchange.read_body()
        await exchange.send(OK)

    relayed()
    origin.on(b"/x", script)
    head = request_bytes(b"/relay/o/x", [EXPECTING, (b"Content-Length", b"5")], method=b"POST", host=b"localhost")
    await caller.send(head)
    assert (await caller.read_head()).status == 100
    assert asked == [b"100-continue"]
    await caller.send(b"hello")
    assert (await caller.read_head()).status == 200
    assert (await caller.read_body()).data == b"ok"


async def test_who_the_upstream_refuses_is_never_told_to_go_on(
    origin: Origin, relayed: Relayed, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "CONTINUE_SECONDS", 3600.0)
    relayed()
    origin.on(b"/x", early(417))
    head = request_bytes(b"/relay/o/x", [EXPECTING, (b"Content-Length", b"5")], method=b"POST", host=b"localhost")
    await caller.send(head)
    assert (await caller.read_head()).status == 417


async def test_an_expectation_without_a_body_does_not_go_up(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/x", reply(body=b"ok"))
    assert (await caller.get(b"/relay/o/x", [EXPECTING])).data == b"ok"
    assert (await origin.next_request()).values(b"expect") == []
