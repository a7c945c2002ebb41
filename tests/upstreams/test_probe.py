"""The probe goes out as relayed requests do, one step at a time, and stops at the first that fails."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import trustme

from relay.catalog import Target, Upstream
from relay.upstreams.probe import Step, probe, probe_all
from tests.origin import Origin, hang, raw, refusing_port, reply, serving_context

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def upstream(port: int, **fields: Any) -> Upstream:
    known = {"revision": 1, "scheme": "http", "host": "127.0.0.1", "allowed_networks": LOOPBACK, "base_path": b""}
    host = fields.get("host", "127.0.0.1")
    return Upstream(slug="a", port=port, **(known | {"authority": f"{host}:{port}".encode()} | fields))


async def steps_of(item: Upstream, path: bytes = b"/") -> dict[str, Step]:
    async with asyncio.timeout(10):
        return {step.name: step for step in await probe(item, item.targets[0], path=path)}


def failed(steps: dict[str, Step]) -> tuple[str, str]:
    """The failing step's name, which has to be the last, and its detail."""
    assert [step.succeeded for step in steps.values()] == [True] * (len(steps) - 1) + [False]
    last = list(steps.values())[-1]
    return last.name, last.detail


@pytest.mark.parametrize("status", [200, 301, 404, 405, 503])
async def test_any_status_is_an_answer(origin: Origin, status: int) -> None:
    origin.otherwise(reply(status))
    steps = await steps_of(upstream(origin.port), b"/v1/x?y=1")
    assert list(steps) == ["dns", "egress", "tcp", "http"]
    assert all(step.succeeded and step.milliseconds >= 0 for step in steps.values())
    assert steps["http"].facts == {"status": status}
    assert steps["egress"].facts["addresses"][0]["verdict"] == "loopback"
    request = await origin.next_request()
    assert (request.method, request.target) == (b"HEAD", b"/v1/x?y=1")
    assert request.values(b"host") == [b"127.0.0.1:%d" % origin.port]


async def test_informational_answers_are_read_over(origin: Origin) -> None:
    origin.otherwise(raw(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"))
    assert (await steps_of(upstream(origin.port)))["http"].facts == {"status": 204}


async def test_a_refused_address_is_never_connected_to(origin: Origin) -> None:
    name, detail = failed(await steps_of(upstream(origin.port, allowed_networks=())))
    assert name == "egress"
    assert "127.0.0.1 is loopback (127.0.0.0/8)" in detail
    assert origin.requests == []


async def test_a_name_without_address_fails_at_dns() -> None:
    name, detail = failed(await steps_of(upstream(80, host="nowhere.invalid")))
    assert name == "dns"
    assert "nowhere.invalid has no address" in detail


async def test_a_closed_port_fails_at_tcp() -> None:
    with refusing_port() as port:
        assert failed(await steps_of(upstream(port))) == (
            "tcp",
            f"port {port}: 127.0.0.1: nothing listens there (connection refused)",
        )


async def test_the_next_address_is_tried_when_one_refuses(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.otherwise(reply(200))

    async def both(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, origin.port)) for host in ("127.0.0.9", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
    steps = await steps_of(upstream(origin.port, host="two.example.com"))
    assert steps["tcp"].facts["address"] == "127.0.0.1"
    assert steps["http"].succeeded


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP/1.1"),
        (b"", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 100_000, "longer than 65536 bytes"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "switched protocols"),
    ],
)
async def test_what_is_no_answer_fails_at_http(origin: Origin, answer: bytes, words: str) -> None:
    origin.otherwise(raw(answer))
    name, detail = failed(await steps_of(upstream(origin.port)))
    assert name == "http"
    assert words in detail


async def test_silence_fails_after_the_head_time_out(origin: Origin) -> None:
    origin.otherwise(hang())
    name, detail = failed(await steps_of(upstream(origin.port, head_timeout_seconds=0.05)))
    assert name == "http"
    assert "time-out" in detail


# TLS


def bundle(authority: trustme.CA) -> str:
    return authority.cert_pem.bytes().decode()


async def test_tls_is_verified_against_the_upstream_s_bundle_and_tells_the_expiry(authority: trustme.CA) -> None:
    async with Origin(tls=serving_context(authority, "localhost")) as origin:
        origin.otherwise(reply(200))
        steps = await steps_of(upstream(origin.port, scheme="https", host="localhost", ca_bundle=bundle(authority)))
        assert list(steps) == ["dns", "egress", "tcp", "tls", "http"]
        assert steps["http"].succeeded
        assert steps["tls"].facts["version"] == "TLSv1.3"
        assert steps["tls"].facts["days_left"] > 0
        assert "days left" in steps["tls"].detail
        assert (await origin.next_request()).server_name == "localhost"


async def test_an_unknown_authority_fails_at_tls(authority: trustme.CA) -> None:
    async with Origin(tls=serving_context(authority, "localhost")) as origin:
        name, detail = failed(await steps_of(upstream(origin.port, scheme="https", host="localhost")))
        assert name == "tls"
        assert detail.startswith("the certificate is not trusted: ")


async def test_another_host_s_certificate_fails_at_tls(authority: trustme.CA) -> None:
    async with Origin(tls=serving_context(authority, "other.example.com")) as origin:
        item = upstream(origin.port, scheme="https", host="localhost", ca_bundle=bundle(authority))
        name, detail = failed(await steps_of(item))
        assert name == "tls"
        assert "ostname mismatch" in detail


async def test_without_verification_it_is_said(authority: trustme.CA) -> None:
    async with Origin(tls=serving_context(authority, "other.example.com")) as origin:
        origin.otherwise(reply(200))
        steps = await steps_of(upstream(origin.port, scheme="https", host="localhost", verify_tls=False))
        assert "NOT VERIFIED" in steps["tls"].detail
        assert steps["http"].succeeded


async def test_a_certificate_that_makes_no_sense_is_one_that_cannot_be_read(
    authority: trustme.CA, tmp_path: Path
) -> None:
    """OpenSSL takes a version that does not exist from a server that is not verified."""
    issued = authority.issue_cert("localhost")
    der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    version = b"\xa0\x03\x02\x01\x02"
    assert version in der
    pem = ssl.DER_cert_to_PEM_cert(der.replace(version, b"\xa0\x03\x02\x01\x09"))
    (tmp_path / "pem").write_text(issued.private_key_pem.bytes().decode() + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    async with Origin(tls=context) as origin:
        origin.otherwise(reply(200))
        steps = await steps_of(upstream(origin.port, scheme="https", host="localhost", verify_tls=False))
        assert steps["tls"].detail == "TLSv1.3, NOT VERIFIED, a certificate that cannot be read"
        assert steps["tls"].facts == {"version": "TLSv1.3", "verified": False}
        assert steps["http"].succeeded


async def test_what_a_certificate_calls_itself_stays_on_its_line(authority: trustme.CA) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", common_name="a\x1b[2J\nb").configure_cert(context)
    async with Origin(tls=context) as origin:
        origin.otherwise(reply(200))
        steps = await steps_of(upstream(origin.port, scheme="https", host="localhost", ca_bundle=bundle(authority)))
        assert r"CN=a\x1b[2J\nb" in steps["tls"].detail


async def test_plain_http_behind_an_https_url_fails_at_tls(origin: Origin) -> None:
    async with asyncio.timeout(10):
        server = await asyncio.start_server(_shout, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        name, detail = failed(await steps_of(upstream(port, scheme="https")))
        assert name == "tls"
        assert "TLS could not be agreed on" in detail


async def _shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await reader.read(1024)
    writer.close()


# Through a proxy


@asynccontextmanager
async def tunnel(to: int, seen: list[bytes], *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A CONNECT proxy that leads to a port, wherever it is asked to go."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
    finally:
        writer.close()


@pytest.mark.parametrize("secure_proxy", [False, True])
async def test_a_tunnel_leads_to_the_upstream_s_own_tls(authority: trustme.CA, secure_proxy: bool) -> None:
    seen: list[bytes] = []
    context = serving_context(authority, "localhost")
    async with (
        Origin(tls=context) as origin,
        tunnel(origin.port, seen, tls=context if secure_proxy else None) as port,
    ):
        origin.otherwise(reply(200))
        scheme = "https" if secure_proxy else "http"
        item = upstream(
            443,
            scheme="https",
            host="localhost",
            ca_bundle=bundle(authority),
            outbound_proxy=f"{scheme}://user:s3cret@localhost:{port}",
        )
        steps = await steps_of(item)
        assert list(steps) == ["dns", "egress", "tcp", "proxy", "tls", "http"]
        assert all(step.succeeded for step in steps.values()), steps
        assert seen[0].startswith(b"CONNECT localhost:443 HTTP/1.1\r\n")
        assert base64.b64encode(b"user:s3cret") in seen[0]
        assert not (await origin.next_request()).values(b"proxy-authorization")
        assert "s3cret" not in repr(steps)


async def test_a_proxy_that_wants_other_credentials_says_so(origin: Origin) -> None:
    origin.otherwise(reply(407))
    proxied = {"host": "a.example.com", "outbound_proxy": f"http://user:s3cret@127.0.0.1:{origin.port}"}
    name, detail = failed(await steps_of(upstream(443, scheme="https", **proxied)))
    assert (name, "407" in detail, "s3cret" in detail) == ("proxy", True, False)
    name, detail = failed(await steps_of(upstream(80, **proxied)))
    assert (name, "407" in detail, "s3cret" in detail) == ("http", True, False)


async def test_plain_requests_name_the_whole_url_to_the_proxy(origin: Origin) -> None:
    origin.otherwise(reply(200))
    item = upstream(80, host="a.example.com", outbound_proxy=f"http://user:s3cret@127.0.0.1:{origin.port}")
    steps = await steps_of(item, b"/x")
    assert list(steps) == ["dns", "egress", "tcp", "http"]
    request = await origin.next_request()
    assert request.target == b"http://a.example.com:80/x"
    assert len(request.values(b"proxy-authorization")) == 1


async def test_tls_with_the_proxy_is_a_step_of_its_own(authority: trustme.CA) -> None:
    async with Origin(tls=serving_context(authority, "localhost")) as origin:
        origin.otherwise(reply(200))
        proxied = {"host": "a.example.com", "outbound_proxy": f"https://localhost:{origin.port}"}
        steps = await steps_of(upstream(80, ca_bundle=bundle(authority), **proxied))
        assert list(steps) == ["dns", "egress", "tcp", "proxy", "http"]
        assert steps["http"].succeeded


async def test_an_address_that_a_proxy_is_told_is_judged_too(origin: Origin) -> None:
    proxied = {"host": "10.0.0.1", "outbound_proxy": f"http://127.0.0.1:{origin.port}"}
    name, detail = failed(await steps_of(upstream(80, **proxied)))
    assert name == "egress"
    assert "10.0.0.1 is private" in detail
    assert origin.requests == []


# Of several targets


def target(host: str, port: int) -> Target:
    return Target(host=host, port=port, authority=f"{host}:{port}".encode())


async def test_every_target_is_tried_whatever_becomes_of_the_others(origin: Origin) -> None:
    origin.otherwise(reply(200))
    with refusing_port() as dead:
        targets = (target("127.0.0.2", dead), target("127.0.0.1", origin.port))
        found = await probe_all(upstream(80, host="a.invalid", listed_targets=targets), path=b"/x")
    assert [(tried, steps[-1].name, steps[-1].succeeded) for tried, steps in found] == [
        (targets[0], "tcp", False),
        (targets[1], "http", True),
    ]
    request = await origin.next_request()
    assert (request.target, request.values(b"host")) == (b"/x", [b"a.invalid:80"])


@pytest.mark.parametrize("target_host", [False, True])
async def test_a_target_is_asked_for_the_upstream_s_name_or_its_own(authority: trustme.CA, target_host: bool) -> None:
    async with Origin(tls=serving_context(authority, "a.example.com", "localhost")) as origin:
        origin.otherwise(reply(200))
        item = upstream(
            443,
            scheme="https",
            host="a.example.com",
            ca_bundle=bundle(authority),
            listed_targets=(target("localhost", origin.port),),
            target_host=target_host,
        )
        assert (await steps_of(item))["http"].succeeded
        request = await origin.next_request()
    host = f"localhost:{origin.port}" if target_host else "a.example.com:443"
    assert request.server_name == ("localhost" if target_host else "a.example.com")
    assert request.values(b"host") == [host.encode()]


async def test_a_tunnel_leads_to_the_target(origin: Origin) -> None:
    origin.otherwise(reply(502))
    item = upstream(
        443,
        scheme="https",
        host="a.example.com",
        listed_targets=(target("b.example.com", 8443),),
        outbound_proxy=f"http://127.0.0.1:{origin.port}",
    )
    name, _ = failed(await steps_of(item))
    assert name == "proxy"
    assert (await origin.next_request()).target == b"b.example.com:8443"
