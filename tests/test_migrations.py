"""New databases take one step, those from before it take theirs to the end, and both come to the same tables."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from django.core.management import call_command
from django.db.migrations.executor import MigrationExecutor
from pytest_django import DjangoDbBlocker

from tests.databases import default_database


def tables(path: Path) -> dict[tuple[str, str], list[str]]:
    """What each table and index is made of, in no order: columns that were added later come last."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {
        (kind, re.sub(r"_[0-9a-f]{8}(?=_|$)", "", name)): sorted(re.split(r", (?=[\"C])", sql.partition("(")[2][:-1]))
        for kind, name, sql in rows
    }


def test_a_database_that_took_some_of_the_steps_takes_the_others(
    tmp_path: Path, migrated_file: Path, django_db_blocker: DjangoDbBlocker
) -> None:
    path = tmp_path / "old.sqlite3"
    with default_database(f"sqlite:///{path}", django_db_blocker) as database:
        step_by_step = MigrationExecutor(database)
        step_by_step.loader.replace_migrations = False
        step_by_step.loader.build_graph()
        step_by_step.migrate([("relay", "0008_queue")])
        call_command("migrate", verbosity=0)
    assert tables(path) == tables(migrated_file)
