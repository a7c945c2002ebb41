"""`manage.py audit`: what it writes out, what it removes, and how it refuses."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from relay.models import AuditEntry, Upstream
from relay.models.authors import Source

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("audit", *arguments, stdout=out)
    return out.getvalue()


@pytest.fixture(autouse=True)
def three_days() -> None:
    """One entry on each of three days, at noon."""
    for day in (1, 2, 3):
        Upstream.objects.create(slug=f"day-{day}", base_url="https://a.example")
        AuditEntry._base_manager.filter(upstream=f"day-{day}").update(moment=datetime(2026, 1, day, 12, tzinfo=UTC))


@pytest.mark.parametrize(
    ("options", "days"),
    [
        ((), "123"),
        (("--since", "2026-01-02"), "23"),
        (("--since", "2026-01-02T12:00"), "23"),
        (("--since", "2026-01-02T12:00+01:00", "--until", "2026-01-03T12:00Z"), "2"),
        (("--until", "2026-01-02"), "1"),
        (("--since", "2027-01-01"), ""),
    ],
)
def test_an_export_holds_what_lies_between(options: tuple[str, ...], days: str) -> None:
    names = [f"day-{day}" for day in days]
    assert [json.loads(line)["upstream"] for line in run("export", *options).splitlines()] == names
    rows = csv.DictReader(io.StringIO(run("export", *options, "--format", "csv")))
    assert [row["upstream"] for row in rows] == names


@pytest.mark.parametrize("words", [("--since", "monday"), ("--until", "2026-02-30"), ("--until", "2026-01-01T25:00")])
def test_a_moment_that_is_none_is_refused(words: tuple[str, str]) -> None:
    with pytest.raises(CommandError, match=f"{words[0]}: write a day or a moment"):
        run("export", *words)


def test_prune_removes_what_is_older_and_tells_who_did() -> None:
    AuditEntry._base_manager.filter(upstream="day-3").update(moment=timezone.now() - timedelta(days=9))
    assert run("prune", "--older-than", "10") == "Removed 2 entries\n"
    pruned, left = AuditEntry.objects.all()
    assert left.upstream == "day-3"
    assert (pruned.source, pruned.source_name) == (Source.COMMAND, "audit prune")
    assert run("prune", "--older-than", "10") == "Removed 0 entries\n"
    assert AuditEntry.objects.count() == 2


@pytest.mark.parametrize("days", ["0", "-1", "ten", "1.5", "99999", "²"])
def test_an_age_that_is_none_is_refused(days: str) -> None:
    with pytest.raises(CommandError, match="whole days"):
        run("prune", f"--older-than={days}")
    assert AuditEntry.objects.count() == 3
