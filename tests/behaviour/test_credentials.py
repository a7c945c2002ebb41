"""Upstreams are shown the relay's credentials, and never a caller's in their place; without one nothing is sent."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import trustme

from relay import errors
from relay.catalog import HeaderChanges, Target
from relay.rules.balancing import Balancing
from relay.rules.credentials import Credential, Given, combine, compile_credential
from relay.upstreams import client as client_room
from tests.behaviour.conftest import Logged, Relayed
from tests.caller import Caller
from tests.origin import Exchange, Origin, Received, echo, raw, reply, serving_context
from tests.serving_ground import Ground

KINDS: dict[str, dict[str, str]] = {
    "bearer": {},
    "header": {"name": "x-api-key"},
    "basic": {"identity": "user"},
    "query": {"name": "api_key"},
    "aws": {"identity": "AKIDEXAMPLE", "region": "eu-central-1", "service": "s3"},
}


def credential(kind: str, secret: str = "s3cret", **settings: str) -> Credential:
    return compile_credential(
        Given(credential_id="1", kind=kind, secrets={"secret": secret}, **(KINDS.get(kind, {}) | settings))
    )


def problem(data: bytes) -> str:
    kind: str = json.loads(data)["type"].removeprefix("urn:relay:error:")
    return kind


@pytest.fixture
def asked(origin: Origin) -> Origin:
    origin.otherwise(reply(200, body=b"fine"))
    return origin


# What is injected.


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("bearer", b"authorization", b"Bearer s3cret"),
        ("header", b"x-api-key", b"s3cret"),
        ("basic", b"authorization", b"Basic dXNlcjpzM2NyZXQ="),
    ],
)
@pytest.mark.parametrize(
    "callers",
    [
        [],
        [(b"Authorization", b"Bearer mine"), (b"X-Api-Key", b"mine")],
        [(b"AUTHORIZATION", b"a"), (b"authorization", b"b"), (b"X-API-KEY", b"c"), (b"x-api-key", b"d")],
        [(b"Connection", b"authorization, x-api-key"), (b"Authorization", b"mine")],
        [(b"Connection", b"close"), (b"Connection", b"X-Api-Key, Authorization")],
    ],
    ids=["none", "one each", "several", "nominated with a copy", "nominated"],
)
async def test_the_upstream_gets_the_relays_header_and_no_callers(
    asked: Origin,
    relayed: Relayed,
    caller: Caller,
    kind: str,
    name: bytes,
    value: bytes,
    callers: list[tuple[bytes, bytes]],
) -> None:
    relayed(credential=credential(kind))
    assert (await caller.get(b"/relay/o/a", headers=callers)).status == 200
    seen = asked.requests[0]
    assert seen.values(name) == [value]
    if kind != "header":
        assert b"s3cret" not in b"".join(other for each, other in seen.headers if each.lower() != name)


async def test_a_header_of_another_upstream_passes(asked: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(credential=credential("header"))
    await caller.get(b"/relay/o/a", headers=[(b"Authorization", b"Bearer mine")])
    assert asked.requests[0].values(b"authorization") == [b"Bearer mine"]


async def test_no_header_rule_has_a_word_after_the_credential(asked: Origin, relayed: Relayed, caller: Caller) -> None:
    changes = HeaderChanges(removed=frozenset({b"x-api-key"}), appended=((b"x-api-key", b"of the rule"),))
    relayed(credential=credential("header"), request_changes=changes)
    await caller.get(b"/relay/o/a")
    assert asked.requests[0].values(b"x-api-key") == [b"s3cret"]


async def test_a_spelling_with_underscores_does_not_pass_for_the_header(
    asked: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(credential=credential("header"))
    await caller.get(b"/relay/o/a", headers=[(b"X_Api_Key", b"mine"), (b"X-Api_Key", b"mine")])
    assert b"mine" not in asked.requests[0].raw_head


async def test_a_callers_trailer_does_not_carry_the_header(asked: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(credential=credential("bearer"))
    await caller.send(
        b"POST /relay/o/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n"
        b"1\r\nx\r\n0\r\nAuthorization: Bearer mine\r\n\r\n"
    )
    assert (await caller.read_head()).status == 200
    seen = asked.requests[0]
    assert seen.values(b"authorization") == [b"Bearer s3cret"]
    assert seen.trailers == []


@pytest.mark.parametrize(
    ("callers", "sent"),
    [(b"", b"?api_key=s3cret"), (b"?", b"?api_key=s3cret"), (b"?a=%zz&&b", b"?a=%zz&&b&api_key=s3cret")],
)
async def test_a_query_parameter_stands_behind_the_callers_query(
    asked: Origin, relayed: Relayed, caller: Caller, callers: bytes, sent: bytes
) -> None:
    relayed(credential=credential("query"))
    assert (await caller.get(b"/relay/o/a" + callers)).status == 200
    assert asked.requests[0].target == b"/a" + sent


@pytest.mark.parametrize("query", [b"api_key=mine", b"a=1&api%5Fkey=mine", b"API_KEY", b"api_key[]=mine"])
async def test_a_callers_own_parameter_is_refused(
    origin: Origin, relayed: Relayed, caller: Caller, query: bytes
) -> None:
    relayed(credential=credential("query"))
    answer = await caller.get(b"/relay/o/a?" + query)
    assert (answer.status, problem(answer.data)) == (400, "parameter-reserved")
    assert origin.connections_made == 0


async def test_the_secret_is_in_no_line_of_the_log(
    asked: Origin, relayed: Relayed, caller: Caller, logged: Logged
) -> None:
    relayed(credential=credential("query"))
    await caller.get(b"/relay/o/a?b=c")
    assert "s3cret" not in json.dumps(await logged.next())


# AWS.


def verify(seen: Received, secret: str) -> None:
    """As the other side does it: from what arrived, and by its own reading of the algorithm."""
    [value] = seen.values(b"authorization")
    found = re.fullmatch(
        rb"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/(\d{8})/eu-central-1/s3/aws4_request, "
        rb"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})",
        value,
    )
    assert found is not None
    date, names, signature = found.groups()
    lines = [name + b":" + b",".join(seen.values(name)) for name in names.split(b";")]
    path, _, query = seen.target.partition(b"?")
    request = b"\n".join([seen.method, path, query, *lines, b"", names, b"UNSIGNED-PAYLOAD"])
    scope = date + b"/eu-central-1/s3/aws4_request"
    [moment] = seen.values(b"x-amz-date")
    text = b"\n".join([b"AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(request).hexdigest().encode()])
    key = b"AWS4" + secret.encode()
    for part in (date, b"eu-central-1", b"s3", b"aws4_request", text):
        key = hmac.digest(key, part, "sha256")
    assert key.hex().encode() == signature
    assert {b"host", b"x-amz-content-sha256", b"x-amz-date"} <= set(names.split(b";"))


async def test_a_streamed_upload_is_signed_over_the_head_that_arrives(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    origin.on(b"/bucket/key", echo())
    relayed(credential=credential("aws"), base_path=b"/bucket")
    body = [b"a" * 70_000, b"b" * 70_000]
    answer = await caller.get(
        b"/relay/o/key?a=1&b=%20",
        method=b"PUT",
        headers=[
            (b"Content-Type", b"text/plain"),
            (b"X-Amz-Meta-Colour", b"green"),
            (b"Authorization", b"AWS4-HMAC-SHA256 Credential=mine"),
            (b"X-Amz-Date", b"20000101T000000Z"),
            (b"X-Amz-Content-Sha256", b"0" * 64),
            (b"X-Amz-Security-Token", b"mine"),
        ],
        body=body,
    )
    assert answer.status == 200
    seen = origin.requests[0]
    assert seen.body_length == 140_000
    assert seen.values(b"x-amz-content-sha256") == [b"UNSIGNED-PAYLOAD"]
    assert seen.values(b"x-amz-security-token") == []
    assert b"mine" not in seen.raw_head
    verify(seen, "s3cret")


@pytest.mark.parametrize("target_host", [True, False])
async def test_each_attempt_is_signed_for_the_host_that_it_asks_for(
    origin: Origin, relayed: Relayed, caller: Caller, target_host: bool
) -> None:
    async with Origin() as dying:
        dying.otherwise(raw(b""))
        origin.otherwise(echo())
        relayed(
            credential=credential("aws"),
            host="o.example",
            authority=b"o.example",
            target_host=target_host,
            balancing=Balancing.ROUND_ROBIN,
            listed_targets=targets_at(dying, origin),
        )
        assert (await caller.get(b"/relay/o/key?a=1")).status == 200
        for place in (dying, origin):
            [seen] = place.requests
            assert seen.values(b"host") == [place.authority.encode() if target_host else b"o.example"]
            assert len(seen.values(b"x-amz-date")) == 1
            verify(seen, "s3cret")


def targets_at(*origins: Origin) -> tuple[Target, ...]:
    return tuple(Target(host=o.host, port=o.port, authority=o.authority.encode()) for o in origins)


# OAuth.


class TokenServer:
    """/token of an origin; whoever shows another token than the last gets 401."""

    def __init__(self, origin: Origin) -> None:
        self.fetches = 0
        self.authorizations: set[bytes] = set()
        origin.on(b"/token", self.give)
        origin.on(b"/a", self.answer)

    async def give(self, exchange: Exchange) -> None:
        self.fetches += 1
        self.authorizations.update(exchange.head.values(b"authorization"))
        answer = {"access_token": f"token-{self.fetches}", "token_type": "bearer", "expires_in": 3600}
        await reply(200, body=json.dumps(answer).encode())(exchange)

    async def answer(self, exchange: Exchange) -> None:
        shown = exchange.head.values(b"authorization")
        await reply(200 if shown == [b"Bearer token-%d" % self.fetches] else 401, body=b"fine")(exchange)


@pytest.fixture
def server(origin: Origin, relayed: Relayed) -> TokenServer:
    oauth = credential("oauth", identity="client", auth_style="basic", token_url=f"{origin.url}/token")
    relayed(credential=oauth)
    return TokenServer(origin)


async def test_fifty_callers_at_once_cause_one_fetch(ground: Ground, server: TokenServer) -> None:
    async def call() -> int:
        async with Caller(ground.port) as caller:
            return (await caller.get(b"/relay/o/a", headers=[(b"Authorization", b"Bearer mine")])).status

    assert await asyncio.gather(*(call() for _ in range(50))) == [200] * 50
    assert server.fetches == 1
    assert [b64decode(shown.split()[1]) for shown in server.authorizations] == [b"client:s3cret"]


async def test_all_targets_are_shown_the_one_token_and_the_token_url_is_none_of_them(
    origin: Origin, relayed: Relayed, caller: Caller, server: TokenServer
) -> None:
    async with Origin() as dying, Origin() as good:
        dying.otherwise(raw(b""))
        good.otherwise(reply(body=b"fine"))
        oauth = credential("oauth", identity="client", auth_style="basic", token_url=f"{origin.url}/token")
        relayed(credential=oauth, balancing=Balancing.ROUND_ROBIN, listed_targets=targets_at(dying, good))
        assert (await caller.get(b"/relay/o/a")).status == 200
        for place in (dying, good):
            [seen] = place.requests
            assert seen.values(b"authorization") == [b"Bearer token-1"]
    assert [request.path for request in origin.requests] == [b"/token"]


async def test_a_token_that_the_upstream_refuses_is_fetched_anew_for_the_next(
    caller: Caller, server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    client = client_room.client
    assert client is not None
    monkeypatch.setattr(client.tokens, "clock", lambda: now)
    assert (await caller.get(b"/relay/o/a")).status == 200
    server.fetches += 1  # what it gave is not valid any more
    now += 60
    assert (await caller.get(b"/relay/o/a")).status == 401
    assert (await caller.get(b"/relay/o/a")).status == 200


async def test_without_a_token_the_upstream_is_not_called(
    origin: Origin, caller: Caller, server: TokenServer, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    origin.on(b"/token", reply(401, body=b'{"error": "invalid_client"}'))
    answer = await caller.get(b"/relay/o/a")
    assert (answer.status, problem(answer.data)) == (502, "token-unavailable")
    assert [seen.path for seen in origin.requests] == [b"/token"]
    assert (await logged.next())["detail"] == "the token URL answered 401 (invalid_client)"
    assert "s3cret" not in caplog.text


# Client certificates.


@pytest.fixture(scope="module")
def clients() -> trustme.CA:
    """Whose certificates the origin takes."""
    return trustme.CA()


@pytest_asyncio.fixture
async def strict(authority: trustme.CA, clients: trustme.CA) -> AsyncIterator[Origin]:
    """An origin that talks to nobody without a client certificate."""
    context = serving_context(authority, "127.0.0.1")
    clients.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    async with Origin(tls=context) as origin:
        origin.otherwise(reply(200, body=b"fine"))
        yield origin


def certificate(clients: trustme.CA) -> Credential:
    issued = clients.issue_cert("client.example")
    chain = "".join(blob.bytes().decode() for blob in issued.cert_chain_pems)
    return credential("certificate", issued.private_key_pem.bytes().decode(), certificates=chain)


def place(origin: Origin, authority: trustme.CA) -> dict[str, Any]:
    return {
        "scheme": "https",
        "port": origin.port,
        "authority": origin.authority.encode(),
        "ca_bundle": authority.cert_pem.bytes().decode(),
    }


async def test_an_origin_that_wants_a_client_certificate_gets_it(
    strict: Origin, relayed: Relayed, caller: Caller, authority: trustme.CA, clients: trustme.CA
) -> None:
    relayed(**place(strict, authority), credential=combine([certificate(clients), credential("bearer")]))
    for _ in range(3):
        assert (await caller.get(b"/relay/o/a")).data == b"fine"
    assert strict.requests[0].values(b"authorization") == [b"Bearer s3cret"]


async def test_without_it_or_with_a_strangers_the_origin_answers_nothing(
    strict: Origin, relayed: Relayed, caller: Caller, authority: trustme.CA
) -> None:
    for shown in (None, certificate(trustme.CA())):
        relayed(**place(strict, authority), credential=shown)
        assert (await caller.get(b"/relay/o/a")).status == 502
    assert strict.requests == []


async def test_another_certificate_takes_connections_of_its_own(
    strict: Origin, relayed: Relayed, caller: Caller, authority: trustme.CA, clients: trustme.CA
) -> None:
    for _ in range(2):
        relayed(**place(strict, authority), credential=certificate(clients))
        assert (await caller.get(b"/relay/o/a")).data == b"fine"
    assert strict.connections_made == 2


# What is at fault.


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (errors.CredentialUnconfirmed, "credential-unconfirmed"),
        (errors.CredentialUnusable, "credential-unusable"),
    ],
)
async def test_nothing_is_sent_without_a_credential_that_is_at_fault(
    origin: Origin, relayed: Relayed, caller: Caller, fault: type[errors.RelayError], kind: str
) -> None:
    relayed(credential=Credential(fault=fault))
    answer = await caller.get(b"/relay/o/a", headers=[(b"Authorization", b"Bearer mine")])
    assert (answer.status, problem(answer.data)) == (502, kind)
    assert origin.connections_made == 0


async def test_who_may_not_call_is_not_told_of_a_fault(relayed: Relayed, caller: Caller) -> None:
    relayed(credential=Credential(fault=errors.CredentialUnusable), open_to_anyone=False)
    assert (await caller.get(b"/relay/o/a")).status == 401
