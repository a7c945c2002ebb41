"""The audit trail as CSV and JSON Lines, oldest entry first, in pieces of bounded size.

Each piece is one query of its own, from where the last one ended: no cursor stays open, and entries that come while it
runs are left out.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from django.db.models import Max, QuerySet

from relay.models.audit import AuditEntry

ENTRIES_A_PIECE = 200
COLUMNS = (
    "id",
    "moment",
    "actor",
    "source",
    "source_name",
    "address",
    "request_id",
    "action",
    "object_type",
    "object_id",
    "object_name",
    "upstream",
    "consumer",
    "changes",
)


class Format(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"

    @property
    def content_type(self) -> str:
        return {Format.CSV: "text/csv; charset=utf-8", Format.JSONL: "application/jsonl; charset=utf-8"}[self]


def pieces(entries: QuerySet[AuditEntry], form: Format) -> Iterator[str]:
    """Of these entries, whatever order they are in."""
    write = {Format.CSV: _csv, Format.JSONL: _json_lines}[form]
    entries = entries.order_by("pk")
    last, end = 0, entries.aggregate(end=Max("pk"))["end"] or 0
    if form is Format.CSV:
        yield _csv([COLUMNS])
    while some := list(entries.filter(pk__gt=last, pk__lte=end)[:ENTRIES_A_PIECE]):
        yield write([_values(entry) for entry in some])
        last = some[-1].pk


_Lines = list[tuple[Any, ...]]


def _values(entry: AuditEntry) -> tuple[Any, ...]:
    named = {"moment": entry.moment.isoformat(), "actor": entry.actor_name}
    return tuple(named[name] if name in named else getattr(entry, name) for name in COLUMNS)


def _json_lines(lines: _Lines) -> str:
    return "".join(json.dumps(dict(zip(COLUMNS, line, strict=True)), ensure_ascii=False) + "\n" for line in lines)


def _csv(lines: _Lines) -> str:
    piece = io.StringIO()
    csv.writer(piece).writerows([[_cell(value) for value in line] for line in lines])
    return piece.getvalue()


def _cell(value: Any) -> str:
    """Spreadsheets take a text that begins like this for a formula, and run it."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
