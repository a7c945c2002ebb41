"""The client's engine is the one that RELAY_TRANSPORT names, whatever else it can do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pytest_django.fixtures import Settings

from relay import catalog
from relay.catalog import Snapshot, Upstream
from relay.checks import check_settings
from relay.upstreams import client as client_room
from relay.upstreams.transport import PooledTransport


class Plain(httpx.AsyncBaseTransport):
    """An engine without pools."""

    closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(299, request=request)

    async def aclose(self) -> None:
        self.closed = True


class Keeping(Plain):
    """An engine that notes which of its upstreams it is told to keep."""

    def __init__(self) -> None:
        self.pooled = [upstream("same"), upstream("edited"), upstream("removed")]

    def keep(self, is_current: Callable[[Upstream], bool]) -> None:
        self.pooled = [pooled for pooled in self.pooled if is_current(pooled)]


def upstream(slug: str, revision: int = 1) -> Upstream:
    place = {"scheme": "http", "host": "a.example", "port": 80, "authority": b"a.example", "base_path": b""}
    return Upstream(slug=slug, revision=revision, **place)


@pytest_asyncio.fixture(autouse=True)
async def closed_client() -> AsyncIterator[None]:
    yield
    await client_room.close_client()


async def opened(kind: type[httpx.AsyncBaseTransport]) -> Any:
    await client_room.open_client()
    client = client_room.client
    assert client is not None
    assert type(client.transport) is kind
    return client.transport


async def test_the_relays_own_engine_is_the_default() -> None:
    await opened(PooledTransport)


async def test_requests_go_through_the_engine_that_the_setting_names(settings: Settings) -> None:
    settings.RELAY_TRANSPORT = f"{__name__}.Plain"
    transport = await opened(Plain)
    assert client_room.client is not None
    response = await client_room.client.send(httpx.Request("GET", "http://upstream.invalid/"))
    assert response.status_code == 299
    await client_room.close_client()
    assert transport.closed


async def test_any_engine_with_pools_is_told_which_upstreams_are_as_they_were(settings: Settings) -> None:
    settings.RELAY_TRANSPORT = f"{__name__}.Keeping"
    transport = await opened(Keeping)
    client_room.retire_pools(Snapshot([upstream("same"), upstream("edited", revision=2)], revision=2))
    assert [pooled.slug for pooled in transport.pooled] == ["same"]


async def test_an_engine_without_pools_is_left_alone(settings: Settings) -> None:
    settings.RELAY_TRANSPORT = f"{__name__}.Plain"
    await opened(Plain)
    client_room.retire_pools(catalog.current())


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no.such.Engine", "No module named 'no'"),
        ("relay.conf.Engine", 'Module "relay.conf" does not define a "Engine" attribute/class'),
        ("Engine", "Engine doesn't look like a module path"),
    ],
)
def test_an_engine_that_cannot_be_imported_is_an_error_of_the_system_check(
    settings: Settings, path: str, reason: str
) -> None:
    settings.RELAY_TRANSPORT = path
    [message] = check_settings(None)
    assert (message.id, message.msg) == ("relay.E006", f"RELAY_TRANSPORT: {reason}")
    assert message.hint
