"""What the database checks of a row, also asked before it is written, so that a form can tell."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.db import DEFAULT_DB_ALIAS, models
from django.db.models import Q


class Check(models.CheckConstraint):
    """Django's check constraint, but validation hands the database what the condition is about, not the whole row.

    An upstream has twelve, and five dozen fields. In migrations it is Django's own.
    """

    def validate(
        self,
        model: type[models.Model],
        instance: models.Model,
        exclude: Collection[str] | None = None,
        using: str = DEFAULT_DB_ALIAS,
    ) -> None:
        about = Q(self.condition).referenced_base_fields
        others = {field.name for field in model._meta.local_concrete_fields if field.name not in about}
        super().validate(model, instance, exclude=others.union(exclude or ()), using=using)

    def deconstruct(self) -> Any:
        _, *arguments = super().deconstruct()
        return "django.db.models.CheckConstraint", *arguments
