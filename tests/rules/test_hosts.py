"""Which host names serve what: nothing, the mount, the admin, both, or one upstream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import HostRefused
from relay.rules.hosts import LONGEST_HOST, NOWHERE, Hosts, Place, check_entry, check_relay, upstream_suffix

ALLOWED = ("localhost", ".api.example", "[::1]")
BOTH, RELAY, ADMIN = Place(relay=True, admin=True), Place(relay=True), Place(admin=True)

TOGETHER = Hosts(allowed=ALLOWED)
RELAY_APART = Hosts(allowed=ALLOWED, relay=("relay.example", "<slug>.relay.example"))
ADMIN_APART = Hosts(allowed=ALLOWED, admin=("admin.example", ".staff.example"))
APART = Hosts(
    allowed=ALLOWED,
    relay=("Relay.example", "*.relay.example", "[::2]"),
    admin=("admin.relay.example", "admin.example", ".example"),
)


@pytest.mark.parametrize(
    ("hosts", "host", "place"),
    [
        (TOGETHER, b"localhost", BOTH),
        (TOGETHER, b"LOCALHOST:8000", BOTH),
        (TOGETHER, b"localhost.", BOTH),
        (TOGETHER, b"localhost.:80", BOTH),
        (TOGETHER, b"api.example", BOTH),
        (TOGETHER, b"a.b.api.example", BOTH),
        (TOGETHER, b"[::1]", BOTH),
        (TOGETHER, b"[::1]:80", BOTH),
        (Hosts(allowed=("*",)), b"anything.example", BOTH),
        # With names for the relay, all others are the admin's.
        (RELAY_APART, b"relay.example", RELAY),
        (RELAY_APART, b"relay.example.:443", RELAY),
        (RELAY_APART, b"localhost", ADMIN),
        (RELAY_APART, b"wiki.relay.example", Place(slug=b"wiki")),
        (RELAY_APART, b"WiKi.Relay.Example.:8000", Place(slug=b"wiki")),
        (RELAY_APART, b"my_wiki-2.relay.example", Place(slug=b"my_wiki-2")),
        (RELAY_APART, b"admin.relay.example", Place(slug=b"admin")),
        # One label, and nothing else, is an upstream's.
        (RELAY_APART, b"a.b.relay.example", NOWHERE),
        (RELAY_APART, b".relay.example", NOWHERE),
        (RELAY_APART, b"a..relay.example", NOWHERE),
        (RELAY_APART, b"xrelay.example", ADMIN),
        # With names for the admin, all others are the relay's.
        (ADMIN_APART, b"localhost", RELAY),
        (ADMIN_APART, b"admin.example:443", ADMIN),
        (ADMIN_APART, b"a.staff.example", ADMIN),
        (ADMIN_APART, b"staff.example", ADMIN),
        (ADMIN_APART, b"other.example", NOWHERE),
        # With both, the others serve neither.
        (APART, b"localhost", NOWHERE),
        (APART, b"relay.example", RELAY),
        (APART, b"[::2]:1", RELAY),
        (APART, b"admin.example", ADMIN),
        (APART, b"other.example", ADMIN),
        # Names come before patterns, upstreams before the admin's patterns.
        (APART, b"admin.relay.example", ADMIN),
        (APART, b"wiki.relay.example", Place(slug=b"wiki")),
        (APART, b"a.wiki.relay.example", NOWHERE),
    ],
)
def test_a_host_has_its_place(hosts: Hosts, host: bytes, place: Place) -> None:
    assert hosts.place(host) == place


MALFORMED = [
    b"",
    b".",
    b":80",
    b"other.example",
    b"localhost.evil.example",
    b"xlocalhost",
    b"xapi.example",
    b"localhost@evil.example",
    b"localhost/",
    b"localhost:80:80",
    b"localhost:",
    b"localhost:x",
    b"localhost, evil.example",
    b"localhost evil",
    b"::1",
    b"[::1",
    b"%6cocalhost",
    b"\xff\xfe",
    b"a" * (LONGEST_HOST + 1),
]


@pytest.mark.parametrize("host", MALFORMED)
def test_nothing_is_relayed_at_any_other(host: bytes) -> None:
    # The admin's own application says 400 to these.
    assert TOGETHER.place(host) == ADMIN
    assert APART.place(host) in (NOWHERE, ADMIN)
    for hosts in (TOGETHER, APART, ADMIN_APART):
        with pytest.raises(HostRefused):
            check_relay(hosts.place(host))


@pytest.mark.parametrize(
    "host", [b"wiki%2erelay.example", b"w%69ki.relay.example", b"wiki.relay.example@x", b"wiki/.relay.example"]
)
def test_a_disguised_upstream_is_none(host: bytes) -> None:
    assert not APART.place(host).slug


@given(st.text(alphabet="ab.-_:[]0%A@/ ", max_size=30), st.sampled_from(["", ".relay.example", ".relay.example.:80"]))
def test_admin_and_relay_never_share_a_name_once_either_has_its_own(front: str, end: str) -> None:
    host = (front + end).encode()
    for hosts in (RELAY_APART, ADMIN_APART, APART):
        place = hosts.place(host)
        assert not place.shares_origin
        assert not (place.slug and (place.relay or place.admin))
        assert b"." not in place.slug
        assert place.slug == place.slug.lower()


def test_where_an_upstream_or_the_mount_is_requests_are_relayed() -> None:
    check_relay(Place(relay=True))
    check_relay(Place(slug=b"wiki"))


def test_whether_they_share_an_origin_is_known_from_the_settings() -> None:
    assert TOGETHER.one_origin
    apart = (RELAY_APART, ADMIN_APART, APART, Hosts(allowed=ALLOWED, relay=("<slug>.relay.example",)))
    assert not any(hosts.one_origin for hosts in apart)


@pytest.mark.parametrize(
    ("hosts", "name"),
    [
        (TOGETHER, ""),
        (RELAY_APART, "relay.example"),
        (ADMIN_APART, "localhost"),
        (
            Hosts(allowed=("*", ".wild.example", "admin.example", "relay.example"), admin=("admin.example",)),
            "relay.example",
        ),
        (Hosts(allowed=ALLOWED, relay=("<slug>.relay.example",)), ""),
    ],
)
def test_the_relays_own_name_can_be_told(hosts: Hosts, name: str) -> None:
    assert hosts.relay_name() == name


def test_a_name_given_to_both_is_noticed() -> None:
    assert APART.answered_by_both() == ["relay.example"]
    assert Hosts(allowed=(), relay=("a", "b"), admin=("b",)).answered_by_both() == ["b"]
    assert Hosts(allowed=(), relay=("a", "*.b"), admin=("*",)).answered_by_both() == ["a"]
    assert RELAY_APART.answered_by_both() == []


@pytest.mark.parametrize("entry", ["relay.example", "[::1]", "<slug>.relay.example", "*.relay.example", "localhost"])
def test_entries_that_can_be_used(entry: str) -> None:
    check_entry(entry)


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        ".relay.example",
        "<slug>.",
        "*.",
        "<slug>",
        "a.<slug>.example",
        "a.*.example",
        "https://a.example",
        "a:80",
        "*.[::1]",
        "a b",
        "",
    ],
)
def test_entries_that_cannot_be_used_are_told(entry: str) -> None:
    with pytest.raises(ValueError, match=r"<slug>\.relay\.example\.org"):
        check_entry(entry)


@pytest.mark.parametrize(
    ("entry", "suffix"),
    [
        ("<slug>.relay.example", ".relay.example"),
        ("*.relay.example", ".relay.example"),
        ("relay.example", ""),
        ("*", ""),
    ],
)
def test_a_pattern_has_a_suffix(entry: str, suffix: str) -> None:
    assert upstream_suffix(entry) == suffix
