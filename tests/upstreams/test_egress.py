"""The guard itself: what it resolves, judges and opens, and the TLS settings that go with it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from relay.catalog import Upstream
from relay.rules.addresses import Verdict
from relay.upstreams import egress
from relay.upstreams.egress import EgressDenied, Guard, is_own_address, judge_address, tls_context

PUBLIC = "93.184.216.34"
OPEN = Guard((ip_network("127.0.0.0/8"), ip_network("fd00::/8")))


def answer(*addresses: str) -> Any:
    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return getaddrinfo


@pytest.mark.parametrize(
    ("answers", "resolved"),
    [
        ([PUBLIC], [PUBLIC]),
        (["127.0.0.1", PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC]),
        (["fd00::1%eth0", "2606:4700::1111"], ["fd00::1%eth0", "2606:4700::1111"]),
    ],
)
async def test_a_name_resolves_to_its_addresses_in_order(
    monkeypatch: pytest.MonkeyPatch, answers: list[str], resolved: list[str]
) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer(*answers))
    assert await OPEN.resolve("a.example", 443) == resolved


@pytest.mark.parametrize("answers", [["10.0.0.1"], [PUBLIC, "10.0.0.1"], ["10.0.0.1", PUBLIC], ["::ffff:10.0.0.1"]])
async def test_one_refused_address_refuses_the_name(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer(*answers))
    with pytest.raises(EgressDenied) as refusal:
        await OPEN.resolve("a.example", 443)
    assert refusal.value.errno == errno.EACCES
    assert refusal.value.judgement.verdict is Verdict.PRIVATE
    assert refusal.value.judgement.network == "10.0.0.0/8"


async def test_no_address_is_a_failed_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer())
    with pytest.raises(socket.gaierror):
        await OPEN.resolve("a.example", 443)


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "0.0.0.0", "::ffff:10.0.0.1"]
)
def test_no_socket_is_made_for_a_refused_address(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    def make(*_: object) -> socket.socket:
        raise AssertionError("a socket was made")

    with monkeypatch.context() as patched:
        # Own addresses are looked for with a socket as well: none of these is one.
        patched.setattr(egress, "is_own_address", lambda _: False)
        patched.setattr(socket, "socket", make)
        with pytest.raises(EgressDenied):
            OPEN.open_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)))


def test_a_socket_for_an_allowed_address_is_unconnected() -> None:
    with OPEN.open_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))) as opened:
        assert opened.type == socket.SOCK_STREAM
        with pytest.raises(OSError, match="not connected"):
            opened.getpeername()


def test_the_machines_own_addresses_are_known() -> None:
    assert is_own_address(ip_address("127.0.0.1"))
    assert is_own_address(ip_address("127.8.8.8"))
    assert not is_own_address(ip_address("192.0.2.77"))
    assert not is_own_address(ip_address("2001:db8::77"))


def test_a_machine_that_binds_any_address_still_knows_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "_can_bind", lambda _: True)
    assert is_own_address(ip_address("127.0.0.1"))
    assert not is_own_address(ip_address("192.0.2.77"))
    assert not is_own_address(ip_address("2001:db8::77"))


def test_an_address_of_which_nothing_can_be_learned_does_not_pass_for_anothers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a descriptor the kernel cannot be asked, and the address may be the machine's own."""

    def no_socket(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", no_socket)
    with pytest.raises(OSError, match="Too many open files"):
        Guard().check(PUBLIC)


@pytest.mark.parametrize("carrier", ["{0}", "::ffff:{0}", "64:ff9b::{0}"])
def test_a_public_address_of_the_machine_itself_is_refused_unless_opened(
    monkeypatch: pytest.MonkeyPatch, carrier: str
) -> None:
    monkeypatch.setattr(egress, "is_own_address", lambda address: str(address) == PUBLIC)
    address = ip_address(carrier.format(PUBLIC))
    judgement = judge_address(address)
    assert (judgement.verdict, judgement.allowed) == (Verdict.OWN, False)
    assert judge_address(address, allowed_networks=(ip_network(PUBLIC),)).allowed
    assert judge_address(ip_address("93.184.216.35")).allowed


def upstream(**fields: Any) -> Upstream:
    place = {"scheme": "https", "host": "a.example", "port": 443, "authority": b"a.example", "base_path": b""}
    return Upstream(slug="o", revision=1, **place, **fields)


def test_tls_is_verified_and_modern_unless_told_otherwise() -> None:
    context = tls_context(upstream())
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    unverified = tls_context(upstream(verify_tls=False))
    assert unverified.verify_mode is ssl.CERT_NONE
    assert not unverified.check_hostname


def test_a_bundle_takes_the_place_of_the_systems() -> None:
    bundle = trustme.CA().cert_pem.bytes().decode()
    assert len(tls_context(upstream(ca_bundle=bundle)).get_ca_certs()) == 1


def test_a_system_without_certificates_gets_certifis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: SimpleNamespace(cafile=None, capath=None))
    assert len(tls_context(upstream()).get_ca_certs()) > 50
