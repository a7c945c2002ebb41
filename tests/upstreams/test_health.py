"""Active checks: what is asked, what counts, who leads, and that verdicts are shared and outlive their finder."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from relay.catalog import Snapshot, Target
from relay.observing.descriptors import Descriptors
from relay.observing.families import Numbers
from relay.rules.health import Check
from relay.upstreams import client as client_room
from relay.upstreams import health, targets
from relay.upstreams.client import RelayClient
from relay.upstreams.health import Checker
from tests.behaviour.conftest import until, upstream_at
from tests.origin import Exchange, Gate, Origin, chunked, hang, raw, refusing_port, reply, truncate
from tests.upstreams.conftest import Seam, refusals_of

CHECK = Check(
    target=b"/healthz",
    method="GET",
    statuses=frozenset({200, 204}),
    body=b"",
    interval_seconds=0.05,
    timeout_seconds=5.0,
    failures=2,
    successes=2,
)

Checkers = Callable[..., Checker]


@pytest_asyncio.fixture
async def checkers(seam: Seam, tmp_path: Path) -> AsyncIterator[Checkers]:
    """Makes checkers that share a folder and the seam's transport; the first checks are due at once."""
    client_room.client = RelayClient(seam.transport)
    made: list[Checker] = []

    def make(folder: Path | None = tmp_path / "shared", draw: Callable[[], float] = lambda: 0.0) -> Checker:
        made.append(Checker(folder, draw=draw))
        return made[-1]

    try:
        yield make
    finally:
        client_room.client = None
        for checker in made:
            await checker.stop()
        targets.unhealthy = frozenset()


@pytest.fixture(autouse=True)
def healthy() -> Iterator[None]:
    targets.unhealthy = frozenset()
    yield
    targets.unhealthy = frozenset()


def checked(origin: Origin, slug: str = "o", **fields: Any) -> Snapshot:
    check = replace(CHECK, **{name: fields.pop(name) for name in list(fields) if name in Check.__slots__})
    return Snapshot([upstream_at(origin, slug=slug, check=check, **fields)], revision=1)


def leave(folder: Path) -> None:
    """As if the leader had not been heard of for long."""
    old = (folder / "health-lock").stat().st_mtime - health.DOUBTED_SECONDS - 1
    os.utime(folder / "health-lock", (old, old))


def key_of(origin: Origin, slug: str = "o") -> health.Key:
    return (slug, f"127.0.0.1:{origin.port}")


def numbers(checker: Checker) -> dict[str, dict[tuple[str, ...], float]]:
    told = Numbers()
    for family, sample in checker.read():
        told.add(family, sample)
    return told.samples


async def test_a_check_asks_for_its_path_and_shows_no_secret(origin: Origin, checkers: Checkers) -> None:
    origin.on(b"/base/healthz", reply(204))
    checker = checkers()
    checker.follow(checked(origin, target=b"/base/healthz", method="OPTIONS"))
    asked = await origin.next_request()
    assert (asked.method, asked.target) == (b"OPTIONS", b"/base/healthz")
    assert dict(asked.headers) == {
        b"host": f"127.0.0.1:{origin.port}".encode(),
        b"user-agent": b"relay-health-check",
        b"accept": b"*/*",
    }


async def test_checks_come_again_and_again_and_the_jitter_is_drawn(origin: Origin, checkers: Checkers) -> None:
    origin.on(b"/healthz", reply())
    checker = checkers()
    checker.follow(checked(origin))
    for _ in range(3):
        await origin.next_request()
    await until(lambda: numbers(checker).get("relay_health_checks_total", {}).get(("o", "good"), 0) >= 2)
    assert numbers(checker)["relay_target_healthy"] == {key_of(origin): 1}


@pytest.mark.parametrize(
    ("script", "fields", "reason"),
    [
        (reply(503), {}, "status 503"),
        (reply(200, body=b"degraded"), {"body": b"fine"}, "the text is not in the answer"),
        (reply(200, body=b"x" * health.MOST_READ_BYTES + b"fine"), {"body": b"fine"}, "the text is not in the answer"),
        (hang(), {"timeout_seconds": 0.05}, "no answer within 0.05 s"),
        (raw(b"", then="reset"), {}, "closed"),
        (raw(b"nonsense\r\n\r\n"), {}, ""),
        (truncate(10, 5), {"body": b"fine"}, "closed before the last byte that was announced"),
    ],
)
async def test_what_is_not_well_is_found_after_so_many_failures(
    script: Any, fields: dict[str, Any], reason: str, origin: Origin, checkers: Checkers, tmp_path: Path
) -> None:
    origin.on(b"/healthz", script)
    checker = checkers()
    checker.follow(checked(origin, **fields))
    await until(lambda: targets.unhealthy == {key_of(origin)})
    assert numbers(checker)["relay_health_checks_total"]["o", "bad"] >= CHECK.failures
    await until(lambda: bool(health.report(tmp_path / "shared")))
    [finding] = (health.report(tmp_path / "shared") or {}).values()
    assert reason in finding.reason or finding.reason == "reset"


@pytest.mark.parametrize("body", [b"all is fine", b"x" * (health.MOST_READ_BYTES - 4) + b"fine" + b"x" * 10_000])
async def test_the_text_may_be_anywhere_in_what_is_read(body: bytes, origin: Origin, checkers: Checkers) -> None:
    origin.on(b"/healthz", chunked([body[:3], body[3:]]))
    checker = checkers()
    checker.follow(checked(origin, body=b"fine"))
    await until(lambda: numbers(checker).get("relay_health_checks_total", {}).get(("o", "good"), 0) >= 1)
    assert targets.unhealthy == frozenset()


async def test_one_that_is_well_again_is_used_again(
    origin: Origin, checkers: Checkers, caplog: pytest.LogCaptureFixture
) -> None:
    origin.on(b"/healthz", reply(500))
    checkers().follow(checked(origin))
    await until(lambda: targets.unhealthy == {key_of(origin)})
    origin.on(b"/healthz", reply())
    await until(lambda: targets.unhealthy == frozenset())
    name = key_of(origin)[1]
    assert [record.message for record in caplog.records if record.name == "relay.upstreams.health"] == [
        f"Upstream o: target {name} is unhealthy (status 500).",
        f"Upstream o: target {name} is healthy again.",
    ]


async def test_each_target_has_a_verdict_of_its_own(origin: Origin, checkers: Checkers) -> None:
    origin.on(b"/healthz", reply())
    with refusing_port() as port:
        places = [Target(host="127.0.0.1", port=place, authority=b"a") for place in (origin.port, port)]
        checkers().follow(checked(origin, listed_targets=tuple(places)))
        await until(lambda: targets.unhealthy == {("o", f"127.0.0.1:{port}")})


async def test_descriptors_that_run_out_say_nothing_of_the_target(
    origin: Origin, checkers: Checkers, none_left: Descriptors
) -> None:
    """Checks go on meanwhile, and find it well when there are descriptors again."""
    origin.on(b"/healthz", reply())
    end, none_left.upstreams_end = none_left.upstreams_end, 0
    checker = checkers()
    checker.follow(checked(origin))
    await until(lambda: refusals_of(none_left) > CHECK.failures)
    assert numbers(checker)["relay_target_healthy"] == {key_of(origin): 1}
    none_left.upstreams_end = end
    await origin.next_request()


async def test_a_full_pool_says_nothing_of_the_target(origin: Origin, seam: Seam, checkers: Checkers) -> None:
    origin.on(b"/held", hang())
    checker = checkers()
    snapshot = checked(origin, max_connections=1, connect_timeout_seconds=0.05, failures=1)
    upstream = snapshot.find(b"o")
    assert upstream is not None
    asking = asyncio.create_task(seam.transport.handle_async_request(seam.request(b"/held", upstream=upstream)))
    await origin.next_exchange()
    checker.follow(snapshot)
    pool = next(seam.transport.pools())
    await until(lambda: pool.waiting == 1)
    await until(lambda: pool.waiting == 0)
    await until(lambda: pool.waiting == 1)
    assert (targets.unhealthy, numbers(checker)) == (frozenset(), {"relay_target_healthy": {key_of(origin): 1}})
    asking.cancel()
    await asyncio.wait([asking])


async def test_no_more_than_the_bound_are_under_way(
    origin: Origin, checkers: Checkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "MAX_CHECKS", 2)
    gate, under_way, most = Gate(), 0, 0

    async def counting(exchange: Exchange) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await gate.wait()
        under_way -= 1
        await reply()(exchange)

    origin.on(b"/healthz", counting)
    upstreams = [upstream_at(origin, slug=f"o{number}", check=CHECK) for number in range(5)]
    checkers().follow(Snapshot(upstreams, revision=1))
    for _ in range(2):
        await origin.next_exchange()
    gate.open(5)
    for _ in range(3):
        await origin.next_exchange()
    assert most == 2
    gate.open(1000)


# Edits.


async def test_what_is_no_longer_checked_has_no_verdict(origin: Origin, checkers: Checkers) -> None:
    origin.on(b"/healthz", reply(500))
    checker = checkers()
    checker.follow(checked(origin))
    await until(lambda: targets.unhealthy == {key_of(origin)})
    checker.follow(Snapshot([upstream_at(origin)], revision=2))
    assert targets.unhealthy == frozenset()
    assert numbers(checker).get("relay_target_healthy") is None


async def test_a_verdict_outlives_edits_that_leave_the_target(origin: Origin, checkers: Checkers) -> None:
    origin.on(b"/healthz", reply(500))
    checker = checkers()
    checker.follow(checked(origin))
    await until(lambda: targets.unhealthy == {key_of(origin)})
    other = upstream_at(origin, slug="other")
    edited = upstream_at(origin, revision=2, idle_timeout_seconds=7.0, check=replace(CHECK, target=b"/deep"))
    checker.follow(Snapshot([edited, other], revision=2))
    assert targets.unhealthy == {key_of(origin)}
    await until(lambda: any(request.target == b"/deep" for request in origin.requests))


async def test_a_shorter_interval_counts_at_once(origin: Origin, checkers: Checkers) -> None:
    origin.on(b"/healthz", reply())
    checker = checkers(draw=lambda: 0.5)
    checker.follow(checked(origin, interval_seconds=3600.0))
    checker.follow(checked(origin, revision=2))
    await origin.next_request()


async def test_jobs_that_come_and_go_leave_nothing_behind(origin: Origin, checkers: Checkers) -> None:
    checker = checkers(draw=lambda: 0.5)
    for revision in range(1, 400):
        checker.follow(checked(origin, interval_seconds=3600.0, revision=revision))
        checker.follow(Snapshot([upstream_at(origin)], revision=revision))
    assert len(checker._due) <= 2 + health.MAX_CHECKS


async def test_an_edit_plans_no_second_check(origin: Origin, checkers: Checkers) -> None:
    origin.on(b"/healthz", reply())
    checker = checkers()
    for revision in range(1, 20):
        checker.follow(checked(origin, revision=revision))
    await origin.next_request()
    await until(lambda: not checker._running)
    assert len(checker._due) == 1


# Who leads.


async def test_one_leads_and_the_other_hears(origin: Origin, checkers: Checkers) -> None:
    origin.on(b"/healthz", reply(500))
    snapshot = checked(origin)
    first, second = checkers(), checkers()
    first.follow(snapshot)
    second.follow(snapshot)
    assert (first.leads, second.leads) == (True, False)
    await until(lambda: targets.unhealthy == {key_of(origin)})
    await until(lambda: first._writing is None and not first._has_news)
    targets.unhealthy = frozenset()
    second.follow(snapshot)
    assert targets.unhealthy == {key_of(origin)}
    assert numbers(second) == {}


async def test_when_the_leader_is_gone_another_takes_its_verdicts_over(origin: Origin, checkers: Checkers) -> None:
    origin.on(b"/healthz", reply(500))
    snapshot = checked(origin)
    first, second = checkers(), checkers()
    first.follow(snapshot)
    await until(lambda: targets.unhealthy == {key_of(origin)})
    await until(lambda: first._writing is None and not first._has_news)
    await first.stop()
    targets.unhealthy = frozenset()
    origin.on(b"/healthz", reply())
    second.follow(snapshot)
    assert second.leads
    assert targets.unhealthy == {key_of(origin)}, "as the one before found it"
    await until(lambda: targets.unhealthy == frozenset())


async def test_without_a_folder_each_checks_for_itself(origin: Origin, checkers: Checkers) -> None:
    origin.on(b"/healthz", reply(500))
    checkers(None).follow(checked(origin))
    await until(lambda: targets.unhealthy == {key_of(origin)})


async def test_where_nothing_is_checked_nobody_leads(origin: Origin, checkers: Checkers, tmp_path: Path) -> None:
    checker = checkers()
    checker.follow(Snapshot([upstream_at(origin)], revision=1))
    assert not checker.leads
    assert not (tmp_path / "shared").exists()


async def test_the_file_is_private_to_the_relay(origin: Origin, checkers: Checkers, tmp_path: Path) -> None:
    origin.on(b"/healthz", reply())
    checkers().follow(checked(origin))
    path = tmp_path / "shared" / "health"
    await until(path.exists)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(path.read_text()) == {"format": health.FORMAT, "unhealthy": []}
    assert health.report(path.parent) == {}
    leave(path.parent)
    assert health.report(path.parent) is None, "nobody is checking"


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "unhealthy": [["a"]]}', "\0"])
async def test_a_file_that_cannot_be_read_is_told_and_changes_nothing(
    text: str, origin: Origin, checkers: Checkers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    origin.on(b"/healthz", reply())
    snapshot = checked(origin)
    first, second = checkers(), checkers()
    first.follow(snapshot)
    await until(lambda: first._writing is None and not first._has_news)
    targets.unhealthy = frozenset({("kept", "as it was")})
    path = tmp_path / "shared" / "health"
    path.write_text(text)
    for _ in range(3):
        second.follow(snapshot)
    assert targets.unhealthy == {("kept", "as it was")}
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1
    assert health.report(path.parent) is None


async def test_a_leader_that_is_not_heard_of_is_not_believed(
    origin: Origin, checkers: Checkers, tmp_path: Path
) -> None:
    origin.on(b"/healthz", reply(500))
    snapshot = checked(origin)
    first, second = checkers(), checkers()
    first.follow(snapshot)
    await until(lambda: targets.unhealthy == {key_of(origin)})
    await until(lambda: first._writing is None and not first._has_news)
    first._looking.cancel()
    second.follow(snapshot)
    assert targets.unhealthy == {key_of(origin)}
    leave(tmp_path / "shared")
    second.follow(snapshot)
    assert targets.unhealthy == frozenset()


async def test_a_leader_of_long_ago_leaves_no_verdict(origin: Origin, checkers: Checkers, tmp_path: Path) -> None:
    origin.on(b"/healthz", reply(500))
    snapshot = checked(origin)
    first = checkers()
    first.follow(snapshot)
    await until(lambda: targets.unhealthy == {key_of(origin)})
    await first.stop()
    leave(tmp_path / "shared")
    second = checkers(draw=lambda: 1.0)
    second.follow(checked(origin, interval_seconds=3600.0))
    assert second.leads
    assert targets.unhealthy == frozenset()
    path = tmp_path / "shared" / "health"
    await until(lambda: json.loads(path.read_text())["unhealthy"] == [])


async def test_a_folder_that_is_made_anew_has_one_leader(origin: Origin, checkers: Checkers, tmp_path: Path) -> None:
    origin.on(b"/healthz", reply())
    snapshot = checked(origin)
    first, second = checkers(), checkers()
    first.follow(snapshot)
    await until(lambda: first._writing is None and not first._has_news)
    (tmp_path / "shared").rename(tmp_path / "gone")
    second.follow(snapshot)
    first.follow(snapshot)
    assert (first.leads, second.leads) == (False, True)
    assert not first._jobs, "it leaves the checking to the other"


async def test_a_lock_that_cannot_be_had_at_all_is_told(
    origin: Origin, checkers: Checkers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    checker = checkers()
    for _ in range(2):
        checker.follow(checked(origin))
    assert not checker.leads
    assert len([record for record in caplog.records if "cannot be shared" in record.message]) == 1


async def test_a_folder_that_cannot_be_written_is_told_once(
    origin: Origin, checkers: Checkers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    checker = checkers(tmp_path / "file" / "folder")
    for _ in range(2):
        checker.follow(checked(origin))
    assert len([record for record in caplog.records if "cannot be shared" in record.message]) == 1


async def test_stopping_ends_what_is_under_way(origin: Origin, seam: Seam, checkers: Checkers) -> None:
    origin.on(b"/healthz", hang())
    checker = checkers()
    checker.follow(checked(origin))
    await origin.next_exchange()
    await checker.stop()
    await origin.until_connections(0)
    assert not checker._running
