"""One request and its answer between uvicorn's protocol and an ASGI application, written for few steps and few writes.

It stands where uvicorn's `RequestResponseCycle` would, and answers as that does: the same status lines, the same
errors for an answer that is longer or shorter than it said, for a message out of turn, for bytes that would break out
of a header field. It costs less: fields are checked once, joined, instead of twice each; what an application says in
one turn of the event loop leaves in one write; large pieces of a body are written without being copied; and nothing is
made that a request may never need. A piece may be bytes or a memoryview, and must not change once it was sent.

Beyond uvicorn it knows two of ASGI's extensions, `http.response.early_hint` and `http.response.trailers`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HEADER_RE, STATUS_LINE
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

from relay.serving.asgi import DISCONNECT, EARLY_HINT, TRAILERS, Application, Message, Scope
from relay.upstreams import backlog

if TYPE_CHECKING:
    from relay.serving.protocol import RelayProtocol

logger = logging.getLogger("uvicorn.error")

HELD_BYTES = 16 * 1024
"""Up to this is held for what follows in the same turn of the event loop, and copied together with it."""
KNOWN_NAMES = 1024
"""How many spellings of field names are remembered as valid."""
KNOWN_NAME_BYTES = 64
"""Longer ones are not: names are the upstream's to shape."""

NO_TRAILERS = re.compile(
    rb"(?i)connection|content-(?:encoding|length|range|type)|host|keep-alive|proxy-connection|te|trailer"
    rb"|transfer-encoding|upgrade"
)
"""Fields that frame, route or explain a message: after its body they come too late (RFC 9110 section 6.5.1)."""

_CRLF = b"\r\n"
_CONTENT_LENGTH = b"content-length: "
_TRANSFER_ENCODING = b"transfer-encoding: "
_CONNECTION = b"connection: "
_ORDINARY = bytes(byte for byte in range(256) if byte == 0x09 or (byte >= 0x20 and byte != 0x7F))
"""What a field value may consist of. uvicorn refuses the same others."""

_NO_SCOPE: Scope = {}

_starts: dict[bytes, bytes] = {}
"""Names as applications spell them, to what begins their line. Those that say how the message is framed are never in
here, so that they are always looked at."""


class RelayCycle:
    __slots__ = (
        "_awaits_trailers",
        "_body_over",
        "_chunked",
        "_flush_due",
        "_held",
        "_held_bytes",
        "_left",
        "_news",
        "_on_gone",
        "_pieces",
        "_pieces_bytes",
        "_protocol",
        "_told",
        "_without_body",
        "disconnected",
        "flow",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
        "scope",
        "transport",
        "waiting_for_100_continue",
    )

    def __init__(self, protocol: RelayProtocol, scope: Scope, *, keep_alive: bool, expect_100_continue: bool) -> None:
        self._protocol: RelayProtocol | None = protocol
        self.scope = scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expect_100_continue
        self.disconnected = False
        # The request.
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self.more_body = True
        self._news = False
        """There is something that `receive` has not told."""
        self._told: asyncio.Event | None = None
        self._on_gone: Callable[[], None] | None = None
        # The answer.
        self.response_started = False
        self.response_complete = False
        self._without_body = False
        self._chunked = False
        self._left = 0
        """How much of the announced Content-Length is to come."""
        self._body_over = False
        self._awaits_trailers = False
        self._held: list[bytes | memoryview] = []
        self._held_bytes = 0
        self._flush_due = False

    # The protocol's side.

    def take_body(self, piece: bytes) -> int:
        """A piece of the request's body; how much waits for the application."""
        self._pieces.append(piece)
        self._pieces_bytes += len(piece)
        self.tell()
        return self._pieces_bytes

    def end_body(self) -> None:
        self.more_body = False
        self.tell()

    def disconnect(self) -> None:
        """The connection is lost."""
        if not self.response_complete:
            self.disconnected = True
            self._held.clear()
            on_gone, self._on_gone = self._on_gone, None
            if on_gone is not None:
                on_gone()
        self.tell()

    def tell(self) -> None:
        """Let the application's `receive` look again."""
        self._news = True
        if self._told is not None:
            self._told.set()

    def close(self) -> None:
        """Close the connection after what was said so far."""
        self._flush()
        if self._protocol is not None:
            self._protocol.close()
        else:
            self.transport.close()

    async def run_asgi(self, app: Application) -> None:
        try:
            result: object = await app(self.scope, self.receive, self.send)  # type: ignore[func-returns-value]
        except BaseException as exc:
            logger.error("Exception in ASGI application\n", exc_info=exc)
            if not self.response_started:
                await self._send_500()
            else:
                self.close()
        else:
            if result is not None:
                logger.error("ASGI callable should return None, but returned '%s'.", result)
                self.close()
            elif self.response_complete or self.disconnected:
                pass
            elif not self.response_started:
                logger.error("ASGI callable returned without starting response.")
                await self._send_500()
            else:
                logger.error("ASGI callable returned without completing response.")
                self.close()
        finally:
            # Otherwise protocol, cycle and scope would keep each other until a garbage collection.
            self._protocol = None
            self.scope["extensions"].pop(DISCONNECT, None)
            if not self.more_body:
                # An idle connection keeps nothing of what it carried. Where a body ends, its head has to be asked.
                self.scope = _NO_SCOPE

    async def _send_500(self) -> None:
        pairs = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"21"), (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": 500, "headers": pairs})
        await self.send({"type": "http.response.body", "body": b"Internal Server Error", "more_body": False})

    # The application's side.

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        """The extension `relay.disconnect`: to know of the caller's leaving costs no task that waits in `receive`."""
        self._on_gone = on_gone

    async def receive(self) -> Message:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if self.flow.read_paused and not (self._pieces or self._is_over()) and (protocol := self._protocol) is not None:
            # Not before what there is was taken: of a large body one read at a time is held here.
            protocol.read_on()
        while not (self._news or self._is_over()):
            # Made only for who waits: most requests are answered without.
            if self._told is None:
                self._told = asyncio.Event()
            self._told.clear()
            await self._told.wait()
        if self._is_over():
            return {"type": "http.disconnect"}
        self._news = False
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if pieces:
            self._pieces = []
            self._pieces_bytes = 0
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def _is_over(self) -> bool:
        return self.disconnected or self.response_complete

    async def send(self, message: Message) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind == "http.response.start":
                self._start(message)
            elif kind == EARLY_HINT:
                self._hint(message)
            else:
                raise RuntimeError(f"Expected ASGI message 'http.response.start', but got '{kind}'.")
        elif self.response_complete:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' sent, after response already completed.")
        elif self._body_over:
            if kind != TRAILERS:
                raise RuntimeError(f"Expected ASGI message '{TRAILERS}', but got '{kind}'.")
            self._trail(message)
        elif kind == "http.response.body":
            self._continue(message)
            if self.flow.write_paused and not (backlog.is_ample() or self._is_over()):
                # Who sends the next piece only makes it when this one has left: slower, and holds one less.
                await self.flow.drain()
        elif kind != EARLY_HINT:  # which may come at any time, and is too late now
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{kind}'.")

    def _start(self, message: Message) -> None:
        # As uvicorn does it: an answer whose head is refused closes the connection, and nothing is sent in its place.
        self.response_started = True
        self.waiting_for_100_continue = False
        protocol = cast("RelayProtocol", self._protocol)  # the application is still at it
        status = message["status"]
        pairs = message.get("headers", ())
        if default := protocol.server_state.default_headers:
            pairs = [*default, *pairs]
        if protocol.access_log:
            self._log_access(protocol.access_logger, status)
        is_head = self.scope["method"] == "HEAD"
        self._without_body = is_head or status == 204 or status == 304
        lines = [STATUS_LINE[status][:-2]]
        length: bytes | None = None
        chunked = closes = False
        for name, value in pairs:
            start = _starts.get(name)
            if start is None:
                start = _start_of(name)
                if start is _CONTENT_LENGTH:
                    if length is None:
                        length = value
                elif start is _TRANSFER_ENCODING:
                    chunked = chunked or value.lower() == b"chunked"
                elif start is _CONNECTION:
                    closes = closes or b"close" in [token.strip() for token in value.lower().split(b",")]
            lines.append(start + value)
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close")
        if length is None and not chunked and not self._without_body:
            chunked = True
            lines.append(b"transfer-encoding: chunked")
        if length is not None and not chunked and not self._without_body:
            self._left = int(length)
        self._chunked = chunked
        self._awaits_trailers = bool(message.get("trailers"))
        self._hold(_checked(lines))

    def _log_access(self, access_logger: logging.Logger, status: int) -> None:
        scope: Any = self.scope
        access_logger.info(
            '%s - "%s %s HTTP/%s" %d',
            get_client_addr(scope),
            scope["method"],
            get_path_with_query_string(scope),
            scope["http_version"],
            status,
        )

    def _continue(self, message: Message) -> None:
        body: bytes | memoryview = message.get("body", b"")
        last = not message.get("more_body", False)
        size = len(body) if type(body) is bytes else memoryview(body).nbytes
        if self._without_body:
            if size and self.scope["method"] != "HEAD":
                raise RuntimeError("Response content longer than Content-Length")
        elif self._chunked:
            if size:
                self._held += (b"%x\r\n" % size, body, _CRLF)
                self._held_bytes += size
            if last:
                self._held.append(b"0\r\n" if self._awaits_trailers else b"0\r\n\r\n")
        elif size > self._left:
            raise RuntimeError("Response content longer than Content-Length")
        elif size:
            self._left -= size
            self._held.append(body)
            self._held_bytes += size
        if not last:
            self._flush_soon()
        elif self._left:
            raise RuntimeError("Response content shorter than Content-Length")
        elif self._awaits_trailers:
            self._body_over = True
            self._flush_soon()
        else:
            self._complete()

    def _trail(self, message: Message) -> None:
        lines = []
        for name, value in message.get("headers", ()):
            if NO_TRAILERS.fullmatch(name):
                raise RuntimeError("Invalid HTTP trailer name.")
            lines.append(_start_of(name) + value)
        trailers = _checked(lines)[:-2] if lines else b""
        chunked = self._chunked and not self._without_body
        if trailers and chunked and self._takes_trailers():
            self._hold(trailers)
        if not message.get("more_trailers", False):
            if chunked:
                self._held.append(_CRLF)
            self._complete()

    def _takes_trailers(self) -> bool:
        """The extension's rule: only who asked for trailers is sent them."""
        return self.scope["http_version"] == "1.1" and any(
            token.partition(b";")[0].strip() == b"trailers"
            for name, value in self.scope["headers"]
            if name == b"te"
            for token in value.lower().split(b",")
        )

    def _hint(self, message: Message) -> None:
        links = [b"link: " + link for link in message["links"]]
        head = _checked([b"HTTP/1.1 103 Early Hints", *links])
        # RFC 8297 section 2: clients of HTTP/1.0 would take it for the answer.
        if links and self.scope["http_version"] == "1.1":
            self.transport.write(head)

    # What leaves.

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Now if much is held, else in the loop's next turn: what still comes in this one goes out with it."""
        if self._held_bytes > HELD_BYTES:
            self._flush()
        elif self._held and not self._flush_due and (protocol := self._protocol) is not None:
            self._flush_due = True
            protocol.loop.call_soon(self._flush_now_due)

    def _flush_now_due(self) -> None:
        self._flush_due = False
        self._flush()

    def _flush(self) -> None:
        held = self._held
        if not held or self.disconnected:
            return
        self._held = []
        if self._held_bytes <= HELD_BYTES:
            self.transport.write(b"".join(held))
        else:
            # uvloop passes them to the kernel as they are.
            self.transport.writelines(held)
        self._held_bytes = 0

    def _complete(self) -> None:
        self._flush()
        self.response_complete = True
        self.tell()
        if not self.keep_alive:
            self.transport.close()
        if self._protocol is not None:
            self._protocol.on_response_complete()


def _start_of(name: bytes) -> bytes:
    """What begins a field's line, such as b"etag: ". The same object for each of the fields that frame a message."""
    start = _starts.get(name)
    if start is not None:
        return start
    lowered = name.lower()
    if lowered == b"content-length":
        return _CONTENT_LENGTH
    if lowered == b"transfer-encoding":
        return _TRANSFER_ENCODING
    if lowered == b"connection":
        return _CONNECTION
    if not name or HEADER_RE.search(name):
        raise RuntimeError("Invalid HTTP header name.")
    start = lowered + b": "
    if len(_starts) < KNOWN_NAMES and len(name) <= KNOWN_NAME_BYTES:
        _starts[bytes(name)] = start
    return start


def _checked(lines: list[bytes]) -> bytes:
    """The lines, ended and with an empty one after them. Raises when a value has a control byte in it.

    Names were checked before, so whatever controls there are besides the line ends came in with a value.
    """
    ends = len(lines) + 1
    lines.append(_CRLF)
    text = _CRLF.join(lines)
    if text.translate(None, _ORDINARY) != _CRLF * ends:
        raise RuntimeError("Invalid HTTP header value.")
    return text
