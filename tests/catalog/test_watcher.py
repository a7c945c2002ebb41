"""The watch over the database: edits arrive, outages are survived and told, and nothing is left behind."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections

from relay import catalog
from relay.catalog import loader
from relay.catalog import watcher as watcher_module
from relay.catalog.watcher import CatalogState, Watcher
from relay.models import Upstream
from relay.signals import server_shutdown, server_startup
from tests.catalog.conftest import Database

Commit = Callable[..., Any]


def register(slug: str) -> None:
    Upstream.objects.create(slug=slug, base_url="https://api.example.com")


def is_live(slug: str) -> bool:
    return catalog.current().find(slug.encode()) is not None


class Listener(logging.Handler):
    """What the watcher logs, and a way to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.arrivals: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")
        self.arrivals.put_nowait(self.lines[-1])


@pytest.fixture
def log() -> Any:
    listener = Listener()
    logger = logging.getLogger("relay.catalog.watcher")
    logger.addHandler(listener)
    yield listener
    logger.removeHandler(listener)


async def test_start_publishes_what_is_saved(database: Database, commit: Commit) -> None:
    await commit(register, "a")
    watcher = Watcher()
    await watcher.start()
    assert is_live("a")
    assert watcher.state() == CatalogState(revision=1, healthy=True)
    await watcher.stop()


async def test_an_edit_is_seen_by_the_next_poll(watcher: Watcher, commit: Commit) -> None:
    await commit(register, "a")
    assert not is_live("a")
    await watcher.poll_now()
    assert is_live("a")
    await commit(Upstream.objects.filter(slug="a").update, enabled=False)
    await watcher.poll_now()
    assert not is_live("a")


async def test_an_edit_is_seen_without_being_asked_for(database: Database, commit: Commit, settings: Any) -> None:
    settings.RELAY_CATALOG_POLL_SECONDS = 0.01
    seen = asyncio.Event()
    watcher = Watcher()
    watcher.subscribe(lambda snapshot: seen.set() if len(snapshot) else None)
    await watcher.start()
    await commit(register, "a")
    async with asyncio.timeout(2):
        await seen.wait()
    assert is_live("a")
    await watcher.stop()


async def test_subscribers_hear_the_snapshot_in_force_after_each_poll(watcher: Watcher, commit: Commit) -> None:
    heard: list[catalog.Snapshot] = []
    hear = heard.append
    end = watcher.subscribe(hear)
    watcher.subscribe(hear)
    await watcher.poll_now()
    await commit(register, "a")
    await watcher.poll_now()
    assert [len(snapshot) for snapshot in heard] == [0, 1]
    assert heard[-1] is catalog.current()
    end()
    await watcher.poll_now()
    assert len(heard) == 2


async def test_a_subscriber_that_fails_does_not_keep_others_from_hearing(watcher: Watcher, log: Listener) -> None:
    def fail(_: catalog.Snapshot) -> None:
        raise LookupError

    heard: list[catalog.Snapshot] = []
    watcher.subscribe(fail)
    watcher.subscribe(heard.append)
    await watcher.poll_now()
    assert len(heard) == 1
    assert log.lines == ["ERROR A subscriber of the catalog failed."]


async def test_an_outage_is_survived_and_told_once_at_each_end(
    watcher: Watcher, database: Database, commit: Commit, log: Listener
) -> None:
    await commit(register, "a")
    await watcher.poll_now()
    with database.away():
        await watcher.poll_now()
        await watcher.poll_now()
        state = watcher.state()
        assert is_live("a")
        assert not state.healthy
        assert state.failing_since is not None
        assert state.error in {"OperationalError", "CannotConnectNow", "ObjectNotInPrerequisiteState"}
        assert state.revision == 1
    aged = watcher.state().age_seconds
    await commit(register, "b")
    await watcher.poll_now()
    assert is_live("b")
    assert watcher.state() == CatalogState(revision=2, healthy=True)
    assert watcher.state().age_seconds < aged
    assert [line.split()[0] for line in log.lines] == ["ERROR", "WARNING"]
    assert "127.0.0.1" not in "".join(log.lines)


async def test_a_lock_held_elsewhere_never_hangs_a_poll(
    watcher: Watcher, database: Database, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL gives the poll up after the statement time-out; SQLite's readers do not wait at all."""
    monkeypatch.setattr(loader, "STATEMENT_TIMEOUT_SECONDS", 0.05)
    locked, unlock = threading.Event(), threading.Event()

    def hold() -> None:
        with connections["default"].cursor() as cursor:
            if database.kind == "postgres":
                cursor.execute("BEGIN")
                cursor.execute("LOCK TABLE relay_revision IN ACCESS EXCLUSIVE MODE")
            else:
                cursor.execute("BEGIN EXCLUSIVE")
            locked.set()
            unlock.wait(10)
            cursor.execute("ROLLBACK")

    holder = asyncio.create_task(commit(hold))
    await asyncio.to_thread(locked.wait, 10)
    await watcher.poll_now()
    assert watcher.state().error == ("QueryCanceled" if database.kind == "postgres" else None)
    unlock.set()
    await holder
    await watcher.poll_now()
    assert watcher.state().healthy


async def test_a_poll_that_hangs_counts_as_failed_until_it_ends(
    database: Database, settings: Any, monkeypatch: pytest.MonkeyPatch, log: Listener
) -> None:
    settings.RELAY_CATALOG_POLL_SECONDS = 0.01
    go_on = threading.Event()
    polls = []

    def hang(since: catalog.Snapshot) -> None:
        polls.append(since)
        go_on.wait(10)

    watcher = Watcher(poll_deadline_seconds=0.01)
    monkeypatch.setattr(loader, "load_changes", hang)
    await watcher.start()
    async with asyncio.timeout(5):
        while "TimeoutError" not in await log.arrivals.get():
            pass
        assert watcher.state().error == "TimeoutError"
        assert len(polls) == 1
        go_on.set()
        while "Edits are seen again" not in await log.arrivals.get():
            pass
    assert watcher.state().healthy
    await watcher.stop()


async def test_stop_does_not_wait_for_a_poll_that_hangs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang(_: catalog.Snapshot) -> None:
        begun.set()
        go_on.wait(10)

    monkeypatch.setattr(loader, "load_changes", hang)
    monkeypatch.setattr(watcher_module, "STOP_SECONDS", 0.01)
    watcher = Watcher()
    await watcher.start()
    polling = asyncio.create_task(watcher.poll_now())
    await asyncio.to_thread(begun.wait, 10)
    async with asyncio.timeout(2):
        await watcher.stop()
        await polling
    go_on.set()


async def test_an_unexpected_failure_keeps_the_snapshot(
    watcher: Watcher, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await commit(register, "a")
    await watcher.poll_now()

    def fail(_: catalog.Snapshot) -> None:
        raise ZeroDivisionError("s3cret")

    with monkeypatch.context() as patch:
        patch.setattr(loader, "load_changes", fail)
        await watcher.poll_now()
    assert is_live("a")
    assert watcher.state().error == "ZeroDivisionError"


async def test_start_on_a_database_without_tables_says_what_to_do(database: Database, tmp_path: Any) -> None:
    connections.settings["default"] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "empty.sqlite3"),
        "OPTIONS": {},
    }
    watcher = Watcher()
    with pytest.raises(loader.CatalogUnreadable, match=r"manage\.py migrate"):
        await watcher.start()
    with pytest.raises(RuntimeError):
        await watcher.poll_now()


async def test_start_on_a_database_out_of_reach_says_what_to_do(database: Database, tmp_path: Any) -> None:
    connections.settings["default"] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "no" / "folder" / "s3cret.sqlite3"),
        "OPTIONS": {},
    }
    watcher = Watcher()
    with pytest.raises(loader.CatalogUnreadable, match="DATABASE_URL") as problem:
        await watcher.start()
    assert "s3cret" not in str(problem.value)


async def test_a_started_watcher_cannot_be_started_again(watcher: Watcher) -> None:
    with pytest.raises(RuntimeError):
        await watcher.start()


async def test_the_server_s_signals_start_and_stop_the_watch(database: Database, commit: Commit) -> None:
    await commit(register, "a")
    before = threading.enumerate()  # threads of watchers that were stopped may be about to end
    watcher_module.connect_signals()
    watcher_module.connect_signals()
    await server_startup.asend(sender=None)
    try:
        assert is_live("a")
        assert watcher_module.state().healthy
        made = [thread.name for thread in threading.enumerate() if thread not in before]
        assert made.count("relay-watcher_0") == 1
    finally:
        await server_shutdown.asend_robust(sender=None)
    await watcher_module.stop()


async def test_two_polls_at_once_do_not_overlap_and_both_see_what_committed_before(
    watcher: Watcher, commit: Commit
) -> None:
    await commit(register, "a")
    first = asyncio.create_task(watcher.poll_now())
    await commit(register, "b")
    await watcher.poll_now()
    assert is_live("b")
    await first
