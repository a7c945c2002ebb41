"""Django responses that carry raw header pairs, for Django's own header mapping cannot hold repeated fields."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import cached_property
from http.cookies import SimpleCookie
from typing import Any

from django.http import StreamingHttpResponse
from django.http.response import ResponseHeaders

Pairs = list[tuple[bytes, bytes]]


class RelayResponse(StreamingHttpResponse):
    """Status, raw header pairs and a body of bytes that arrives piece by piece.

    Middleware may set header fields and cookies as on any response; they are sent after the raw pairs. Django's own
    set-up is left out: it costs more than the rest of the response, and nothing of it is used.
    """

    _has_been_logged = True  # The access log tells; Django would do it in a thread.
    _charset = "utf-8"
    _reason_phrase = None

    def __init__(
        self,
        status: int,
        pairs: Pairs,
        body: AsyncIterator[bytes] | None = None,
        *,
        whole: bytes = b"",
        trailers: Callable[[], Pairs] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """`body` streams; without it the answer is `whole`. `trailers` is asked, when the body has ended, for the pairs
        to send behind it. `on_close` is called once."""
        self.status_code = status
        self.pairs = pairs
        self.body = body
        self.whole = whole
        self.trailers = trailers
        self.closed = False
        self._on_close = on_close
        self._resource_closers: list[Callable[[], object]] = []

    @cached_property
    def headers(self) -> ResponseHeaders:  # type: ignore[override]  # made only when middleware asks
        return ResponseHeaders({})

    @cached_property
    def cookies(self) -> SimpleCookie:  # type: ignore[override]  # made only when middleware asks
        return SimpleCookie()

    @property
    def streaming_content(self) -> AsyncIterator[bytes]:
        """The body as middleware sees it; assign a wrapped iterator to filter it."""
        return self.body if self.body is not None else _one(self.whole)

    @streaming_content.setter
    def streaming_content(self, body: AsyncIterator[bytes]) -> None:
        self.body = body

    def all_pairs(self) -> Pairs:
        """The raw pairs and what middleware added."""
        added = self.__dict__
        if "headers" not in added and "cookies" not in added:
            return self.pairs
        pairs = [*self.pairs]
        pairs += [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in self.headers.items()]
        pairs += [(b"set-cookie", morsel.OutputString().encode("latin-1")) for morsel in self.cookies.values()]
        return pairs

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if self._on_close is not None:
                self._on_close()
            for closer in self._resource_closers:
                closer()

    def __repr__(self) -> str:
        return f"<RelayResponse {self.status_code}>"


async def _one(whole: bytes) -> Any:
    yield whole
