"""A connection after 101 (RFC 9110 section 7.8): raw bytes both ways, each side closed by itself.

It is what `response.extensions["network_stream"]` holds, with the interface httpx's users know from httpcore.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from relay.upstreams.connection import Connection
    from relay.upstreams.wire import Wire


class DuplexStream:
    """One reader and one writer at a time. Closing the response closes it: in good order when both sides have sent all
    they had to, else with a reset."""

    def __init__(self, wire: Wire, connection: Connection) -> None:
        self._wire = wire
        self._connection = connection
        self._left = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Up to `max_bytes` as soon as there are any; empty when the upstream sends no more.

        Raises `httpx.ReadTimeout`, or what ended the connection.
        """
        if not self._left:
            try:
                async with asyncio.timeout(timeout):
                    self._left = await self._wire.read()
            except TimeoutError:
                raise httpx.ReadTimeout("silence") from None
        taken, self._left = self._left[:max_bytes], self._left[max_bytes:]
        return taken

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Raises `httpx.WriteTimeout`, or `httpx.WriteError` when the upstream takes no more.

        Whoever reads meanwhile is given the idle time-out anew.
        """
        if not buffer:
            return
        try:
            async with asyncio.timeout(timeout):
                await self._connection.send(buffer)
        except TimeoutError:
            raise httpx.WriteTimeout("silence") from None
        self._connection.silence.extend(self._wire.upstream.idle_timeout_seconds)

    def write_eof(self) -> None:
        """No more will be sent; what the upstream still sends can be read. Without effect over TLS."""
        self._connection.end()

    async def aclose(self) -> None:
        self._wire.close()

    def get_extra_info(self, info: str) -> Any:
        """`ssl_object`, `client_addr`, `server_addr`, `socket`; None for others, as in httpcore."""
        transport = self._connection.transport
        if transport is None:
            return None
        name = {"client_addr": "sockname", "server_addr": "peername"}.get(info, info)
        return transport.get_extra_info(name)
