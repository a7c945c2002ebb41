"""Says who calls and tells the upstream: whose forwarding lines are believed, and which ones go out.

A caller's own lines count only when the peer at the socket is a proxy that the operator trusts; from anyone else they
are replaced, so an upstream can believe what it gets. The request id follows the same law. `headers` drops and adds the
lines; nothing here touches them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from relay.rules.addresses import parse_networks

UNKNOWN = "unknown"  # RFC 7239 section 6.2: a peer without an address, behind a Unix socket

_SCHEME = re.compile(rb"(?:http|ws)s?", re.IGNORECASE)
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PREFIX = re.compile(rb"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*/?")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:+/=-]{8,128}")
_ENTRY = re.compile(rb"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+)(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)")
_CACHED_ADDRESSES = 4096
_CACHED_LINES = 2048
_LONGEST_CACHED_HOST = 261  # a name of 255 bytes and its port; callers must not fill memory with longer ones

Lines = tuple[tuple[bytes, bytes], ...]


class TrustedProxies:
    """The proxies whose word about callers is taken. Raises ValueError naming the entry that is no CIDR."""

    def __init__(self, cidrs: Iterable[str] = ()) -> None:
        self._networks = parse_networks(" ".join(cidrs))
        self._decide = lru_cache(maxsize=_CACHED_ADDRESSES)(self._lies_within)

    def trusts(self, address: str | None) -> bool:
        """False for whatever is not an IP address. An IPv4 address mapped into IPv6 is looked at as IPv4."""
        return bool(self._networks) and address is not None and self._decide(address)

    def _lies_within(self, address: str) -> bool:
        try:
            parsed = _unmapped(ip_address(address))
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)


def client_address(peer: str | None, trusted: TrustedProxies, forwarded_for: Sequence[bytes]) -> str:
    """The nearest address that is not a trusted proxy's, walking from the peer back along X-Forwarded-For.

    Everything beyond that address, or beyond an entry that is no address, may be made up, so the walk ends there.
    """
    nearest = peer or UNKNOWN
    if not trusted.trusts(peer):
        return nearest
    for entry in reversed(b",".join(forwarded_for).split(b",")):
        address = _entry_address(entry)
        if address is None:
            break
        nearest = address
        if not trusted.trusts(address):
            break
    return nearest


def forwarded_headers(
    *,
    peer: str | None,
    peer_is_trusted: bool,
    scheme: bytes,
    host: bytes,
    prefix: bytes,
    incoming: Mapping[bytes, list[bytes]],
) -> Lines:
    """The lines for the upstream, five at most. No host is told when `host` is empty or not of the form host[:port].

    `scheme` and `host` are what the request came with, `prefix` the mount; empty, none is told. `incoming` holds the
    caller's own lines of these five names.
    """
    if not (peer_is_trusted and incoming):
        if len(host) > _LONGEST_CACHED_HOST:
            return _own_lines.__wrapped__(peer, scheme, host, prefix)
        return _own_lines(peer, scheme, host, prefix)
    address = _node(peer)
    sound_host = host if _HOST.fullmatch(host) else b""
    element = _element(address, scheme=scheme, host=sound_host)
    element = _appended(incoming, b"forwarded", element)
    address = _appended(incoming, b"x-forwarded-for", address)
    scheme = _single(incoming, b"x-forwarded-proto", _SCHEME) or scheme
    sound_host = _single(incoming, b"x-forwarded-host", _HOST) or sound_host
    prefix = _single(incoming, b"x-forwarded-prefix", _PREFIX).rstrip(b"/") + prefix
    return _lines(element, address, scheme, sound_host, prefix)


@lru_cache(maxsize=_CACHED_LINES)
def _own_lines(peer: str | None, scheme: bytes, host: bytes, prefix: bytes) -> Lines:
    """The same for every request of one caller to one upstream."""
    address = _node(peer)
    sound_host = host if _HOST.fullmatch(host) else b""
    return _lines(_element(address, scheme=scheme, host=sound_host), address, scheme, sound_host, prefix)


def _lines(element: bytes, address: bytes, scheme: bytes, host: bytes, prefix: bytes) -> Lines:
    lines = [(b"forwarded", element), (b"x-forwarded-for", address), (b"x-forwarded-proto", scheme)]
    if host:
        lines.append((b"x-forwarded-host", host))
    if prefix:
        lines.append((b"x-forwarded-prefix", prefix))
    return tuple(lines)


def request_id(incoming: bytes | None, *, trusted: bool, make: Callable[[], bytes]) -> bytes:
    """The caller's id when it is well-formed and comes from a trusted proxy, else a new one."""
    if trusted and incoming is not None and _REQUEST_ID.fullmatch(incoming):
        return incoming
    return make()


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _entry_address(entry: bytes) -> str | None:
    """An address, with a port and brackets or without; None for all else, zone ids too: those hold any text."""
    match = _ENTRY.fullmatch(entry.strip(b" \t"))
    if match is None:
        return None
    try:
        return str(_unmapped(ip_address(match[match.lastindex or 0].decode("ascii"))))
    except ValueError:
        return None


def _node(peer: str | None) -> bytes:
    return (peer or UNKNOWN).partition("%")[0].encode("ascii")  # an IPv6 zone id means nothing elsewhere


def _element(address: bytes, *, scheme: bytes, host: bytes) -> bytes:
    """One element of Forwarded (RFC 7239 section 4): a colon is no token character, so what holds one is quoted."""
    node = b'"[%b]"' % address if b":" in address else address
    if not host:
        return b"for=%b;proto=%b" % (node, scheme)
    if b":" in host:
        return b'for=%b;host="%b";proto=%b' % (node, host, scheme)
    return b"for=%b;host=%b;proto=%b" % (node, host, scheme)


def _appended(incoming: Mapping[bytes, list[bytes]], name: bytes, own: bytes) -> bytes:
    return b", ".join([*filter(None, incoming.get(name, ())), own])


def _single(incoming: Mapping[bytes, list[bytes]], name: bytes, shape: re.Pattern[bytes]) -> bytes:
    """The value when there is exactly one and it has the right shape; empty otherwise."""
    values = incoming.get(name, ())
    return values[0] if len(values) == 1 and shape.fullmatch(values[0]) else b""
