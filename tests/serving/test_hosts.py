"""What a value of Host serves, by the settings in force."""

from __future__ import annotations

from dataclasses import replace

from relay import conf
from relay.rules.hosts import LONGEST_HOST, Place
from relay.serving import hosts

SETTINGS = replace(
    conf.current(),
    allowed_hosts=("relay.example", "admin.example"),
    relay_hosts=("relay.example", "<slug>.relay.example"),
    admin_hosts=("admin.example",),
)


def test_the_first_host_decides_where_a_request_belongs() -> None:
    pairs = [(b"accept", b"*/*"), (b"host", b"wiki.relay.example"), (b"host", b"admin.example")]
    assert hosts.place_of(pairs, SETTINGS) == Place(slug=b"wiki")
    assert hosts.place_of([], SETTINGS) == hosts.place(b"", SETTINGS) == Place()


def test_a_host_that_is_longer_than_any_name_is_not_remembered() -> None:
    remembered = hosts._places.of(SETTINGS)
    remembered.cache_clear()  # type: ignore[attr-defined]
    for length in range(LONGEST_HOST + 1, LONGEST_HOST + 50):
        assert hosts.place(b"a" * length, SETTINGS) == Place()
    assert remembered.cache_info().currsize == 1  # type: ignore[attr-defined]
