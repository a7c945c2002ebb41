"""Which addresses count as public, and what an opened network opens."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.addresses import Verdict, judge, parse_networks, peer_block


def teredo(*, server: str, client: str) -> str:
    number = 0x20010000 << 96 | int(IPv4Address(server)) << 64 | (int(IPv4Address(client)) ^ 0xFFFFFFFF)
    return str(IPv6Address(number))


@pytest.mark.parametrize(
    ("address", "verdict", "network"),
    [
        ("8.8.8.8", "public", "0.0.0.0/0"),
        ("9.255.255.255", "public", "0.0.0.0/0"),
        ("11.0.0.0", "public", "0.0.0.0/0"),
        ("192.0.1.0", "public", "0.0.0.0/0"),
        ("0.0.0.0", "unspecified", "0.0.0.0/8"),
        ("0.1.2.3", "unspecified", "0.0.0.0/8"),
        ("10.0.0.0", "private", "10.0.0.0/8"),
        ("10.255.255.255", "private", "10.0.0.0/8"),
        ("100.63.255.255", "public", "0.0.0.0/0"),
        ("100.64.0.0", "shared", "100.64.0.0/10"),
        ("100.127.255.255", "shared", "100.64.0.0/10"),
        ("100.128.0.0", "public", "0.0.0.0/0"),
        ("127.0.0.1", "loopback", "127.0.0.0/8"),
        ("127.255.255.255", "loopback", "127.0.0.0/8"),
        ("169.254.169.254", "link-local", "169.254.0.0/16"),
        ("172.15.255.255", "public", "0.0.0.0/0"),
        ("172.16.0.0", "private", "172.16.0.0/12"),
        ("172.31.255.255", "private", "172.16.0.0/12"),
        ("172.32.0.0", "public", "0.0.0.0/0"),
        ("192.0.0.192", "reserved", "192.0.0.0/24"),
        ("192.0.2.1", "documentation", "192.0.2.0/24"),
        ("192.88.99.1", "reserved", "192.88.99.0/24"),
        ("192.168.1.1", "private", "192.168.0.0/16"),
        ("198.18.0.1", "benchmarking", "198.18.0.0/15"),
        ("198.19.255.255", "benchmarking", "198.18.0.0/15"),
        ("198.51.100.1", "documentation", "198.51.100.0/24"),
        ("203.0.113.1", "documentation", "203.0.113.0/24"),
        ("224.0.0.1", "multicast", "224.0.0.0/4"),
        ("239.255.255.255", "multicast", "224.0.0.0/4"),
        ("240.0.0.1", "reserved", "240.0.0.0/4"),
        ("255.255.255.255", "broadcast", "255.255.255.255/32"),
        ("2606:4700::1", "public", "2000::/3"),
        ("::", "unspecified", "::/128"),
        ("::1", "loopback", "::1/128"),
        ("64:ff9b:1::1", "private", "64:ff9b:1::/48"),
        ("100::1", "reserved", "100::/64"),
        ("100:0:0:1::1", "reserved", "100:0:0:1::/64"),
        ("2001:1::1", "reserved", "2001::/23"),
        ("2001:2::1", "benchmarking", "2001:2::/48"),
        ("2001:10::1", "reserved", "2001::/23"),
        ("2001:200::1", "public", "2000::/3"),
        ("2001:db8::1", "documentation", "2001:db8::/32"),
        ("3fff::1", "documentation", "3fff::/20"),
        ("3fff:1000::1", "public", "2000::/3"),
        ("4000::1", "reserved", "::/0"),
        ("5f00::1", "reserved", "5f00::/16"),
        ("1fff::1", "reserved", "::/0"),
        ("::ffff:0:8.8.8.8", "reserved", "::/0"),
        ("fd00:ec2::254", "private", "fc00::/7"),
        ("fe80::1", "link-local", "fe80::/10"),
        ("fe80::1%eth0", "link-local", "fe80::/10"),
        ("fec0::1", "private", "fec0::/10"),
        ("ff02::1", "multicast", "ff00::/8"),
        # An IPv4 address inside decides.
        ("::ffff:8.8.8.8", "public", "0.0.0.0/0"),
        ("::ffff:127.0.0.1", "loopback", "127.0.0.0/8"),
        ("::ffff:0.0.0.0", "unspecified", "0.0.0.0/8"),
        ("::ffff:255.255.255.255", "broadcast", "255.255.255.255/32"),
        ("::2", "unspecified", "0.0.0.0/8"),
        ("::10.0.0.1", "private", "10.0.0.0/8"),
        ("::8.8.8.8", "public", "0.0.0.0/0"),
        ("64:ff9b::169.254.169.254", "link-local", "169.254.0.0/16"),
        ("64:ff9b::8.8.8.8", "public", "0.0.0.0/0"),
        ("2002:a00:1::1", "private", "10.0.0.0/8"),
        ("2002:808:808::1", "public", "0.0.0.0/0"),
        (teredo(server="8.8.8.8", client="9.9.9.9"), "public", "0.0.0.0/0"),
        (teredo(server="8.8.8.8", client="192.168.0.1"), "private", "192.168.0.0/16"),
        (teredo(server="127.0.0.1", client="9.9.9.9"), "loopback", "127.0.0.0/8"),
        (teredo(server="224.0.0.1", client="10.0.0.1"), "multicast", "224.0.0.0/4"),
        ("2606:4700::5efe:10.0.0.1", "private", "10.0.0.0/8"),
        ("2606:4700::200:5efe:127.0.0.1", "loopback", "127.0.0.0/8"),
        ("2606:4700::200:5efe:8.8.8.8", "public", "2000::/3"),
        ("2606:4700::100:5efe:10.0.0.1", "public", "2000::/3"),
        ("fe80::5efe:8.8.8.8", "link-local", "fe80::/10"),
        ("fd00::5efe:0.0.0.0", "unspecified", "0.0.0.0/8"),
        ("2002:808:808::5efe:10.0.0.1", "private", "10.0.0.0/8"),
    ],
)
def test_an_address_is_judged_by_the_registries(address: str, verdict: str, network: str) -> None:
    judgement = judge(ip_address(address))
    assert (judgement.verdict, judgement.network) == (verdict, network)
    assert judgement.allowed == (verdict == "public")


@pytest.mark.parametrize(
    ("address", "networks", "allowed"),
    [
        ("10.0.0.1", "10.0.0.0/8", True),
        ("10.0.0.1", "fd00::/8, 10.0.0.0/24", True),
        ("10.0.1.1", "10.0.0.0/24", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("255.255.255.254", "240.0.0.0/4", True),
        ("8.8.8.8", "10.0.0.0/8", True),
        ("fd00::1", "fd00::/8", True),
        ("fd00::1", "10.0.0.0/8", False),
        ("::ffff:10.0.0.1", "10.0.0.0/8", True),
        ("::ffff:10.0.0.1", "::ffff:0:0/96", True),
        ("::ffff:127.0.0.1", "10.0.0.0/8", False),
        ("64:ff9b::10.0.0.1", "10.0.0.0/8", True),
        ("2002:a00:1::1", "2002:a00::/24", True),
        (teredo(server="10.0.0.1", client="10.0.0.2"), "10.0.0.0/8", True),
        (teredo(server="10.0.0.1", client="192.168.0.1"), "10.0.0.0/8", False),
        (teredo(server="8.8.8.8", client="192.168.0.1"), "192.168.0.0/16", True),
        ("2606:4700::5efe:10.0.0.1", "10.0.0.0/8", True),
        ("fd00::5efe:10.0.0.1", "10.0.0.0/8", False),
        ("fd00::5efe:10.0.0.1", "10.0.0.0/8 fd00::/8", True),
        ("0.0.0.0", "0.0.0.0/0", False),
        ("255.255.255.255", "0.0.0.0/0", False),
        ("224.0.0.1", "224.0.0.0/4", False),
        ("::", "::/0", False),
        ("ff02::1", "::/0", False),
        ("::ffff:0.0.0.0", "::/0 0.0.0.0/0", False),
    ],
)
def test_an_opened_network_opens_what_it_names_and_no_more(address: str, networks: str, allowed: bool) -> None:
    judgement = judge(ip_address(address), allowed_networks=parse_networks(networks))
    assert judgement.allowed is allowed


@pytest.mark.parametrize(
    ("address", "networks", "verdict", "allowed"),
    [
        ("8.8.8.8", "", Verdict.OWN, False),
        ("8.8.8.8", "8.8.8.0/24", Verdict.OWN, True),
        ("2606:4700::1", "", Verdict.OWN, False),
        ("::ffff:8.8.8.8", "8.8.8.8", Verdict.OWN, True),
        ("127.0.0.1", "", Verdict.LOOPBACK, False),
        ("10.0.0.1", "10.0.0.0/8", Verdict.PRIVATE, True),
        ("0.0.0.0", "0.0.0.0/0", Verdict.UNSPECIFIED, False),
    ],
)
def test_an_own_address_is_not_public(address: str, networks: str, verdict: Verdict, allowed: bool) -> None:
    judgement = judge(ip_address(address), allowed_networks=parse_networks(networks), is_own=True)
    assert (judgement.verdict, judgement.allowed) == (verdict, allowed)


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("", []),
        (" ,\n", []),
        ("10.0.0.0/8", ["10.0.0.0/8"]),
        ("10.0.0.0/8, fd00::/8\n192.168.1.1\t::1", ["10.0.0.0/8", "fd00::/8", "192.168.1.1/32", "::1/128"]),
        ("10.0.0.0/8,10.0.0.0/8 ::1,::1/128", ["10.0.0.0/8", "::1/128"]),
        ("0.0.0.0/0", ["0.0.0.0/0"]),
    ],
)
def test_networks_are_split_and_kept_in_order(text: str, networks: list[str]) -> None:
    assert parse_networks(text) == tuple(ip_network(cidr) for cidr in networks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1/8", "10.0.0.1/8 has host bits set: write 10.0.0.0/8"),
        ("::1 fd00::1/8", "fd00::1/8 has host bits set: write fd00::/8"),
        *(
            (
                wrong,
                f"{wrong} is not a network: write a CIDR such as 10.1.0.0/16 or fd00:1::/64, or a single IP address",
            )
            for wrong in (
                "example.com",
                "10.0.0.0/33",
                "10.0.0/8",
                "10.0.0.0/",
                "10.0.0.0/8/8",
                "10.0.0.0/255.0.0.0",
                "10.0.0.0/0.255.255.255",
                "fe80::1%eth0",
                "010.0.0.1",
                "0x7f.0.0.1",
                "1",
            )
        ),
    ],
)
def test_a_wrong_network_is_named_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"host bits|not a network") as caught:
        parse_networks(text)
    assert str(caught.value) == message


@given(st.ip_addresses(v=4))
def test_every_spelling_of_an_ipv4_address_in_ipv6_gets_its_verdict(address: IPv4Address) -> None:
    bare = judge(address)
    number = int(address)
    assert judge(IPv6Address(0xFFFF << 32 | number)) == bare
    assert judge(IPv6Address(0x64FF9B << 96 | number)) == bare
    assert judge(IPv6Address(0x2002 << 112 | number << 80)) == bare
    assert judge(ip_address(teredo(server="8.8.8.8", client=str(address)))) == bare
    assert judge(IPv6Address(0x26064700 << 96 | 0x5EFE << 32 | number)).verdict == bare.verdict


@given(st.ip_addresses(v=6))
def test_only_global_unicast_or_a_carried_public_address_is_public(address: IPv6Address) -> None:
    if judge(address).allowed:
        carriers = ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "2000::/3")
        assert any(address in ip_network(carrier) for carrier in carriers)


@given(st.ip_addresses(), st.booleans())
def test_opening_everything_opens_all_but_what_is_never_allowed(address: IPv4Address | IPv6Address, own: bool) -> None:
    judgement = judge(address, allowed_networks=parse_networks("0.0.0.0/0 ::/0"), is_own=own)
    assert judgement.allowed == (judgement.verdict not in ("unspecified", "multicast", "broadcast"))


@given(st.lists(st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(v=6)))
def test_single_addresses_round_trip(addresses: list[IPv4Address | IPv6Address]) -> None:
    networks = parse_networks(", ".join(map(str, addresses)))
    assert networks == tuple(dict.fromkeys(ip_network(address) for address in addresses))


@pytest.mark.parametrize(
    ("address", "block"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_peer_is_its_ipv4_address_or_its_ipv6_network(address: str, block: str) -> None:
    assert peer_block(address) == block
