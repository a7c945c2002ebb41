"""A signature covers every byte it is said to cover, and a query gives its signature up byte for byte."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from relay.errors import SignatureExpired, SignatureMisplaced, SignatureRefused
from relay.rules import signing

SECRET = bytes(range(32))
SIGNED: dict[str, Any] = {
    "method": "GET",
    "slug": b"images",
    "path": b"/a/logo.png",
    "query": b"size=2&x=%20",
}
EXPIRES_AT = 1_900_000_000
ID = "abcdefghij"

slugs = st.from_regex(rb"\A[a-z0-9-]{1,20}\Z")
paths = st.binary(max_size=20).map(lambda data: b"/" + data)
queries = st.none() | st.binary(max_size=30)
methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "BREW"])
values = st.from_regex(rb"\A[A-Za-z0-9_.-]{0,30}\Z")


def value_for(secret: bytes = SECRET, *, expires_at: int = EXPIRES_AT, **changes: Any) -> bytes:
    return signing.sign(secret, key_id=ID, expires_at=expires_at, **(SIGNED | changes))


def check(value: bytes, *, secret: bytes = SECRET, now: float = EXPIRES_AT - 1, **changes: Any) -> None:
    signing.check(signing.read(value), secret, now=now, **(SIGNED | changes))


# What is signed.


@given(method=methods, slug=slugs, path=paths, query=queries, expires_at=st.integers(1, 10**11))
def test_what_was_signed_checks(method: str, slug: bytes, path: bytes, query: bytes | None, expires_at: int) -> None:
    request: dict[str, Any] = {"method": method, "slug": slug, "path": path, "query": query}
    check(value_for(expires_at=expires_at, **request), now=expires_at - 0.001, **request)


@given(method=methods, slug=slugs, path=paths, query=queries, expires_at=st.integers(1, 10**11))
@example(method="GET", slug=b"a", path=b"/b", query=None, expires_at=1)
@example(method="GET", slug=b"a", path=b"/b", query=b"", expires_at=1)
def test_it_is_what_a_second_implementation_makes_of_the_documents(
    method: str, slug: bytes, path: bytes, query: bytes | None, expires_at: int
) -> None:
    message = b""
    for part in (b"relay-signature", b"1", method.encode(), slug, path, str(expires_at).encode()):
        message += str(len(part)).encode() + b":" + part + b","
    if query is not None:
        message += str(len(query)).encode() + b":" + query + b","
    code = base64.urlsafe_b64encode(hmac.new(SECRET, message, hashlib.sha256).digest()).decode().rstrip("=")
    made = value_for(method=method, slug=slug, path=path, query=query, expires_at=expires_at)
    assert made.decode() == f"1.{ID}.{expires_at}.{code}"


requests = st.tuples(methods, slugs, paths, queries, st.integers(1, 10**11))


@given(signed=requests, asked=requests)
@example(signed=("GET", b"a", b"/bc", None, 9), asked=("GET", b"a", b"/b", b"c", 9))
@example(signed=("GET", b"a", b"/b", None, 9), asked=("GET", b"a", b"/b", b"", 9))
@example(signed=("GET", b"ab", b"/", None, 9), asked=("GET", b"a", b"b/", None, 9))
def test_no_two_requests_have_one_signature(signed: Any, asked: Any) -> None:
    assume(signed != asked)
    assume((signed[0], asked[0]) != ("GET", "HEAD") or signed[1:] != asked[1:])
    names = ("method", "slug", "path", "query", "expires_at")
    code = signing.read(value_for(**dict(zip(names, signed, strict=True)))).code
    other = dict(zip(names, asked, strict=True))
    forged = b"1.%b.%d.%b" % (ID.encode(), other.pop("expires_at"), code)
    with pytest.raises(SignatureRefused):
        check(forged, now=0, **other)


@pytest.mark.parametrize("part", ["method", "slug", "path", "query"])
def test_any_byte_changed_is_refused(part: str) -> None:
    value = value_for()
    original: Any = SIGNED[part]
    raw = original.encode() if part == "method" else original
    for place in range(len(raw)):
        for bit in (0x01, 0x20):
            changed: Any = raw[:place] + bytes([raw[place] ^ bit]) + raw[place + 1 :]
            with pytest.raises(SignatureRefused):
                check(value, **{part: changed.decode() if part == "method" else changed})


def test_any_character_of_the_parameter_changed_is_refused() -> None:
    value = value_for()
    # The key's id only says which secret to check with: another key's secret does not match.
    for place in [0, *range(len(ID) + 2, len(value))]:
        for other in b"Aa0_-.":
            changed = value[:place] + bytes([other]) + value[place + 1 :]
            if changed != value:
                with pytest.raises(SignatureRefused):
                    check(changed)


@given(st.binary(min_size=32, max_size=32))
def test_another_secret_signs_otherwise(other: bytes) -> None:
    assume(other != SECRET)
    with pytest.raises(SignatureRefused):
        check(value_for(other))


def test_get_opens_head_and_nothing_else_opens_anything_else() -> None:
    check(value_for(method="GET"), method="HEAD")
    check(value_for(method="HEAD"), method="HEAD")
    for signed, asked in [("HEAD", "GET"), ("GET", "POST"), ("GET", "get"), ("POST", "HEAD"), ("GET", "OPTIONS")]:
        with pytest.raises(SignatureRefused):
            check(value_for(method=signed), method=asked)


@pytest.mark.parametrize(
    ("now", "is_open"), [(0, True), (EXPIRES_AT - 0.001, True), (EXPIRES_AT, False), (EXPIRES_AT + 1e9, False)]
)
def test_it_opens_until_its_expiry(now: float, is_open: bool) -> None:
    if is_open:
        check(value_for(), now=now)
    else:
        with pytest.raises(SignatureExpired):
            check(value_for(), now=now)


def test_only_who_holds_a_signature_is_told_that_it_has_expired() -> None:
    with pytest.raises(SignatureRefused) as refused:
        check(value_for(b"x" * 32), now=EXPIRES_AT)
    assert not isinstance(refused.value, SignatureExpired)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"1",
        b"2" + value_for()[1:],
        value_for() + b"=",
        value_for()[:-1],
        value_for() + b"\n",
        b"1.ABCDEFGHIJ.1900000000." + b"A" * 43,
        b"1.abcdefghi.1900000000." + b"A" * 43,
        b"1.abcdefghij.01900000000." + b"A" * 43,
        b"1.abcdefghij.-1." + b"A" * 43,
        b"1.abcdefghij.9999999999999." + b"A" * 43,
        b"1.abcdefghij.1900000000." + b"+" * 43,
        "1.abcdefghij.١٢٣.".encode() + b"A" * 43,
    ],
)
def test_what_has_not_the_form_is_refused(value: bytes) -> None:
    with pytest.raises(SignatureRefused):
        signing.read(value)


def test_nothing_secret_is_in_a_repr() -> None:
    signature = signing.read(value_for())
    assert signature.code.decode() not in repr(signature)


def test_ids_have_the_letters_of_key_names() -> None:
    assert signing.make_id(bytes) == "a" * signing.ID_CHARACTERS
    made = signing.make_id(lambda count: bytes(range(200, 200 + count)))
    assert signing.read(b"1.%b.1.%b" % (made.encode(), b"A" * 43)).key_id == made


# How a query carries it.


@given(query=queries, value=values)
@example(query=None, value=b"v")
@example(query=b"", value=b"v")
@example(query=b"a=1&", value=b"v")
@example(query=b"&", value=b"")
def test_every_query_comes_back_byte_for_byte(query: bytes | None, value: bytes) -> None:
    assume(not signing.is_in(b"?" + (query or b"")))
    assert signing.split(signing.join(query, value)) == (query, value)


@given(query=queries)
def test_a_query_without_a_signature_stays_as_it_is(query: bytes | None) -> None:
    assume(not signing.is_in(b"?" + (query or b"")))
    assert signing.split(query) == (query, None)


@pytest.mark.parametrize(
    ("query", "left", "value"),
    [
        (b"relay-signature=v", None, b"v"),
        (b"&relay-signature=v", b"", b"v"),
        (b"a&relay-signature=v", b"a", b"v"),
        (b"a=1&b=2&relay-signature=v", b"a=1&b=2", b"v"),
        (b"a=1&&relay-signature=v", b"a=1&", b"v"),
        (b"a=relay-signature&relay-signature=", b"a=relay-signature", b""),
        (b"relay-signature=v=w?x", None, b"v=w?x"),
    ],
)
def test_the_last_parameter_is_the_signature(query: bytes, left: bytes | None, value: bytes) -> None:
    assert signing.split(query) == (left, value)


@pytest.mark.parametrize(
    "query",
    [
        b"relay-signature",
        b"relay-signature=v&a=1",
        b"relay-signature=v&",
        b"relay-signature=v;a=1",
        b"a=1;relay-signature=v",
        b"relay-signature=v&relay-signature=w",
        b"relay-signature&relay-signature=w",
        b"%72elay-signature=v",
        b"relay%2dsignature=v",
        b"relay%2Dsignature=v",
        b"%52elay-signature=v",
        b"Relay-Signature=v",
        b"RELAY-SIGNATURE=v",
        b"a=1&%72%65%6c%61%79%2d%73%69%67%6e%61%74%75%72%65=v",
        b"%72elay-signature=v&relay-signature=w",
        b"relay-signature=v&%72elay-signature=w",
    ],
)
def test_elsewhere_twice_or_spelled_otherwise_it_is_refused(query: bytes) -> None:
    with pytest.raises(SignatureMisplaced):
        signing.split(query)


@pytest.mark.parametrize(
    "query",
    [b"", b"a=relay-signature", b"relay-signatures=v", b"x-relay-signature=v", b"relay_signature=v", b"a=%26relay-sig"],
)
def test_what_only_resembles_it_is_the_upstreams(query: bytes) -> None:
    assert signing.split(query) == (query, None)


spellings = st.lists(
    st.sampled_from([b"&", b";", b"=", b"a", b"relay", b"-", b"signature", b"%72elay", b"RELAY", b"%2D", b"%2d"]),
    max_size=9,
).map(b"".join)


@given(query=spellings | st.binary(max_size=40))
def test_names_are_found_as_by_decoding_each(query: bytes) -> None:
    names = [piece.partition(b"=")[0] for piece in query.replace(b";", b"&").split(b"&")]
    decoded = [unquote_to_bytes(name).lower() for name in names]
    assert signing.is_in(b"/x?" + query) == (b"relay-signature" in decoded)
    if decoded.count(b"relay-signature") > 1:
        with pytest.raises(SignatureMisplaced):
            signing.split(query)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (b"https://h/relay/a/x?relay-signature=v", True),
        (b"https://h/relay/a/x?a=1&relay%2dsignature=v#f", True),
        (b"/relay/a/relay-signature=v", False),
        (b"https://h/?a=relay-signature", False),
        (b"https://h/x#?relay-signature=v", True),
        (b"", False),
    ],
)
def test_urls_with_a_signature_are_known(url: bytes, found: bool) -> None:
    assert signing.is_in(url) is found
