"""uvicorn's HTTP protocol with two things the relay needs: what the request line said, and fewer writes.

ASGI gives path and query apart: a lone `?` at the end of a target and a `#` with what follows are gone by then. The
relay passes targets byte for byte or refuses them, so it needs to know. And uvicorn writes head, body and end of an
answer each by themselves: three system calls and as many packets for a small one. Under another protocol the relay does
without both.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from relay.serving.asgi import SENT_TARGET

HELD_BYTES = 16 * 1024
"""A write up to this waits for the next one, at most until the event loop's next turn."""


class RelayProtocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(cast(asyncio.Transport, JoiningTransport(transport, self.loop)))

    def on_headers_complete(self) -> None:
        # Before the application's task is made: an application that is started at once would miss it.
        self.scope["extensions"] = {SENT_TARGET: {"target": self.url}}
        super().on_headers_complete()


class JoiningTransport:
    """A transport that sends a small write together with the one that follows it in the same turn of the event loop."""

    __slots__ = ("_flushing", "_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self._flushing: asyncio.Handle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if len(data) > HELD_BYTES:
            self._flush()
            self._transport.write(data)
        elif self._held:
            self._transport.write(self._take() + data)
        elif data:
            self._held = data
            self._flushing = self._loop.call_soon(self._flush)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            self._transport.write(self._take())

    def _take(self) -> bytes:
        held, self._held = self._held, b""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        return held
