"""Targets as command lines write and show them: `ADDRESS[,weight=N][,backup|,ordinary][,on|,off]`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError

from relay.management.problems import sentences
from relay.models import Target, Upstream
from relay.rules.urls import parse_address

Places = Mapping[str, Mapping[str, Any]]
"""By address in its canonical form: the fields that were given of a target."""

_FIELDS = ("address", "weight", "enabled", "backup")
_WORDS: Mapping[str, tuple[str, bool]] = {
    "on": ("enabled", True),
    "off": ("enabled", False),
    "backup": ("backup", True),
    "ordinary": ("backup", False),
}
_FORM = "write ADDRESS, and after it, if you like, ,weight=N and ,backup or ,ordinary and ,on or ,off"


def read(texts: Iterable[str]) -> Places:
    """What `--target` texts say. Raises CommandError."""
    places: dict[str, dict[str, Any]] = {}
    for text in texts:
        address, *words = (part.strip() for part in text.split(","))
        said = places.setdefault(_canonical(address, option="--target"), {})
        for word in words:
            name, equals, value = word.partition("=")
            if name == "weight" and re.fullmatch("[0-9]{1,9}", value):
                said["weight"] = int(value)
            elif not equals and name in _WORDS:
                field, on = _WORDS[name]
                said[field] = on
            else:
                raise CommandError(f"--target: {_FORM}.")
    return places


def save(row: Upstream, places: Places) -> None:
    known = {target.address: target for target in row.targets.all()}
    for address, said in places.items():
        target = known.get(address) or Target(upstream=row, address=address)
        for field, value in said.items():
            setattr(target, field, value)
        try:
            target.save()
        except ValidationError as problem:
            raise CommandError("\n".join(f"--target {line}" for line in sentences(problem))) from None


def remove(row: Upstream, texts: Iterable[str]) -> None:
    for text in texts:
        address = _canonical(text, option="--remove-target")
        if not row.targets.filter(address=address).delete()[0]:
            there = ", ".join(row.targets.values_list("address", flat=True)) or "none"
            raise CommandError(f"--remove-target: {row.slug} has no target {address}. It has {there}.")


def documents(row: Upstream) -> list[dict[str, Any]]:
    """As JSON."""
    return [{name: getattr(target, name) for name in _FIELDS} for target in row.targets.all()]


def lines(row: Upstream) -> list[str]:
    """Each in words."""
    return [
        ", ".join(
            [
                target.address,
                f"weight {target.weight}",
                *(["backup"] if target.backup else []),
                *([] if target.enabled else ["off"]),
            ]
        )
        for target in row.targets.all()
    ]


def count(row: Upstream) -> str:
    """How many are in use, and of how many where that is not the same; “-” where the base URL alone is."""
    targets = row.targets.all()
    used = sum(target.enabled for target in targets)
    if not targets:
        return "-"
    return str(used) if used == len(targets) else f"{used}/{len(targets)}"


def _canonical(address: str, *, option: str) -> str:
    try:
        return parse_address(address).text
    except ValueError as problem:
        raise CommandError(f"{option}: {problem}") from None
