"""Methods, statuses, framing and bodies pass as they are; whoever speaks HTTP/1.0 or wants a length gets it."""

from __future__ import annotations

import gzip
import json
from typing import cast

import pytest

from tests.behaviour.conftest import Relayed
from tests.caller import Caller, Content, Ended
from tests.origin import Exchange, Origin, chunked, counted, echo, head_bytes, patterned, raw, reply

ORDINARY = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


def problem(data: bytes) -> str:
    kind: str = json.loads(data)["type"].removeprefix("urn:relay:error:")
    return kind


# Methods.


@pytest.mark.parametrize(
    "method", [b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND", b"REPORT", b"QUERY", b"M-SEARCH"]
)
async def test_any_method_passes_where_none_is_named(
    origin: Origin, relayed: Relayed, caller: Caller, method: bytes
) -> None:
    relayed()
    origin.on(b"/a", reply(200, body=b"done"))
    answer = await caller.get(b"/relay/o/a", method=method)
    assert (answer.status, answer.data) == (200, b"done")
    assert (await origin.next_request()).method == method


@pytest.mark.parametrize("method", [b"BREW", b"FOO", b"SETUP", b"!#$%&'*+.^_`|~-1", b"X" * 64])
@pytest.mark.parametrize("methods", [frozenset(), frozenset({"BREW", "FOO", "SETUP", "!#$%&'*+.^_`|~-1", "X" * 64})])
@pytest.mark.parametrize("body", [None, b"counted", [b"chun", b"ked"]])
async def test_methods_that_the_parser_does_not_know_pass_too(
    origin: Origin, relayed: Relayed, caller: Caller, method: bytes, methods: frozenset[str], body: Content
) -> None:
    relayed(methods=methods)
    origin.on(b"/a", echo())
    for _ in range(2):
        told = json.loads((await caller.get(b"/relay/o/a?b", method=method, body=body)).data)
        assert told["line"] == method.decode() + " /a?b HTTP/1.1"
        assert told["body_length"] == (len(b"".join(body)) if isinstance(body, list) else len(cast(bytes, body or b"")))


@pytest.mark.parametrize("method", [b"get", b"head", b"bReW"])
async def test_methods_pass_in_the_case_they_were_sent_in(
    origin: Origin, relayed: Relayed, caller: Caller, method: bytes
) -> None:
    relayed()
    origin.on(b"/a", reply(200, body=b"done"))
    answer = await caller.get(b"/relay/o/a", method=method)
    assert (await origin.next_request()).method == method
    assert (answer.status, answer.data) == (200, b"done")


async def test_a_method_in_another_case_is_another_method(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(methods=frozenset({"GET", "BREW"}))
    for method in (b"get", b"Brew"):
        answer = await caller.get(b"/relay/o/a", method=method)
        assert (answer.status, answer.values(b"allow")) == (405, [b"BREW, GET"])
    assert origin.connections_made == 0


async def test_only_named_methods_pass_and_allow_names_them(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(methods=frozenset({"PROPFIND", "GET"}))
    origin.on(b"/a", reply(200))
    assert (await caller.get(b"/relay/o/a", method=b"PROPFIND")).status == 200
    for method in (b"POST", b"HEAD", b"OPTIONS"):
        answer = await caller.get(b"/relay/o/a", method=method)
        assert answer.status == 405
        assert answer.values(b"allow") == [b"GET, PROPFIND"]
    assert len(origin.requests) == 1


@pytest.mark.parametrize("methods", [frozenset(), frozenset({"GET", "TRACE", "CONNECT"})])
@pytest.mark.parametrize("method", [b"TRACE", b"trace", b"connect"])
async def test_trace_never_passes(
    origin: Origin, relayed: Relayed, caller: Caller, methods: frozenset[str], method: bytes
) -> None:
    relayed(methods=methods)
    answer = await caller.get(b"/relay/o/a", method=method)
    assert answer.status == 405
    assert problem(answer.data) == "method-not-allowed"
    assert not {b"TRACE", b"CONNECT"} & set(answer.values(b"allow")[0].split(b", "))
    assert origin.connections_made == 0


@pytest.mark.parametrize("target", [b"localhost:443", b"/relay/o/a", b"127.0.0.1:1"])
async def test_connect_never_passes(origin: Origin, relayed: Relayed, caller: Caller, target: bytes) -> None:
    relayed(methods=frozenset({"GET", "CONNECT"}))
    await caller.send(b"CONNECT " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await caller.read_head()).status in (400, 404, 405)
    assert origin.connections_made == 0


# Statuses.


@pytest.mark.parametrize("status", [200, 201, 207, 226, 299, 301, 308, 400, 401, 418, 429, 451, 499, 500, 511, 599])
async def test_the_status_passes_as_it_is(origin: Origin, relayed: Relayed, caller: Caller, status: int) -> None:
    relayed()
    origin.on(b"/a", reply(status, [(b"Retry-After", b"7")], b"body of %d" % status))
    answer = await caller.get(b"/relay/o/a")
    assert (answer.status, answer.data) == (status, b"body of %d" % status)
    assert answer.values(b"retry-after") == [b"7"]


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 600 Odd",
        b"HTTP/1.1 999 Odd",
        b"HTTP/1.1 099 Odd",
        b"HTTP/1.1 101 Switching Protocols",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"ICY 200 OK",
        b"<html>",
    ],
)
async def test_a_status_that_no_caller_could_be_sent_is_502(
    origin: Origin, relayed: Relayed, caller: Caller, line: bytes
) -> None:
    relayed()
    origin.on(b"/a", raw(line + b"\r\nContent-Length: 2\r\n\r\nok"))
    answer = await caller.get(b"/relay/o/a")
    assert (answer.status, problem(answer.data)) == (502, "upstream-protocol")


async def test_interim_answers_that_no_caller_can_use_end_at_the_relay(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    interim = b"HTTP/1.1 103 Early Hints\r\nX-A: no link\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    origin.on(b"/a", raw(interim + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", then="keep"))
    for _ in range(2):
        answer = await caller.get(b"/relay/o/a")
        assert (answer.status, answer.data, answer.interim) == (200, b"ok", [])
    assert origin.connections_made == 1


# Bodies that are not there.


@pytest.mark.parametrize("delivery", [{}, {"max_buffered_bytes": 10}])
async def test_an_answer_to_head_tells_the_length_of_what_it_leaves_out(
    origin: Origin, relayed: Relayed, caller: Caller, delivery: dict[str, int]
) -> None:
    relayed(**delivery)
    origin.on(b"/a", counted(5_000_000))
    for _ in range(2):
        answer = await caller.get(b"/relay/o/a", method=b"HEAD")
        assert (answer.status, answer.values(b"content-length")) == (200, [b"5000000"])
    assert origin.connections_made == 1
    assert answer.values(b"transfer-encoding") == []


async def test_an_answer_to_head_without_a_length_has_none(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/a", chunked([b"never sent"]))
    for _ in range(2):
        answer = await caller.get(b"/relay/o/a", method=b"HEAD")
        assert (answer.status, answer.values(b"content-length")) == (200, [])
    assert origin.connections_made == 1


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("length", [b"", b"Content-Length: 0\r\n", b"Content-Length: 1234\r\n"])
@pytest.mark.parametrize("delivery", [{}, {"max_buffered_bytes": 10}])
async def test_answers_that_have_no_body_keep_the_connections(
    origin: Origin, relayed: Relayed, caller: Caller, status: int, length: bytes, delivery: dict[str, int]
) -> None:
    if status == 204 and length:
        length = b""  # RFC 9110 section 8.6 forbids it; a server that sends it anyway is met below
    relayed(**delivery)
    origin.on(b"/a", raw(b'HTTP/1.1 %d X\r\nETag: "a"\r\n%b\r\n' % (status, length), then="keep"))
    for _ in range(2):
        answer = await caller.get(b"/relay/o/a")
        assert (answer.status, answer.data, answer.values(b"etag")) == (status, b"", [b'"a"'])
    assert origin.connections_made == 1


async def test_a_204_with_a_length_is_still_without_a_body(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/a", raw(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", then="keep"))
    answer = await caller.get(b"/relay/o/a")
    assert (answer.status, answer.data, answer.values(b"transfer-encoding")) == (204, b"", [])


async def test_empty_answers_stay_empty(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/counted", reply(200))
    origin.on(b"/chunked", chunked([]))
    assert (await caller.get(b"/relay/o/counted")).body.ended is Ended.COUNTED
    assert (await caller.get(b"/relay/o/chunked")).body.ended is Ended.CHUNKED


# Bodies that are.


async def test_ranges_and_conditions_pass_untouched(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    conditions = [
        (b"range", b"bytes=5-9,-3"),
        (b"if-range", b'"v1"'),
        (b"if-match", b'"v1", W/"v2"'),
        (b"if-none-match", b"*"),
        (b"if-modified-since", b"Wed, 21 Oct 2015 07:28:00 GMT"),
        (b"if-unmodified-since", b"not a date"),
    ]
    part = [(b"Content-Range", b"bytes 5-9/100"), (b"Accept-Ranges", b"bytes"), (b"ETag", b'W/"v2"')]
    origin.on(b"/a", reply(206, part, b"56789"))
    answer = await caller.get(b"/relay/o/a", conditions)
    assert (answer.status, answer.data) == (206, b"56789")
    assert [answer.values(name) for name, _ in part] == [[value] for _, value in part]
    arrived = await origin.next_request()
    assert [pair for pair in arrived.headers if pair[0] in dict(conditions)] == conditions


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd", b"deflate", b"gzip, br", b"made-up"])
@pytest.mark.parametrize("delivery", [{}, {"max_buffered_bytes": 100_000}])
async def test_coded_bodies_pass_undecoded(
    origin: Origin, relayed: Relayed, caller: Caller, coding: bytes, delivery: dict[str, int]
) -> None:
    body = gzip.compress(patterned(10_000)) if coding == b"gzip" else b"\x1f\x8b" + patterned(3000)
    relayed(**delivery)
    origin.on(b"/counted", reply(200, [(b"Content-Encoding", coding)], body))
    origin.on(b"/chunked", chunked([body[:100], body[100:]], headers=[(b"Content-Encoding", coding)]))
    for path in (b"/relay/o/counted", b"/relay/o/chunked"):
        answer = await caller.get(path, [(b"accept-encoding", b"identity")])
        assert answer.data == body
        assert answer.values(b"content-encoding") == [coding]


async def test_counted_answers_stay_counted_and_chunked_ones_chunked(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    origin.on(b"/counted", counted(300_000))
    origin.on(b"/chunked", chunked([b"a", b"b" * 100_000, b"c"], trailers=[(b"X-Sum", b"1")]))
    whole = (await caller.get(b"/relay/o/counted")).body
    assert (whole.data, whole.ended) == (patterned(300_000), Ended.COUNTED)
    whole = (await caller.get(b"/relay/o/chunked")).body
    assert (whole.data, whole.ended) == (b"a" + b"b" * 100_000 + b"c", Ended.CHUNKED)


async def test_an_answer_that_ends_with_its_connection_is_whole(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    origin.on(b"/new", raw(b"HTTP/1.1 200 OK\r\n\r\n" + patterned(100_000)))
    origin.on(b"/old", raw(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold times"))
    assert (await caller.get(b"/relay/o/new")).data == patterned(100_000)
    answer = await caller.get(b"/relay/o/old")
    assert (answer.data, answer.body.ended, answer.head.line[:8]) == (b"old times", Ended.CHUNKED, b"HTTP/1.1")


@pytest.mark.parametrize("length", [0, 1, 70_000])
async def test_request_bodies_keep_their_framing(origin: Origin, relayed: Relayed, caller: Caller, length: int) -> None:
    relayed()
    origin.on(b"/a", echo())
    body = patterned(length)
    told = json.loads((await caller.get(b"/relay/o/a", method=b"PUT", body=body)).data)
    assert told["body_length"] == length
    assert ["content-length", str(length)] in told["headers"]
    told = json.loads((await caller.get(b"/relay/o/a", method=b"PUT", body=[body] if body else [])).data)
    assert told["body_length"] == length
    assert ["transfer-encoding", "chunked"] in told["headers"]
    assert "content-length" not in dict(told["headers"])


async def test_a_request_without_a_body_gets_no_framing(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    for method in (b"GET", b"DELETE", b"POST"):
        await caller.get(b"/relay/o/a", method=method)
        arrived = await origin.next_request()
        assert arrived.values(b"content-length") == arrived.values(b"transfer-encoding") == []


async def test_a_get_may_have_a_body(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/a", echo())
    assert json.loads((await caller.get(b"/relay/o/a", body=b"odd")).data)["body_length"] == 3


# Buffered delivery.


@pytest.mark.parametrize(
    "kind", [b"application/json", b"text/plain; charset=iso-8859-1", b"application/octet-stream", b"a/b; c=\xe9"]
)
async def test_buffered_answers_come_with_their_length_and_type_as_sent(
    origin: Origin, relayed: Relayed, caller: Caller, kind: bytes
) -> None:
    relayed(max_buffered_bytes=1000)
    body = b'{"caf\xe9": 1}\r\n\x00\xff'
    origin.on(b"/counted", reply(201, [(b"Content-Type", kind)], body))
    origin.on(b"/chunked", chunked([body[:3], body[3:]], status=201, headers=[(b"Content-Type", kind)]))
    origin.on(b"/closed", raw(head_bytes(201, [(b"Content-Type", kind)]) + body))
    for path in (b"/relay/o/counted", b"/relay/o/chunked", b"/relay/o/closed"):
        answer = await caller.get(path)
        assert (answer.status, answer.data, answer.body.ended) == (201, body, Ended.COUNTED)
        assert answer.values(b"content-type") == [kind]
        assert answer.values(b"content-length") == [b"%d" % len(body)]


@pytest.mark.parametrize("script", [counted(20_000_000), chunked([patterned(20_000)] * 1000)])
async def test_an_answer_too_large_to_buffer_is_502(
    origin: Origin, relayed: Relayed, caller: Caller, script: object
) -> None:
    relayed(max_buffered_bytes=1000)
    origin.on(b"/a", script)  # type: ignore[arg-type]  # parametrize knows no scripts
    answer = await caller.get(b"/relay/o/a")
    assert (answer.status, problem(answer.data)) == (502, "buffer-exceeded")
    await origin.until_connections(0)


async def test_an_answer_as_large_as_the_buffer_fits(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(max_buffered_bytes=1000)
    origin.on(b"/a", counted(1000))
    assert (await caller.get(b"/relay/o/a")).data == patterned(1000)


# HTTP/1.0, keep-alive.


@pytest.mark.parametrize("script", [counted(70_000), chunked([patterned(70_000)])])
async def test_a_caller_of_http_1_0_gets_no_chunks(
    origin: Origin, relayed: Relayed, caller: Caller, script: object
) -> None:
    relayed()
    origin.on(b"/a", script)  # type: ignore[arg-type]  # parametrize knows no scripts
    await caller.send(b"GET /relay/o/a HTTP/1.0\r\nHost: localhost\r\n\r\n")
    head = await caller.read_head()
    body = await caller.read_body()
    assert (head.status, body.data) == (200, patterned(70_000))
    assert head.values(b"transfer-encoding") == []
    assert await caller.read_rest() == (b"", Ended.CLOSED)


async def test_a_caller_of_http_1_0_is_told_errors_without_chunks(relayed: Relayed, caller: Caller) -> None:
    await caller.send(b"GET /relay/nobody HTTP/1.0\r\nHost: localhost\r\n\r\n")
    head = await caller.read_head()
    assert (head.status, head.values(b"transfer-encoding")) == (404, [])
    assert problem((await caller.read_body()).data) == "upstream-unknown"


async def test_connections_are_kept_on_both_sides(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/counted", counted(100_000))
    origin.on(b"/chunked", chunked([b"a", b"b"]))
    for path in (b"/counted", b"/chunked", b"/missing", b"/counted"):
        answer = await caller.get(b"/relay/o" + path)
        assert answer.body.ended.cleanly
        assert answer.values(b"connection") == []
    assert origin.connections_made == 1


async def test_neither_side_keeps_a_connection_that_the_other_gives_up(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()

    async def last_answer(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        await exchange.close()

    origin.on(b"/last", last_answer)
    for _ in range(2):
        answer = await caller.get(b"/relay/o/last")
        assert (answer.data, answer.values(b"connection")) == (b"ok", [])
    assert origin.connections_made == 2
    answer = await caller.get(b"/relay/o/a", [(b"Connection", b"close")])
    assert answer.values(b"connection") == [b"close"]
    assert await caller.read_rest() == (b"", Ended.CLOSED)


async def test_pipelined_requests_are_answered_in_their_order(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    for number in range(4):
        origin.on(b"/%d" % number, reply(200, body=b"%d" % number))
    await caller.send(b"".join(b"GET /relay/o/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number for number in range(4)))
    for number in range(4):
        assert (await caller.read_head()).status == 200
        assert (await caller.read_body()).data == b"%d" % number
