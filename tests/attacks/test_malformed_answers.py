"""Upstreams that lie, and what they may cost: 502 or a cut, nobody else's answer, and a connection never used again.

What the reader makes of every byte is told in tests/upstreams/test_answers.py, against h11 and by fuzzing besides.
"""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc

import pytest

from tests.attacks.conftest import Relayed, error_type, until
from tests.caller import Caller
from tests.origin import Exchange, Origin, Script, head_bytes, raw, reply
from tests.serving_ground import Ground

POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
OK = b"HTTP/1.1 200 OK\r\n"

HEADS = [
    b"",
    b"\r\n\r\n\r\n",
    b"poison",
    b"<html>poison</html>\r\n\r\n",
    b"HTTP/0.9 200 OK\r\n\r\n",
    b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 -20 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\rX: y\r\nContent-Length: 0\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n" + POISON,
    OK + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabc",
    OK + b"Content-Length: 3, 5\r\n\r\nabc",
    OK + b"Content-Length: +3\r\n\r\nabc",
    OK + b"Content-Length: -3\r\n\r\nabc",
    OK + b"Content-Length: 0x3\r\n\r\nabc",
    OK + b"Content-Length: 3_0\r\n\r\nabc",
    OK + b"Content-Length: \xd9\xa3\r\n\r\nabc",
    OK + b"Content-Length:\r\n\r\nabc",
    OK + b"Content-Length: 99999999999999999999\r\n\r\nabc",
    OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + POISON,
    OK + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + POISON,
    OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: identity\r\n\r\nabc",
    OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    OK + b" X: a\r\nContent-Length: 0\r\n\r\n",
    OK + b"X : a\r\nContent-Length: 0\r\n\r\n",
    OK + b"X\r\nContent-Length: 0\r\n\r\n",
    OK + b": a\r\nContent-Length: 0\r\n\r\n",
    OK + b"X y: a\r\nContent-Length: 0\r\n\r\n",
    OK + b"X: a\x00b\r\nContent-Length: 0\r\n\r\n",
    OK + b"X: a\rSet-Cookie: b=c\r\nContent-Length: 0\r\n\r\n",
    OK + b"X: a\x01\r\nContent-Length: 0\r\n\r\n",
    OK + b"Location: /\x7f\r\nContent-Length: 0\r\n\r\n",
]


@pytest.mark.parametrize("answer", HEADS)
async def test_a_head_that_is_not_plain_http_is_502_and_nobody_elses_answer(
    origin: Origin, relayed: Relayed, caller: Caller, answer: bytes
) -> None:
    relayed(max_retries=0)
    origin.on(b"/bad", raw(answer, then="keep" if answer and b"\r\n\r\n" in answer else "close"))
    origin.on(b"/good", reply(body=b"good"))
    got = await caller.get(b"/relay/o/bad")
    assert (got.status, error_type(got)) in [(502, "upstream-protocol"), (502, "upstream-hung-up")]
    assert b"poison" not in got.data
    assert (await caller.get(b"/relay/o/good")).data == b"good"
    assert origin.connections_made == 2
    await origin.until_connections(1)


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BODIES = [
    CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"3_\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"g\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    CHUNKED + b"3\r\nabc\n0\r\n\r\n",
    CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    CHUNKED + b"3\r\nab\r\n0\r\n\r\n",
    CHUNKED + b"3;\x00\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"ffffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"3\r\nabc\r\n0\r\nX: a\rb\r\n\r\n",
    CHUNKED + b"3\r\nabc\r\n0\r\nX : a\r\n\r\n",
    CHUNKED + b"3\r\nabc\r\n0\r\n folded\r\n\r\n",
]


@pytest.mark.parametrize("answer", BODIES)
async def test_a_body_that_is_not_plain_http_is_cut_and_nobody_elses_answer(
    origin: Origin, relayed: Relayed, ground: Ground, answer: bytes
) -> None:
    relayed()
    origin.on(b"/bad", raw(answer + POISON, then="keep"))
    origin.on(b"/good", reply(body=b"good"))
    async with Caller(ground.port) as caller:
        got = await caller.get(b"/relay/o/bad")
        assert not got.body.ended.cleanly or (got.status, error_type(got)) == (502, "upstream-protocol")
        assert b"poison" not in got.data
    async with Caller(ground.port) as caller:
        assert (await caller.get(b"/relay/o/good")).data == b"good"
    assert origin.connections_made == 2
    await origin.until_connections(1)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 2\r\n\r\nok" + POISON,
        CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + POISON,
        b"HTTP/1.1 204 No Content\r\n\r\n" + POISON,
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\n" + POISON,
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + POISON,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok" + POISON,
    ],
)
async def test_an_answer_behind_an_answer_is_nobodys(
    origin: Origin, relayed: Relayed, ground: Ground, method: bytes, answer: bytes
) -> None:
    relayed()
    origin.on(b"/bad", raw(answer, then="keep"))
    origin.on(b"/good", reply(body=b"good"))
    async with Caller(ground.port) as caller:
        await caller.get(b"/relay/o/bad", method=method)
    for _ in range(2):
        async with Caller(ground.port) as caller:
            assert (await caller.get(b"/relay/o/good")).data == b"good"
    assert [request.connection for request in origin.requests] == [1, 2, 2]


# Exhaustion from behind.


def flooding(beginning: bytes, repeated: bytes, *, most: int = 512) -> Script:
    """Sends `beginning`, then `repeated` until the relay hangs up; `most` megabytes would be a failure."""

    async def script(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(beginning)
        piece = repeated * (1 + 65_536 // len(repeated))
        while exchange.sent < most * 1024 * 1024:
            await exchange.send(piece)
        raise AssertionError("the relay took all of it")

    return script


FLOODS = {
    "status line": (b"HTTP/1.1 200 ", b"a"),
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "100 continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "field name": (OK, b"a"),
    "field value": (OK + b"X: ", b"a"),
    "blanks": (OK + b"X:", b" "),
    "fields": (OK, b"X: y\r\n"),
    "cookies": (OK, b"Set-Cookie: a=b\r\n"),
    "empty lines": (b"", b"\r\n"),
    "chunk extension": (CHUNKED + b"1;", b"a"),
    "chunk extensions": (CHUNKED, b"1;" + b"a" * 500 + b"\r\na\r\n"),
    "chunk size": (CHUNKED, b"0"),
    "trailer": (CHUNKED + b"0\r\nX: ", b"a"),
    "trailers": (CHUNKED + b"0\r\n", b"X: y\r\n"),
}


@pytest.mark.parametrize("part", FLOODS)
async def test_what_an_upstream_never_ends_is_cut_at_a_bound(
    origin: Origin, relayed: Relayed, ground: Ground, part: str
) -> None:
    relayed()
    origin.on(b"/flood", flooding(*FLOODS[part]))
    tracemalloc.start()
    try:
        async with Caller(ground.port) as caller:
            answer = await caller.get(b"/relay/o/flood", keep=False)
        assert answer.status == 502 or not answer.body.ended.cleanly
        await origin.until_connections(0)
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()


async def test_a_bomb_is_passed_on_as_it_is_both_ways(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    fields = [(b"Content-Encoding", b"gzip"), (b"Content-Type", b"application/json")]
    relayed()
    origin.on(b"/a", reply(200, fields, bomb))
    tracemalloc.start()
    try:
        answer = await caller.get(b"/relay/o/a", fields, method=b"POST", body=bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert (answer.data, answer.values(b"content-encoding")) == (bomb, [b"gzip"])
    assert origin.requests[0].body_length == len(bomb)


async def test_many_hung_answers_end_with_their_callers(origin: Origin, relayed: Relayed, ground: Ground) -> None:
    relayed(max_concurrent=50, max_connections=50, queue_timeout_seconds=0.2)

    async def silent(exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, [(b"Content-Length", b"10")]))
        await exchange.closed.wait()

    origin.otherwise(silent)
    callers = [Caller(ground.port) for _ in range(60)]
    statuses = []
    try:
        for caller in callers:
            await caller.__aenter__()
            await caller.send(b"GET /relay/o/a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        statuses = [(await caller.read_head()).status for caller in callers]
    finally:
        for caller in callers:
            await caller.__aexit__(None, None, None)
    assert sorted(set(statuses)) == [200, 503]
    assert statuses.count(200) == 50
    await until(lambda: origin.open_connections == 0)
    await asyncio.sleep(0)
