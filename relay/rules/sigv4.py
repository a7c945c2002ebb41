"""AWS Signature Version 4 for requests whose body streams: the head is signed, the body is `UNSIGNED-PAYLOAD`.

What is signed is what goes on the wire: the caller's path and query stay byte for byte, and the canonical forms that
the other side will work out from them are worked out here only to be hashed. S3 encodes a path once, every other
service encodes it twice and takes empty segments out first.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote_from_bytes, unquote_to_bytes

Pairs = list[tuple[bytes, bytes]]

ALGORITHM = b"AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD = b"UNSIGNED-PAYLOAD"
OWN_NAMES = frozenset({b"authorization", b"x-amz-content-sha256", b"x-amz-date", b"x-amz-security-token"})
"""What `sign` adds. A caller's copies are taken out before."""
_SIGNED_NAMES = frozenset({b"content-md5", b"content-type", b"host", b"range"})
"""Signed where present, besides all of `x-amz-`. Others may change on the way without harm."""
_BLANKS = re.compile(rb"[ \t]+")
_SLASHES = re.compile(rb"/+")
_UNRESERVED = "-._~"
_ENCODED_ONCE = frozenset({b"s3", b"s3express", b"s3-object-lambda", b"s3-outposts"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """Who signs, and for what."""

    access_key_id: bytes
    secret_access_key: bytes = field(repr=False)
    session_token: bytes = field(default=b"", repr=False)
    region: bytes
    service: bytes


def sign(
    key: SigningKey, *, method: bytes, target: bytes, pairs: Iterable[tuple[bytes, bytes]], now: datetime
) -> Pairs:
    """The header pairs to add to a request with these `pairs`, names in lower case, `host` among them. `now` is UTC."""
    moment = now.strftime("%Y%m%dT%H%M%SZ").encode()
    added = [(b"x-amz-content-sha256", UNSIGNED_PAYLOAD), (b"x-amz-date", moment)]
    if key.session_token:
        added.append((b"x-amz-security-token", key.session_token))
    signed = [pair for pair in pairs if pair[0] in _SIGNED_NAMES or pair[0].startswith(b"x-amz-")]
    value = authorization(
        key, method=method, target=target, signed=[*signed, *added], payload=UNSIGNED_PAYLOAD, moment=moment
    )
    return [*added, (b"authorization", value)]


def authorization(
    key: SigningKey,
    *,
    method: bytes,
    target: bytes,
    signed: Iterable[tuple[bytes, bytes]],
    payload: bytes,
    moment: bytes,
) -> bytes:
    """The value of Authorization. `payload` is the body's hash in hexadecimal, or what stands for it."""
    fields: dict[bytes, list[bytes]] = {}
    for name, value in signed:
        fields.setdefault(name, []).append(_BLANKS.sub(b" ", value.strip(b" \t")))
    names = sorted(fields)
    path, _, query = target.partition(b"?")
    signed_names = b";".join(names)
    request = b"\n".join(
        (
            method,
            canonical_path(path, service=key.service),
            canonical_query(query),
            *(name + b":" + b",".join(fields[name]) for name in names),
            b"",
            signed_names,
            payload,
        )
    )
    scope = b"/".join((moment[:8], key.region, key.service, b"aws4_request"))
    digest = hashlib.sha256(request).hexdigest().encode()
    signature = _digest(_derived_key(key, moment[:8]), b"\n".join((ALGORITHM, moment, scope, digest))).hex().encode()
    return b"%b Credential=%b/%b, SignedHeaders=%b, Signature=%b" % (
        ALGORITHM,
        key.access_key_id,
        scope,
        signed_names,
        signature,
    )


def canonical_path(path: bytes, *, service: bytes) -> bytes:
    """Of the path on the wire, which has no dot segments."""
    if service in _ENCODED_ONCE:
        return quote_from_bytes(unquote_to_bytes(path), safe="/" + _UNRESERVED).encode() or b"/"
    return quote_from_bytes(_SLASHES.sub(b"/", path), safe="/" + _UNRESERVED).encode() or b"/"


def canonical_query(query: bytes) -> bytes:
    """Parameters encoded alike and in order. A plus is a space, as every reader of queries has it."""
    parameters = []
    for parameter in query.split(b"&"):
        if parameter:
            name, _, value = parameter.partition(b"=")
            parameters.append((_encoded(name), _encoded(value)))
    return b"&".join(name + b"=" + value for name, value in sorted(parameters))


def _encoded(text: bytes) -> bytes:
    return quote_from_bytes(unquote_to_bytes(text.replace(b"+", b" ")), safe=_UNRESERVED).encode()


def _derived_key(key: SigningKey, date: bytes) -> bytes:
    derived = b"AWS4" + key.secret_access_key
    for part in (date, key.region, key.service, b"aws4_request"):
        derived = _digest(derived, part)
    return derived


def _digest(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")
