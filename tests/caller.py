"""A raw-socket HTTP/1.1 caller: sends exactly the bytes it is given and tells how each answer ended.

Nothing is repaired, followed, decoded or retried, and the connection is the test's to keep, half-read or cut. Every
wait has a deadline, so a failing test fails instead of hanging. `tests.origin` is the other end of the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from tests.origin import RESET_ON_CLOSE, HeaderPairs, header_bytes, header_pairs, values_of

P = ParamSpec("P")
T = TypeVar("T")

Content = bytes | Iterable[bytes] | AsyncIterable[bytes] | None

READ_BYTES = 64 * 1024


class Ended(enum.Enum):
    """How a body ended; only the first four are an end its sender meant."""

    BODILESS = "bodiless"
    COUNTED = "counted"
    CHUNKED = "chunked"
    CLOSED = "closed"
    TRUNCATED = "truncated"
    RESET = "reset"

    @property
    def cleanly(self) -> bool:
        return self not in (Ended.TRUNCATED, Ended.RESET)


@dataclass(frozen=True, slots=True)
class Head:
    """A response head; `line` is the status line, `headers` the pairs in order with their raw bytes."""

    status: int
    line: bytes
    headers: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        return values_of(self.headers, name)


@dataclass(frozen=True, slots=True)
class Body:
    """`data` is b"" when it was not kept; length and hash always cover all that came."""

    data: bytes
    length: int
    sha256: str
    ended: Ended
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Answer:
    """A final response, and the interim (1xx) ones before it."""

    head: Head
    body: Body
    interim: list[Head] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def data(self) -> bytes:
        return self.body.data

    def values(self, name: bytes) -> list[bytes]:
        return self.head.values(name)


def within_deadline(
    method: Callable[Concatenate[Caller, P], Awaitable[T]],
) -> Callable[Concatenate[Caller, P], Awaitable[T]]:
    async def bounded(self: Caller, /, *args: P.args, **kwargs: P.kwargs) -> T:
        async with asyncio.timeout(self.deadline_seconds):
            return await method(self, *args, **kwargs)

    return bounded


class Caller:
    """`async with Caller(port) as caller:` is one connection.

    `buffer_bytes` makes a slow reader's kernel buffers small. `ended` is how the body being read ended, None while it
    has not.
    """

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        deadline_seconds: float = 5.0,
        buffer_bytes: int | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.tls = tls
        self.server_name = server_name
        self.deadline_seconds = deadline_seconds
        self.buffer_bytes = buffer_bytes
        self.ended: Ended | None = None
        self._framing = Ended.BODILESS
        self._left = 0

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # asyncio's abort() fails on a transport that had bytes left at its close() and is over by now.
        link = self._writer.get_extra_info("socket")
        if link is not None and link.fileno() >= 0:
            self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    @within_deadline
    async def send(self, data: bytes) -> None:
        """Returns when the kernel has taken it all; raises TimeoutError when the peer does not read."""
        self._writer.write(data)
        await self._writer.drain()

    @within_deadline
    async def read_head(self, *, to: bytes = b"GET") -> Head:
        """The next head, interim ones included. `to` is the method it answers: after HEAD no body follows.

        Raises ConnectionResetError on RST, asyncio.IncompleteReadError when the peer closes before a whole head.
        """
        try:
            raw_head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            if self._reader.failure:
                raise self._reader.failure from None
            raise
        line, *header_lines = raw_head[:-4].split(b"\r\n")
        pairs = [header_line.partition(b":")[::2] for header_line in header_lines]
        head = Head(int(line.split(b" ")[1]), line, [(name, value.strip(b" \t")) for name, value in pairs])
        self._expect_body(head, to)
        return head

    @within_deadline
    async def read_chunk(self) -> bytes:
        """The next piece of the body, of a chunked one exactly one chunk; b"" when it has `ended`."""
        return await self._read_piece()

    @within_deadline
    async def read_body(self, *, keep: bool = True) -> Body:
        """All that is left of the body, however it ends."""
        pieces, length, digest = [], 0, hashlib.sha256()
        while piece := await self._read_piece():
            length += len(piece)
            digest.update(piece)
            if keep:
                pieces.append(piece)
        assert self.ended is not None
        return Body(b"".join(pieces), length, digest.hexdigest(), self.ended, self._trailers)

    @within_deadline
    async def read_bytes(self, count: int) -> bytes:
        """The next `count` bytes of the wire, framing and all."""
        return await self._reader.readexactly(count)

    @within_deadline
    async def read_rest(self) -> tuple[bytes, Ended]:
        """Everything the wire still brings, and whether the peer closed (CLOSED) or reset (RESET) the connection."""
        rest = await self._reader.read()
        return rest, Ended.RESET if self._reader.failure else Ended.CLOSED

    @within_deadline
    async def get(
        self,
        path: bytes,
        headers: HeaderPairs = (),
        *,
        method: bytes = b"GET",
        body: Content = None,
        keep: bool = True,
    ) -> Answer:
        """One whole exchange. A body of bytes is counted, any other is sent a chunk per piece.

        The answer is read while the body is still being sent, so an early one is seen; the rest of the body is then not
        sent.
        """
        head_to_send = request_bytes(path, headers, method=method, host=self._authority(), body=body)
        sending = asyncio.create_task(self._send_request(head_to_send, body))
        try:
            interim = []
            while (head := await self.read_head(to=method)).status < 200:
                interim.append(head)
            return Answer(head, await self.read_body(keep=keep), interim)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        """RST, at once."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._writer.transport.abort()

    @within_deadline
    async def _connect(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        link = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        link.setblocking(False)
        if self.buffer_bytes:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer_bytes)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.buffer_bytes)
        loop = asyncio.get_running_loop()
        self._reader = PatientReader()
        protocol = asyncio.StreamReaderProtocol(self._reader)
        try:
            await loop.sock_connect(link, (self.host, self.port))
            transport, _ = await loop.create_connection(
                lambda: protocol,
                sock=link,
                ssl=self.tls,
                server_hostname=(self.server_name or self.host) if self.tls else None,
            )
        except BaseException:
            link.close()
            raise
        transport.set_write_buffer_limits(high=0)
        self._writer = asyncio.StreamWriter(transport, protocol, self._reader, loop)

    def _authority(self) -> bytes:
        return (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}").encode()

    def _expect_body(self, head: Head, to: bytes) -> None:
        """RFC 9112 section 6.3, from the reader's side."""
        self.ended = None
        self._left = 0
        self._trailers: list[tuple[bytes, bytes]] = []
        lengths, codings = head.values(b"content-length"), head.values(b"transfer-encoding")
        if to == b"HEAD" or head.status < 200 or head.status in (204, 304):
            self._framing = self.ended = Ended.BODILESS
        elif codings:
            self._framing = Ended.CHUNKED
        elif lengths:
            self._framing, self._left = Ended.COUNTED, int(lengths[0])
            self.ended = Ended.COUNTED if self._left == 0 else None
        else:
            self._framing = Ended.CLOSED

    async def _read_piece(self) -> bytes:
        if self.ended is not None:
            return b""
        if self._framing is Ended.CHUNKED:
            return await self._read_one_chunk()
        piece = await self._reader.read(min(self._left, READ_BYTES) if self._framing is Ended.COUNTED else READ_BYTES)
        self._left -= len(piece)
        if self._framing is Ended.COUNTED and self._left == 0:
            self.ended = Ended.COUNTED
        elif not piece:
            self.ended = self._cut_off(fin=Ended.TRUNCATED if self._framing is Ended.COUNTED else Ended.CLOSED)
        return piece

    async def _read_one_chunk(self) -> bytes:
        try:
            size = int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16)
            if size == 0:
                lines = []
                while (line := await self._reader.readuntil(b"\r\n")) != b"\r\n":
                    lines.append(line[:-2])
                self._trailers = header_pairs(lines)
                self.ended = Ended.CHUNKED
                return b""
            return (await self._reader.readexactly(size + 2))[:-2]
        except asyncio.IncompleteReadError as cut:
            self.ended = self._cut_off(fin=Ended.TRUNCATED)
            # Of a cut chunk size nothing is body; of a cut chunk all that came is, but for its line end.
            return b"" if cut.expected is None else cut.partial[: cut.expected - 2]

    def _cut_off(self, *, fin: Ended) -> Ended:
        return Ended.RESET if self._reader.failure else fin

    async def _send_request(self, head: bytes, body: Content) -> None:
        # A server that answers early may hang up meanwhile: its answer tells the test, not this.
        with contextlib.suppress(ConnectionError):
            if body is None or isinstance(body, bytes):
                await self.send(head + (body or b""))
                return
            await self.send(head)
            async for piece in each(body):
                await self.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await self.send(b"0\r\n\r\n")


class PatientReader(asyncio.StreamReader):
    """Hands out all that came before a reset, and only then tells of it; asyncio's own drops what was not read yet."""

    def __init__(self) -> None:
        super().__init__(limit=READ_BYTES)
        self.failure: Exception | None = None

    def set_exception(self, exc: Exception) -> None:
        self.failure = exc
        self.feed_eof()


def request_bytes(
    path: bytes, headers: HeaderPairs = (), *, method: bytes = b"GET", host: bytes, body: Content = None
) -> bytes:
    """A request head with `Host` first and the body's framing last, each only where `headers` has none."""
    pairs = list(headers)
    if not values_of(headers, b"host"):
        pairs.insert(0, (b"Host", host))
    if not values_of(headers, b"content-length") and not values_of(headers, b"transfer-encoding"):
        if isinstance(body, bytes):
            pairs.append((b"Content-Length", b"%d" % len(body)))
        elif body is not None:
            pairs.append((b"Transfer-Encoding", b"chunked"))
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, path, header_bytes(pairs))


async def each(pieces: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(pieces, AsyncIterable):
        async for piece in pieces:
            yield piece
    else:
        for piece in pieces:
            yield piece
