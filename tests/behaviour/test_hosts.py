"""Which host name answers what: RELAY_HOSTS and RELAY_ADMIN_HOSTS keep origins apart, and give upstreams their own."""

from __future__ import annotations

import json

import pytest
from django.test import RequestFactory
from pytest_django.fixtures import Settings

from relay import errors
from relay.admin.upstreams import relay_url
from relay.checks import check_origins, check_settings
from relay.models import Upstream
from tests.behaviour.conftest import Relayed
from tests.caller import Caller
from tests.origin import Origin, reply

pytestmark = pytest.mark.django_db(transaction=True)

WIKI = (b"Host", b"wiki.relay.test")


@pytest.fixture
def admin_apart(settings: Settings) -> None:
    settings.ALLOWED_HOSTS = ["relay.test", "admin.test"]
    settings.RELAY_ADMIN_HOSTS = ["admin.test"]


@pytest.fixture
def relay_apart(settings: Settings) -> None:
    settings.ALLOWED_HOSTS = ["relay.test", "admin.test"]
    settings.RELAY_HOSTS = ["relay.test", "<slug>.relay.test"]


@pytest.mark.parametrize("apart", ["admin_apart", "relay_apart"])
async def test_the_admin_and_the_relay_have_host_names_to_themselves(
    origin: Origin, relayed: Relayed, caller: Caller, request: pytest.FixtureRequest, apart: str
) -> None:
    request.getfixturevalue(apart)
    relayed()
    origin.on(b"/a", reply(200, body=b"page"))

    assert (await caller.get(b"/relay/o/a", [(b"Host", b"relay.test")])).data == b"page"
    assert (await caller.get(b"/relay/o/a", [(b"Host", b"admin.test")])).status == 421
    assert (await caller.get(b"/admin/login/", [(b"Host", b"relay.test")])).status == 421
    assert (await caller.get(b"/static/relay/admin.css", [(b"Host", b"relay.test")])).status == 421
    assert (await caller.get(b"/admin/login/", [(b"Host", b"admin.test")])).status == 200


@pytest.mark.usefixtures("relay_apart")
async def test_health_is_told_at_any_name_but_an_upstreams(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed("wiki")
    origin.on(b"/readyz", reply(418, body=b"the upstream's"))
    for host in (b"relay.test", b"admin.test", b"10.0.0.1"):
        assert (await caller.get(b"/readyz", [(b"Host", host)])).status == 200
    assert (await caller.get(b"/readyz", [WIKI])).data == b"the upstream's"


async def test_without_names_of_its_own_the_admin_answers_beside_the_relay(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    origin.on(b"/a", reply(200, body=b"page"))

    assert (await caller.get(b"/relay/o/a", [(b"Host", b"localhost")])).data == b"page"
    assert (await caller.get(b"/admin/login/", [(b"Host", b"localhost")])).status == 200


# An upstream's own host name.


@pytest.mark.usefixtures("relay_apart")
@pytest.mark.parametrize(
    ("path", "target"),
    [
        (b"/", b"/v1/"),
        (b"/healthz", b"/v1/healthz"),
        (b"/admin/", b"/v1/admin/"),
        (b"/relay/o/a", b"/v1/relay/o/a"),
        (b"/a%2Fb//c;d?e=%zz&&", b"/v1/a%2Fb//c;d?e=%zz&&"),
        (b"//x", b"/v1//x"),
        (b"/?", b"/v1/?"),
    ],
)
async def test_every_path_of_an_upstreams_host_is_the_upstreams(
    origin: Origin, relayed: Relayed, caller: Caller, path: bytes, target: bytes
) -> None:
    relayed("wiki", base_path=b"/v1")
    relayed("o")
    await caller.get(path, [WIKI])
    arrived = await origin.next_request()
    assert arrived.target == target
    assert arrived.values(b"host") == [origin.authority.encode()]
    assert arrived.values(b"x-forwarded-host") == [b"wiki.relay.test"]
    assert arrived.values(b"x-forwarded-prefix") == []


@pytest.mark.usefixtures("relay_apart")
@pytest.mark.parametrize(
    "host", [b"WIKI.relay.test", b"wiki.relay.test:8000", b"wiki.relay.test.", b"wIki.ReLay.TEST.:80"]
)
async def test_an_upstreams_host_is_found_in_any_spelling(
    origin: Origin, relayed: Relayed, caller: Caller, host: bytes
) -> None:
    relayed("wiki")
    origin.on(b"/a", reply(200, body=b"page"))
    assert (await caller.get(b"/a", [(b"Host", host)])).data == b"page"


@pytest.mark.usefixtures("relay_apart")
@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        ([b"nobody.relay.test"], 404),
        ([b"a.wiki.relay.test"], 421),
        ([b"wiki%2erelay.test"], 400),
        ([b"wiki.relay.test, relay.test"], 400),
        ([b"wiki.relay.test", b"wiki.relay.test"], 400),
        ([b"wiki.relay.test", b"admin.test"], 400),
        ([b"admin.test", b"wiki.relay.test"], 400),
        ([b"relay.test", b"wiki.relay.test"], 421),
    ],
)
async def test_no_other_host_leads_to_an_upstream(
    origin: Origin, relayed: Relayed, caller: Caller, hosts: list[bytes], status: int
) -> None:
    relayed("wiki")
    assert (await caller.get(b"/x", [(b"Host", host) for host in hosts])).status == status
    assert not origin.requests


@pytest.mark.usefixtures("relay_apart")
@pytest.mark.parametrize(
    ("target", "refusal"),
    [
        (b"*", errors.PathRefused),
        (b"http://wiki.relay.test/a", errors.PathRefused),
        (b"http://o.relay.test/a", errors.RequestRefused),
        (b"/../a", errors.PathRefused),
        (b"/%2e%2e/a", errors.PathRefused),
    ],
)
async def test_a_target_that_is_no_path_or_leaves_it_is_refused(
    origin: Origin, relayed: Relayed, caller: Caller, target: bytes, refusal: type[errors.RelayError]
) -> None:
    relayed("wiki", base_path=b"/v1")
    await caller.send(b"OPTIONS %b HTTP/1.1\r\nHost: wiki.relay.test\r\n\r\n" % target)
    assert (await caller.read_head()).status == 400
    assert json.loads((await caller.read_body()).data)["type"] == refusal().type_uri
    assert not origin.requests


@pytest.mark.usefixtures("relay_apart")
@pytest.mark.parametrize(
    ("given", "relayed_as"),
    [
        (b"/v1", b"/"),
        (b"/v1/x?q#f", b"/x?q#f"),
        (b"/v1?q", b"/?q"),
        (b"/other", b"/other"),
        # By itself a path that begins so would be another host.
        (b"/v1//evil.example/x", b"/.//evil.example/x"),
        (b"/v1/\\evil.example/x", b"/./\\evil.example/x"),
    ],
)
async def test_places_below_the_base_path_are_places_at_the_host(
    origin: Origin, relayed: Relayed, caller: Caller, given: bytes, relayed_as: bytes
) -> None:
    relayed("wiki", base_path=b"/v1")
    origin.on(
        b"/v1/a",
        reply(302, [(b"Location", given), (b"Link", b"<%b>; rel=next" % given), (b"Refresh", b"1; url=" + given)]),
    )
    answer = await caller.get(b"/a", [WIKI])
    assert answer.values(b"location") == [relayed_as]
    assert answer.values(b"link") == [b"<%b>; rel=next" % relayed_as]
    assert answer.values(b"refresh") == [b"1; url=" + relayed_as]


@pytest.mark.usefixtures("relay_apart")
async def test_an_absolute_place_of_the_upstream_is_one_of_the_host(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed("wiki")
    for place, relayed_as in ((b"", b"/"), (b"/", b"/"), (b"/a", b"/a"), (b"//e.test", b"/.//e.test"), (b"?q", b"/?q")):
        origin.on(b"/a", reply(302, [(b"Location", origin.url.encode() + place)]))
        assert (await caller.get(b"/a", [WIKI])).values(b"location") == [relayed_as]


@pytest.mark.usefixtures("relay_apart")
async def test_cookies_of_an_upstreams_host_keep_their_names_and_lose_their_domain(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed("wiki", base_path=b"/v1")
    lines = [
        b"a=1",
        b"__Host-b=2; Secure; Path=/",
        b"c=3; Path=/v1/x; HttpOnly",
        b"d=4; Path=/elsewhere",
        b"e=5; Domain=127.0.0.1",
        b"f=6; Domain=relay.test",
    ]
    origin.on(b"/v1/a", reply(200, [(b"Set-Cookie", line) for line in lines]))
    answer = await caller.get(b"/a", [WIKI, (b"Cookie", b"a=1; relay.o.b=2"), (b"Cookie", b"c")])
    assert answer.values(b"set-cookie") == [
        b"a=1",
        b"__Host-b=2; Secure; Path=/",
        b"c=3; Path=/x; HttpOnly",
        b"e=5",
    ]
    assert (await origin.next_request()).values(b"cookie") == [b"a=1; relay.o.b=2"]


@pytest.mark.usefixtures("relay_apart")
async def test_an_upstream_speaks_for_its_own_host_and_no_further(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed("wiki")
    own = [(b"service-worker-allowed", b"/"), (b"accept-ch", b"Sec-CH-UA"), (b"content-security-policy", b"sandbox")]
    beyond = [
        (b"strict-transport-security", b"max-age=1; includeSubDomains"),
        (b"alt-svc", b'h3=":443"'),
        (b"clear-site-data", b'"cookies"'),
        (b"report-to", b"{}"),
        (b"nel", b"{}"),
    ]
    origin.on(b"/sw.js", reply(200, [*own, *beyond]))
    answer = await caller.get(b"/sw.js", [WIKI, (b"Service-Worker", b"script")])
    assert (answer.status, [pair for pair in answer.head.headers if pair in own + beyond]) == (200, own)
    assert answer.values(b"x-content-type-options") == []
    assert (await origin.next_request()).values(b"service-worker") == [b"script"]


# What the admin and the checks say.


@pytest.mark.parametrize(
    ("relay_hosts", "admin_hosts", "reached_by", "url"),
    [
        ([], [], "testserver", "http://testserver/relay/o/"),
        ([], ["admin.test"], "admin.test", "http://relay.test/relay/o/"),
        ([], ["admin.test"], "admin.test:8000", "http://relay.test:8000/relay/o/"),
        (["calls.test"], ["admin.test"], "admin.test", "http://calls.test/relay/o/"),
        (["calls.test", "<slug>.relay.test"], [], "admin.test:8000", "http://o.relay.test:8000/"),
    ],
)
def test_the_admin_names_the_relays_own_host(
    settings: Settings, relay_hosts: list[str], admin_hosts: list[str], reached_by: str, url: str
) -> None:
    settings.ALLOWED_HOSTS = [".wild.test", "relay.test", "admin.test", "testserver"]
    settings.RELAY_HOSTS = relay_hosts
    settings.RELAY_ADMIN_HOSTS = admin_hosts
    assert relay_url(RequestFactory(headers={"host": reached_by}).get("/admin/"), Upstream(slug="o")) == url


@pytest.mark.parametrize(
    ("relay_hosts", "admin_hosts", "found"),
    [
        ([], [], ["relay.W001"]),
        (["relay.test"], [], []),
        ([], ["admin.test"], []),
        (["relay.test:80", "<slug>."], ["admin.test"], ["relay.E008", "relay.E008"]),
        (["a.test"], ["a.test"], ["relay.E009"]),
    ],
)
def test_the_system_check_tells_what_is_wrong_with_the_names(
    settings: Settings, relay_hosts: list[str], admin_hosts: list[str], found: list[str]
) -> None:
    settings.RELAY_HOSTS = relay_hosts
    settings.RELAY_ADMIN_HOSTS = admin_hosts
    assert [message.id for message in (*check_settings(None), *check_origins(None))] == found
