"""Databases of a test's own, outside Django's test transaction: a SQLite file, and PostgreSQL where one is named.

`RELAY_TEST_POSTGRES_URL` (such as postgres://user:password@127.0.0.1:5432/postgres) adds PostgreSQL to every test here;
a database is made next to the named one and dropped at the end.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import dj_database_url
import pytest
import pytest_asyncio
from django.core.management import call_command
from django.db import connections

from config.settings import _database as with_options
from relay import catalog
from relay.catalog.watcher import Watcher

Result = TypeVar("Result")
POSTGRES_URL = os.environ.get("RELAY_TEST_POSTGRES_URL", "")
KINDS = ["sqlite", "postgres"] if POSTGRES_URL else ["sqlite"]


class Database(Protocol):
    kind: str

    def settings(self) -> dict[str, Any]: ...

    def reset(self) -> None: ...

    def away(self) -> AbstractContextManager[None]: ...


class SqliteFile:
    kind = "sqlite"

    def __init__(self, folder: Path, migrated: Path) -> None:
        self.path = folder / "relay.sqlite3"
        self.migrated = migrated

    def settings(self) -> dict[str, Any]:
        return with_options(dict(dj_database_url.parse(f"sqlite:///{self.path}")))

    def reset(self) -> None:
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        shutil.copyfile(self.migrated, self.path)

    @contextmanager
    def away(self) -> Iterator[None]:
        """An empty file in its place: no tables."""
        hidden = self.path.with_suffix(".hidden")
        self.path.rename(hidden)
        try:
            yield
        finally:
            hidden.rename(self.path)


class PostgresDatabase:
    kind = "postgres"

    def __init__(self) -> None:
        self.name = f"relay_catalog_{os.getpid()}"
        self.is_migrated = False
        self._admin(f"CREATE DATABASE {self.name}")

    def _admin(self, *statements: str) -> None:
        import psycopg

        with psycopg.connect(POSTGRES_URL, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def settings(self) -> dict[str, Any]:
        # Without a pool, so that the database can be dropped.
        parsed = dict(dj_database_url.parse(POSTGRES_URL)) | {"NAME": self.name}
        settings = with_options(parsed)
        return settings | {"OPTIONS": {"connect_timeout": 5}}

    def reset(self) -> None:
        if not self.is_migrated:
            call_command("migrate", verbosity=0)
            self.is_migrated = True
        with connections["default"].cursor() as cursor:
            cursor.execute(
                "TRUNCATE relay_auditentry, relay_upstream, relay_change, relay_consumer, relay_consumerchange,"
                " relay_jarchange, relay_revision, auth_user, auth_group CASCADE"
            )
            cursor.execute("INSERT INTO relay_revision (id, value) VALUES (1, 0)")

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody can connect, and who was connected is not."""
        self._admin(
            f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'",
        )
        try:
            yield
        finally:
            self._admin(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS true")

    def drop(self) -> None:
        self._admin(f"DROP DATABASE {self.name} WITH (FORCE)")


@pytest.fixture(scope="session", params=KINDS)
def made_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        yield SqliteFile(tmp_path_factory.mktemp("catalog"), request.getfixturevalue("migrated_file"))
    else:
        postgres = PostgresDatabase()
        yield postgres
        postgres.drop()


@pytest.fixture
def database(made_database: Database, django_db_blocker: Any) -> Iterator[Database]:
    """Migrated, empty, and Django's default one in every thread; the catalog is empty too."""
    usual = connections.settings["default"]
    usual_connection = connections["default"]
    connections.settings["default"] = {**usual, **made_database.settings()}
    del connections["default"]
    before = catalog.current()
    catalog.publish(catalog.Snapshot())
    try:
        with django_db_blocker.unblock():
            made_database.reset()
            yield made_database
            connections["default"].close()
    finally:
        catalog.publish(before)
        connections.settings["default"] = usual
        connections["default"] = usual_connection


@pytest_asyncio.fixture
async def watcher(database: Database) -> AsyncIterator[Watcher]:
    """Started, on an empty database. It polls when told to: its own clock is far away."""
    watcher = Watcher()
    await watcher.start()
    yield watcher
    await watcher.stop()


@pytest.fixture(autouse=True)
def far_away_clock(settings: Any) -> None:
    settings.RELAY_CATALOG_POLL_SECONDS = 3600.0


@pytest.fixture
def commit(database: Database) -> Callable[..., Any]:
    """`await commit(edit, ...)`: in a thread of its own, as another process would."""

    async def commit(edit: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        def run() -> Result:
            try:
                return edit(*args, **kwargs)
            finally:
                connections.close_all()

        return await asyncio.to_thread(run)

    return commit
