"""The lean way from ASGI to the relay view and back: no spooled body, no thread, no task but the watch on the caller.

Theory of operation. One request is one call and stays in the server's task. The view decides and returns a
`RelayResponse`; the handler sends its head and pumps its body, each `send()` waiting for a slow caller. The caller's
leaving and the total time-out cancel this very task, whatever it awaits; `RelayRequest` remembers why. Before the head
a failure is a problem document; after it the call returns without the last body message, and the server closes the
connection: an answer that failed in the middle never looks whole. One `finally` closes everything, synchronously.

Django's `request_started` and `request_finished` are not sent here: their receivers are made for threads and databases.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.module_loading import import_string

from relay import conf, errors, views
from relay.observing import access_log
from relay.observing.metrics import metrics
from relay.serving import status
from relay.serving.asgi import TRAILERS, Receive, Scope, Send, mark_aborted
from relay.serving.problems import problem_response
from relay.serving.request import RelayRequest
from relay.serving.responses import RelayResponse

logger = logging.getLogger("relay.serving")


def _random_ids() -> Iterator[bytes]:
    """32 hexadecimal digits each, 256 for one call of the system. Begins in the worker, with its first request."""
    while True:
        digits = os.urandom(4096).hex().encode()
        for begin in range(0, len(digits), 32):
            yield digits[begin : begin + 32]


_request_ids = _random_ids()

View = Callable[[RelayRequest], Awaitable[HttpResponseBase]]


class RelayHandler(ASGIHandler):
    """Django's ASGI handler, cut down to what relaying needs. `RELAY_MIDDLEWARE` stands where MIDDLEWARE would."""

    def load_middleware(self, is_async: bool = True) -> None:
        view: View = views.relay
        for path in reversed(conf.current().middleware):
            view = import_string(path)(view)
        self._view = view

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        entry = access_log.Entry(scope["method"], next(_request_ids), time.perf_counter())
        request = RelayRequest(scope, receive, send, entry)
        response: RelayResponse | None = None
        try:
            if status.is_refusing():
                raise errors.Draining("stopping")
            answered = await self._view(request)
            response = answered if isinstance(answered, RelayResponse) else _as_relayed(answered)
            await self._send(request, response, send)
        except asyncio.CancelledError:
            if not request.resume():
                # The server's own doing: the time it gives to exchanges under way is over.
                await self._fail(request, errors.Draining("cancelled"), send)
                entry.outcome = "shutdown"
                mark_aborted()
                raise
            if request.caller_is_gone:
                mark_aborted()
                # Who leaves after being told of an error does not make it undone.
                entry.outcome = "caller-gone" if entry.outcome == "ok" else entry.outcome
            else:
                await self._fail(request, request.cut_by or errors.RelayError(), send)
        except errors.RelayError as error:
            await self._fail(request, error, send)
        except Exception:
            logger.exception("The relay failed on request %s", entry.request_id.decode())
            await self._fail(request, errors.RelayError("exception"), send)
        finally:
            exchange = request.exchange
            if exchange is not None:
                entry.bytes_out = exchange.body_bytes
                entry.queued_seconds = exchange.queued_seconds
                entry.phases = exchange.phases
                entry.attempts = exchange.attempts
                if exchange.target is not None:
                    entry.target = exchange.target.name
                if exchange.request_body is not None:
                    entry.bytes_in = exchange.request_body.passed
            request.close()
            if response is not None:
                response.close()
            metrics.ended(entry, time.perf_counter())
            access_log.log.add(entry)

    async def _send(self, request: RelayRequest, response: RelayResponse, send: Send) -> None:
        entry = request.entry
        entry.status = response.status_code
        inbound = request.inbound
        pairs = response.all_pairs()
        # Answered before the request was whole: what is still to come of it must not be taken for the next request.
        early = not inbound.complete
        if early:
            pairs = [*pairs, (b"connection", b"close")]
        await request.hints_sent()
        start = {"type": "http.response.start", "status": response.status_code, "headers": pairs}
        if response.trailers is not None:
            start["trailers"] = True
        await send(start)
        if response.body is not None:
            pieces = 0
            async for chunk in response.body:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                pieces += 1
                if pieces == 2:
                    # A long answer: what is sent to a caller who left vanishes without an error.
                    inbound.watch()
            last = b""
        else:
            last = response.whole
        if early:
            await send({"type": "http.response.body", "body": last, "more_body": True})
            await inbound.linger()
            last = b""
        await send({"type": "http.response.body", "body": last})
        if response.trailers is not None:
            await send({"type": TRAILERS, "headers": response.trailers(), "more_trailers": False})

    async def _fail(self, request: RelayRequest, error: errors.RelayError, send: Send) -> None:
        """A problem document if the head has not gone out, else nothing more."""
        entry = request.entry
        entry.failed(error)
        request.end_exchange()
        if entry.status:
            mark_aborted()
            return
        response = problem_response(
            error,
            request_id=entry.request_id,
            accept=views.accept_of(request),
            cors_lines=request.cors_lines,
        )
        try:
            await self._send(request, response, send)
        except asyncio.CancelledError:
            if not request.resume():
                raise


def _as_relayed(response: HttpResponseBase) -> RelayResponse:
    """An ordinary Django response, with which middleware answered in the view's place."""
    pairs = [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in response.items()]
    pairs += [(b"set-cookie", morsel.OutputString().encode("latin-1")) for morsel in response.cookies.values()]
    if isinstance(response, StreamingHttpResponse):
        return RelayResponse(response.status_code, pairs, aiter(response), on_close=response.close)
    whole = cast(HttpResponse, response).content
    if not response.has_header("Content-Length") and response.status_code not in (204, 304):
        pairs.append((b"content-length", b"%d" % len(whole)))
    return RelayResponse(response.status_code, pairs, whole=whole, on_close=response.close)
