"""What the database checks of a row is asked before the row is written, so that a form can tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.core.exceptions import ValidationError
from django.db import DEFAULT_DB_ALIAS, models
from django.db.models import CheckConstraint, Q


def in_one_question(constraints: Iterable[models.BaseConstraint]) -> list[models.BaseConstraint]:
    """The same constraints, to validate a row by: the check constraints among them are one."""
    checks, others = [], []
    for constraint in constraints:
        if isinstance(constraint, CheckConstraint):
            checks.append(constraint)
        else:
            others.append(constraint)
    return [Together(checks), *others] if checks else others


class Together(models.BaseConstraint):
    """Check constraints of a model. Django asks about each in a query, in a savepoint, and hands it the whole row.

    This asks whether all hold, about what they name; only where they do not, which.
    """

    def __init__(self, checks: Sequence[CheckConstraint]) -> None:
        super().__init__(name="together")
        self.checks = checks

    def validate(
        self,
        model: type[models.Model],
        instance: models.Model,
        exclude: set[str] | None = None,
        using: str = DEFAULT_DB_ALIAS,
    ) -> None:
        excluded = exclude or set()
        conditions = [Q(check.condition) for check in self.checks]
        # One that names a field that is not to be looked at holds, as Django has it.
        asked = [condition for condition in conditions if not condition.referenced_base_fields & excluded]
        if not asked:
            return
        all_of_them = Q(*asked)
        others = {field.name for field in model._meta.local_concrete_fields} - all_of_them.referenced_base_fields
        try:
            CheckConstraint(condition=all_of_them, name=self.name).validate(
                model, instance, exclude=excluded | others, using=using
            )
        except ValidationError:
            problems: list[ValidationError] = []
            for check in self.checks:
                try:
                    check.validate(model, instance, exclude=exclude, using=using)
                except ValidationError as problem:
                    problems.append(problem)
            if problems:
                raise ValidationError(problems) from None
