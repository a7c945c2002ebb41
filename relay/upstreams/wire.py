"""One exchange on one connection: sends a request, and is the stream of its answer's body.

Theory of operation. `exchange` hands the head to the connection, starts a task for the body if there is one, and waits
for the answer's head. Reading the answer goes on beside sending: an answer may come early. When it is an error, or when
it ends, before the request was sent, sending stops, and the connection is not used again (RFC 9112 section 9.5);
otherwise bodies may flow both ways at once. A connection is free as soon as request and answer are whole, though the
reader may not have taken all of it yet. Whatever fails is one exception, seen by whoever reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

import httpx

from relay.catalog import Upstream
from relay.rules.headers import Pairs
from relay.upstreams import backlog, faults
from relay.upstreams.connection import Connection
from relay.upstreams.duplex import DuplexStream
from relay.upstreams.messages import SeamResponse
from relay.upstreams.pace import UploadPace
from relay.upstreams.states import Event

READ_BUFFER_BYTES = 256 * 1024
"""Bound of what was received and not taken yet; above it reading pauses. One read may go over it. Less when all answers
together hold much: `backlog`."""
PIECE_BYTES = 64
"""What a piece costs beside its bytes, so that tiny ones are bounded too."""
JOINED_BYTES = 64 * 1024
"""Pieces that lie waiting are handed out together up to this."""
CONTINUE_SECONDS = 1.0
"""How long a body that was announced with `Expect` waits for 100. Servers may never send one (RFC 9110 section
10.1.1)."""
ERROR_STATUSES = 400

Interim = Callable[[int, Pairs], None]


class Wire(httpx.AsyncByteStream, httpx.SyncByteStream):
    """Synchronous `close` beside httpx's `aclose`: nothing can interrupt it."""

    __slots__ = (
        "_awaits_go_ahead",
        "_connection",
        "_ended",
        "_go_ahead",
        "_handed",
        "_held",
        "_interim",
        "_loop",
        "_pairs",
        "_problem",
        "_queue",
        "_status",
        "_upload",
        "_upload_pace",
        "_waiter",
        "on_closed",
        "request_sent",
        "response_begun",
        "sends_body",
        "trailers",
        "upstream",
    )

    def __init__(self, connection: Connection, upstream: Upstream) -> None:
        self.on_closed: Callable[[], None] | None = None
        """Called once, when the stream of the answer is closed."""
        self.upstream = upstream
        self.sends_body = False
        self.request_sent = False
        """Bytes of the request may have reached the upstream."""
        self.response_begun = False
        """A byte of an answer has come."""
        self.trailers: Pairs = []
        """What followed a chunked body, once it has ended."""
        self._connection: Connection | None = connection
        self._loop = connection._loop
        self._queue: list[bytes] = []
        """Its bound makes it short, so that taking the first costs little. An empty deque would take 760 bytes."""
        self._held = 0
        self._handed = 0
        """What the piece weighs that the reader was given last."""
        self._status = 0
        self._pairs: Pairs = []
        self._ended = False
        self._problem: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._interim: Interim | None = None
        self._awaits_go_ahead = False
        self._go_ahead: asyncio.Future[None] | None = None
        self._upload: asyncio.Task[None] | None = None
        self._upload_pace: UploadPace | None = None

    async def exchange(self, request: httpx.Request, head: bytes, *, has_body: bool) -> httpx.Response:
        """Send `request`, whose head is `head` on the wire; its answer, whose body streams from here."""
        connection = cast(Connection, self._connection)
        extensions = request.extensions
        self._interim = extensions.get("interim")
        self.sends_body = has_body
        remaining = _announced_bytes(request) if has_body else 0
        self._awaits_go_ahead = has_body and "expect" in request.headers
        connection.begin(
            self, head, has_body=has_body, to_head=request.method == "HEAD", may_switch="upgrade" in extensions
        )
        self.request_sent = True
        if has_body:
            self._upload = self._loop.create_task(self._send_body(request, connection, remaining))
        else:
            connection.silence.watch(self.upstream.head_timeout_seconds, faults.HeadTimeout)
        while not self._status and self._problem is None:
            await self._change()
        if self._problem is not None:
            raise self._problem
        if self._connection is not None:
            connection.silence.pause()
        if self._status == 101:
            return SeamResponse(101, self._pairs, self, {"network_stream": DuplexStream(self, connection)})
        return SeamResponse(self._status, self._pairs, self, {"trailers": self.trailers})

    # What the connection tells.

    def on_interim(self, status: int, pairs: Pairs) -> None:
        connection = self._connection
        if connection is not None:
            connection.standing.happened(Event.INTERIM_CAME)
        if status == 100:
            self._go_on()
        elif self._interim is not None:
            self._interim(status, pairs)

    def on_head(self, status: int, pairs: Pairs, *, keeps_alive: bool) -> None:
        connection = self._connection
        if connection is not None:
            connection.standing.happened(Event.SWITCHED if status == 101 else Event.HEAD_CAME)
            connection.standing.keeps_alive = keeps_alive
            is_unwanted = status >= ERROR_STATUSES or self._awaits_go_ahead
            if is_unwanted and self._upload is not None and connection.standing.may_send:
                self._cease(connection)
        self._status = status
        self._pairs = pairs
        self._wake()

    def on_piece(self, piece: bytes) -> None:
        self._queue.append(piece)
        size = len(piece) + PIECE_BYTES
        self._held += size
        backlog.count(size)
        if self._connection is not None and (self._held > READ_BUFFER_BYTES or not backlog.is_ample()):
            self._connection.pause()
        if self._waiter is not None:
            self._wake()

    def on_end(self, trailers: Pairs) -> None:
        if trailers:
            self.trailers += trailers
        self._ended = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.standing.happened(Event.END_CAME)
            if connection.standing.may_send:
                self._cease(connection)
            connection.finish()
        self._wake()

    def on_raw_end(self) -> None:
        """After a switch of protocols: the upstream sends no more."""
        self._ended = True
        self._wake()

    def fail(self, problem: Exception) -> None:
        """Make whoever reads the answer see `problem`, and give up the connection."""
        if self._problem is None and not self._ended:
            if isinstance(problem, httpx.TransportError):
                is_sending = self.sends_body and not self.response_begun
                phase: faults.Phase = "body" if self._status else "request" if is_sending else "head"
                faults.placed(problem, faults.Progress(phase, self.request_sent, self.response_begun))
            self._problem = problem
        self._stop_upload()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _change(self) -> asyncio.Future[None]:
        """Done when something came. One reader at a time."""
        waiter = self._waiter = self._loop.create_future()
        return waiter

    # The request's body.

    async def _send_body(self, request: httpx.Request, connection: Connection, remaining: int | None) -> None:
        """`remaining` bytes, or chunks. Runs beside the reading of the answer, which may come first. What goes wrong
        fails the reader."""
        pace = self._upload_pace = UploadPace(self._loop, self.upstream, self.fail)
        try:
            if self._awaits_go_ahead:
                await self._until_told_to_go_on()
            pace.await_caller()
            async for chunk in cast(AsyncIterator[bytes], request.stream):
                if not chunk:
                    continue
                pace.await_upstream(len(chunk))
                if remaining is None:
                    await connection.send(b"%x\r\n" % len(chunk), chunk, b"\r\n")
                else:
                    remaining -= len(chunk)
                    if remaining < 0:
                        raise httpx.LocalProtocolError("the request's body is longer than announced")
                    await connection.send(chunk)
                pace.await_caller()
                if self._status and self._connection is not None:
                    # The answer's silence is broken by what moves up, as the upload's is by the answer.
                    connection.silence.extend(self.upstream.idle_timeout_seconds)
            if remaining:
                raise httpx.LocalProtocolError("the request's body is shorter than announced")
            pace.await_upstream(0)
            if remaining is None:
                await connection.send(b"0\r\n\r\n")
            if self._connection is not None:
                connection.standing.happened(Event.END_SENT)
                if not self._status:
                    connection.silence.watch(self.upstream.head_timeout_seconds, faults.HeadTimeout)
        except httpx.WriteError:
            # Its answer, or the end of the connection, tells the reader.
            if self._connection is not None and connection.standing.may_send:
                connection.standing.happened(Event.CEASED)
        except Exception as problem:
            self._upload = None
            self.fail(problem)
        finally:
            pace.stop()

    async def _until_told_to_go_on(self) -> None:
        """Until 100 or `CONTINUE_SECONDS`. A final answer instead says that the body is not wanted."""
        self._go_ahead = self._loop.create_future()
        timer = self._loop.call_later(CONTINUE_SECONDS, self._go_on)
        try:
            await self._go_ahead
        finally:
            timer.cancel()
            self._go_ahead = None

    def _go_on(self) -> None:
        self._awaits_go_ahead = False
        if self._go_ahead is not None and not self._go_ahead.done():
            self._go_ahead.set_result(None)

    def _cease(self, connection: Connection) -> None:
        """Stop sending: the answer says that the rest is not wanted."""
        connection.standing.happened(Event.CEASED)
        self._stop_upload()

    def _stop_upload(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.cancel()
        if self._upload_pace is not None:
            self._upload_pace.stop()

    # The answer's body.

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece
        self.close()

    async def read(self) -> bytes:
        """What has come, as soon as something has; empty at the end. Raises what made it fail. Who asks for the next
        piece has done with the one before."""
        backlog.count(-self._handed)
        self._handed = 0
        idle = self.upstream.idle_timeout_seconds
        while not self._queue:
            if self._problem is not None:
                raise self._problem
            if self._ended:
                return b""
            if self._connection is not None:
                self._connection.resume()
                self._connection.silence.watch(idle, httpx.ReadTimeout)
            try:
                await self._change()
            finally:
                if self._connection is not None:
                    self._connection.silence.pause()
            if self._upload_pace is not None:
                self._upload_pace.answer_moved()
        return self._take()

    def _take(self) -> bytes:
        """The next piece; small ones that lie waiting are joined."""
        queue = self._queue
        before = self._held
        piece = queue.pop(0)
        self._held -= len(piece) + PIECE_BYTES
        if queue and len(piece) < JOINED_BYTES:
            pieces, size = [piece], len(piece)
            while queue and size + len(queue[0]) <= JOINED_BYTES:
                piece = queue.pop(0)
                pieces.append(piece)
                size += len(piece)
                self._held -= len(piece) + PIECE_BYTES
            piece = b"".join(pieces)
        self._handed = before - self._held
        if self._connection is not None:
            if not backlog.is_ample():
                self._connection.pause()
            elif self._held <= READ_BUFFER_BYTES // 2:
                self._connection.resume()
        return piece

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back if request and answer are whole, else give it up. At any moment, repeatedly."""
        self._stop_upload()
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._ended and connection.has_ended:
                connection.close()
            else:
                connection.abort()
        if self._problem is None and (self._queue or not self._ended):
            self._problem = httpx.ReadError("the stream was closed")
        self._queue.clear()
        backlog.count(-self._held - self._handed)
        self._held = self._handed = 0
        self._wake()
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed()


def _announced_bytes(request: httpx.Request) -> int | None:
    """Content-Length; None for a body sent in chunks. A body that nothing frames would be read as the next request:
    `httpx.LocalProtocolError`."""
    is_chunked = False
    for name, value in request.headers.raw:
        lower = name.lower()
        if lower == b"content-length":
            return int(value)
        is_chunked = is_chunked or lower == b"transfer-encoding"
    if not is_chunked:
        unframed = httpx.LocalProtocolError("a body without Content-Length or Transfer-Encoding")
        raise faults.placed(unframed, faults.Progress("request"))
    return None
