"""Header fields: what is dropped, what is noted, what admins change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import HeadersTooLarge, RequestRefused, UpstreamProtocolFailed
from relay.rules.headers import (
    BEYOND_HOST,
    FILE_ORDERS,
    FIXED_NAMES,
    FORWARDING,
    HOP_BY_HOP,
    ORIGIN_WIDE,
    SANDBOX,
    Pairs,
    RequestFields,
    apply_changes,
    check_rule_name,
    check_rule_value,
    compile_changes,
    isolate,
    read_request,
    read_response,
    read_trailers,
)

HOST = (b"host", b"relay.example")
TOKEN = st.text("!#$%&'*+.^`|~-0123456789abcdefghijklmnopqrstuvwxyz", min_size=1).map(str.encode)
VALUE = st.binary().filter(lambda value: not any(byte < 0x20 or byte == 0x7F for byte in value))


def read(*pairs: tuple[bytes, bytes], max_bytes: int = 10_000) -> RequestFields:
    return read_request([HOST, *pairs], max_bytes=max_bytes)


# Requests.


def test_what_is_not_noted_passes_in_order() -> None:
    pairs = [(b"b", b"1"), (b"a", b"\xff"), (b"b", b"1"), (b"accept", b""), (b"authorization", b"Bearer other")]
    fields = read(*pairs)
    assert fields.pairs == pairs
    assert fields.host == b"relay.example"
    assert (fields.has_body, fields.content_length, fields.chunked, fields.request_id) == (False, None, False, None)


@given(st.lists(st.tuples(TOKEN, VALUE)))
def test_no_pair_that_passes_is_changed(pairs: Pairs) -> None:
    noted = HOP_BY_HOP | FORWARDING | {b"host", b"via", b"cookie", b"expect", b"relay-key", b"x-request-id"}
    noted |= {b"content-length", b"authorization"}
    plain = [pair for pair in pairs if pair[0] not in noted]
    assert read(*plain, max_bytes=10**9).pairs == plain


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP - {b"transfer-encoding"}))
def test_hop_by_hop_fields_are_dropped(name: bytes) -> None:
    assert read((name, b"x"), (b"kept", b"1")).pairs == [(b"kept", b"1")]


def test_what_the_relay_decides_itself_is_noted_and_dropped() -> None:
    fields = read(
        (b"via", b"1.1 a"),
        (b"cookie", b"a=1"),
        (b"x-forwarded-for", b"1.1.1.1"),
        (b"expect", b"100-continue"),
        (b"relay-key", b"rk_x"),
        (b"authorization", b"BEARER \t rk_x"),
        (b"x-request-id", b"abc"),
        (b"content-length", b"7"),
        (b"via", b"2 b"),
        (b"cookie", b"b=2"),
        (b"x-forwarded-for", b"2.2.2.2"),
        (b"forwarded", b"for=x"),
    )
    assert fields.pairs == []
    assert fields.via == (b"1.1 a", b"2 b")
    assert fields.cookies == (b"a=1", b"b=2")
    assert fields.forwarding == {b"x-forwarded-for": [b"1.1.1.1", b"2.2.2.2"], b"forwarded": [b"for=x"]}
    assert (fields.request_id, fields.content_length, fields.has_body) == (b"abc", 7, True)


def test_a_key_may_be_shown_in_two_places_but_not_two_keys() -> None:
    bearer, field = (b"authorization", b"Bearer rk_a"), (b"relay-key", b" rk_a\t")
    for pairs in ([bearer], [field], [bearer, field], [field, bearer], [bearer, bearer]):
        assert read(*pairs).key == b"rk_a"
    assert read().key is None
    for pairs in ([bearer, (b"relay-key", b"rk_b")], [field, (b"authorization", b"Bearer rk_b")]):
        with pytest.raises(RequestRefused, match="differ"):
            read(*pairs)
    with pytest.raises(RequestRefused, match="more than one Relay-Key"):
        read(field, field)


@pytest.mark.parametrize(
    ("referer", "passes"),
    [(b"https://a.example/x?y=1", True), (b"https://a.example/x?relay-signature=abc", False)],
)
def test_a_referer_passes_unless_it_holds_a_signature(referer: bytes, passes: bool) -> None:
    assert read((b"referer", referer)).pairs == ([(b"referer", referer)] if passes else [])


def test_two_request_ids_are_none() -> None:
    assert read((b"x-request-id", b"abc"), (b"x-request-id", b"abc")).request_id == b""


def test_names_with_underscores_are_dropped() -> None:
    assert read((b"x_a", b"1"), (b"_", b"1"), (b"x-a", b"2")).pairs == [(b"x-a", b"2")]


def test_connection_names_what_ends_here() -> None:
    fields = read(
        (b"x-a", b"1"),
        (b"connection", b"X-A, close ,,"),
        (b"x-b", b"2"),
        (b"x-a", b"3"),
        (b"x-c", b"4"),
        (b"connection", b"x-B\t"),
    )
    assert fields.pairs == [(b"x-c", b"4")]


@pytest.mark.parametrize("value", [b"close", b"keep-alive", b"Keep-Alive, close", b"", b" , "])
def test_connections_own_options_name_nothing(value: bytes) -> None:
    assert read((b"connection", value), (b"close", b"1"), (b"x-a", b"2")).pairs == [(b"close", b"1"), (b"x-a", b"2")]


def test_connection_may_name_cookies_and_forwarding_lines() -> None:
    fields = read(
        (b"connection", b"cookie, x-forwarded-for, content-length, host, via, x-missing"),
        (b"cookie", b"a=1"),
        (b"x-forwarded-for", b"1.1.1.1"),
        (b"x-forwarded-host", b"h"),
        (b"content-length", b"3"),
        (b"via", b"1.1 a"),
    )
    assert (fields.cookies, fields.forwarding) == ((), {b"x-forwarded-host": [b"h"]})
    assert (fields.host, fields.content_length, fields.via) == (b"relay.example", 3, (b"1.1 a",))


def test_header_bytes_are_bounded() -> None:
    read((b"a", b"b" * 100), max_bytes=4 + 13 + 101)
    with pytest.raises(HeadersTooLarge):
        read((b"a", b"b" * 100), max_bytes=4 + 13 + 100)
    with pytest.raises(HeadersTooLarge):
        read(*[(b"connection", b"")] * 2000, max_bytes=10_000)


@pytest.mark.parametrize("hosts", [[], [HOST, HOST], [HOST, (b"host", b"")]])
def test_one_host_is_needed(hosts: Pairs) -> None:
    with pytest.raises(RequestRefused):
        read_request(hosts, max_bytes=1000)


@pytest.mark.parametrize(
    "pairs",
    [
        [(b"transfer-encoding", b"gzip")],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
        [(b"transfer-encoding", b"")],
        [(b"transfer-encoding", b"chunked"), (b"content-length", b"3")],
        [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"3"), (b"content-length", b"4")],
        [(b"content-length", b"")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"+1")],
        [(b"content-length", b"1, 1")],
        [(b"content-length", b"0x1")],
        [(b"content-length", b"1_0")],
        [(b"content-length", b"\xb2")],
        [(b"content-length", b"1" * 19)],
    ],
)
def test_framing_that_has_two_readings_is_refused(pairs: Pairs) -> None:
    with pytest.raises(RequestRefused):
        read(*pairs)


def test_framing_is_noted() -> None:
    assert read((b"transfer-encoding", b" Chunked ")).chunked
    assert read((b"transfer-encoding", b"chunked")).has_body
    assert read((b"content-length", b"3"), (b"content-length", b"03")).content_length == 3
    assert not read((b"content-length", b"0")).has_body


# Answers.


def answered(*pairs: tuple[bytes, bytes], status: int = 200) -> Pairs:
    return read_response(pairs, status=status)


def test_answers_pass_in_order_with_names_in_lower_case() -> None:
    assert answered(
        (b"X-A", b"1"), (b"x_b", b"\xff\t"), (b"X-a", b"2"), (b"Set-Cookie", b"a"), (b"SET-COOKIE", b"b")
    ) == [
        (b"x-a", b"1"),
        (b"x_b", b"\xff\t"),
        (b"x-a", b"2"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
    ]


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP | ORIGIN_WIDE | FILE_ORDERS))
def test_what_is_for_one_hop_or_for_the_whole_origin_is_dropped(name: bytes) -> None:
    assert answered((name.upper(), b"x"), (b"a", b"1")) == [(b"a", b"1")]


def test_what_an_answers_connection_names_is_dropped() -> None:
    pairs = [(b"X-A", b"1"), (b"Connection", b"close, x-A"), (b"X-B", b"2"), (b"connection", b"Keep-Alive")]
    assert answered(*pairs) == [(b"x-b", b"2")]


@pytest.mark.parametrize("status", [-1, 0, 99, 100, 101, 199, 600, 999])
def test_a_status_that_no_server_could_send_on_is_the_upstreams_fault(status: int) -> None:
    with pytest.raises(UpstreamProtocolFailed):
        answered(status=status)


@pytest.mark.parametrize("byte", [*range(9), *range(10, 32), 127])
def test_control_bytes_in_values_are_the_upstreams_fault(byte: int) -> None:
    with pytest.raises(UpstreamProtocolFailed):
        answered((b"x-a", b"a%cb" % byte))


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"\xe9", b"a\x00", b"a(", b"a/b", b'"a"', b"a\x7f"])
def test_names_that_are_no_tokens_are_the_upstreams_fault(name: bytes) -> None:
    with pytest.raises(UpstreamProtocolFailed):
        answered((name, b"1"))


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_tell_no_length(status: int) -> None:
    assert answered((b"Content-Length", b"5"), (b"ETag", b"a"), status=status) == [(b"etag", b"a")]
    assert answered((b"Content-Length", b"5")) == [(b"content-length", b"5")]


@given(st.lists(st.tuples(TOKEN, VALUE)))
def test_what_passes_can_be_sent_on(pairs: Pairs) -> None:
    kept = answered(*pairs)
    assert set(kept) <= set(pairs)
    assert not {name for name, _ in kept} & (HOP_BY_HOP | ORIGIN_WIDE)


# Rules.


@pytest.mark.parametrize(
    ("rules", "before", "after"),
    [
        ([], [(b"a", b"1")], [(b"a", b"1")]),
        ([("set", "A", "2")], [(b"a", b"0"), (b"b", b"1"), (b"a", b"1")], [(b"b", b"1"), (b"a", b"2")]),
        ([("set", "A", "2")], [], [(b"a", b"2")]),
        ([("add", "A", "2")], [(b"a", b"1")], [(b"a", b"1"), (b"a", b"2")]),
        ([("remove", "A", "")], [(b"a", b"1"), (b"b", b"2")], [(b"b", b"2")]),
        ([("add", "A", "1"), ("remove", "a", "")], [(b"a", b"0")], []),
        ([("remove", "A", ""), ("add", "a", "1")], [(b"a", b"0")], [(b"a", b"1")]),
        ([("set", "A", "1"), ("set", "A", "2")], [(b"a", b"0")], [(b"a", b"2")]),
        ([("set", "A", "1"), ("add", "A", "é")], [], [(b"a", b"1"), (b"a", b"\xc3\xa9")]),
        ([("add", "B", "1"), ("add", "A", "2"), ("add", "B", "3")], [], [(b"b", b"1"), (b"a", b"2"), (b"b", b"3")]),
    ],
)
def test_later_rules_see_earlier_ones(rules: list[tuple[str, str, str]], before: Pairs, after: Pairs) -> None:
    removed, appended = compile_changes(rules)
    assert apply_changes([*before], removed=removed, appended=appended) == after


RULE = st.tuples(st.sampled_from(["set", "add", "remove"]), st.sampled_from(["A", "b", "C"]), st.sampled_from("xyz"))


@given(st.lists(RULE), st.lists(st.tuples(st.sampled_from([b"a", b"b", b"d"]), st.just(b"0"))))
def test_compiled_rules_do_what_one_after_another_would(rules: list[tuple[str, str, str]], before: Pairs) -> None:
    expected = before
    for action, name, value in rules:
        wire_name = name.lower().encode()
        if action != "add":
            expected = [pair for pair in expected if pair[0] != wire_name]
        if action != "remove":
            expected = [*expected, (wire_name, value.encode())]
    removed, appended = compile_changes(rules)
    assert apply_changes([*before], removed=removed, appended=appended) == expected


@pytest.mark.parametrize("name", ["x-a", "user-agent", "authorization", "x_a", "set-cookie", "x-forwarded-for", "1"])
def test_rules_may_have_these_names(name: str) -> None:
    check_rule_name(name)


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "é", "A", "a\x00", "(a)"])
def test_rules_cannot_have_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="Write one header name such as User-Agent"):
        check_rule_name(name)


@pytest.mark.parametrize("name", sorted(FIXED_NAMES))
def test_rules_cannot_touch_framing_and_what_the_relay_decides(name: str) -> None:
    with pytest.raises(ValueError, match=f"“{name}” frames the message"):
        check_rule_name(name)


def test_a_rule_for_host_says_where_to_choose_it() -> None:
    with pytest.raises(ValueError, match="Choose the host header under delivery instead"):
        check_rule_name("host")


@pytest.mark.parametrize("value", ["", "a b", "tab\there", "Größe", "😀"])
def test_rule_values_are_lines_of_text(value: str) -> None:
    check_rule_value(value)


@pytest.mark.parametrize("value", ["a\nb", "a\r\nX-B: 1", "a\x00", "\x1b[0m", "a\x7f", "\n"])
def test_rule_values_cannot_break_out_of_their_line(value: str) -> None:
    with pytest.raises(ValueError, match="one line of text"):
        check_rule_value(value)


# Trailers.


def test_trailers_pass_in_order_without_what_a_head_decides() -> None:
    pairs = [
        *[(b"X-Sum", b"1"), (b"Content-Length", b"3"), (b"Set-Cookie", b"a=1"), (b"Transfer-Encoding", b"chunked")],
        *[
            (b"X-Forwarded-For", b"1.1.1.1"),
            (b"Cache-Control", b"no-store"),
            (b"Server-Timing", b"a"),
            (b"x-sum", b"2"),
        ],
    ]
    assert read_trailers(pairs) == [(b"x-sum", b"1"), (b"server-timing", b"a"), (b"x-sum", b"2")]


# Origins.


def test_at_a_host_of_its_own_an_upstream_speaks_for_its_origin_alone() -> None:
    pairs = [(name, b"x") for name in sorted(ORIGIN_WIDE)]
    kept = read_response(pairs, status=200, own_host=True)
    assert kept == [pair for pair in pairs if pair[0] not in BEYOND_HOST]
    assert (b"service-worker-allowed", b"x") in kept
    assert BEYOND_HOST < ORIGIN_WIDE


@pytest.mark.parametrize("dropped", [[], [(b"x-content-type-options", b"none")]])
def test_isolated_answers_are_sandboxed_and_never_sniffed(dropped: Pairs) -> None:
    kept = [(b"content-security-policy", b"default-src *"), (b"a", b"1")]
    assert isolate([*dropped, *kept], names={name for name, _ in [*dropped, *kept]}) == [
        *kept,
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", SANDBOX),
    ]


def test_what_browsers_tell_of_a_script_is_noted_and_passes() -> None:
    pairs = [
        (b"origin", b"https://a.example"),
        (b"access-control-request-method", b"PUT"),
        (b"access-control-request-headers", b"x-a"),
        (b"access-control-request-headers", b"x-b"),
        (b"service-worker", b"script"),
    ]
    fields = read_request([(b"host", b"h"), *pairs], max_bytes=1000)
    assert fields.pairs == pairs
    assert (fields.origin, fields.asks_leave, fields.registers_worker) == (b"https://a.example", True, True)
    assert fields.asked_headers == (b"x-a", b"x-b")
    assert read_request([(b"host", b"h"), pairs[0], pairs[0]], max_bytes=1000).origin == b""
