"""One stream at a time, seen from the caller: bodies down and up, events, and many idle streams at once.

Everything is checked as it is measured: a transfer that is short, refused or altered is a Failed, not a figure.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse
from io import BufferedReader
from typing import BinaryIO, cast

import httptools

from bench.processes import Failed

WAIT_SECONDS = 60
EVENT_GAP_SECONDS = 1.0
EVENT_WAIT_SECONDS = 5.0
BEAT_SECONDS = 30.0
"""The longest between two events of a stream that is idle but alive."""
STALL_EVERY_BYTES = 256_000_000
STALL_SECONDS = 1.0
OPENING_AT_ONCE = 100
STUCK_SECONDS = 2.0
SETTLE_SECONDS = 1.0
PIECE_BYTES = 1 << 20
EVENT = b"data: 1\n"
DROPS_IN_KERNEL = sys.platform == "linux"
"""Whether MSG_TRUNC takes bytes from a TCP connection without copying them: tcp(7)."""


def fetch(port: int, path: str) -> bytes:
    """A body, whole."""
    with _exchange(port) as connection:
        connection.request("GET", path)
        return _good(connection.getresponse()).read()


def download(port: int, path: str, *, total: int, stalling: bool = False) -> float:
    """Take `total` bytes and throw them away. Gives seconds. `stalling` stops at the start and after every
    STALL_EVERY_BYTES, each time as long as a fast server needs for hundreds of megabytes: one that does not wait for
    its reader shows it in memory."""
    with _exchange(port) as connection:
        started = time.perf_counter()
        connection.connect()
        wire = cast(socket.socket, connection.sock)  # http.client lets go of it when the answer ends the connection
        connection.request("GET", path)
        pieces = _drop(_good(connection.getresponse()), wire)
        got, next_stall = 0, 0
        while True:
            if stalling and got >= next_stall:
                next_stall += STALL_EVERY_BYTES
                time.sleep(STALL_SECONDS)
            size = next(pieces, 0)
            if not size:
                break
            got += size
        if got != total:
            raise Failed(f"{got:,} bytes of {total:,} arrived")
        return time.perf_counter() - started


def _drop(response: HTTPResponse, wire: socket.socket) -> Iterator[int]:
    """Take a body piece by piece, as sizes. Where its length is told, the kernel drops it: copying it would take the
    load's core so much time that fast servers would wait for their reader."""
    piece = memoryview(bytearray(PIECE_BYTES))
    left = response.length
    if not left or not DROPS_IN_KERNEL:
        while size := response.readinto(piece):
            yield size
        return
    size = min(left, len(cast(BufferedReader, response.fp).peek()))  # what http.client read together with the head
    while size:
        left -= size
        yield size
        size = wire.recv_into(piece, min(left, PIECE_BYTES), socket.MSG_TRUNC) if left else 0


def upload(port: int, path: str, *, total: int) -> float:
    """Send `total` bytes to an origin that counts them, as fast as they are taken. Gives seconds until its answer."""
    body = _zeros(total)
    with _exchange(port) as connection:
        started = time.perf_counter()
        connection.putrequest("PUT", path, skip_accept_encoding=True)
        connection.putheader("Content-Type", "application/octet-stream")
        connection.putheader("Content-Length", str(total))
        connection.endheaders()
        with suppress(BrokenPipeError, ConnectionResetError):  # refused on the way: the answer says why
            cast(socket.socket, connection.sock).sendfile(body, count=total)
        counted = _good(connection.getresponse()).read()
        if counted != str(total).encode():
            raise Failed(f"the origin counted {counted[:32].decode(errors='replace')} bytes of {total:,}")
        return time.perf_counter() - started


@cache
def _zeros(total: int) -> BinaryIO:
    """A file of `total` zeros, for the kernel to send from its cache: copying would take the load's core much time."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - kept open for the whole run
    file.truncate(total)
    return file


def time_to_first_event(port: int, path: str) -> float:
    """Seconds from the request to the first event, on a connection that is there already. The origin sends a second one
    EVENT_GAP_SECONDS later and then ends, so a result beyond that means the first was held back."""
    with _exchange(port, wait_seconds=EVENT_WAIT_SECONDS) as connection:
        connection.connect()
        started = time.perf_counter()
        connection.request("GET", path)
        response = _good(connection.getresponse())
        got = b""
        while EVENT not in got:
            more = response.read1()
            if not more:
                raise Failed("the event stream ended without an event")
            got += more
        return time.perf_counter() - started


@contextmanager
def idle_streams(port: int, path: str, *, wanted: int) -> Iterator[int]:
    """Open event streams, wait for the one event of each, let things settle. Gives how many are open then: a peer may
    refuse some, or end the first (a read time-out) to make room for the next, so those that opened do not count."""
    with asyncio.Runner() as runner:
        streams = runner.run(open_streams(port, path, wanted))
        try:
            yield sum(stream.is_open for stream in streams)
        finally:
            runner.run(close_streams(streams))


class EventStream(asyncio.Protocol):
    """One caller of an event stream. Events are found in the body, however a peer cuts it into chunks."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._line = b""
        """What came of the one that is not whole."""
        self.events = 0
        self._loop = asyncio.get_running_loop()
        self.first_event: asyncio.Future[None] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._ended = False

    @property
    def is_open(self) -> bool:
        return self.first_event.done() and not (self._ended or self.gone.done())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() != 200:
            return
        text = self._line + body
        self.events += text.count(EVENT)
        self._line = text[text.rfind(b"\n") + 1 :]
        if self.events and not self.first_event.done():
            self.first_event.set_result(None)

    def on_message_complete(self) -> None:
        self._ended = True
        self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set_result(None)


async def open_streams(port: int, path: str, wanted: int) -> list[EventStream]:
    """Ends when all are open, or when for STUCK_SECONDS not one more was: sooner than usual read time-outs end them."""
    at_once = asyncio.Semaphore(OPENING_AT_ONCE)
    opening = {asyncio.create_task(_open_stream(port, path, at_once)) for _ in range(wanted)}
    opened: list[EventStream] = []
    while opening:
        done, opening = await asyncio.wait(opening, timeout=STUCK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            for task in opening:
                task.cancel()
            await asyncio.wait(opening)
            break
        opened += [stream for task in done if (stream := task.result()) is not None]
    await asyncio.sleep(SETTLE_SECONDS)
    return opened


async def _open_stream(port: int, path: str, at_once: asyncio.Semaphore) -> EventStream | None:
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    async with at_once:
        try:
            _, stream = await loop.create_connection(lambda: EventStream(request), "127.0.0.1", port)
        except OSError:
            return None
        try:
            await asyncio.wait((stream.first_event, stream.gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not stream.is_open:
                stream.transport.abort()
        return stream if stream.is_open else None


async def close_streams(streams: list[EventStream]) -> None:
    for stream in streams:
        stream.transport.abort()
    await asyncio.gather(*(stream.gone for stream in streams))


@contextmanager
def _exchange(port: int, *, wait_seconds: float = WAIT_SECONDS) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", port, timeout=wait_seconds, blocksize=PIECE_BYTES)
    try:
        yield connection
    except TimeoutError:
        raise Failed(f"nothing came for {wait_seconds:.0f} s") from None
    except (OSError, HTTPException) as error:
        raise Failed(f"the connection failed: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _good(response: HTTPResponse) -> HTTPResponse:
    if response.status != 200:
        raise Failed(f"answered with {response.status} {response.reason}")
    return response
