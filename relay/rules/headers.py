"""Header fields on their way through: what is dropped, what is noted, what admins change.

Works on the raw pairs of the wire, names lower-case on the request side. Order, repetition and value bytes are kept.
Strip first, inject last: everything a caller could shape is gone before the relay's own fields are added, and header
rules come after those. Forwarding fields, cookies and places are the neighbours' business (`forwarding`, `cookies`,
`location`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from relay.errors import HeadersTooLarge, RequestRefused, UpstreamProtocolFailed
from relay.rules import keys, signing

Pairs = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
"""RFC 9110 section 7.6.1, and what deployed software treats alike."""

FORWARDING = frozenset(
    {b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-prefix"}
)

BEYOND_HOST = frozenset(
    b"alt-svc clear-site-data expect-ct nel public-key-pins public-key-pins-report-only report-to "
    b"secure-session-registration sec-session-registration strict-transport-security".split()
)
"""Response fields that speak for more than a host name: its other ports and sites below it, its certificate, who else
answers for it. An upstream may not say them, not even at a host name of its own."""

ORIGIN_WIDE = BEYOND_HOST | frozenset(
    b"accept-ch critical-ch origin-agent-cluster reporting-endpoints service-worker-allowed set-login "
    b"use-as-dictionary".split()
)
"""Response fields that speak for a whole origin. An upstream may not speak for one that it shares with others."""

FILE_ORDERS = frozenset({b"x-accel-redirect", b"x-litespeed-location", b"x-lighttpd-send-file", b"x-sendfile"})
"""Response fields by which servers in front are told to send a file of theirs. An upstream may not order that."""

FIXED_NAMES = frozenset(
    {name.decode() for name in HOP_BY_HOP} | {"content-length", "expect", "host", "relay-key", "via"}
)
"""What no header rule may touch: framing, hop-by-hop, and what the relay itself decides."""

_NOTED = (
    HOP_BY_HOP
    | FORWARDING
    | {b"authorization", b"content-length", b"cookie", b"expect", b"host", b"referer", b"relay-key"}
    | {
        b"access-control-request-headers",
        b"access-control-request-method",
        b"origin",
        b"service-worker",
        b"via",
        b"x-request-id",
    }
)
_DROPPED_AT_OWN_HOST = HOP_BY_HOP | BEYOND_HOST | FILE_ORDERS
_DROPPED_FROM_ANSWERS = HOP_BY_HOP | ORIGIN_WIDE | FILE_ORDERS

SANDBOX = b"sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"
"""Gives a page an origin that nothing else has, and lets it work as far as that goes. Without `allow-same-origin`
neither it nor what it opens or frames can act as the origin it came from."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_UNSENDABLE_NAME = re.compile(rb'[\x00-\x20\x7f()<>@,;:\\\[\]={}"/?\x80-\xff]|^$')
_UNSENDABLE_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(slots=True)
class RequestFields:
    """A caller's header fields, sorted once. `pairs` may go on as they are; the rest was noted and dropped."""

    pairs: Pairs
    host: bytes = b""
    key: bytes | None = None
    """What was shown as a relay key, well-formed or not."""
    content_length: int | None = None
    chunked: bool = False
    request_id: bytes | None = None
    expects_continue: bool = False
    """The caller sends its body only when told to go on (RFC 9110 section 10.1.1)."""
    accepts_trailers: bool = False
    """The caller said `TE: trailers`."""
    registers_worker: bool = False
    """A browser asks for a script that would answer in the origin's place (Service Workers, section 4)."""
    origin: bytes | None = None
    """Of the script that calls (RFC 6454 section 7); empty when it is told more than once."""
    asks_leave: bool = False
    """A browser asks whether a script of another origin may call: a CORS preflight, where the method is OPTIONS."""
    asked_headers: Sequence[bytes] = ()
    """The header names it would send, as the lines that name them."""
    via: Sequence[bytes] = ()
    cookies: Sequence[bytes] = ()
    forwarding: dict[bytes, list[bytes]] = field(default_factory=dict)

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.content_length)


def read_request(pairs: Iterable[tuple[bytes, bytes]], *, max_bytes: int) -> RequestFields:
    """Sort a request's header fields in one pass.

    Raises `HeadersTooLarge`, or `RequestRefused` for framing, Host and keys that could be read in more than one way.
    Names with an underscore are dropped: CGI-like servers cannot tell them from those with a hyphen.
    """
    kept: Pairs = []
    fields = RequestFields(kept)
    size = 0
    nominated: set[bytes] | None = None
    hosts = relay_keys = 0
    for pair in pairs:
        name, value = pair
        size += len(name) + len(value)
        if name not in _NOTED:
            if b"_" not in name:
                kept.append(pair)
        elif name == b"host":
            hosts += 1
            fields.host = value
        elif name == b"authorization":
            shown = keys.of_bearer(value)
            if shown is None:
                kept.append(pair)
            else:
                fields.key = _one_key(shown, fields.key)
        elif name == b"relay-key":
            relay_keys += 1
            fields.key = _one_key(value.strip(b" \t"), fields.key)
        elif name == b"referer":
            if not signing.is_in(value):
                kept.append(pair)
        elif name == b"cookie":
            fields.cookies = (*fields.cookies, value)
        elif name == b"content-length":
            fields.content_length = _content_length(value, fields.content_length)
        elif name == b"connection":
            tokens = _tokens(value)
            nominated = tokens if nominated is None else nominated | tokens
        elif name == b"transfer-encoding":
            if fields.chunked or value.strip().lower() != b"chunked":
                raise RequestRefused("transfer-encoding other than chunked")
            fields.chunked = True
        elif name == b"via":
            fields.via = (*fields.via, value)
        elif name == b"x-request-id":
            fields.request_id = value if fields.request_id is None else b""
        elif name == b"expect":
            fields.expects_continue = value.strip().lower() == b"100-continue"
        elif name == b"te":
            fields.accepts_trailers = b"trailers" in _tokens(value)
        elif name == b"origin":
            fields.origin = value if fields.origin is None else b""
            kept.append(pair)
        elif name == b"access-control-request-method":
            fields.asks_leave = True
            kept.append(pair)
        elif name == b"access-control-request-headers":
            fields.asked_headers = (*fields.asked_headers, value)
            kept.append(pair)
        elif name == b"service-worker":
            fields.registers_worker = True
            kept.append(pair)
        elif name in FORWARDING:
            fields.forwarding.setdefault(name, []).append(value)
    if size > max_bytes:
        raise HeadersTooLarge(f"{size} bytes of header fields")
    if hosts != 1:
        raise RequestRefused("one Host header is needed")
    if relay_keys > 1:
        raise RequestRefused("more than one Relay-Key")
    if fields.chunked and fields.content_length is not None:
        raise RequestRefused("both Content-Length and Transfer-Encoding")
    if nominated:
        nominated -= {b"close", b"keep-alive", b""}
        if nominated:
            kept[:] = [pair for pair in kept if pair[0] not in nominated]
            for name in nominated & FORWARDING:
                fields.forwarding.pop(name, None)
            if b"cookie" in nominated:
                fields.cookies = ()
    return fields


def _tokens(value: bytes) -> set[bytes]:
    return {token.strip().lower() for token in value.split(b",")}


def _one_key(shown: bytes, before: bytes | None) -> bytes:
    if before is not None and before != shown:
        raise RequestRefused("two relay keys that differ")
    return shown


def _content_length(value: bytes, before: int | None) -> int:
    if not value.isdigit() or len(value) > 18 or (before is not None and before != int(value)):
        raise RequestRefused("Content-Length that is not one number")
    return int(value)


def read_response(pairs: Iterable[tuple[bytes, bytes]], *, status: int, own_host: bool = False) -> Pairs:
    """An upstream's header fields without those it may not send on; names in lower case. `own_host`: it shares its
    origin with nobody.

    Raises `UpstreamProtocolFailed` for what no server could send on: control bytes, a status that is none.
    """
    if not 200 <= status <= 599:
        raise UpstreamProtocolFailed(f"status {status}")
    kept: Pairs = []
    nominated: set[bytes] = set()
    dropped = _DROPPED_AT_OWN_HOST if own_host else _DROPPED_FROM_ANSWERS
    for name, value in pairs:
        name = name.lower()
        if name not in dropped:
            kept.append((name, value))
        elif name == b"connection" and value.lower() not in (b"close", b"keep-alive"):
            nominated |= _tokens(value)
    if _UNSENDABLE_VALUE.search(b"".join([value for _, value in kept])):
        raise UpstreamProtocolFailed("control byte in a header value")
    for name, _ in kept:
        if name not in _KNOWN_NAMES and _UNSENDABLE_NAME.search(name):
            raise UpstreamProtocolFailed("header name that is no token")
    if status in (204, 304):
        # A server cannot frame what has no body: uvicorn fails on the length of the answer that was not sent.
        nominated.add(b"content-length")
    return [pair for pair in kept if pair[0] not in nominated] if nominated else kept


def read_trailers(pairs: Pairs) -> Pairs:
    """An upstream's trailer fields without those that only mean something in a head (RFC 9110 section 6.5.1), and what
    it may not send on anyway; names in lower case."""
    kept = [(name.lower(), value) for name, value in pairs]
    return [pair for pair in kept if pair[0] not in _NOT_IN_TRAILERS]


_NOT_IN_TRAILERS = (
    _DROPPED_FROM_ANSWERS
    | FORWARDING
    | frozenset(
        b"age authorization cache-control content-encoding content-length content-location content-range content-type "
        b"cookie date expect expires host link location max-forwards pragma range refresh retry-after set-cookie vary "
        b"via www-authenticate".split()
    )
)
"""Framing, routing, authentication, caching, cookies and places: decided when the head was sent."""

_KNOWN_NAMES = frozenset(
    b"accept-ranges age cache-control content-disposition content-encoding content-language content-length "
    b"content-type date etag expires last-modified link location server set-cookie vary via x-request-id".split()
)
"""Common names that need no look at their bytes."""


def isolate(pairs: Pairs, *, names: set[bytes]) -> Pairs:
    """An answer's pairs with what keeps a browser from running it as the origin that it came from. `names` has theirs.

    A policy of the upstream's own stays beside ours: browsers keep to both (CSP Level 3, section 8.1).
    """
    if b"x-content-type-options" in names:
        pairs = [pair for pair in pairs if pair[0] != b"x-content-type-options"]
    pairs += _ISOLATING
    return pairs


_ISOLATING = ((b"x-content-type-options", b"nosniff"), (b"content-security-policy", SANDBOX))


def apply_changes(pairs: Pairs, *, removed: frozenset[bytes], appended: Sequence[tuple[bytes, bytes]]) -> Pairs:
    """What an upstream's header rules make of `pairs`: the same list where nothing is taken out."""
    if removed:
        for name, _ in pairs:
            if name in removed:  # seldom: a copy costs as much as all the rest
                pairs = [pair for pair in pairs if pair[0] not in removed]
                break
    pairs.extend(appended)
    return pairs


def compile_changes(
    rules: Iterable[tuple[str, str, str]],
) -> tuple[frozenset[bytes], tuple[tuple[bytes, bytes], ...]]:
    """(`removed`, `appended`) for `apply_changes`, from (action, name, value): later ones see earlier ones."""
    removed: set[bytes] = set()
    appended: Pairs = []
    for action, name, value in rules:
        wire_name = name.lower().encode()
        if action != "add":
            removed.add(wire_name)
            appended = [pair for pair in appended if pair[0] != wire_name]
        if action != "remove":
            appended.append((wire_name, value.encode()))
    return frozenset(removed), tuple(appended)


def check_name(name: str) -> None:
    """Raises ValueError, saying what to do, for what is no name of a header field. `name` is lower-case."""
    if not _TOKEN.fullmatch(name):
        raise ValueError("Write one header name such as User-Agent: letters, digits and hyphens, without a colon.")


def check_rule_name(name: str) -> None:
    """Raises ValueError, saying what to do, for a name that a header rule cannot have. `name` is lower-case."""
    check_name(name)
    if name in FIXED_NAMES:
        advice = "Choose the host header under delivery instead." if name == "host" else "The relay sets it itself."
        raise ValueError(f"“{name}” frames the message or belongs to one connection. {advice}")


def check_rule_value(value: str) -> None:
    """Raises ValueError for a value that would break out of its header line."""
    if _CONTROL.search(value):
        raise ValueError("A header value is one line of text: take out line breaks and control characters.")
