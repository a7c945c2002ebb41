"""What a browser posts for the change form of an upstream: every field as the page shows it, then what one changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db.models import QuerySet
from django.forms import model_to_dict

from relay.models import HeaderRule, Target, Upstream

RULE_FIELDS = ("id", "upstream", "side", "action", "name", "value")
TARGET_FIELDS = ("id", "upstream", "address", "weight", "enabled", "backup")


def filled_form(
    upstream: Upstream,
    *,
    new_rules: Iterable[Mapping[str, str]] = (),
    new_targets: Iterable[Mapping[str, str]] = (),
    **changes: str | None,
) -> dict[str, str]:
    """`None` in `changes` leaves a field out, as a browser does with a box that is not ticked."""
    posted = _ticked(model_to_dict(upstream))
    added = [{"side": "request", "action": "set", "value": "", **new} for new in new_rules]
    posted |= _rows("header_rules", HeaderRule.objects.filter(upstream=upstream.pk), RULE_FIELDS, added)
    added = [{"weight": "1", "enabled": "on", **new} for new in new_targets]
    posted |= _rows("targets", Target.objects.filter(upstream=upstream.pk), TARGET_FIELDS, added)
    posted |= {name: value for name, value in changes.items() if value is not None}
    return {name: value for name, value in posted.items() if name not in changes or changes[name] is not None}


def _ticked(fields: Mapping[str, Any]) -> dict[str, str]:
    shown = {name: "on" if value is True else value for name, value in fields.items() if value is not False}
    # Browsers send textareas with CRLF.
    return {name: "" if value is None else str(value).replace("\n", "\r\n") for name, value in shown.items()}


def _rows(
    prefix: str, there: QuerySet[Any], names: tuple[str, ...], new: Iterable[Mapping[str, str]]
) -> dict[str, str]:
    rows: list[Mapping[str, str]] = [_ticked(model_to_dict(row, names)) for row in there]
    posted = {f"{prefix}-INITIAL_FORMS": str(len(rows)), f"{prefix}-MIN_NUM_FORMS": "0"}
    rows += new
    posted |= {f"{prefix}-TOTAL_FORMS": str(len(rows)), f"{prefix}-MAX_NUM_FORMS": "1000"}
    for number, row in enumerate(rows):
        posted |= {f"{prefix}-{number}-{name}": value for name, value in row.items()}
    return posted
