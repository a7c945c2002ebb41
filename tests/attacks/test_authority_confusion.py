"""Which host a request is for: one answer, from `Host` alone, whatever else names another."""

from __future__ import annotations

import pytest
from pytest_django.fixtures import Settings

from tests.attacks.conftest import Relayed, answer_to
from tests.origin import Origin, reply
from tests.serving_ground import Ground

REFUSED_HOSTS = [
    b"",
    b"evil.example",
    b"evil.localhost",
    b"localhost.evil.example",
    b"localhostevil",
    b"localhost@evil.example",
    b"evil.example@localhost",
    b"user:pass@localhost",
    b"localhost:8000@evil.example",
    b"localhost:80:80",
    b"localhost:-80",
    b"localhost:+80",
    b"localhost:80 evil.example",
    b"localhost evil.example",
    b"localhost, evil.example",
    b"localhost,localhost",
    b"localhost/evil.example",
    b"localhost\\evil.example",
    b"localhost?evil.example",
    b"localhost#evil.example",
    b"localhost\tevil.example",
    b"localhost%00",
    b"localhost%0d%0aX:%20y",
    b"%6cocalhost",
    b"l\xc3\xb6calhost",
    b"\xe2\x93\x9bocalhost",
    b"http://localhost",
    b"//localhost",
    b"*",
    b".localhost",
    b"localhost..",
    b"[::1",
    b"::1",
    b"[::1]evil",
    b"[::1%25lo]",
    b"[::ffff:127.0.0.1]",
    b"127.1",
    b"2130706433",
    b"0x7f.0.0.1",
    b"localhost" + b"a" * 300,
]


@pytest.mark.parametrize("caller_host", [False, True])
async def test_a_host_that_is_not_one_of_ours_in_full_is_refused(
    origin: Origin, relayed: Relayed, ground: Ground, caller_host: bool
) -> None:
    relayed(caller_host=caller_host)
    for host in REFUSED_HOSTS:
        answer = await answer_to(ground, b"GET /relay/o/a HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
        assert answer.status in (400, 421), host
    assert origin.connections_made == 0


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"Host: localhost\r\nHost: localhost\r\n",
        b"Host: localhost\r\nhost: evil.example\r\n",
        b"Host: evil.example\r\nHost: localhost\r\n",
        b"Host : localhost\r\n",
        b" Host: localhost\r\n",
        b"Host: localhost\r\n evil.example\r\n",
        b"Host: localhost\r\n\tevil.example\r\n",
        b"H\x00ost: localhost\r\n",
        b"Host: localhost\x00evil.example\r\n",
        b"Host: evil.example\rHost: localhost\r\n",
        b"Host: evil.example\nHost: localhost\r\n",
        b"Host_: localhost\r\n",
        b"X-Forwarded-Host: localhost\r\n",
        b"X-Forwarded-Host: localhost\r\nHost: evil.example\r\n",
        b"Forwarded: host=localhost\r\nHost: evil.example\r\n",
    ],
)
async def test_there_is_one_host_and_it_is_the_host_field(
    origin: Origin, relayed: Relayed, ground: Ground, lines: bytes
) -> None:
    relayed()
    answer = await answer_to(ground, b"GET /relay/o/a HTTP/1.1\r\n" + lines + b"\r\n")
    assert answer.status in (400, 421)
    assert origin.connections_made == 0


@pytest.mark.parametrize(
    "target",
    [
        b"http://evil.example/relay/o/a",
        b"http://localhost:80/relay/o/a",
        b"http://localhost@evil.example/relay/o/a",
        b"http://evil.example@localhost/relay/o/a",
        b"http://localhost.evil.example/relay/o/a",
        b"http://localhost./relay/o/a",
        b"ftp://localhost/relay/o/a",
        b"http:///relay/o/a",
        b"http:/relay/o/a",
        b"localhost/relay/o/a",
        b"//localhost/relay/o/a",
        b"HTTP://LOCALHOST:1/relay/o/a",
    ],
)
async def test_a_target_at_another_place_than_host_says_is_refused(
    origin: Origin, relayed: Relayed, ground: Ground, target: bytes
) -> None:
    relayed()
    for method in (b"GET", b"BREW"):
        answer = await answer_to(ground, b"%b %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (method, target))
        assert answer.status in (400, 404)
    assert origin.connections_made == 0


async def test_the_admins_names_are_not_reached_by_a_target(ground: Ground, settings: Settings) -> None:
    settings.RELAY_ADMIN_HOSTS = ("admin.example",)
    settings.ALLOWED_HOSTS = ["localhost", "admin.example"]
    for target, host in (
        (b"http://admin.example/admin/login/", b"localhost"),
        (b"/admin/login/", b"localhost"),
        (b"http://localhost/admin/login/", b"admin.example"),
    ):
        answer = await answer_to(ground, b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, host))
        assert answer.status in (400, 421)


@pytest.mark.parametrize(
    ("host", "sent_on"), [(b"LocalHost:1", b"LocalHost:1"), (b"localhost.", b"localhost."), (b"[::1]:2", b"[::1]:2")]
)
async def test_a_host_of_ours_goes_on_as_it_came_where_the_upstream_wants_it(
    origin: Origin, relayed: Relayed, ground: Ground, host: bytes, sent_on: bytes
) -> None:
    relayed(caller_host=True)
    origin.on(b"/a", reply(200))
    answer = await answer_to(ground, b"GET /relay/o/a HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
    assert answer.status == 200
    assert origin.requests[0].values(b"host") == [sent_on]
