"""Signed URLs: what a signature says, how a query carries it, and whether it is one.

A signature travels as the query's last parameter, `relay-signature=1.<key id>.<expiry>.<code>`: a version, the public
id of the signing key, the second since the epoch from which it is worth nothing, and HMAC-SHA256 in base64url. What is
signed is the method, the upstream's slug, path and query as they travel, and the expiry, each with its length before
it, so that no byte can move from one to the other. Scheme and host are not signed: the relay answers under the same
path wherever it is reached.

The parameter is cut off before the upstream sees the query, which is then byte for byte what was signed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.errors import SignatureExpired, SignatureMisplaced, SignatureRefused
from relay.rules.keys import NAME_LETTERS

PARAMETER = b"relay-signature"
VERSION = b"1"
ID_CHARACTERS = 10
SECRET_BYTES = 32
LONGEST_SECONDS = 366 * 24 * 3600

_OPENING = PARAMETER + b"="
_VALUE = re.compile(rb"1\.([a-km-np-z2-9]{%d})\.([1-9][0-9]{0,11})\.([A-Za-z0-9_-]{43})" % ID_CHARACTERS)
_SPELLED = re.compile(
    rb"[&;]%b(?=[=&;]|\Z)"
    % b"".join(b"(?:%b|%%%02x|%%%02x)" % (re.escape(bytes([c])), c, ord(chr(c).upper())) for c in PARAMETER),
    re.IGNORECASE,
)
"""The parameter's name in every spelling that a server may read as it, behind what parts parameters."""


@dataclass(frozen=True, slots=True)
class Signature:
    key_id: str
    expires_at: int
    """In seconds since the epoch."""
    code: bytes = field(repr=False)
    """As it travels."""


def make_id(random_bytes: Callable[[int], bytes]) -> str:
    """A public id for a new key. `random_bytes` gives as many as asked for."""
    return "".join(NAME_LETTERS[byte % 32] for byte in random_bytes(ID_CHARACTERS))


def split(query: bytes | None) -> tuple[bytes | None, bytes | None]:
    """(the query without its signature, what the parameter says), of None for no query and empty for a lone `?`.

    Raises `SignatureMisplaced` for a signature that is not the last parameter, is there twice, or is spelled so that
    the upstream would read it where the relay does not.
    """
    start = _find(query) if query else -1
    if query is None or start < 0:
        return query, None
    value = query[start + len(_OPENING) :]
    if not query.startswith(_OPENING, start) or query[:start].endswith(b";") or b"&" in value or b";" in value:
        raise SignatureMisplaced
    return (query[: start - 1] if start else None), value


def join(query: bytes | None, value: bytes) -> bytes:
    """The query that `split` takes apart into these."""
    return _OPENING + value if query is None else b"%b&%b%b" % (query, _OPENING, value)


def is_in(url: bytes) -> bool:
    """Whether the URL holds a signature, or what a server may read as one."""
    return _find(url.partition(b"?")[2]) >= 0


def _find(query: bytes) -> int:
    """Where the parameter's name begins, the first time and however it is spelled; -1 where it does not."""
    # Most queries are done with here; the pattern takes a hundred times as long.
    if b"%" not in query and PARAMETER not in query.lower():
        return -1
    found = _SPELLED.search(b"&" + query)
    return found.start() if found else -1


def sign(
    secret: bytes, *, key_id: str, method: str, slug: bytes, path: bytes, query: bytes | None, expires_at: int
) -> bytes:
    """What the parameter has to say. `path` is what follows the slug; `query` None for none, empty for a lone `?`."""
    code = _code(secret, method=method.encode(), slug=slug, path=path, query=query, expires_at=expires_at)
    return b"%b.%b.%d.%b" % (VERSION, key_id.encode(), expires_at, code)


def read(value: bytes) -> Signature:
    """Raises `SignatureRefused` for what has not the form of a signature."""
    found = _VALUE.fullmatch(value)
    if found is None:
        raise SignatureRefused("no signature of version 1")
    return Signature(found[1].decode(), int(found[2]), found[3])


def check(
    signature: Signature, secret: bytes, *, method: str, slug: bytes, path: bytes, query: bytes | None, now: float
) -> None:
    """Raises `SignatureRefused` unless this very request was signed with `secret`, `SignatureExpired` if it was once.

    What is signed for GET is signed for HEAD, too (RFC 9110 section 9.3.2). Comparing takes the same time wherever the
    codes differ.
    """
    methods = (b"GET", b"HEAD") if method == "HEAD" else (method.encode(),)
    expires_at = signature.expires_at
    codes = [_code(secret, method=one, slug=slug, path=path, query=query, expires_at=expires_at) for one in methods]
    if not any([hmac.compare_digest(code, signature.code) for code in codes]):  # noqa: C419 - all, for the time it takes
        raise SignatureRefused("it signs another request, or was made with another key")
    if now >= expires_at:
        raise SignatureExpired


def _code(secret: bytes, *, method: bytes, slug: bytes, path: bytes, query: bytes | None, expires_at: int) -> bytes:
    said = [PARAMETER, VERSION, method, slug, path, b"%d" % expires_at]
    if query is not None:
        said.append(query)
    message = b"".join([b"%d:%b," % (len(part), part) for part in said])
    return urlsafe_b64encode(hmac.digest(secret, message, hashlib.sha256)).rstrip(b"=")
