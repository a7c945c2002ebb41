"""The requests that Django's stock handler answers, with bounds for their bodies and their number.

That handler reads a whole body, into a file when it is large, before it asks who sends it, and knows no end to either
its size or its time; and each request that it works on has a thread. Who may have all that is anyone who can reach the
admin's sign-in page. So a request waits here, whole, until fewer than `MOST_AT_ONCE` are being answered.
"""

from __future__ import annotations

import asyncio

from relay import conf, errors
from relay.serving.asgi import Application, Message, Receive, Scope, Send
from relay.serving.door import refusal

BODY_SECONDS = 60.0
"""For the whole body of one request."""
MOST_AT_ONCE = 32
"""Requests of a worker that have arrived whole and are being answered."""


class Forms:
    """`app` behind those bounds."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self.open()

    def open(self) -> None:
        """Begin with nobody inside, in the event loop that comes to use it."""
        self._room = asyncio.Semaphore(MOST_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = Body(receive, self._room, most_bytes=conf.current().max_form_bytes)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > body.most_bytes:
            body.refusal = errors.FormTooLarge(f"{int(announced)} bytes announced")
        else:
            try:
                await self._app(scope, body.receive, send)
            finally:
                body.leave()
        if body.refusal is not None:
            client = scope["client"][0] if scope.get("client") else ""
            pairs, text = refusal(body.refusal, client=client, method=scope["method"])
            await send({"type": "http.response.start", "status": body.refusal.status, "headers": pairs})
            await send({"type": "http.response.body", "body": text})


class Body:
    """Counts what `receive` brings. To an application that asks for more than it may have, the caller has left."""

    def __init__(self, receive: Receive, room: asyncio.Semaphore, *, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.refusal: errors.RelayError | None = None
        """Why the rest of the body is not read. The application has answered nothing then."""
        self._receive = receive
        self._room = room
        self._is_inside = False
        self._bytes = 0
        self._whole = False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self.refusal = errors.FormTimedOut(f"{self._bytes} bytes came in {BODY_SECONDS:.0f} s")
            return {"type": "http.disconnect"}
        self._bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._bytes > self.most_bytes:
            self.refusal = errors.FormTooLarge(f"more than {self.most_bytes} bytes came")
            return {"type": "http.disconnect"}
        if self._whole:
            # Only now: who sends slowly must not keep others out.
            await self._room.acquire()
            self._is_inside = True
        return message

    def leave(self) -> None:
        if self._is_inside:
            self._is_inside = False
            self._room.release()
