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
    inet = (one for one in sockets if one.family in (socket.AF_INET, socket.AF_INET6))
    _own = frozenset(_place(one.getsockname()) for one in inet)


def is_own(where: SocketAddress) -> bool:
    """Whether a connection to there would reach the relay. The kernel is only asked about a port of ours."""
    address, port = _place(where)
    listening = {own for own, its_port in _own if its_port == port}
    if not listening:
        return False
    meant = {address, *carried_addresses(address)}
    if any(one.is_unspecified for one in meant):
        return True  # systems take it for the machine itself
    return not listening.isdisjoint(meant) or (
        any(own.is_unspecified for own in listening) and any(is_own_address(one) for one in meant)
    )


def _place(where: SocketAddress) -> tuple[Address, int]:
    return ip_address(str(where[0]).partition("%")[0]), where[1]
