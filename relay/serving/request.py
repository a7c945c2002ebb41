"""The Django request of the relay path: raw scope, unread body, and `META` only for who asks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, cast

from django.core.handlers.asgi import ASGIRequest
from django.http.request import RawPostDataException

from relay.errors import RelayError
from relay.observing.access_log import Entry
from relay.serving import underway
from relay.serving.asgi import DISCONNECT, EARLY_HINT, Receive, Scope, Send
from relay.serving.body import Inbound

if TYPE_CHECKING:
    from relay.serving.underway import Admission
    from relay.upstreams.exchange import Exchange


class RelayRequest(ASGIRequest):
    """An `ASGIRequest` that costs next to nothing until something is asked of it.

    Middleware finds `META`, `headers`, `GET` and `COOKIES` as usual. The body is not theirs: it streams to the
    upstream.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, entry: Entry) -> None:
        self.scope = scope
        self.method = scope["method"]
        self.path = self.path_info = scope["path"]
        self.script_name = scope.get("root_path", "")
        self.resolver_match = None
        self.entry = entry
        extensions = scope.get("extensions") or {}
        offered = extensions.get(DISCONNECT)
        self.inbound = Inbound(
            receive, on_gone=self._caller_left, watch_disconnect=offered["watch"] if offered else None
        )
        if _announces_body(scope["headers"]):
            self.inbound.expect_body()
        self.exchange: Exchange | None = None
        self.cors_lines: Iterable[tuple[bytes, bytes]] = ()
        """What browsers are told about other origins' scripts, on refusals and failures as well."""
        self.caller_is_gone = False
        self.cut_by: RelayError | None = None
        """Why the exchange was cut short, when the relay did it."""
        self.admission: Admission | None = None
        """What let it in, where that is judged again while the exchange lasts."""
        self._send = send
        self._hints: list[list[bytes]] = []
        self._hinting: asyncio.Task[None] | None = None
        self._task = asyncio.current_task()
        self._limit: asyncio.TimerHandle | None = None
        self._stream = _UNREAD
        self._read_started = False

    @cached_property
    def _full(self) -> ASGIRequest:
        return ASGIRequest(self.scope, _UNREAD)

    @cached_property
    def META(self) -> dict[str, Any]:  # type: ignore[override]  # noqa: N802 - Django's name
        return self._full.META

    @cached_property
    def content_type(self) -> str | None:  # type: ignore[override]  # worked out only when middleware asks
        return self._full.content_type

    @cached_property
    def content_params(self) -> dict[str, str] | None:  # type: ignore[override]  # worked out only when middleware asks
        return self._full.content_params

    @property
    def body(self) -> bytes:
        return _UNREAD.read()

    def _caller_left(self) -> None:
        self.caller_is_gone = True
        self._cancel()

    def limit_seconds(self, seconds: float, error: RelayError) -> None:
        """Cut the exchange short with `error` when it is not over after `seconds`."""
        self._limit = asyncio.get_running_loop().call_later(seconds, self._run_out, error)

    def _run_out(self, error: RelayError) -> None:
        if self.exchange is not None:
            self.exchange.out_of_time()
        self.cut(error)

    def cut(self, error: RelayError) -> None:
        """End the exchange now: with a problem document if its head has not gone out, else in the middle."""
        self.cut_by = error
        self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def resume(self) -> bool:
        """After a CancelledError: whether it was this request's own. If so it is taken back, and the task may go on."""
        if not (self.caller_is_gone or self.cut_by) or self._task is None:
            return False
        self._task.uncancel()
        return True

    def hint(self, links: list[bytes]) -> None:
        """Send early hints (103) as soon as the caller takes them. Only where the server offers it."""
        self._hints.append(links)
        if self._hinting is None:
            self._hinting = asyncio.get_running_loop().create_task(self._send_hints())

    async def _send_hints(self) -> None:
        while self._hints:
            await self._send({"type": EARLY_HINT, "links": self._hints.pop(0)})
        self._hinting = None

    async def hints_sent(self) -> None:
        """Until all hints are on their way: the answer's head must not overtake them."""
        if self._hinting is not None:
            await self._hinting

    def end_exchange(self) -> None:
        """Give back what the exchange holds. Synchronous: nothing can interrupt it."""
        if self._limit is not None:
            self._limit.cancel()
        if self.admission is not None:
            underway.leave(self)
        if self.exchange is not None:
            self.exchange.close()

    def close(self) -> None:
        """End the exchange, and stop watching the caller."""
        self.end_exchange()
        self.inbound.close()
        if self._hinting is not None:
            self._hinting.cancel()


class _Unread:
    """A body that nobody may read, in the place where Django wants one."""

    def read(self, *_: Any) -> NoReturn:
        raise RawPostDataException("The relay streams request bodies to the upstream: middleware cannot read them.")

    readline = read

    def close(self) -> None:
        pass


_UNREAD = cast("BinaryIO", _Unread())


def _announces_body(pairs: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in pairs)
