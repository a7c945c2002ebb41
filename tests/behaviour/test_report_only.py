"""Report-only mode: what access would refuse passes, is logged and counted; all else is refused as ever."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.catalog import usage
from relay.rules.grants import Grant
from relay.serving import gate, underway
from tests.behaviour.conftest import Issued, Logged, Relayed
from tests.caller import Caller
from tests.origin import Origin, reply

UNKNOWN = (b"Relay-Key", b"rk_" + b"a" * 8 + b"B" * 43)


@pytest.fixture(autouse=True)
def answering(origin: Origin) -> None:
    origin.otherwise(reply())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """What would be counted in the database, by upstream and reason."""
    counted: list[tuple[int, str]] = []
    monkeypatch.setattr(usage, "note_would_refuse", lambda upstream, reason, moment: counted.append((upstream, reason)))
    return counted


def reporting(relayed: Relayed, **fields: Any) -> Any:
    return relayed(id=7, open_to_anyone=False, report_only=True, methods=frozenset({"GET"}), **fields)


async def test_what_access_would_refuse_passes_and_is_logged_and_counted(
    origin: Origin, relayed: Relayed, issued: Issued, caller: Caller, logged: Logged, counted: list[tuple[int, str]]
) -> None:
    key, _ = issued(reporting(relayed), grants=[Grant(prefixes=(b"/granted",))])
    expired, _ = issued(relayed(id=7, open_to_anyone=False, report_only=True), "late", expires_at=0.0)
    reporting(relayed)
    shown = (b"Relay-Key", key)
    cases: list[tuple[list[tuple[bytes, bytes]], bytes, bytes, str | None]] = [
        ([], b"GET", b"/x", "key-required"),
        ([UNKNOWN], b"GET", b"/x", "key-refused"),
        ([(b"Relay-Key", expired)], b"GET", b"/x", "key-refused"),
        ([shown], b"PUT", b"/granted", "method-not-allowed"),
        ([shown], b"GET", b"/other", "not-granted"),
        ([shown], b"GET", b"/granted", None),
    ]
    for fields, method, path, reason in cases:
        assert (await caller.get(b"/relay/o" + path, fields, method=method)).status == 200
        assert b"rk_" not in (await origin.next_request()).raw_head
        line = await logged.next()
        assert (line["outcome"], line.get("would_refuse")) == ("ok", reason)
    assert counted == [(7, reason) for *_, reason in cases if reason]
    assert underway.count() == 0


async def test_too_many_unknown_keys_pass_too(relayed: Relayed, caller: Caller, counted: list[tuple[int, str]]) -> None:
    reporting(relayed)
    for _ in range(gate.UNKNOWN_KEYS_AT_ONCE + 1):
        assert (await caller.get(b"/relay/o/x", [UNKNOWN])).status == 200
    assert counted[-2:] == [(7, "key-refused"), (7, "too-many-unknown-keys")]


@pytest.mark.parametrize(
    ("method", "path", "status"), [(b"TRACE", b"/x", 401), (b"trace", b"/x", 401), (b"GET", b"/../x", 400)]
)
async def test_what_is_no_matter_of_access_is_refused_all_the_same(
    origin: Origin,
    relayed: Relayed,
    caller: Caller,
    counted: list[tuple[int, str]],
    method: bytes,
    path: bytes,
    status: int,
) -> None:
    reporting(relayed)
    answer = await caller.get(b"/relay/o" + path, method=method)
    assert answer.status == status
    assert json.loads(answer.data)["status"] == status
    assert origin.connections_made == 0
    assert counted == []
