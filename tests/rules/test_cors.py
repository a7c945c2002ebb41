"""What browsers are told about scripts of other origins, and what an admin may write about them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.cors import (
    DEFAULT_HEADERS,
    CorsPolicy,
    canonical_names,
    canonical_origins,
    compile_policy,
    without_own_fields,
)

APP = b"https://app.example"
PREFLIGHT_VARY = (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers")
VARY = (b"vary", b"Origin")


def policy(**fields: Any) -> CorsPolicy:
    given: dict[str, Any] = {
        "origins": "https://app.example",
        "methods": "",
        "headers": DEFAULT_HEADERS,
        "exposed": "",
        "allow_credentials": False,
        "max_age_seconds": None,
    }
    compiled = compile_policy(**given | fields)
    assert compiled is not None
    return compiled


def test_without_origins_there_is_no_policy() -> None:
    assert (
        compile_policy(origins="", methods="GET", headers="*", exposed="*", allow_credentials=True, max_age_seconds=1)
        is None
    )


@pytest.mark.parametrize(
    ("fields", "origin", "lines"),
    [
        ({}, APP, [VARY, (b"access-control-allow-origin", APP)]),
        ({}, None, [VARY]),
        ({}, b"", [VARY]),
        ({}, b"null", [VARY]),
        ({}, b"https://app.example.evil.example", [VARY]),
        ({}, b"http://app.example", [VARY]),
        ({}, b"https://app.example:444", [VARY]),
        ({}, b"HTTPS://APP.example", [VARY]),
        (
            {"allow_credentials": True, "exposed": "X-A, X-B"},
            APP,
            [
                VARY,
                (b"access-control-allow-origin", APP),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", b"X-A, X-B"),
            ],
        ),
        ({"allow_credentials": True, "exposed": "X-A"}, b"https://other.example", [VARY]),
        (
            {"origins": "*", "exposed": "*"},
            None,
            [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", b"*")],
        ),
        ({"origins": "*"}, b"null", [(b"access-control-allow-origin", b"*")]),
        ({"origins": "https://a.example\nhttps://app.example"}, APP, [VARY, (b"access-control-allow-origin", APP)]),
    ],
)
def test_an_answer_says_who_may_read_it(fields: dict[str, Any], origin: bytes | None, lines: list[Any]) -> None:
    assert list(policy(**fields).answer(origin)) == lines


@pytest.mark.parametrize(
    ("fields", "asked", "told"),
    [
        (
            {},
            [],
            {
                b"access-control-allow-origin": APP,
                b"access-control-allow-methods": b"GET, HEAD, POST, PUT, PATCH, DELETE",
                b"access-control-allow-headers": b"Authorization, Content-Type, Relay-Key",
            },
        ),
        (
            {
                "methods": "GET, POST, PURGE",
                "upstream_methods": frozenset({"POST", "PURGE"}),
                "headers": "",
                "max_age_seconds": 0,
            },
            [b"x-a"],
            {
                b"access-control-allow-origin": APP,
                b"access-control-allow-methods": b"POST, PURGE",
                b"access-control-max-age": b"0",
            },
        ),
        (
            {
                "upstream_methods": frozenset({"PUT", "GET"}),
                "headers": "*",
                "allow_credentials": True,
                "exposed": "X-A",
            },
            [b"authorization,x-a", b" relay-key "],
            {
                b"access-control-allow-origin": APP,
                b"access-control-allow-methods": b"GET, PUT",
                b"access-control-allow-headers": b"authorization,x-a,  relay-key",
                b"access-control-allow-credentials": b"true",
            },
        ),
        (
            {"origins": "*", "headers": "*"},
            [b"x-a\xff, x-b"],
            {
                b"access-control-allow-origin": b"*",
                b"access-control-allow-methods": b"GET, HEAD, POST, PUT, PATCH, DELETE",
            },
        ),
    ],
)
def test_a_preflight_is_told_what_may_be_sent(
    fields: dict[str, Any], asked: list[bytes], told: dict[bytes, bytes]
) -> None:
    vary, *lines = policy(**fields).preflight(APP, asked)
    assert vary == PREFLIGHT_VARY
    assert dict(lines) == told
    assert len(lines) == len(told)


@given(st.binary(max_size=30), st.lists(st.binary(max_size=20)))
def test_an_origin_that_is_not_named_is_told_nothing(origin: bytes, asked: list[bytes]) -> None:
    named = policy(allow_credentials=True, headers="*", exposed="X-A", max_age_seconds=5)
    if origin != APP:
        assert named.answer(origin) == (VARY,)
        assert named.preflight(origin, asked) == (PREFLIGHT_VARY,)


@given(st.lists(st.binary(max_size=30), max_size=4))
def test_what_is_echoed_is_a_list_of_names(asked: list[bytes]) -> None:
    lines = dict(policy(headers="*").preflight(APP, asked))
    echoed = lines.get(b"access-control-allow-headers", b"")
    assert all(name.strip(b" \t").isascii() and b"\r" not in name and b"\n" not in name for name in echoed.split(b","))


def test_any_origin_with_credentials_cannot_be_compiled() -> None:
    with pytest.raises(ValueError, match="credentials"):
        policy(origins="*", allow_credentials=True)


def test_the_upstreams_own_fields_give_way() -> None:
    pairs = [
        (b"access-control-allow-origin", b"*"),
        (b"vary", b"Accept"),
        (b"access-control-max-age", b"1"),
        (b"a", b"1"),
    ]
    assert without_own_fields(pairs) == [(b"vary", b"Accept"), (b"a", b"1")]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        (" * ", "*"),
        ("HTTPS://App.Example:443", "https://app.example"),
        ("http://localhost:3000, https://a.example\nhttp://localhost:3000", "http://localhost:3000\nhttps://a.example"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://ABC", "chrome-extension://abc"),
    ],
)
def test_origins_are_written_as_browsers_write_them(text: str, canonical: str) -> None:
    assert canonical_origins(text) == canonical
    assert canonical_origins(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("null", "sandboxed"),
        ("* https://a.example", "leave out"),
        ("https://a.example/", "path"),
        ("https://a.example/app", "path"),
        ("https://u:p@a.example", "user name"),
        ("https://a.example?q", "query"),
        ("a.example", "scheme"),
        ("https://*.a.example", "host"),
        ("app:/x", "scheme"),
    ],
)
def test_what_is_no_origin_is_refused_with_what_to_write(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        canonical_origins(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("", ""), ("x-a,X-B  x-A", "x-A, X-B"), ("*", "*"), ("Content-Type", "Content-Type")],
)
def test_header_names_are_listed_once(text: str, canonical: str) -> None:
    assert canonical_names(text) == canonical
    assert canonical_names(canonical) == canonical


@pytest.mark.parametrize("text", ["X-A: 1", "x(a)", "*, X-A", "é", "a;b"])
def test_what_is_no_header_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="header"):
        canonical_names(text)
