"""The audit trail: who changed what, when, from where, with before and after.

Theory of operation. Every way of writing an audited row ends here, in the transaction that writes it, so that there is
neither a change without its entry nor an entry without its change. Single writes, fixtures, deletions and what they
take along are met by Django's signals (`follow`); `update` and `bulk_create` send none, and `RecordingQuerySet` calls
`before_update` and `note` for them. What is compared is what the database holds before and after, read under the lock
of `Revision`, so expressions, defaults and `update_fields` are all the same. Secrets are compared and never kept: an
entry says "changed".

Entries are only ever added. `prune` removes old ones, and leaves an entry that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from django.apps import apps
from django.conf import settings
from django.db import NotSupportedError, models, transaction
from django.db.models.signals import post_save, pre_delete, pre_save
from django.utils import timezone

from relay.models import authors

CHANGED = "changed"
"""What an entry tells of a secret."""
Changes = dict[str, Any]
"""By field: [before, after], or `CHANGED`."""
Values = tuple[Any, ...]

_HOLDERS = (("upstream", "slug"), ("consumer", "name"))
_ROWS_AT_A_TIME = 500
_ENTRIES_AT_A_TIME = 1000


class AppendOnly(TypeError):
    """An attempt to change or remove entries of the audit trail."""

    def __init__(self) -> None:
        super().__init__("The audit trail is only added to. `manage.py audit prune` removes old entries.")


class Deed(models.TextChoices):
    ADDED = "added", "Added"
    CHANGED = "changed", "Changed"
    REMOVED = "removed", "Removed"


class AuditQuerySet(models.QuerySet["AuditEntry"]):
    def update(self, **_: Any) -> NoReturn:
        raise AppendOnly

    def delete(self) -> NoReturn:
        raise AppendOnly

    def bulk_create(
        self,
        objs: Iterable[AuditEntry],
        batch_size: int | None = None,
        ignore_conflicts: bool = False,
        update_conflicts: bool = False,
        update_fields: Collection[str] | None = None,
        unique_fields: Collection[str] | None = None,
    ) -> list[AuditEntry]:
        if ignore_conflicts or update_conflicts:
            raise AppendOnly
        return super().bulk_create(objs, batch_size)

    def prune(self, before: datetime) -> int:
        """Remove the entries from before this moment. Gives their number, which an entry of its own keeps."""
        with transaction.atomic(using=self.db):
            count: int
            count, _ = super().filter(moment__lt=before)._remove()
            if count:
                label = AuditEntry._meta.label_lower
                changes = {"before": [before.isoformat(), None], "entries": [count, None]}
                name = f"{count} {'entry' if count == 1 else 'entries'} from before {before:%Y-%m-%d %H:%M %Z}".strip()
                write(
                    [AuditEntry(object_type=label, object_name=name, action=Deed.REMOVED, changes=changes)],
                    using=self.db,
                )
        return count

    def _remove(self) -> tuple[int, dict[str, int]]:
        return super().delete()


class AuditEntry(models.Model):
    """One change of one row. `upstream` and `consumer` are those it belongs to, if any, by the names they had then."""

    moment = models.DateTimeField(default=timezone.now, db_index=True)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        on_delete=models.SET_NULL,
        related_name="+",
    )
    actor_name = models.CharField("who", max_length=150, blank=True)
    source = models.CharField(max_length=10, choices=authors.Source)
    source_name = models.CharField("command", max_length=100, blank=True)
    address = models.CharField(max_length=64, blank=True)
    request_id = models.CharField("request id", max_length=128, blank=True)
    action = models.CharField(max_length=10, choices=Deed)
    object_type = models.CharField("kind", max_length=100)
    object_id = models.CharField("id", max_length=40, blank=True)
    object_name = models.CharField("object", max_length=200)
    upstream_key = models.BigIntegerField(null=True, db_index=True)
    upstream = models.CharField(max_length=63, blank=True)
    consumer_key = models.UUIDField(null=True, db_index=True)
    consumer = models.CharField(max_length=100, blank=True)
    changes = models.JSONField()

    objects = AuditQuerySet.as_manager()

    class Meta:
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"
        ordering = ("-id",)
        default_permissions = ("view",)
        indexes = (models.Index(fields=("object_type", "object_id"), name="relay_audit_object"),)

    def __str__(self) -> str:
        return f"{self.kind} {self.object_name}: {self.action}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise AppendOnly
        super().save(*args, **{**kwargs, "force_insert": True})

    def delete(self, *_: Any, **__: Any) -> NoReturn:
        raise AppendOnly

    @property
    def kind(self) -> str:
        """Of the object, in words."""
        try:
            return str(apps.get_model(self.object_type)._meta.verbose_name)
        except LookupError:
            return self.object_type


def _refuse_overwriting(instance: AuditEntry, raw: bool, using: str, **_: Any) -> None:
    """Fixtures skip `save()`."""
    if raw and AuditEntry.objects.using(using).filter(pk=instance.pk).exists():
        raise AppendOnly


pre_save.connect(_refuse_overwriting, sender=AuditEntry, dispatch_uid="relay.models.audit")


# What is audited


@dataclass(frozen=True, slots=True)
class Policy:
    """What of a kind of rows is compared, and how it is told."""

    fields: tuple[models.Field[Any, Any], ...]
    secret: frozenset[str]
    """Told as `CHANGED` only."""
    splits: Mapping[str, Callable[[str], tuple[str, str]]]
    """Fields of which a part is secret: what takes a text apart into what may be told, and the secret."""
    holders: tuple[tuple[str, str], ...]
    """(`upstream` or `consumer`, the attribute that has its key)"""

    def of(self, row: models.Model) -> Values:
        return tuple(getattr(row, field.attname) for field in self.fields)

    def narrowed_to(self, names: Iterable[str]) -> Policy:
        wanted = frozenset(names)
        fields = tuple(field for field in self.fields if field.name in wanted or field.attname in wanted)
        return Policy(fields, self.secret, self.splits, self.holders)


_policies: dict[type[models.Model], Policy] = {}


def follow(kind: type[models.Model], *, fields: Iterable[str] | None = None, secret: Iterable[str] = ()) -> None:
    """Have all single writes of these rows in the trail. `fields` None: all but what the kind calls `unaudited_fields`.

    Secret are `secret`, what the kind calls `secret_fields`, and whatever is sealed or binary.
    """
    concrete = kind._meta.concrete_fields
    left_out: frozenset[str] = getattr(kind, "unaudited_fields", frozenset())
    compared = tuple(
        field
        for field in concrete
        if (not field.primary_key and field.name not in left_out if fields is None else field.name in tuple(fields))
    )
    hidden = {*secret, *getattr(kind, "secret_fields", ())}
    hidden |= {
        field.name for field in compared if field.name.endswith("_sealed") or isinstance(field, models.BinaryField)
    }
    holders = []
    for holder, _ in _HOLDERS:
        if kind._meta.label_lower == f"relay.{holder}":
            holders.append((holder, "pk"))
        holders += [(holder, field.attname) for field in concrete if field.name == holder and field.is_relation]
    _policies[kind] = Policy(compared, frozenset(hidden), getattr(kind, "split_fields", {}), tuple(holders))
    uid = "relay.models.audit"
    pre_save.connect(_before_save, sender=kind, dispatch_uid=uid)
    post_save.connect(_after_save, sender=kind, dispatch_uid=uid)
    pre_delete.connect(_before_delete, sender=kind, dispatch_uid=uid)


def followed() -> list[type[models.Model]]:
    return list(_policies)


# The ways of writing

_STASH = "_relay_audit_before"


def _before_save(
    sender: type[models.Model],
    instance: models.Model,
    using: str,
    update_fields: Iterable[str] | None = None,
    **_: Any,
) -> None:
    policy = _policies[sender]
    vars(instance).pop(_STASH, None)
    if update_fields is None or policy.narrowed_to(update_fields).fields:
        vars(instance)[_STASH] = _stored(sender, [instance.pk], policy, using=using).get(instance.pk)


def _after_save(sender: type[models.Model], instance: models.Model, using: str, **_: Any) -> None:
    if _STASH in vars(instance):
        note(sender, {instance.pk: vars(instance).pop(_STASH)}, using=using)


def _before_delete(sender: type[models.Model], instance: models.Model, using: str, origin: Any, **_: Any) -> None:
    """Rows that a deletion takes along, or that a query set removes, were read just now; one that is deleted by itself
    may be other in memory than in the database."""
    policy = _policies[sender]
    row: models.Model | None = instance
    if origin is instance:
        row = sender._base_manager.using(using).filter(pk=instance.pk).order_by().first()
    if row is not None:
        write([entry_of(row, Deed.REMOVED, _difference(policy, policy.of(row), None))], using=using)


def before_update(
    kind: type[models.Model], keys: Iterable[Any], names: Iterable[str], *, using: str
) -> Callable[[], None]:
    """Read what an update of these fields is about to change. Gives what is to be called when it is done."""
    policy = _policies[kind].narrowed_to(names)
    before = _stored(kind, list(keys), policy, using=using) if policy.fields else {}
    return lambda: _note(kind, policy, before, using=using)


def stored(kind: type[models.Model], keys: list[Any], *, using: str) -> dict[Any, Values]:
    """What these rows hold, those there are, by key: what `note` compares with."""
    return _stored(kind, keys, _policies[kind], using=using)


def note(kind: type[models.Model], before: Mapping[Any, Values | None], *, using: str) -> None:
    """Write what has become of these rows since `before`: by key their values then, None where there was no row."""
    _note(kind, _policies[kind], before, using=using)


def _note(kind: type[models.Model], policy: Policy, before: Mapping[Any, Values | None], *, using: str) -> None:
    if None in before:
        raise NotSupportedError("The database tells no ids of rows added in bulk: save them one by one.")
    keys = list(before)
    with gathered(using):
        for rows in _in_turn(kind, keys, using=using):
            for row in rows:
                was = before[row.pk]
                changes = _difference(policy, was, policy.of(row))
                if was is None:
                    write([entry_of(row, Deed.ADDED, changes)], using=using)
                elif changes:
                    write([entry_of(row, Deed.CHANGED, changes)], using=using)


def _stored(kind: type[models.Model], keys: list[Any], policy: Policy, *, using: str) -> dict[Any, Values]:
    names = [field.attname for field in policy.fields]
    found: dict[Any, Values] = {}
    for rows in _in_turn(kind, keys, using=using):
        found.update((key, tuple(values)) for key, *values in rows.values_list("pk", *names))
    return found


def _in_turn(kind: type[models.Model], keys: list[Any], *, using: str) -> Iterator[models.QuerySet[Any]]:
    """Not in the kind's own order: that may join what a fixture's row points to, which may come later."""
    for start in range(0, len(keys), _ROWS_AT_A_TIME):
        yield kind._base_manager.using(using).filter(pk__in=keys[start : start + _ROWS_AT_A_TIME]).order_by()


# Entries


def entry_of(row: models.Model, action: Deed, changes: Changes) -> AuditEntry:
    """An entry about `row`, not yet written: who and when come with `write`."""
    entry = AuditEntry(
        object_type=row._meta.label_lower,
        object_id=str(row.pk),
        object_name=str(getattr(row, "audit_name", row))[:200],
        action=action,
        changes=changes,
    )
    for holder, attribute in _policies[type(row)].holders:
        setattr(entry, f"{holder}_key", getattr(row, attribute))
        if attribute == "pk":
            setattr(entry, holder, getattr(row, dict(_HOLDERS)[holder]))
    return entry


def _difference(policy: Policy, before: Values | None, after: Values | None) -> Changes:
    """None for a row that is not there. Of one that was added or removed, what is empty is left out."""
    changes: Changes = {}
    nothing = (None,) * len(policy.fields)
    for field, old, new in zip(policy.fields, before or nothing, after or nothing, strict=True):
        if old == new or ((before is None or after is None) and old in _EMPTY and new in _EMPTY):
            continue
        split = policy.splits.get(field.name)
        if field.name in policy.secret:
            changes[field.name] = CHANGED
        elif split is None:
            changes[field.name] = [_plain(old), _plain(new)]
        else:
            (old_open, old_secret), (new_open, new_secret) = split(old or ""), split(new or "")
            if old_open != new_open:
                changes[field.name] = [None if before is None else old_open, None if after is None else new_open]
            if old_secret != new_secret:
                changes[f"{field.name}_secret"] = CHANGED
    return changes


_EMPTY = (None, "", b"")


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, datetime):
        return value.isoformat()
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)


_gathering: ContextVar[tuple[str, list[AuditEntry]] | None] = ContextVar("relay_audit_gathering", default=None)


@contextmanager
def gathered(using: str) -> Iterator[None]:
    """Write the entries of what is done within it many at a time. Stand inside the transaction that does it."""
    outer = _gathering.get()
    if outer is not None and outer[0] == using:
        yield
        return
    entries: list[AuditEntry] = []
    token = _gathering.set((using, entries))
    try:
        yield
    finally:
        _gathering.reset(token)
    _insert(entries, using=using)


def write(entries: list[AuditEntry], *, using: str) -> None:
    gathering = _gathering.get()
    if gathering is None or gathering[0] != using:
        _insert(entries, using=using)
        return
    gathering[1].extend(entries)
    if len(gathering[1]) >= _ENTRIES_AT_A_TIME:
        _insert(gathering[1], using=using)
        gathering[1].clear()


def _insert(entries: list[AuditEntry], *, using: str) -> None:
    if not entries:
        return
    author, now = authors.current(), timezone.now()
    for entry in entries:
        entry.moment = now
        entry.actor_id, entry.actor_name = author.user_id, author.name[:150]
        entry.source, entry.source_name = author.source, author.source_name[:100]
        entry.address, entry.request_id = author.address[:64], author.request_id[:128]
    _name_holders(entries, using=using)
    AuditEntry.objects.using(using).bulk_create(entries, batch_size=_ENTRIES_AT_A_TIME)


def _name_holders(entries: list[AuditEntry], *, using: str) -> None:
    """An upstream that goes along is named by its own entry, all others by the database."""
    for holder, naming in _HOLDERS:
        names = {getattr(entry, f"{holder}_key"): getattr(entry, holder) for entry in entries if getattr(entry, holder)}
        unnamed = [entry for entry in entries if getattr(entry, f"{holder}_key") and not getattr(entry, holder)]
        missing = list({getattr(entry, f"{holder}_key") for entry in unnamed} - names.keys())
        for rows in _in_turn(apps.get_model("relay", holder), missing, using=using):
            names.update(rows.values_list("pk", naming))
        for entry in unnamed:
            setattr(entry, holder, names.get(getattr(entry, f"{holder}_key"), ""))
