"""Cookies of an upstream stay that upstream's, and Django's stay Django's, though callers see one origin for all."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from django.conf import settings as django_settings

from relay.catalog import HeaderChanges, jars
from relay.rules.headers import compile_changes
from tests.behaviour.conftest import Relayed
from tests.caller import Caller
from tests.origin import Exchange, Origin, reply
from tests.serving_ground import Ground

DJANGOS = b"%b=secret-session; %b=secret-csrf" % (
    django_settings.SESSION_COOKIE_NAME.encode(),
    django_settings.CSRF_COOKIE_NAME.encode(),
)


@pytest.mark.parametrize(
    "cookies",
    [
        [DJANGOS],
        [DJANGOS + b"; other=1"],
        [b"relay.p.a=1", b"relay.=1; relay.o=1; relay.o.=1"],
        [b"Relay.o.a=1; relay.O.a=1; xrelay.o.a=1"],
        [b"relay.o.a"],
        [b""],
    ],
)
async def test_cookies_the_upstream_did_not_set_never_go_up(
    origin: Origin, relayed: Relayed, caller: Caller, cookies: list[bytes]
) -> None:
    relayed()
    await caller.get(b"/relay/o/a", [(b"Cookie", line) for line in cookies])
    assert (await origin.next_request()).values(b"cookie") == []


async def test_the_upstreams_own_cookies_go_up_under_their_names(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    lines = [b'relay.o.a=1=2; %b; relay.o.b="x y"' % DJANGOS, b"relay.p.c=3;relay.o.d=caf\xc3\xa9\xff; relay.o.a=again"]
    await caller.get(b"/relay/o/a", [(b"Cookie", line) for line in lines])
    assert (await origin.next_request()).values(b"cookie") == [b'a=1=2; b="x y"; d=caf\xc3\xa9\xff; a=again']


@pytest.mark.parametrize("name", [django_settings.SESSION_COOKIE_NAME, django_settings.CSRF_COOKIE_NAME, "messages"])
async def test_an_upstream_never_sets_a_cookie_that_django_reads(
    origin: Origin, relayed: Relayed, caller: Caller, name: str
) -> None:
    relayed()
    origin.on(b"/a", reply(200, [(b"Set-Cookie", b"%b=forged; Path=/; HttpOnly" % name.encode())]))
    answer = await caller.get(b"/relay/o/a")
    assert answer.values(b"set-cookie") == [b"relay.o.%b=forged; Path=/relay/o; HttpOnly" % name.encode()]


@pytest.mark.parametrize(
    ("given", "relayed_as"),
    [
        (b"a=1", [b"relay.o.a=1"]),
        (b"a=1; Path=/v1/x; Secure", [b"relay.o.a=1; Path=/relay/o/x; Secure"]),
        (b"a=1; path=/; SameSite=None; Partitioned", [b"relay.o.a=1; Path=/relay/o; SameSite=None; Partitioned"]),
        (b"a=1; Path=/elsewhere", []),
        (b"a=1; Domain=127.0.0.1", [b"relay.o.a=1"]),
        (b"a=1; Domain=other.example", []),
        (b"=1", []),
        (b"nameless", []),
    ],
)
async def test_set_cookie_is_mapped_to_the_mount(
    origin: Origin, relayed: Relayed, caller: Caller, given: bytes, relayed_as: list[bytes]
) -> None:
    relayed(base_path=b"/v1")
    origin.on(b"/v1/a", reply(200, [(b"Set-Cookie", given)]))
    assert (await caller.get(b"/relay/o/a")).values(b"set-cookie") == relayed_as


async def test_a_cookie_set_at_the_mount_itself_stays_below_it(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    origin.on(b"/", reply(200, [(b"Set-Cookie", b"a=1")]))
    assert (await caller.get(b"/relay/o")).values(b"set-cookie") == [b"relay.o.a=1; Path=/relay/o"]
    assert (await caller.get(b"/relay/o/")).values(b"set-cookie") == [b"relay.o.a=1"]


async def test_a_jar_keeps_the_cookies_of_two_upstreams_apart(origin: Origin, relayed: Relayed, ground: Ground) -> None:
    relayed("o", base_path=b"/one")
    relayed("p", base_path=b"/two")

    async def sign_in(exchange: Exchange) -> None:
        owner = exchange.head.path.split(b"/")[1]
        await reply(200, [(b"Set-Cookie", b"session=%b; Path=/; HttpOnly" % owner)])(exchange)

    for path in (b"/one/in", b"/two/in"):
        origin.on(path, sign_in)
    async with httpx.AsyncClient(base_url=ground.url, trust_env=False) as client:
        client.cookies.set("sessionid", "djangos")
        for path in ("/relay/o/in", "/relay/p/in", "/relay/o/a", "/relay/p/a"):
            await client.get(path)
    assert [request.values(b"cookie") for request in origin.requests] == [[], [], [b"session=one"], [b"session=two"]]


async def test_one_callers_cookies_never_ride_on_anothers_request(
    origin: Origin, relayed: Relayed, ground: Ground
) -> None:
    relayed()
    origin.on(b"/a", reply(200, [(b"Set-Cookie", b"session=first")]))
    for _ in range(2):
        async with Caller(ground.port) as caller:
            await caller.get(b"/relay/o/a")
    assert [request.values(b"cookie") for request in origin.requests] == [[], []]


SENT = [(b"Cookie", b"relay.o.a=1; a=2")]
SET = [(b"Set-Cookie", b"session=s3cret; Path=/; HttpOnly"), (b"Set-Cookie", b"deep=1; Path=/v1/deep")]


@pytest.fixture
def empty_jars() -> Iterator[None]:
    yield
    jars.jars._jars.clear()
    jars.jars._waiting.clear()


async def test_dropped_cookies_pass_neither_way(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(relays_cookies=False)
    origin.on(b"/a", reply(200, SET))
    for _ in range(2):
        assert (await caller.get(b"/relay/o/a", SENT)).values(b"set-cookie") == []
        assert (await origin.next_request()).values(b"cookie") == []


@pytest.mark.usefixtures("empty_jars")
async def test_a_jar_is_the_relays_and_serves_all_callers(origin: Origin, relayed: Relayed, ground: Ground) -> None:
    relayed(relays_cookies=False, keeps_jar=True, base_path=b"/v1")
    relayed("p", relays_cookies=False, keeps_jar=True, base_path=b"/v1")
    origin.on(b"/v1/in", reply(200, SET))
    async with Caller(ground.port) as caller:
        assert (await caller.get(b"/relay/o/in", SENT)).values(b"set-cookie") == []
    async with Caller(ground.port) as another:
        for path in (b"/relay/o/deep/x?q", b"/relay/o/other", b"/relay/p/other"):
            await another.get(path, SENT)
    assert [request.values(b"cookie") for request in origin.requests] == [
        [],
        [b"deep=1; session=s3cret"],
        [b"session=s3cret"],
        [],
    ]


@pytest.mark.usefixtures("empty_jars")
async def test_a_header_rule_has_the_last_word_over_the_jar(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    rules = compile_changes([("set", "Cookie", "fixed=1")])
    relayed(relays_cookies=False, keeps_jar=True, request_changes=HeaderChanges(*rules))
    origin.on(b"/a", reply(200, SET))
    for _ in range(2):
        await caller.get(b"/relay/o/a")
        assert (await origin.next_request()).values(b"cookie") == [b"fixed=1"]
