"""Signatures are those that AWS publishes and botocore makes; what is signed is what goes on the wire."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

import pytest
from botocore.auth import UNSIGNED_PAYLOAD, S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from relay.rules import sigv4
from relay.rules.sigv4 import SigningKey, authorization, canonical_path, canonical_query, sign

EMPTY = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
SUITE = SigningKey(
    access_key_id=b"AKIDEXAMPLE",
    secret_access_key=b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    region=b"us-east-1",
    service=b"service",
)
"""Of the test suite that AWS publishes for Signature Version 4."""
S3 = SigningKey(
    access_key_id=b"AKIAIOSFODNN7EXAMPLE",
    secret_access_key=b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    region=b"us-east-1",
    service=b"s3",
)
"""Of the examples in the S3 API reference, "Signature Calculations for the Authorization Header"."""
MOMENT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def signature(value: bytes) -> bytes:
    return value.rpartition(b"Signature=")[2]


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        (b"GET", b"/", b"5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        (b"POST", b"/", b"5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (b"GET", b"/?Param2=value2&Param1=value1", b"b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"),
    ],
    ids=["get-vanilla", "post-vanilla", "get-vanilla-query-order-key-case"],
)
def test_the_suite_of_aws(method: bytes, target: bytes, expected: bytes) -> None:
    signed = [(b"host", b"example.amazonaws.com"), (b"x-amz-date", b"20150830T123600Z")]
    made = authorization(SUITE, method=method, target=target, signed=signed, payload=EMPTY, moment=b"20150830T123600Z")
    assert signature(made) == expected
    assert made.startswith(
        b"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        b"SignedHeaders=host;x-amz-date, Signature="
    )


@pytest.mark.parametrize(
    ("method", "target", "more", "payload", "expected"),
    [
        (
            b"GET",
            b"/test.txt",
            [(b"range", b"bytes=0-9")],
            EMPTY,
            b"f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            b"PUT",
            b"/test$file.text",
            [(b"date", b"Fri, 24 May 2013 00:00:00 GMT"), (b"x-amz-storage-class", b"REDUCED_REDUNDANCY")],
            b"44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            b"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (b"GET", b"/?lifecycle", [], EMPTY, b"fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        (
            b"GET",
            b"/?max-keys=2&prefix=J",
            [],
            EMPTY,
            b"34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
    ids=["get object", "put object", "lifecycle", "list objects"],
)
def test_the_examples_of_s3(
    method: bytes, target: bytes, more: list[tuple[bytes, bytes]], payload: bytes, expected: bytes
) -> None:
    moment = b"20130524T000000Z"
    signed = [
        (b"host", b"examplebucket.s3.amazonaws.com"),
        (b"x-amz-content-sha256", payload),
        (b"x-amz-date", moment),
        *more,
    ]
    made = authorization(S3, method=method, target=target, signed=signed, payload=payload, moment=moment)
    assert signature(made) == expected


# No slash within a name: S3 signs its key with it as it is, and botocore, which never sends it escaped, would not.
segments = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("C",), exclude_characters="/"), min_size=1, max_size=8),
    max_size=4,
)
values = st.text(st.characters(codec="utf-8"), max_size=8)


@given(
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
    path=segments.filter(lambda path: not {".", ".."} & set(path)),
    query=st.lists(
        st.tuples(st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1), values), max_size=4
    ),
    service=st.sampled_from(["s3", "execute-api"]),
    session_token=st.sampled_from(["", "session/token=="]),
    content_type=st.sampled_from(["", "application/json", "text/plain;  charset=utf-8"]),
)
def test_a_streamed_body_is_signed_as_botocore_signs_it(
    method: str, path: list[str], query: list[tuple[str, str]], service: str, session_token: str, content_type: str
) -> None:
    """botocore is given what the wire has: it hashes no body, and is told the time."""
    target = "/" + "/".join(quote(segment, safe="-._~") for segment in path)
    if query:
        target += "?" + urlencode(query, quote_via=quote)
    key = SigningKey(
        access_key_id=b"AKID", secret_access_key=b"sec/ret+", session_token=session_token.encode(),
        region=b"eu-central-1", service=service.encode(),
    )  # fmt: skip
    pairs = [(b"host", b"bucket.example:8443"), (b"user-agent", b"any"), (b"x-amz-meta-a", b"b")]
    if content_type:
        pairs.append((b"content-type", content_type.encode()))
    made = sign(key, method=method.encode(), target=target.encode(), pairs=pairs, now=MOMENT)

    request = AWSRequest(
        method, "https://bucket.example:8443" + target, {name.decode(): value.decode() for name, value in pairs}
    )
    request.headers["X-Amz-Date"] = request.context["timestamp"] = "20260304T050607Z"
    request.headers["X-Amz-Content-SHA256"] = UNSIGNED_PAYLOAD
    if session_token:
        request.headers["X-Amz-Security-Token"] = session_token
    request.context["payload_signing_enabled"] = False
    del request.headers["user-agent"]
    theirs = (S3SigV4Auth if service == "s3" else SigV4Auth)(Credentials("AKID", "sec/ret+"), service, "eu-central-1")
    canonical = theirs.canonical_request(request)
    expected = theirs.signature(theirs.string_to_sign(request, canonical), request)
    assert signature(dict(made)[b"authorization"]).decode() == expected


def test_the_head_that_goes_out_has_the_signature_and_all_that_it_needs() -> None:
    key = SigningKey(
        access_key_id=b"AKID", secret_access_key=b"s", session_token=b"token", region=b"eu-west-1", service=b"s3"
    )
    pairs = [(b"host", b"h"), (b"accept", b"*/*"), (b"range", b"bytes=0-1"), (b"x-amz-acl", b"private")]
    made = dict(sign(key, method=b"GET", target=b"/a", pairs=pairs, now=MOMENT))
    assert set(made) == sigv4.OWN_NAMES
    assert made[b"x-amz-content-sha256"] == b"UNSIGNED-PAYLOAD"
    assert made[b"x-amz-date"] == b"20260304T050607Z"
    assert made[b"x-amz-security-token"] == b"token"
    names = re.search(rb"SignedHeaders=([^,]+)", made[b"authorization"])
    assert names is not None
    assert names[1] == b"host;range;x-amz-acl;x-amz-content-sha256;x-amz-date;x-amz-security-token"


@pytest.mark.parametrize(
    ("path", "once", "twice"),
    [
        (b"/", b"/", b"/"),
        (b"/a%20b", b"/a%20b", b"/a%2520b"),
        (b"/a!(b)", b"/a%21%28b%29", b"/a%21%28b%29"),
        (b"/%7Ea", b"/~a", b"/%257Ea"),
        (b"//a//b/", b"//a//b/", b"/a/b/"),
        (b"/a%2Fb", b"/a/b", b"/a%252Fb"),
    ],
)
def test_s3_encodes_a_path_once_and_others_twice(path: bytes, once: bytes, twice: bytes) -> None:
    assert canonical_path(path, service=b"s3") == once
    assert canonical_path(path, service=b"lambda") == twice


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"", b""),
        (b"b=2&a=1", b"a=1&b=2"),
        (b"a=2&a=1", b"a=1&a=2"),
        (b"acl", b"acl="),
        (b"a=x+y&b=x%20y", b"a=x%20y&b=x%20y"),
        (b"a=b=c", b"a=b%3Dc"),
        (b"a=%7e/", b"a=~%2F"),
        (b"&&a=1&", b"a=1"),
    ],
)
def test_a_querys_canonical_form(query: bytes, expected: bytes) -> None:
    assert canonical_query(query) == expected


@given(st.binary(max_size=40))
def test_a_querys_canonical_form_is_its_own(query: bytes) -> None:
    assert canonical_query(canonical_query(query)) == canonical_query(query)


def test_no_secret_shows() -> None:
    key = SigningKey(
        access_key_id=b"AKID", secret_access_key=b"s3cret", session_token=b"t0ken", region=b"r", service=b"s"
    )
    assert "s3cret" not in repr(key)
    assert "t0ken" not in repr(key)
