"""Where an upstream's requests go, when that is more than one place: its targets.

An upstream without any has one, at its base URL. With targets, these take the place of the base URL's host and port;
its scheme and path are theirs, and its host name is what they are asked for, in `Host` and in TLS.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.db.models import Q

from relay.models.revisions import Recorded, RecordingQuerySet, Subject, record_writes_of
from relay.models.upstreams import Upstream
from relay.rules import urls

MOST_TARGETS = 32
TOO_MANY = f"An upstream has at most {MOST_TARGETS} targets: remove one first."
LISTED_ALREADY = "This upstream has a target with this address already."
HEAVIEST = 100


class TargetQuerySet(RecordingQuerySet["Target"]):
    def bulk_create(self, objs: Iterable[Target], *args: Any, **kwargs: Any) -> list[Target]:
        """None of the rows knows how many the others are, so they are counted when all are there."""
        with transaction.atomic(using=self.db):
            made = super().bulk_create(objs, *args, **kwargs)
            for upstream_id in {row.upstream_id for row in made}:
                if self.model._base_manager.using(self.db).filter(upstream=upstream_id).count() > MOST_TARGETS:
                    raise ValidationError(TOO_MANY, code="too_many")
            return made

    bulk_create.alters_data = True  # type: ignore[attr-defined]  # Django's mark, which keeps templates from calling it


class Target(Recorded):
    """One address of an upstream. Whoever may change an upstream may change its targets, but for where they are."""

    subject_lookups: ClassVar[tuple[str, ...]] = ("upstream__slug",)
    free_of_checks: ClassVar[frozenset[str]] = frozenset({"enabled"})

    upstream = models.ForeignKey(Upstream, on_delete=models.CASCADE, related_name="targets")
    address = models.CharField(
        max_length=300, help_text="Host and port, such as 10.20.0.7:8080. Without a port, the base URL's."
    )
    weight = models.PositiveIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(HEAVIEST)],
        help_text="How much it takes beside the others: of weights 1 and 3, the second takes three times as much.",
    )
    enabled = models.BooleanField(
        default=True, help_text="Switched off, it gets no more exchanges; running ones finish."
    )
    backup = models.BooleanField(default=False, help_text="It is used only while none of the others can be.")

    objects = TargetQuerySet.as_manager()

    class Meta:
        ordering = ("upstream", "id")
        base_manager_name = "objects"
        default_permissions = ()
        constraints = (
            models.CheckConstraint(condition=Q(weight__gte=1, weight__lte=HEAVIEST), name="relay_target_weight"),
            models.UniqueConstraint(
                fields=("upstream", "address"),
                name="relay_target_once",
                violation_error_message=LISTED_ALREADY,
            ),
        )

    def __str__(self) -> str:
        return self.address

    def subjects(self, *, using: str) -> Iterable[Subject]:
        return (self.upstream.slug,)

    def clean(self) -> None:
        """Bring the address to its canonical form, or say what is wrong with it."""
        try:
            self.address = urls.parse_address(self.address).text
        except ValueError as problem:
            raise ValidationError({"address": ValidationError(str(problem), code="invalid")}) from None
        if self.upstream_id is not None:
            others = Target.objects.filter(upstream=self.upstream_id).exclude(pk=self.pk)
            if others.count() >= MOST_TARGETS:
                raise ValidationError(TOO_MANY, code="too_many")


record_writes_of(Target)
