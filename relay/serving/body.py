"""The caller's side of one request: its body as it arrives, and the watch for its leaving.

Owns the one place where `receive()` is called. Nothing is read before `open()`, so `100 Continue` goes only to those
who may send. From then on one task reads: the body into a queue of `READ_AHEAD_BYTES`, then the disconnect. A full
queue stops reading, which stops the caller, and with it what a server can see of the caller leaving: `hangup` asks the
kernel then. Where bytes are still stuck on the caller's side nobody can know, and the idle time-out ends the upload.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from relay.serving import hangup
from relay.serving.asgi import Receive
from relay.upstreams import backlog

WatchDisconnect = Callable[[Callable[[], None] | None], None]

READ_AHEAD_BYTES = 128 * 1024
"""Bound of the queue, beyond which no further message is asked for; uvicorn's hold 64 KiB and what one read added."""
PIECE_BYTES = 64
"""What a piece costs beside its bytes, so that tiny ones are bounded too."""
WATCH_AFTER_SECONDS = 0.05
"""How long a caller without a body is not watched."""
LINGER_SECONDS = 2.0
LINGER_BYTES = 4 * 1024 * 1024


class CallerLeft(Exception):
    """The caller disconnected before its body was whole. What came of it must not look whole to the upstream."""


class Inbound:
    """What one caller sends. Belongs to one request and one task."""

    __slots__ = (
        "_gone",
        "_handed",
        "_on_gone",
        "_queue",
        "_reader",
        "_receive",
        "_room",
        "_start",
        "_waiting",
        "_wakeup",
        "_watch_disconnect",
        "complete",
    )

    def __init__(
        self, receive: Receive, *, on_gone: Callable[[], None], watch_disconnect: WatchDisconnect | None = None
    ) -> None:
        """`on_gone` is called once, when the caller disconnects while `open`. `watch_disconnect`: the server's way to
        tell of that, if it has one."""
        self.complete = True
        """Everything of the body has been received. True, too, while there is none to receive."""
        self._receive = receive
        self._on_gone = on_gone
        self._watch_disconnect = watch_disconnect
        self._queue: list[bytes] = []
        """Its bound makes it short, so that taking the first costs little. An empty deque would take 760 bytes."""
        self._waiting = 0
        self._handed = 0
        self._reader: asyncio.Task[None] | None = None
        self._start: asyncio.TimerHandle | None = None
        self._wakeup: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._gone = False

    def expect_body(self) -> None:
        """The request's head announced a body."""
        self.complete = False

    def open(self) -> None:
        """Begin to read: the body if there is one, and the watch for the caller's leaving.

        Without a body nothing has to be read to watch, where the server tells. Elsewhere the watch may begin later:
        most answers are there and gone sooner, and need none.
        """
        if self.complete and self._watch_disconnect is not None:
            self._watch_disconnect(self._left)
        elif self.complete:
            self._start = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self.watch)
        else:
            self.watch()

    def watch(self) -> None:
        """Begin at once what `open` put off."""
        if self.complete and self._watch_disconnect is not None:
            return
        if self._start is not None:
            self._start.cancel()
        if self._reader is None:
            self._reader = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        receive = self._receive
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._left()
                return
            if chunk := message.get("body"):
                self._queue.append(chunk)
                self._waiting += len(chunk) + PIECE_BYTES
                backlog.count(len(chunk) + PIECE_BYTES)
            if not message.get("more_body"):
                self.complete = True
            self._wake()
            while self._waiting >= READ_AHEAD_BYTES or (self._waiting and not backlog.is_ample()):
                loop = asyncio.get_running_loop()
                self._room = loop.create_future()
                look = loop.call_later(hangup.LOOK_SECONDS, self._look, self._room)
                try:
                    await self._room
                finally:
                    look.cancel()
                if self._gone:
                    return

    def _look(self, room: asyncio.Future[None]) -> None:
        """The upstream takes nothing, so nothing is received: see whether the caller is still there."""
        if room.done():
            return
        if hangup.has_hung_up(self._receive):
            self._left()
            room.set_result(None)
        else:
            asyncio.get_running_loop().call_later(hangup.LOOK_SECONDS, self._look, room)

    def _left(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._wake()
        self._on_gone()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body's pieces. Raises `CallerLeft` when they end before the body does.

        Asking for them opens: a caller that waits to be told to go on is told so now.
        """
        if self._reader is None and not self.complete:
            self.open()
        self._passed_on()
        queue = self._queue
        while True:
            if queue:
                chunk = queue.pop(0)
                self._handed = len(chunk) + PIECE_BYTES
                yield chunk
                self._passed_on()
            elif self.complete:
                return
            elif self._gone:
                raise CallerLeft
            else:
                self._wakeup = asyncio.get_running_loop().create_future()
                await self._wakeup

    async def linger(self) -> None:
        """Read on and throw away, within bounds, so that a caller still sending sees the answer before the connection
        closes on its bytes. Costs the caller's time, never memory."""
        if self._reader is None:
            self.open()
        discarded = 0
        with contextlib.suppress(TimeoutError, CallerLeft):
            async with asyncio.timeout(LINGER_SECONDS):
                async for chunk in self:
                    discarded += len(chunk)
                    if discarded > LINGER_BYTES:
                        return

    def close(self) -> None:
        """Stop reading and watching. Lets go of the request: a cycle would keep both until a garbage collection."""
        self._on_gone = _nobody
        if self._watch_disconnect is not None:
            self._watch_disconnect(None)
            self._watch_disconnect = None
        if self._start is not None:
            self._start.cancel()
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        self._queue.clear()
        self._let_go(self._waiting)

    def _passed_on(self) -> None:
        """Who asks for the next piece has done with the last, and so has who asks in another's place."""
        size, self._handed = self._handed, 0
        self._let_go(size)
        if size and self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _let_go(self, size: int) -> None:
        """After `close` nothing is held, whatever is still passed on."""
        size = min(size, self._waiting)
        self._waiting -= size
        backlog.count(-size)


def _nobody() -> None:
    pass
