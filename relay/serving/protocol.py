"""uvicorn's HTTP protocol with what the relay needs beyond it: every method, exact targets, bounds, less work.

Theory of operation. llhttp, in uvicorn's parser, judges heads and where a message ends; its callbacks keep `_place`.
Of counted bodies the head has told the end, and large pieces of them go past it, uncopied.
It refuses methods that it does not know, so what stands at the beginning of a message is looked at first: a method that
is a token (RFC 9110 section 9.1) but unknown goes to the application as it came, and the parser is shown another in its
place that means nothing for framing. That happens only where the parser itself has said that it stands between two
messages. Therefore what holds several messages is fed in steps that end where a message may end. A step that ends
elsewhere is harmless: nothing is replaced then, and an unknown method behind it gets 400. So does one behind a chunked
body in the same segment, whose end only the parser finds.

An `Upgrade` is declined by going on with the request as if it were not there. llhttp stops after such a head, the body
unread; another parser, shown nothing of the head but its framing, reads that body.

A head that came whole begins in its turn, of `relay.serving.turns`. What has no upstream yet has bounds here, from
`relay.serving.door`: a head's time and size are measured while it arrives, and of pipelined requests, what
`MOST_WAITING` leave unread waits as the bytes it came as. One timer serves a connection for all of that: it is not
moved for each request, but looks when it fires what is due.

Answers are `relay.serving.cycle`'s.
"""

from __future__ import annotations

import asyncio
import re
import urllib.parse
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, service_unavailable
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from relay.errors import (
    CallerStalled,
    HeaderFieldsTooMany,
    HeadersTooLarge,
    NotHTTP,
    RelayError,
    RequestHeadTimedOut,
    RequestRefused,
    TargetTooLong,
)
from relay.serving import door, status
from relay.serving.asgi import DISCONNECT, EARLY_HINT, SENT_TARGET, TRAILERS
from relay.serving.cycle import RelayCycle
from relay.upstreams import backlog
from relay.upstreams.connection import reset
from relay.upstreams.intake import Intake

LONGEST_METHOD = 64
KNOWN_METHODS = frozenset(
    b"GET HEAD POST PUT DELETE PATCH OPTIONS TRACE CONNECT QUERY SEARCH COPY MOVE LOCK UNLOCK MKCOL PROPFIND PROPPATCH "
    b"REPORT ACL BIND REBIND UNBIND CHECKOUT MERGE MKACTIVITY MKCALENDAR LINK UNLINK PURGE NOTIFY SUBSCRIBE "
    b"UNSUBSCRIBE M-SEARCH "
    # PRI begins HTTP/2, which llhttp knows to refuse.
    b"PRI".split()
)
"""What llhttp takes in an HTTP request. Of the others it knows some from other protocols, and refuses them in this."""

METHOD = re.compile(rb"[\r\n]*([!#$%&'*+.^_`|~0-9A-Za-z-]{0,64})(.?)", re.DOTALL)
"""Empty lines, which may stand before a request; what may be a method; the byte after it, if it is there."""
STAND_IN = b"PATCH"
"""Means nothing for framing. Others that do not, such as POST, are in llhttp's eyes methods of RTSP, too."""
LONGEST_TARGET = 0xFFFF
"""What `httptools.parse_url` takes; it refuses longer ones."""

PASSED_BY_BYTES = 16 * 1024
"""A piece of a counted body as long as this goes past the parser, and with it the rest of the body: what it saves is
more than another parser costs."""

BETWEEN, HEAD, BODY = range(3)

MOST_WAITING = 32
"""Pipelined requests of a connection that wait for those before them."""

LINGER_SECONDS = 1.0
"""How long an idle connection stays open for a last request when another worker has this one's place."""

_NO_DEADLINE = float("inf")
_OFFERED: dict[str, Any] = {}
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_NOWHERE: Any = deque(maxlen=0)


class RelayProtocol(HttpToolsProtocol):
    # Fewer than thirty are left to the instance's dict then, so that it has no table of its own.
    __slots__ = (
        "_answering",
        "_body_bytes",
        "_declined",
        "_descriptor",
        "_door",
        "_entered",
        "_fruitless_bytes",
        "_head_bytes",
        "_head_deadline",
        "_idle_deadline",
        "_last",
        "_length",
        "_lingering",
        "_method",
        "_most_fields",
        "_most_head_bytes",
        "_most_target_bytes",
        "_over",
        "_passes_by",
        "_place",
        "_reads_small",
        "_refusal_due",
        "_resumed",
        "_stall_deadline",
        "_start",
        "_timer_at",
        "_turns",
        "_upgrading",
        "_waits",
    )

    cycle: RelayCycle | None  # type: ignore[assignment]  # it stands in for uvicorn's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._place = BETWEEN
        self._over = False
        """What still arrives is of no interest: the connection will be closed."""
        self._start = b""
        """The beginning of a message, which does not tell its method yet; or all that MOST_WAITING leave unread."""
        self._waits = b""
        """A head that waits for its turn to begin."""
        self._method: str | None = None
        """The method that STAND_IN stands for."""
        self._length: int | None = None
        """Content-Length of the body being read, -1 without one; None until somebody asked."""
        self._body_bytes = 0
        self._reads_small = False
        """An `Intake` reads for it: reads are small while bodies hold much."""
        self._passes_by = False
        """The rest of the body being read goes past the parser."""
        self._upgrading = False
        self._declined: bytes | None = None
        """The framing of the body that follows the head of an upgrade that was declined."""
        self._resumed = False
        """The parser at work knows of that body alone."""
        self._answering: RelayCycle | None = None
        """Whose application was started last; `cycle` may be behind it in the pipeline."""
        self._refusal_due: RelayError | None = None
        self._door = door.door_of(self.server_state)
        self._turns = self._door.turns
        self._most_head_bytes = self._door.settings.max_header_bytes
        self._most_target_bytes = self._door.settings.max_target_bytes
        self._most_fields = self._door.settings.max_header_fields
        self._head_bytes = 0
        """How much has arrived of a head that is not whole."""
        self._fruitless_bytes = 0
        """How much has arrived of a chunked body since the last that was body."""
        self._descriptor = 0
        """The socket's number."""
        self._entered = False
        self._lingering = False
        self._head_deadline = _NO_DEADLINE
        self._idle_deadline = _NO_DEADLINE
        self._last = False
        """The server stops: the next answer is this connection's last."""
        self._stall_deadline = _NO_DEADLINE
        self._timer_at = _NO_DEADLINE

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._descriptor = transport.get_extra_info("socket").fileno()
        refusal = self._door.enter(self._peer, connections=len(self.connections), descriptor=self._descriptor)
        if refusal is None:
            self._entered = True
            self._await_head()
        else:
            self._show_out(refusal)

    @property
    def _peer(self) -> str | None:
        return self.client[0] if self.client else None

    # What arrives.

    def data_received(self, data: bytes) -> None:
        if self._waits:
            self.begin()
        if self._place == BETWEEN and not (
            self._start or self.pipeline or self._over or len(data) > self._most_head_bytes
        ):
            end = data.find(b" ", 0, LONGEST_METHOD)
            if end > 0 and data[:end] in KNOWN_METHODS:
                end = data.find(b"\r\n\r\n", end)
                if end + 4 == len(data):
                    if self._turns.take(self):
                        self._feed_head(data)
                    else:
                        self._waits = data
                    return
                if end < 0:
                    self._feed_head(data)
                    return
        self._feed_in_steps(data)

    def begin(self) -> bool:
        """Go on with the head that waits for its turn, if it still does. For `turns`."""
        head, self._waits = self._waits, b""
        if not head or self._over:
            return False
        self._feed_head(head)
        return True

    def _feed_head(self, data: bytes) -> None:
        """`data` is the beginning of a message, and at most its head."""
        used = self._feed(data)
        if used < len(data):
            self._feed_in_steps(data[used:])
        elif self._place == HEAD:
            self._head_goes_on(used)

    def _feed_in_steps(self, data: bytes) -> None:
        if self._start:
            data, self._start = self._start + data, b""
        at, end = 0, len(data)
        while at < end and not self._over:
            cut = end
            place = self._place
            if place == BODY:
                left = self._body_left()
                if left > 0:
                    cut = min(end, at + left)
                    if self._passes_by or (cut - at >= PASSED_BY_BYTES and not self._resumed):
                        self._pass_by(data if cut - at == end else data[at:cut], is_last=cut - at == left)
                        at = cut
                        continue
            elif len(self.pipeline) >= MOST_WAITING:
                self._start = data[at:]
                self.flow.pause_reading()
                return
            elif place == HEAD:
                # The empty line that ends the head may have begun in what came before; later ones are found whole.
                line_end = data.find(b"\n", at, 4)
                head_end = data.find(b"\r\n\r\n", max(at - 2, 0))
                if line_end >= 0:
                    cut = line_end + 1
                elif head_end >= 0:
                    cut = head_end + 4
            else:
                found = cast("re.Match[bytes]", METHOD.match(data, at))  # it matches the empty string
                method, following = found.groups()
                if not following:
                    self._start = method
                    if method:
                        self._await_head()
                    return
                if following == b" " and method and method not in KNOWN_METHODS:
                    self._method = method.decode()
                    self._feed(STAND_IN)
                    at = found.end(1)
                    continue
                head_end = data.find(b"\r\n\r\n", at)
                if head_end >= 0:
                    cut = head_end + 4
            if place != BODY and self._head_bytes + cut - at > self._most_head_bytes:
                self._refuse(self._too_large(data, at))
                return
            passed = self._body_bytes
            used = self._feed(data if cut - at == end else memoryview(data)[at:cut])
            at += used
            if self._place == HEAD:
                self._head_goes_on(used)
            elif place == BODY == self._place and left < 0:
                # Extensions of chunks, and trailers: the parser keeps the latter until each is whole.
                self._fruitless_bytes = self._fruitless_bytes + used if self._body_bytes == passed else 0
                if self._fruitless_bytes > self._most_head_bytes:
                    self._refuse(HeadersTooLarge("of a chunked body"))

    def _pass_by(self, piece: bytes, *, is_last: bool) -> None:
        """A piece of a counted body, not shown to the parser, which would copy it. It is not shown the rest either."""
        self._passes_by = not is_last
        self.on_body(piece)
        if is_last:
            self.parser = self._new_parser()
            self.on_message_complete()

    def _head_goes_on(self, added: int) -> None:
        """What arrived has not ended the head."""
        self._head_bytes += added
        if len(self.url) > self._most_target_bytes:
            self._refuse(TargetTooLong())
        else:
            self._await_head()

    def _too_large(self, data: bytes, at: int) -> RelayError:
        """What is wrong with a head that `data` has more of, from `at` on, than may be."""
        longest = LONGEST_METHOD + self._most_target_bytes
        if (self._place == BETWEEN or not self.url) and data.find(b"\r", at, at + longest) < 0:
            return TargetTooLong()
        return HeadersTooLarge(f"more than {self._most_head_bytes} bytes of a head")

    def _await_head(self) -> None:
        """Give the head that has begun, or has to begin, its time. While an answer is under way, it has all of that."""
        if self._head_deadline == _NO_DEADLINE and (self._answering is None or self._answering.response_complete):
            self._head_deadline = self.loop.time() + self._door.settings.head_timeout_seconds
            self._wake_by(self._head_deadline)

    def _body_left(self) -> int:
        """How much of the body is to come; below 0 for one that is chunked."""
        if self._length is None:
            headers = cast(RelayCycle, self.cycle).scope["headers"]
            lengths = [value for name, value in headers if name == b"content-length"]
            self._length = int(lengths[0]) if lengths else -1
        return self._length - self._body_bytes if self._length >= 0 else -1

    def _feed(self, data: bytes | memoryview) -> int:
        """How much of `data` the parser took."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            self._after_upgrade()
            return int(stop.args[0])
        except httptools.HttpParserError as problem:
            own = problem.__context__
            self._refuse(own if isinstance(own, RelayError) else NotHTTP(str(problem)))
        return len(data)

    def _refuse(self, error: RelayError) -> None:
        """Tell of it, once, after the answers to what came before; an answer that has begun is cut off instead."""
        if self._over:
            return
        self._over = True
        cycle = self.cycle
        broken = self._place == BODY
        if broken and cycle is not self._answering:
            # Its application was not started, and will not be.
            self.pipeline.popleft()
        if self._answering is None or self._answering.response_complete:
            self._show_out(error)
        elif not broken or cycle is not self._answering:
            self._refusal_due = error
        elif cycle.response_started:
            cycle.close()
        else:
            cycle.disconnect()
            self._show_out(error)

    def _show_out(self, error: RelayError) -> None:
        """Answer with `error` and close the connection, but let what the caller still sends run out for a moment."""
        self._over = True
        if self.transport.is_closing():
            return
        self.transport.write(door.refusal_bytes(error, client=self._peer or ""))
        if not self._door.has_room_to_linger(self._descriptor) or not self.transport.can_write_eof():
            self.close()
            return
        self.transport.write_eof()
        self._lingering = True
        self._door.lingering += 1
        self.flow.resume_reading()
        self._head_deadline = _NO_DEADLINE
        self._idle_deadline = self.loop.time() + door.LINGER_SECONDS
        self._wake_by(self._idle_deadline)

    def _after_upgrade(self) -> None:
        if self._upgrading:
            self._over = True
            self.handle_websocket_upgrade()
            return
        if self._declined is not None:
            framing, self._declined = self._declined, None
            callbacks = SimpleNamespace(on_body=self.on_body, on_message_complete=self.on_message_complete)
            self.parser = httptools.HttpRequestParser(callbacks)
            self._resumed = True
            self._feed(STAND_IN + b" / HTTP/1.1\r\n" + framing + b"\r\n")

    def _new_parser(self) -> httptools.HttpRequestParser:
        """As uvicorn makes it."""
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    # What the parser says.

    def on_message_begin(self) -> None:
        self._place = HEAD
        self._idle_deadline = _NO_DEADLINE
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        parser = self.parser
        http_version = parser.get_http_version()
        method, self._method = self._method, None
        if method is None:
            method = parser.get_method().decode("ascii")
        keep_alive = http_version != "1.0" and not self._last and parser.should_keep_alive()
        url = self.url
        if http_version not in ("1.1", "1.0"):
            raise NotHTTP(f"HTTP/{http_version}")
        if len(self.headers) > self._most_fields:
            raise HeaderFieldsTooMany(f"{len(self.headers)} header fields")
        if len(url) > self._most_target_bytes:
            raise TargetTooLong(f"{len(url)} bytes")
        if len(self.pipeline) >= MOST_WAITING:
            # They came behind a chunked body, all of which the parser had to be given.
            raise NotHTTP("too many pipelined requests")
        self._head_deadline = _NO_DEADLINE
        self._head_bytes = self._fruitless_bytes = 0
        offered: dict[str, Any] = {SENT_TARGET: {"target": url}, TRAILERS: _OFFERED}
        if http_version == "1.1":
            offered[EARLY_HINT] = _OFFERED
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": http_version,
            "method": method,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "extensions": offered,
        }
        self._upgrading = False
        if parser.should_upgrade():
            if self._should_upgrade():
                self._upgrading = True
                self.scope = scope  # type: ignore[assignment]  # uvicorn has it as a TypedDict
                return
            keep_alive = self._decline_upgrade(method) and keep_alive
        if url[:1] == b"/" and b"#" not in url and len(url) <= LONGEST_TARGET:
            raw_path, _, query = url.partition(b"?")
        else:
            parsed = httptools.parse_url(url)
            if parsed.schema is not None:
                self._check_authority(parsed.schema, url)
            raw_path, query = parsed.path, parsed.query or b""
        path = raw_path.decode("ascii")
        if "%" in path:
            path = urllib.parse.unquote(path)
        if self.root_path:
            path = self.root_path + path
            raw_path = self.root_path.encode("ascii") + raw_path
        scope["path"] = path
        scope["raw_path"] = raw_path
        scope["query_string"] = query
        # Trailers arrive as header fields do, and would be appended to those of the scope.
        self.headers = _NOWHERE
        self._place = BODY
        self._length = None
        self._body_bytes = 0

        app: Any = self.app
        if self.limit_concurrency is not None and (
            len(self.connections) >= self.limit_concurrency or len(self.tasks) >= self.limit_concurrency
        ):
            app = service_unavailable
            self.logger.warning("Exceeded concurrency limit.")
        before = self.cycle
        self.cycle = cycle = RelayCycle(
            self, scope, keep_alive=keep_alive, expect_100_continue=self.expect_100_continue
        )
        offered[DISCONNECT] = {"watch": cycle.watch}
        if before is None or before.response_complete:
            self._answer(cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))  # type: ignore[arg-type]  # it stands in for uvicorn's

    def _check_authority(self, scheme: bytes, url: bytes) -> None:
        """RFC 9112 section 3.2.2: whoever writes a whole URL writes the same host into Host. A proxy in front may go by
        the one, and we go by the other."""
        authority = re.split(rb"[/?#]", url.partition(b"://")[2], maxsplit=1)[0].lower()
        hosts = [value.lower() for name, value in self.headers if name == b"host"]
        if scheme.lower() not in (b"http", b"https") or hosts != [authority]:
            raise RequestRefused("the target is at another place than Host says")

    def _decline_upgrade(self, method: str) -> bool:
        """Whether the connection may carry another request. llhttp takes what follows this one's head for no HTTP."""
        if method == "CONNECT":
            # What follows was meant for somebody else, and may look like a request.
            return False
        framing = [
            b"%b: %b\r\n" % (name, value)
            for name, value in self.headers
            if name in (b"content-length", b"transfer-encoding")
        ]
        if not framing:
            return True
        self._declined = b"".join(framing)
        # Where a chunked body ends, only the parser that reads it knows, and that one reads nothing else.
        return b"transfer-encoding" not in self._declined

    def _answer(self, cycle: RelayCycle, app: Any) -> None:
        self._answering = cycle
        self._start_asgi_task(cycle, app)  # type: ignore[arg-type]  # it stands in for uvicorn's

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        self._body_bytes += len(body)
        if cycle is None or self._upgrading:
            return
        if cycle.response_complete:
            # The rest of it has the keep-alive time, which began with the answer's end: nobody drips for ever.
            return
        if not self._reads_small:
            backlog.watch(self)
        if not backlog.is_ample():
            self.flow.pause_reading()
        if cycle.take_body(body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        if self._declined is not None:
            return
        self._place = BETWEEN
        cycle = self.cycle
        if cycle is None or self._upgrading:
            return
        if self._resumed:
            self._resumed = False
            self.parser = self._new_parser()
        if not cycle.keep_alive:
            self._over = True
        if cycle.response_complete:
            # It was answered before it was whole; now the connection is idle.
            self._watch_idleness()
        else:
            cycle.end_body()

    # What the answers say, and the server.

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._await_taking()
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._answer(cast(RelayCycle, cycle), app)
        elif self._refusal_due is not None:
            self._show_out(self._refusal_due)
            return
        elif self._place == HEAD or self._start:
            self._await_head()
        else:
            self._watch_idleness()
        self.read_on()
        if self._start and not self.pipeline:
            self._feed_in_steps(b"")

    def pause_writing(self) -> None:
        """The caller takes less than it is sent."""
        super().pause_writing()
        self._await_taking()

    def _await_taking(self) -> None:
        self._stall_deadline = self.loop.time() + self._door.settings.stall_timeout_seconds
        self._wake_by(self._stall_deadline)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stall_deadline = _NO_DEADLINE

    def close(self) -> None:
        """Close the connection after what was written, but do not wait for ever until that is taken."""
        self.transport.close()
        self._head_deadline = self._idle_deadline = _NO_DEADLINE
        self._await_taking()

    def read_on(self) -> None:
        """Unless as many requests wait already as may: those are answered first."""
        if not (self._start and self.pipeline):
            self.flow.resume_reading()

    def read_small(self) -> None:
        """From the next read on, read no more at once than bodies leave room for. For `backlog`."""
        self._reads_small = True
        if not self.transport.is_closing():
            self.transport.set_protocol(Intake(self))
            if not self.flow.read_paused:
                # uvloop asks a protocol how it reads when reading begins.
                self.transport.pause_reading()
                self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        backlog.forget(self)
        if self._entered:
            self._door.leave(self._peer)
        if self._lingering:
            self._door.lingering -= 1
        self._entered = self._lingering = False
        for cycle in {self.cycle, self._answering}:
            if cycle is not None:
                cycle.disconnect()
        # What was never begun would keep the connection's objects in a circle.
        self.pipeline.clear()
        self._waits = b""
        self.flow.resume_writing()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if exc is None:
            self.transport.close()
        self._over = True
        self.parser = None  # type: ignore[assignment]  # as uvicorn does, to break a circle

    def shutdown(self) -> None:
        """The server stops. A request under way, or whose head has begun to arrive, is answered; where another worker
        takes over, so is one that was sent before the caller could know."""
        self._last = True
        self.begin()
        answering = self._answering
        if answering is not None and not answering.response_complete:
            # One whose head went out promised to stay open: then the caller may have sent the next request already.
            if not (answering.response_started and status.is_handing_over()):
                answering.keep_alive = False
        elif self._place == BETWEEN and not self._start:
            if not status.is_handing_over():
                self.close()
                return
            self._watch_idleness()

    def _watch_idleness(self) -> None:
        """Close the connection if no request begins within the keep-alive time."""
        if not self._lingering:
            self._idle_deadline = self.loop.time() + (LINGER_SECONDS if self._last else self.timeout_keep_alive)
            self._wake_by(self._idle_deadline)

    def _wake_by(self, deadline: float) -> None:
        """Have the timer look at `deadline` or before."""
        if self.timeout_keep_alive_task is not None:
            if self._timer_at <= deadline:
                return
            self.timeout_keep_alive_task.cancel()
        self._timer_at = deadline
        self.timeout_keep_alive_task = self.loop.call_at(deadline, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        self.begin()
        deadline = min(self._head_deadline, self._idle_deadline, self._stall_deadline)
        if deadline == _NO_DEADLINE:
            return
        if deadline > self.loop.time() + 0.001:  # uvloop's clock counts milliseconds
            self._wake_by(deadline)
        elif deadline == self._stall_deadline:
            door.note(CallerStalled(), client=self._peer or "")
            # What the kernel still holds for the caller goes too: it would wait for a caller who waits.
            reset(self.transport)
        elif self.transport.is_closing():
            self._head_deadline = self._idle_deadline = _NO_DEADLINE
            self._await_taking()
        elif not self._over and (self._place == HEAD or self._start):
            self._show_out(RequestHeadTimedOut(f"{self._head_bytes + len(self._start)} bytes came"))
        else:
            # Nothing has begun, or nothing is waited for: an answer could be taken for that to another request.
            self.close()
