"""Who is believed about the caller, and what upstreams are told."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules import forwarding
from relay.rules.forwarding import TrustedProxies, client_address, forwarded_headers, request_id

TRUSTED = TrustedProxies(["10.0.0.0/8", "fd00::/8, 192.0.2.7"])
NOBODY = TrustedProxies()


@pytest.mark.parametrize(
    ("address", "is_trusted"),
    [
        ("10.1.2.3", True),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("::ffff:10.0.0.1", True),
        ("::ffff:11.0.0.1", False),
        ("fd00::1", True),
        ("fe80::1%eth0", False),
        ("::1", False),
        ("10.1", False),
        ("localhost", False),
        ("", False),
        (None, False),
    ],
)
def test_only_addresses_in_the_operators_networks_are_trusted(address: str | None, is_trusted: bool) -> None:
    assert TRUSTED.trusts(address) is is_trusted
    assert NOBODY.trusts(address) is False


def test_a_wrong_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/8 has host bits set: write 10\.0\.0\.0/8"):
        TrustedProxies(["192.0.2.0/24", "10.0.0.1/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        ("198.51.100.1", [], "198.51.100.1"),
        ("198.51.100.1", [b"203.0.113.9"], "198.51.100.1"),
        (None, [b"203.0.113.9"], "unknown"),
        ("", [b"203.0.113.9"], "unknown"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b""], "10.0.0.1"),
        ("10.0.0.1", [b"203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", [b"1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", [b"1.1.1.1, 203.0.113.9,\t10.0.0.2 "], "203.0.113.9"),
        ("10.0.0.1", [b"1.1.1.1", b"203.0.113.9", b"fd00::2"], "203.0.113.9"),
        ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [b"203.0.113.9, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [b"203.0.113.9, unknown"], "10.0.0.1"),
        ("10.0.0.1", [b"203.0.113.9,"], "10.0.0.1"),
        ("10.0.0.1", [b"203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", [b"[2001:DB8::9]:4711"], "2001:db8::9"),
        ("10.0.0.1", [b"[2001:db8::9]"], "2001:db8::9"),
        ("10.0.0.1", [b"2001:db8::9"], "2001:db8::9"),
        ("10.0.0.1", [b"1.1.1.1, ::ffff:203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", [b"fe80::1%<b>"], "10.0.0.1"),
        ("10.0.0.1", [b"203.0.113.999"], "10.0.0.1"),
        ("10.0.0.1", [b"203.0.113.9:port"], "10.0.0.1"),
        ("10.0.0.1", [b"[::1"], "10.0.0.1"),
        ("10.0.0.1", [b"\xff\xfe"], "10.0.0.1"),
    ],
)
def test_the_caller_is_the_nearest_address_no_trusted_proxy_holds(
    peer: str | None, forwarded_for: list[bytes], address: str
) -> None:
    assert client_address(peer, TRUSTED, forwarded_for) == address


@given(st.lists(st.binary()), st.ip_addresses(v=4))
def test_what_a_caller_writes_never_moves_its_own_address(forged: list[bytes], address: object) -> None:
    shown = str(address)
    if not TRUSTED.trusts(shown):
        assert client_address(shown, TRUSTED, forged) == shown
        assert client_address("10.0.0.1", TRUSTED, [*forged, shown.encode()]) == shown


def sent(
    incoming: dict[bytes, list[bytes]] | None = None,
    *,
    peer: str | None = "198.51.100.1",
    trusted: bool = False,
    scheme: bytes = b"https",
    host: bytes = b"relay.example",
) -> dict[bytes, bytes]:
    pairs = forwarded_headers(
        peer=peer, peer_is_trusted=trusted, scheme=scheme, host=host, prefix=b"/relay/a", incoming=incoming or {}
    )
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


OURS = {
    b"forwarded": b"for=198.51.100.1;host=relay.example;proto=https",
    b"x-forwarded-for": b"198.51.100.1",
    b"x-forwarded-proto": b"https",
    b"x-forwarded-host": b"relay.example",
    b"x-forwarded-prefix": b"/relay/a",
}


def test_an_upstream_is_told_who_called_and_how() -> None:
    assert sent() == OURS


@pytest.mark.parametrize(
    ("peer", "host", "forwarded", "forwarded_for"),
    [
        ("2001:db8::1", b"h", b'for="[2001:db8::1]";host=h;proto=https', b"2001:db8::1"),
        ("fe80::1%eth0", b"h", b'for="[fe80::1]";host=h;proto=https', b"fe80::1"),
        ("192.0.2.1", b"h:8443", b'for=192.0.2.1;host="h:8443";proto=https', b"192.0.2.1"),
        ("192.0.2.1", b"[::1]", b'for=192.0.2.1;host="[::1]";proto=https', b"192.0.2.1"),
        ("192.0.2.1", b"", b"for=192.0.2.1;proto=https", b"192.0.2.1"),
        ("192.0.2.1", b'h";for=1.1.1.1', b"for=192.0.2.1;proto=https", b"192.0.2.1"),
        ("192.0.2.1", b"h\xff", b"for=192.0.2.1;proto=https", b"192.0.2.1"),
        (None, b"h", b"for=unknown;host=h;proto=https", b"unknown"),
    ],
)
def test_forwarded_keeps_to_its_syntax(peer: str | None, host: bytes, forwarded: bytes, forwarded_for: bytes) -> None:
    lines = sent(peer=peer, host=host)
    assert lines[b"forwarded"] == forwarded
    assert lines[b"x-forwarded-for"] == forwarded_for
    assert lines.get(b"x-forwarded-host") == (host if b"host" in forwarded else None)


FORGED = {
    b"forwarded": [b"for=1.1.1.1", b"for=2.2.2.2;proto=http"],
    b"x-forwarded-for": [b"1.1.1.1", b"2.2.2.2"],
    b"x-forwarded-proto": [b"http"],
    b"x-forwarded-host": [b"shop.example:8080"],
    b"x-forwarded-prefix": [b"/shop/"],
}


def test_lines_of_an_untrusted_peer_are_replaced() -> None:
    assert sent(FORGED) == OURS


def test_lines_of_a_trusted_peer_are_carried_on() -> None:
    assert sent(FORGED, trusted=True) == {
        b"forwarded": b"for=1.1.1.1, for=2.2.2.2;proto=http, for=198.51.100.1;host=relay.example;proto=https",
        b"x-forwarded-for": b"1.1.1.1, 2.2.2.2, 198.51.100.1",
        b"x-forwarded-proto": b"http",
        b"x-forwarded-host": b"shop.example:8080",
        b"x-forwarded-prefix": b"/shop/relay/a",
    }


@pytest.mark.parametrize("incoming", [{}, {b"forwarded": [], b"x-forwarded-for": [b""], b"x-forwarded-proto": []}])
def test_a_trusted_peer_without_lines_adds_nothing(incoming: dict[bytes, list[bytes]]) -> None:
    assert sent(incoming, trusted=True) == OURS


@pytest.mark.parametrize(
    ("name", "value", "sent_on"),
    [
        (b"x-forwarded-proto", b"wss", b"wss"),
        (b"x-forwarded-proto", b"HTTP", b"HTTP"),
        (b"x-forwarded-proto", b"ftp", b"https"),
        (b"x-forwarded-proto", b"http, https", b"https"),
        (b"x-forwarded-proto", b"", b"https"),
        (b"x-forwarded-host", b"[::1]:80", b"[::1]:80"),
        (b"x-forwarded-host", b"a b", b"relay.example"),
        (b"x-forwarded-host", b"a/b", b"relay.example"),
        (b"x-forwarded-host", b"a:port", b"relay.example"),
        (b"x-forwarded-host", b"a\n", b"relay.example"),
        (b"x-forwarded-prefix", b"/a/b.c", b"/a/b.c/relay/a"),
        (b"x-forwarded-prefix", b"/", b"/relay/a"),
        (b"x-forwarded-prefix", b"/a//b", b"/relay/a"),
        (b"x-forwarded-prefix", b"/a/../b", b"/relay/a"),
        (b"x-forwarded-prefix", b"/..", b"/relay/a"),
        (b"x-forwarded-prefix", b"//evil.example", b"/relay/a"),
        (b"x-forwarded-prefix", b"https://evil.example", b"/relay/a"),
        (b"x-forwarded-prefix", b"/a?b", b"/relay/a"),
    ],
)
def test_a_trusted_value_counts_only_when_it_is_well_formed(name: bytes, value: bytes, sent_on: bytes) -> None:
    assert sent({name: [value]}, trusted=True)[name] == sent_on


def test_a_repeated_single_value_is_not_believed() -> None:
    assert sent({b"x-forwarded-proto": [b"http", b"http"]}, trusted=True)[b"x-forwarded-proto"] == b"https"


def test_a_trusted_host_is_passed_on_when_the_request_names_none() -> None:
    assert (
        sent({b"x-forwarded-host": [b"shop.example"]}, trusted=True, host=b"")[b"x-forwarded-host"] == b"shop.example"
    )


TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
PAIR = TOKEN + rb"=(?:" + TOKEN + rb'|"[\t \x21\x23-\x5b\x5d-\x7e]*")'
ELEMENT = re.compile(PAIR + rb"(?:;" + PAIR + rb")*")


@given(st.ip_addresses(), st.binary() | st.from_regex(r"[a-z.\[\]:0-9\"]*", fullmatch=True).map(str.encode))
def test_forwarded_is_one_element_of_rfc_7239_whatever_the_host(peer: object, host: bytes) -> None:
    assert ELEMENT.fullmatch(sent(peer=str(peer), host=host)[b"forwarded"])


@pytest.mark.parametrize(
    ("incoming", "trusted", "kept"),
    [
        (b"abc-DEF_0.1:2+3/4=", True, True),
        (b"12345678", True, True),
        (b"a" * 128, True, True),
        (b"12345678", False, False),
        (b"1234567", True, False),
        (b"a" * 129, True, False),
        (b"12345678\n", True, False),
        (b"1234 5678", True, False),
        (b"", True, False),
        (None, True, False),
    ],
)
def test_a_request_id_is_kept_when_well_formed_and_trusted(incoming: bytes | None, trusted: bool, kept: bool) -> None:
    assert request_id(incoming, trusted=trusted, make=lambda: b"made") == (incoming if kept else b"made")


def test_a_host_longer_than_any_name_is_told_but_not_kept() -> None:
    kept = forwarding._own_lines.cache_info
    before = kept().misses
    for host in (b"a" * 262, b"b" * 60_000):
        lines = forwarded_headers(
            peer="192.0.2.1", peer_is_trusted=False, scheme=b"http", host=host, prefix=b"/relay/o", incoming={}
        )
        assert (b"x-forwarded-host", host) in lines
    assert kept().misses == before


def test_without_a_mount_no_prefix_is_told() -> None:
    for trusted in (False, True):
        lines = forwarded_headers(
            peer="192.0.2.1",
            peer_is_trusted=trusted,
            scheme=b"https",
            host=b"wiki.relay.example",
            prefix=b"",
            incoming={b"x-forwarded-for": [b"198.51.100.1"]},
        )
        assert b"x-forwarded-prefix" not in dict(lines)
