"""The relay view: from a request to a decision to an exchange. Reads top to bottom; the rules are in `relay.rules`.

Nothing of the body is read before the decision. Refusals and failures are `RelayError`s, rendered here so that
middleware sees responses.
"""

from __future__ import annotations

import time
from functools import partial
from typing import cast

from django.http import HttpRequest, HttpResponse, HttpResponseBase

from relay import catalog, conf, errors
from relay.catalog import Target, Upstream
from relay.conf import MOUNT
from relay.rules import access, forwarding, headers, paths, signing
from relay.rules.balancing import Balancing
from relay.rules.hosts import check_relay
from relay.serving import gate, heads, hosts
from relay.serving.asgi import EARLY_HINT, SENT_TARGET, TRAILERS
from relay.serving.problems import problem_response
from relay.serving.request import RelayRequest
from relay.serving.responses import RelayResponse
from relay.upstreams.exchange import Exchange

HTTP10_BUFFER_BYTES = 8 * 1024 * 1024
"""Callers of HTTP/1.0 know no chunks: an answer of unknown length is held up to this, then sent with its length."""


async def relay(request: HttpRequest) -> HttpResponseBase:
    """Carry one request to its upstream. `request` is a `RelayRequest`; the lean handler makes those."""
    relayed = cast(RelayRequest, request)
    try:
        return await _carry(relayed)
    except errors.RelayError as error:
        entry = relayed.entry
        entry.failed(error)
        # Before the answer: its caller may be slow, and the upstream would go on getting the body.
        relayed.end_exchange()
        return problem_response(
            error,
            request_id=entry.request_id,
            accept=accept_of(relayed),
            cors_lines=relayed.cors_lines,
        )


async def _carry(request: RelayRequest) -> RelayResponse:
    scope = request.scope
    entry = request.entry
    settings = conf.current()
    method = entry.method

    root = scope.get("root_path", "").encode()
    place = hosts.place_of(scope["headers"], settings)
    if place.slug:
        slug, rest = place.slug, scope["raw_path"].removeprefix(root)
    else:
        slug, rest = paths.split_relay_path(scope["raw_path"], mount_length=len(root) + len(MOUNT))
    entry.path = rest
    peer = scope["client"][0] if scope.get("client") else None
    trusted_proxies = _trusted_proxies.of(settings)
    trusted = trusted_proxies.trusts(peer)
    entry.client = peer or ""

    fields = headers.read_request(scope["headers"], max_bytes=settings.max_header_bytes)
    if trusted:
        entry.request_id = forwarding.request_id(fields.request_id, trusted=True, make=lambda: entry.request_id)
        entry.client = forwarding.client_address(peer, trusted_proxies, fields.forwarding.get(b"x-forwarded-for", ()))
    check_relay(place)
    snapshot = catalog.current()
    upstream = snapshot.find(slug)
    if upstream is None:
        raise errors.UpstreamUnknown
    entry.slug = upstream.slug
    own_name = settings.via.encode()
    if upstream.cors is not None:
        request.cors_lines = upstream.cors.answer(fields.origin)
    access.check_loop(fields.via, own_name)
    if upstream.cors is not None and fields.asks_leave and fields.origin is not None and method == "OPTIONS":
        # Browsers ask without key or cookies (WHATWG Fetch, section 4.8), and send what they ask for only after this.
        return RelayResponse(204, heads.preflight_pairs(upstream.cors, fields, request_id=entry.request_id))
    access.check_worker(registers_worker=fields.registers_worker, own_host=bool(place.slug))
    extensions = scope.get("extensions") or {}
    sent = extensions.get(SENT_TARGET)
    query, signature = signing.split(paths.query_of(scope["query_string"], sent_target=sent and sent["target"]))
    gate.admit(request, upstream, fields, path=rest, query=query, signature=signature, roster=snapshot.roster)
    if place.slug:
        paths.check_own_host(rest, sent_target=sent and sent["target"])
    if upstream.max_request_bytes is not None and (fields.content_length or 0) > upstream.max_request_bytes:
        raise errors.RequestTooLarge(f"{fields.content_length} bytes announced")

    affinity = None if upstream.sole_target is not None else _affinity(upstream, scope["headers"], entry.consumer)
    exchange = request.exchange = Exchange(upstream, method=method, affinity=affinity)
    if upstream.total_timeout_seconds is not None:
        request.limit_seconds(upstream.total_timeout_seconds, errors.TotalTimedOut())
    if not (fields.expects_continue and fields.has_body):
        request.inbound.open()
    mount = b"" if place.slug else root + upstream.mount
    target = heads.request_target(upstream, rest, query)
    offers_trailers = TRAILERS in extensions
    status, raw = await exchange.open(
        target=target,
        pairs=heads.request_pairs(
            upstream,
            fields,
            target=target,
            mount=mount,
            peer=peer,
            peer_is_trusted=trusted,
            scheme=scope["scheme"],
            request_id=entry.request_id,
            own_hop=b"%b %b" % (scope["http_version"].encode(), own_name),
            passes_trailers=offers_trailers,
        ),
        body=aiter(request.inbound) if fields.has_body else None,
        on_interim=partial(_pass_hints, request, mount) if EARLY_HINT in extensions else None,
    )
    entry.head_at = time.perf_counter()
    pairs = heads.response_pairs(
        upstream,
        headers.read_response(raw, status=status, own_host=bool(place.slug)),
        sent_to=cast(Target, exchange.target),
        place=place,
        target=target,
        mount=mount,
        at_root=not rest,
        origin=fields.origin,
        request_id=entry.request_id,
        own_name=own_name,
        is_signed=signature is not None,
    )
    trailer = None
    if offers_trailers and fields.accepts_trailers:
        trailer = next((value for name, value in raw if name.lower() == b"trailer"), b"")
    buffer_bytes = upstream.max_buffered_bytes
    if buffer_bytes is None and scope["http_version"] == "1.0" and b"content-length" not in dict(pairs):
        buffer_bytes = HTTP10_BUFFER_BYTES
    bodiless = method == "HEAD" or status in (204, 304)
    if buffer_bytes is None or bodiless:
        return _streamed(exchange, status, pairs, trailer=None if bodiless else trailer)
    return _whole(status, pairs, await exchange.whole_body(buffer_bytes))


def _pass_hints(request: RelayRequest, mount: bytes, status: int, pairs: headers.Pairs) -> None:
    """Of interim answers, early hints are the kind that a caller can do something with."""
    exchange = request.exchange
    if status == 103 and exchange is not None and exchange.target is not None:
        links = heads.hinted_links(exchange.upstream, exchange.target, pairs, mount=mount)
        if links:
            request.hint(links)


def _streamed(exchange: Exchange, status: int, pairs: headers.Pairs, *, trailer: bytes | None) -> RelayResponse:
    """The answer as it arrives. `trailer`: trailers may follow the body, and these names were announced. None: there
    are none to pass on."""
    if trailer is None or any(name == b"content-length" for name, _ in pairs):
        return RelayResponse(status, pairs, exchange.body())
    if trailer:
        pairs.append((b"trailer", trailer))
    return RelayResponse(status, pairs, exchange.body(), trailers=partial(_trailers, exchange))


def _whole(status: int, pairs: headers.Pairs, whole: bytes) -> RelayResponse:
    """The answer in one piece, for an upstream or a caller's HTTP/1.0 that asks for that."""
    pairs = [pair for pair in pairs if pair[0] != b"content-length"]
    pairs.append((b"content-length", b"%d" % len(whole)))
    return RelayResponse(status, pairs, whole=whole)


def _affinity(upstream: Upstream, raw: headers.Pairs, consumer: str) -> bytes | None:
    """What decides to which target a request goes, where the upstream balances by such and the request has it."""
    if upstream.balancing == Balancing.HEADER:
        return next((value for name, value in raw if name == upstream.balancing_header), None)
    return consumer.encode() if upstream.balancing == Balancing.CONSUMER and consumer else None


def _trailers(exchange: Exchange) -> headers.Pairs:
    return headers.read_trailers(exchange.trailers)


def accept_of(request: RelayRequest) -> bytes:
    """The caller's Accept header."""
    return b",".join(value for name, value in request.scope["headers"] if name == b"accept")


_trusted_proxies = conf.Derived(lambda settings: forwarding.TrustedProxies(settings.trusted_proxies))


async def disguised(request: HttpRequest, **_: object) -> HttpResponse:
    """What Django's own handler finds under the mount: a spelling that only decodes to it, or a server without ASGI."""
    return HttpResponse(
        "Ask for /relay/<upstream>/<path> in plain spelling, from the relay's ASGI application.\n",
        status=400,
        content_type="text/plain; charset=utf-8",
    )
