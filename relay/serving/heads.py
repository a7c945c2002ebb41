"""The two heads of an exchange: what the upstream is sent, and what the caller is sent back.

Puts the rules of `relay.rules` in their order. Strip first, inject last: the relay's own fields, then the upstream's
header rules, then its credential. What has to wait or to be signed is added by `relay.upstreams.exchange`.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache

from relay.catalog import Target, Upstream
from relay.catalog.jars import jars
from relay.rules import cookies, cors, forwarding, headers, location, paths, queries
from relay.rules.headers import Pairs, RequestFields
from relay.rules.hosts import Place

_PLACED = frozenset({b"location", b"content-location", b"link", b"refresh", b"set-cookie"})
"""Response fields that name places."""


def request_target(upstream: Upstream, rest: bytes, query: bytes | None) -> bytes:
    """The request target at the upstream: what the caller appended to the mount, byte for byte, and the credential that
    is a query parameter. Raises `ParameterRefused`."""
    if upstream.credential is not None and upstream.credential.parameter is not None:
        query = queries.with_parameter(query, upstream.credential.parameter)
    return paths.join_target(upstream.base_prefix + rest if rest else upstream.bare_target, query)


def request_pairs(
    upstream: Upstream,
    fields: RequestFields,
    *,
    target: bytes,
    mount: bytes,
    peer: str | None,
    peer_is_trusted: bool,
    scheme: str,
    request_id: bytes,
    own_hop: bytes,
    passes_trailers: bool,
) -> Pairs:
    """The header pairs the upstream gets: the caller's, stripped; then framing, the relay's own, the rules', and the
    credential's, in whose place nothing else may stand.

    `mount` is empty at a host name of the upstream's own. `passes_trailers`: the server can send the caller trailers.
    """
    pairs = [(b"host", fields.host if upstream.caller_host else upstream.authority)]
    pairs += fields.pairs
    cookie = None
    if upstream.keeps_jar:
        cookie = jars.cookie_header(upstream, _path_of(target))
    elif fields.cookies and upstream.relays_cookies:
        cookie = cookies.outgoing_cookie(fields.cookies, prefix=upstream.cookie_prefix if mount else b"")
    if cookie is not None:
        pairs.append((b"cookie", cookie))
    if fields.chunked:
        pairs.append((b"transfer-encoding", b"chunked"))
    elif fields.content_length is not None:
        pairs.append((b"content-length", b"%d" % fields.content_length))
    if fields.expects_continue and fields.has_body:
        pairs.append((b"expect", b"100-continue"))
    if fields.accepts_trailers and passes_trailers:
        # A field of this connection alone, so the connection has to name it (RFC 9110 section 10.1.4).
        pairs += ((b"te", b"trailers"), (b"connection", b"te"))
    pairs.append((b"via", b", ".join([*fields.via, own_hop])))
    pairs += forwarding.forwarded_headers(
        peer=peer,
        peer_is_trusted=peer_is_trusted,
        scheme=scheme.encode(),
        host=fields.host,
        prefix=mount,
        incoming=fields.forwarding,
    )
    pairs.append((b"x-request-id", request_id))
    changes = upstream.request_changes
    if changes:
        pairs = headers.apply_changes(pairs, removed=changes.removed, appended=changes.appended)
    credential = upstream.credential
    if credential is not None and credential.removed:
        pairs = headers.apply_changes(pairs, removed=credential.removed, appended=credential.appended)
    return pairs


def response_pairs(
    upstream: Upstream,
    pairs: Pairs,
    *,
    sent_to: Target,
    place: Place,
    target: bytes,
    mount: bytes,
    at_root: bool,
    origin: bytes | None,
    request_id: bytes,
    own_name: bytes,
    is_signed: bool = False,
) -> Pairs:
    """The header pairs the caller gets: the upstream's with its places turned into the relay's, then the relay's own.

    `sent_to` is the target that answered, `place` where it was asked for, `target` what the upstream was asked for.
    `at_root`: the request was for the mount itself, without a slash. `origin` is the caller's Origin. `is_signed`: its
    URL is worth keeping secret.
    """
    present = {name for name, _ in pairs}
    if b"set-cookie" in present and not upstream.relays_cookies:
        if upstream.keeps_jar:
            jars.take(upstream, [value for name, value in pairs if name == b"set-cookie"], _path_of(target))
        pairs = [pair for pair in pairs if pair[0] != b"set-cookie"]
    if not _PLACED.isdisjoint(present):
        pairs = _placed(upstream, sent_to, pairs, mount=mount, at_root=at_root, beside_admin=place.shares_origin)
    if upstream.cors is not None:
        pairs = cors.without_own_fields(pairs)
        pairs += upstream.cors.answer(origin)
    pairs.append((b"via", b"1.1 " + own_name))
    if not upstream.open_to_anyone:
        # A shared cache in front must not give one caller's answer to those who show no key.
        pairs.append((b"vary", b"relay-key, authorization"))
    if b"date" not in present:
        pairs.append((b"date", _date(int(time.time()))))
    if b"x-request-id" not in present:
        pairs.append((b"x-request-id", request_id))
    if is_signed:
        # What a signed page loads or links to is not told the page's URL, which opens it.
        pairs = [pair for pair in pairs if pair[0] != b"referrer-policy"]
        pairs.append((b"referrer-policy", b"no-referrer"))
    if place.shares_origin:
        pairs = headers.isolate(pairs, names=present)
    elif mount and upstream.max_buffered_bytes is None and b"x-content-type-options" not in present:
        pairs.append((b"x-content-type-options", b"nosniff"))
    changes = upstream.response_changes
    if changes:
        pairs = headers.apply_changes(pairs, removed=changes.removed, appended=changes.appended)
    return pairs


def preflight_pairs(policy: cors.CorsPolicy, fields: RequestFields, *, request_id: bytes) -> Pairs:
    """The header pairs of the relay's own answer to a CORS preflight."""
    lines = policy.preflight(fields.origin or b"", fields.asked_headers)
    return [*lines, (b"date", _date(int(time.time()))), (b"x-request-id", request_id)]


def hinted_links(upstream: Upstream, sent_to: Target, pairs: Pairs, *, mount: bytes) -> list[bytes]:
    """The `Link` values of an upstream's early hints (RFC 8297), led to the relay."""
    place = _place(upstream, sent_to, mount)
    return [location.relayed_link(value, place) for name, value in pairs if name.lower() == b"link"]


def _path_of(target: bytes) -> bytes:
    return target.partition(b"?")[0]


def _place(upstream: Upstream, sent_to: Target, mount: bytes) -> location.UpstreamPlace:
    named = sent_to if upstream.target_host else upstream
    return location.UpstreamPlace(
        scheme=upstream.scheme.encode(),
        host=named.host.encode(),
        port=named.port,
        base_path=upstream.base_prefix,
        mount=mount,
    )


def _placed(
    upstream: Upstream, sent_to: Target, pairs: Pairs, *, mount: bytes, at_root: bool, beside_admin: bool
) -> Pairs:
    place = _place(upstream, sent_to, mount)
    placed: Pairs = []
    for name, value in pairs:
        if name == b"set-cookie":
            cookie = cookies.relayed_set_cookie(
                value,
                prefix=upstream.cookie_prefix if mount else b"",
                mount=mount,
                base_path=upstream.base_prefix,
                host=place.host,
                at_root=at_root,
                beside_admin=beside_admin,
            )
            if cookie is not None:
                placed.append((name, cookie))
        elif name == b"link":
            placed.append((name, location.relayed_link(value, place)))
        elif name == b"refresh":
            placed.append((name, location.relayed_refresh(value, place)))
        elif name in _PLACED:
            placed.append((name, location.relayed_location(value, place)))
        else:
            placed.append((name, value))
    return placed


@lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
