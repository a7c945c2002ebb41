"""The database goes away and comes back: what is relayed is relayed, the admin says so, and nobody restarts anything.

With `RELAY_TEST_POSTGRES_URL` it is PostgreSQL behind a forwarder, too; else a SQLite file that is moved away.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from relay.catalog import row_file
from tests.behaviour.test_restarts import Load
from tests.caller import Answer, Caller
from tests.forwarder import Forwarder
from tests.origin import Origin, reply
from tests.serving_ground import ServedProcess

pytestmark = pytest.mark.timeout(180)
POSTGRES_URL = os.environ.get("RELAY_TEST_POSTGRES_URL", "")
KINDS = ["sqlite", "postgres"] if POSTGRES_URL else ["sqlite"]
SIGNED_IN = [(b"Cookie", b"sessionid=" + b"a" * 32)]


class Database(Protocol):
    environment: dict[str, str]

    async def leave(self) -> None: ...

    async def come_back(self) -> None: ...


class SqliteFile:
    """Moved away with what belongs to it. Who looks for it makes an empty one in its place."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._hidden = folder, folder / "hidden"
        self.environment = {"DATABASE_URL": f"sqlite:///{folder / 'db' / 'relay.sqlite3'}"}
        (folder / "db").mkdir()

    async def leave(self) -> None:
        (self._folder / "db").rename(self._hidden)
        (self._folder / "db").mkdir()

    async def come_back(self) -> None:
        # Moved, not removed: who looked for the database meanwhile may be making and removing files in it.
        (self._folder / "db").rename(Path(mkdtemp(prefix="meanwhile", dir=self._folder)) / "db")
        self._hidden.rename(self._folder / "db")


class PostgresBehindForwarder:
    def __init__(self, forwarder: Forwarder, name: str) -> None:
        parts = urlsplit(POSTGRES_URL)
        user = f"{parts.username}:{parts.password}" if parts.password else parts.username
        self.environment = {"DATABASE_URL": f"postgres://{user}@127.0.0.1:{forwarder.port}/{name}"}
        self.forwarder = forwarder

    async def leave(self) -> None:
        await self.forwarder.refuse()

    async def come_back(self) -> None:
        await self.forwarder.serve()


@asynccontextmanager
async def postgres_of_its_own() -> AsyncIterator[PostgresBehindForwarder]:
    import psycopg

    name = f"relay_outages_{os.getpid()}"

    async def admin(statement: str) -> None:
        async with await psycopg.AsyncConnection.connect(POSTGRES_URL, autocommit=True) as connection:
            await connection.execute(statement)

    parts = urlsplit(POSTGRES_URL)
    await admin(f"CREATE DATABASE {name}")
    try:
        async with Forwarder(parts.hostname or "127.0.0.1", parts.port or 5432) as forwarder:
            yield PostgresBehindForwarder(forwarder, name)
    finally:
        await admin(f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture(params=KINDS)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        yield SqliteFile(tmp_path)
    else:
        async with postgres_of_its_own() as postgres:
            yield postgres


async def get(served: ServedProcess, path: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> Answer:
    async with Caller(served.port, deadline_seconds=30) as caller:
        return await caller.get(path, headers or [])


async def catalog_of(served: ServedProcess) -> dict[str, Any]:
    answer = await get(served, b"/readyz")
    assert answer.status == 200
    told: dict[str, Any] = json.loads(answer.data)["catalog"]
    return told


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await holds():  # noqa: ASYNC110 - a server tells nobody what it has noticed
            await asyncio.sleep(0.05)


async def register(served: ServedProcess, slug: str, origin: Origin, *options: str) -> None:
    await served.register(slug, f"http://{origin.host}:{origin.port}", "--allow-network", "127.0.0.0/8", *options)


def stored_revision(data: Path) -> int:
    try:
        return row_file.read_head(data / "catalog" / "snapshot").revision
    except row_file.RowsUnusable:
        return -1


async def test_away_at_the_start_the_relay_serves_what_it_stored_and_recovers_alone(
    database: Database, tmp_path: Path, origin: Origin
) -> None:
    origin.on(b"/x", reply(body=b"fine"))
    data = tmp_path / "data"
    environment = {"RELAY_ACCESS_LOG": "off", **database.environment}
    async with ServedProcess(data_dir=data, environment=environment) as served:
        await register(served, "o", origin)
        issued = await served.manage("keys", "issue", "shop", "--upstream", "o")
        key = [(b"Relay-Key", issued.out.split()[-1].encode())]

        async def is_stored() -> bool:
            # The key came last: who lets it in has seen everything before it.
            knows_key = (await get(served, b"/relay/o/x", key)).data == b"fine"
            return knows_key and 0 < (await catalog_of(served))["revision"] == stored_revision(data)

        await until(is_stored)
    await database.leave()
    async with ServedProcess(data_dir=data, environment=environment, first_run=False) as served:
        assert (await get(served, b"/relay/o/x", key)).data == b"fine"
        assert (await get(served, b"/relay/o/x")).status == 401
        told = await catalog_of(served)
        assert (told["source"], told["database"]) == ("store", "unreachable")
        assert told["age_seconds"] > 0
        assert (await served.numbers())["relay_catalog_age_seconds"] > 0

        for path in (b"/admin/", b"/admin/relay/upstream/"):
            page = await get(served, path, SIGNED_IN)
            assert (page.status, page.values(b"retry-after")) == (503, [b"5"])
            assert b"The database is away" in page.data
            assert page.values(b"content-security-policy")

        await database.come_back()

        async def is_back() -> bool:
            return (await catalog_of(served))["database"] == "ok"

        await until(is_back)
        await register(served, "later", origin)
        assert (await get(served, b"/relay/later/x")).status == 401
        assert (await catalog_of(served))["source"] == "database"
        assert (await get(served, b"/admin/", SIGNED_IN)).status == 302
        log = "\n".join(served.output)
        assert log.count("Edits are not seen") == 1
        assert log.count("Edits are seen again") == 1
        assert "Traceback" not in log


async def test_without_database_and_store_serve_ends_with_what_to_do(database: Database, tmp_path: Path) -> None:
    async with ServedProcess(data_dir=tmp_path / "data", environment=database.environment) as served:
        pass
    for path in (tmp_path / "data" / "catalog").iterdir():
        path.unlink()
    await database.leave()
    done = await served.manage("serve", "--bind", "127.0.0.1:0")
    assert done.code == 2
    assert "DATABASE_URL" in done.err or "migrate" in done.err
    await database.come_back()


async def test_away_under_load_loses_nothing(database: Database, tmp_path: Path, origin: Origin) -> None:
    origin.on(b"/x", reply(body=b"fine"))
    environment = {"RELAY_ACCESS_LOG": "off", **database.environment}
    async with ServedProcess(data_dir=tmp_path / "data", environment=environment) as served:
        await register(served, "o", origin, "--access", "anyone")
        assert (await get(served, b"/relay/o/x")).status == 200
        async with Load(served.port) as load:
            for _ in range(2):
                await load.until_answered(100)
                await database.leave()
                await served.until_output("Edits are not seen", within=30)
                served.output.clear()
                assert (await get(served, b"/admin/", SIGNED_IN)).status == 503
                await load.until_answered(100)
                await database.come_back()

                async def is_back() -> bool:
                    return (await catalog_of(served))["database"] == "ok"

                await until(is_back)
                assert (await get(served, b"/admin/", SIGNED_IN)).status == 302
        assert load.failures == []


async def test_a_database_that_swallows_everything_holds_neither_start_nor_requests(
    tmp_path: Path, origin: Origin
) -> None:
    data = tmp_path / "data"
    async with ServedProcess(data_dir=data, environment={"RELAY_ACCESS_LOG": "off"}) as served:
        await register(served, "o", origin)

        async def is_stored() -> bool:
            return 0 < (await catalog_of(served))["revision"] == stored_revision(data)

        await until(is_stored)
    async with Forwarder("127.0.0.1", 9) as nowhere:
        nowhere.hang()
        environment = {"RELAY_ACCESS_LOG": "off", "DATABASE_URL": f"postgres://relay@127.0.0.1:{nowhere.port}/relay"}
        async with ServedProcess(data_dir=data, environment=environment, first_run=False, start_seconds=50) as served:
            assert (await get(served, b"/relay/o/x")).status == 401
            assert (await catalog_of(served))["source"] == "store"
            assert (await get(served, b"/admin/", SIGNED_IN)).status == 503
