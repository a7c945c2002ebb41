"""The log of what changed, and the rows whose every write goes into it.

Each write of a `Recorded` row bumps `Revision` and notes what it changes for requests, in the same transaction: the
upstream in `Change`, or the consumer in `ConsumerChange`. `relay.catalog` reads those to learn what to load again.
Writes are validated on every way, and in the audit trail (`relay.models.audit`): `save()`, bulk writes, fixtures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, TypeVar
from uuid import UUID

from django.core.exceptions import ObjectDoesNotExist
from django.db import NotSupportedError, models, router, transaction
from django.db.models import F, Q
from django.db.models.signals import pre_delete, pre_save
from django.utils import timezone

from relay.models import audit
from relay.models.constraints import in_one_question

Subject = str | UUID
"""What a change is noted under: an upstream's slug, or a consumer's id."""


class Revision(models.Model):
    """One row: the number of the last change. Bumping it locks the row, so numbers are handed out in commit order."""

    value = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints = (models.CheckConstraint(condition=Q(id=1), name="relay_revision_single_row"),)

    def __str__(self) -> str:
        return str(self.value)


class Change(models.Model):
    """The revision at which an upstream last changed or was removed; one row a slug."""

    slug = models.CharField(max_length=63, primary_key=True)
    revision = models.PositiveBigIntegerField(db_index=True)

    def __str__(self) -> str:
        return f"{self.slug} at {self.revision}"


class ConsumerChange(models.Model):
    """The revision at which a consumer, or anything it may show or do, last changed; one row a consumer."""

    consumer_id = models.UUIDField(primary_key=True)
    revision = models.PositiveBigIntegerField(db_index=True)

    def __str__(self) -> str:
        return f"{self.consumer_id} at {self.revision}"


class JarChange(models.Model):
    """The revision at which an upstream's jar last changed; one row a slug. The upstream itself did not: no request of
    it is decided otherwise, and its connections stay."""

    slug = models.CharField(max_length=63, primary_key=True)
    revision = models.PositiveBigIntegerField(db_index=True)

    def __str__(self) -> str:
        return f"{self.slug} at {self.revision}"


ChangeModel = type[Change] | type[ConsumerChange] | type[JarChange]


def record_changes(subjects: Iterable[Subject], *, kind: ChangeModel = Change, using: str) -> None:
    """Note that these upstreams or consumers changed. Call it inside the transaction that changes them, before the
    change itself: the lock order is then the same everywhere. Lazy `subjects` are read once the lock is held, so
    nothing moves under them.
    """
    revisions = Revision.objects.using(using)
    if not revisions.filter(pk=1).update(value=F("value") + 1):
        revisions.get_or_create(pk=1)
        revisions.filter(pk=1).update(value=F("value") + 1)
    revision = revisions.get(pk=1).value
    key = kind._meta.pk.attname
    rows: models.Manager[Any] = kind._base_manager
    rows.using(using).bulk_create(
        [kind(**{key: subject, "revision": revision}) for subject in sorted(set(subjects), key=str)],
        batch_size=1000,
        update_conflicts=True,
        unique_fields=[key],
        update_fields=["revision"],
    )


_Row = TypeVar("_Row", bound="Recorded")


class RecordingQuerySet(models.QuerySet[_Row]):
    """Bulk writes skip `save()`; these are recorded and validated all the same."""

    def update(self, **kwargs: Any) -> int:
        if {"pk", self.model._meta.pk.name} & kwargs.keys():
            raise NotSupportedError("A row keeps its key: the audit trail knows it by that.")
        if self.model.unrecorded_fields.issuperset(kwargs):
            return super().update(**kwargs)
        self._for_write = True
        for field in self.model.touched_by_updates:
            kwargs.setdefault(field, timezone.now())
        keys: dict[Any, None] = {}

        def touched() -> Iterator[Subject]:
            for key, *subjects in self.order_by().values_list("pk", *self.model.subject_lookups):
                keys[key] = None
                yield from filter(None, subjects)

        with transaction.atomic(using=self.db):
            self._record(touched())
            note = audit.before_update(self.model, keys, kwargs, using=self.db)
            count = super().update(**kwargs)
            if not self.model.free_of_checks.issuperset(kwargs):
                self._check_updated(list(keys), frozenset(kwargs))
            note()
            return count

    update.alters_data = True  # type: ignore[attr-defined]  # Django's mark, which keeps templates from calling it

    def _check_updated(self, keys: list[Any], fields: frozenset[str]) -> None:
        """Values may have been expressions: what counts is what the rows hold now."""
        rows = self.model._base_manager.using(self.db)
        others = {field.name for field in self.model._meta.fields if not {field.name, field.attname} & fields}
        moved = any(
            {lookup, lookup.partition("__")[0], lookup.partition("__")[0] + "_id", lookup.removesuffix("_id")} & fields
            for lookup in self.model.subject_lookups
        )
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            for row in rows.filter(pk__in=some):
                row.clean_fields(exclude=others)
                row.clean()
            if moved:
                self._record(_flat(rows.filter(pk__in=some).values_list(*self.model.subject_lookups)))

    def bulk_create(
        self,
        objs: Iterable[_Row],
        batch_size: int | None = None,
        ignore_conflicts: bool = False,
        update_conflicts: bool = False,
        update_fields: Collection[str] | None = None,
        unique_fields: Collection[str] | None = None,
    ) -> list[_Row]:
        if ignore_conflicts:
            raise NotSupportedError("Nobody would tell which rows were added: name those to update, or save each.")
        self._for_write = True
        rows = list(objs)
        for row in rows:
            row.clean_fields(exclude=row.relations())
            row.clean()

        def touched() -> Iterator[Subject]:
            for row in rows:
                yield from touched_subjects(row, using=self.db)

        with transaction.atomic(using=self.db):
            self._record(touched())
            before = audit.stored(self.model, self._keys_of_those_like(rows, unique_fields or ()), using=self.db)
            made = super().bulk_create(
                rows,
                batch_size=batch_size,
                update_conflicts=update_conflicts,
                update_fields=update_fields,
                unique_fields=unique_fields,
            )
            audit.note(self.model, {row.pk: before.get(row.pk) for row in made}, using=self.db)
            return made

    def _keys_of_those_like(self, rows: list[_Row], unique_fields: Collection[str]) -> list[Any]:
        """Of the rows there are that have these fields in common with one of `rows`."""
        if not unique_fields:
            return []
        keys: list[Any] = []
        for start in range(0, len(rows), 100):
            alike = Q(pk__in=[])
            for row in rows[start : start + 100]:
                alike |= Q(**{name: getattr(row, name) for name in unique_fields})
            keys += self.model._base_manager.using(self.db).filter(alike).values_list("pk", flat=True)
        return keys

    bulk_create.alters_data = True  # type: ignore[attr-defined]  # as above

    def delete(self) -> tuple[int, dict[str, int]]:
        self._for_write = True
        with transaction.atomic(using=self.db), audit.gathered(self.db):
            self._record(_flat(self.order_by().values_list(*self.model.subject_lookups)))
            return super().delete()

    delete.alters_data = True  # type: ignore[attr-defined]  # as above
    delete.queryset_only = True  # type: ignore[attr-defined]  # no `Upstream.objects.delete()`

    def _record(self, subjects: Iterable[Subject]) -> None:
        record_changes(subjects, kind=self.model.change_kind, using=self.db)


def _flat(lines: Iterable[tuple[Subject | None, ...]]) -> Iterator[Subject]:
    for line in lines:
        yield from filter(None, line)


class Recorded(models.Model):
    """A row that requests are decided from. `subject_lookups` lead from it to what it changes for them."""

    change_kind: ClassVar[ChangeModel] = Change
    subject_lookups: ClassVar[tuple[str, ...]]
    touched_by_updates: ClassVar[tuple[str, ...]] = ()
    """Moments that bulk updates set along with what they were asked to."""
    free_of_checks: ClassVar[frozenset[str]] = frozenset()
    """Fields whose column type is all the validation there is, so that bulk switches stay one statement."""
    unrecorded_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that no request is decided from: bulk updates of these alone are no change."""
    unaudited_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that only tell of changes, or of use."""
    secret_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of which the audit trail tells that they changed, and no more. Sealed ones are secret anyway."""
    split_fields: ClassVar[Mapping[str, Callable[[str], tuple[str, str]]]] = {}
    """Fields of which a part is secret: what takes their text apart into what may be told, and the secret."""

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.full_clean()
        using = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using):
            record_changes(touched_subjects(self, using=using), kind=self.change_kind, using=using)
            super().save(*args, **kwargs)

    def delete(self, using: str | None = None, keep_parents: bool = False) -> tuple[int, dict[str, int]]:
        using = using or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using), audit.gathered(using):
            return super().delete(using=using, keep_parents=keep_parents)

    def get_constraints(self) -> list[tuple[type[models.Model], Sequence[models.BaseConstraint]]]:
        return [(model, in_one_question(constraints)) for model, constraints in super().get_constraints()]

    @property
    def audit_name(self) -> str:
        """What the audit trail calls it. It may ask the database for nothing: many rows are named at a time."""
        return str(self)

    def subjects(self, *, using: str) -> Iterable[Subject]:
        """What this row, as it is in memory, changes."""
        raise NotImplementedError

    @classmethod
    def relations(cls) -> set[str]:
        return {field.name for field in cls._meta.fields if field.is_relation}


def touched_subjects(row: Recorded, *, using: str) -> Iterator[Subject]:
    """What writing or removing `row` changes: its own subjects, and those that the database has it under."""
    # A fixture's row may come before the one it belongs to, which then records the subject itself.
    with suppress(ObjectDoesNotExist):
        yield from row.subjects(using=using)
    if row.pk is not None:
        stored = type(row)._base_manager.using(using).filter(pk=row.pk)
        yield from _flat(stored.values_list(*row.subject_lookups))


def record_writes_of(*kinds: type[Recorded]) -> None:
    """Have single deletions and fixtures recorded, too, and all single writes in the audit trail. Signals of each
    model's own: one for all models would cost every model its fast deletion."""
    for kind in kinds:
        pre_delete.connect(_record_removal, sender=kind, dispatch_uid="relay.models.revisions")
        pre_save.connect(_record_fixture, sender=kind, dispatch_uid="relay.models.revisions")
        audit.follow(kind)  # after the others: it reads under the lock they take


def _record_removal(
    instance: Recorded, using: str, origin: models.Model | models.QuerySet[Any] | None = None, **_: Any
) -> None:
    """For `row.delete()`, and for what goes with it. A queryset records all of its rows at once, and what a row takes
    along of its own kind is covered by its own subject."""
    owner = origin.model if isinstance(origin, models.QuerySet) else type(origin)
    recorded = issubclass(owner, Recorded) and owner.change_kind is instance.change_kind
    if origin is instance or not recorded:
        record_changes(touched_subjects(instance, using=using), kind=instance.change_kind, using=using)


def _record_fixture(instance: Recorded, raw: bool, using: str, **_: Any) -> None:
    """`loaddata` writes rows without calling `save()`, in one transaction of its own. Rows may come in any order, so
    what they point to may come later."""
    if raw:
        instance.clean_fields(exclude=instance.relations())
        instance.clean()
        record_changes(touched_subjects(instance, using=using), kind=instance.change_kind, using=using)
