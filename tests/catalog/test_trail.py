"""The audit trail tells all there is to tell: played back from its beginning, it gives the tables as they are."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from relay.models import AuditEntry, Deed, HeaderRule, Target, Upstream
from relay.models.audit import CHANGED
from tests.catalog.test_loader import EDITS, Edits

pytestmark = pytest.mark.usefixtures("database")

KINDS = (Upstream, HeaderRule, Target)
LEFT_OUT = {"id", "changed_at", "changed_by", "value", "outbound_proxy"}
Rows = dict[tuple[str, str], dict[str, Any]]


def played_back() -> Rows:
    rows: Rows = {}
    for entry in AuditEntry.objects.order_by("pk"):
        key = (entry.object_type, entry.object_id)
        assert (key in rows) == (entry.action != Deed.ADDED), entry
        assert entry.changes, entry
        row = rows.setdefault(key, {})
        for field, change in entry.changes.items():
            if change == CHANGED:
                assert field == "value"
                continue
            before, after = change
            assert row.get(field) == before or (field not in row and before == ""), (entry, field)
            row[field] = after
            if after is None or after == "":
                del row[field]
        if entry.action == Deed.REMOVED:
            assert rows.pop(key) == {}
    return rows


def as_they_are() -> Rows:
    rows: Rows = {}
    for kind in KINDS:
        for row in kind._base_manager.all():
            values = {
                field.name: getattr(row, field.attname) for field in kind._meta.fields if field.name not in LEFT_OUT
            }
            if kind is Upstream:
                values["created_at"] = values["created_at"].isoformat()
            told = {name: value for name, value in values.items() if value is not None and value != ""}
            rows[kind._meta.label_lower, str(row.pk)] = told
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_the_trail_retells_the_tables_whatever_the_edits(seed: int, tmp_path: Path) -> None:
    edits = Edits(random.Random(seed), tmp_path)
    done: list[str] = []
    for _ in range(20):
        for name in edits.chance.choices(EDITS, k=edits.chance.randint(1, 3)):
            done.append(name)
            getattr(edits, name)()
        assert played_back() == as_they_are(), done


@pytest.mark.parametrize("name", EDITS)
def test_each_kind_of_edit_is_in_the_trail(name: str, tmp_path: Path) -> None:
    edits = Edits(random.Random(name), tmp_path)
    edits.bulk_create()
    edits.add_rule()
    edits.add_target()
    before, tables = AuditEntry.objects.count(), as_they_are()
    getattr(edits, name)()
    assert played_back() == as_they_are()
    secret_only = name in {"edit_rule", "update_rules"}
    assert (AuditEntry.objects.count() > before) == (as_they_are() != tables or secret_only)


@pytest.mark.parametrize("name", sorted(set(EDITS) - {"load_fixture"}))
def test_neither_change_nor_entry_outlives_a_transaction_that_is_rolled_back(name: str, tmp_path: Path) -> None:
    edits = Edits(random.Random(name), tmp_path)
    edits.bulk_create()
    edits.add_rule()
    before, tables = AuditEntry.objects.count(), as_they_are()
    with transaction.atomic():
        getattr(edits, name)()
        transaction.set_rollback(True)
    assert AuditEntry.objects.count() == before
    assert as_they_are() == tables
