"""What the request path notes reaches the database in batches, off the event loop; nothing newer is overwritten."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from django.db import connection
from django.test.utils import CaptureQueriesContext

from relay.catalog import usage
from relay.catalog.usage import Usage
from relay.models import ApiKey, Consumer, Revision, Upstream, WouldRefuse
from relay.models.usage import KEPT_DAYS, add_counts, report, would_refuse
from tests.catalog.conftest import Database

pytestmark = pytest.mark.usefixtures("database")

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def key(database: Database) -> ApiKey:
    return issued("somebody")


def issued(name: str) -> ApiKey:
    return ApiKey.issue(Consumer.objects.create(name=name))[0]


def last_used(key: ApiKey) -> datetime | None:
    return ApiKey.objects.get(pk=key.pk).last_used_at


@pytest_asyncio.fixture
async def notes(database: Database) -> AsyncIterator[Usage]:
    """Open, and far from writing on its own."""
    notes = Usage(write_seconds=3600.0)
    notes.open()
    yield notes
    await notes.close()


def test_a_later_moment_replaces_an_earlier_one_and_never_the_other_way_round(key: ApiKey) -> None:
    for minutes, kept in ((0, 0), (5, 5), (3, 5), (5, 5), (6, 6)):
        usage.write({key.prefix: (NOON + timedelta(minutes=minutes)).timestamp()}, {})
        assert last_used(key) == NOON + timedelta(minutes=kept)


def test_a_batch_is_one_statement_for_all_of_its_keys_and_no_change_for_requests(key: ApiKey) -> None:
    others = [issued(f"c{number}") for number in range(20)]
    before = Revision.objects.get().value
    moments = {each.prefix: NOON.timestamp() + number for number, each in enumerate([key, *others])}
    with CaptureQueriesContext(connection) as queries:
        usage.write(moments | {"rk_gone": NOON.timestamp()}, {})
    assert len([query for query in queries if "UPDATE" in query["sql"]]) == 1
    assert [last_used(each) for each in [key, *others]] == [NOON + timedelta(seconds=number) for number in range(21)]
    assert Revision.objects.get().value == before


async def test_notes_wait_for_the_batch_and_the_end_writes_them(
    notes: Usage, commit: Callable[..., Any], database: Database
) -> None:
    key = await commit(issued, "somebody")
    upstream = await commit(Upstream.objects.create, slug="a", base_url="https://a.example.com")
    notes.note_key(key.prefix, NOON.timestamp())
    notes.note_key(key.prefix, NOON.timestamp() + 2)
    notes.note_key(key.prefix, NOON.timestamp() + 1)
    moment = datetime.now(UTC)
    for reason in ("key-required", "not-granted", "key-required"):
        notes.note_would_refuse(upstream.pk, reason, moment.timestamp())
    assert await commit(last_used, key) is None
    await notes.close()
    assert await commit(last_used, key) == NOON + timedelta(seconds=2)
    rows = await commit(lambda: sorted(WouldRefuse.objects.values_list("upstream_id", "reason", "day", "count")))
    assert rows == [(upstream.pk, "key-required", moment.date(), 2), (upstream.pk, "not-granted", moment.date(), 1)]


async def test_a_batch_is_written_when_its_time_has_come_and_then_the_next(
    commit: Callable[..., Any], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: asyncio.Queue[dict[str, float]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(
        usage, "write", lambda moments, counts: loop.call_soon_threadsafe(written.put_nowait, dict(moments))
    )
    notes = Usage(write_seconds=0.01)
    notes.open()
    try:
        for moment in (1.0, 2.0):
            notes.note_key("rk_a", moment)
            async with asyncio.timeout(5):
                assert await written.get() == {"rk_a": moment}
    finally:
        await notes.close()
    assert written.empty()


async def test_what_comes_while_a_batch_is_written_is_in_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: asyncio.Queue[dict[str, float]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    notes = Usage(write_seconds=0.01)

    def write(moments: dict[str, float], counts: object) -> None:
        if moments == {"rk_a": 1.0}:
            asyncio.run_coroutine_threadsafe(note_more(), loop).result(5)
        loop.call_soon_threadsafe(written.put_nowait, dict(moments))

    async def note_more() -> None:
        notes.note_key("rk_a", 2.0)

    monkeypatch.setattr(usage, "write", write)
    notes.open()
    try:
        notes.note_key("rk_a", 1.0)
        async with asyncio.timeout(5):
            assert [await written.get() for _ in range(2)] == [{"rk_a": 1.0}, {"rk_a": 2.0}]
    finally:
        await notes.close()


async def test_tables_are_bounded_and_what_is_in_them_still_counts(
    notes: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MAX_PENDING_KEYS", 2)
    monkeypatch.setattr(usage, "MAX_PENDING_COUNTS", 1)
    for moment, prefix in enumerate(["rk_a", "rk_b", "rk_c", "rk_a"]):
        notes.note_key(prefix, float(moment))
    for reason in ("key-required", "not-granted", "key-required"):
        notes.note_would_refuse(1, reason, 0.0)
    assert notes._take() == ({"rk_a": 3.0, "rk_b": 1.0}, {(1, "key-required", 0): 2})


async def test_closed_it_keeps_nothing(database: Database) -> None:
    notes = Usage()
    notes.note_key("rk_a", 1.0)
    notes.note_would_refuse(1, "key-required", 0.0)
    assert notes._take() == ({}, {})


async def test_a_database_that_is_away_costs_one_line_and_its_batches(
    database: Database, commit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = await commit(issued, "somebody")
    notes = Usage()
    with caplog.at_level(logging.WARNING, logger="relay.catalog.usage"):
        with database.away():
            for _ in range(2):
                await asyncio.to_thread(notes._write, {key.prefix: NOON.timestamp()}, {})
        for _ in range(2):
            await commit(notes._write, {key.prefix: NOON.timestamp() + 1}, {})
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert await commit(last_used, key) == NOON + timedelta(seconds=1)


async def test_the_end_waits_no_longer_than_its_bound(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    monkeypatch.setattr(usage, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(usage, "write", lambda moments, counts: release.wait(10))
    notes = Usage()
    notes.open()
    thread = notes._thread
    assert thread is not None
    notes.note_key("rk_a", 1.0)
    try:
        with caplog.at_level(logging.WARNING, logger="relay.catalog.usage"):
            async with asyncio.timeout(5):
                await notes.close()
        assert "not written in time" in caplog.text
    finally:
        release.set()
        await asyncio.to_thread(thread.shutdown)


def test_counts_are_added_by_upstream_reason_and_day_and_old_ones_go() -> None:
    upstream = Upstream.objects.create(slug="a", base_url="https://a.example.com")
    today = date(2026, 3, 10)
    old = today - timedelta(days=KEPT_DAYS)
    add_counts({(upstream.pk, "key-required", old): 5}, today=old)
    add_counts({(upstream.pk, "key-required", today): 2, (upstream.pk, "not-granted", today): 9}, today=today)
    add_counts({(upstream.pk, "key-required", today): 3, (upstream.pk + 1, "not-granted", today): 1}, today=today)
    assert would_refuse(upstream, today=today) == {"not-granted": 9, "key-required": 5}
    assert WouldRefuse.objects.filter(day=old).exists()
    later = today + timedelta(days=1)
    add_counts({(upstream.pk, "key-required", later): 1}, today=later)
    assert not WouldRefuse.objects.filter(day=old).exists()


def test_a_report_covers_seven_days_with_the_most_frequent_reason_first() -> None:
    upstream = Upstream.objects.create(slug="a", base_url="https://a.example.com")
    today = date(2026, 3, 10)
    for days, reason, count in ((0, "not-granted", 12), (6, "key-required", 1120), (7, "key-refused", 50)):
        day = today - timedelta(days=days)
        add_counts({(upstream.pk, reason, day): count}, today=day)
    counts = would_refuse(upstream, today=today)
    assert (
        report(counts)
        == "1,132 requests would have been refused in the last 7 days: key-required 1,120, not-granted 12"
    )
    assert report({"key-required": 1}) == "1 request would have been refused in the last 7 days: key-required 1"
    assert report({}) == "no request would have been refused in the last 7 days"


def test_counts_go_with_their_upstream_and_change_nothing_for_requests() -> None:
    upstream = Upstream.objects.create(slug="a", base_url="https://a.example.com")
    before = Revision.objects.get().value
    add_counts({(upstream.pk, "key-required", NOON.date()): 1}, today=NOON.date())
    assert Revision.objects.get().value == before
    upstream.delete()
    assert not WouldRefuse.objects.exists()
