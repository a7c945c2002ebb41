"""A TCP forwarder that stands between the relay and its database and, told so, refuses, cuts, or swallows everything.

`tests.origin` is the other end for HTTP; this one knows no protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class Forwarder:
    """`async with Forwarder(host, port) as forwarder:` listens on `forwarder.port` and passes on."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._links: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        await self.serve()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()

    async def serve(self) -> None:
        """Pass on, what waited as well."""
        self._flows.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Cut what is open and refuse what comes."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        await self.cut()

    async def cut(self) -> None:
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def hang(self) -> None:
        """Accept, and pass nothing on."""
        self._flows.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        beyond: asyncio.StreamWriter | None = None
        try:
            await self._flows.wait()
            answers, beyond = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, beyond))
                both.create_task(self._pass(answers, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # either end has gone, or it was cut
        finally:
            for end in (writer, beyond):
                if end is not None:
                    end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(64 * 1024):
            await self._flows.wait()
            writer.write(piece)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
