"""Who may call: a key in force with a grant, and nobody else. The key ends at the relay; what is not ours passes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import override_settings

from relay import conf
from relay.rules.grants import Grant
from relay.serving import gate
from tests.behaviour.conftest import Issued, Logged, Relayed
from tests.caller import Answer, Caller, request_bytes
from tests.origin import HeaderPairs, Origin, echo, reply
from tests.serving_ground import Ground

UNKNOWN = b"rk_" + b"a" * 8 + b"B" * 43
INVALID_TOKEN = [b'Bearer realm="relay", error="invalid_token"']


@pytest.fixture(autouse=True)
def answering(origin: Origin) -> None:
    origin.otherwise(reply())


def problem(answer: Answer) -> tuple[int, str]:
    return answer.status, json.loads(answer.data)["type"].removeprefix("urn:relay:error:")


def bearer(key: bytes) -> tuple[bytes, bytes]:
    return b"Authorization", b"Bearer " + key


@pytest.mark.parametrize("name", [b"Relay-Key", b"relay-key", b"RELAY-KEY"])
async def test_a_key_in_its_own_field_lets_in_and_ends_at_the_relay(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller, name: bytes
) -> None:
    key, _ = issued(relayed(open_to_anyone=False))
    answer = await caller.get(b"/relay/o/x", [(name, key)])
    assert answer.status == 200
    assert key[3:] not in (await origin.next_request()).raw_head


@pytest.mark.parametrize(
    "value", [b"Bearer %b", b"bearer %b", b"BEARER %b", b"Bearer  \t %b", b"Bearer\t%b", b"Bearer %b  "]
)
async def test_a_key_as_a_bearer_token_lets_in_and_ends_at_the_relay(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller, value: bytes
) -> None:
    key, _ = issued(relayed(open_to_anyone=False))
    answer = await caller.get(b"/relay/o/x", [(b"Authorization", value % key)])
    assert answer.status == 200
    request = await origin.next_request()
    assert request.values(b"authorization") == []
    assert key[3:] not in request.raw_head


async def test_the_same_key_may_be_in_both_fields(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller
) -> None:
    key, _ = issued(relayed(open_to_anyone=False))
    assert (await caller.get(b"/relay/o/x", [(b"Relay-Key", key), bearer(key), bearer(key)])).status == 200
    assert key[3:] not in (await origin.next_request()).raw_head


@pytest.mark.parametrize(
    "value",
    [
        b"Basic cmtfYTpi",
        b"Bearer eyJhbGciOi.J9",
        b'Digest username="rk_a", nonce="b"',
        b"Negotiate rk_x",
        b"rk_x",
        b"Bearer",
    ],
)
async def test_an_authorization_that_is_not_ours_passes_untouched(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller, value: bytes
) -> None:
    key, _ = issued(relayed(open_to_anyone=False))
    answer = await caller.get(b"/relay/o/x", [(b"Authorization", value), (b"Relay-Key", key)])
    assert answer.status == 200
    assert (await origin.next_request()).values(b"authorization") == [value]


async def test_an_open_upstream_gets_no_relay_key_either(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    for shown in ((b"Relay-Key", UNKNOWN), bearer(UNKNOWN), bearer(UNKNOWN + b", Bearer x"), bearer(b"rk_short")):
        assert (await caller.get(b"/relay/o/x", [shown])).status == 200
        assert b"rk_" not in (await origin.next_request()).raw_head


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Relay-Key", UNKNOWN), (b"Relay-Key", UNKNOWN)],
        [(b"Relay-Key", b""), (b"Relay-Key", UNKNOWN)],
        [(b"Relay-Key", UNKNOWN), bearer(UNKNOWN[:-1] + b"C")],
        [bearer(UNKNOWN[:-1] + b"C"), bearer(UNKNOWN)],
    ],
)
@pytest.mark.parametrize("open_to_anyone", [True, False])
async def test_keys_that_could_be_read_in_two_ways_are_refused(
    origin: Origin, relayed: Relayed, caller: Caller, fields: HeaderPairs, open_to_anyone: bool
) -> None:
    relayed(open_to_anyone=open_to_anyone)
    assert problem(await caller.get(b"/relay/o/x", fields)) == (400, "bad-request")
    assert origin.connections_made == 0


@pytest.mark.parametrize("nominated", [b"relay-key", b"Relay-Key, close", b"authorization"])
async def test_nominating_the_key_as_hop_by_hop_changes_nothing(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller, nominated: bytes
) -> None:
    key, _ = issued(relayed(open_to_anyone=False))
    answer = await caller.get(b"/relay/o/x", [(b"Relay-Key", key), bearer(key), (b"Connection", nominated)])
    assert answer.status == 200
    assert key[3:] not in (await origin.next_request()).raw_head


async def test_a_cache_in_front_is_told_that_the_answer_depends_on_the_key(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller
) -> None:
    origin.otherwise(reply(headers=[(b"Vary", b"Accept"), (b"Cache-Control", b"public, max-age=60")]))
    key, _ = issued(relayed("closed", id=1, open_to_anyone=False))
    relayed("open", id=2)
    closed = await caller.get(b"/relay/closed/x", [(b"Relay-Key", key)])
    assert closed.values(b"vary") == [b"Accept", b"relay-key, authorization"]
    assert (await caller.get(b"/relay/open/x", [(b"Relay-Key", key)])).values(b"vary") == [b"Accept"]


@pytest.mark.parametrize("fields", [[], [(b"Relay-Key", b"")], [(b"Authorization", b"Basic cmtfYTpi")]])
async def test_who_shows_no_key_is_asked_for_one(
    origin: Origin, relayed: Relayed, caller: Caller, fields: HeaderPairs
) -> None:
    relayed(open_to_anyone=False)
    answer = await caller.get(b"/relay/o/x", fields)
    assert problem(answer) == (401, "key-required")
    assert answer.values(b"www-authenticate") == [b'Bearer realm="relay"']
    assert origin.connections_made == 0


@pytest.mark.parametrize("shown", [UNKNOWN, b"rk_", b"rk_short", UNKNOWN + b"x", b"sk-somebody-elses", b"\xff" * 54])
async def test_a_key_that_nobody_has_is_refused(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller, shown: bytes
) -> None:
    issued(relayed(open_to_anyone=False))
    answer = await caller.get(b"/relay/o/x", [(b"Relay-Key", shown)])
    assert problem(answer) == (401, "key-refused")
    assert answer.values(b"www-authenticate") == INVALID_TOKEN
    assert shown not in answer.data
    assert origin.connections_made == 0


async def test_a_key_that_has_run_out_is_refused_and_the_log_says_why(
    relayed: Relayed, issued: Issued, caller: Caller, logged: Logged
) -> None:
    key, _ = issued(relayed(open_to_anyone=False), expires_at=time.time())
    assert problem(await caller.get(b"/relay/o/x", [(b"Relay-Key", key)])) == (401, "key-refused")
    line = await logged.next()
    assert (line["outcome"], line["detail"], line["key"]) == ("key-refused", "expired key", key[:11].decode())
    assert "consumer" not in line


@pytest.mark.parametrize(
    ("method", "path", "passes"),
    [
        (b"GET", b"/v1/chat", True),
        (b"HEAD", b"/v1/chat/a?b=c", True),
        (b"POST", b"/v1/chat/a", False),
        (b"GET", b"/v1/chatter", False),
        (b"GET", b"/v1", False),
        (b"GET", b"", False),
        (b"GET", b"/v1%2fchat", False),
        (b"POST", b"/up/", True),
        (b"POST", b"/up", False),
    ],
)
async def test_a_grant_is_a_method_and_a_path(
    relayed: Relayed, issued: Issued, caller: Caller, logged: Logged, method: bytes, path: bytes, passes: bool
) -> None:
    grants = [Grant(frozenset({"GET"}), (b"/v1/chat",)), Grant(frozenset({"POST"}), (b"/up/",))]
    key, _ = issued(relayed(open_to_anyone=False), grants=grants)
    answer = await caller.get(b"/relay/o" + path, [(b"Relay-Key", key)], method=method)
    assert answer.status == (200 if passes else 403)
    line = await logged.next()
    assert (line["outcome"], line["consumer"]) == ("ok" if passes else "not-granted", "somebody")


async def test_a_grant_of_one_upstream_is_none_of_another(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller
) -> None:
    relayed("a", id=1, open_to_anyone=False)
    key, _ = issued(relayed("b", id=2, open_to_anyone=False))
    answer = await caller.get(b"/relay/a/x", [(b"Relay-Key", key)])
    assert problem(answer) == (403, "not-granted")
    assert answer.values(b"www-authenticate") == [b'Bearer realm="relay", error="insufficient_scope"']
    assert (await caller.get(b"/relay/b/x", [(b"Relay-Key", key)])).status == 200


@pytest.mark.parametrize(
    ("slug", "fields", "method", "path", "expected"),
    [
        (b"nobody", [], b"DELETE", b"/..", (404, "upstream-unknown")),
        (b"o", [(b"Via", b"1.1 VIA")], b"DELETE", b"/..", (508, "loop")),
        (b"o", [], b"DELETE", b"/..", (401, "key-required")),
        (b"o", [(b"Relay-Key", UNKNOWN)], b"DELETE", b"/..", (401, "key-refused")),
        (b"o", [(b"Relay-Key", b"KEY")], b"DELETE", b"/..", (405, "method-not-allowed")),
        (b"o", [(b"Relay-Key", b"KEY")], b"GET", b"/granted/..", (400, "path-ambiguous")),
        (b"o", [(b"Relay-Key", b"KEY")], b"GET", b"/other", (403, "not-granted")),
    ],
)
async def test_the_first_thing_that_is_wrong_is_what_the_caller_is_told(
    relayed: Relayed,
    issued: Issued,
    caller: Caller,
    slug: bytes,
    fields: HeaderPairs,
    method: bytes,
    path: bytes,
    expected: tuple[int, str],
) -> None:
    upstream = relayed(open_to_anyone=False, methods=frozenset({"GET"}))
    key, _ = issued(upstream, grants=[Grant(prefixes=(b"/granted",))])
    stated = {b"KEY": key, b"1.1 VIA": b"1.1 " + conf.current().via.encode()}
    sent = [(name, stated.get(value, value)) for name, value in fields]
    assert problem(await caller.get(b"/relay/" + slug + path, sent, method=method)) == expected


async def test_nothing_of_a_body_is_asked_for_before_the_key_is_known(
    origin: Origin, relayed: Relayed, issued: Issued, ground: Ground
) -> None:
    key, _ = issued(relayed(open_to_anyone=False))
    origin.on(b"/x", echo())
    expecting = [(b"Expect", b"100-continue"), (b"Content-Length", b"5")]
    async with Caller(ground.port) as caller:
        await caller.send(request_bytes(b"/relay/o/x", expecting, method=b"POST", host=b"localhost"))
        assert (await caller.read_head()).status == 401
    async with Caller(ground.port) as caller:
        shown = [*expecting, (b"Relay-Key", key)]
        await caller.send(request_bytes(b"/relay/o/x", shown, method=b"POST", host=b"localhost"))
        assert (await caller.read_head()).status == 100


async def test_the_log_has_the_consumer_and_the_keys_prefix_and_never_the_key(
    relayed: Relayed, issued: Issued, caller: Caller, logged: Logged
) -> None:
    closed = relayed("closed", id=1, open_to_anyone=False)
    relayed("open", id=2)
    key, _ = issued(closed, "billing batch")
    for slug, shown in ((b"closed", key), (b"open", key), (b"open", UNKNOWN), (b"closed", UNKNOWN), (b"open", b"rk_x")):
        await caller.get(b"/relay/" + slug, [(b"Relay-Key", shown)])
    lines: list[dict[str, Any]] = [await logged.next() for _ in range(5)]
    assert [(line.get("consumer"), line.get("key")) for line in lines] == [
        ("billing batch", key[:11].decode()),
        ("billing batch", key[:11].decode()),
        (None, UNKNOWN[:11].decode()),
        (None, UNKNOWN[:11].decode()),
        (None, None),
    ]
    assert key[11:].decode() not in json.dumps(lines)


async def test_no_key_costs_a_query(
    relayed: Relayed, issued: Issued, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[BaseDatabaseWrapper] = []
    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", asked.append)
    key, _ = issued(relayed(open_to_anyone=False))
    for shown, status in ((UNKNOWN, 401), (b"rk_x", 401), (key, 200)):
        assert (await caller.get(b"/relay/o/x", [(b"Relay-Key", shown)])).status == status
    assert asked == []


async def test_an_address_that_shows_many_unknown_keys_is_told_to_wait_and_its_neighbours_pass(
    relayed: Relayed, issued: Issued, caller: Caller
) -> None:
    key, _ = issued(relayed(open_to_anyone=False))
    for number in range(gate.UNKNOWN_KEYS_AT_ONCE):
        shown = b"rk_%d" % number if number % 2 else UNKNOWN
        assert problem(await caller.get(b"/relay/o/x", [(b"Relay-Key", shown)])) == (401, "key-refused")
    answer = await caller.get(b"/relay/o/x", [(b"Relay-Key", UNKNOWN)])
    assert problem(answer) == (429, "too-many-unknown-keys")
    assert answer.values(b"retry-after") == [b"1"]
    assert (await caller.get(b"/relay/o/x", [(b"Relay-Key", key)])).status == 200
    assert problem(await caller.get(b"/relay/o/x")) == (401, "key-required")


async def test_unknown_keys_are_counted_by_the_address_behind_trusted_proxies(relayed: Relayed, ground: Ground) -> None:
    relayed(open_to_anyone=False)
    with override_settings(RELAY_TRUSTED_PROXIES=["127.0.0.1/32"]):
        async with Caller(ground.port) as caller:

            async def status_for(address: bytes) -> int:
                shown = [(b"Relay-Key", UNKNOWN), (b"X-Forwarded-For", address)]
                return (await caller.get(b"/relay/o/x", shown)).status

            # One customer's network of IPv6.
            many = [b"2001:db8::%x" % number for number in range(1, gate.UNKNOWN_KEYS_AT_ONCE + 2)]
            assert [await status_for(address) for address in many] == [401] * gate.UNKNOWN_KEYS_AT_ONCE + [429]
            assert await status_for(b"2001:db8:0:1::1") == 401
            assert await status_for(b"192.0.2.1") == 401


async def test_an_open_upstream_counts_no_unknown_keys(relayed: Relayed, caller: Caller) -> None:
    relayed()
    for _ in range(gate.UNKNOWN_KEYS_AT_ONCE + 1):
        assert (await caller.get(b"/relay/o/x", [(b"Relay-Key", UNKNOWN)])).status == 200
    assert len(gate.unknown_keys) == 0
