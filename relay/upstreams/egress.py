"""The guard on the way out: no socket is opened to an address that is not judged first.

Theory of operation. What a name resolved to goes through `check_all`, and the name is refused if any of its addresses
is. The connection is then made to one of those very addresses, never to the name, through `open_socket`, which judges
the address once more as the last thing before the socket exists. There is no second look-up between check and connect
that an attacker's DNS could answer differently. TLS keeps the name for SNI and verification.
What is public and what is not is `relay.rules.addresses`; which of the machine's own addresses must not be called is
asked of the kernel here.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeVar, cast, overload

import certifi

from relay.catalog import Upstream
from relay.observing.descriptors import USED_UP
from relay.rules.addresses import Judgement, carried_addresses, judge
from relay.rules.credentials import ClientCertificate

Address = IPv4Address | IPv6Address
SocketAddress = tuple[str, int] | tuple[str, int, int, int]
Context = TypeVar("Context", bound=ssl.SSLContext)
AddrInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, SocketAddress]


class EgressDenied(OSError):
    """An address the guard refuses. An OSError, so that connecting code treats it as a failed attempt."""

    def __init__(self, address: Address, judgement: Judgement) -> None:
        super().__init__(errno.EACCES, f"{address} is {judgement.verdict} ({judgement.network})")
        self.judgement = judgement


@dataclass(frozen=True, slots=True)
class Guard:
    """The egress rules of one upstream."""

    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()

    async def resolve(self, host: str, port: int, family: int = socket.AF_UNSPEC) -> list[str]:
        """The addresses of `host`, all allowed. Raises `EgressDenied`, or `socket.gaierror` if there is none."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        return self.check_all(cast("list[AddrInfo]", found))

    def check_all(self, found: Iterable[AddrInfo]) -> list[str]:
        """The addresses in what a name resolved to. Raises `EgressDenied` when any of them is not allowed."""
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        for text in addresses:
            self.check(text)
        return addresses

    def check(self, text: str) -> Judgement:
        """The judgement on one address in text form; raises `EgressDenied` when it is not allowed."""
        # A scope id names an interface, not another address.
        address = ip_address(text.partition("%")[0])
        judgement = judge_address(address, allowed_networks=self.allowed_networks)
        if not judgement.allowed:
            raise EgressDenied(address, judgement)
        return judgement

    def open_socket(self, info: AddrInfo) -> socket.socket:
        """An unconnected socket for this address, or `EgressDenied`. The only place where the relay makes sockets."""
        family, kind, protocol, _, where = info
        self.check(str(where[0]))
        return socket.socket(family, kind, protocol)


def judge_address(address: Address, *, allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()) -> Judgement:
    """`relay.rules.addresses.judge`, knowing which addresses are this machine's own."""
    is_own = any(is_own_address(carried) for carried in carried_addresses(address))
    return judge(address, allowed_networks=allowed_networks, is_own=is_own)


def is_own_address(address: Address) -> bool:
    """Whether this machine has `address`. The kernel is asked; no packet is sent."""
    if not _can_bind(_NOBODYS[address.version]):
        return _can_bind(address)
    # `ip_nonlocal_bind` is on, as with keepalived: any address can be bound, but only one's own is reached from itself.
    try:
        with socket.socket(_FAMILIES[address.version], socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return ip_address(str(probe.getsockname()[0]).partition("%")[0]) == address
    except OSError as problem:
        _require_descriptors(problem)
        return False


def _can_bind(address: Address) -> bool:
    try:
        with socket.socket(_FAMILIES[address.version], socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError as problem:
        _require_descriptors(problem)
        return False
    return True


def _require_descriptors(problem: OSError) -> None:
    """Where none is left the kernel was not asked, and nothing is known of an address: it must not pass for another's.
    Raises `problem` then."""
    if problem.errno in USED_UP:
        raise problem


_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_NOBODYS: dict[int, Address] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("2001:db8::1")}
"""Addresses for documentation: no machine has them."""


@overload
def tls_context(upstream: Upstream) -> ssl.SSLContext: ...
@overload
def tls_context(upstream: Upstream, kind: type[Context]) -> Context: ...
def tls_context(upstream: Upstream, kind: type[ssl.SSLContext] = ssl.SSLContext) -> ssl.SSLContext:
    """The TLS settings of one upstream: its CA bundle, else the system's, else certifi's. Offers HTTP/1.1 by ALPN.

    Reads files: about 10 ms, once per pool. `kind` is the class to make it of.
    """
    context = kind(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not upstream.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif upstream.ca_bundle:
        context.load_verify_locations(cadata=upstream.ca_bundle)
    else:
        paths = ssl.get_default_verify_paths()
        if paths.cafile or paths.capath:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            context.load_verify_locations(cafile=certifi.where())
    return context


def show_certificate(context: ssl.SSLContext, certificate: ClientCertificate) -> None:
    """Have `context` show a client certificate to who asks for one. Raises `ssl.SSLError` when it is none."""
    # OpenSSL's files are the one way that Python has. The key in it is encrypted, and the file is gone at once.
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate.pem)
        file.flush()
        context.load_cert_chain(file.name, password=certificate.passphrase)
