"""What a browser posts for the change form of an upstream: every field as the page shows it, then what one changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.forms import model_to_dict

from relay.models import HeaderRule, Upstream

RULE_FIELDS = ("id", "upstream", "side", "action", "name", "value")


def filled_form(
    upstream: Upstream, *, new_rules: Iterable[Mapping[str, str]] = (), **changes: str | None
) -> dict[str, str]:
    """`None` in `changes` leaves a field out, as a browser does with a box that is not ticked."""
    fields: dict[str, Any] = model_to_dict(upstream)
    fields = {name: "on" if value is True else value for name, value in fields.items() if value is not False}
    # Browsers send textareas with CRLF.
    posted = {name: "" if value is None else str(value).replace("\n", "\r\n") for name, value in fields.items()}
    rules: list[Mapping[str, Any]] = []
    if upstream.pk:
        rules = [model_to_dict(rule, RULE_FIELDS) for rule in HeaderRule.objects.filter(upstream=upstream)]
    posted |= {"header_rules-INITIAL_FORMS": str(len(rules)), "header_rules-MIN_NUM_FORMS": "0"}
    rules += [{"side": "request", "action": "set", "value": "", **rule} for rule in new_rules]
    posted |= {"header_rules-TOTAL_FORMS": str(len(rules)), "header_rules-MAX_NUM_FORMS": "1000"}
    for number, rule in enumerate(rules):
        posted |= {f"header_rules-{number}-{name}": str(value) for name, value in rule.items()}
    posted |= {name: value for name, value in changes.items() if value is not None}
    return {name: value for name, value in posted.items() if name not in changes or changes[name] is not None}
