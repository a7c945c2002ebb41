"""Reads the tables into snapshots. The only way from the ORM to the request path; synchronous, for a thread of its own.

Why a snapshot is never a mixture. The number of the last revision is read first, and everything else at that moment or
later: what commits in between has a higher number and is read again at the next load, so nothing is ever missed. One
statement reads an upstream together with its header rules and credentials, so that a new base URL never meets the old
credentials, on every database and without a transaction that would keep writers waiting.

Rows that can no longer be read are left out and logged, without their values: they must not take the others with them.

A snapshot is made of rows alone: those of `TABLES`, whether the database or `relay.catalog.store` gives them.
"""

from __future__ import annotations

import gc
import logging
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, cast
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, Error, ProgrammingError, close_old_connections, connections, transaction
from django.db.models import OuterRef, Q, QuerySet, Subquery

from relay import models
from relay.catalog import consumers, credentials, references
from relay.catalog.roster import Roster
from relay.catalog.snapshot import HeaderChanges, Snapshot, Target, Upstream
from relay.rules.addresses import parse_networks
from relay.rules.balancing import Balancing
from relay.rules.breaker import BreakerPolicy
from relay.rules.cors import compile_policy
from relay.rules.headers import check_rule_name, check_rule_value, compile_changes
from relay.rules.health import Check, parse_statuses
from relay.rules.urls import BaseUrl, parse_address, parse_base_url, parse_proxy_url

logger = logging.getLogger(__name__)

Row = Sequence[Any]

STATEMENT_TIMEOUT_SECONDS = 10
"""PostgreSQL gives up on a statement of ours after this. SQLite's readers wait for nobody."""
FETCHED_ROWS = 500
"""Rows converted in one go, with the interpreter to themselves: a few milliseconds."""
MANY_CHANGES = 2000
"""From here on a load makes enough objects for the garbage collector to stop the process and look at them all."""
MANY_OBJECTS = 50_000

_COLUMNS = (
    "id",
    "slug",
    "base_url",
    "access",
    "allowed_methods",
    "report_only",
    "connect_timeout_seconds",
    "head_timeout_seconds",
    "idle_timeout_seconds",
    "min_upload_bytes_per_second",
    "total_timeout_seconds",
    "balancing",
    "balancing_header",
    "max_retries",
    "retry_percent",
    "breaker_failures",
    "breaker_percent",
    "breaker_seconds",
    "check_path",
    "check_method",
    "check_statuses",
    "check_body",
    "check_interval_seconds",
    "check_timeout_seconds",
    "check_failures",
    "check_successes",
    "max_request_bytes",
    "max_response_bytes",
    "max_concurrent",
    "max_queued",
    "queue_timeout_seconds",
    "max_connections",
    "keepalive_seconds",
    "delivery",
    "max_buffered_bytes",
    "host_header",
    "cookie_mode",
    "cors_allowed_origins",
    "cors_allowed_methods",
    "cors_allowed_headers",
    "cors_exposed_headers",
    "cors_allow_credentials",
    "cors_max_age_seconds",
    "allowed_networks",
    "verify_tls",
    "ca_bundle",
    "outbound_proxy",
)


class RuleRow(NamedTuple):
    """A header rule, as one statement reads it together with its upstream."""

    id: int
    side: str
    action: str
    name: str
    value: str

    def __repr__(self) -> str:
        return f"<RuleRow {self.id}>"


class TargetRow(NamedTuple):
    """A target, likewise."""

    id: int
    address: str
    weight: int
    enabled: bool
    backup: bool


_RELATED: Mapping[str, type[credentials.Row] | type[RuleRow] | type[TargetRow]] = {
    "credentials": credentials.Row,
    "header_rules": RuleRow,
    "targets": TargetRow,
}
"""What belongs to an upstream, by the name it has there."""
_LINE = (*_COLUMNS, "revision", *(f"{name}__{column}" for name, row in _RELATED.items() for column in row._fields))
_named: Callable[[Row], Any] = namedtuple("_Line", _LINE)._make  # type: ignore[attr-defined]  # its fields are _LINE


def _related(name: str) -> Callable[[Sequence[Row]], list[Any]]:
    """Of the lines of one upstream: those rows of it, in their order, each once, though it comes with each other."""
    kind = _RELATED[name]
    begin = _LINE.index(f"{name}__id")
    end = begin + len(kind._fields)

    def rows_in(lines: Sequence[Row]) -> list[Any]:
        return list({line[begin]: kind(*line[begin:end]) for line in lines if line[begin] is not None}.values())

    return rows_in


_credentials_in, _rules_in, _targets_in = map(_related, _RELATED)


class CatalogUnreadable(Exception):
    """The tables could not be read. The text says what to do and holds nothing of the database's address."""

    def __init__(self, text: str, *, kind: str) -> None:
        super().__init__(text)
        self.kind = kind
        """Class name of what the database's driver raised."""


class Table(NamedTuple):
    columns: tuple[str, ...]
    """Of a row, in their order."""
    rows: Callable[[], Iterator[Row]]
    """All rows that requests are decided from, from the database."""


TABLES: Mapping[str, Table] = {
    "consumers": Table(consumers.COLUMNS, consumers.rows),
    "upstreams": Table(_LINE, lambda: _rows(models.Upstream.objects.all())),
}
"""All that a snapshot is made of."""


class Rows(Protocol):
    """The rows of all tables at one revision, or later."""

    @property
    def revision(self) -> int: ...

    def of(self, table: str) -> Iterator[Row]: ...


class DatabaseRows:
    """Those of the database, while it is read from."""

    def __init__(self) -> None:
        self.revision = _revision()

    def of(self, table: str) -> Iterator[Row]:
        return TABLES[table].rows()

    def are_those_of(self, revision: int) -> bool:
        """Whether nothing that a snapshot is made of has changed since. What is in cookies' jars is no part of it."""
        logs = (models.Change, models.ConsumerChange)
        return self.revision >= revision and not any(log.objects.filter(revision__gt=revision).exists() for log in logs)


@contextmanager
def reading_rows() -> Iterator[DatabaseRows]:
    """For a thread. Raises `CatalogUnreadable`."""
    with _reading():
        yield DatabaseRows()


def load_all() -> Snapshot:
    """Every enabled upstream and live consumer. Raises `CatalogUnreadable`.

    100,000 rows take seconds, in which other threads run on.
    """
    with reading_rows() as rows:
        return load_from(rows)


def load_from(rows: Rows) -> Snapshot:
    """The snapshot that these rows make."""
    with _without_collections():
        roster = Roster(consumers.read(rows.of("consumers")))
        return Snapshot(_upstreams(rows.of("upstreams")), roster=roster, revision=rows.revision)


def load_changes(since: Snapshot) -> Snapshot | None:
    """The snapshot after `since`, or None when nothing changed. Raises `CatalogUnreadable`.

    Files that credentials were read from count, too. Four or five statements, and work in proportion to what changed.
    A revision below that of `since` means another database (one restored, or flushed): all is read anew.
    """
    with _reading():
        revision = _revision()
        stale = [upstream.slug for upstream in since.following_files() if _reads_changed_files(upstream)]
        if revision == since.revision and not stale:
            return None
        if revision >= since.revision:
            changes = models.Change.objects.filter(revision__gt=since.revision)
            slugs = {*changes.values_list("slug", flat=True), *stale}
            rows = models.Upstream.objects.filter(Q(slug__in=changes.values("slug")) | Q(slug__in=stale))
            callers = models.ConsumerChange.objects.filter(revision__gt=since.revision)
            consumer_ids = set(callers.values_list("consumer_id", flat=True))
            if len(slugs) + len(consumer_ids) < MANY_CHANGES:
                return _following(since, slugs, rows, consumer_ids, revision=revision)
            with _without_collections():
                return _following(since, slugs, rows, consumer_ids, revision=revision)
    return load_all()


def _following(
    since: Snapshot, slugs: set[str], rows: QuerySet[models.Upstream], consumer_ids: set[UUID], *, revision: int
) -> Snapshot:
    changed = list(_read(rows)) if slugs else []
    removed = slugs.difference(upstream.slug for upstream in changed)
    roster: Roster | None = None
    if consumer_ids:
        entries = list(consumers.read_some(consumer_ids))
        roster = since.roster.with_changes(entries, consumer_ids.difference(consumer.id for consumer, _ in entries))
    return since.with_changes(changed, removed, roster=roster, revision=revision)


def _reads_changed_files(upstream: Upstream) -> bool:
    return upstream.credential is not None and references.have_changed(upstream.credential.files)


def release_connections() -> None:
    """Close this thread's connections, or give them back to their pool."""
    connections.close_all()


@contextmanager
def _reading() -> Iterator[None]:
    """A connection that outlived a database restart or its maximum age is replaced; no statement hangs for ever."""
    close_old_connections()
    try:
        if connections[DEFAULT_DB_ALIAS].vendor != "postgresql":
            yield
        else:
            with transaction.atomic(), connections[DEFAULT_DB_ALIAS].cursor() as cursor:
                cursor.execute(
                    "SELECT set_config('statement_timeout', %s, true)", [str(STATEMENT_TIMEOUT_SECONDS * 1000)]
                )
                yield
    except Error as problem:
        raise unreadable(problem) from None
    finally:
        close_old_connections()


def unreadable(problem: Error) -> CatalogUnreadable:
    """What to tell people about a failing database."""
    # Drivers put hosts, users and at times whole connection strings into their messages.
    kind = type(problem.__cause__ or problem).__name__
    if isinstance(problem, ProgrammingError) or str(problem).startswith("no such "):
        advice = f"The database lacks the relay's tables ({kind}): run `python manage.py migrate`."
    else:
        advice = f"The database cannot be read ({kind}): see that it runs and that DATABASE_URL leads to it."
    return CatalogUnreadable(advice, kind=kind)


@contextmanager
def _without_collections() -> Iterator[None]:
    """No garbage collection during the block, and if it made much, none ever that looks at it: a full one would hold
    the event loop for a hundred milliseconds. Snapshots hold no cycles, so counting references frees them all the same.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_count()[0] > MANY_OBJECTS:
            gc.freeze()
        if was_enabled:
            gc.enable()


def _revision() -> int:
    return models.Revision.objects.filter(pk=1).values_list("value", flat=True).first() or 0


def _read(rows: QuerySet[models.Upstream]) -> Iterator[Upstream]:
    return _upstreams(_rows(rows))


def _rows(rows: QuerySet[models.Upstream]) -> Iterator[Row]:
    """Of the enabled ones, in one statement: a row for each combination of what belongs to it, at least one each."""
    last_change = models.Change.objects.filter(slug=OuterRef("slug")).values("revision")
    return (
        rows.filter(enabled=True)
        .order_by("id", *(f"{name}__id" for name in _RELATED))
        .annotate(revision=Subquery(last_change))
        .values_list(*_LINE)
        .iterator(chunk_size=FETCHED_ROWS)
    )


def _upstreams(rows: Iterable[Row]) -> Iterator[Upstream]:
    """The readable ones."""
    for slug, group in groupby(map(_named, rows), key=attrgetter("slug")):
        lines = list(group)
        try:
            yield snapshot_of(
                # It has the model's attributes, at a tenth of a model's price.
                cast(models.Upstream, lines[0]),
                _rules_in(lines),
                _credentials_in(lines),
                _targets_in(lines),
                revision=lines[0].revision or 0,
            )
        except RowUnreadable as problem:
            logger.error("Upstream %s is left out: %s. Save it anew in the admin.", slug, problem)


class RowUnreadable(Exception):
    """A row that no admin or command could have saved. The text names the field, never its value."""


def snapshot_of(
    row: models.Upstream,
    rules: Iterable[RuleRow] = (),
    shown: Sequence[credentials.Row] = (),
    targets: Sequence[TargetRow] = (),
    *,
    revision: int = 0,
) -> Upstream:
    """What requests see of a row. `rules` are its header rules in their order, `shown` its credentials.
    Raises `RowUnreadable`.

    The CA bundle is not parsed here: that takes a millisecond, and what is wrong with it fails at the TLS handshake.
    """
    with _field("base_url"):
        base = parse_base_url(row.base_url)
    with _field("allowed_networks"):
        networks = parse_networks(row.allowed_networks) if row.allowed_networks else ()
    with _field("outbound_proxy"):
        if row.outbound_proxy:
            parse_proxy_url(row.outbound_proxy)
    methods = frozenset(row.allowed_methods.upper().replace(",", " ").split())
    with _field("cross-origin policy"):
        cors = row.cors_allowed_origins and compile_policy(
            origins=row.cors_allowed_origins,
            methods=row.cors_allowed_methods,
            headers=row.cors_allowed_headers,
            exposed=row.cors_exposed_headers,
            allow_credentials=bool(row.cors_allow_credentials),
            max_age_seconds=None if row.cors_max_age_seconds is None else int(row.cors_max_age_seconds),
            upstream_methods=methods,
        )
    with _field("targets"):
        places = _targets(base, targets) if targets else None
    with _field("checks"):
        check = _check(row, base) if row.check_path else None
    with _field("header_rules"):
        request_changes, response_changes = _header_changes(rules)
    with _field("time-outs and limits"):
        # SQLite stores any type in any column.
        return Upstream(
            slug=row.slug,
            id=row.id or 0,
            revision=revision,
            scheme=base.scheme,
            host=base.host,
            port=base.port,
            authority=base.authority,
            base_path=base.path,
            listed_targets=places,
            balancing=Balancing(row.balancing),
            balancing_header=row.balancing_header.encode("ascii"),
            max_retries=int(row.max_retries),
            retry_share=int(row.retry_percent) / 100,
            breaker=BreakerPolicy(
                consecutive_failures=int(row.breaker_failures),
                failure_rate=int(row.breaker_percent) / 100 or None,
                open_seconds=float(row.breaker_seconds),
                longest_open_seconds=max(60.0, float(row.breaker_seconds)),
            ),
            check=check,
            open_to_anyone=row.access == models.Access.ANYONE.value,
            methods=methods,
            report_only=bool(row.report_only),
            connect_timeout_seconds=float(row.connect_timeout_seconds),
            head_timeout_seconds=float(row.head_timeout_seconds),
            idle_timeout_seconds=float(row.idle_timeout_seconds),
            min_upload_bytes_per_second=int(row.min_upload_bytes_per_second),
            total_timeout_seconds=None if row.total_timeout_seconds is None else float(row.total_timeout_seconds),
            max_request_bytes=None if row.max_request_bytes is None else int(row.max_request_bytes),
            max_response_bytes=None if row.max_response_bytes is None else int(row.max_response_bytes),
            max_concurrent=int(row.max_concurrent),
            max_queued=int(row.max_queued),
            queue_timeout_seconds=float(row.queue_timeout_seconds),
            max_connections=int(row.max_connections),
            keepalive_seconds=float(row.keepalive_seconds),
            max_buffered_bytes=(
                int(row.max_buffered_bytes) if row.delivery == models.Delivery.BUFFERED.value else None
            ),
            caller_host=row.host_header == models.HostHeader.CALLER.value,
            target_host=row.host_header == models.HostHeader.TARGET.value,
            relays_cookies=row.cookie_mode == models.CookieMode.RELAY.value,
            keeps_jar=row.cookie_mode == models.CookieMode.JAR.value,
            cors=cors or None,
            allowed_networks=networks,
            verify_tls=bool(row.verify_tls),
            ca_bundle=row.ca_bundle,
            outbound_proxy=row.outbound_proxy,
            credential=credentials.read(row, shown, addresses=[target.address for target in targets])
            if shown
            else None,
            request_changes=request_changes,
            response_changes=response_changes,
        )


@contextmanager
def _field(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as problem:
        raise RowUnreadable(f"its {name} cannot be read ({type(problem).__name__})") from None


def _targets(base: BaseUrl, rows: Iterable[TargetRow]) -> tuple[Target, ...]:
    """Those switched on."""
    found: dict[str, Target] = {}
    for row in rows:
        address = parse_address(row.address)
        port = address.port or base.port
        place = replace(base, host=address.host, port=port)
        target = Target(
            host=address.host,
            port=port,
            weight=int(row.weight),
            is_backup=bool(row.backup),
            authority=place.authority,
        )
        if row.enabled:
            # With and without the base URL's port they are one.
            found.setdefault(target.name, target)
    return tuple(found.values())


def _check(row: models.Upstream, base: BaseUrl) -> Check:
    return Check(
        target=base.path.rstrip(b"/") + row.check_path.encode("ascii"),
        method=row.check_method,
        statuses=parse_statuses(row.check_statuses),
        body=row.check_body.encode(),
        interval_seconds=float(row.check_interval_seconds),
        timeout_seconds=float(row.check_timeout_seconds),
        failures=int(row.check_failures),
        successes=int(row.check_successes),
    )


def _header_changes(rules: Iterable[RuleRow]) -> tuple[HeaderChanges, HeaderChanges]:
    """(request side, response side)"""
    sides: dict[str, list[tuple[str, str, str]]] = {models.Side.REQUEST.value: [], models.Side.RESPONSE.value: []}
    for _, side, action, name, value in rules:
        check_rule_name(name)
        check_rule_value(value)
        sides[side].append((action, name, value))
    request, response = (HeaderChanges(*compile_changes(side)) if side else _NO_CHANGES for side in sides.values())
    return request, response


_NO_CHANGES = HeaderChanges()
