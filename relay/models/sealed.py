"""Which columns hold sealed secrets, so that rotating and checking them needs to know of no table in particular.

A model with such a column registers it with one line: `register(Model, "column", purpose="...")`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import models, transaction

from relay import vault

BATCH = 200
"""Rows of one transaction."""


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """`purpose` and `row_of` are those it was sealed with. An empty value is none."""

    model: type[models.Model]
    column: str
    purpose: str
    row_of: Callable[[Any], str]

    @property
    def label(self) -> str:
        return f"{self.model._meta.model_name}.{self.column}"

    def rows(self, *, using: str) -> models.QuerySet[Any]:
        # A plain queryset: that a secret is sealed with another key changes no request, and is recorded nowhere.
        return models.QuerySet(self.model, using=using)


_columns: list[SealedColumn] = []


def register(
    model: type[models.Model],
    column: str,
    *,
    purpose: str,
    row_of: Callable[[Any], str] = lambda instance: str(instance.pk),
) -> None:
    _columns.append(SealedColumn(model, column, purpose, row_of))


def columns() -> tuple[SealedColumn, ...]:
    return tuple(_columns)


@dataclass(slots=True)
class Rotated:
    """What came of one column's rows."""

    sealed_anew: int = 0
    newest_already: int = 0
    broken: int = 0


def rotate(column: SealedColumn, *, using: str) -> Rotated:
    """Seal every value with the newest key, one transaction a batch. What does not open is left as it is. A value that
    was written meanwhile is not overwritten."""
    ring = vault.keyring()
    result = Rotated()
    for keys in _batches(column, using=using):
        with transaction.atomic(using=using):
            for row in column.rows(using=using).filter(pk__in=keys):
                sealed = bytes(getattr(row, column.column) or b"")
                where = {"purpose": column.purpose, "row": column.row_of(row)}
                if not sealed:
                    continue
                try:
                    secret = ring.open(sealed, **where)
                except vault.SealBroken:
                    result.broken += 1
                    continue
                if ring.is_newest(sealed):
                    result.newest_already += 1
                    continue
                unchanged = column.rows(using=using).filter(pk=row.pk, **{column.column: sealed})
                result.sealed_anew += unchanged.update(**{column.column: ring.seal(secret, **where)})
    return result


def broken(column: SealedColumn, *, using: str) -> Iterator[tuple[Any, str]]:
    """The rows whose value does not open, each with what to do."""
    ring = vault.keyring()
    for keys in _batches(column, using=using):
        for row in column.rows(using=using).filter(pk__in=keys):
            sealed = bytes(getattr(row, column.column) or b"")
            if sealed:
                try:
                    ring.open(sealed, purpose=column.purpose, row=column.row_of(row))
                except vault.SealBroken as problem:
                    yield row, str(problem)


def older(column: SealedColumn, *, using: str) -> int:
    """How many values hang on a key that is not the newest."""
    ring = vault.keyring()
    values = column.rows(using=using).values_list(column.column, flat=True).iterator(chunk_size=BATCH)
    return sum(1 for value in values if value and not ring.is_newest(bytes(value)))


def _batches(column: SealedColumn, *, using: str) -> Iterator[list[Any]]:
    keys = list(column.rows(using=using).order_by("pk").values_list("pk", flat=True))
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]
