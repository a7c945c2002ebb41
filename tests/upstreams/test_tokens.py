"""Access tokens: one fetch however many ask, renewed before they end, and nothing of a bad answer believed."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
import pytest_asyncio

from relay import errors
from relay.catalog import Upstream
from relay.observing.descriptors import Descriptors
from relay.rules.credentials import Credential, Given, TokenGrant, compile_credential
from relay.upstreams import tokens as tokens_room
from relay.upstreams.tokens import Tokens
from relay.upstreams.transport import PooledTransport
from tests.behaviour.conftest import upstream_at
from tests.origin import Exchange, Gate, Origin, hang, reply
from tests.upstreams.conftest import emptied

JSON = [(b"content-type", b"application/json")]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TokenServer:
    """An origin's /token: numbers what it gives, and gives it when the gate lets it."""

    def __init__(self, origin: Origin) -> None:
        self.asked = 0
        self.life: Any = 3600
        self.gate: Gate | None = None
        origin.on(b"/token", self.answer)

    async def answer(self, exchange: Exchange) -> None:
        self.asked += 1
        number = self.asked
        if self.gate is not None:
            await self.gate.wait()
        answer = {"access_token": f"token-{number}", "token_type": "Bearer"}
        if self.life is not None:
            answer["expires_in"] = self.life
        await reply(200, JSON, json.dumps(answer).encode())(exchange)


class Asking:
    """Tokens over a transport of their own, for an upstream whose token URL is at the origin."""

    def __init__(self, origin: Origin, transport: PooledTransport) -> None:
        self.clock = Clock()
        self.tokens = Tokens(transport.handle_async_request, clock=self.clock)
        self.upstream, self.grant = granted(origin)

    async def token(self) -> bytes:
        return await self.tokens.token(self.upstream, self.grant)

    async def problem(self) -> str:
        with pytest.raises(errors.TokenUnavailable) as refusal:
            await self.token()
        assert "s3cret" not in str(refusal.value)
        return str(refusal.value)


def granted(origin: Origin, **settings: str) -> tuple[Upstream, TokenGrant]:
    given = Given(
        credential_id="1",
        kind="oauth",
        identity="client",
        token_url=f"{origin.url}/token",
        secrets={"secret": "s3cret"},
        **({"auth_style": "basic"} | settings),
    )
    grant = compile_credential(given).grant
    assert grant is not None
    return upstream_at(origin, credential=Credential(grant=grant)), grant


@pytest.fixture
def server(origin: Origin) -> TokenServer:
    return TokenServer(origin)


@pytest_asyncio.fixture
async def asking(origin: Origin) -> AsyncIterator[Asking]:
    async with emptied(PooledTransport(), origin) as transport:
        asking = Asking(origin, transport)
        yield asking
        await asking.tokens.aclose()


async def test_it_is_asked_for_as_the_standard_has_it(origin: Origin, server: TokenServer, asking: Asking) -> None:
    assert await asking.token() == b"token-1"
    asked = origin.requests[0]
    assert asked.method == b"POST"
    assert asked.body == b"grant_type=client_credentials"
    assert asked.values(b"authorization") == [b"Basic Y2xpZW50OnMzY3JldA=="]
    assert asked.values(b"content-type") == [b"application/x-www-form-urlencoded"]
    assert asked.values(b"host") == [origin.authority.encode()]


async def test_fifty_that_ask_at_once_cause_one_fetch(server: TokenServer, asking: Asking) -> None:
    server.gate = Gate()
    waiting = [asyncio.create_task(asking.token()) for _ in range(50)]
    while not server.asked:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)
    server.gate.open()
    assert set(await asyncio.gather(*waiting)) == {b"token-1"}
    assert server.asked == 1


async def test_who_leaves_does_not_take_the_fetch_along(server: TokenServer, asking: Asking) -> None:
    server.gate = Gate()
    leaving, staying = asyncio.create_task(asking.token()), asyncio.create_task(asking.token())
    while not server.asked:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)
    leaving.cancel()
    server.gate.open()
    assert await staying == b"token-1"
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert server.asked == 1


async def test_a_token_is_kept_until_a_minute_before_its_end(server: TokenServer, asking: Asking) -> None:
    assert await asking.token() == b"token-1"
    asking.clock.now += 3600 - 61
    assert await asking.token() == b"token-1"
    assert server.asked == 1


async def test_it_is_renewed_before_its_end_while_requests_go_on_with_it(server: TokenServer, asking: Asking) -> None:
    assert await asking.token() == b"token-1"
    asking.clock.now += 3600 - 59
    server.gate = Gate()
    assert [await asking.token() for _ in range(10)] == [b"token-1"] * 10
    server.gate.open()
    while await asking.token() == b"token-1":  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)
    assert await asking.token() == b"token-2"
    assert server.asked == 2


async def test_a_token_past_its_end_is_never_given(server: TokenServer, asking: Asking) -> None:
    assert await asking.token() == b"token-1"
    asking.clock.now += 3600
    assert await asking.token() == b"token-2"


async def test_a_short_life_is_renewed_after_four_fifths(server: TokenServer, asking: Asking) -> None:
    server.life = 10
    assert await asking.token() == b"token-1"
    asking.clock.now += 7.9
    assert await asking.token() == b"token-1"
    assert server.asked == 1
    asking.clock.now += 2.1
    assert await asking.token() == b"token-2"


@pytest.mark.parametrize(("told", "life"), [(None, 300), ("120", 120), (1e12, 24 * 3600)])
async def test_the_life_that_is_told(server: TokenServer, asking: Asking, told: Any, life: float) -> None:
    server.life = told
    assert await asking.token() == b"token-1"
    asking.clock.now += life - 61
    assert await asking.token() == b"token-1"
    assert server.asked == 1
    asking.clock.now += 61
    assert await asking.token() == b"token-2"


async def test_a_failed_renewal_leaves_the_token_there_is(
    origin: Origin, server: TokenServer, asking: Asking, caplog: pytest.LogCaptureFixture
) -> None:
    assert await asking.token() == b"token-1"
    asking.clock.now += 3600 - 59
    origin.on(b"/token", reply(500, JSON, b'{"error": "server_error"}'))
    with caplog.at_level(logging.WARNING, "relay.upstreams.tokens"):
        while not caplog.records:
            assert await asking.token() == b"token-1"
            await asyncio.sleep(0)
    assert "answered 500" in caplog.text
    asking.clock.now += 60
    assert "answered 500" in await asking.problem()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, b"<html>s3cret</html>", "answered 500 with what is no JSON object"),
        (400, b'{"error": "invalid_client", "error_description": "s3cret"}', r"answered 400 \(invalid_client\)"),
        (401, b'{"error": "s3cret"}', "answered 401$"),
        (302, b"{}", "answered 302"),
        (200, b"not json s3cret", "no JSON object"),
        (200, b"[" * 20_000, "no JSON object"),
        (200, b'["access_token"]', "no JSON object"),
        (200, b"{}", "no access token"),
        (200, b'{"access_token": ""}', "no access token"),
        (200, b'{"access_token": 7}', "no access token"),
        (200, b'{"access_token": "a b"}', "no access token"),
        (200, b'{"access_token": "a\\r\\nx: y"}', "no access token"),
        (200, b'{"access_token": "' + b"x" * 17_000 + b'"}', "no access token"),
        (200, b'{"access_token": "a", "token_type": "mac"}', "another type"),
        (200, b'{"access_token": "a", "expires_in": 0}', "expires_in"),
        (200, b'{"access_token": "a", "expires_in": "soon"}', "expires_in"),
        (200, b'{"access_token": "a", "expires_in": true}', "expires_in"),
        (200, b'{"access_token": "a", "expires_in": NaN}', "expires_in"),
    ],
)
async def test_an_answer_that_is_no_token_is_refused(
    origin: Origin, asking: Asking, caplog: pytest.LogCaptureFixture, status: int, body: bytes, reason: str
) -> None:
    origin.on(b"/token", reply(status, JSON, body))
    problem = await asking.problem()
    assert re.search(reason, problem)
    assert "s3cret" not in caplog.text


async def test_an_answer_without_end_is_cut_off(origin: Origin, asking: Asking) -> None:
    origin.on(b"/token", reply(200, JSON, b" " * (tokens_room.MAX_ANSWER_BYTES + 1)))
    assert "longer than 65536 bytes" in await asking.problem()


async def test_a_server_that_says_nothing_is_given_up(
    origin: Origin, asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_room, "FETCH_SECONDS", 0.1)
    origin.on(b"/token", hang())
    problem = await asking.problem()
    assert "took longer" in problem or "HeadTimeout" in problem


async def test_after_a_failure_nobody_asks_for_some_seconds(origin: Origin, asking: Asking) -> None:
    asked = 0

    async def fail(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        await reply(503, JSON, b"{}")(exchange)

    origin.on(b"/token", fail)
    for _ in range(20):
        assert "answered 503" in await asking.problem()
    assert asked == 1
    asking.clock.now += tokens_room.RETRY_SECONDS
    await asking.problem()
    assert asked == 2


async def test_the_guard_stands_before_the_token_url(origin: Origin, server: TokenServer, asking: Asking) -> None:
    asking.upstream = replace(asking.upstream, allowed_networks=())
    assert "AddressRefused" in await asking.problem()
    assert origin.connections_made == 0


async def test_that_the_relay_has_no_descriptor_to_ask_with_is_not_the_upstreams_fault(
    server: TokenServer, asking: Asking, none_left: Descriptors
) -> None:
    end, none_left.upstreams_end = none_left.upstreams_end, 0
    with pytest.raises(errors.ServerFull):
        await asking.token()
    none_left.upstreams_end = end
    asking.clock.now += tokens_room.RETRY_SECONDS
    assert await asking.token() == b"token-1"


async def test_networks_of_the_credentials_own_open_the_token_url_alone(
    origin: Origin, server: TokenServer, asking: Asking
) -> None:
    asking.upstream, asking.grant = granted(origin, token_networks="127.0.0.0/8")
    asking.upstream = replace(asking.upstream, allowed_networks=())
    assert await asking.token() == b"token-1"
    asking.upstream, asking.grant = granted(origin, token_networks="10.0.0.0/8")
    assert asking.upstream.allowed_networks == (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    assert "AddressRefused" in await asking.problem()


async def test_a_refused_token_is_dropped_but_not_a_fresh_one(server: TokenServer, asking: Asking) -> None:
    token = await asking.token()
    asking.tokens.refused(asking.grant, token)
    assert await asking.token() == b"token-1"
    asking.clock.now += tokens_room.DROP_AFTER_SECONDS
    asking.tokens.refused(asking.grant, b"another")
    assert await asking.token() == b"token-1"
    asking.tokens.refused(asking.grant, token)
    assert await asking.token() == b"token-2"


async def test_tokens_of_grants_that_are_gone_are_forgotten(server: TokenServer, asking: Asking) -> None:
    assert await asking.token() == b"token-1"
    asking.tokens.keep(lambda slug, grant: (slug, grant) == ("o", asking.grant))
    assert await asking.token() == b"token-1"
    asking.tokens.keep(lambda slug, grant: False)
    assert await asking.token() == b"token-2"


async def test_closing_ends_a_fetch_under_way(server: TokenServer, asking: Asking) -> None:
    server.gate = Gate()
    waiting = asyncio.create_task(asking.token())
    while not server.asked:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)
    await asking.tokens.aclose()
    with pytest.raises(errors.TokenUnavailable):
        await waiting
    server.gate.open()
