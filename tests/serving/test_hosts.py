"""Which host names the relay answers for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relay import conf
from relay.errors import HostRefused
from relay.serving.hosts import check_relay_host, is_admin_host

SETTINGS = replace(conf.current(), allowed_hosts=("relay.example", ".api.example", "[::1]"), admin_hosts=())
SPLIT = replace(SETTINGS, admin_hosts=("admin.api.example",))


@pytest.mark.parametrize(
    "host",
    [
        b"relay.example",
        b"RELAY.example:8000",
        b"relay.example.",
        b"api.example",
        b"a.b.api.example",
        b"[::1]",
        b"[::1]:80",
    ],
)
def test_named_hosts_are_answered_for(host: bytes) -> None:
    check_relay_host(host, SETTINGS)


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b":80",
        b"other.example",
        b"relay.example.evil.example",
        b"xrelay.example",
        b"xapi.example",
        b"relay.example@evil.example",
        b"relay.example/",
        b"relay.example:80:80",
        b"relay.example, evil.example",
        b"::1",
        b"\xff\xfe",
    ],
)
def test_no_other_is(host: bytes) -> None:
    with pytest.raises(HostRefused):
        check_relay_host(host, SETTINGS)


def test_all_hosts_may_be_answered_for() -> None:
    check_relay_host(b"anything.example", replace(SETTINGS, allowed_hosts=("*",)))


def test_the_admin_may_have_host_names_of_its_own() -> None:
    assert is_admin_host(b"relay.example", SETTINGS)
    assert is_admin_host(b"admin.api.example:443", SPLIT)
    assert not is_admin_host(b"relay.example", SPLIT)
    check_relay_host(b"relay.example", SPLIT)
    with pytest.raises(HostRefused):
        check_relay_host(b"admin.api.example", SPLIT)
