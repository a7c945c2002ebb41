"""Judges the addresses that a connection would go to: public or not, and if not, whether an admin opened their network.

The tables are the IANA special-purpose registries (IPv4 and IPv6, RFC 6890) written out, because what `ipaddress` calls
private or global changed between Python releases. An IPv6 address that carries an IPv4 address is judged as that
address: a translator or tunnel on the way would deliver to it. `relay.upstreams.egress` asks here for every address,
just before it connects to that very address.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Verdict(enum.StrEnum):
    """What kind of place an address is. The value is the text in logs and metrics."""

    PUBLIC = "public"
    LOOPBACK = "loopback"
    PRIVATE = "private"
    LINK_LOCAL = "link-local"
    SHARED = "shared"
    MULTICAST = "multicast"
    BROADCAST = "broadcast"
    UNSPECIFIED = "unspecified"
    DOCUMENTATION = "documentation"
    BENCHMARKING = "benchmarking"
    RESERVED = "reserved"
    OWN = "own-address"


# No upstream lives there, whatever networks an admin opens. 0.0.0.0 reaches the machine itself.
_NEVER_ALLOWED = frozenset({Verdict.UNSPECIFIED, Verdict.MULTICAST, Verdict.BROADCAST})

# In both tables the narrower network stands before the wider one that holds it, and the last line holds everything.
_IPV4: tuple[tuple[IPv4Network, Verdict], ...] = tuple(
    (IPv4Network(cidr), verdict)
    for cidr, verdict in (
        ("0.0.0.0/8", Verdict.UNSPECIFIED),  # "this network", RFC 791
        ("10.0.0.0/8", Verdict.PRIVATE),
        ("100.64.0.0/10", Verdict.SHARED),  # carrier-grade NAT, RFC 6598
        ("127.0.0.0/8", Verdict.LOOPBACK),
        ("169.254.0.0/16", Verdict.LINK_LOCAL),  # the metadata services of clouds
        ("168.63.129.16/32", Verdict.RESERVED),  # Azure's WireServer, at every machine there: a metadata service
        ("172.16.0.0/12", Verdict.PRIVATE),
        ("192.0.0.0/24", Verdict.RESERVED),  # IETF protocol assignments
        ("192.0.2.0/24", Verdict.DOCUMENTATION),
        ("192.88.99.0/24", Verdict.RESERVED),  # 6to4 relay anycast, deprecated by RFC 7526
        ("192.168.0.0/16", Verdict.PRIVATE),
        ("198.18.0.0/15", Verdict.BENCHMARKING),
        ("198.51.100.0/24", Verdict.DOCUMENTATION),
        ("203.0.113.0/24", Verdict.DOCUMENTATION),
        ("224.0.0.0/4", Verdict.MULTICAST),
        ("255.255.255.255/32", Verdict.BROADCAST),
        ("240.0.0.0/4", Verdict.RESERVED),
        ("0.0.0.0/0", Verdict.PUBLIC),
    )
)
_IPV6: tuple[tuple[IPv6Network, Verdict], ...] = tuple(
    (IPv6Network(cidr), verdict)
    for cidr, verdict in (
        ("::/128", Verdict.UNSPECIFIED),
        ("::1/128", Verdict.LOOPBACK),
        ("64:ff9b:1::/48", Verdict.PRIVATE),  # locally used translation, RFC 8215
        ("100::/64", Verdict.RESERVED),  # discard-only
        ("100:0:0:1::/64", Verdict.RESERVED),  # dummy prefix, RFC 9780
        ("2001:2::/48", Verdict.BENCHMARKING),
        ("2001::/23", Verdict.RESERVED),  # IETF protocol assignments: ORCHID, anycast services, drone ids
        ("2001:db8::/32", Verdict.DOCUMENTATION),
        ("3fff::/20", Verdict.DOCUMENTATION),  # RFC 9637
        ("5f00::/16", Verdict.RESERVED),  # segment routing SIDs, RFC 9602
        ("fc00::/7", Verdict.PRIVATE),  # unique local
        ("fe80::/10", Verdict.LINK_LOCAL),
        ("fec0::/10", Verdict.PRIVATE),  # site-local, deprecated by RFC 3879
        ("ff00::/8", Verdict.MULTICAST),
        ("2000::/3", Verdict.PUBLIC),  # the only global unicast space handed out so far
        ("::/0", Verdict.RESERVED),
    )
)

_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291 section 2.5.5.2
_COMPATIBLE = IPv6Network("::/96")  # RFC 4291 section 2.5.5.1
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052 section 2.1
_6TO4 = IPv6Network("2002::/16")  # RFC 3056 section 2
_TEREDO = IPv6Network("2001::/32")  # RFC 4380 section 4
# RFC 5214 section 6.1: 00-00-5E-FE or 02-00-5E-FE, then the IPv4 address.
_ISATAP_MARKS = frozenset({0x00005EFE, 0x02005EFE})

_LOW_32_BITS = 0xFFFFFFFF
_SEPARATORS = re.compile(r"[\s,]+")
_ENTRY = re.compile(r"[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Judgement:
    """`allowed` alone decides: an opened network is not public, and allowed. `network` is the table's that decided."""

    verdict: Verdict
    network: str
    allowed: bool


def judge(address: Address, *, allowed_networks: tuple[Network, ...] = (), is_own: bool = False) -> Judgement:
    """Whether a connection to `address` may be made; `allowed_networks` come on top of all public addresses.

    `is_own` says that the relay itself answers at this address: a public address of its own is refused like a private
    one. Every address that is carried inside has to pass too. The verdict names the first that is not public, one that
    can never be allowed before any other.
    """
    findings = [(carried, *_look_up(carried)) for carried in carried_addresses(address)]
    suspects = [finding for finding in findings if finding[1] is not Verdict.PUBLIC]
    if not suspects and is_own:
        suspects = [(carried, Verdict.OWN, network) for carried, _, network in findings]
    if not suspects:
        return Judgement(Verdict.PUBLIC, str(findings[0][2]), allowed=True)
    _, verdict, network = next((suspect for suspect in suspects if suspect[1] in _NEVER_ALLOWED), suspects[0])
    allowed = verdict not in _NEVER_ALLOWED and (
        _lies_in(address, allowed_networks) or all(_lies_in(carried, allowed_networks) for carried, _, _ in suspects)
    )
    return Judgement(verdict, str(network), allowed)


def parse_networks(text: str) -> tuple[Network, ...]:
    """CIDRs between commas or white space, in order and without repetitions. ValueError names the first wrong one."""
    return tuple(dict.fromkeys(_parse_network(entry) for entry in _SEPARATORS.split(text) if entry))


def carried_addresses(address: Address) -> list[Address]:
    """All the addresses a packet to `address` may be delivered to: itself, or the IPv4 addresses it stands for."""
    if isinstance(address, IPv4Address):
        return [address]
    number = int(address)
    low = IPv4Address(number & _LOW_32_BITS)
    if address in _MAPPED or address in _NAT64 or (address in _COMPATIBLE and number > 1):  # :: and ::1 are themselves
        return [low]
    carried: list[Address] = [address]
    if address in _6TO4:
        carried = [IPv4Address(number >> 80 & _LOW_32_BITS)]
    elif address in _TEREDO:
        client, server = IPv4Address(number & _LOW_32_BITS ^ _LOW_32_BITS), IPv4Address(number >> 64 & _LOW_32_BITS)
        carried = [client, server]
    if number >> 32 & _LOW_32_BITS in _ISATAP_MARKS:
        carried.append(low)
    return carried


def peer_block(address: str) -> str:
    """What one peer is taken to have of addresses: its IPv4 address, or the /64 that its IPv6 address is from."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((int(parsed) >> 64 << 64, 64)))


def _look_up(address: Address) -> tuple[Verdict, Network]:
    table: tuple[tuple[Network, Verdict], ...] = _IPV4 if isinstance(address, IPv4Address) else _IPV6
    return next((verdict, network) for network, verdict in table if address in network)


def _lies_in(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)


def _parse_network(entry: str) -> Network:
    # ip_interface alone would take netmasks, inverted netmasks and IPv6 zone ids too.
    if _ENTRY.fullmatch(entry):
        try:
            interface = ip_interface(entry)
        except ValueError:
            pass
        else:
            if interface.ip != interface.network.network_address:
                raise ValueError(f"{entry} has host bits set: write {interface.network}")
            return interface.network
    raise ValueError(
        f"{entry} is not a network: write a CIDR such as 10.1.0.0/16 or fd00:1::/64, or a single IP address"
    )
