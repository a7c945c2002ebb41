"""Scripts of other origins, on the wire: preflights end at the relay, answers and refusals can be read."""

from __future__ import annotations

import json

import pytest

from relay import errors
from relay.rules.cors import DEFAULT_HEADERS, CorsPolicy, compile_policy
from tests.behaviour.conftest import Relayed
from tests.caller import Caller, request_bytes
from tests.origin import Origin, reply

APP = b"https://app.example"
FROM_APP = (b"Origin", APP)
ASKS = [
    (b"Origin", APP),
    (b"Access-Control-Request-Method", b"POST"),
    (b"Access-Control-Request-Headers", b"content-type,relay-key"),
]


def policy(origins: str = APP.decode(), *, credentials: bool = False) -> CorsPolicy:
    compiled = compile_policy(
        origins=origins,
        methods="",
        headers=DEFAULT_HEADERS,
        exposed="X-Request-Id",
        allow_credentials=credentials,
        max_age_seconds=600,
    )
    assert compiled is not None
    return compiled


def cors_fields(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [pair for pair in headers if pair[0].startswith(b"access-control-")]


async def options(caller: Caller, path: bytes, fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    await caller.send(request_bytes(path, fields, method=b"OPTIONS", host=b"localhost"))
    head = await caller.read_head()
    assert head.status == 204
    return head.headers


async def test_a_preflight_is_answered_without_a_key_and_goes_no_further(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(open_to_anyone=False, methods=frozenset({"POST"}), cors=policy(credentials=True))
    headers = await options(caller, b"/relay/o/a", ASKS)
    assert cors_fields(headers) == [
        (b"access-control-allow-origin", APP),
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
        (b"access-control-allow-headers", b"Authorization, Content-Type, Relay-Key"),
        (b"access-control-max-age", b"600"),
        (b"access-control-allow-credentials", b"true"),
    ]
    assert (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers") in headers
    assert not origin.requests


async def test_a_preflight_of_another_origin_is_told_nothing(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(cors=policy())
    for others in (
        [(b"Origin", b"https://evil.example")],
        [(b"Origin", APP), (b"Origin", APP)],
        [(b"Origin", b"null")],
    ):
        assert cors_fields(await options(caller, b"/relay/o/a", [*others, *ASKS[1:]])) == []
    assert not origin.requests


async def test_other_requests_with_options_go_up(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(cors=policy())
    for fields in ([], ASKS[:1], ASKS[1:]):
        await caller.send(request_bytes(b"/relay/o/a", fields, method=b"OPTIONS", host=b"localhost"))
        await caller.read_head()
        await caller.read_body()
        assert (await origin.next_request()).method == b"OPTIONS"


async def test_answers_get_the_relays_fields_in_the_place_of_the_upstreams(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(cors=policy())
    own = [
        (b"Access-Control-Allow-Origin", b"*"),
        (b"Access-Control-Expose-Headers", b"X-Secret"),
        (b"Vary", b"Accept"),
    ]
    origin.on(b"/a", reply(200, own, b"ok"))
    answer = await caller.get(b"/relay/o/a", [FROM_APP])
    assert cors_fields(answer.head.headers) == [
        (b"access-control-allow-origin", APP),
        (b"access-control-expose-headers", b"X-Request-Id"),
    ]
    assert answer.values(b"vary") == [b"Accept", b"Origin"]
    assert (await origin.next_request()).values(b"origin") == [APP]
    answer = await caller.get(b"/relay/o/a", [(b"Origin", b"https://evil.example")])
    assert (cors_fields(answer.head.headers), answer.values(b"vary")) == ([], [b"Accept", b"Origin"])


async def test_without_a_policy_nothing_is_added_and_the_upstreams_own_passes(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    own = [(b"access-control-allow-origin", b"https://app.example"), (b"access-control-max-age", b"5")]
    origin.on(b"/a", reply(204, own))
    assert cors_fields((await caller.get(b"/relay/o/a", [FROM_APP])).head.headers) == own
    assert cors_fields(await options(caller, b"/relay/o/a", ASKS)) == own
    assert [request.method for request in origin.requests] == [b"GET", b"OPTIONS"]


@pytest.mark.parametrize(
    ("fields", "path", "error"),
    [
        ({"open_to_anyone": False}, b"/relay/o/a", errors.KeyRequired),
        ({"methods": frozenset({"POST"})}, b"/relay/o/a", errors.MethodRefused),
        ({}, b"/relay/o/%2e%2e/a", errors.PathRefused),
        ({"port": 1}, b"/relay/o/a", errors.ConnectionRefused),
        ({"allowed_networks": ()}, b"/relay/o/a", errors.EgressRefused),
        ({"max_response_bytes": 1}, b"/relay/o/a", errors.ResponseTooLarge),
    ],
)
async def test_scripts_can_read_why_they_were_refused(
    origin: Origin,
    relayed: Relayed,
    caller: Caller,
    fields: dict[str, object],
    path: bytes,
    error: type[errors.RelayError],
) -> None:
    relayed(cors=policy("*"), **fields)
    origin.on(b"/a", reply(200, body=b"too long"))
    answer = await caller.get(path, [FROM_APP])
    assert (answer.status, json.loads(answer.data)["type"]) == (error.status, error().type_uri)
    assert cors_fields(answer.head.headers) == [
        (b"access-control-allow-origin", b"*"),
        (b"access-control-expose-headers", b"X-Request-Id"),
    ]


async def test_a_time_out_can_be_read_as_well(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    from tests.origin import hang

    relayed(cors=policy(), total_timeout_seconds=0.05)
    origin.on(b"/a", hang())
    answer = await caller.get(b"/relay/o/a", [FROM_APP])
    assert (answer.status, answer.values(b"access-control-allow-origin")) == (504, [APP])
