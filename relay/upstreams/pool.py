"""The connections of one target at one revision: taken, given back, expired, waited for.

Theory of operation. Idle connections stand in the order they were given back; the most recently used is taken first, so
those not needed grow old and expire, all by one timer that looks at the oldest only. A connection that the upstream
closes leaves at once, for it tells so itself, and is never handed out. Where `max_connections` are open, callers wait
in a queue of `MAX_WAITERS`, first come first served: a connection that comes free goes to the first of them, and a
place that comes free lets the first one make a connection. Taking and giving back cost the same however many there are.

`_open` counts connections that exist or are being made. Each is counted once and told lost once (`Connection`'s
`on_lost`), or never came to be. Everything is handed over synchronously; at the one `await` of a waiter and the one of
a dialer, a cancelled caller gives back what it was handed meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from time import perf_counter

import httpx

from relay.catalog import Target, Upstream
from relay.rules import retries
from relay.upstreams import faults, messages
from relay.upstreams.connection import Connection
from relay.upstreams.dialing import Dialer, address_of
from relay.upstreams.names import Names
from relay.upstreams.wire import Wire

MAX_WAITERS = 1024
"""Callers that wait for a connection; further ones are told at once that the upstream is full."""
MAX_STALE_ATTEMPTS = 2
"""How many pooled connections that turn out dead one request may meet; after them it gets a new one."""
MAX_ATTEMPTS = 8
"""Of one request in all: where no new connection may be made, others' are handed on, and may turn out dead, too."""

_Waiter = asyncio.Future[Connection | None]
"""Handed a connection, or None: room to make one."""


class Pool:
    def __init__(self, upstream: Upstream, target: Target, names: Names) -> None:
        """Raises `faults.HandshakeFailed` when the upstream's CA bundle does not parse."""
        self.upstream = upstream
        self.target = target
        self.exchanges = 0
        """Under way: until the answer's stream is closed."""
        self._loop = asyncio.get_running_loop()
        self._dialer = Dialer(upstream, target, names)
        self._is_secure = upstream.scheme == "https"
        self._idle: OrderedDict[Connection, float] = OrderedDict()
        """With the time each was given back, oldest first."""
        self._waiters: OrderedDict[_Waiter, None] = OrderedDict()
        self._open = 0
        self._connections: set[Connection] = set()
        """Those that were made and are not lost yet."""
        self._look_at = 0.0
        """When to ask what the name leads to by now."""
        self._expiry: asyncio.TimerHandle | None = None
        self._on_closed: Callable[[Pool], None] | None = None
        self._is_closed = False
        self._is_aborted = False
        self._idle_since = self._loop.time()

    # As long as it lives.

    def enter(self) -> None:
        self.exchanges += 1

    def leave(self) -> None:
        self.exchanges -= 1
        if self.exchanges == 0:
            self._idle_since = self._loop.time()
            if self._on_closed is not None:
                self.close()

    @property
    def is_idle(self) -> bool:
        """Whether it served nobody for its keep-alive time."""
        return self.exchanges == 0 and self._loop.time() - self._idle_since > self.upstream.keepalive_seconds

    def retire(self, on_closed: Callable[[Pool], None]) -> None:
        """Close as soon as no exchange uses it."""
        self._on_closed = on_closed
        if self.exchanges == 0:
            self.close()

    def close(self) -> None:
        """Close what is idle; a connection in use closes when its exchange ends."""
        self._is_closed = True
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        while self._idle:
            self._idle.popitem()[0].close()
        on_closed, self._on_closed = self._on_closed, None
        if on_closed is not None:
            on_closed(self)

    def abort(self) -> None:
        """Close everything now; exchanges under way fail, those that wait for a connection too."""
        self._is_aborted = True
        self.close()
        while (waiter := self._next_waiter()) is not None:
            waiter.set_exception(_aborted())
        for connection in list(self._connections):
            if connection.wire is not None:
                connection.wire.fail(_aborted())
            connection.abort()

    @property
    def open_connections(self) -> int:
        """Those that are open or being made."""
        return self._open

    @property
    def idle_connections(self) -> int:
        return len(self._idle)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    # Where the name leads by now.

    def _look_again(self) -> None:
        """Leave connections to addresses that the name does not lead to any more: those that are idle are closed, those
        in use when they are given back. While nothing is known, as when DNS fails, all stay."""
        addresses, self._look_at = self._dialer.known_addresses()
        if addresses is None:
            return
        for connection in list(self._connections):
            connection.is_left = connection.address not in addresses
            if connection.is_left and self._idle.pop(connection, None) is not None:
                connection.close()

    # An exchange.

    async def send(self, request: httpx.Request) -> httpx.Response:
        """The pool must have been entered; it is left when the response is closed, or here when there is none."""
        has_body = messages.has_body(request)
        phases: faults.Phases = request.extensions.get("phases", {})
        attempts = 0
        wire: Wire | None = None
        try:
            head = self._head(request)
            if self._loop.time() >= self._look_at:
                self._look_again()
            while True:
                attempts += 1
                if attempts > MAX_STALE_ATTEMPTS:
                    self._make_room()
                    connection = await self._obtain(phases)
                else:
                    connection = self._take() or await self._obtain(phases)
                is_reused = connection.has_served
                wire = Wire(connection, self.upstream)
                try:
                    response = await wire.exchange(request, head, has_body=has_body)
                except (httpx.ReadError, httpx.RemoteProtocolError):
                    wire.close()
                    is_stale = is_reused and not wire.response_begun
                    may_repeat = not has_body and request.method in retries.IDEMPOTENT_METHODS
                    if wire.request_sent and not (is_stale and may_repeat):
                        raise
                    if attempts == MAX_ATTEMPTS or (attempts > MAX_STALE_ATTEMPTS and not is_reused):
                        raise
                else:
                    if response.status_code == 407 and self._dialer.tells_proxy:
                        answered = faults.Progress("head", request_sent=True, response_begun=True)
                        raise faults.placed(httpx.ProxyError("status 407"), answered)
                    wire.on_closed = self.leave
                    return response
        except BaseException:
            if wire is not None:
                wire.close()
            self.leave()
            raise

    def _head(self, request: httpx.Request) -> bytes:
        """The request's head as it goes on the wire, or `httpx.LocalProtocolError` for what would break out of it."""
        dialer = self._dialer
        parts = [request.method.encode("ascii"), b" ", dialer.target_prefix, request.extensions["target"]]
        parts.append(b" HTTP/1.1\r\n")
        lines = 2
        for name, value in request.headers.raw:
            parts += (name, b": ", value, b"\r\n")
            lines += 1
        if dialer.proxy_authorization:
            parts.append(b"proxy-authorization: " + dialer.proxy_authorization + b"\r\n")
            lines += 1
        parts.append(b"\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            broken_out = httpx.LocalProtocolError("a header field or the target holds a line break or NUL")
            raise faults.placed(broken_out, faults.Progress("request"))
        return head

    # Connections.

    def _take(self) -> Connection | None:
        """The idle connection used last, if there is any."""
        idle = self._idle
        while idle:
            connection, _ = idle.popitem()
            if connection.is_usable:
                return connection
            connection.abort()
        return None

    def _make_room(self) -> None:
        """Give up the connection that is idle longest where a new one could not be made beside it."""
        if self._idle and self._open >= self.upstream.max_connections:
            next(iter(self._idle)).abort()

    async def _obtain(self, phases: faults.Phases) -> Connection:
        """A new connection, or the first that comes free. The connect time-out is for waiting and making it alike."""
        if self._is_aborted:
            raise _aborted()
        deadline = self._loop.time() + self.upstream.connect_timeout_seconds
        if self._open >= self.upstream.max_connections or self._waiters:
            began = perf_counter()
            try:
                connection = await self._wait(deadline)
            finally:
                phases["pool"] = phases.get("pool", 0.0) + perf_counter() - began
            if connection is not None:
                return connection
        else:
            self._open += 1
        return await self._make(deadline, phases)

    async def _wait(self, deadline: float) -> Connection | None:
        if len(self._waiters) >= MAX_WAITERS:
            raise self._full("too many wait for a connection")
        waiter: _Waiter = self._loop.create_future()
        self._waiters[waiter] = None
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except BaseException as problem:
            self._waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was handed something in the very moment that it gave up.
                connection = waiter.result()
                if connection is None:
                    self._place_came_free()
                else:
                    self._free(connection)
            if isinstance(problem, TimeoutError):
                raise self._full("no free connection") from None
            raise

    def _full(self, reason: str) -> httpx.TransportError:
        return faults.placed(httpx.PoolTimeout(reason), faults.Progress("pool"))

    async def _make(self, deadline: float, phases: faults.Phases) -> Connection:
        """`_open` counts it already."""
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._dialer.dial(Connection, phases)
        except BaseException as problem:
            self._place_came_free()
            if isinstance(problem, TimeoutError):
                raise faults.placed(httpx.ConnectTimeout("connect"), faults.Progress("connect")) from None
            raise
        connection.belong(on_free=self._free, on_lost=self._lost)
        if connection.transport is not None:
            connection.address = address_of(connection.transport.get_extra_info("peername") or ("",))
        self._connections.add(connection)
        if connection.is_lost:
            self._lost(connection)
        if self._is_aborted:
            connection.abort()
            raise _aborted()
        return connection

    def _free(self, connection: Connection) -> None:
        """An exchange ended well, or a waiter did not want it after all."""
        if self._is_secure and connection.transport is not None:
            self._dialer.remember_session(connection.transport)
        if self._is_closed or not self.upstream.keepalive_seconds or connection.is_left or not connection.is_usable:
            connection.close()
            return
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(connection)
            return
        now = self._loop.time()
        self._idle[connection] = now
        if self._expiry is None:
            self._expiry = self._loop.call_at(now + self.upstream.keepalive_seconds, self._expire)

    def _lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        self._place_came_free()

    def _place_came_free(self) -> None:
        """One connection less is open: the first waiter may make another."""
        waiter = self._next_waiter()
        if waiter is None:
            self._open -= 1
        else:
            waiter.set_result(None)

    def _next_waiter(self) -> _Waiter | None:
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                return waiter
        return None

    def _expire(self) -> None:
        """Close what has been idle for the keep-alive time; look again when the next one will have been."""
        self._expiry = None
        keepalive = self.upstream.keepalive_seconds
        now = self._loop.time()
        while self._idle:
            connection, since = next(iter(self._idle.items()))
            if since + keepalive > now:
                self._expiry = self._loop.call_at(since + keepalive, self._expire)
                return
            del self._idle[connection]
            connection.close()


def _aborted() -> httpx.TransportError:
    return faults.placed(faults.ConnectionsClosed("the relay closed its connections"), faults.Progress("pool"))
