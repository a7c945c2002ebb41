"""`RelayError`s as callers meet them: problem+json (RFC 9457) or a page for browsers, `Proxy-Status` in both.

Nothing in them comes from the caller but the request id, which is well-formed by then, and nothing tells the
upstream's address.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus

from django.template.loader import render_to_string

from relay import conf
from relay.errors import RelayError
from relay.serving.responses import RelayResponse


def problem_response(
    error: RelayError, *, request_id: bytes, accept: bytes, cors_lines: Iterable[tuple[bytes, bytes]] = ()
) -> RelayResponse:
    """The answer for `error`. `cors_lines` let scripts of other origins read it, where they may call."""
    as_page = prefers_page(accept)
    body = _page(error, request_id) if as_page else _document(error, request_id)
    pairs = [
        (b"content-type", b"text/html; charset=utf-8" if as_page else b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
        (b"x-request-id", request_id),
        (b"proxy-status", f"{conf.current().via}; error={error.proxy_status}".encode()),
        (b"vary", b"accept"),
        *error.headers,
        *cors_lines,
    ]
    if error.retry_after_seconds is not None:
        pairs.append((b"retry-after", str(error.retry_after_seconds).encode()))
    return RelayResponse(error.status, pairs, whole=body)


def prefers_page(accept: bytes) -> bool:
    """Whether Accept names HTML before any JSON, as browsers do."""
    for choice in accept.lower().split(b","):
        kind = choice.partition(b";")[0].strip()
        if kind in (b"text/html", b"application/xhtml+xml"):
            return True
        if kind.endswith((b"/json", b"+json")):
            return False
    return False


def _document(error: RelayError, request_id: bytes) -> bytes:
    document = {
        "type": error.type_uri,
        "title": error.title,
        "status": error.status,
        "detail": error.advice,
        "request_id": request_id.decode("ascii"),
    }
    return json.dumps(document).encode()


def _page(error: RelayError, request_id: bytes) -> bytes:
    context = {"error": error, "reason": HTTPStatus(error.status).phrase, "request_id": request_id.decode("ascii")}
    return render_to_string("relay/problem.html", context).encode()
