"""A scripted HTTP/1.1 origin: records exactly what arrives, answers byte by byte as told, misbehaves on command.

It speaks HTTP itself, on plain asyncio streams, so nothing between the wire and the record can tidy anything up. A
script is an async function of one `Exchange`; the builders at the end (`reply`, `chunked`, `hang`, ...) make the usual
ones. The parser is strict: a relay that sends what RFC 9112 forbids fails the test. When a script returns, what it left
of the body is read and the connection waits for its next request. `tests.caller` is the other end of the wire,
`tests.serving_ground` what stands between.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http
import json
import re
import select
import socket
import ssl
import struct
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self, cast

import trustme

HeaderPairs = Sequence[tuple[bytes, bytes]]
Script = Callable[["Exchange"], Awaitable[None]]

HEAD_LIMIT_BYTES = 128 * 1024
PIECE_BYTES = 64 * 1024
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e\x80-\xff]+) (HTTP/1\.[01])")
HEADER_LINE = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)[ \t]*"
)
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?")


class MalformedRequest(Exception):
    """What arrived is not a request RFC 9112 allows; leaving the `Origin` raises it."""


class PeerHungUp(ConnectionError):
    """The peer went away in the middle of something; it ends a script quietly."""


class Gate:
    """Lets a waiting script through once per `open()`; openings wait for their script."""

    def __init__(self) -> None:
        self._openings = asyncio.Semaphore(0)

    def open(self, times: int = 1) -> None:
        for _ in range(times):
            self._openings.release()

    async def wait(self) -> None:
        await self._openings.acquire()


@dataclass(slots=True)
class Received:
    """One request as it arrived. The body fields grow while the script reads; `body` is kept by `read_body()` alone."""

    connection: int
    server_name: str | None
    raw_head: bytes
    line: bytes
    method: bytes
    target: bytes
    version: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | None = None
    body_length: int = 0
    body_is_whole: bool = False
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256, repr=False)

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def body_sha256(self) -> str:
        return self._hash.hexdigest()

    def values(self, name: bytes) -> list[bytes]:
        """The values of every line of that name, in order; names compare without case."""
        return values_of(self.headers, name)

    def count(self, piece: bytes) -> None:
        self.body_length += len(piece)
        self._hash.update(piece)


class Exchange:
    """One request and what a script answers to it.

    `closed` is set as soon as the connection is over, whoever ended it, also while the script waits for something else
    or reading is paused (there, on Linux only, and not when the FIN is still stuck behind bytes that a closed window
    keeps at the peer). `sent` counts the bytes, head included, that the kernel has taken.
    """

    def __init__(self, connection: Connection, head: Received) -> None:
        self.head = head
        self.closed = connection.closed
        self.sent = 0
        self._reader = connection.reader
        self._writer = connection.writer
        self._chunked, self._left = framing(head)
        head.body_is_whole = not self._chunked and self._left == 0

    async def read_some(self, limit: int = PIECE_BYTES) -> bytes:
        """The next piece of the body without its framing; b"" at its end. Raises PeerHungUp when that never comes."""
        if self.head.body_is_whole:
            return b""
        if self._left == 0:
            self._left = await self._read_chunk_size()
            if self._left == 0:
                self.head.trailers = await self._read_trailers()
                self.head.body_is_whole = True
                return b""
        piece = await self._reader.read(min(limit, self._left))
        if not piece:
            raise PeerHungUp("in the middle of the body")
        self.head.count(piece)
        self._left -= len(piece)
        if self._left == 0:
            if self._chunked:
                await self._read_chunk_end()
            else:
                self.head.body_is_whole = True
        return piece

    async def read_body(self) -> bytes:
        """All that is left of the body, kept in `head.body`."""
        pieces = []
        while piece := await self.read_some():
            pieces.append(piece)
        self.head.body = b"".join(pieces)
        return self.head.body

    async def send(self, data: bytes) -> None:
        """Returns when the kernel has taken it all: a peer that does not read holds the script here."""
        if self._writer.is_closing():
            # asyncio tells it when draining, uvloop as a RuntimeError.
            raise PeerHungUp("before all was sent")
        self._writer.write(data)
        await self._writer.drain()
        self.sent += len(data)

    async def send_chunk(self, data: bytes) -> None:
        """One chunk; b"" is the one that ends the body."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def close(self) -> None:
        """FIN; the kernel makes it RST when bytes of the peer are still unread."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """RST, at once."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._writer.transport.abort()

    def pause_reading(self) -> None:
        """Leaves the peer's bytes in the kernel, so that its window closes."""
        self._reading_transport().pause_reading()

    def resume_reading(self) -> None:
        self._reading_transport().resume_reading()

    def _reading_transport(self) -> asyncio.ReadTransport:
        return cast(asyncio.ReadTransport, self._writer.transport)

    async def _read_chunk_size(self) -> int:
        line = await self._read_line()
        if not (match := CHUNK_LINE.fullmatch(line)):
            raise MalformedRequest(f"not a chunk size: {line!r}")
        return int(match[1], 16)

    async def _read_chunk_end(self) -> None:
        if line := await self._read_line():
            raise MalformedRequest(f"a chunk is longer than its size says: {line!r}")

    async def _read_trailers(self) -> list[tuple[bytes, bytes]]:
        lines = []
        while line := await self._read_line():
            lines.append(line)
        return header_pairs(lines)

    async def _read_line(self) -> bytes:
        try:
            return (await self._reader.readuntil(b"\r\n"))[:-2]
        except asyncio.IncompleteReadError as cut:
            raise PeerHungUp("in the middle of the body's framing") from cut


class Origin:
    """`async with Origin() as origin:` listens on a free port of 127.0.0.1 (or of `host`, or on `port`).

    With `tls` it is an HTTPS origin. `buffer_bytes` makes the kernel's buffers small, for tests of backpressure.
    Leaving it cancels what still runs and raises what scripts failed with, so an assertion in a script fails the test.
    """

    def __init__(
        self,
        *,
        host: Literal["127.0.0.1", "127.0.0.2", "::1"] = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        buffer_bytes: int | None = None,
    ) -> None:
        self.host = host
        self.tls = tls
        self.buffer_bytes = buffer_bytes
        self.port = port
        self.requests: list[Received] = []
        self.exchanges: list[Exchange] = []
        self.connections_made = 0
        self.failures: list[Exception] = []
        self._scripts: dict[bytes, Script] = {}
        self._otherwise: Script = reply(404, body=b"nothing is scripted here")
        self._unseen: asyncio.Queue[Exchange] = asyncio.Queue()
        self._open: set[Connection] = set()
        self._open_changed = asyncio.Event()
        self._conversations: set[asyncio.Task[None]] = set()
        self._server_names: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()

    async def __aenter__(self) -> Self:
        if self.tls:
            self.tls.sni_callback = self._note_server_name
        self._hang_ups = HangUpWatch()
        self._server = await asyncio.get_running_loop().create_server(
            self._make_protocol, sock=self._bind(), ssl=self.tls, backlog=1024
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        await self._server.wait_closed()
        self._hang_ups.close()
        if self.failures and error is None:
            raise ExceptionGroup("the origin met what it should not have", self.failures)

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"

    def on(self, path: bytes, script: Script) -> None:
        """Answers requests whose raw path (the target up to its `?`) is exactly `path`."""
        self._scripts[path] = script

    def otherwise(self, script: Script) -> None:
        """Answers every request no `on()` names; a 404 until it is called."""
        self._otherwise = script

    async def next_exchange(self, *, within: float = 5.0) -> Exchange:
        """The first exchange no test has been given yet, as soon as its head is there."""
        async with asyncio.timeout(within):
            return await self._unseen.get()

    async def next_request(self, *, within: float = 5.0) -> Received:
        return (await self.next_exchange(within=within)).head

    @property
    def open_connections(self) -> int:
        """How many connections neither side has ended."""
        return len(self._open)

    async def until_connections(self, expected: int, *, within: float = 2.0) -> None:
        """Waits until exactly `expected` connections are open."""
        try:
            async with asyncio.timeout(within):
                while self.open_connections != expected:
                    self._open_changed.clear()
                    await self._open_changed.wait()
        except TimeoutError:
            raise AssertionError(
                f"{self.open_connections} connections are open after {within} s, not {expected}"
            ) from None

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # The protocol is named, or asyncio leaves Nagle's algorithm on for what it accepts.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if self.buffer_bytes:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer_bytes)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.buffer_bytes)
        listener.bind((self.host, self.port))
        self.port = listener.getsockname()[1]
        return listener

    def _note_server_name(self, ssl_object: object, name: str | None, _context: ssl.SSLContext) -> None:
        if name:
            self._server_names[ssl_object] = name

    def _make_protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(TellingReader(), self._connected)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, TellingReader)
        # With no room of its own the transport holds the script until the kernel has the bytes, so `sent` is true.
        writer.transport.set_write_buffer_limits(high=0)
        self.connections_made += 1
        ssl_object = writer.get_extra_info("ssl_object")
        server_name = self._server_names.get(ssl_object) if ssl_object else None
        connection = Connection(self.connections_made, server_name, reader, writer)
        self._open.add(connection)
        self._open_changed.set()

        def over() -> None:
            connection.closed.set()
            self._open.discard(connection)
            self._open_changed.set()

        reader.tell_when_over(over)
        self._hang_ups.watch(writer.get_extra_info("socket").fileno(), over)
        conversation = asyncio.create_task(self._converse(connection))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)

    async def _converse(self, connection: Connection) -> None:
        try:
            while await self._answer_one(connection):
                pass
            connection.writer.close()
            await connection.writer.wait_closed()
        except ConnectionError:
            pass
        except Exception as failure:
            self.failures.append(failure)
        finally:
            connection.writer.transport.abort()
            with contextlib.suppress(OSError):
                await connection.writer.wait_closed()

    def _note(self, exchange: Exchange) -> None:
        self.requests.append(exchange.head)
        self.exchanges.append(exchange)
        self._unseen.put_nowait(exchange)

    async def _answer_one(self, connection: Connection) -> bool:
        """Reads a head, runs its script; tells whether the connection may carry another request."""
        try:
            raw_head = await connection.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        head = parse_head(raw_head, connection=connection.number, server_name=connection.server_name)
        exchange = Exchange(connection, head)
        self._note(exchange)
        await self._scripts.get(head.path, self._otherwise)(exchange)
        if connection.writer.is_closing():
            return False
        while await exchange.read_some():
            pass
        options = b",".join(head.values(b"connection")).lower().split(b",")
        return head.version == b"HTTP/1.1" and b"close" not in [option.strip() for option in options]


@dataclass(eq=False, slots=True)
class Connection:
    number: int
    server_name: str | None
    reader: TellingReader
    writer: asyncio.StreamWriter
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class TellingReader(asyncio.StreamReader):
    """A stream reader that says so when its connection is over, also when nobody reads."""

    def __init__(self) -> None:
        super().__init__(limit=HEAD_LIMIT_BYTES)
        self._tell: Callable[[], None] | None = None

    def tell_when_over(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def feed_eof(self) -> None:
        super().feed_eof()
        if self._tell:
            self._tell()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        if self._tell:
            self._tell()


class HangUpWatch:
    """Tells when a peer hangs up while reading is paused: asyncio then looks away, the kernel does not.

    A second epoll over the same sockets, itself watched by the loop. On other systems than Linux it watches nothing,
    and a hang-up is told when reading goes on.
    """

    def __init__(self) -> None:
        self._tell: dict[int, Callable[[], None]] = {}
        if sys.platform == "linux":
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)

    def watch(self, descriptor: int, tell: Callable[[], None]) -> None:
        # A closed descriptor leaves the epoll by itself, so a number that comes again finds its place free.
        if sys.platform == "linux":
            self._tell[descriptor] = tell
            self._epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLONESHOT)

    def close(self) -> None:
        if sys.platform == "linux":
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _look(self) -> None:
        if sys.platform == "linux":
            for descriptor, _ in self._epoll.poll(0):
                self._tell.pop(descriptor)()


def parse_head(raw_head: bytes, *, connection: int = 0, server_name: str | None = None) -> Received:
    """The head with its empty line. Raises MalformedRequest for what RFC 9112 sections 2 to 5 forbid a client."""
    line, *header_lines = raw_head[:-4].split(b"\r\n")
    if not (match := REQUEST_LINE.fullmatch(line)):
        raise MalformedRequest(f"not a request line: {line!r}")
    return Received(
        connection=connection,
        server_name=server_name,
        raw_head=raw_head,
        line=line,
        method=match[1],
        target=match[2],
        version=match[3],
        headers=header_pairs(header_lines),
    )


def header_pairs(lines: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """Name and value as they came, without the blanks around the value; folded lines are refused."""
    pairs = []
    for line in lines:
        if not (match := HEADER_LINE.fullmatch(line)):
            raise MalformedRequest(f"not a header line: {line!r}")
        pairs.append((match[1], match[2]))
    return pairs


def values_of(headers: HeaderPairs, name: bytes) -> list[bytes]:
    return [value for given, value in headers if given.lower() == name.lower()]


def framing(head: Received) -> tuple[bool, int]:
    """Whether the body is chunked, else its length (RFC 9112 section 6.3); two framings at once are refused."""
    lengths, codings = head.values(b"content-length"), head.values(b"transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise MalformedRequest(f"more than one framing: {lengths + codings!r}")
    if codings:
        if codings[0].lower() != b"chunked":
            raise MalformedRequest(f"not a transfer coding to send an origin: {codings[0]!r}")
        return True, 0
    if lengths and not re.fullmatch(rb"[0-9]+", lengths[0]):
        raise MalformedRequest(f"not a length: {lengths[0]!r}")
    return False, int(lengths[0]) if lengths else 0


# Scripts.


def reply(status: int = 200, headers: HeaderPairs = (), body: bytes = b"") -> Script:
    """Reads the body, then answers; Content-Length is added where it may be and `headers` frames nothing."""

    async def script(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(counted_answer(status, headers, body, to=exchange.head.method))

    return script


def echo() -> Script:
    """Answers JSON that tells what arrived: line, headers (as Latin-1), connection, body_length, body_sha256."""

    async def script(exchange: Exchange) -> None:
        while await exchange.read_some():
            pass
        head = exchange.head
        told = {
            "line": head.line.decode("latin-1"),
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in head.headers],
            "connection": head.connection,
            "body_length": head.body_length,
            "body_sha256": head.body_sha256,
        }
        body = json.dumps(told).encode()
        await exchange.send(counted_answer(200, [(b"Content-Type", b"application/json")], body, to=head.method))

    return script


def chunked(
    pieces: Sequence[bytes], *, status: int = 200, headers: HeaderPairs = (), trailers: HeaderPairs = ()
) -> Script:
    """Each piece as a chunk of its own, then the end of the body."""

    async def script(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(chunked_head(status, headers))
        if exchange.head.method == b"HEAD":
            return
        for piece in pieces:
            await exchange.send_chunk(piece)
        await exchange.send(b"0\r\n%b\r\n" % header_bytes(trailers))

    return script


def drip(chunks: Sequence[bytes], gate: Gate, *, status: int = 200, headers: HeaderPairs = ()) -> Script:
    """The head at once, then each chunk, and at last the end of the body, when the gate is opened for it."""

    async def script(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(chunked_head(status, headers))
        for chunk in chunks:
            await gate.wait()
            await exchange.send_chunk(chunk)
        await gate.wait()
        await exchange.send_chunk(b"")

    return script


def sse(gate: Gate) -> Script:
    """An event stream without end: `data: 1`, `data: 2`, ..., one event per opening of the gate."""

    async def script(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(chunked_head(200, [(b"Content-Type", b"text/event-stream")]))
        number = 0
        while True:
            await gate.wait()
            number += 1
            await exchange.send_chunk(b"data: %d\n\n" % number)

    return script


def counted(length: int, chunk: int = PIECE_BYTES) -> Script:
    """`length` patterned bytes, counted, as fast as the peer takes them; `exchange.sent` tells how far it came."""

    async def script(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(head_bytes(200, [(b"Content-Length", b"%d" % length)]))
        if exchange.head.method == b"HEAD":
            return
        for offset in range(0, length, chunk):
            await exchange.send(patterned(min(chunk, length - offset), offset=offset))

    return script


def upload_sink(gate: Gate | None = None) -> Script:
    """Reads the body without keeping it, then answers its length in decimal; with a gate, one piece per opening."""

    async def script(exchange: Exchange) -> None:
        if gate:
            await gate.wait()
        while await exchange.read_some():
            if gate:
                await gate.wait()
        body = b"%d" % exchange.head.body_length
        await exchange.send(counted_answer(200, (), body, to=exchange.head.method))

    return script


def early(
    status: int,
    headers: HeaderPairs = (),
    body: bytes = b"",
    *,
    after_bytes: int = 0,
    then: Literal["read", "hold", "close"] = "read",
) -> Script:
    """Answers once `after_bytes` of the body are there; then reads on, or holds still till the hang-up, or closes."""

    async def script(exchange: Exchange) -> None:
        while exchange.head.body_length < after_bytes and await exchange.read_some():
            pass
        await exchange.send(counted_answer(status, headers, body, to=exchange.head.method))
        if then == "hold":
            exchange.pause_reading()
            await exchange.closed.wait()
        elif then == "close":
            await exchange.close()

    return script


def raw(data: bytes, *, then: Literal["keep", "close", "reset"] = "close") -> Script:
    """Reads the body, then sends exactly these bytes."""

    async def script(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(data)
        await end(exchange, then)

    return script


def truncate(content_length: int, send_bytes: int, *, then: Literal["close", "reset"] = "close") -> Script:
    """Promises `content_length` bytes, sends only `send_bytes`, and ends the connection."""
    return raw(head_bytes(200, [(b"Content-Length", b"%d" % content_length)]) + patterned(send_bytes), then=then)


def hang() -> Script:
    """Reads the body and never answers; ends when the peer hangs up."""

    async def script(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.closed.wait()

    return script


async def end(exchange: Exchange, how: Literal["keep", "close", "reset"]) -> None:
    if how == "close":
        await exchange.close()
    elif how == "reset":
        exchange.abort()


# Bytes.


def counted_answer(status: int, headers: HeaderPairs, body: bytes, *, to: bytes = b"GET") -> bytes:
    """A whole answer. The body is left out, its length told, when the request method `to` is HEAD."""
    names = {name.lower() for name, _ in headers}
    bodiless = status < 200 or status in (204, 304)
    if not bodiless and not names & {b"content-length", b"transfer-encoding"}:
        headers = [*headers, (b"Content-Length", b"%d" % len(body))]
    return head_bytes(status, headers) + (b"" if bodiless or to == b"HEAD" else body)


def chunked_head(status: int, headers: HeaderPairs) -> bytes:
    return head_bytes(status, [*headers, (b"Transfer-Encoding", b"chunked")])


def head_bytes(status: int, headers: HeaderPairs = ()) -> bytes:
    """A response head with exactly these pairs and its empty line."""
    try:
        reason = http.HTTPStatus(status).phrase.encode()
    except ValueError:
        reason = b""
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason, header_bytes(headers))


def header_bytes(headers: HeaderPairs) -> bytes:
    return b"".join(b"%b: %b\r\n" % pair for pair in headers)


def patterned(length: int, *, offset: int = 0) -> bytes:
    """Bytes of an endless sequence from `offset` on; its period is prime, so lost, doubled or moved blocks show."""
    start = offset % 251
    return (bytes(range(251)) * (length // 251 + 2))[start : start + length]


def patterned_sha256(length: int) -> str:
    """The digest of `patterned(length)`, of which only a piece is held at a time."""
    digest = hashlib.sha256()
    for offset in range(0, length, PIECE_BYTES):
        digest.update(patterned(min(PIECE_BYTES, length - offset), offset=offset))
    return digest.hexdigest()


# Certificates, and ports where nobody answers.


def serving_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """A server context with a certificate for these names or addresses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port of 127.0.0.1 that is taken but not listened at: connecting to it is refused."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port of 127.0.0.1 where connecting never ends: its queue is full, so Linux drops every further SYN."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with socket.create_connection(listener.getsockname()):
            yield listener.getsockname()[1]
