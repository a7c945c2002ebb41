"""The way out is guarded, address by address, at the moment of connecting; TLS and outbound proxies stand behind it."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import pytest
import pytest_asyncio
import trustme

from relay.catalog import Target
from relay.rules.balancing import Balancing
from tests.behaviour.conftest import Logged, Names, Relayed
from tests.caller import Caller
from tests.origin import Origin, echo, refusing_port, reply, serving_context
from tests.serving_ground import Ground

NAME = "api.example"


def problem(data: bytes) -> str:
    kind: str = json.loads(data)["type"].removeprefix("urn:relay:error:")
    return kind


# Addresses.


@pytest.mark.parametrize(
    ("host", "verdict", "network"),
    [
        ("127.0.0.1", "loopback", "127.0.0.0/8"),
        ("127.9.9.9", "loopback", "127.0.0.0/8"),
        ("0.0.0.0", "unspecified", "0.0.0.0/8"),
        ("10.0.0.1", "private", "10.0.0.0/8"),
        ("169.254.169.254", "link-local", "169.254.0.0/16"),
        ("100.64.0.1", "shared", "100.64.0.0/10"),
        ("224.0.0.1", "multicast", "224.0.0.0/4"),
        ("255.255.255.255", "broadcast", "255.255.255.255/32"),
        ("::1", "loopback", "::1/128"),
        ("::", "unspecified", "::/128"),
        ("::ffff:127.0.0.1", "loopback", "127.0.0.0/8"),
        ("::ffff:a9fe:a9fe", "link-local", "169.254.0.0/16"),
        ("::127.0.0.1", "loopback", "127.0.0.0/8"),
        ("64:ff9b::7f00:1", "loopback", "127.0.0.0/8"),
        ("2002:7f00:1::1", "loopback", "127.0.0.0/8"),
        ("fd00::1", "private", "fc00::/7"),
        ("fe80::1", "link-local", "fe80::/10"),
    ],
)
async def test_an_address_that_is_not_public_is_refused_in_any_spelling(
    origin: Origin, relayed: Relayed, caller: Caller, logged: Logged, host: str, verdict: str, network: str
) -> None:
    relayed(host=host, allowed_networks=())
    answer = await caller.get(b"/relay/o/a")
    assert (answer.status, problem(answer.data)) == (502, "egress-refused")
    assert b"error=destination_ip_prohibited" in answer.values(b"proxy-status")[0]
    told = answer.data + b"".join(name + value for name, value in answer.head.headers)
    assert host.encode() not in told
    assert verdict.encode() not in told
    line = await logged.next()
    assert line["outcome"] == "egress-refused"
    assert line["detail"].endswith(f" is {verdict} ({network})")
    assert origin.connections_made == 0


async def test_localhost_by_name_is_refused(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(host="localhost", allowed_networks=())
    assert problem((await caller.get(b"/relay/o/a")).data) == "egress-refused"
    assert origin.connections_made == 0


async def test_an_allowed_network_opens_what_it_names_and_no_more(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    origin.on(b"/a", reply(200))
    relayed(allowed_networks=(ip_network("127.0.0.1"),))
    assert (await caller.get(b"/relay/o/a")).status == 200
    for network in ("127.0.0.2", "10.0.0.0/8", "::1"):
        relayed(allowed_networks=(ip_network(network),))
        assert problem((await caller.get(b"/relay/o/a")).data) == "egress-refused"
    assert origin.connections_made == 1


async def test_an_ipv6_upstream_is_reached(relayed: Relayed, caller: Caller) -> None:
    async with Origin(host="::1") as origin:
        origin.on(b"/a", reply(200, body=b"six"))
        relayed(host="::1", port=origin.port, authority=origin.authority.encode())
        assert (await caller.get(b"/relay/o/a")).data == b"six"
        assert (await origin.next_request()).values(b"host") == [origin.authority.encode()]


@pytest.mark.parametrize("answers", [["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["127.0.0.1", "fe80::1%1"]])
async def test_a_name_is_refused_when_any_of_its_addresses_is(
    origin: Origin, relayed: Relayed, caller: Caller, names: Names, logged: Logged, answers: list[str]
) -> None:
    names.answers[NAME] = [answers]
    relayed(host=NAME)
    assert problem((await caller.get(b"/relay/o/a")).data) == "egress-refused"
    assert (await logged.next())["detail"].startswith(("10.0.0.1 is private", "fe80::1 is link-local"))
    assert origin.connections_made == 0


async def test_all_addresses_of_a_name_are_tried(
    origin: Origin, relayed: Relayed, caller: Caller, names: Names
) -> None:
    names.answers[NAME] = [["127.0.0.2", "127.0.0.1"]]
    relayed(host=NAME)
    origin.on(b"/a", reply(200))
    assert (await caller.get(b"/relay/o/a")).status == 200


async def test_a_connection_asks_dns_once_and_goes_to_the_address_that_was_judged(
    origin: Origin, relayed: Relayed, caller: Caller, names: Names
) -> None:
    # Whoever asked a second time, between judging and connecting, would be led to what is not allowed.
    names.answers[NAME] = [["127.0.0.1"], ["10.0.0.1"]]
    relayed(host=NAME, authority=NAME.encode())
    origin.on(b"/a", reply(200))
    assert (await caller.get(b"/relay/o/a")).status == 200
    assert names.asked == [NAME]
    assert (await origin.next_request()).values(b"host") == [NAME.encode()]


async def test_a_name_that_is_rebound_is_judged_anew(
    origin: Origin, relayed: Relayed, caller: Caller, names: Names
) -> None:
    names.answers[NAME] = [["127.0.0.1"], ["169.254.169.254"]]
    origin.on(b"/a", reply(200))
    relayed(host=NAME)
    assert (await caller.get(b"/relay/o/a")).status == 200
    relayed(host=NAME)
    assert problem((await caller.get(b"/relay/o/a")).data) == "egress-refused"
    assert origin.connections_made == 1


@pytest.mark.parametrize("answers", [[], None])
async def test_a_name_without_addresses_is_dns(
    relayed: Relayed, caller: Caller, names: Names, answers: list[str] | None
) -> None:
    if answers is not None:
        names.answers[NAME] = [answers]
    relayed(host=NAME)
    assert problem((await caller.get(b"/relay/o/a")).data) == "dns"


# TLS.


@pytest_asyncio.fixture
async def secure(authority: trustme.CA, names: Names) -> AsyncIterator[Origin]:
    """An HTTPS origin that `NAME` leads to, with a certificate for that name."""
    names.answers[NAME] = [["127.0.0.1"]]
    async with Origin(tls=serving_context(authority, NAME)) as origin:
        origin.on(b"/a", reply(200, body=b"secret"))
        yield origin


@pytest.fixture
def bundle(authority: trustme.CA) -> str:
    return authority.cert_pem.bytes().decode()


def place(origin: Origin, **fields: Any) -> dict[str, Any]:
    return {
        "scheme": "https" if origin.tls else "http",
        "host": NAME,
        "port": origin.port,
        "authority": b"%b:%d" % (NAME.encode(), origin.port),
    } | fields


async def test_tls_is_verified_by_the_upstreams_own_bundle_and_asks_for_its_name(
    secure: Origin, relayed: Relayed, caller: Caller, bundle: str
) -> None:
    relayed(**place(secure, ca_bundle=bundle))
    for _ in range(2):
        answer = await caller.get(b"/relay/o/a")
        assert (answer.status, answer.data) == (200, b"secret")
    assert secure.connections_made == 1
    arrived = await secure.next_request()
    assert arrived.server_name == NAME
    assert arrived.values(b"host") == [b"%b:%d" % (NAME.encode(), secure.port)]
    assert arrived.values(b"x-forwarded-proto") == [b"http"]


async def test_the_name_for_tls_stays_the_upstreams_when_the_host_is_the_callers(
    secure: Origin, relayed: Relayed, caller: Caller, bundle: str
) -> None:
    relayed(**place(secure, ca_bundle=bundle, caller_host=True))
    assert (await caller.get(b"/relay/o/a", [(b"Host", b"localhost")])).status == 200
    arrived = await secure.next_request()
    assert (arrived.server_name, arrived.values(b"host")) == (NAME, [b"localhost"])


async def test_a_certificate_nobody_vouches_for_is_refused(secure: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(**place(secure))
    answer = await caller.get(b"/relay/o/a")
    assert (answer.status, problem(answer.data)) == (502, "tls-certificate")
    assert secure.requests == []


async def test_a_certificate_of_another_host_is_refused(
    secure: Origin, relayed: Relayed, caller: Caller, names: Names, bundle: str
) -> None:
    names.answers["other.example"] = [["127.0.0.1"]]
    relayed(**place(secure, host="other.example", ca_bundle=bundle))
    assert problem((await caller.get(b"/relay/o/a")).data) == "tls-certificate"
    relayed(**place(secure, host="127.0.0.1", ca_bundle=bundle))
    assert problem((await caller.get(b"/relay/o/a")).data) == "tls-certificate"
    assert secure.requests == []


async def test_a_bundle_of_another_authority_does_not_help(secure: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(**place(secure, ca_bundle=trustme.CA().cert_pem.bytes().decode()))
    assert problem((await caller.get(b"/relay/o/a")).data) == "tls-certificate"


async def test_a_bundle_that_holds_no_certificate_is_a_tls_failure(
    secure: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(**place(secure, ca_bundle="nothing of the kind"))
    assert problem((await caller.get(b"/relay/o/a")).data) == "tls"


async def test_verification_can_be_switched_off(secure: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(**place(secure, verify_tls=False))
    assert (await caller.get(b"/relay/o/a")).data == b"secret"


async def test_tls_with_a_port_that_speaks_none_is_tls(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    async with serving_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        relayed(scheme="https", port=port)
        assert problem((await caller.get(b"/relay/o/a")).data) == "tls"


async def test_a_port_that_speaks_another_protocol_is_a_protocol_failure(relayed: Relayed, caller: Caller) -> None:
    async with serving_bytes(b"220 mail.example ESMTP\r\n") as port:
        relayed(port=port)
        assert problem((await caller.get(b"/relay/o/a")).data) == "upstream-protocol"


async def test_a_handshake_that_is_cut_off_is_tls(relayed: Relayed, caller: Caller) -> None:
    async with serving_bytes(b"") as port:
        relayed(scheme="https", port=port)
        assert problem((await caller.get(b"/relay/o/a")).data) == "tls"


async def test_a_handshake_that_hangs_is_a_connect_time_out(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relayed(scheme="https", port=listener.getsockname()[1], connect_timeout_seconds=0.2)
        answer = await caller.get(b"/relay/o/a")
        assert (answer.status, problem(answer.data)) == (504, "connect-timeout")


async def test_old_tls_is_refused(relayed: Relayed, caller: Caller, authority: trustme.CA, bundle: str) -> None:
    context = serving_context(authority, "127.0.0.1")
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1 is deprecated"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with Origin(tls=context) as old:
        relayed(scheme="https", port=old.port, ca_bundle=bundle)
        assert problem((await caller.get(b"/relay/o/a")).data) == "tls"


async def test_an_address_is_judged_before_its_certificate(secure: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(**place(secure, allowed_networks=()))
    assert problem((await caller.get(b"/relay/o/a")).data) == "egress-refused"
    assert secure.connections_made == 0


class serving_bytes:  # noqa: N801 - reads as the function it stands for
    """A port that answers whatever comes with these bytes and hangs up."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(self._data)
        writer.close()


# Outbound proxies.


class ScriptedProxy:
    """An HTTP proxy that leads every request to `destination`, or answers with `refusal`."""

    def __init__(self, destination: Origin, *, refusal: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
        self.destination = destination
        self.refusal = refusal
        self.tls = tls
        self.heads: list[bytes] = []
        self._conversations: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ScriptedProxy:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=self.tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.create_task(self._converse(reader, writer))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self.refusal:
                writer.write(self.refusal)
                await writer.drain()
            else:
                await self._lead(head, reader, writer)
        finally:
            writer.transport.abort()

    async def _lead(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward = await asyncio.open_connection("127.0.0.1", self.destination.port)
        try:
            if head.startswith(b"CONNECT "):
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                onward.write(head)
            both = [asyncio.create_task(pump(reader, onward)), asyncio.create_task(pump(onward_reader, writer))]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pumping in both:
                    pumping.cancel()
                await asyncio.gather(*both, return_exceptions=True)
        finally:
            onward.transport.abort()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def fields_of(head: bytes) -> dict[bytes, bytes]:
    lines = head.split(b"\r\n")[1:-2]
    return {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}


async def test_plain_requests_name_their_whole_url_to_the_proxy(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    origin.otherwise(echo())
    async with ScriptedProxy(origin) as proxy:
        relayed(**place(origin, outbound_proxy=proxy.url, base_path=b"/v1"))
        for _ in range(2):
            answer = await caller.get(b"/relay/o/a%2F//b?c=%zz")
            assert answer.status == 200
            line = b"GET http://%b:%d/v1/a%%2F//b?c=%%zz HTTP/1.1" % (NAME.encode(), origin.port)
            assert json.loads(answer.data)["line"].encode() == line
        assert len(proxy.heads) == 1
        assert b"proxy-authorization" not in fields_of(proxy.heads[0])
    assert (await origin.next_request()).values(b"host") == [b"%b:%d" % (NAME.encode(), origin.port)]


async def test_tls_goes_through_a_tunnel_to_the_upstream_itself(
    secure: Origin, relayed: Relayed, caller: Caller, names: Names, bundle: str
) -> None:
    names.answers.clear()  # the proxy resolves the name
    secure.on(b"/a", echo())
    async with ScriptedProxy(secure) as proxy:
        relayed(**place(secure, outbound_proxy=proxy.url, ca_bundle=bundle))
        for _ in range(2):
            answer = await caller.get(b"/relay/o/a", [(b"x-a", b"for the upstream alone")])
            assert json.loads(answer.data)["line"] == "GET /a HTTP/1.1"
        (head,) = proxy.heads
        authority = b"%b:%d" % (NAME.encode(), secure.port)
        assert head.startswith(b"CONNECT " + authority + b" HTTP/1.1\r\n")
        assert fields_of(head)[b"host"] == authority
        assert b"x-a" not in fields_of(head)
    assert (await secure.next_request()).server_name == NAME


@pytest.mark.parametrize("target_host", [True, False])
async def test_each_target_is_asked_for_through_the_proxy(
    origin: Origin, secure: Origin, relayed: Relayed, caller: Caller, bundle: str, target_host: bool
) -> None:
    """Plain requests name the target in their URL, which is where proxies take `Host` from; tunnels lead to it."""
    hosts = [b"a.example:80", b"b.example:80"]
    listed = tuple(Target(host=host[:9].decode(), port=80, authority=host) for host in hosts)
    for destination in (origin, secure):
        destination.otherwise(reply())
        async with ScriptedProxy(destination) as proxy:
            fields = place(destination, outbound_proxy=proxy.url, ca_bundle=bundle, verify_tls=not target_host)
            relayed(**fields, target_host=target_host, balancing=Balancing.ROUND_ROBIN, listed_targets=listed)
            for _ in hosts:
                assert (await caller.get(b"/relay/o/a")).status == 200
            start = b"CONNECT %b HTTP/1.1\r\n" if destination is secure else b"GET http://%b/a HTTP/1.1\r\n"
            assert [head.startswith(start % host) for head, host in zip(proxy.heads, hosts, strict=True)] == [True] * 2
        own = b"%b:%d" % (NAME.encode(), destination.port)
        assert [request.values(b"host")[0] for request in destination.requests] == (hosts if target_host else [own] * 2)
    names = ["a.example", "b.example"] if target_host else [NAME] * 2
    assert [request.server_name for request in secure.requests] == names


async def test_the_tunnel_does_not_vouch_for_the_certificate(secure: Origin, relayed: Relayed, caller: Caller) -> None:
    async with ScriptedProxy(secure) as proxy:
        relayed(**place(secure, outbound_proxy=proxy.url))
        assert problem((await caller.get(b"/relay/o/a")).data) == "tls-certificate"


async def test_credentials_are_for_the_proxy_alone(
    origin: Origin, secure: Origin, relayed: Relayed, caller: Caller, bundle: str
) -> None:
    origin.otherwise(echo())
    expected = b"Basic " + base64.b64encode("us er:pä@ss".encode())
    for destination in (origin, secure):
        async with ScriptedProxy(destination) as proxy:
            url = f"http://us%20er:p%C3%A4%40ss@127.0.0.1:{proxy.port}"
            relayed(**place(destination, outbound_proxy=url, ca_bundle=bundle))
            assert (await caller.get(b"/relay/o/a", [(b"Proxy-Authorization", b"Basic forged")])).status == 200
            assert fields_of(proxy.heads[0])[b"proxy-authorization"] == expected
            assert proxy.heads[0].lower().count(b"proxy-authorization") == 1
    assert (await secure.next_request()).values(b"proxy-authorization") == []


@pytest.mark.parametrize(
    "refusal",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_tunnel_that_is_refused_is_the_proxys_fault(
    secure: Origin, relayed: Relayed, caller: Caller, logged: Logged, refusal: bytes
) -> None:
    async with ScriptedProxy(secure, refusal=refusal) as proxy:
        relayed(**place(secure, outbound_proxy=f"http://user:hunter2@127.0.0.1:{proxy.port}"))
        answer = await caller.get(b"/relay/o/a")
    assert (answer.status, problem(answer.data)) == (502, "outbound-proxy")
    line = await logged.next()
    assert line["detail"] == f"status {int(refusal.split()[1])}"
    assert "hunter2" not in json.dumps(line)


async def test_a_proxy_that_wants_other_credentials_is_not_the_callers_business(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
    async with ScriptedProxy(origin, refusal=refusal) as proxy:
        relayed(**place(origin, outbound_proxy=proxy.url))
        answer = await caller.get(b"/relay/o/a")
    assert (answer.status, problem(answer.data)) == (502, "outbound-proxy")


@pytest.mark.parametrize("refusal", [b"", b"SSH-2.0-OpenSSH_9.2\r\n\r\n"])
async def test_a_proxy_that_does_not_answer_as_one_is_at_fault(
    secure: Origin, relayed: Relayed, caller: Caller, refusal: bytes
) -> None:
    async with serving_bytes(refusal) as port:
        relayed(**place(secure, outbound_proxy=f"http://127.0.0.1:{port}"))
        assert problem((await caller.get(b"/relay/o/a")).data) == "outbound-proxy"


async def test_a_proxy_that_is_not_there_is_at_fault(
    secure: Origin, origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    with refusing_port() as port:
        for destination in (origin, secure):
            relayed(**place(destination, outbound_proxy=f"http://127.0.0.1:{port}"))
            assert problem((await caller.get(b"/relay/o/a")).data) == "outbound-proxy"
    relayed(**place(secure, outbound_proxy="http://proxy.invalid:3128"))
    assert problem((await caller.get(b"/relay/o/a")).data) == "outbound-proxy"


async def test_the_proxys_address_is_guarded_too(
    origin: Origin, secure: Origin, relayed: Relayed, caller: Caller, names: Names, logged: Logged
) -> None:
    names.answers["proxy.example"] = [["127.0.0.1"]]
    async with ScriptedProxy(origin) as proxy:
        for destination in (origin, secure):
            for host in ("127.0.0.1", "proxy.example", "[::1]"):
                relayed(**place(destination, outbound_proxy=f"http://{host}:{proxy.port}", allowed_networks=()))
                assert problem((await caller.get(b"/relay/o/a")).data) == "egress-refused"
                assert "loopback" in (await logged.next())["detail"]
        assert proxy.heads == []


async def test_an_address_is_guarded_behind_a_proxy_as_well(
    origin: Origin, relayed: Relayed, caller: Caller, logged: Logged
) -> None:
    async with ScriptedProxy(origin) as proxy:
        for host in ("10.0.0.1", "::ffff:10.0.0.1"):
            for scheme in ("http", "https"):
                relayed(scheme=scheme, host=host, outbound_proxy=proxy.url)
                assert problem((await caller.get(b"/relay/o/a")).data) == "egress-refused"
                assert (await logged.next())["detail"].endswith("10.0.0.1 is private (10.0.0.0/8)") or ":" in host
        assert proxy.heads == []


async def test_a_proxy_may_be_spoken_to_in_tls(
    origin: Origin, relayed: Relayed, caller: Caller, names: Names, authority: trustme.CA, bundle: str
) -> None:
    names.answers["proxy.example"] = [["127.0.0.1"]]
    origin.otherwise(reply(200, body=b"through"))
    async with ScriptedProxy(origin, tls=serving_context(authority, "proxy.example")) as proxy:
        relayed(**place(origin, outbound_proxy=f"https://proxy.example:{proxy.port}", ca_bundle=bundle))
        assert (await caller.get(b"/relay/o/a")).data == b"through"
        relayed(**place(origin, outbound_proxy=f"https://proxy.example:{proxy.port}"))
        assert (await caller.get(b"/relay/o/a")).status == 502


async def test_the_environments_proxies_do_not_count(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    relayed()
    origin.on(b"/a", reply(200))
    assert (await caller.get(b"/relay/o/a")).status == 200
