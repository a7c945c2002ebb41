"""`manage.py audit`: the audit trail for scripts and archives, and the one way to remove entries of it."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from datetime import datetime, time, timedelta
from typing import Any

from django.core.management.base import CommandError
from django.db import Error
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from relay.catalog import loader
from relay.management.authored import AuthoredCommand
from relay.models import AuditEntry
from relay.models.exports import Format, pieces

_MOST_DAYS = 36_500


class Command(AuthoredCommand):
    help = "Write out the audit trail, or remove its old entries."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        text = "Write entries to standard output, oldest first."
        export = actions.add_parser("export", help=text, description=text)
        export.set_defaults(act=self.export)
        export.add_argument("--since", metavar="MOMENT", help="leave out what is older; such as 2026-01-31T12:00")
        export.add_argument("--until", metavar="MOMENT", help="leave out this moment and what came later")
        export.add_argument(
            "--format", choices=[str(form) for form in Format], default="jsonl", help="default: jsonl, JSON Lines"
        )
        text = "Remove old entries. That leaves an entry, too."
        prune = actions.add_parser("prune", help=text, description=text)
        prune.set_defaults(act=self.prune)
        prune.add_argument("--older-than", metavar="DAYS", required=True, help="how old an entry has to be to go")

    def handle(self, *, act: Callable[..., None], **options: Any) -> None:
        try:
            act(**options)
        except Error as problem:
            raise CommandError(str(loader.unreadable(problem))) from None

    def export(self, *, since: str | None, until: str | None, format: str, **_: Any) -> None:
        entries = AuditEntry.objects.all()
        if since is not None:
            entries = entries.filter(moment__gte=_moment("--since", since))
        if until is not None:
            entries = entries.filter(moment__lt=_moment("--until", until))
        for piece in pieces(entries, Format(format)):
            self.stdout.write(piece, ending="")

    def prune(self, *, older_than: str, **_: Any) -> None:
        if not older_than.isascii() or not older_than.isdigit() or not 1 <= int(older_than) <= _MOST_DAYS:
            raise CommandError(f"--older-than: write whole days, from 1 to {_MOST_DAYS}.")
        count = AuditEntry.objects.prune(timezone.now() - timedelta(days=int(older_than)))
        self.stdout.write(f"Removed {count} {'entry' if count == 1 else 'entries'}")


def _moment(option: str, text: str) -> datetime:
    """In the installation's time zone unless it says otherwise; a day is its beginning."""
    try:
        day = parse_date(text)
        moment = datetime.combine(day, time.min) if day else parse_datetime(text)
    except ValueError:
        moment = None
    if moment is None:
        raise CommandError(f"{option}: write a day or a moment, such as 2026-01-31 or 2026-01-31T12:00+01:00.")
    return moment if timezone.is_aware(moment) else timezone.make_aware(moment)
