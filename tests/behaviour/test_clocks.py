"""The wall clock is put an hour ahead or back while the relay serves: only what is a moment notices."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from relay.observing import access_log
from relay.rules import signing
from relay.serving import gate, underway
from relay.upstreams import targets
from tests.behaviour.conftest import Issued, Logged, Relayed
from tests.behaviour.test_keys import UNKNOWN
from tests.caller import Answer, Caller, request_bytes
from tests.origin import Exchange, Gate, Origin, reply
from tests.serving_ground import Ground

HOUR = 3600.0
Leap = Callable[[float], None]
LEAPS = pytest.mark.parametrize("seconds", [HOUR, -HOUR])


@pytest.fixture
def leap(monkeypatch: pytest.MonkeyPatch) -> Leap:
    """`leap(seconds)` puts the wall clock that much ahead of the system's."""
    of_the_system = time.time
    ahead = 0.0

    def now() -> float:
        return of_the_system() + ahead

    def by(seconds: float) -> None:
        nonlocal ahead
        ahead = seconds

    class Entry(access_log.Entry):
        """It has taken the clock as its own."""

        __slots__ = ()

        def __init__(self, *given: Any) -> None:
            super().__init__(*given, wall=now())

    monkeypatch.setattr(time, "time", now)
    monkeypatch.setattr(underway, "time", now)
    monkeypatch.setattr(access_log, "Entry", Entry)
    return by


def kind(answer: Answer) -> tuple[int, str]:
    return answer.status, json.loads(answer.data)["type"].removeprefix("urn:relay:error:")


@LEAPS
async def test_exchanges_under_way_and_idle_connections_go_on(
    origin: Origin, relayed: Relayed, caller: Caller, ground: Ground, logged: Logged, leap: Leap, seconds: float
) -> None:
    go_on = Gate()

    async def in_two_pieces(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nfour")
        await go_on.wait()
        await exchange.send(b"more")

    origin.on(b"/slow", in_two_pieces)
    origin.on(b"/x", reply(body=b"fine"))
    relayed(idle_timeout_seconds=60, total_timeout_seconds=600, keepalive_seconds=60)
    assert (await caller.get(b"/relay/o/x")).data == b"fine"
    await caller.send(request_bytes(b"/relay/o/slow", host=b"localhost"))
    assert (await caller.read_head()).status == 200
    leap(seconds)
    go_on.open()
    assert (await caller.read_body()).ended.cleanly
    assert (await caller.get(b"/relay/o/x")).data == b"fine"
    assert origin.connections_made == 1
    lines = [await logged.next() for _ in range(3)]
    assert [line["outcome"] for line in lines] == ["ok"] * 3
    assert all(0 <= line["total_ms"] < 60_000 for line in lines)
    moments = [datetime.fromisoformat(line["time"]).timestamp() for line in lines]
    assert abs(moments[2] - moments[1] - seconds) < 60


@LEAPS
async def test_a_throttle_goes_by_the_time_that_has_passed(
    relayed: Relayed, caller: Caller, leap: Leap, seconds: float
) -> None:
    relayed(open_to_anyone=False)
    for _ in range(gate.UNKNOWN_KEYS_AT_ONCE):
        assert kind(await caller.get(b"/relay/o/x", [(b"Relay-Key", UNKNOWN)])) == (401, "key-refused")
    leap(seconds)
    answers = [kind(await caller.get(b"/relay/o/x", [(b"Relay-Key", UNKNOWN)])) for _ in range(3)]
    assert (429, "too-many-unknown-keys") in answers


@LEAPS
async def test_an_open_breaker_stays_open(relayed: Relayed, leap: Leap, seconds: float) -> None:
    crew = targets.crew_of(relayed())
    (member,) = crew.members
    while (seat := crew.seat(None)) is not None:
        seat.settle(succeeded=False)
        seat.leave()
    leap(seconds)
    assert crew.seat(None) is None
    assert member.outstanding == 0


async def test_a_key_ends_by_the_wall_clock(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller, leap: Leap
) -> None:
    origin.on(b"/x", reply())
    key, _ = issued(relayed(open_to_anyone=False), expires_at=time.time() + 60)
    asked = [(b"Relay-Key", key)]
    assert (await caller.get(b"/relay/o/x", asked)).status == 200
    leap(HOUR)
    assert kind(await caller.get(b"/relay/o/x", asked)) == (401, "key-refused")
    leap(-HOUR)
    assert (await caller.get(b"/relay/o/x", asked)).status == 200


def test_a_signed_url_ends_by_the_wall_clock(leap: Leap) -> None:
    secret, key_id = b"s" * 32, "k" * signing.ID_CHARACTERS
    said: dict[str, Any] = {"method": "GET", "slug": b"o", "path": b"/x", "query": None}
    value = signing.sign(secret, key_id=key_id, expires_at=int(time.time()) + 60, **said)
    leap(HOUR)
    with pytest.raises(signing.SignatureExpired):
        signing.check(signing.read(value), secret, now=access_log.Entry("GET", b"", 0.0).wall, **said)
    leap(-HOUR)
    signing.check(signing.read(value), secret, now=access_log.Entry("GET", b"", 0.0).wall, **said)


@LEAPS
async def test_the_date_field_is_what_the_clock_says(
    origin: Origin, relayed: Relayed, caller: Caller, leap: Leap, seconds: float
) -> None:
    origin.on(b"/x", reply(body=b"fine"))
    relayed()
    leap(seconds)
    (value,) = (await caller.get(b"/relay/o/x")).values(b"date")
    told = datetime.strptime(value.decode(), "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC).timestamp()
    assert abs(told - time.time()) < 60
