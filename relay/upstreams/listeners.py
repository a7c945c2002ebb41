"""The sockets that the relay itself listens on: an upstream that leads to one of them leads back.

Whoever runs the server tells them once, at the start of a worker. A connection is judged by address and port just
before it would be made, for `Via` only tells of loops that went around once, and some upstreams drop it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address

from relay.rules.addresses import carried_addresses
from relay.upstreams.egress import Address, SocketAddress, is_own_address

_own: frozenset[tuple[Address, int]] = frozenset()


def tell(sockets: Iterable[socket.socket]) -> None:
    """These are the server's. Those of the file system are left out: nobody connects to them by an address."""
    global _own
    own: set[tuple[Address, int]] = set()
    for listener in sockets:
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            address, port = _place(listener.getsockname())
            own.add((address, port))
            takes_both = listener.family == socket.AF_INET6 and not listener.getsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
            )
            if address == _ANY[6] and takes_both:
                own.add((_ANY[4], port))
    _own = frozenset(own)


def is_own(where: SocketAddress) -> bool:
    """Whether a connection to there would reach the relay. The kernel is asked only about a port of ours that is open
    at all of the machine's addresses."""
    address, port = _place(where)
    listening = {own for own, its_port in _own if its_port == port}
    return bool(listening) and any(
        one in listening or (_ANY[one.version] in listening and is_own_address(one))
        for one in carried_addresses(address)
    )


def _place(where: SocketAddress) -> tuple[Address, int]:
    address = ip_address(str(where[0]).partition("%")[0])
    # A socket for both families can be bound to one address of IPv4.
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped or address, where[1]


_ANY: dict[int, Address] = {4: ip_address("0.0.0.0"), 6: ip_address("::")}  # noqa: S104 - nothing is bound to it
"""A socket bound to it listens at all addresses of its family."""
