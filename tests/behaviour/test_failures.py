"""An upstream that breaks off is an error before the head and a cut connection after it, never a whole answer."""

from __future__ import annotations

import json

import pytest

from tests.behaviour.conftest import Relayed, until
from tests.caller import Answer, Caller, Ended
from tests.origin import (
    Exchange,
    Gate,
    Origin,
    counted_answer,
    head_bytes,
    patterned,
    raw,
    refusing_port,
    reply,
    truncate,
)
from tests.serving_ground import Ground

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def problem(answer: Answer) -> tuple[int, str]:
    return answer.status, json.loads(answer.data)["type"].removeprefix("urn:relay:error:")


BEFORE_THE_HEAD = [
    pytest.param(b"", "close", "upstream-hung-up", id="closes-before-the-head"),
    pytest.param(b"", "reset", "upstream-hung-up", id="resets-before-the-head"),
    pytest.param(b"HTTP/1.1 200 O", "close", "upstream-hung-up", id="closes-in-the-status-line"),
    pytest.param(OK + b"Content-Le", "close", "upstream-hung-up", id="closes-in-a-field"),
    pytest.param(OK + b"Content-Le", "reset", "upstream-hung-up", id="resets-in-a-field"),
    pytest.param(b"\x15\x03\x01\x00\x02\x02\x46", "close", "upstream-protocol", id="speaks-tls"),
    pytest.param(b"220 smtp.example ESMTP\r\n", "keep", "upstream-protocol", id="speaks-smtp"),
    pytest.param(b"HTTP/2.0 200 OK\r\n\r\n", "keep", "upstream-protocol", id="another-version"),
    pytest.param(b"HTTP/1.1 2000 OK\r\n\r\n", "keep", "upstream-protocol", id="status-of-four-digits"),
    pytest.param(OK + b"no colon here\r\n\r\n", "keep", "upstream-protocol", id="field-without-colon"),
    pytest.param(OK + b"Na me: x\r\n\r\n", "keep", "upstream-protocol", id="blank-in-a-name"),
    pytest.param(OK + b"A: b\0c\r\n\r\n", "keep", "upstream-protocol", id="nul-in-a-value"),
    pytest.param(
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "keep", "upstream-protocol", id="two-lengths"
    ),
    pytest.param(OK + b"Content-Length: 5, 5\r\n\r\nhello", "keep", "upstream-protocol", id="a-list-of-lengths"),
    pytest.param(OK + b"Content-Length: -5\r\n\r\nhello", "keep", "upstream-protocol", id="negative-length"),
    pytest.param(OK + b"Content-Length: five\r\n\r\nhello", "keep", "upstream-protocol", id="length-in-words"),
    pytest.param(
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "keep",
        "upstream-protocol",
        id="both-framings",
    ),
    pytest.param(OK + b"A: " + b"x" * 200_000 + b"\r\n\r\n", "keep", "upstream-protocol", id="a-field-too-long"),
    pytest.param(b"HTTP/1.1 200 " + b"x" * 200_000 + b"\r\n\r\n", "keep", "upstream-protocol", id="a-line-too-long"),
    pytest.param(OK + b"A: b\r\n" * 2000 + b"\r\n", "keep", "upstream-protocol", id="too-many-fields"),
]


@pytest.mark.parametrize(("answer", "then", "error"), BEFORE_THE_HEAD)
async def test_before_the_head_it_is_a_502(
    origin: Origin, relayed: Relayed, caller: Caller, answer: bytes, then: str, error: str
) -> None:
    relayed()
    origin.on(b"/x", raw(answer, then=then))  # type: ignore[arg-type]
    assert problem(await caller.get(b"/relay/o/x")) == (502, error)
    await origin.until_connections(0)
    origin.on(b"/x", reply(body=b"well again"))
    assert (await caller.get(b"/relay/o/x")).data == b"well again"


async def test_a_refused_connection_is_a_502(relayed: Relayed, caller: Caller) -> None:
    with refusing_port() as port:
        relayed(port=port)
        assert problem(await caller.get(b"/relay/o/x")) == (502, "connection-refused")


AFTER_THE_HEAD = [
    pytest.param(truncate(1000, 10), patterned(10), id="counted-body-cut"),
    pytest.param(truncate(1000, 10, then="reset"), patterned(10), id="counted-body-reset"),
    pytest.param(truncate(1000, 0), b"", id="counted-body-that-never-began"),
    pytest.param(raw(CHUNKED + b"5\r\nhello\r\n"), b"hello", id="chunks-without-end"),
    pytest.param(raw(CHUNKED + b"5\r\nhello\r\n", then="reset"), b"hello", id="chunks-reset"),
    pytest.param(raw(CHUNKED + b"5\r\nhel"), b"hel", id="chunk-cut"),
    pytest.param(raw(CHUNKED + b"5\r\nhello\r\n0\r\n"), b"hello", id="last-chunk-without-its-end"),
    pytest.param(raw(CHUNKED + b"5\r\nhello\r\nzz\r\nworld\r\n", then="keep"), b"hello", id="no-chunk-size"),
    pytest.param(raw(CHUNKED + b"5\r\nhelloworld\r\n", then="keep"), b"hello", id="chunk-longer-than-its-size"),
    pytest.param(raw(OK + b"\r\nhello", then="reset"), b"hello", id="close-delimited-body-reset"),
]


@pytest.mark.parametrize(("script", "most"), AFTER_THE_HEAD)
async def test_after_the_head_the_caller_is_cut_off_too(
    origin: Origin, relayed: Relayed, caller: Caller, script: object, most: bytes
) -> None:
    relayed()
    origin.on(b"/x", script)  # type: ignore[arg-type]
    answer = await caller.get(b"/relay/o/x")
    if answer.status == 502:
        # Head and failure came in one read: nothing was sent on yet, so it can still be told.
        assert problem(answer)[1] in ("upstream-hung-up", "upstream-protocol")
    else:
        assert answer.body.ended in (Ended.TRUNCATED, Ended.RESET)
        assert most.startswith(answer.data), "nothing is appended"
    await origin.until_connections(0)


@pytest.mark.parametrize(("script", "most"), AFTER_THE_HEAD)
async def test_a_buffered_answer_that_was_cut_is_a_502(
    origin: Origin, relayed: Relayed, caller: Caller, script: object, most: bytes
) -> None:
    relayed(max_buffered_bytes=10_000)
    origin.on(b"/x", script)  # type: ignore[arg-type]
    assert problem(await caller.get(b"/relay/o/x"))[0] == 502


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_what_came_before_the_break_has_been_passed_on(
    origin: Origin, relayed: Relayed, ground: Ground, how: str
) -> None:
    gate = Gate()

    async def script(exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, [(b"Content-Length", b"1000")]) + b"the first part")
        await gate.wait()
        if how == "close":
            await exchange.close()
        else:
            exchange.abort()

    relayed()
    origin.on(b"/x", script)
    async with Caller(ground.port) as caller:
        await caller.send(b"GET /relay/o/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await caller.read_head()).status == 200
        assert await caller.read_chunk() == b"the first part"
        gate.open()
        rest = await caller.read_body()
    assert rest.data == b""
    assert not rest.ended.cleanly


# Connections out of the pool may have died unnoticed.


def dying(times: int) -> object:
    """Answers the first request of each connection; the `times` next ones it meets by hanging up without a word."""
    seen: set[int] = set()

    async def script(exchange: Exchange) -> None:
        nonlocal times
        if exchange.head.connection in seen and times:
            times -= 1
            await exchange.close()
            return
        seen.add(exchange.head.connection)
        await exchange.read_body()
        await exchange.send(counted_answer(200, (), b"fine", to=exchange.head.method))

    return script


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"])
async def test_an_idempotent_request_that_met_a_dead_pooled_connection_is_sent_again(
    origin: Origin, relayed: Relayed, caller: Caller, method: bytes
) -> None:
    relayed()
    origin.on(b"/x", dying(1))  # type: ignore[arg-type]
    assert (await caller.get(b"/relay/o/x", method=method)).status == 200
    assert (await caller.get(b"/relay/o/x", method=method)).status == 200
    assert len(origin.requests) == 3
    assert origin.connections_made == 2


@pytest.mark.parametrize(
    ("method", "body"), [(b"POST", b"hello"), (b"POST", None), (b"PATCH", None), (b"PUT", b"hello"), (b"GET", b"x")]
)
async def test_a_request_that_may_have_been_carried_out_is_not_sent_again(
    origin: Origin, relayed: Relayed, caller: Caller, method: bytes, body: bytes | None
) -> None:
    relayed()
    origin.on(b"/x", dying(1))  # type: ignore[arg-type]
    assert (await caller.get(b"/relay/o/x")).status == 200
    assert problem(await caller.get(b"/relay/o/x", method=method, body=body)) == (502, "upstream-hung-up")
    assert len(origin.requests) == 2


async def test_a_fresh_connection_that_dies_is_not_tried_again_where_nothing_may_be(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(max_retries=0)
    origin.on(b"/x", raw(b""))
    assert problem(await caller.get(b"/relay/o/x")) == (502, "upstream-hung-up")
    assert len(origin.requests) == 1


async def test_a_connection_the_origin_closed_while_idle_is_not_used(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(counted_answer(200, (), b"fine"))
        await exchange.close()

    relayed()
    origin.on(b"/x", script)
    for _ in range(3):
        assert (await caller.get(b"/relay/o/x", method=b"POST", body=b"hello")).data == b"fine"
        await origin.until_connections(0)


async def test_an_answer_nobody_asked_for_is_nobodys_answer(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    """A second answer while the connection idles must not become the next caller's."""
    gate = Gate()
    sent = Gate()

    async def script(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(counted_answer(200, (), b"for the first"))
        await gate.wait()
        await exchange.send(counted_answer(200, (), b"for nobody"))
        sent.open()

    relayed()
    origin.on(b"/first", script)
    origin.on(b"/second", reply(body=b"for the second"))
    assert (await caller.get(b"/relay/o/first")).data == b"for the first"
    gate.open()
    await sent.wait()
    assert (await caller.get(b"/relay/o/second")).data == b"for the second"


async def test_an_answer_with_bytes_after_its_end_is_refused(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    twice = counted_answer(200, (), b"for the first") + counted_answer(200, (), b"for nobody")
    origin.on(b"/first", raw(twice, then="keep"))
    origin.on(b"/second", reply(body=b"for the second"))
    assert problem(await caller.get(b"/relay/o/first")) == (502, "upstream-protocol")
    assert (await caller.get(b"/relay/o/second")).data == b"for the second"
    await until(lambda: origin.connections_made == 2)
