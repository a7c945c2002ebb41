"""The engine that the relay had before its own: a pool per upstream on aiohttp's connector and response parser.

Kept only to be measured. It is the file as it was, with the timer it used, so that one run of the benchmark can say
what the relay's own engine gains. Nothing of the relay imports it; it needs aiohttp, which the `bench` extra brings.

Theory of operation. `handle_async_request` finds the pool of `request.extensions["upstream"]`, takes a connection from
it, writes the request's head and body itself and reads the answer with aiohttp's parser. aiohttp's session, request and
response classes are not on the way. A pool lives as long as the saved upstream it was made for. Time-outs need no task
and no cancellation: a `Silence` timer fails the reader with an exception. Closing is synchronous everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, cast

import aiohttp
import httpx
from aiohttp import abc as aiohttp_abc
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage, StreamWriter
from aiohttp.streams import EofStream, StreamReader
from yarl import URL

from relay import catalog
from relay.catalog import Upstream
from relay.rules.urls import parse_proxy_url
from relay.upstreams import faults
from relay.upstreams.egress import EgressDenied, Guard, tls_context
from relay.upstreams.raw_headers import RawHeaders

DNS_SECONDS = 10
"""How long a pool keeps what a name resolved to."""
READ_BUFFER_BYTES = 128 * 1024
"""Per exchange; reading from the upstream pauses at twice this."""
MAX_HEAD_LINE_BYTES = 64 * 1024
"""Bound of a status line and of each header field of an answer."""
MAX_HEAD_FIELDS = 256
MAX_STALE_ATTEMPTS = 3
"""How many pooled connections that turn out dead one request may meet."""
LAST_WORDS_BYTES = 1024 * 1024
"""Bound of what is still read of an answer from a connection that broke under the request's body."""
_RESET = struct.pack("ii", 1, 0)
RETRIED_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class PooledTransport(httpx.AsyncBaseTransport):
    """An `httpx.AsyncBaseTransport` with a pool per upstream. Belongs to one event loop."""

    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}
        self._retired: set[Pool] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        upstream: Upstream = request.extensions["upstream"]
        pool = self._pools.get(upstream.slug)
        if pool is None or pool.upstream is not upstream:
            pool = self._pool_for(upstream, pool)
        pool.enter()
        if self._pools.get(upstream.slug) is not pool:
            self._retire(pool)
        try:
            return await pool.send(request)
        except BaseException:
            pool.leave()
            raise

    def _pool_for(self, upstream: Upstream, pool: Pool | None) -> Pool:
        if pool is not None and pool.upstream == upstream:
            return pool
        fresh = Pool(upstream)
        # A request decided from an older snapshot gets a pool of its own, which is gone with it.
        if pool is None or catalog.current().find(upstream.slug.encode()) == upstream:
            self._pools[upstream.slug] = fresh
            if pool is not None:
                self._retire(pool)
        return fresh

    def _retire(self, pool: Pool) -> None:
        self._retired.add(pool)
        pool.retire(self._retired.discard)

    def keep(self, is_current: Callable[[Upstream], bool]) -> None:
        """Retire the pools of changed or removed upstreams, and those that served nobody for their keep-alive time."""
        for slug, pool in list(self._pools.items()):
            if pool.is_idle() or not is_current(pool.upstream):
                del self._pools[slug]
                self._retire(pool)

    @property
    def open_exchanges(self) -> int:
        return sum(pool.exchanges for pool in (*self._pools.values(), *self._retired))

    @property
    def open_pools(self) -> int:
        return len(self._pools) + len(self._retired)

    async def aclose(self) -> None:
        pools = [*self._pools.values(), *self._retired]
        self._pools.clear()
        self._retired.clear()
        for pool in pools:
            await pool.aclose()


class Pool:
    """The connections of one upstream at one revision."""

    def __init__(self, upstream: Upstream) -> None:
        loop = asyncio.get_running_loop()
        guard = Guard(upstream.allowed_networks)
        secure = upstream.scheme == "https"
        keepalive: dict[str, Any] = {"keepalive_timeout": upstream.keepalive_seconds}
        if not upstream.keepalive_seconds:
            keepalive = {"force_close": True}
        proxy, self._proxy_authorization = _proxy(upstream)
        context: ssl.SSLContext | bool = True
        if secure or (proxy is not None and proxy.scheme == "https"):
            try:
                context = tls_context(upstream)
            except (ssl.SSLError, ValueError) as problem:
                raise faults.HandshakeFailed("the CA bundle does not parse") from problem
        self.upstream = upstream
        self.exchanges = 0
        self._loop = loop
        self._connector = aiohttp.TCPConnector(
            limit=upstream.max_connections,
            resolver=_GuardedResolver(guard),
            ttl_dns_cache=DNS_SECONDS,
            socket_factory=guard.open_socket,
            ssl=context,
            **keepalive,
        )
        self._connector._factory = partial(cast(type[ResponseHandler], _Protocol), loop=loop)
        # A proxy resolves names; an address it is told is judged like one that is connected to.
        self._told_address = upstream.host if proxy is not None and _is_address(upstream.host) else ""
        self._guard = guard
        host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
        self._destination = ClientRequest(
            "GET",
            URL(f"{upstream.scheme}://{host}:{upstream.port}/", encoded=True),
            loop=loop,
            ssl=context,
            proxy=proxy,
            proxy_headers={"proxy-authorization": self._proxy_authorization} if self._proxy_authorization else None,
        )
        self._connect_timeout = aiohttp.ClientTimeout(connect=upstream.connect_timeout_seconds)
        # Through a proxy, plain requests name the whole URL; tunnelled ones look as if direct.
        self._target_prefix = b""
        if proxy is not None and not secure:
            self._target_prefix = b"http://" + upstream.authority
        self.tells_proxy = bool(self._target_prefix)
        """The proxy itself reads and answers what is sent."""
        self._on_closed: Callable[[Pool], None] | None = None
        self._idle_since = loop.time()

    def enter(self) -> None:
        self.exchanges += 1

    def leave(self) -> None:
        self.exchanges -= 1
        if self.exchanges == 0:
            self._idle_since = self._loop.time()
            if self._on_closed is not None:
                self._close()

    def is_idle(self) -> bool:
        return self.exchanges == 0 and self._loop.time() - self._idle_since > self.upstream.keepalive_seconds

    def retire(self, on_closed: Callable[[Pool], None]) -> None:
        """Close as soon as no exchange uses it."""
        self._on_closed = on_closed
        if self.exchanges == 0:
            self._close()

    def _close(self) -> None:
        self._connector._close()
        if self._on_closed is not None:
            self._on_closed(self)

    async def aclose(self) -> None:
        await self._connector.close()

    async def send(self, request: httpx.Request) -> httpx.Response:
        head = self._head(request)
        may_retry = request.method in RETRIED_METHODS and not _has_body(request)
        for attempt in range(1, MAX_STALE_ATTEMPTS + 1):
            wire = await self._connect()
            try:
                return await wire.exchange(request, head)
            except (httpx.ReadError, httpx.RemoteProtocolError):
                wire.close()
                if not (wire.reused and wire.untouched and may_retry and attempt < MAX_STALE_ATTEMPTS):
                    raise
            except BaseException:
                wire.close()
                raise
        raise AssertionError("unreachable")

    async def _connect(self) -> Wire:
        while True:
            connection = await self._take_connection()
            protocol = cast(_Protocol, connection.protocol)
            if not protocol.has_served:
                protocol.has_served = True
                return Wire(self, connection, protocol, reused=False)
            if not protocol.should_close:
                return Wire(self, connection, protocol, reused=True)
            # The upstream spoke while nobody had asked: that must not be taken for this request's answer.
            connection.close()

    async def _take_connection(self) -> Connection:
        try:
            if self._told_address:
                self._guard.check(self._told_address)
            return await self._connector.connect(self._destination, [], self._connect_timeout)
        except TimeoutError as problem:
            if self.exchanges > self.upstream.max_connections:
                raise httpx.PoolTimeout("no free connection") from problem
            raise httpx.ConnectTimeout("connect") from problem
        except (aiohttp.ClientError, OSError) as problem:
            raise _connect_fault(problem, self.upstream) from problem

    def _head(self, request: httpx.Request) -> bytes:
        """The request's head as it goes on the wire, or `httpx.LocalProtocolError` for what would break out of it."""
        pairs = request.headers.raw
        parts = [request.method.encode("ascii"), b" ", self._target_prefix, request.extensions["target"]]
        parts.append(b" HTTP/1.1\r\n")
        for name, value in pairs:
            parts += (name, b": ", value, b"\r\n")
        if self._target_prefix and self._proxy_authorization:
            parts.append(b"proxy-authorization: " + self._proxy_authorization.encode() + b"\r\n")
            pairs = [*pairs, (b"", b"")]
        parts.append(b"\r\n")
        head = b"".join(parts)
        lines = len(pairs) + 2
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            raise httpx.LocalProtocolError("a header field or the target holds a line break or NUL")
        return head


class Wire(httpx.AsyncByteStream):
    """One exchange on one connection; after `exchange`, the stream of the answer's body."""

    def __init__(self, pool: Pool, connection: Connection, protocol: _Protocol, *, reused: bool) -> None:
        self.reused = reused
        self.untouched = True
        """No byte of an answer has come."""
        self._pool = pool
        self._connection: Connection | None = connection
        self._protocol = protocol
        self._payload: StreamReader | None = None
        self._upload: asyncio.Task[None] | None = None
        self._ends_with_connection = False
        # While bodies go both ways, what moves in one direction counts for the other too.
        self._silence = Silence(pool._loop, self.fail)
        self._upload_silence: Silence | None = None
        self._entered = False

    async def exchange(self, request: httpx.Request, head: bytes) -> httpx.Response:
        protocol = self._protocol
        upstream = self._pool.upstream
        protocol.set_response_params(
            skip_payload=request.method == "HEAD",
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=MAX_HEAD_LINE_BYTES,
            max_field_size=MAX_HEAD_LINE_BYTES,
            max_headers=MAX_HEAD_FIELDS,
        )
        if protocol.transport is None:
            raise faults.HungUp("closed while idle")
        protocol.transport.write(head)
        protocol.sends_body = _has_body(request)
        if protocol.sends_body:
            self._upload = self._pool._loop.create_task(self._send_body(request))
        else:
            self._silence.watch(upstream.head_timeout_seconds, faults.HeadTimeout)
        message, payload = await self._read_head()
        if message.code == 407 and self._pool.tells_proxy:
            raise httpx.ProxyError("status 407")
        self._silence.pause()
        self._payload = payload
        self._ends_with_connection = _ends_with_connection(message)
        self._entered = True
        return httpx.Response(
            message.code,
            headers=RawHeaders(message.raw_headers),
            stream=self,
            extensions={"http_version": b"HTTP/1.1", "raw_headers": message.raw_headers},
        )

    async def _read_head(self) -> tuple[RawResponseMessage, StreamReader]:
        try:
            while True:
                message, payload = await self._protocol.read()
                self.untouched = False
                if message.version.major != 1:
                    raise httpx.RemoteProtocolError(f"HTTP/{message.version.major}")
                if not 100 <= message.code < 200 or message.code == 101:
                    return message, payload
        except (aiohttp.ClientError, HttpProcessingError, EofStream, OSError) as problem:
            raise _read_fault(problem) from problem

    async def _send_body(self, request: httpx.Request) -> None:
        """Runs beside the reading of the answer, which may come first. What goes wrong here fails the reader."""
        upstream = self._pool.upstream
        idle = upstream.idle_timeout_seconds
        writer = StreamWriter(self._protocol, self._pool._loop)
        if "transfer-encoding" in request.headers:
            writer.enable_chunking()
        timer = self._upload_silence = Silence(self._pool._loop, self.fail)
        try:
            timer.watch(idle, faults.CallerStalled)
            async for chunk in cast(AsyncIterator[bytes], request.stream):
                timer.watch(idle, httpx.WriteTimeout)
                await writer.write(chunk)
                timer.watch(idle, faults.CallerStalled)
                if self._payload is not None:
                    self._silence.extend(idle)
            timer.watch(idle, httpx.WriteTimeout)
            await writer.write_eof()
            if self._payload is None:
                self._silence.watch(upstream.head_timeout_seconds, faults.HeadTimeout)
        except (aiohttp.ClientError, OSError):
            # The upstream takes no more. Its answer, or the end of the connection, tells the reader.
            pass
        except Exception as problem:
            self.fail(problem)
        finally:
            timer.stop()

    def fail(self, problem: Exception) -> None:
        """Make whoever reads the answer see `problem`, and give up the connection."""
        self._protocol.set_exception(problem)
        if self._payload is not None:
            self._payload.set_exception(problem)
        _abort(self._protocol.transport)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        payload = cast(StreamReader, self._payload)
        idle = self._pool.upstream.idle_timeout_seconds
        silence = self._silence
        try:
            while True:
                if not payload.is_eof():
                    silence.watch(idle, httpx.ReadTimeout)
                chunk = await payload.readany()
                silence.pause()
                if self._upload_silence is not None:
                    self._upload_silence.extend(idle)
                if not chunk:
                    break
                yield chunk
        except (aiohttp.ClientError, HttpProcessingError, OSError) as problem:
            raise _read_fault(problem) from problem
        except RuntimeError as problem:
            # aiohttp's word for reading on from a connection that was closed under it.
            raise faults.HungUp("closed") from problem
        if self._ends_with_connection and self._protocol.broken:
            raise faults.HungUp("reset before the end")
        self.close()

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Release the connection if request and answer are whole, else give it up. At any moment, repeatedly."""
        self._silence.stop()
        whole = self._payload is not None and self._payload.is_eof()
        if self._upload is not None:
            whole = whole and self._upload.done()
            self._upload.cancel()
        if self._connection is not None:
            if whole:
                self._connection.release()
            else:
                _abort(self._connection.transport)
                self._connection.close()
            self._connection = None
        self._leave()

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            self._pool.leave()


class _Protocol(ResponseHandler):
    """aiohttp's, which also knows what became of its connection, and hears an upstream's last words."""

    has_served = False
    sends_body = False
    broken = False
    """The connection ended by an error, such as a reset."""

    def connection_lost(self, exc: BaseException | None) -> None:
        self.broken = exc is not None
        if self.broken and self.sends_body:
            self._hear_last_words()
        super().connection_lost(exc)

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
            while heard < LAST_WORDS_BYTES and (data := os.read(descriptor, READ_BUFFER_BYTES)):
                self.data_received(data)
                heard += len(data)


class _GuardedResolver(aiohttp_abc.AbstractResolver):
    """aiohttp's way to the guard's resolver. Every address has been judged when it returns."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[aiohttp_abc.ResolveResult]:
        return [
            {"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}
            for address in await self._guard.resolve(host, port, family)
        ]

    async def close(self) -> None:
        pass


class Silence:
    """A timer that fails a reader after some seconds without progress. Watching anew costs no new timer."""

    __slots__ = ("_deadline", "_handle", "_loop", "_on_silence", "_problem")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_silence: Callable[[Exception], None]) -> None:
        self._loop = loop
        self._on_silence = on_silence
        self._deadline: float | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._problem: type[httpx.TransportError] | None = None

    def watch(self, seconds: float, problem: type[httpx.TransportError]) -> None:
        """From now on, `seconds` of silence fail the reader with a `problem`."""
        self._deadline = self._loop.time() + seconds
        self._problem = problem
        handle = self._handle
        if handle is None:
            self._handle = self._loop.call_later(seconds, self._check)
        elif handle.when() > self._deadline:
            handle.cancel()
            self._handle = self._loop.call_later(seconds, self._check)

    def extend(self, seconds: float) -> None:
        """Something moved: if silence is watched, `seconds` of it are allowed anew."""
        if self._deadline is not None:
            self._deadline = self._loop.time() + seconds

    def pause(self) -> None:
        """Silence is now ours, not the other side's."""
        self._deadline = None

    def stop(self) -> None:
        """For good. Lets go of the reader too: a cycle would keep both until the garbage collector comes."""
        self._on_silence = _nobody
        self._deadline = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _check(self) -> None:
        self._handle = None
        if self._deadline is None or self._problem is None:
            return
        remaining = self._deadline - self._loop.time()
        if remaining > 0.001:
            self._handle = self._loop.call_later(remaining, self._check)
        else:
            self._on_silence(self._problem("silence"))


def _nobody(_: Exception) -> None:
    pass


def _abort(transport: asyncio.Transport | None) -> None:
    """Close with a reset: the upstream learns at once that no more comes, and what waits to be sent is not sent."""
    if transport is None:
        return
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def _has_body(request: httpx.Request) -> bool:
    return not isinstance(request.stream, httpx.ByteStream)


def _ends_with_connection(message: RawResponseMessage) -> bool:
    return not message.chunked and "Content-Length" not in message.headers


def _proxy(upstream: Upstream) -> tuple[URL | None, str]:
    """(proxy URL without userinfo, Proxy-Authorization value or empty)."""
    if not upstream.outbound_proxy:
        return None, ""
    proxy = parse_proxy_url(upstream.outbound_proxy)
    authorization = ""
    if proxy.username is not None:
        credentials = f"{proxy.username}:{proxy.password or ''}"
        authorization = "Basic " + b64encode(credentials.encode()).decode()
    host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
    return URL(f"{proxy.scheme}://{host}:{proxy.port}", encoded=True), authorization


def _is_address(host: str) -> bool:
    """Names never end in a number: see `relay.rules.urls`."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def _connect_fault(problem: BaseException, upstream: Upstream) -> httpx.TransportError:
    """aiohttp's and the system's connect errors in httpx's words."""
    denied = _find(problem, EgressDenied)
    if denied is not None:
        return faults.AddressRefused(str(denied.strerror))
    if isinstance(problem, aiohttp.ClientConnectorCertificateError):
        return faults.CertificateUntrusted(str(problem.certificate_error))
    if isinstance(problem, (aiohttp.ClientSSLError, ssl.SSLError)):
        return faults.HandshakeFailed(type(problem.__cause__ or problem).__name__)
    if isinstance(problem, aiohttp.ClientHttpProxyError):
        return httpx.ProxyError(f"status {problem.status}")
    system = _find(problem, OSError)
    reason = errno.errorcode.get(getattr(system, "errno", None) or 0, type(problem).__name__)
    if upstream.outbound_proxy:
        return httpx.ProxyError(reason)
    if isinstance(problem, aiohttp.ClientConnectorDNSError):
        return faults.NameUnresolved("no address")
    refused = _find(problem, OSError, lambda found: found.errno == errno.ECONNREFUSED)
    if refused is not None:
        return faults.PortClosed("refused")
    if upstream.scheme == "https" and isinstance(system, ConnectionError):
        # TCP was there: the other side hung up on the handshake.
        return faults.HandshakeFailed(reason)
    return httpx.ConnectError(reason)


def _read_fault(problem: BaseException) -> httpx.TransportError:
    if isinstance(problem, HttpProcessingError):
        return httpx.RemoteProtocolError(type(problem).__name__)
    cause = problem.__cause__
    if isinstance(cause, HttpProcessingError) and "Not enough data" not in str(cause):
        return httpx.RemoteProtocolError(type(cause).__name__)
    return faults.HungUp(type(problem).__name__)


def _find(problem: BaseException | None, kind: type[Any], accept: Callable[[Any], bool] = lambda _: True) -> Any:
    """The first of `kind` among an exception, its causes and contexts, and aiohttp's `os_error`."""
    seen: set[int] = set()
    waiting = [problem]
    while waiting:
        found = waiting.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, kind) and not isinstance(found, aiohttp.ClientError) and accept(found):
            return found
        waiting += [getattr(found, "os_error", None), found.__cause__, found.__context__]
    return None
