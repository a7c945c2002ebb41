"""Connections as they are made: each phase, each way it can fail, and what is left when it is cut short.

What the dialer gives must behave as if the caller's protocol had been there from the start; what it does not give must
leave nothing behind. Servers live in the test's own loop and process, so that a descriptor too many on either side
shows.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import gc
import logging
import os
import socket
import ssl
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any, cast

import aiohappyeyeballs
import httpx
import pytest
import trustme

from relay.catalog import Upstream
from relay.observing.descriptors import Descriptors
from relay.upstreams import dialing, faults, listeners
from relay.upstreams.dialing import Dialer
from relay.upstreams.names import Found, Names
from tests.behaviour.conftest import until
from tests.origin import refusing_port, serving_context, silent_port
from tests.upstreams.conftest import refusals_of

NAME = "api.example"
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@pytest.fixture(autouse=True, scope="module")
def no_warning_is_lost() -> Iterator[None]:
    """Transports that nobody closed say so when they are collected: here, not in somebody else's tests."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def no_loop_complains(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Loops log what callbacks and forgotten tasks raise."""
    yield
    assert [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


class ScriptedNames(Names):
    """Every name leads to `addresses`, or fails with `problem`."""

    def __init__(self, *addresses: str) -> None:
        super().__init__()
        self.addresses = addresses or ("127.0.0.1",)
        self.problem: Exception | None = None
        self.asked: list[str] = []
        self.doubted: list[str] = []

    async def resolve(self, host: str, port: int) -> Found:
        self.asked.append(host)
        await asyncio.sleep(0)
        if self.problem is not None:
            raise self.problem
        return tuple(
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in self.addresses
        )

    def doubt(self, host: str, port: int) -> None:
        self.doubted.append(host)


class Witness(asyncio.Protocol):
    """Notes what its transport tells it, in order."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.over = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.events.append(data)
        self._changed.set()

    def eof_received(self) -> None:
        self.events.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.over.set_result(exc)

    @property
    def heard(self) -> bytes:
        return b"".join(event for event in self.events if isinstance(event, bytes))

    async def until_heard(self, expected: bytes) -> None:
        while self.heard != expected:
            self._changed.clear()
            await self._changed.wait()

    async def end(self) -> None:
        self.transport.abort()
        await self.over


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(
    script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[int]:
    """A server that closes each connection when `script` is over. A peer that hangs up ends a script."""
    conversations: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await script(reader, writer)
        finally:
            writer.close()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(converse(reader, writer))
        conversations.add(task)
        task.add_done_callback(conversations.discard)

    server = await asyncio.start_server(accepted, host, port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in conversations:
            task.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)
        await server.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


def saying(data: bytes, *, when_asked: bool = True) -> Script:
    """Say this, and hang up."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if when_asked:
            await reader.read(65536)
        writer.write(data)

    return script


class Proxy:
    """Script of a proxy: notes what it is asked, gives `answer`, and leads what is tunnelled to `destination`."""

    def __init__(self, destination: int = 0, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.destination = destination
        self.answer = answer
        self.heads: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self.answer)
        if not self.destination:
            await stay_silent(reader, writer)
            return
        onward_reader, onward = await asyncio.open_connection("127.0.0.1", self.destination)
        ways = [asyncio.ensure_future(pump(reader, onward)), asyncio.ensure_future(pump(onward_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            onward.transport.abort()
            await asyncio.gather(*ways, return_exceptions=True)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)


def upstream(port: int, **fields: Any) -> Upstream:
    given = {
        "scheme": "http",
        "host": NAME,
        "port": port,
        "authority": b"%b:%d" % (NAME.encode(), port),
        "base_path": b"",
        "allowed_networks": LOOPBACK,
    }
    return Upstream(slug="o", revision=1, **given | fields)


def dialer(port: int, names: Names | None = None, **fields: Any) -> Dialer:
    leads_to = upstream(port, **fields)
    return Dialer(leads_to, leads_to.targets[0], names or ScriptedNames())


async def dial(dialer: Dialer) -> Witness:
    async with asyncio.timeout(10):
        return await dialer.dial(Witness)


async def failure_of(dialer: Dialer) -> httpx.TransportError:
    """What dialing raises. It always says where it failed, and that a request can be sent anew."""
    made: list[Witness] = []

    def make_protocol() -> Witness:
        made.append(Witness())
        return made[-1]

    with pytest.raises(httpx.TransportError) as raised:
        async with asyncio.timeout(10):
            await dialer.dial(make_protocol)
    progress = faults.progress_of(raised.value)
    assert progress is not None
    assert (progress.request_sent, progress.response_begun) == (False, False)
    assert made == []
    return raised.value


def phase_of(problem: httpx.TransportError) -> str:
    progress = faults.progress_of(problem)
    assert progress is not None
    return progress.phase


@pytest.fixture
def bundle(authority: trustme.CA) -> str:
    return authority.cert_pem.bytes().decode()


# What is given.


async def test_a_plain_connection_is_made_once_and_carries_both_ways() -> None:
    async with serving(echo) as port:
        witness = await dial(dialer(port))
        assert witness.events == ["made"]
        witness.transport.write(b"hello")
        await witness.until_heard(b"hello")
        await witness.end()
        assert witness.events == ["made", b"hello", "lost"]


async def test_a_secured_connection_is_made_once_for_the_upstreams_name(authority: trustme.CA, bundle: str) -> None:
    context = serving_context(authority, NAME)
    context.set_alpn_protocols(["h2", "http/1.1"])
    asked: list[Any] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    async with serving(echo, tls=context) as port:
        witness = await dial(dialer(port, scheme="https", ca_bundle=bundle))
        assert witness.events == ["made"]
        witness.transport.write(b"hello")
        await witness.until_heard(b"hello")
        assert witness.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert asked == [NAME]
        await witness.end()


async def test_an_address_is_verified_as_one(authority: trustme.CA, bundle: str) -> None:
    async with serving(echo, tls=serving_context(authority, "127.0.0.1")) as port:
        witness = await dial(dialer(port, scheme="https", host="127.0.0.1", ca_bundle=bundle))
        await witness.end()


async def test_an_address_is_asked_of_nobody() -> None:
    names = Names()
    async with serving(echo) as port:
        await (await dial(dialer(port, names, host="127.0.0.1"))).end()
    assert names._tasks == set()
    names.close()


@pytest.mark.parametrize("secure", [False, True])
async def test_what_comes_at_once_is_not_lost(authority: trustme.CA, bundle: str, secure: bool) -> None:
    # The first words arrive with the handshake, before the caller's protocol is there; the end perhaps as well.
    words = b"220 at your service\r\n"
    tls = serving_context(authority, NAME) if secure else None
    async with serving(saying(words, when_asked=False), tls=tls) as port:
        for _ in range(10):
            witness = await dial(dialer(port, scheme="https" if secure else "http", ca_bundle=bundle))
            await witness.over
            assert witness.events[0] == "made"
            assert witness.events[-2:] == ["eof", "lost"]
            assert witness.heard == words
            assert len([event for event in witness.events if isinstance(event, str)]) == 3


@pytest.mark.parametrize("tunnelled", [False, True])
async def test_what_comes_in_one_piece_with_the_handshakes_end_is_not_lost(
    authority: trustme.CA, bundle: str, tunnelled: bool
) -> None:
    context = serving_context(authority, NAME)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # where the server's word is the last

    async def all_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            incoming.write(await reader.read(65536))
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
        tls.write(b"hello")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        writer.write(outgoing.read())

    async with serving(all_at_once) as port, serving(Proxy(port)) as proxy:
        way = {"outbound_proxy": f"http://127.0.0.1:{proxy}"} if tunnelled else {}
        witness = await dial(dialer(port, scheme="https", ca_bundle=bundle, **way))
        await witness.over
    assert witness.events == ["made", b"hello", "eof", "lost"]


async def test_what_comes_with_the_handshake_in_a_tunnel_is_not_lost(authority: trustme.CA, bundle: str) -> None:
    words = b"220 at your service\r\n"
    async with (
        serving(saying(words, when_asked=False), tls=serving_context(authority, NAME)) as port,
        serving(Proxy(port)) as proxy,
    ):
        tunnelled = dialer(port, scheme="https", ca_bundle=bundle, outbound_proxy=f"http://127.0.0.1:{proxy}")
        for _ in range(10):
            witness = await dial(tunnelled)
            await witness.over
            assert witness.heard == words
            assert witness.events.count("made") == witness.events.count("lost") == 1


async def test_a_protocol_may_close_as_soon_as_it_is_connected() -> None:
    class Shy(Witness):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.close()

    async with serving(echo) as port:
        witness = await dialer(port).dial(Shy)
        await witness.over
        assert witness.events == ["made", "lost"]


async def test_what_a_protocol_raises_is_raised_and_the_connection_closed() -> None:
    class Broken(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise ValueError("of the protocol's own")

    ended = asyncio.Event()

    async def until_end(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            ended.set()

    async with serving(until_end) as port:
        with pytest.raises(ValueError, match="own"):
            await dialer(port).dial(Broken)
        await asyncio.wait_for(ended.wait(), 5)


class StillTransport:
    """A transport that does nothing."""

    closed = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("handed_over_after", range(4))
async def test_a_protocol_sees_all_whenever_it_takes_over(handed_over_after: int) -> None:
    # Loops prepare calls, and make them when the protocol has been changed already.
    transport: Any = StillTransport()
    landing = dialing._Landing(in_tls=True)
    landing.connection_made(transport)
    witness = Witness()
    calls: list[Callable[[], Any]] = [
        lambda: landing.data_received(b"all"),
        lambda: landing.eof_received(),
        lambda: landing.connection_lost(None),
    ]
    for place, call in enumerate(calls):
        if place == handed_over_after:
            landing.hand_over(witness)
        call()
    if handed_over_after == len(calls):
        landing.hand_over(witness)
    assert witness.events == ["made", b"all", "eof", "lost"]
    assert transport.protocol is witness


@pytest.mark.parametrize("keeps_open", [False, True])
async def test_a_protocol_decides_what_an_end_means_that_came_early(keeps_open: bool) -> None:
    class Deciding(Witness):
        def eof_received(self) -> bool:  # type: ignore[override]
            return keeps_open

    transport: Any = StillTransport()
    landing = dialing._Landing(in_tls=False)
    landing.connection_made(transport)
    assert landing.eof_received()
    landing.hand_over(Deciding())
    assert transport.closed is not keeps_open
    assert landing.eof_received() is keeps_open


async def test_small_writes_leave_at_once_and_a_dead_peer_is_noticed() -> None:
    async with serving(echo) as port:
        witness = await dial(dialer(port))
        connection = witness.transport.get_extra_info("socket")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):
                assert connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, option)) == value
        await witness.end()


# Addresses.


async def test_addresses_are_tried_in_the_systems_order() -> None:
    async with serving(echo) as port:
        witness = await dial(dialer(port, ScriptedNames("127.0.0.1", "127.0.0.2")))
        assert witness.transport.get_extra_info("peername")[0] == "127.0.0.1"
        await witness.end()
        witness = await dial(dialer(port, ScriptedNames("127.0.0.2", "::1", "127.0.0.1")))
        assert witness.transport.get_extra_info("peername")[0] == "127.0.0.1"
        await witness.end()


async def test_an_address_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "NEXT_ADDRESS_SECONDS", 0.01)
    names = ScriptedNames("127.0.0.1", "127.0.0.2")
    with silent_port() as port, socket.create_server(("127.0.0.2", port)):
        witness = await dial(dialer(port, names))
        assert witness.transport.get_extra_info("peername")[0] == "127.0.0.2"
        await witness.end()
    assert names.doubted == []


async def test_addresses_that_never_answer_are_doubted() -> None:
    names = ScriptedNames()
    with silent_port() as port:
        waiting = asyncio.ensure_future(dialer(port, names).dial(Witness))
        for _ in range(10):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert names.doubted == [NAME]


async def test_a_new_dialer_has_the_name_looked_up_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if host == NAME:  # uvloop sends addresses this way as well, when it connects to them
            asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def ask_nobody(_: str) -> None:
        return None

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    names = Names(ask_nobody)
    async with serving(echo) as port:
        for times in (1, 2):
            saved_anew = dialer(port, names)
            for _ in range(2):
                await (await dial(saved_anew)).end()
            assert asked == [NAME] * times
    names.close()


async def test_one_refused_address_refuses_the_name_and_nothing_is_connected_to() -> None:
    accepted: list[Any] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    async with serving(note) as port:
        problem = await failure_of(dialer(port, ScriptedNames("127.0.0.1", "10.0.0.1")))
    assert isinstance(problem, faults.AddressRefused)
    assert str(problem) == "10.0.0.1 is private (10.0.0.0/8)"
    assert phase_of(problem) == "egress"
    assert accepted == []


async def test_an_address_is_judged_once_more_before_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ScriptedNames("127.0.0.1", "127.0.0.2")
    refused = dialer(1, names, allowed_networks=())
    monkeypatch.setattr(type(refused._guard), "check_all", lambda *_: [])
    problem = await failure_of(refused)
    assert isinstance(problem, faults.AddressRefused)
    assert "loopback" in str(problem)
    assert phase_of(problem) == "egress"


async def test_an_address_told_to_a_proxy_is_judged_at_every_dial() -> None:
    proxy = Proxy()
    names = ScriptedNames()
    async with serving(proxy) as port:
        for host in ("10.0.0.1", "fd00::1"):
            told = dialer(443, names, host=host, scheme="https", outbound_proxy=f"http://proxy.example:{port}")
            for _ in range(2):
                problem = await failure_of(told)
                assert isinstance(problem, faults.AddressRefused)
                assert "private" in str(problem)
                assert phase_of(problem) == "egress"
    assert names.asked == []
    assert proxy.heads == []


# Failures.


async def test_a_name_without_addresses_is_unresolved() -> None:
    names = ScriptedNames()
    names.problem = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    problem = await failure_of(dialer(1, names))
    assert isinstance(problem, faults.NameUnresolved)
    assert phase_of(problem) == "dns"
    problem = await failure_of(dialer(1, names, outbound_proxy="http://proxy.example:1"))
    assert isinstance(problem, httpx.ProxyError)
    assert phase_of(problem) == "dns"


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"], ["127.0.0.1", "::1"]])
async def test_a_port_where_nothing_listens_is_closed(addresses: list[str]) -> None:
    names = ScriptedNames(*addresses)
    with refusing_port() as port:
        problem = await failure_of(dialer(port, names))
    assert isinstance(problem, faults.PortClosed)
    assert str(problem) == "refused"
    assert phase_of(problem) == "connect"
    assert names.doubted == [NAME]


async def test_connections_spread_over_the_addresses_of_a_name() -> None:
    addresses = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    async with contextlib.AsyncExitStack() as stack:
        port = 0
        for address in addresses:
            port = await stack.enter_async_context(serving(stay_silent, host=address, port=port))
        plain = dialer(port, ScriptedNames(*addresses))
        reached = []
        for _ in range(6):
            witness = await dial(plain)
            reached.append(witness.transport.get_extra_info("peername")[0])
            await witness.end()
    assert Counter(reached) == dict.fromkeys(addresses, 2)


async def test_an_address_that_does_not_connect_is_spared_for_a_while() -> None:
    with refusing_port() as port:
        async with serving(stay_silent, host="127.0.0.2", port=port):
            plain = dialer(port, ScriptedNames("127.0.0.1", "127.0.0.2"))
            for _ in range(4):
                await (await dial(plain)).end()
            assert [info[4][0] for info in plain._spread._spared] == ["127.0.0.1"]


async def test_a_socket_of_the_relays_own_is_not_connected_to() -> None:
    accepted: list[object] = []

    async def script(*_: object) -> None:
        accepted.append(_)

    async with serving(script) as port:
        listeners.tell([SimpleNamespace(family=socket.AF_INET, getsockname=lambda: ("127.0.0.1", port))])  # type: ignore[list-item]
        try:
            problem = await failure_of(dialer(port))
        finally:
            listeners.tell([])
        assert type(problem) is faults.LedBack
        assert phase_of(problem) == "connect"
        await (await dial(dialer(port))).end()
    assert len(accepted) == 1


async def test_one_refusal_says_more_than_what_else_failed() -> None:
    # The second is no address one can connect to, which fails in another way.
    names = ScriptedNames("127.0.0.1", "fe80::1")
    with refusing_port() as port:
        problem = await failure_of(dialer(port, names, allowed_networks=(*LOOPBACK, ip_network("fe80::/10"))))
    assert isinstance(problem, faults.PortClosed)
    names = ScriptedNames("fe80::1")
    problem = await failure_of(dialer(1, names, allowed_networks=(ip_network("fe80::/10"),)))
    assert type(problem) is httpx.ConnectError
    assert str(problem) in errno.errorcode.values()


async def test_a_process_without_descriptors_says_so(monkeypatch: pytest.MonkeyPatch, none_left: Descriptors) -> None:
    def open_socket(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    plain = dialer(1)
    monkeypatch.setattr(type(plain._guard), "open_socket", open_socket)
    problem = await failure_of(plain)
    assert isinstance(problem, faults.OutOfFiles)
    assert str(problem) == "EMFILE"
    assert refusals_of(none_left) == 1


async def test_the_last_descriptors_are_not_for_upstreams(none_left: Descriptors) -> None:
    names = ScriptedNames()
    none_left.upstreams_end = 0
    async with serving(echo) as port:
        for fields in ({}, {"outbound_proxy": f"http://proxy.example:{port}"}):
            problem = await failure_of(dialer(port, names, **fields))
            assert isinstance(problem, faults.OutOfFiles)
            assert phase_of(problem) == "connect"
    assert names.doubted == []
    assert refusals_of(none_left) == 2


async def test_a_look_up_without_descriptors_says_nothing_about_the_name(none_left: Descriptors) -> None:
    names = ScriptedNames()
    names.problem = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    none_left.upstreams_end = 0
    problem = await failure_of(dialer(1, names))
    assert isinstance(problem, faults.OutOfFiles)
    assert phase_of(problem) == "dns"
    assert refusals_of(none_left) == 1


async def test_what_uvloop_raises_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start_connection(*_: Any, **__: Any) -> socket.socket:
        raise RuntimeError("File descriptor is used by transport")

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
    problem = await failure_of(dialer(1))
    assert type(problem) is httpx.ConnectError
    assert phase_of(problem) == "connect"


async def test_a_cancellation_that_the_race_took_for_its_own_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start_connection(*_: Any, **__: Any) -> socket.socket:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        raise ConnectionRefusedError(errno.ECONNREFUSED, "all of them")

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
    waiting = asyncio.ensure_future(dialer(1).dial(Witness))
    for _ in range(5):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()


async def test_a_peer_that_is_gone_when_tls_is_there_fails_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start_tls(*_: Any, **__: Any) -> None:
        return None

    monkeypatch.setattr(asyncio.get_running_loop(), "start_tls", start_tls)
    async with serving(echo) as port:
        problem = await failure_of(dialer(port, scheme="https"))
    assert type(problem) is faults.HandshakeFailed


async def test_a_bundle_that_holds_no_certificate_makes_no_dialer() -> None:
    with pytest.raises(faults.HandshakeFailed, match="does not parse") as raised:
        dialer(1, scheme="https", ca_bundle="nothing of the kind")
    assert phase_of(raised.value) == "tls"


async def test_a_certificate_nobody_vouches_for_is_untrusted(authority: trustme.CA) -> None:
    async with serving(echo, tls=serving_context(authority, NAME)) as port:
        problem = await failure_of(dialer(port, scheme="https"))
    assert isinstance(problem, faults.CertificateUntrusted)
    assert str(problem) == "unable to get local issuer certificate"
    assert phase_of(problem) == "tls"


async def test_a_certificate_of_another_host_is_untrusted(authority: trustme.CA, bundle: str) -> None:
    async with serving(echo, tls=serving_context(authority, "other.example")) as port:
        problem = await failure_of(dialer(port, scheme="https", ca_bundle=bundle))
    assert isinstance(problem, faults.CertificateUntrusted)
    assert "Hostname mismatch" in str(problem)


async def test_a_port_that_speaks_no_tls_fails_the_handshake() -> None:
    async with serving(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        problem = await failure_of(dialer(port, scheme="https", verify_tls=False))
    assert type(problem) is faults.HandshakeFailed
    assert str(problem) == "WRONG_VERSION_NUMBER"
    assert phase_of(problem) == "tls"


async def test_a_server_that_speaks_before_tls_fails_the_handshake() -> None:
    async with serving(saying(b"220 mail.example ESMTP\r\n", when_asked=False)) as port:
        for _ in range(5):
            problem = await failure_of(dialer(port, scheme="https", verify_tls=False))
            assert type(problem) is faults.HandshakeFailed
            assert phase_of(problem) == "tls"


@pytest.mark.parametrize("when_asked", [False, True])
async def test_a_peer_that_hangs_up_fails_the_handshake(when_asked: bool) -> None:
    async with serving(saying(b"", when_asked=when_asked)) as port:
        problem = await failure_of(dialer(port, scheme="https"))
    assert type(problem) is faults.HandshakeFailed
    assert phase_of(problem) == "tls"


async def test_a_peer_that_resets_fails_the_handshake() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()  # with bytes unread

    async with serving(reset) as port:
        problem = await failure_of(dialer(port, scheme="https"))
    assert type(problem) is faults.HandshakeFailed
    assert phase_of(problem) == "tls"


# Proxies.


def through(proxy: int, port: int = 443, *, scheme: str = "https", at: str = "http://127.0.0.1", **more: Any) -> Dialer:
    return dialer(port, scheme=scheme, outbound_proxy=f"{at}:{proxy}", **more)


async def test_a_proxy_is_told_plain_requests() -> None:
    url = "http://us%20er:p%C3%A4%40ss@127.0.0.1"
    proxy = Proxy(answer=b"as the upstream would\n")
    async with serving(proxy) as port:
        told = through(port, 81, scheme="http", at=url)
        assert told.tells_proxy
        assert told.target_prefix == b"http://api.example:81"
        assert told.proxy_authorization == b"Basic " + base64.b64encode("us er:pä@ss".encode())
        witness = await dial(told)
        witness.transport.write(b"GET http://api.example:81/ HTTP/1.1\r\n\r\n")
        await witness.until_heard(proxy.answer)
        assert proxy.heads == [b"GET http://api.example:81/ HTTP/1.1\r\n\r\n"]
        await witness.end()


async def test_without_a_proxy_or_in_a_tunnel_requests_look_direct() -> None:
    for direct in (dialer(80), dialer(443, scheme="https"), through(1, at="http://user:hunter2@127.0.0.1")):
        assert not direct.tells_proxy
        assert (direct.target_prefix, direct.proxy_authorization) == (b"", b"")


@pytest.mark.parametrize("proxy_scheme", ["http", "https"])
async def test_tls_goes_through_a_tunnel_to_the_upstream_itself(
    authority: trustme.CA, bundle: str, proxy_scheme: str
) -> None:
    proxy_tls = serving_context(authority, "127.0.0.1") if proxy_scheme == "https" else None
    async with serving(echo, tls=serving_context(authority, NAME)) as port:
        proxy = Proxy(port)
        async with serving(proxy, tls=proxy_tls) as proxy_port:
            tunnelled = through(proxy_port, port, at=f"{proxy_scheme}://user:hunter2@127.0.0.1", ca_bundle=bundle)
            witness = await dial(tunnelled)
            assert witness.events == ["made"]
            witness.transport.write(b"hello")
            await witness.until_heard(b"hello")
            await witness.end()
    authorization = base64.b64encode(b"user:hunter2").decode()
    assert proxy.heads == [
        f"CONNECT {NAME}:{port} HTTP/1.1\r\nHost: {NAME}:{port}\r\n"
        f"Proxy-Authorization: Basic {authorization}\r\n\r\n".encode()
    ]


async def test_an_ipv6_address_is_told_in_brackets() -> None:
    proxy = Proxy(answer=b"HTTP/1.1 403 Forbidden\r\n\r\n")
    async with serving(proxy) as port:
        await failure_of(through(port, host="::1"))
    assert proxy.heads == [b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n"]


async def test_plain_requests_go_to_a_proxy_in_tls(authority: trustme.CA, bundle: str) -> None:
    async with serving(echo, tls=serving_context(authority, "127.0.0.1")) as port:
        told = through(port, 80, scheme="http", at="https://127.0.0.1", ca_bundle=bundle)
        witness = await dial(told)
        assert witness.transport.get_extra_info("ssl_object").version().startswith("TLS")
        await witness.end()
        problem = await failure_of(through(port, 80, scheme="http", at="https://127.0.0.1"))
        assert isinstance(problem, faults.CertificateUntrusted)
        assert phase_of(problem) == "proxy"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 204\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 299 So be it\r\n\r\n",
    ],
)
async def test_any_2xx_opens_the_tunnel(authority: trustme.CA, bundle: str, answer: bytes) -> None:
    async with (
        serving(echo, tls=serving_context(authority, NAME)) as port,
        serving(Proxy(port, answer=answer)) as proxy,
    ):
        await (await dial(through(proxy, port, ca_bundle=bundle))).end()


async def test_an_answer_may_come_byte_by_byte(authority: trustme.CA, bundle: str) -> None:
    async with serving(echo, tls=serving_context(authority, NAME)) as port:

        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            class Dripping:
                def write(self, data: bytes) -> None:
                    for place in range(len(data)):
                        writer.write(data[place : place + 1])

            await Proxy(port)(reader, Dripping())  # type: ignore[arg-type]

        async with serving(drip) as proxy:
            await (await dial(through(proxy, port, ca_bundle=bundle))).end()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "status 407"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nsecret", "status 403"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n", "status 302"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 502 Bad Gateway\r\n\r\n", "status 502"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "status 101"),
        (b"HTTP/2 200\r\n\r\n", "its answer is not HTTP/1.1"),
        (b"HTTP/1.1 600 Beyond\r\n\r\n", "its answer is not HTTP/1.1"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "its answer is not HTTP/1.1"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "its answer is not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n" + b"x-filler: " + b"x" * 70_000, "the head of its answer is too long"),
        (b"HTTP/1.1 200 OK\r\n\r\n\x15\x03\x03\x00\x02\x02\x46", "spoke unasked"),
    ],
)
async def test_a_tunnel_that_does_not_open_is_the_proxys_fault(answer: bytes, told: str) -> None:
    async with serving(Proxy(answer=answer)) as proxy:
        problem = await failure_of(through(proxy, at="http://user:hunter2@127.0.0.1"))
    assert type(problem) is httpx.ProxyError
    assert str(problem) == told
    assert phase_of(problem) == "proxy"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_proxy_that_hangs_up_is_at_fault(answer: bytes) -> None:
    async with serving(saying(answer)) as proxy:
        problem = await failure_of(through(proxy))
    assert type(problem) is httpx.ProxyError
    assert phase_of(problem) == "proxy"


async def test_a_proxy_that_is_not_there_is_at_fault() -> None:
    with refusing_port() as port:
        for scheme in ("http", "https"):
            problem = await failure_of(through(port, scheme=scheme))
            assert type(problem) is httpx.ProxyError
            assert str(problem) == "ECONNREFUSED"
            assert phase_of(problem) == "connect"


async def test_a_proxy_that_hangs_up_on_tls_is_at_fault() -> None:
    async with serving(saying(b"")) as port:
        problem = await failure_of(through(port, at="https://127.0.0.1"))
    assert type(problem) is httpx.ProxyError
    assert phase_of(problem) == "proxy"


async def test_the_tunnel_does_not_vouch_for_the_certificate(authority: trustme.CA) -> None:
    async with (
        serving(echo, tls=serving_context(authority, NAME)) as port,
        serving(Proxy(port)) as proxy,
    ):
        problem = await failure_of(through(proxy, port))
    assert isinstance(problem, faults.CertificateUntrusted)
    assert phase_of(problem) == "tls"


async def test_the_proxys_address_is_guarded() -> None:
    problem = await failure_of(through(1, at="http://proxy.example", allowed_networks=()))
    assert isinstance(problem, faults.AddressRefused)
    assert phase_of(problem) == "egress"


async def test_no_failure_tells_the_proxys_password() -> None:
    url = "http://user:hunter2@127.0.0.1"
    async with serving(Proxy(answer=b"HTTP/1.1 407 Wrong\r\n\r\n")) as refusing, serving(saying(b"")) as leaving:
        problems = [await failure_of(through(port, at=url)) for port in (refusing, leaving)]
    with refusing_port() as port:
        problems.append(await failure_of(through(port, at=url)))
    secret = base64.b64encode(b"user:hunter2").decode()
    for problem in problems:
        told: BaseException | None = problem
        while told is not None:
            assert "hunter2" not in repr(told)
            assert secret not in repr(told)
            told = told.__cause__ or told.__context__


# Sessions.


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def context(authority: trustme.CA, request: pytest.FixtureRequest) -> ssl.SSLContext:
    """A server's, that speaks one version only."""
    context = serving_context(authority, NAME, "127.0.0.1")
    context.minimum_version = context.maximum_version = request.param
    return context


async def resumed(dialer: Dialer, *, remember: bool = True) -> bool:
    """Whether a connection resumed a session. One exchange is made on it."""
    witness = await dial(dialer)
    witness.transport.write(b"hello")
    await witness.until_heard(b"hello")
    if remember:
        dialer.remember_session(witness.transport)
    reused: bool = witness.transport.get_extra_info("ssl_object").session_reused
    await witness.end()
    return reused


@pytest.mark.parametrize("verify_tls", [True, False])
async def test_a_further_connection_resumes_the_session(context: ssl.SSLContext, bundle: str, verify_tls: bool) -> None:
    async with serving(echo, tls=context) as port:
        secure = dialer(port, scheme="https", ca_bundle=bundle, verify_tls=verify_tls)
        assert [await resumed(secure) for _ in range(4)] == [False, True, True, True]


async def test_a_session_that_is_not_remembered_is_not_resumed(context: ssl.SSLContext, bundle: str) -> None:
    async with serving(echo, tls=context) as port:
        secure = dialer(port, scheme="https", ca_bundle=bundle)
        assert [await resumed(secure, remember=False) for _ in range(2)] == [False, False]


async def test_a_session_never_leaves_its_dialer(context: ssl.SSLContext, bundle: str) -> None:
    async with serving(echo, tls=context) as port:
        first, second = (dialer(port, scheme="https", ca_bundle=bundle) for _ in range(2))
        assert not await resumed(first)
        assert not await resumed(second, remember=False)
        witness = await dial(first)
        witness.transport.write(b"hello")
        await witness.until_heard(b"hello")
        second.remember_session(witness.transport)
        await witness.end()
        assert not await resumed(second)
        assert await resumed(first)


async def test_a_session_is_resumed_in_a_tunnel_and_so_is_the_proxys(context: ssl.SSLContext, bundle: str) -> None:
    resumptions: list[bool] = []

    async with serving(echo, tls=context) as port:

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            resumptions.append(writer.get_extra_info("ssl_object").session_reused)
            await Proxy(port)(reader, writer)

        async with serving(proxy, tls=context) as proxy_port:
            tunnelled = through(proxy_port, port, at="https://127.0.0.1", ca_bundle=bundle)
            assert [await resumed(tunnelled) for _ in range(3)] == [False, True, True]
    assert resumptions == [False, True, True]


async def test_a_session_with_a_proxy_that_is_told_requests_is_resumed(context: ssl.SSLContext, bundle: str) -> None:
    async with serving(echo, tls=context) as port:
        told = through(port, 80, scheme="http", at="https://127.0.0.1", ca_bundle=bundle)
        assert [await resumed(told) for _ in range(2)] == [False, True]


async def test_a_plain_connection_has_no_session_to_remember() -> None:
    async with serving(echo) as port:
        plain = dialer(port)
        witness = await dial(plain)
        plain.remember_session(witness.transport)
        await witness.end()


async def test_a_connection_is_asked_for_its_session_once_and_a_good_session_kept(
    context: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(echo, tls=context) as port:
        secure = dialer(port, scheme="https", ca_bundle=bundle)
        await resumed(secure)
        assert secure._tls is not None
        taken = secure._tls.session
        witness = await dial(secure)
        secure.remember_session(witness.transport)
        assert secure._tls.session is taken
        await witness.end()
        monkeypatch.setattr(dialing, "SESSION_SECONDS", 0)
        witness = await dial(secure)
        secure.remember_session(witness.transport)
        renewed = secure._tls.session
        assert renewed is not taken
        secure.remember_session(witness.transport)
        assert secure._tls.session is renewed
        await witness.end()


async def test_a_failed_handshake_costs_the_session(context: ssl.SSLContext, bundle: str) -> None:
    async with serving(echo, tls=context) as port:
        secure = dialer(port, scheme="https", ca_bundle=bundle)
        await resumed(secure)
    async with serving(saying(b""), port=port):
        await failure_of(secure)
    async with serving(echo, tls=context, port=port):
        assert [await resumed(secure) for _ in range(2)] == [False, True]


async def test_a_dialer_that_is_let_go_of_frees_its_certificates_at_once(context: ssl.SSLContext, bundle: str) -> None:
    async with serving(echo, tls=context) as port:
        secure = dialer(port, scheme="https", ca_bundle=bundle)
        await resumed(secure)
        assert secure._tls is not None
        settings = weakref.ref(secure._tls._context)
        await asyncio.sleep(0)
        gc.collect()
        gc.disable()
        try:
            del secure
            assert settings() is None
        finally:
            gc.enable()


# Cancellation.


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - one call, for a number


async def cancelled_everywhere(dialer: Dialer, *, at_least: int) -> None:
    """Cancels a dial after each number of turns of the loop, until one is done before. Nothing may stay behind."""
    # The first connection of a loop opens descriptors that stay: libuv keeps one of /dev/null.
    servers = asyncio.all_tasks()
    await (await dialer.dial(Witness)).end()
    await until(lambda: asyncio.all_tasks() <= servers, within=5)
    for _ in range(20):
        await asyncio.sleep(0)
    before = descriptors()
    turns = 0
    finished = 0
    while finished < 3:
        dialing = asyncio.ensure_future(dialer.dial(Witness))
        for _ in range(turns):
            await asyncio.sleep(0)
        if dialing.done():
            finished += 1
            await (await dialing).end()
        else:
            dialing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialing
        await until(lambda: descriptors() == before, within=5)
        await until(lambda: asyncio.all_tasks() <= servers, within=5)
        turns += 1
    assert turns >= at_least


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted in /proc")  # noqa: PTH112
class TestWhateverMomentItIsCancelledAtNothingStaysOpen:
    async def test_directly(self) -> None:
        async with serving(echo) as port:
            await cancelled_everywhere(dialer(port), at_least=5)

    async def test_over_two_addresses(self) -> None:
        names = ScriptedNames("127.0.0.2", "127.0.0.1")
        async with serving(echo) as port:
            await cancelled_everywhere(dialer(port, names), at_least=8)

    async def test_in_a_race_of_addresses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dialing, "NEXT_ADDRESS_SECONDS", 0.0001)
        names = ScriptedNames("127.0.0.1", "127.0.0.2", "127.0.0.3")
        with silent_port() as port, socket.create_server(("127.0.0.3", port)) as listener:
            listener.setblocking(False)

            async def take_in() -> None:
                while True:
                    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                    connection.close()

            accepting = asyncio.ensure_future(take_in())
            try:
                await asyncio.sleep(0)
                await cancelled_everywhere(dialer(port, names), at_least=8)
            finally:
                accepting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await accepting

    async def test_in_tls(self, authority: trustme.CA, bundle: str) -> None:
        async with serving(echo, tls=serving_context(authority, NAME)) as port:
            await cancelled_everywhere(dialer(port, scheme="https", ca_bundle=bundle), at_least=8)

    async def test_in_a_tunnel(self, authority: trustme.CA, bundle: str) -> None:
        async with (
            serving(echo, tls=serving_context(authority, NAME)) as port,
            serving(Proxy(port)) as proxy,
        ):
            await cancelled_everywhere(through(proxy, port, ca_bundle=bundle), at_least=12)

    async def test_in_a_tunnel_in_tls(self, authority: trustme.CA, bundle: str) -> None:
        async with (
            serving(echo, tls=serving_context(authority, NAME)) as port,
            serving(Proxy(port), tls=serving_context(authority, "127.0.0.1")) as proxy,
        ):
            tunnelled = through(proxy, port, at="https://127.0.0.1", ca_bundle=bundle)
            await cancelled_everywhere(tunnelled, at_least=16)

    async def test_while_a_peer_says_nothing(self) -> None:
        async with serving(stay_silent) as port:
            for silent in (dialer(port, scheme="https"), through(port), through(port, at="https://127.0.0.1")):
                before = descriptors()
                waiting = asyncio.ensure_future(silent.dial(Witness))
                for _ in range(50):
                    await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                await until(lambda before=before: descriptors() == before, within=5)
