"""A key's rights end at once, also for what is under way: before the head with a 401, after it in the middle."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from relay import catalog
from relay.catalog import Upstream
from relay.catalog.roster import ApiKey, Consumer
from relay.rules.grants import Grant
from relay.serving import underway
from tests.behaviour.conftest import Issued, Logged, Relayed, publish_callers, until
from tests.caller import Caller, Ended, request_bytes
from tests.origin import Gate, Origin, hang, reply, sse
from tests.serving_ground import Ground


@pytest.fixture(autouse=True)
def answering(origin: Origin) -> None:
    origin.otherwise(reply())


async def opened(caller: Caller, key: bytes, slug: bytes = b"o") -> None:
    """A stream of which the head and one event have come."""
    await caller.send(request_bytes(b"/relay/%b/x" % slug, [(b"Relay-Key", key)], host=b"localhost"))
    assert (await caller.read_head()).status == 200
    await caller.read_chunk()


def regranted(consumer: Consumer, *, expires_at: float, grants: dict[int, tuple[Grant, ...]]) -> None:
    following = replace(consumer, grants=grants)
    publish_callers([(following, (ApiKey(following, "rk_whatever", expires_at),))])


def revoke(consumer: Consumer) -> None:
    """The same for the roster, whether keys are revoked or the consumer is switched off."""
    publish_callers([], [consumer.id])


def expire(consumer: Consumer) -> None:
    regranted(consumer, expires_at=time.time(), grants=consumer.grants)


def take_grant(consumer: Consumer) -> None:
    regranted(consumer, expires_at=time.time() + 60, grants={})


def narrow_grant(consumer: Consumer) -> None:
    regranted(consumer, expires_at=time.time() + 60, grants={0: (Grant(prefixes=(b"/y",)),)})


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (revoke, "unknown or revoked key"),
        (expire, "expired key"),
        (take_grant, "no grant here"),
        (narrow_grant, "outside of its grants"),
    ],
)
async def test_an_open_stream_is_cut_in_the_middle(
    origin: Origin,
    relayed: Relayed,
    issued: Issued,
    caller: Caller,
    logged: Logged,
    change: object,
    detail: str,
) -> None:
    key, consumer = issued(relayed(open_to_anyone=False))
    gate = Gate()
    gate.open()
    origin.on(b"/x", sse(gate))
    await opened(caller, key)
    assert callable(change)
    change(consumer)
    underway.judge_again(catalog.current())
    assert (await caller.read_body()).ended is Ended.TRUNCATED
    line = await logged.next()
    assert (line["status"], line["outcome"], line["detail"]) == (200, "key-revoked", detail)
    await origin.until_connections(0)


async def test_who_waits_for_the_head_is_told(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller, logged: Logged
) -> None:
    key, consumer = issued(relayed(open_to_anyone=False))
    origin.on(b"/x", hang())
    await caller.send(request_bytes(b"/relay/o/x", [(b"Relay-Key", key)], host=b"localhost"))
    await origin.next_exchange()
    revoke(consumer)
    underway.judge_again(catalog.current())
    head = await caller.read_head()
    document = json.loads((await caller.read_body()).data)
    assert (head.status, document["type"]) == (401, "urn:relay:error:key-revoked")
    assert head.values(b"www-authenticate") == [b'Bearer realm="relay", error="invalid_token"']
    assert (await logged.next())["outcome"] == "key-revoked"


async def test_who_is_in_the_middle_of_an_upload_is_told(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller
) -> None:
    key, consumer = issued(relayed(open_to_anyone=False))
    origin.on(b"/x", hang())
    head = [(b"Relay-Key", key), (b"Content-Length", b"1000000")]
    await caller.send(request_bytes(b"/relay/o/x", head, method=b"POST", host=b"localhost") + b"begun")
    await origin.next_exchange()
    revoke(consumer)
    underway.judge_again(catalog.current())
    assert (await caller.read_head()).status == 401
    await origin.until_connections(0)


async def test_a_key_that_runs_out_ends_its_streams_at_the_next_poll_though_nothing_changed(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires_at = time.time() + 60
    key, _ = issued(relayed(open_to_anyone=False), expires_at=expires_at)
    gate = Gate()
    gate.open()
    origin.on(b"/x", sse(gate))
    underway.judge_again(catalog.current())
    await opened(caller, key)
    underway.judge_again(catalog.current())
    gate.open()
    await caller.read_chunk()
    monkeypatch.setattr(underway, "time", lambda: expires_at)
    underway.judge_again(catalog.current())
    assert (await caller.read_body()).ended is Ended.TRUNCATED


async def test_streams_whose_rights_are_as_they_were_go_on(
    origin: Origin, relayed: Relayed, issued: Issued, ground: Ground
) -> None:
    closed = relayed("closed", id=1, open_to_anyone=False)
    opened_to_all = relayed("open", id=2)
    gates = [Gate() for _ in range(2)]
    for gate in gates:
        gate.open()
    waiting = iter(gates)
    origin.on(b"/x", lambda exchange: sse(next(waiting))(exchange))
    one, consumer = issued(closed, "one")
    other, gone = issued(opened_to_all, "other")
    async with Caller(ground.port) as first, Caller(ground.port) as second:
        await opened(first, one, b"closed")
        await opened(second, other, b"open")
        assert underway.count() == 1, "an upstream open to anyone asks no key of anybody"
        # Its picture is another one, its rights are the same; the upstream is switched off.
        regranted(consumer, expires_at=time.time() + 60, grants=consumer.grants)
        current = publish_callers([], [gone.id])
        catalog.publish(current.with_changes([], ["closed", "open"], revision=current.revision + 1))
        underway.judge_again(catalog.current())
        for gate, caller in zip(gates, (first, second), strict=True):
            gate.open()
            assert await caller.read_chunk()


async def test_an_exchange_that_is_over_is_no_longer_judged(relayed: Relayed, issued: Issued, caller: Caller) -> None:
    upstream: Upstream = relayed(open_to_anyone=False)
    key, consumer = issued(upstream)
    assert (await caller.get(b"/relay/o/x", [(b"Relay-Key", key)])).status == 200
    await until(lambda: underway.count() == 0)
    revoke(consumer)
    underway.judge_again(catalog.current())
    assert (await caller.get(b"/relay/o/x", [(b"Relay-Key", key)])).status == 401
