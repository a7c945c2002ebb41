"""Requests within requests: whatever is said of framing, what the origin gets is what the relay decided on, or nothing.

The origin's parser is strict, and fails the test for what RFC 9112 forbids. `/smuggled` is never a request there: its
bytes are refused, or are part of the one body they came in.
"""

from __future__ import annotations

import pytest
from pytest_django.fixtures import Settings

from relay.upstreams import wire
from tests.attacks.conftest import Relayed, answer_to
from tests.caller import Caller, Ended
from tests.origin import Origin, upload_sink
from tests.serving_ground import Ground

HIDDEN = b"GET /relay/o/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /relay/o/up HTTP/1.1\r\nHost: localhost\r\n"

CODINGS = [
    b"Transfer-Encoding : chunked",
    b" Transfer-Encoding: chunked",
    b"\tTransfer-Encoding: chunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding:\x0cchunked",
    b"Transfer-Encoding: \xa0chunked",
    b"Transfer-Encoding: chunked\x00",
    b"Transfer-Encoding: \x00chunked",
    b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding: 'chunked'",
    b"Transfer-Encoding: chunked;q=1",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: ,chunked",
    b"Transfer-Encoding: chunked,",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunkedx",
    b"Transfer-Encoding: chun ked",
    b"Transfer-Encoding: cow",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding:",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-encoding: cow",
    b"Transfer-Encoding:\r\n chunked",
    b"Transfer-Encoding\r\n: chunked",
    b"X: y\rTransfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\rX: y",
]
IGNORED_CODINGS = [b"Transfer_Encoding: chunked", b"X-Transfer-Encoding: chunked", b"TE: chunked", b"Encoding: chunked"]


async def test_two_framings_are_refused_however_the_coding_is_spelled(
    origin: Origin, relayed: Relayed, ground: Ground
) -> None:
    relayed()
    body = b"0\r\n\r\n" + HIDDEN
    length = b"Content-Length: %d" % len(body)
    for coding in (*CODINGS, b"Transfer-Encoding: chunked"):
        for lines in ((length, coding), (coding, length)):
            answer = await answer_to(ground, POST + b"\r\n".join(lines) + b"\r\n\r\n" + body)
            assert answer.status == 400, lines
    assert origin.requests == []


async def test_a_coding_that_is_not_plainly_chunked_is_refused(
    origin: Origin, relayed: Relayed, ground: Ground
) -> None:
    relayed()
    for coding in CODINGS:
        answer = await answer_to(ground, POST + coding + b"\r\n\r\n0\r\n\r\n" + HIDDEN)
        assert answer.status == 400, coding
    assert origin.requests == []


@pytest.mark.parametrize("coding", IGNORED_CODINGS)
async def test_what_is_no_framing_field_frames_nothing(
    origin: Origin, relayed: Relayed, ground: Ground, coding: bytes
) -> None:
    relayed()
    origin.on(b"/up", upload_sink())
    body = b"0\r\n\r\n" + HIDDEN
    answer = await answer_to(ground, POST + coding + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.data == b"%d" % len(body)
    assert [request.path for request in origin.requests] == [b"/up"]


LENGTHS = [
    b"Content-Length:",
    b"Content-Length: +4",
    b"Content-Length: -4",
    b"Content-Length: 4 4",
    b"Content-Length: 4,4",
    b"Content-Length: 4;",
    b"Content-Length: 4.0",
    b"Content-Length: 4e0",
    b"Content-Length: 0x4",
    b"Content-Length: 1_0",
    b"Content-Length: \xd9\xa4",
    b"Content-Length: \xb2",
    b"Content-Length: \x0b4",
    b"Content-Length: 4\x00",
    b"Content-Length: four",
    b"Content-Length: 18446744073709551620",
    b"Content-Length: 4294967300999999999999",
    b"Content-Length: 4\r\nContent-Length: 5",
    b"Content-Length: 4\r\ncontent-length: 4",
    b"Content-Length : 4",
    b" Content-Length: 4",
    b"Content-Length:\r\n 4",
    b"Content-Length: 4\r\n 4",
    b"X: y\rContent-Length: 4",
    b"X: y\nContent-Length: 4",
    b"Content-Length: 4\nX: y",
]


async def test_a_length_that_is_not_one_plain_number_is_refused(
    origin: Origin, relayed: Relayed, ground: Ground
) -> None:
    relayed()
    for length in LENGTHS:
        answer = await answer_to(ground, POST + length + b"\r\n\r\nabcd" + HIDDEN)
        assert answer.status == 400, length
    assert origin.requests == []


CHUNKS = [
    b"+4\r\nabcd\r\n",
    b"-4\r\nabcd\r\n",
    b" 4\r\nabcd\r\n",
    b"\t4\r\nabcd\r\n",
    b"0x4\r\nabcd\r\n",
    b"4_\r\nabcd\r\n",
    b"0_4\r\nabcd\r\n",
    b"4h\r\nabcd\r\n",
    b"\r\n4\r\nabcd\r\n",
    b"4\nabcd\r\n",
    b"4\rabcd\r\n",
    b"4\x00\r\nabcd\r\n",
    b"4\r\nabcd",
    b"4\r\nabcd\n",
    b"4\r\nabcd\r",
    b"4\r\nabcde\r\n",
    b"4\r\nabc\r\n",
    b"4;a\nabcd\r\n",
    b"4;a\rb\r\nabcd\r\n",
    b"4;\x00\r\nabcd\r\n",
    b'4;a="\n"\r\nabcd\r\n',
    b"10000000000000004\r\nabcd\r\n",
    b"fffffffffffffffff\r\nabcd\r\n",
    b"-0\r\n\r\n",
    b"\xd9\xa4\r\nabcd\r\n",
]


@pytest.mark.parametrize("chunk", CHUNKS)
async def test_a_chunk_that_could_be_read_in_two_ways_ends_the_connection(
    origin: Origin, relayed: Relayed, ground: Ground, chunk: bytes
) -> None:
    relayed()
    origin.on(b"/up", upload_sink())
    async with Caller(ground.port) as caller:
        await caller.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n" + HIDDEN)
        assert (await caller.read_head()).status == 400
        await caller.read_body()
        assert await caller.read_rest() == (b"", Ended.CLOSED)
    assert [request for request in origin.requests if request.body_is_whole or request.path == b"/smuggled"] == []


@pytest.mark.parametrize("size", [b"4", b"04", b"0000000000000004", b"4;ext", b'4;a=b;c="d"', b"4 "])
async def test_sizes_are_written_anew_and_extensions_end_here(
    origin: Origin, relayed: Relayed, ground: Ground, size: bytes
) -> None:
    relayed()
    origin.on(b"/up", upload_sink())
    answer = await answer_to(ground, POST + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\nabcd\r\n0\r\n\r\n")
    # RFC 9112 section 7.1.1 has no blanks behind a size; who refuses them is right, too.
    assert answer.data == b"4" or (size == b"4 " and answer.status == 400)


LINES = [
    b"GET /relay/o/a HTTP/1.1\nHost: localhost\r\n\r\n",
    b"GET /relay/o/a HTTP/1.1\r\nHost: localhost\n\r\n",
    b"GET /relay/o/a HTTP/1.1\nHost: localhost\n\n",
    b"GET /relay/o/a HTTP/1.1\rHost: localhost\r\r",
    b"GET /relay/o/a HTTP/1.1\r\nHost: localhost\r\nX: a\nGET /relay/o/smuggled HTTP/1.1\r\n\r\n",
    b"GET /relay/o/a HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
    b"GET /relay/o/a HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n",
    b"GET /relay/o/a HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n",
    b"GET /relay/o/a HTTP/1.1\r\nHost: localhost\r\nX y: z\r\n\r\n",
    b"GET /relay/o/a HTTP/1.1\r\nHost: localhost\r\n\x00: z\r\n\r\n",
    b"GET /relay/o/a HTTP/1.1\r\n\r\nHost: localhost\r\n\r\n",
    b"GET /relay/o/a HTTP/1.1\r\n Host: localhost\r\n\r\n",
    b"GET\t/relay/o/a\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /relay/o/a HTTP/1.1 \r\nHost: localhost\r\n\r\n",
    b"GET /relay/o/a HTTP/1.1\x00\r\nHost: localhost\r\n\r\n",
    b"GET /relay/o/a HTTP/1.1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /relay/o/a http/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /relay/o/a HTTP/1.2\r\nHost: localhost\r\n\r\n",
    b"GET /relay/o/a HTTP/2.0\r\nHost: localhost\r\n\r\n",
    b"GET /relay/o/a HTTP/0.9\r\n\r\n",
    b"GET /relay/o/a HTTP/11\r\nHost: localhost\r\n\r\n",
    b"GET /relay/o/a\r\nHost: localhost\r\n\r\n",
    b"GET /relay/o/a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


async def test_lines_that_could_be_read_in_two_ways_are_refused(
    origin: Origin, relayed: Relayed, ground: Ground
) -> None:
    relayed()
    for lines in LINES:
        assert (await answer_to(ground, lines)).status == 400, lines
    assert origin.requests == []


@pytest.mark.parametrize("line", [b"GET  /relay/o/a HTTP/1.1", b"GET /relay/o/a  HTTP/1.1"])
async def test_the_request_line_is_written_anew(origin: Origin, relayed: Relayed, ground: Ground, line: bytes) -> None:
    relayed()
    await answer_to(ground, line + b"\r\nHost: localhost\r\n\r\n")
    assert [request.line for request in origin.requests] == [b"GET /a HTTP/1.1"]


async def test_what_an_early_answer_left_unread_is_no_request(origin: Origin, relayed: Relayed, ground: Ground) -> None:
    relayed(methods=frozenset({"GET"}))
    async with Caller(ground.port) as caller:
        await caller.send(POST + b"Content-Length: %d\r\n\r\n" % len(HIDDEN))
        head = await caller.read_head()
        await caller.read_body()
        await caller.send(HIDDEN + HIDDEN)
        assert (head.status, head.values(b"connection")) == (405, [b"close"])
        assert await caller.read_rest() == (b"", Ended.CLOSED)
    assert origin.requests == []


@pytest.mark.parametrize("expect", [b"100-continue", b"100-Continue", b"200-ok", b"100-continue, 100-continue", b""])
async def test_games_with_expectations_move_no_border(
    origin: Origin, relayed: Relayed, ground: Ground, expect: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "CONTINUE_SECONDS", 0.05)  # this origin never says 100
    relayed()
    origin.on(b"/up", upload_sink())
    async with Caller(ground.port) as caller:
        for number in range(1, 4):
            await caller.send(POST + b"Expect: %b\r\nContent-Length: %d\r\n\r\n" % (expect, len(HIDDEN)) + HIDDEN)
            while (head := await caller.read_head()).status == 100:
                pass
            assert head.status == 200
            assert (await caller.read_body()).data == b"%d" % len(HIDDEN)
            assert [request.path for request in origin.requests] == [b"/up"] * number


# Splitting: no byte that a caller shapes begins a line of its own on the way up.

SHAPED = [
    b"X-Any: a%bX-Injected: 1",
    b"Host: localhost%bX-Injected: 1",
    b"Cookie: relay.o.a=b%bX-Injected: 1",
    b"Via: 1.1 a%bX-Injected: 1",
    b"X-Request-Id: abcdefgh%bX-Injected: 1",
    b"X-Forwarded-For: 127.0.0.2%bX-Injected: 1",
    b"X-Forwarded-Host: localhost%bX-Injected: 1",
    b"X-Forwarded-Proto: http%bX-Injected: 1",
    b"X-Forwarded-Prefix: /a%bX-Injected: 1",
    b"Forwarded: for=127.0.0.2%bX-Injected: 1",
    b"Range: bytes=0-%bX-Injected: 1",
    b"Authorization: Basic YTpi%bX-Injected: 1",
    b"TE: trailers%bX-Injected: 1",
    b"Connection: close%bX-Injected: 1",
    b"X-A%bX-Injected: 1",
]


@pytest.mark.parametrize("field", SHAPED)
async def test_no_field_is_split(
    origin: Origin, relayed: Relayed, ground: Ground, settings: Settings, field: bytes
) -> None:
    relayed(caller_host=True)
    settings.RELAY_TRUSTED_PROXIES = ("127.0.0.1",)
    for ending in (b"\n", b"\r", b"\x00", b"\x0b", b"\x0c", b"\x1c", b"\r\r\n", b"\n\r"):
        lines = [field % ending] + ([] if field.startswith(b"Host") else [b"Host: localhost"])
        answer = await answer_to(ground, b"GET /relay/o/a HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n")
        assert answer.status == 400, ending
    assert origin.requests == []


@pytest.mark.parametrize(
    "escape", [b"%0d%0a", b"%0D%0A", b"%250d%250a", b"%e5%98%8a%e5%98%8d", b"%u000d%u000a", b"\\r\\n"]
)
async def test_no_escape_becomes_a_line_end(origin: Origin, relayed: Relayed, ground: Ground, escape: bytes) -> None:
    relayed(caller_host=True)
    origin.otherwise(upload_sink())
    query = b"a=b%bX-Injected:%%201" % escape
    lines = [b"Host: localhost", b"X-Any: " + query, b"Cookie: relay.o.a=" + query, b"Via: 1.1 a" + escape]
    answer = await answer_to(ground, b"GET /relay/o/a?%b HTTP/1.1\r\n%b\r\n\r\n" % (query, b"\r\n".join(lines)))
    assert answer.status == 200
    (request,) = origin.requests
    assert request.target == b"/a?" + query
    assert request.values(b"x-injected") == []
    assert request.values(b"x-any") == [query]
