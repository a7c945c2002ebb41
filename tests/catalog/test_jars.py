"""The jars of cookies: used at once, shared by all workers, sealed in the database, bounded, and never in the way."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from relay.catalog import Snapshot, Upstream, jar_rows, jars
from relay.catalog.jars import Jars
from relay.models import CookieMode, JarCookie, Revision, empty_jar
from relay.models import Upstream as UpstreamRow
from relay.rules import jar
from tests.behaviour.conftest import until as until_so
from tests.catalog.conftest import Database

Commit = Callable[..., Any]

WIKI = Upstream(
    slug="wiki",
    revision=1,
    scheme="http",
    host="wiki.example",
    port=80,
    authority=b"wiki.example",
    base_path=b"",
    relays_cookies=False,
    keeps_jar=True,
)


def register() -> None:
    UpstreamRow.objects.create(slug="wiki", base_url="http://wiki.example", cookie_mode=CookieMode.JAR)


def stored() -> dict[str, bytes]:
    """Of the jar in the database: names, and what stands for their values."""
    return {row.name: bytes(row.sealed_value) for row in JarCookie.objects.all()}


def revision() -> int:
    return Revision.objects.get(pk=1).value


@pytest_asyncio.fixture
async def wiki(database: Database, commit: Commit) -> Upstream:
    await commit(register)
    return WIKI


@pytest_asyncio.fixture
async def worker(wiki: Upstream) -> AsyncIterator[Jars]:
    async with started() as worker:
        yield worker


@pytest_asyncio.fixture
async def other(wiki: Upstream) -> AsyncIterator[Jars]:
    """The jars of another worker."""
    async with started() as other:
        yield other


async def until(true: Callable[[], object]) -> None:
    """Threads and databases take their time on a busy machine."""
    await until_so(true, within=20.0)


class started:  # noqa: N801 - reads as a verb
    def __init__(self) -> None:
        self.jars = Jars()

    async def __aenter__(self) -> Jars:
        await self.jars.start()
        return self.jars

    async def __aexit__(self, *_: object) -> None:
        await self.jars.stop()


async def follows(worker: Jars, commit: Commit) -> None:
    """What the watcher does after a poll that found another revision."""
    worker.follow(Snapshot(revision=await commit(revision)))
    await until(lambda: worker._reading is None)


async def written(worker: Jars) -> None:
    await until(lambda: not (worker._waiting or worker._being_written))


async def test_a_cookie_is_used_at_once_and_by_the_other_workers_soon(
    worker: Jars, other: Jars, commit: Commit
) -> None:
    worker.take(WIKI, [b"session=s3cret; Path=/", b"deep=1; Path=/a"], b"/sign-in")
    assert worker.cookie_header(WIKI, b"/a/b") == b"deep=1; session=s3cret"
    assert other.cookie_header(WIKI, b"/a/b") is None
    await written(worker)
    await follows(other, commit)
    assert other.cookie_header(WIKI, b"/a/b") == b"deep=1; session=s3cret"


async def test_values_are_sealed_and_bound_to_their_row(worker: Jars, commit: Commit) -> None:
    worker.take(WIKI, [b"a=s3cret; Path=/", b"b=other; Path=/"], b"/")
    await written(worker)
    values = await commit(stored)
    assert not any(b"s3cret" in value or b"other" in value for value in values.values())
    await commit(lambda: JarCookie.objects.filter(name="b").update(sealed_value=values["a"]))
    async with started() as restarted:
        assert restarted.cookie_header(WIKI, b"/") == b"a=s3cret"


async def test_a_jar_survives_a_restart(wiki: Upstream) -> None:
    async with started() as worker:
        worker.take(WIKI, [b"a=1; Max-Age=1000; Path=/x; Domain=example", b"b=2"], b"/x/y")
        before = worker.cookie_header(WIKI, b"/x/y")
    async with started() as worker:
        assert worker.cookie_header(WIKI, b"/x/y") == before == b"a=1; b=2"
        assert worker.cookie_header(WIKI, b"/y") is None


async def test_a_cookie_that_expires_is_taken_away_everywhere(worker: Jars, other: Jars, commit: Commit) -> None:
    worker.take(WIKI, [b"a=1; Path=/"], b"/")
    await written(worker)
    await follows(other, commit)
    other.take(WIKI, [b"a=; Path=/; Max-Age=0", b"unknown=; Max-Age=0"], b"/")
    assert other.cookie_header(WIKI, b"/") is None
    await written(other)
    await follows(worker, commit)
    assert worker.cookie_header(WIKI, b"/") is None
    assert await commit(stored) == {}


async def test_an_emptied_jar_is_empty_in_every_worker(worker: Jars, other: Jars, commit: Commit) -> None:
    worker.take(WIKI, [b"a=1; Path=/", b"b=2; Path=/"], b"/")
    await written(worker)
    await follows(other, commit)
    assert await commit(lambda: empty_jar(UpstreamRow.objects.get())) == 2
    for each in (worker, other):
        await follows(each, commit)
        assert each.cookie_header(WIKI, b"/") is None


@pytest.mark.parametrize(
    "edit",
    [
        lambda: UpstreamRow.objects.get().delete(),
        lambda: UpstreamRow.objects.update(slug="renamed"),
        lambda: UpstreamRow.objects.update(cookie_mode=CookieMode.DROP),
    ],
)
async def test_an_upstream_that_is_no_more_as_it_was_has_no_jar_in_memory(
    worker: Jars, commit: Commit, edit: Callable[[], object]
) -> None:
    worker.take(WIKI, [b"a=1; Path=/"], b"/")
    await written(worker)
    await commit(edit)
    await follows(worker, commit)
    assert worker.cookie_header(WIKI, b"/") is None


async def test_what_is_not_written_yet_stays_on_top_of_what_is_read(worker: Jars, other: Jars, commit: Commit) -> None:
    other.take(WIKI, [b"a=theirs; Path=/", b"b=theirs; Path=/"], b"/")
    await written(other)
    worker.take(WIKI, [b"a=ours; Path=/"], b"/")
    await follows(worker, commit)
    assert worker.cookie_header(WIKI, b"/") == b"a=ours; b=theirs"


async def test_the_same_cookie_again_is_not_written_again(worker: Jars, commit: Commit) -> None:
    worker.take(WIKI, [b"a=1; Path=/; Max-Age=1000"], b"/")
    await written(worker)
    before = await commit(revision)
    worker.take(WIKI, [b"a=1; Path=/; Max-Age=1000"], b"/")
    assert not worker._waiting
    assert await commit(revision) == before


async def test_a_jar_is_bounded_in_memory_and_in_the_database(worker: Jars, other: Jars, commit: Commit) -> None:
    for number in range(jar.MOST_COOKIES * 2):
        worker.take(WIKI, [b"w%d=1; Path=/" % number], b"/")
        other.take(WIKI, [b"o%d=1; Path=/" % number], b"/")
    assert len(worker._jars["wiki"]) == jar.MOST_COOKIES
    assert len(worker._waiting["wiki"]) <= jars.MOST_WAITING
    await written(worker)
    await written(other)
    assert len(await commit(stored)) <= jar.MOST_COOKIES
    for _ in range(5):
        other.take(WIKI, [b"n%d=%b; Path=/" % (n, b"x" * 4000) for n in range(20)], b"/")
    assert sum(cookie.size for cookie in other._jars["wiki"].values()) <= jar.MOST_BYTES


async def test_an_edit_of_the_jar_is_none_of_the_upstream(worker: Jars, commit: Commit) -> None:
    """Its connections stay: the picture of the upstream has the revision it had."""
    from relay.catalog import loader

    before = await commit(loader.load_all)
    worker.take(WIKI, [b"a=1; Path=/"], b"/")
    await written(worker)
    after = await commit(loader.load_changes, before)
    assert after.revision > before.revision
    assert after.find(b"wiki") is before.find(b"wiki")


async def test_a_database_that_is_away_costs_only_the_sharing(
    worker: Jars, database: Database, commit: Commit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars, "RETRY_SECONDS", 0.01)
    with caplog.at_level(logging.WARNING, "relay.catalog.jars"):
        with database.away():
            worker.take(WIKI, [b"a=s3cret; Path=/"], b"/")
            await until(lambda: caplog.messages)
            assert worker.cookie_header(WIKI, b"/") == b"a=s3cret"
        await until(lambda: len(caplog.messages) == 2)
    await written(worker)
    assert list(await commit(stored)) == ["a"]
    assert "s3cret" not in caplog.text
    assert caplog.messages[1] == "The jars of cookies are read and written again."


async def test_a_worker_without_a_database_keeps_its_jars_to_itself() -> None:
    worker = Jars()
    worker.take(WIKI, [b"a=1; Path=/"], b"/")
    worker.follow(Snapshot(revision=5))
    assert worker.cookie_header(WIKI, b"/") == b"a=1"
    await worker.stop()


async def test_many_changes_are_read_at_once(worker: Jars, commit: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jar_rows, "MANY_SLUGS", 0)
    async with started() as other:
        other.take(WIKI, [b"a=1; Path=/"], b"/")
        await written(other)
    await follows(worker, commit)
    assert worker.cookie_header(WIKI, b"/") == b"a=1"
