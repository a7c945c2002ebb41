"""Which host name answers what: with RELAY_ADMIN_HOSTS, relayed pages and the admin are different origins."""

from __future__ import annotations

import pytest
from django.test import RequestFactory
from pytest_django import Settings

from relay.admin.upstreams import relay_url
from relay.models import Upstream
from tests.behaviour.conftest import Relayed
from tests.caller import Caller
from tests.origin import Origin, reply

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def apart(settings: Settings) -> None:
    settings.ALLOWED_HOSTS = ["relay.test", "admin.test"]
    settings.RELAY_ADMIN_HOSTS = ["admin.test"]


@pytest.mark.usefixtures("apart")
async def test_the_admin_has_a_host_name_to_itself(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/a", reply(200, body=b"page"))

    assert (await caller.get(b"/relay/o/a", [(b"Host", b"relay.test")])).data == b"page"
    assert (await caller.get(b"/relay/o/a", [(b"Host", b"admin.test")])).status == 421
    assert (await caller.get(b"/admin/login/", [(b"Host", b"relay.test")])).status == 421
    assert (await caller.get(b"/admin/login/", [(b"Host", b"admin.test")])).status == 200


@pytest.mark.usefixtures("apart")
async def test_health_is_told_at_any_name(relayed: Relayed, caller: Caller) -> None:
    for host in (b"relay.test", b"admin.test", b"10.0.0.1"):
        assert (await caller.get(b"/readyz", [(b"Host", host)])).status == 200


async def test_without_names_of_its_own_the_admin_answers_beside_the_relay(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    origin.on(b"/a", reply(200, body=b"page"))

    assert (await caller.get(b"/relay/o/a", [(b"Host", b"localhost")])).data == b"page"
    assert (await caller.get(b"/admin/login/", [(b"Host", b"localhost")])).status == 200


@pytest.mark.parametrize(
    ("reached_by", "url"),
    [("admin.test", "http://relay.test/relay/o/"), ("admin.test:8000", "http://relay.test:8000/relay/o/")],
)
def test_the_admin_names_the_relays_own_host(settings: Settings, reached_by: str, url: str) -> None:
    settings.ALLOWED_HOSTS = [".wild.test", "relay.test", "admin.test"]
    settings.RELAY_ADMIN_HOSTS = ["admin.test"]
    assert relay_url(RequestFactory(headers={"host": reached_by}).get("/admin/"), Upstream(slug="o")) == url
