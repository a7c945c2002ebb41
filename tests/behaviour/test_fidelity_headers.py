"""Header fields pass both ways in their order, with their repetitions and bytes; what belongs to one hop does not."""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime

import pytest
from pytest_django.fixtures import Settings

from relay import conf
from relay.catalog import HeaderChanges
from relay.rules.headers import compile_changes
from tests.behaviour.conftest import Relayed
from tests.caller import Caller
from tests.origin import Origin, raw, reply
from tests.serving_ground import Ground

ADDED_TOWARDS_UPSTREAMS = {
    b"host",
    b"via",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"x-forwarded-prefix",
    b"x-request-id",
}
HOP_BY_HOP = [
    (b"Keep-Alive", b"timeout=5"),
    (b"Proxy-Authenticate", b"Basic"),
    (b"Proxy-Authentication-Info", b"x"),
    (b"Proxy-Authorization", b"Basic c2VjcmV0"),
    (b"Proxy-Connection", b"keep-alive"),
    (b"TE", b"trailers"),
    (b"Trailer", b"X-Sum"),
    (b"HTTP2-Settings", b"AAMAAABk"),
]


def passed(pairs: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What is not one of the relay's own additions on the way up."""
    return [pair for pair in pairs if pair[0] not in ADDED_TOWARDS_UPSTREAMS]


async def test_a_request_gets_nothing_but_what_the_relay_says_of_itself(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    await caller.get(b"/relay/o/a")
    arrived = await origin.next_request()
    assert {name for name, _ in arrived.headers} == ADDED_TOWARDS_UPSTREAMS
    assert len(arrived.headers) == len(ADDED_TOWARDS_UPSTREAMS)


async def test_request_fields_keep_order_repetition_and_bytes(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    sent = [
        (b"x-a", b"1"),
        (b"accept", b"text/html;q=0.5, */*"),
        (b"x-b", b"caf\xc3\xa9 \xff\x80 latin \xe9"),
        (b"x-a", b"2"),
        (b"x-empty", b""),
        (b"x-tab", b"a\tb  c"),
        (b"x-a", b"1"),
        (b"user-agent", b'odd/1 "quotes" (;,)'),
        (b"accept-encoding", b"zstd, br"),
        (b"authorization", b"Basic dXNlcjpwYXNz"),
        (b"x-!#$%&'*+.^`|~", b"token"),
        (b"if-none-match", b'W/"a", "b"'),
        (b"range", b"bytes=0-1,-5"),
    ]
    relayed()
    await caller.get(b"/relay/o/a", sent)
    assert passed((await origin.next_request()).headers) == sent


async def test_response_fields_keep_order_repetition_and_bytes(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    sent = [
        (b"x-a", b"1"),
        (b"server", b"Odd/0"),
        (b"x-b", b"caf\xc3\xa9 \xff\x80 latin \xe9"),
        (b"x-a", b"2"),
        (b"x-empty", b""),
        (b"x-tab", b"a\tb  c"),
        (b"www-authenticate", b'Basic realm="a, b"'),
        (b"www-authenticate", b"Digest x"),
        (b"x-a", b"1"),
        (b"date", b"not a date"),
        (b"vary", b"Accept"),
        (b"vary", b"Origin"),
        (b"x-!#$%&'*+.^`|~", b"token"),
        (b"x_under_score", b"kept"),
        (b"content-length", b"0"),
    ]
    relayed()
    origin.on(b"/a", reply(200, sent))
    answer = await caller.get(b"/relay/o/a")
    assert answer.head.headers[: len(sent)] == sent
    assert [name for name, _ in answer.head.headers[len(sent) :]] == [
        b"via",
        b"x-request-id",
        b"x-content-type-options",
        b"content-security-policy",
    ]


async def test_set_cookie_lines_stay_separate(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    lines = [b"a=1; Expires=Wed, 21 Oct 2037 07:28:00 GMT", b"b=2, 3; Partitioned; Secure", b"a=\xff"]
    origin.on(b"/a", reply(200, [(b"Set-Cookie", line) for line in lines]))
    answer = await caller.get(b"/relay/o/a")
    assert answer.values(b"set-cookie") == [b"relay.o." + line for line in lines]


async def test_hop_by_hop_fields_end_at_the_relay_both_ways(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/a", reply(200, [*HOP_BY_HOP, (b"X-Kept", b"1")]))
    answer = await caller.get(b"/relay/o/a", [*HOP_BY_HOP, (b"x-kept", b"1")])
    # `TE: trailers` is said anew by the relay, for its own connection.
    said = [(b"te", b"trailers"), (b"connection", b"te")]
    assert passed((await origin.next_request()).headers) == [(b"x-kept", b"1"), *said]
    names = [name for name, _ in answer.head.headers]
    assert not {name.lower() for name, _ in HOP_BY_HOP} & set(names)
    assert b"x-kept" in names


async def test_fields_that_connection_names_end_at_the_relay_both_ways(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    named = [(b"X-One", b"1"), (b"Connection", b"x-one, Keep-Alive"), (b"X-Two", b"2"), (b"Connection", b"X-TWO")]
    relayed()
    origin.on(b"/a", reply(200, [*named, (b"X-Kept", b"1")]))
    answer = await caller.get(b"/relay/o/a", [*named, (b"x-kept", b"1"), (b"x-one", b"again")])
    assert passed((await origin.next_request()).headers) == [(b"x-kept", b"1")]
    assert not {b"x-one", b"x-two", b"connection"} & {name for name, _ in answer.head.headers}
    assert answer.values(b"x-kept") == [b"1"]


async def test_connection_cannot_name_away_what_the_relay_says(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    own = (
        b"host, via, forwarded, x-forwarded-for, x-forwarded-proto, x-forwarded-host, x-forwarded-prefix, x-request-id"
    )
    await caller.get(b"/relay/o/a", [(b"Connection", own + b", content-length")], method=b"POST", body=b"abc")
    arrived = await origin.next_exchange()
    assert {name for name, _ in arrived.head.headers} == ADDED_TOWARDS_UPSTREAMS | {b"content-length"}


async def test_an_upgrade_is_not_passed_on(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    upgrade = [(b"Connection", b"Upgrade"), (b"Upgrade", b"h2c"), (b"HTTP2-Settings", b"AAMAAABk")]
    assert (await caller.get(b"/relay/o/a", upgrade)).status == 404
    assert passed((await origin.next_request()).headers) == []


async def test_names_with_underscores_are_not_passed_up(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    await caller.get(b"/relay/o/a", [(b"X_Forwarded_For", b"1.1.1.1"), (b"Content_Length", b"7"), (b"x-a", b"1")])
    assert passed((await origin.next_request()).headers) == [(b"x-a", b"1")]


async def test_the_relays_own_keys_end_at_the_relay(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    keys = [(b"Relay-Key", b"rk_secret"), (b"Authorization", b"Bearer rk_secret"), (b"authorization", b"Bearer other")]
    await caller.get(b"/relay/o/a", keys)
    assert passed((await origin.next_request()).headers) == [(b"authorization", b"Bearer other")]


# Framing: a message that could be read in two ways is refused.


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"Host: localhost\r\nHost: localhost\r\n",
        b"Host: localhost\r\nHost: other.example\r\n",
        b"Host: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Host: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        b"Host: localhost\r\nTransfer-Encoding: gzip, chunked\r\n",
        b"Host: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Host: localhost\r\nTransfer-Encoding: identity\r\n",
        b"Host: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n",
        b"Host: localhost\r\nContent-Length: 3\r\nContent-Length: 3\r\n",
        b"Host: localhost\r\nContent-Length: +3\r\n",
        b"Host: localhost\r\nContent-Length: -3\r\n",
        b"Host: localhost\r\nContent-Length: 3, 3\r\n",
        b"Host: localhost\r\nContent-Length: 0x3\r\n",
        b"Host: localhost\r\nX-A: 1\r\n folded\r\n",
        b"Host: localhost\r\nX-A : 1\r\n",
        b"Host: localhost\r\nX A: 1\r\n",
        b"Host: localhost\r\n: 1\r\n",
        b"Host: localhost\r\nX-A: a\x00b\r\n",
        b"Host: localhost\r\nX-A: a\x01b\r\n",
        b"Host: localhost\r\nX-A: a\rb\r\n",
        b"Host: localhost\r\nX-\xe9: 1\r\n",
    ],
)
async def test_a_request_that_could_be_read_in_two_ways_is_refused(
    origin: Origin, relayed: Relayed, caller: Caller, lines: bytes
) -> None:
    relayed()
    await caller.send(b"POST /relay/o/a HTTP/1.1\r\n" + lines + b"\r\n")
    assert (await caller.read_head()).status == 400
    assert origin.connections_made == 0


async def test_too_many_header_bytes_are_431(
    origin: Origin, relayed: Relayed, caller: Caller, settings: Settings
) -> None:
    settings.RELAY_MAX_HEADER_BYTES = 2048
    relayed()
    assert (await caller.get(b"/relay/o/a", [(b"x-a", b"a" * 1800)])).status == 404
    answer = await caller.get(b"/relay/o/a", [(b"x-a", b"a" * 1800), (b"x-b", b"b" * 300)])
    assert answer.status == 431
    assert json.loads(answer.data)["type"] == "urn:relay:error:headers-too-large"
    assert len(origin.requests) == 1


# Host, Via, forwarding, request ids.


async def test_the_upstream_gets_its_own_host_or_the_callers(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(authority=b"api.example:8443")
    await caller.get(b"/relay/o/a", [(b"Host", b"LocalHost:1234")])
    assert (await origin.next_request()).headers[0] == (b"host", b"api.example:8443")
    relayed(caller_host=True)
    await caller.get(b"/relay/o/a", [(b"Host", b"LocalHost:1234")])
    assert (await origin.next_request()).headers[0] == (b"host", b"LocalHost:1234")


async def test_via_tells_of_the_relay_both_ways(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    name = conf.current().via.encode()
    origin.on(b"/a", reply(200, [(b"Via", b"1.1 cdn"), (b"Via", b"2 edge")]))
    answer = await caller.get(b"/relay/o/a", [(b"Via", b"1.0 fred, 1.1 p.example (Apache)"), (b"via", b"2 x")])
    assert answer.values(b"via") == [b"1.1 cdn", b"2 edge", b"1.1 " + name]
    assert (await origin.next_request()).values(b"via") == [b"1.0 fred, 1.1 p.example (Apache), 2 x, 1.1 " + name]


async def test_via_tells_the_callers_http_version(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    await caller.send(b"GET /relay/o/a HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert (await caller.read_head()).status == 404
    assert (await origin.next_request()).values(b"via") == [b"1.0 " + conf.current().via.encode()]


async def test_an_upstream_that_is_the_relay_itself_ends_in_508(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    relayed(port=ground.port, authority=b"localhost:%d" % ground.port, base_path=b"/relay/o")
    answer = await caller.get(b"/relay/o/a")
    assert answer.status == 508
    assert json.loads(answer.data)["type"] == "urn:relay:error:loop"
    assert answer.values(b"proxy-status") == [f"{conf.current().via}; error=proxy_loop_detected".encode()]


@pytest.mark.parametrize("via", [b"1.1 %b", b"1.0 a, 1.1 %b (comment)", b"1.1 a,HTTP/1.1\t%b ,2 b"])
async def test_a_request_that_has_been_here_is_a_loop(
    origin: Origin, relayed: Relayed, caller: Caller, via: bytes
) -> None:
    relayed()
    assert (await caller.get(b"/relay/o/a", [(b"Via", via % conf.current().via.encode())])).status == 508
    assert (await caller.get(b"/relay/o/a", [(b"Via", b"1.1 not-%b" % conf.current().via.encode())])).status == 404
    assert origin.connections_made == 1


FORGED = [
    (b"Forwarded", b"for=198.51.100.9"),
    (b"X-Forwarded-For", b"203.0.113.7"),
    (b"X-Forwarded-Proto", b"https"),
    (b"X-Forwarded-Host", b"shop.example"),
    (b"X-Forwarded-Prefix", b"/outer"),
    (b"X-Request-Id", b"id-of-the-proxy-1"),
]


async def test_what_a_stranger_says_of_itself_is_replaced(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    answer = await caller.get(b"/relay/o/a", [(b"Host", b"localhost:80"), *FORGED])
    arrived = await origin.next_request()
    assert arrived.values(b"forwarded") == [b'for=127.0.0.1;host="localhost:80";proto=http']
    assert arrived.values(b"x-forwarded-for") == [b"127.0.0.1"]
    assert arrived.values(b"x-forwarded-proto") == [b"http"]
    assert arrived.values(b"x-forwarded-host") == [b"localhost:80"]
    assert arrived.values(b"x-forwarded-prefix") == [b"/relay/o"]
    (made,) = arrived.values(b"x-request-id")
    assert re.fullmatch(rb"[0-9a-f]{32}", made)
    assert answer.values(b"x-request-id") == [made]


async def test_a_trusted_proxy_is_believed_and_added_to(
    origin: Origin, relayed: Relayed, caller: Caller, settings: Settings
) -> None:
    settings.RELAY_TRUSTED_PROXIES = ("127.0.0.0/8",)
    relayed()
    answer = await caller.get(b"/relay/o/a", [(b"Host", b"localhost"), *FORGED])
    arrived = await origin.next_request()
    assert arrived.values(b"forwarded") == [b"for=198.51.100.9, for=127.0.0.1;host=localhost;proto=http"]
    assert arrived.values(b"x-forwarded-for") == [b"203.0.113.7, 127.0.0.1"]
    assert arrived.values(b"x-forwarded-proto") == [b"https"]
    assert arrived.values(b"x-forwarded-host") == [b"shop.example"]
    assert arrived.values(b"x-forwarded-prefix") == [b"/outer/relay/o"]
    assert arrived.values(b"x-request-id") == answer.values(b"x-request-id") == [b"id-of-the-proxy-1"]


@pytest.mark.parametrize("wrong", [b"short", b"a" * 129, b"has blanks in it", b"<script>alert</script>", b""])
async def test_a_request_id_that_is_not_well_formed_is_made_anew(
    origin: Origin, relayed: Relayed, caller: Caller, settings: Settings, wrong: bytes
) -> None:
    settings.RELAY_TRUSTED_PROXIES = ("127.0.0.1",)
    relayed()
    answer = await caller.get(b"/relay/o/a", [(b"X-Request-Id", wrong)])
    (made,) = (await origin.next_request()).values(b"x-request-id")
    assert re.fullmatch(rb"[0-9a-f]{32}", made)
    assert answer.values(b"x-request-id") == [made]


async def test_two_request_ids_are_none(origin: Origin, relayed: Relayed, caller: Caller, settings: Settings) -> None:
    settings.RELAY_TRUSTED_PROXIES = ("127.0.0.1",)
    relayed()
    await caller.get(b"/relay/o/a", [(b"X-Request-Id", b"id-number-1"), (b"X-Request-Id", b"id-number-2")])
    (made,) = (await origin.next_request()).values(b"x-request-id")
    assert re.fullmatch(rb"[0-9a-f]{32}", made)


# What the relay adds to answers, and what it lets upstreams say.


async def test_date_is_added_only_where_it_is_missing(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/with", reply(200, [(b"Date", b"Thu, 01 Jan 1970 00:00:00 GMT")]))
    assert (await caller.get(b"/relay/o/with")).values(b"date") == [b"Thu, 01 Jan 1970 00:00:00 GMT"]
    (date,) = (await caller.get(b"/relay/o/without")).values(b"date")
    assert date.endswith(b" GMT")
    assert parsedate_to_datetime(date.decode()).year >= 2024


async def test_no_server_of_ours_is_named(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    assert (await caller.get(b"/relay/o/a")).values(b"server") == []
    assert (await caller.get(b"/relay/nobody/a")).values(b"server") == []


async def test_streams_are_marked_nosniff_unless_the_upstream_says_its_own(
    origin: Origin, relayed: Relayed, caller: Caller, settings: Settings
) -> None:
    settings.RELAY_ADMIN_HOSTS = ["admin.test"]
    relayed()
    origin.on(b"/own", reply(200, [(b"X-Content-Type-Options", b"other")]))
    assert (await caller.get(b"/relay/o/a")).values(b"x-content-type-options") == [b"nosniff"]
    assert (await caller.get(b"/relay/o/own")).values(b"x-content-type-options") == [b"other"]
    relayed(max_buffered_bytes=1000)
    assert (await caller.get(b"/relay/o/a")).values(b"x-content-type-options") == []


async def test_an_upstream_does_not_speak_for_the_relays_origin(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    fields = [
        (b"Strict-Transport-Security", b"max-age=1; includeSubDomains"),
        (b"Alt-Svc", b'h3=":443"'),
        (b"Clear-Site-Data", b'"*"'),
        (b"Service-Worker-Allowed", b"/"),
        (b"Public-Key-Pins", b"x"),
    ]
    origin.on(b"/a", reply(200, fields))
    answer = await caller.get(b"/relay/o/a")
    assert not {name.lower() for name, _ in fields} & {name for name, _ in answer.head.headers}


def changes(*rules: tuple[str, str, str]) -> HeaderChanges:
    return HeaderChanges(*compile_changes(rules))


async def test_header_rules_set_add_and_remove_on_the_way_up(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(
        request_changes=changes(
            ("set", "Authorization", "Bearer s3cret"),
            ("add", "X-Tag", "ours"),
            ("remove", "User-Agent", ""),
            ("remove", "X-Forwarded-For", ""),
            ("set", "X-Name", "Größe"),
        )
    )
    sent = [(b"authorization", b"Basic x"), (b"x-tag", b"theirs"), (b"user-agent", b"curl/8")]
    await caller.get(b"/relay/o/a", sent)
    arrived = await origin.next_request()
    assert arrived.values(b"authorization") == [b"Bearer s3cret"]
    assert arrived.values(b"x-tag") == [b"theirs", b"ours"]
    assert arrived.values(b"user-agent") == []
    assert arrived.values(b"x-forwarded-for") == []
    assert arrived.values(b"x-name") == ["Größe".encode()]


async def test_header_rules_set_add_and_remove_on_the_way_back(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(
        response_changes=changes(
            ("set", "Cache-Control", "no-store"),
            ("add", "X-Tag", "ours"),
            ("remove", "Server", ""),
            ("remove", "X-Content-Type-Options", ""),
        )
    )
    origin.on(b"/a", reply(200, [(b"Cache-Control", b"public"), (b"X-Tag", b"theirs"), (b"Server", b"Odd")]))
    answer = await caller.get(b"/relay/o/a")
    assert answer.values(b"cache-control") == [b"no-store"]
    assert answer.values(b"x-tag") == [b"theirs", b"ours"]
    assert answer.values(b"server") == answer.values(b"x-content-type-options") == []


# What an upstream sends and no server could send on.


@pytest.mark.parametrize(
    "line",
    [
        b"X-A: a\x01b",
        b"X-A: a\x7fb",
        b"X-A: a\x00b",
        b"X-A: a\rb",
        b"X A: 1",
        b"X-A : 1",
        b": 1",
        b"X(A): 1",
        b"X-\xe9: 1",
        b"Location: /a\x0bb",
        b"Set-Cookie: a=\x1b",
    ],
)
async def test_a_field_that_cannot_be_sent_on_is_the_upstreams_fault(
    origin: Origin, relayed: Relayed, caller: Caller, line: bytes
) -> None:
    relayed()
    origin.on(b"/a", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + line + b"\r\n\r\nok"))
    answer = await caller.get(b"/relay/o/a")
    assert answer.status == 502
    assert json.loads(answer.data)["type"] == "urn:relay:error:upstream-protocol"
