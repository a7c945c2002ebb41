"""Reads and writes the rows of cookie jars, for the thread of `relay.catalog.jars`: this room touches the ORM.

A batch is one transaction: the revision is bumped first, so that writers queue in one order and every worker's watcher
learns of it. Bytes of cookies are kept as Latin-1 text, which holds any byte.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from django.db import DEFAULT_DB_ALIAS, close_old_connections, transaction

from relay import vault
from relay.models import Change, CookieMode, JarChange, JarCookie, Revision, Upstream, record_changes
from relay.models.jars import VALUE_PURPOSE
from relay.rules.jar import Cookie, Key, overflow

logger = logging.getLogger(__name__)

Batch = Mapping[str, Mapping[Key, Cookie | None]]
"""What became of cookies, by slug: set, or taken away."""
Jars = dict[str, dict[Key, Cookie]]

MANY_SLUGS = 500
"""From here on all jars are read, rather than asking for so many by name."""


def load(since: int | None) -> tuple[int, set[str] | None, Jars]:
    """(revision, slugs whose jars may have changed since, those jars); None for all of them.

    The revision is read first: what commits in between is read again at the next load.
    """
    with _connection():
        revision = Revision.objects.filter(pk=1).values_list("value", flat=True).first() or 0
        rows = JarCookie.objects.filter(upstream__cookie_mode=CookieMode.JAR)
        slugs: set[str] | None = None
        if since is not None and revision >= since:
            changed = JarChange.objects.filter(revision__gt=since).values("slug")
            changed = changed.union(Change.objects.filter(revision__gt=since).values("slug"), all=True)
            slugs = {row["slug"] for row in changed}
            rows = rows.filter(upstream__slug__in=slugs) if len(slugs) <= MANY_SLUGS else rows
        found: Jars = defaultdict(dict)
        for row in rows.select_related("upstream").order_by("id").iterator(chunk_size=500):
            cookie = _opened(row)
            if cookie is not None and (slugs is None or row.upstream.slug in slugs):
                found[row.upstream.slug][cookie.key] = cookie
        return revision, slugs, dict(found)


def save(batch: Batch) -> None:
    """Write what became of cookies, of upstreams that still keep a jar."""
    with _connection(), transaction.atomic():
        record_changes(batch, kind=JarChange, using=DEFAULT_DB_ALIAS)
        for upstream in Upstream.objects.filter(slug__in=batch, cookie_mode=CookieMode.JAR):
            _save_one(upstream, batch[upstream.slug])


def _save_one(upstream: Upstream, changes: Mapping[Key, Cookie | None]) -> None:
    JarCookie.objects.bulk_create(
        [_sealed(upstream, cookie) for cookie in changes.values() if cookie is not None],
        update_conflicts=True,
        unique_fields=["upstream", "domain", "path", "name"],
        update_fields=["host_only", "secure", "expires_at", "sealed_value"],
    )
    numbers: dict[Key, int] = {}
    kept: dict[Key, Cookie] = {}
    gone: list[int] = []
    for row in JarCookie.objects.filter(upstream=upstream).select_related("upstream").order_by("id"):
        cookie = _opened(row)
        if cookie is None:
            continue  # another worker may have the key to it
        if changes.get(cookie.key, cookie) is None:
            gone.append(row.pk)
        else:
            numbers[cookie.key] = row.pk
            kept[cookie.key] = cookie
    # Each worker keeps the bounds for itself; together they may be over.
    gone += [numbers[key] for key in overflow(kept, time.time())]
    JarCookie.objects.filter(pk__in=gone).delete()


def _sealed(upstream: Upstream, cookie: Cookie) -> JarCookie:
    row = JarCookie(
        upstream=upstream,
        domain=_text(cookie.domain),
        path=_text(cookie.path),
        name=_text(cookie.name),
        host_only=cookie.host_only,
        secure=cookie.secure,
        expires_at=None if cookie.expires_at is None else datetime.fromtimestamp(cookie.expires_at, UTC),
    )
    row.sealed_value = vault.keyring().seal(cookie.value, purpose=VALUE_PURPOSE, row=row.row)
    return row


def _opened(row: JarCookie) -> Cookie | None:
    """None for a value that does not open: the upstream will set another."""
    try:
        value = vault.keyring().open(bytes(row.sealed_value), purpose=VALUE_PURPOSE, row=row.row)
    except vault.SealBroken as problem:
        logger.error("A cookie in the jar of upstream %s is left out. %s", row.upstream.slug, problem)
        return None
    return Cookie(
        name=_bytes(row.name),
        value=value,
        domain=_bytes(row.domain),
        path=_bytes(row.path),
        host_only=row.host_only,
        secure=row.secure,
        expires_at=None if row.expires_at is None else row.expires_at.timestamp(),
    )


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


@contextmanager
def _connection() -> Iterator[None]:
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()
