"""The last good snapshot is kept, serves when the database is away at the start, and is never a wrong one."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from django.db import connections

from relay import catalog
from relay.catalog import loader, row_file
from relay.catalog import store as store_module
from relay.catalog.row_file import RowsUnusable
from relay.catalog.store import Store
from relay.catalog.watcher import Watcher
from relay.models import ApiKey, Consumer, Credential, Grant, HeaderRule, Revision, SigningKey, Upstream
from tests.catalog.conftest import Database
from tests.catalog.test_consumers import contents
from tests.catalog.test_watcher import Listener, is_live, register

Commit = Callable[..., Any]
SECRET, PROXY_PASSWORD, HEADER_SECRET = "s3cret-value", "proxy-pa55word", "header-s3cret"


@pytest.fixture
def folder(tmp_path: Path, settings: Any) -> Path:
    settings.RELAY_STORE_FOLDER = tmp_path / "catalog"
    return tmp_path / "catalog"


@pytest.fixture(autouse=True)
def writing_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WRITING_SHARE", 1e9)


@pytest_asyncio.fixture
async def store(database: Database, folder: Path) -> AsyncIterator[Store]:
    store = Store(folder)
    yield store
    await store.stop()


@pytest.fixture
def log() -> Iterator[Listener]:
    listener = Listener()
    logger = logging.getLogger("relay.catalog")
    logger.addHandler(listener)
    yield listener
    logger.removeHandler(listener)


def full_house() -> str:
    """One of everything that rows hold; gives the text of a key."""
    upstream = Upstream.objects.create(
        slug="a",
        base_url="https://a.example.com/v1",
        outbound_proxy=f"http://u:{PROXY_PASSWORD}@proxy.example.com:3128",
        keepalive_seconds=1.5,
        total_timeout_seconds=None,
    )
    for number in range(3):
        upstream.targets.create(
            address=f"t{number}.example.com", weight=number + 1, enabled=number != 1, backup=number == 2
        )
        HeaderRule.objects.create(upstream=upstream, name=f"x-{number}", value=HEADER_SECRET)
    Credential.put(upstream, "bearer", secrets={"secret": SECRET})
    register("b")
    Upstream.objects.create(slug="off", base_url="https://off.example.com", enabled=False)
    consumer = Consumer.objects.create(name="shop")
    Grant.objects.create(consumer=consumer, upstream=upstream, methods="GET", path_prefixes="/v1")
    SigningKey.make(consumer)
    return ApiKey.issue(consumer)[1]


def picture(snapshot: catalog.Snapshot) -> tuple[Any, ...]:
    return snapshot.revision, {upstream.slug: upstream for upstream in snapshot}, contents(snapshot)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def kept(store: Store) -> catalog.Snapshot:
    return (await store.load()).snapshot


async def test_what_is_kept_makes_the_same_snapshot_and_holds_no_secret(
    store: Store, folder: Path, commit: Commit
) -> None:
    await commit(full_house)
    await commit(store.keep, 0)
    stored, loaded = await kept(store), await commit(loader.load_all)
    assert picture(stored) == picture(loaded)
    upstream = stored.find(b"a")
    assert upstream is not None
    assert upstream.credential is not None
    assert upstream.credential.appended == ((b"authorization", f"Bearer {SECRET}".encode()),)
    assert [(target.name, target.weight, target.is_backup) for target in upstream.targets] == [
        ("t0.example.com:443", 1, False),
        ("t2.example.com:443", 3, True),
    ]
    assert [signer.signing_keys for signer in stored.roster] == [signer.signing_keys for signer in loaded.roster]
    whole = (folder / "snapshot").read_bytes()
    for secret in (SECRET, PROXY_PASSWORD, HEADER_SECRET, "a.example.com"):
        assert secret.encode() not in whole
    assert mode_of(folder / "snapshot") == 0o600
    assert mode_of(folder) == 0o700


async def test_secrets_in_files_are_read_anew_and_rows_that_cannot_be_read_are_left_out(
    store: Store, commit: Commit, tmp_path: Path, settings: Any, log: Listener
) -> None:
    settings.RELAY_CREDENTIALS_DIR = str(tmp_path / "credentials")
    secret = tmp_path / "credentials" / "a"
    secret.parent.mkdir()
    secret.write_text("first")

    def edit() -> None:
        upstream = Upstream.objects.create(slug="a", base_url="https://a.example.com")
        Credential.put(upstream, "bearer", secrets={}, references={"secret": f"file:{secret}"})
        register("bad")
        with connections["default"].cursor() as cursor:
            cursor.execute("UPDATE relay_upstream SET allowed_networks = '10.0.0.1/8' WHERE slug = 'bad'")

    await commit(edit)
    await commit(store.keep, 0)
    secret.write_text("second")
    stored = await kept(store)
    upstream = stored.find(b"a")
    assert upstream is not None
    assert upstream.credential is not None
    assert upstream.credential.appended == ((b"authorization", b"Bearer second"),)
    assert stored.find(b"bad") is None
    assert "Upstream bad is left out" in log.lines[-1]


async def test_the_relay_starts_from_the_store_and_recovers_alone(
    database: Database, folder: Path, commit: Commit, log: Listener
) -> None:
    await commit(register, "a")
    before = Watcher()
    await before.start()
    await until_kept(folder, revision=1)
    await before.stop()
    catalog.publish(catalog.Snapshot())
    os.utime(folder / "snapshot", (time.time() - 500, time.time() - 500))

    watcher = Watcher()
    with database.away():
        await watcher.start()
        state = watcher.state()
        assert is_live("a")
        assert (state.healthy, state.source, state.revision) == (False, "store", 1)
        assert 499 < state.age_seconds < 530
        await watcher.poll_now()
        assert watcher.state().source == "store"
        assert watcher.state().age_seconds > 499
    await commit(register, "b")
    await watcher.poll_now()
    state = watcher.state()
    assert is_live("b")
    assert (state.healthy, state.source) == (True, "database")
    assert state.age_seconds < 30
    told = [line for line in log.lines if not line.startswith("INFO")]
    assert [line.split()[0] for line in told] == ["ERROR", "WARNING", "WARNING"]
    assert "Edits are not seen" in told[0]
    assert "starts with the snapshot it stored 500 s ago" in told[1]
    assert "127.0.0.1" not in "".join(told)
    await watcher.stop()


async def test_the_first_poll_that_succeeds_trusts_nothing_that_was_stored(
    database: Database, folder: Path, commit: Commit
) -> None:
    """The database may have been restored meanwhile, and may be at the same revision with other rows."""
    await commit(register, "a")
    store = Store(folder)
    await commit(store.keep, 0)
    await store.stop()
    await commit(replace_everything, "b", 1)
    watcher = Watcher()
    with database.away():
        await watcher.start()
        assert is_live("a")
    await watcher.poll_now()
    assert (is_live("a"), is_live("b")) == (False, True)
    await watcher.stop()


def replace_everything(slug: str, revision: int) -> None:
    """As a database that was restored."""
    Upstream.objects.all().delete()
    register(slug)
    with connections["default"].cursor() as cursor:
        cursor.execute("DELETE FROM relay_change")
        cursor.execute("UPDATE relay_revision SET value = %s", [revision])


async def test_without_database_and_store_the_start_fails_and_names_both(database: Database, folder: Path) -> None:
    watcher = Watcher()
    with database.away(), pytest.raises(loader.CatalogUnreadable) as problem:
        await watcher.start()
    assert "database" in str(problem.value)
    assert "No stored snapshot can stand in for it: there is none yet." in str(problem.value)
    # Nobody waits in a stop for its threads, here or in the tests before, but they do end.
    for thread in threading.enumerate():
        if thread.name.startswith("relay-"):
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive(), thread.name


async def test_a_store_of_other_columns_is_told_in_one_line(
    database: Database, store: Store, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await commit(store.keep, 0)
    monkeypatch.setattr(store_module, "_COLUMNS", {**store_module._COLUMNS, "consumers": ("c1",)})
    told = pytest.raises(loader.CatalogUnreadable, match="another version of the relay, which has other columns")
    with database.away(), told:
        await Watcher().start()


async def test_a_database_that_does_not_answer_holds_the_start_for_a_bounded_time(
    database: Database, store: Store, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await commit(register, "a")
    await commit(store.keep, 0)
    go_on, load_all = threading.Event(), loader.load_all

    def hang() -> catalog.Snapshot:
        go_on.wait(10)
        return load_all()

    monkeypatch.setattr(loader, "load_all", hang)
    watcher = Watcher(start_deadline_seconds=0.01)
    await watcher.start()
    assert is_live("a")
    state = watcher.state()
    assert (state.healthy, state.source, state.error) == (False, "store", "TimeoutError")
    answered = asyncio.Event()
    watcher.subscribe(lambda _: answered.set())
    go_on.set()
    async with asyncio.timeout(10):
        await answered.wait()
    assert (watcher.state().healthy, watcher.state().source) == (True, "database")
    await watcher.stop()


async def test_a_database_that_is_only_slow_is_waited_for_where_there_is_no_store(
    database: Database, folder: Path, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await commit(register, "a")
    begun, go_on, load_all = threading.Event(), threading.Event(), loader.load_all

    def hang() -> catalog.Snapshot:
        begun.set()
        go_on.wait(10)
        return load_all()

    monkeypatch.setattr(loader, "load_all", hang)
    watcher = Watcher(start_deadline_seconds=0.0)
    starting = asyncio.create_task(watcher.start())
    await asyncio.to_thread(begun.wait, 10)
    go_on.set()
    await starting
    assert is_live("a")
    assert watcher.state().source == "database"
    await watcher.stop()


async def test_an_edit_reaches_the_file_and_an_unchanged_database_only_confirms_it(
    store: Store, folder: Path, commit: Commit
) -> None:
    await commit(store.keep, 0)
    path = folder / "snapshot"
    first = path.stat()
    os.utime(path, (first.st_mtime - 20, first.st_mtime - 20))
    await commit(store.keep, 0)
    assert path.stat().st_ino == first.st_ino
    assert path.stat().st_mtime >= first.st_mtime
    await commit(register, "a")
    await commit(store.keep, 0)
    assert path.stat().st_ino != first.st_ino
    assert (await kept(store)).find(b"a") is not None


async def test_cookies_in_jars_are_no_reason_to_write(store: Store, folder: Path, commit: Commit) -> None:
    await commit(store.keep, 0)
    written = (folder / "snapshot").stat().st_ino
    await commit(lambda: Revision.objects.filter(pk=1).update(value=9))
    await commit(store.keep, 0)
    assert (folder / "snapshot").stat().st_ino == written


async def test_a_restored_database_replaces_what_is_kept_whatever_its_number(
    store: Store, folder: Path, commit: Commit
) -> None:
    for slug in ("a", "b", "c"):
        await commit(register, slug)
    await commit(store.keep, 0)
    await commit(replace_everything, "older", 1)
    await commit(store.keep, 0)
    assert [upstream.slug for upstream in await kept(store)] == ["older"]
    # The same number, and nobody looked for a while.
    await commit(replace_everything, "other", 1)
    os.utime(folder / "snapshot", (1_000, 1_000))
    await commit(store.keep, 0)
    assert [upstream.slug for upstream in await kept(store)] == ["other"]


async def test_a_new_key_of_the_installation_seals_the_file_anew(store: Store, commit: Commit, settings: Any) -> None:
    settings.RELAY_ENCRYPTION_KEYS = ("first" * 8,)
    await commit(register, "a")
    await commit(store.keep, 0)
    settings.RELAY_ENCRYPTION_KEYS = ("second" * 8, "first" * 8)
    await commit(store.keep, 0)
    settings.RELAY_ENCRYPTION_KEYS = ("second" * 8,)
    assert (await kept(store)).find(b"a") is not None


async def test_a_file_that_is_dear_to_write_is_written_less_often_by_all_workers_together(
    store: Store, folder: Path, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "WRITING_SHARE", 0.000_01)
    await commit(store.keep, 0)
    await commit(register, "a")
    other = Store(folder)
    for each in (store, other):
        await commit(each.keep, 0)
    assert (await kept(store)).find(b"a") is None
    os.utime(folder / "lock", (time.time() - 1, time.time() - 1))
    await commit(other.keep, 0)
    assert (await kept(store)).find(b"a") is not None
    await other.stop()


@pytest.mark.parametrize("put", [3600, 100, 1, -100, -3600])
async def test_a_clock_that_was_put_holds_no_writing_up(store: Store, folder: Path, commit: Commit, put: int) -> None:
    """`put`: by how many seconds the last writing is in the future, or beyond what writing may have to wait for."""
    await commit(store.keep, 0)
    await commit(register, "a")
    noted = time.time() + put
    os.utime(folder / "lock", (noted, noted + 0.5))
    await commit(store.keep, 1)
    assert (await kept(store)).find(b"a") is not None


async def test_one_worker_at_a_time_writes_and_the_others_do_not_wait(
    store: Store, folder: Path, commit: Commit
) -> None:
    await commit(store.keep, 0)
    await commit(register, "a")
    with (folder / "lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        await commit(store.keep, 0)
        assert (await kept(store)).find(b"a") is None
    await commit(store.keep, 0)
    assert (await kept(store)).find(b"a") is not None


async def test_a_folder_that_cannot_be_written_is_told_once_at_each_end_and_ends_nothing(
    database: Database, folder: Path, commit: Commit, log: Listener
) -> None:
    await commit(folder.write_text, "no folder")
    watcher = Watcher()
    await watcher.start()
    await commit(register, "a")
    await watcher.poll_now()
    assert is_live("a")
    await watcher.stop()
    store = Store(folder)
    for _ in range(3):
        await commit(store.keep, 0)
    await commit(folder.unlink)
    for _ in range(2):
        await commit(store.keep, 0)
    await store.stop()
    told = [line for line in log.lines if "store" in line]
    # One of the watcher's own store, two of the other.
    assert [line.split()[0] for line in told][-2:] == ["ERROR", "WARNING"]
    assert len(told) <= 3
    assert f"cannot be stored in {folder} (" in told[0]


async def looked(store: Store) -> bool:
    """Whether a look is under way; it is over now."""
    keeping = store._keeping
    if keeping is not None:
        await asyncio.wait([keeping])
        await asyncio.sleep(0)  # what was to be told of its end comes in the loop's next round
    return keeping is not None


async def test_each_edit_is_stored_after_the_poll_that_saw_it(database: Database, folder: Path, commit: Commit) -> None:
    watcher = Watcher()
    await watcher.start()
    store = watcher._store
    assert store is not None
    await looked(store)
    for slug in ("a", "b", "c"):
        await commit(register, slug)
        await watcher.poll_now()
        await looked(store)  # if it is not over already
        assert row_file.read_head(folder / "snapshot").revision == watcher.state().revision
        assert (await kept(store)).find(slug.encode()) is not None
    await watcher.stop()


async def test_what_is_settled_is_only_confirmed_and_only_now_and_then(store: Store, folder: Path) -> None:
    store.follow(0)
    assert await looked(store)
    store.follow(0)
    assert not await looked(store)
    os.utime(folder / "snapshot", (time.time() - 20, time.time() - 20))
    store._confirm_at = 0.0
    store.follow(0)
    assert await looked(store)
    assert time.time() - (folder / "snapshot").stat().st_mtime < 20


async def test_what_another_worker_was_at_is_looked_at_again_after_the_next_poll(store: Store, folder: Path) -> None:
    store.follow(0)
    assert await looked(store)
    with (folder / "lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for _ in range(2):
            store.follow(1)
            assert await looked(store)
    store.follow(1)
    assert await looked(store)
    store.follow(1)
    assert not await looked(store)


async def test_a_write_that_fails_is_tried_again_after_pauses_that_grow(
    store: Store, folder: Path, commit: Commit, log: Listener
) -> None:
    await commit(folder.write_text, "no folder")
    pauses = []
    for _ in range(6):
        store.follow(0)
        assert await looked(store)
        pauses.append(store._retry_seconds)
        store.follow(0)
        assert not await looked(store)
        store._retry_at = 0.0
    assert pauses == [2, 4, 8, 10, 10, 10]
    await commit(folder.unlink)
    # Another worker's turn says nothing about whether it works.
    await commit(folder.mkdir)
    with (folder / "lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        store.follow(0)
        assert await looked(store)
        assert [line.split()[0] for line in log.lines] == ["ERROR"]
    store.follow(0)
    assert await looked(store)
    assert [line.split()[0] for line in log.lines] == ["ERROR", "WARNING"]
    assert (await kept(store)).revision == 0


async def test_an_outage_is_left_to_the_watcher_to_tell(
    store: Store, folder: Path, commit: Commit, database: Database, log: Listener
) -> None:
    await commit(store.keep, 0)
    before = (folder / "snapshot").stat()
    with database.away():
        await commit(store.keep, 0)
    assert (folder / "snapshot").stat() == before
    assert log.lines == []


async def test_stopping_gives_up_what_is_being_written(
    store: Store, folder: Path, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slug in ("a", "b", "c"):
        await commit(register, slug)
    monkeypatch.setattr(row_file, "CHUNK_ROWS", 1)
    store._stopping.set()
    await commit(store.keep, 0)
    assert await commit(lambda: [path.name for path in folder.iterdir()]) == ["lock"]
    with pytest.raises(RowsUnusable):
        await store.load()


async def until_kept(folder: Path, *, revision: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                if row_file.read_head(folder / "snapshot").revision == revision:
                    return
            except RowsUnusable:
                pass
            await asyncio.sleep(0.01)  # a file tells nobody that it is there


async def test_a_store_found_by_nobody_is_no_worse_than_none(database: Database, folder: Path, commit: Commit) -> None:
    """A file from before, of an installation whose keys are gone."""
    await commit(folder.mkdir)
    (folder / "snapshot").write_bytes(uuid4().bytes * 100)
    watcher = Watcher()
    await watcher.start()
    await until_kept(folder, revision=0)
    await watcher.stop()
