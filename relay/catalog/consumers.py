"""Reads consumers, their keys, signing keys and grants into roster entries. The loader's neighbour, for its thread.

One statement reads them all, so that a key never meets the grants of another moment.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any
from uuid import UUID

from django.db.models import (
    BinaryField,
    CharField,
    DateTimeField,
    F,
    IntegerField,
    Q,
    QuerySet,
    TextField,
    UUIDField,
    Value,
)
from django.db.models.functions import Cast

from relay import models, vault
from relay.catalog.roster import ApiKey, Consumer, Entry, SigningKey
from relay.rules.grants import Grant

logger = logging.getLogger(__name__)

_Line = tuple[UUID, str, str, str, str, datetime | None, int | None, bytes | None]
"""Consumer, what the line is, three texts, a moment, a number and bytes."""
COLUMNS = ("c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8")
FETCHED_ROWS = 500


def rows() -> Iterator[_Line]:
    """All of them, from the database."""
    return _lines(Q())


def read_some(consumer_ids: Iterable[UUID]) -> Iterator[Entry]:
    """Those of them that are live."""
    ids = list(consumer_ids)
    for start in range(0, len(ids), FETCHED_ROWS):
        yield from read(_lines(Q(id__in=ids[start : start + FETCHED_ROWS])))


def read(rows: Iterable[Any]) -> Iterator[Entry]:
    """The readable and live ones of these rows."""
    # Ordered, so that a consumer's own line ("a") comes before its grants and keys.
    for consumer_id, lines in groupby(rows, key=itemgetter(0)):
        try:
            entry = _entry(consumer_id, lines)
        except (ValueError, TypeError, AttributeError) as problem:
            logger.error(
                "Consumer %s is left out: it cannot be read (%s). Save it anew in the admin.",
                consumer_id,
                type(problem).__name__,
            )
        else:
            if entry is not None:
                yield entry


def _entry(consumer_id: UUID, lines: Iterable[_Line]) -> Entry | None:
    name: str | None = None
    grants: dict[int, tuple[Grant, ...]] = {}
    digests: list[bytes] = []
    keys: list[tuple[str, float]] = []
    signing_keys: list[SigningKey] = []
    for _, kind, first, second, third, moment, number, sealed in lines:
        match kind:
            case "a-consumer":
                name = first
            case "b-grant" if number is not None:
                grant = Grant(frozenset(second.replace(",", " ").split()), tuple(third.encode().split()))
                grants[number] = (*grants.get(number, ()), grant)
            case "d-signing-key" if sealed is not None:
                signing_keys += _opened(first, sealed, row=UUID(second))
            case _:
                digests.append(bytes.fromhex(first))
                keys.append((second, math.inf if moment is None else moment.timestamp()))
    if name is None:
        return None  # switched off
    consumer = Consumer(consumer_id, name, grants, tuple(digests), tuple(signing_keys))
    return consumer, tuple(ApiKey(consumer, prefix, expires_at) for prefix, expires_at in keys)


def _opened(public_id: str, sealed: bytes, *, row: UUID) -> Iterator[SigningKey]:
    """One, or none when its secret does not open: the consumer's other keys go on."""
    try:
        secret = vault.keyring().open(sealed, purpose=models.SigningKey.PURPOSE, row=str(row))
    except vault.SealBroken as problem:
        logger.error("Signing key %s is left out, its URLs open nothing: %s", public_id, problem)
    else:
        yield SigningKey(public_id, secret)


def _lines(which: Q) -> Iterator[_Line]:
    live = Q(enabled=True) & (Q(owner__isnull=True) | Q(owner__is_active=True))
    consumers = models.Consumer.objects.filter(which & live)
    chosen = consumers.values("id")
    own = models.Grant.objects.filter(consumer__in=chosen)
    lent = models.Grant.objects.filter(group__user__relay_consumers__in=chosen)
    keys = models.ApiKey.objects.filter(consumer__in=chosen, revoked_at__isnull=True)
    signing_keys = models.SigningKey.objects.filter(consumer__in=chosen, revoked_at__isnull=True)
    lines: Any = _columns(consumers, "id", "a-consumer", F("name")).union(
        _columns(own, "consumer_id", "b-grant", *_OF_GRANTS, number=F("upstream_id")),
        _columns(lent, "group__user__relay_consumers__id", "b-grant", *_OF_GRANTS, number=F("upstream_id")),
        _columns(keys, "consumer_id", "c-key", F("digest"), F("prefix"), moment=F("expires_at")),
        _columns(signing_keys, "consumer_id", "d-signing-key", F("public_id"), F("id"), sealed=F("secret_sealed")),
        all=True,
    )
    yield from lines.order_by("c1", "c2").iterator(chunk_size=FETCHED_ROWS)


_EMPTY = Value("")
_NO_MOMENT = Value(None, output_field=DateTimeField())
_NO_BYTES = Value(None, output_field=BinaryField())
_NO_NUMBER = Value(None, output_field=IntegerField())
_OF_GRANTS = (_EMPTY, F("methods"), F("path_prefixes"))


def _columns(
    rows: QuerySet[Any],
    consumer: str,
    kind: str,
    first: F | Value,
    second: F | Value = _EMPTY,
    third: F | Value = _EMPTY,
    *,
    moment: F | Value = _NO_MOMENT,
    number: F | Value = _NO_NUMBER,
    sealed: F | Value = _NO_BYTES,
) -> QuerySet[Any, Any]:
    """Of one shape for all, type by type: PostgreSQL unites nothing else."""
    lines: QuerySet[Any, Any] = (
        rows.order_by()
        .annotate(
            c1=Cast(consumer, UUIDField()),
            c2=Value(kind, output_field=CharField()),
            c3=Cast(first, TextField()),
            c4=Cast(second, TextField()),
            c5=Cast(third, TextField()),
            c6=Cast(moment, DateTimeField()),
            c7=Cast(number, IntegerField()),
            c8=Cast(sealed, BinaryField()),
        )
        .values_list(*COLUMNS)
    )
    return lines
