"""One connection to an upstream: an `asyncio` protocol that carries one exchange at a time, and knows how it stands.

Theory of operation. `begin` writes a request's head and names the `Wire` that is told of everything that comes back:
`answers` reads the bytes, `states` says what may happen. A small queue lies between the socket and whoever reads the
answer; above `READ_BUFFER_BYTES` reading pauses, so a slow caller slows the upstream. How much is read at once is
`backlog`'s. Towards the upstream the transport's own buffer is the bound: `send` waits while it is full.

Time is watched by `Silence`, which stays with the connection from exchange to exchange and costs no timer for each. It
fails the wire with an exception; nothing is cancelled. Closing is synchronous, so that nothing can interrupt it. A
connection that ends in the middle is reset: the other side must not take what it has for the whole.

An exchange that ends well leaves the connection to `on_free`, one that does not closes it. Bytes that come while no
exchange is under way close it too: nobody asked for them, and they must not answer the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx

from relay.upstreams import backlog, faults
from relay.upstreams.answers import AnswerReader, Framing
from relay.upstreams.intake import Intake
from relay.upstreams.silence import Silence
from relay.upstreams.states import Event, Standing, Theirs

if TYPE_CHECKING:
    from relay.upstreams.wire import Wire

WRITE_BUFFER_BYTES = 64 * 1024
"""Bound of what waits to be sent; a body's next piece waits above it."""
LAST_WORDS_BYTES = 1024 * 1024
"""Bound of what is still read of an answer from a connection that broke under the request's body."""
LAST_WORDS_READ_BYTES = 128 * 1024
CLOSING_SECONDS = 10.0
"""How long a connection that is closed in good order may take to send what waits."""
_RESET = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Close at once, with a reset; what the kernel still holds for the peer goes too. Callers' connections as well."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


class Connection(asyncio.Protocol):
    """Made by a dialer, kept by a pool. Belongs to one event loop."""

    __slots__ = (
        "_is_reading",
        "_loop",
        "_on_free",
        "_on_lost",
        "_reader",
        "_room",
        "address",
        "has_ended",
        "has_served",
        "is_left",
        "is_lost",
        "silence",
        "standing",
        "transport",
        "wire",
    )

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.standing = Standing()
        self.wire: Wire | None = None
        """The exchange under way."""
        self.silence = Silence(self._loop, self._silent)
        self.has_served = False
        """An exchange has been carried: the upstream may close at any moment."""
        self.has_ended = False
        """After a switch of protocols: we send no more."""
        self.is_lost = False
        self.address = ""
        """Of the other end."""
        self.is_left = False
        """The name leads elsewhere by now: it serves no further exchange."""
        self._reader = AnswerReader()
        self._is_reading = True
        self._room: asyncio.Future[None] | None = None
        """What `send` waits for while the write buffer is full."""
        self._on_free: Callable[[Connection], None] = _ignore
        self._on_lost: Callable[[Connection], None] = _ignore

    def belong(self, *, on_free: Callable[[Connection], None], on_lost: Callable[[Connection], None]) -> None:
        """Whom to tell, from now on, when an exchange ended well, and, once, when the connection is gone."""
        self._on_free = on_free
        self._on_lost = on_lost

    # What an exchange does with it.

    @property
    def is_usable(self) -> bool:
        """Whether a request may be sent on it now."""
        transport = self.transport
        return transport is not None and not self.is_lost and not transport.is_closing()

    def begin(self, wire: Wire, head: bytes, *, has_body: bool, to_head: bool, may_switch: bool) -> None:
        """Send a request's head; the answer is told to `wire`. Raises `httpx.LocalProtocolError` out of turn."""
        transport = self.transport
        if transport is None or not self.is_usable:
            raise faults.placed(faults.HungUp("closed while idle"), faults.Progress("request"))
        self.standing.happened(Event.HEAD_SENT if has_body else Event.WHOLE_SENT)
        self.wire = wire
        self._reader.expect(wire, to_head=to_head, may_switch=may_switch)
        transport.write(head)

    async def send(self, *parts: bytes) -> None:
        """Send more of the request, and wait while too much of it is on its way. Raises `httpx.WriteError` when the
        upstream takes no more."""
        transport = self.transport
        if transport is None or self.is_lost or transport.is_closing():
            raise httpx.WriteError("the upstream takes no more")
        if len(parts) == 1:
            transport.write(parts[0])
        else:
            transport.writelines(parts)
        if self._room is not None:
            # Others wait for the same: who is cancelled here gives up his own waiting only.
            await asyncio.shield(self._room)
            if self.is_lost:
                raise httpx.WriteError("the upstream takes no more")

    def pause(self) -> None:
        """Read no more for now: the upstream has to wait."""
        if self._is_reading and self.transport is not None and not self.is_lost:
            self._is_reading = False
            self.transport.pause_reading()

    def read_small(self) -> None:
        """From the next read on, read no more at once than bodies leave room for. For `backlog`."""
        transport = self.transport
        if transport is not None and not self.is_lost:
            transport.set_protocol(Intake(self))
            if self._is_reading:
                # uvloop asks a protocol how it reads when reading begins.
                transport.pause_reading()
                transport.resume_reading()

    def resume(self) -> None:
        if not self._is_reading and self.transport is not None and not self.is_lost:
            self._is_reading = True
            self.transport.resume_reading()

    def finish(self) -> None:
        """The exchange has come to its end: free the connection for another, or close it."""
        self.wire = None
        self.silence.pause()
        if self.transport is not None and self.transport.get_write_buffer_size():
            # Answered before the upstream took the request. It may never take the rest, so nothing waits for that.
            self.abort()
        elif self.standing.may_be_reused and self.is_usable:
            self.resume()
            self.standing.happened(Event.REUSED)
            self.has_served = True
            self._on_free(self)
        elif self.standing.is_over:
            self.close()
        else:
            self.abort()

    def end(self) -> None:
        """Close our side alone. Without effect over TLS."""
        transport = self.transport
        if transport is not None and not transport.is_closing() and transport.can_write_eof():
            transport.write_eof()
            self.has_ended = True

    def close(self) -> None:
        """Close in good order: nothing was broken off. What waits to be sent has `CLOSING_SECONDS`."""
        self._give_up()
        transport = self.transport
        if transport is not None:
            if transport.get_write_buffer_size():
                self._loop.call_later(CLOSING_SECONDS, self.abort)
            transport.close()

    def abort(self) -> None:
        """Close with a reset: the upstream learns at once that no more comes, and what waits to be sent is not sent."""
        self._give_up()
        transport = self.transport
        if transport is None:
            return
        reset(transport)

    def _give_up(self) -> None:
        self.wire = None
        self.silence.stop()
        self.standing.happened(Event.CLOSED)
        self._reader.forget()

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # dialers make stream transports
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)  # type: ignore[union-attr]
        backlog.watch(self)

    def data_received(self, data: bytes) -> None:
        wire = self.wire
        if wire is None:
            self.abort()
            return
        wire.response_begun = True
        try:
            self._reader.feed(data)
        except httpx.RemoteProtocolError as problem:
            wire.fail(problem)

    def eof_received(self) -> bool:
        wire = self.wire
        if wire is None:
            return False
        if self.standing.theirs is Theirs.RAW:
            wire.on_raw_end()
            return True
        framing = self._reader.framing
        if not self._reader.feed_end():
            wire.fail(faults.HungUp(_END_OF_WHAT.get(framing, "closed")))
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        # What was sent is counted on no more: `send` fails from here on, also for whoever waits in it.
        self.is_lost = True
        backlog.forget(self)
        wire = self.wire
        if wire is not None and exc is not None and wire.sends_body:
            self._hear_last_words()
            wire = self.wire
        self.transport = None
        if wire is not None:
            wire.fail(faults.HungUp("reset" if exc is not None else "closed"))
        self._give_up()
        self.resume_writing()
        on_lost, self._on_lost, self._on_free = self._on_lost, _ignore, _ignore
        on_lost(self)

    def pause_writing(self) -> None:
        if self._room is None:
            self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def _silent(self, problem: Exception) -> None:
        if self.wire is not None:
            self.wire.fail(problem)

    def _hear_last_words(self) -> None:
        """Read what has arrived and was not read yet.

        An upstream that answers early and closes resets the connection under our next write (RFC 9112 section 9.6).
        The loop then gives the connection up, though the answer came before the reset. Not for TLS.
        """
        transport = self.transport
        if transport is None or transport.get_extra_info("sslcontext") is not None:
            return
        descriptor = transport.get_extra_info("socket").fileno()
        heard = 0
        with contextlib.suppress(OSError):
            while self.wire and heard < LAST_WORDS_BYTES and (data := os.read(descriptor, LAST_WORDS_READ_BYTES)):
                self.data_received(data)
                heard += len(data)


_END_OF_WHAT = {
    Framing.HEAD: "closed before the end of the head",
    Framing.COUNTED: "closed before the last byte that was announced",
    Framing.CHUNKED: "closed before the last chunk",
}


def _ignore(_: Connection) -> None:
    pass
