"""Makes connections to an upstream: resolved, judged, connected, through its proxy, secured.

Theory of operation. `Dialer.dial` takes a connection through its phases: the name's addresses (`names`), the guard's
judgement of all of them (`egress`), TCP by Happy Eyeballs (RFC 8305) in an order that spreads connections over them
(`spread`), where each address is judged once more before its socket exists, then, as the upstream asks for it, TLS with
the proxy, a tunnel (CONNECT), and TLS with the upstream.

Each layer of the connection is held by a `_Landing`, a protocol that keeps what comes until somebody takes over. Only
when all is done is the caller's protocol made, and it then sees everything as if it had been there from the start. One
thing has to be known to leave nothing open, at whatever moment the dial is cancelled: the TCP transport, which takes
every layer above it along when it is aborted. There is no time-out here: who calls cancels.

TLS sessions are resumed (RFC 8446 section 2.2): the certificates stay off the wire, and in TLS 1.2 a round trip is
saved. That is sound because a session stays with the dialer that made it: one upstream, one revision, one host name.

All that is raised is httpx's or of `faults`, and says by its `Progress` that no byte of a request has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import re
import socket
import ssl
import time
import weakref
from base64 import b64encode
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, TypeVar, cast

import aiohappyeyeballs
import httpx

from relay.catalog import Target, Upstream
from relay.observing.descriptors import USED_UP, descriptors, next_number
from relay.rules.credentials import ClientCertificate
from relay.rules.urls import ProxyUrl, parse_proxy_url
from relay.upstreams import faults, listeners
from relay.upstreams.egress import AddrInfo, EgressDenied, Guard, show_certificate, tls_context
from relay.upstreams.names import Found, Names
from relay.upstreams.spread import Spread

NEXT_ADDRESS_SECONDS = 0.25
"""RFC 8305 section 5: how long one address has before the next is tried beside it."""
MAX_PROXY_HEAD_BYTES = 64 * 1024
KEEPALIVE_IDLE_SECONDS = 60
KEEPALIVE_INTERVAL_SECONDS = 15
KEEPALIVE_PROBES = 4
TLS_GOODBYE_SECONDS = 2
"""How long a TLS connection that is closed waits for the other side's farewell."""
SESSION_SECONDS = 60
"""How long a session that could be resumed is not asked to be renewed."""
_UNBOUNDED_SECONDS = 30 * 24 * 3600
"""Loops insist on a time-out of their own for handshakes: longer than any that an admin can set."""

P = TypeVar("P", bound=asyncio.Protocol)

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r\n")
_ERROR_NUMBER = re.compile(r"\[Errno (\d+)\]")


class Dialer:
    """Makes connections to one target of an upstream, at one revision. Belongs to the event loop of its `names`."""

    def __init__(self, upstream: Upstream, target: Target, names: Names) -> None:
        """Raises `faults.HandshakeFailed` when the CA bundle or the client certificate does not parse."""
        proxy = parse_proxy_url(upstream.outbound_proxy) if upstream.outbound_proxy else None
        secure = upstream.scheme == "https"
        credentials = _credentials(proxy)
        self.tells_proxy = proxy is not None and not secure
        """The proxy itself reads and answers what is sent."""
        self.target_prefix = b"http://" + target.authority if self.tells_proxy else b""
        """Through a proxy, plain requests name the whole URL; tunnelled ones look as if direct."""
        self.proxy_authorization = credentials if self.tells_proxy else b""
        self._guard = Guard(upstream.allowed_networks)
        self._names = names
        self._spread = Spread(random.random)
        self._host, self._port = (proxy.host, proxy.port) if proxy else (target.host, target.port)
        # A proxy resolves names; an address it is told is judged like one that is connected to.
        self._told_address = target.host if proxy is not None and _is_address(target.host) else ""
        self._has_proxy = proxy is not None
        self._connect_request = _connect_request(target, credentials) if proxy is not None and secure else b""
        try:
            self._proxy_tls = _Tls(upstream, proxy.host) if proxy is not None and proxy.scheme == "https" else None
            # A client certificate is for the upstream alone, not for the proxy.
            certificate = upstream.credential.certificate if upstream.credential is not None else None
            own_name = target.host if upstream.target_host else upstream.host
            self._tls = _Tls(upstream, own_name, certificate) if secure else None
        except (ssl.SSLError, ValueError) as problem:
            unparsed = faults.HandshakeFailed("the CA bundle or the client certificate does not parse")
            raise faults.placed(unparsed, faults.Progress("tls")) from problem
        except OSError as problem:
            # Certificates are read from files.
            raise self._fault(problem, "tls") from problem
        # Whoever saves an upstream anew sees at once what its name leads to now.
        names.forget(self._host, self._port)

    async def dial(self, make_protocol: Callable[[], P], phases: faults.Phases | None = None) -> P:
        """A protocol from `make_protocol`, connected all the way. It is made when everything else has succeeded.

        Whenever this is cancelled, nothing stays open. The seconds that each phase took are added to `phases`.
        """
        attempt = _Attempt({} if phases is None else phases)
        try:
            try:
                landing = await self._make(attempt)
            finally:
                attempt.end_phase()
        except BaseException as problem:
            attempt.give_up()
            fault = problem
            if isinstance(problem, httpx.TransportError):
                faults.placed(problem, faults.Progress(attempt.phase))
            elif isinstance(problem, OSError | ValueError):
                fault = self._fault(problem, attempt.phase)
            if attempt.phase == "connect" and not isinstance(fault, faults.OutOfFiles):
                self._names.doubt(self._host, self._port)
            if fault is not problem:
                raise fault from problem
            raise
        try:
            protocol = make_protocol()
            landing.hand_over(protocol)
        except BaseException:
            attempt.give_up()
            raise
        return protocol

    def known_addresses(self) -> tuple[frozenset[str] | None, float]:
        """What the name leads to as far as is known, None where it is not, and when that is to be asked again, on the
        loop's clock. What has run out is looked up anew in the background."""
        found, runs_out = self._names.known(self._host, self._port)
        return (None if found is None else frozenset(address_of(info[4]) for info in found)), runs_out

    def remember_session(self, transport: asyncio.BaseTransport) -> None:
        """Resume this connection's TLS session in the next ones. For a connection that an exchange ended well on.

        Not before: tickets of TLS 1.3 come after the handshake. At any further exchange it costs next to nothing.
        """
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            tls.context.remember(tls)

    async def _make(self, attempt: _Attempt) -> _Landing:
        attempt.enter("egress")
        if self._told_address:
            self._guard.check(self._told_address)
        attempt.enter("dns")
        found = await self._names.resolve(self._host, self._port)
        attempt.enter("egress")
        self._guard.check_all(found)
        attempt.enter("connect")
        landing = await attempt.take(await self._connect(found))
        if self._proxy_tls is not None:
            attempt.enter("proxy")
            landing = await self._proxy_tls.secure(landing)
        if self._connect_request:
            attempt.enter("proxy")
            await _open_tunnel(landing, self._connect_request)
            # Its tickets have come by now.
            self.remember_session(landing.transport)
        if self._tls is not None:
            attempt.enter("tls")
            landing = await self._tls.secure(landing)
        return landing

    async def _connect(self, found: Found) -> socket.socket:
        denied: list[Exception] = []
        tried: list[AddrInfo] = []
        loop = asyncio.get_running_loop()

        def open_socket(info: AddrInfo) -> socket.socket:
            tried.append(info)
            if listeners.is_own(info[4]):
                denied.append(faults.LedBack("a socket of the relay's own"))
                raise OSError(errno.ELOOP, "leads back")
            try:
                opened = self._guard.open_socket(info)
            except EgressDenied as problem:
                denied.append(problem)
                raise
            if opened.fileno() >= descriptors.upstreams_end:
                opened.close()
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return opened

        task = cast("asyncio.Task[Any]", asyncio.current_task())
        cancellations = task.cancelling()
        try:
            connected = await aiohappyeyeballs.start_connection(
                self._spread.order(found, loop.time()),
                happy_eyeballs_delay=NEXT_ADDRESS_SECONDS,
                interleave=0,  # the families take turns already
                socket_factory=open_socket,
            )
        except (OSError, RuntimeError) as problem:
            # uvloop has RuntimeErrors here.
            if task.cancelling() > cancellations:
                raise asyncio.CancelledError from problem
            if denied:
                raise denied[0] from problem
            if isinstance(problem, OSError):
                raise
            raise OSError(type(problem).__name__) from problem
        try:
            # While it ends the attempts that lost, the race takes a cancellation for theirs.
            if task.cancelling() > cancellations:
                raise asyncio.CancelledError
            _set_options(connected)
            if len(tried) > 1:
                reached = connected.getpeername()
                self._spread.spare([info for info in tried if info[4][:2] != reached[:2]], loop.time())
        except BaseException:
            connected.close()
            raise
        return connected

    def _fault(self, problem: Exception, phase: faults.Phase) -> httpx.TransportError:
        if isinstance(problem, EgressDenied):
            return faults.placed(faults.AddressRefused(str(problem.strerror)), faults.Progress("egress"))
        return faults.placed(self._named(problem, phase), faults.Progress(phase))

    def _named(self, problem: Exception, phase: faults.Phase) -> httpx.TransportError:
        """The system's and the TLS library's errors in httpx's words."""
        if isinstance(problem, ssl.SSLCertVerificationError):
            return faults.CertificateUntrusted(problem.verify_message)
        reason = _reason(problem)
        if _is_for_want_of_descriptors(problem):
            descriptors.refuse()
            return faults.OutOfFiles(reason)
        if isinstance(problem, ssl.SSLError) or phase == "tls":
            return faults.HandshakeFailed(reason)
        if self._has_proxy:
            return httpx.ProxyError(reason)
        if isinstance(problem, socket.gaierror):
            return faults.NameUnresolved("no address")
        if phase == "connect" and errno.ECONNREFUSED in _error_numbers(problem):
            return faults.PortClosed("refused")
        return httpx.ConnectError(reason)


class _Attempt:
    """One connection while it is made."""

    def __init__(self, phases: faults.Phases) -> None:
        self.phase: faults.Phase = "dns"
        self._phases = phases
        self._entered = perf_counter()
        self._transport: asyncio.Transport | None = None
        """TCP's. All layers go with it."""

    def enter(self, phase: faults.Phase) -> None:
        self.end_phase()
        self.phase = phase

    def end_phase(self) -> None:
        """What the phase took is noted."""
        now = perf_counter()
        self._phases[self.phase] = self._phases.get(self.phase, 0.0) + now - self._entered
        self._entered = now

    async def take(self, connected: socket.socket) -> _Landing:
        landing = _Landing(in_tls=False)
        try:
            self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: landing, sock=connected)
        except BaseException:
            # The loop has ended its transport, but not always the socket.
            connected.close()
            raise
        return landing

    def give_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Landing(asyncio.Protocol):
    """Holds a layer of a connection until it is taken over, and keeps what comes meanwhile."""

    transport: asyncio.Transport

    def __init__(self, *, in_tls: bool) -> None:
        self._in_tls = in_tls
        self._came = bytearray()
        self._ended = False
        self._lost = False
        self._problem: Exception | None = None
        self._successor: asyncio.Protocol | None = None
        self._waiting: asyncio.Future[None] | None = None

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        """Let `protocol` see everything from the start, and all that follows."""
        transport = self.transport
        self._successor = protocol
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._came:
            protocol.data_received(bytes(self._came))
        if self._ended and not protocol.eof_received():
            transport.close()
        if self._lost:
            protocol.connection_lost(self._problem)

    def require_silence(self) -> None:
        """Nothing may have come before the other side was spoken to, nor may it have hung up."""
        if self._came:
            raise _Unasked
        self._require_presence()

    async def read_head(self) -> bytes:
        """The head of an answer, its empty line included."""
        while (end := self._came.find(b"\r\n\r\n")) < 0:
            if len(self._came) > MAX_PROXY_HEAD_BYTES:
                raise httpx.ProxyError("the head of its answer is too long")
            if not b"HTTP/1.".startswith(self._came[:7]):
                raise httpx.ProxyError("its answer is not HTTP/1.1")
            self._require_presence()
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        head = bytes(self._came[: end + 4])
        del self._came[: end + 4]
        return head

    def _require_presence(self) -> None:
        if self._ended or self._lost:
            raise self._problem if isinstance(self._problem, OSError) else ConnectionResetError()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # What the transport calls. A call that it had prepared before the hand-over still comes here.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._successor is not None:
            self._successor.data_received(data)
            return
        self._came += data
        self._wake()

    def eof_received(self) -> bool | None:
        if self._successor is not None:
            return self._successor.eof_received()
        self._ended = True
        self._wake()
        # Whether to close is the successor's to say; in TLS nobody is asked.
        return not self._in_tls

    def connection_lost(self, exc: Exception | None) -> None:
        if self._successor is not None:
            self._successor.connection_lost(exc)
            return
        self._lost = True
        self._problem = exc
        self._wake()


class _Unasked(ValueError):
    """The other side spoke before it was spoken to."""


class _Tls:
    """TLS with one host: its settings, the name to ask for, and the session to resume."""

    def __init__(self, upstream: Upstream, host: str, certificate: ClientCertificate | None = None) -> None:
        self.session: ssl.SSLSession | None = None
        self._session_taken_at = 0.0
        self._asked: weakref.WeakSet[ssl.SSLObject] = weakref.WeakSet()
        self._host = host
        self._context = tls_context(upstream, _ResumingContext)
        if certificate is not None:
            show_certificate(self._context, certificate)
        self._context.keep_session_in(self)

    def remember(self, connection: ssl.SSLObject) -> None:
        """Take the connection's session, once: the TLS library copies it, for half a millisecond."""
        if connection in self._asked:
            return
        self._asked.add(connection)
        now = time.monotonic()
        if connection.session_reused and self.session and now < self._session_taken_at + SESSION_SECONDS:
            return
        self.session = connection.session
        self._session_taken_at = now

    async def secure(self, landing: _Landing) -> _Landing:
        landing.require_silence()
        secured = _Landing(in_tls=True)
        try:
            transport = await asyncio.get_running_loop().start_tls(
                landing.transport,
                secured,
                self._context,
                server_hostname=self._host,
                ssl_handshake_timeout=_UNBOUNDED_SECONDS,
                ssl_shutdown_timeout=TLS_GOODBYE_SECONDS,
            )
        except (OSError, ValueError):
            # Should the session be at fault, the next handshake does without.
            self.session = None
            raise
        # asyncio gives None, or what was never secured, when the connection ends at the same moment.
        if transport is None or transport.get_extra_info("ssl_object") is None:
            raise ConnectionResetError
        secured.connection_made(transport)
        return secured


class _ResumingContext(ssl.SSLContext):
    """Resumes a session in each connection: loops have no parameter to ask for it.

    A session holds its context, so the context must not hold the session: the circle, and the certificates in it, would
    stay until the garbage collector comes.
    """

    _keeper: weakref.ref[_Tls] | None = None

    def keep_session_in(self, keeper: _Tls) -> None:
        self._keeper = weakref.ref(keeper)

    def remember(self, connection: ssl.SSLObject) -> None:
        keeper = self._find_keeper()
        if keeper is not None:
            keeper.remember(connection)

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        keeper = self._find_keeper()
        if session is None and keeper is not None:
            session = keeper.session
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def _find_keeper(self) -> _Tls | None:
        return self._keeper() if self._keeper is not None else None


async def _open_tunnel(landing: _Landing, request: bytes) -> None:
    """RFC 9110 section 9.3.6."""
    landing.require_silence()
    landing.transport.write(request)
    status = 100
    while 100 <= status < 200 and status != 101:
        head = await landing.read_head()
        line = _STATUS_LINE.match(head)
        if line is None:
            raise httpx.ProxyError("its answer is not HTTP/1.1")
        status = int(line[1])
    if not 200 <= status < 300:
        raise httpx.ProxyError(f"status {status}")
    landing.require_silence()


def _connect_request(target: Target, credentials: bytes) -> bytes:
    authority = target.name.encode("ascii")
    authorization = b"Proxy-Authorization: " + credentials + b"\r\n" if credentials else b""
    return b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (authority, authority, authorization)


def _credentials(proxy: ProxyUrl | None) -> bytes:
    """The value of Proxy-Authorization (RFC 7617), or nothing."""
    if proxy is None or proxy.username is None:
        return b""
    return b"Basic " + b64encode(f"{proxy.username}:{proxy.password or ''}".encode())


def address_of(where: Sequence[Any]) -> str:
    """Of a socket's place, without the name of an interface."""
    return str(where[0]).partition("%")[0]


def _is_address(host: str) -> bool:
    """Names never end in a number: see `relay.rules.urls`."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def _set_options(connected: socket.socket) -> None:
    """No waiting for more to send; and a peer that is gone without a word is noticed within two minutes."""
    tcp: dict[str, int] = {
        "TCP_NODELAY": 1,
        "TCP_KEEPIDLE": KEEPALIVE_IDLE_SECONDS,
        "TCP_KEEPINTVL": KEEPALIVE_INTERVAL_SECONDS,
        "TCP_KEEPCNT": KEEPALIVE_PROBES,
    }
    # Some systems refuse options of a connection that is reset already.
    with contextlib.suppress(OSError):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in tcp.items():
            if hasattr(socket, name):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _is_for_want_of_descriptors(problem: Exception) -> bool:
    if isinstance(problem, socket.gaierror):
        # The resolver calls it a name that is not found, or a passing failure.
        return next_number() >= descriptors.upstreams_end
    return not isinstance(problem, ssl.SSLError) and any(number in USED_UP for number in _error_numbers(problem))


def _error_numbers(problem: Exception) -> list[int]:
    """Those of all addresses: where they differ, Happy Eyeballs tells them in its text alone."""
    return [int(number) for number in _ERROR_NUMBER.findall(str(problem))]


def _reason(problem: Exception) -> str:
    """A word for the log, without addresses or names."""
    if isinstance(problem, socket.gaierror):
        return "no address"
    if isinstance(problem, _Unasked):
        return "spoke unasked"
    if isinstance(problem, ssl.SSLError):
        return str(problem.reason or type(problem).__name__)
    names = [errno.errorcode[number] for number in _error_numbers(problem) if number in errno.errorcode]
    return names[0] if names else type(problem).__name__
