"""httpx's request and response as the seam needs them, made for a fraction of what httpx's own constructors cost.

They are httpx's classes, so whoever stands at the seam (respx, a cache's transport) finds what it expects. Left out is
what never applies here: normalising headers and method, cookies, encoding content, reading it.
"""

from __future__ import annotations

from typing import Any

import httpx

from relay.rules.headers import Pairs
from relay.upstreams.raw_headers import RawHeaders

_URL = httpx.URL("http://upstream.invalid/")
"""Requests need a URL object; the transport goes by the upstream and the raw target instead."""
NO_BODY = httpx.ByteStream(b"")


def has_body(request: httpx.Request) -> bool:
    """httpx gives a request without one a `ByteStream` of nothing."""
    stream = request.stream
    return stream is not NO_BODY and not (isinstance(stream, httpx.ByteStream) and not stream._stream)


class SeamRequest(httpx.Request):
    """A request whose method and header pairs go out as they are, not even the method in upper case."""

    def __init__(
        self,
        method: str,
        pairs: Pairs,
        *,
        stream: httpx.AsyncByteStream | None,
        extensions: dict[str, Any],
    ) -> None:
        self.method = method
        self.url = _URL
        self.headers = RawHeaders(pairs)
        self.stream = NO_BODY if stream is None else stream
        self.extensions = extensions


class SeamResponse(httpx.Response):
    """A streaming response with its headers as they came."""

    _request = None
    _num_bytes_downloaded = 0
    next_request = None
    is_closed = False
    is_stream_consumed = False
    default_encoding = "utf-8"

    def __init__(self, status: int, pairs: Pairs, stream: httpx.AsyncByteStream, extensions: dict[str, Any]) -> None:
        self.status_code = status
        self.headers = RawHeaders(pairs)
        self.stream = stream
        self.extensions = extensions
        self.history = []
