"""`manage.py secrets`: seals what is sealed in the database with the newest key, and says what does not open."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, Error

from relay import vault
from relay.catalog import loader
from relay.models import ApiKey, sealed


class Command(BaseCommand):
    help = "Rotate and check the secrets in the database."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        for name, act, text in (
            ("rotate", self.rotate, "Seal every secret anew with the first of RELAY_ENCRYPTION_KEYS."),
            (
                "check",
                self.check_all,
                "Say which secrets do not open, and what hangs on older keys; exit code 1 if any.",
            ),
        ):
            sub: ArgumentParser = actions.add_parser(name, help=text, description=text)
            sub.set_defaults(act=act)

    def handle(self, *, act: Callable[[], None], **_: Any) -> None:
        try:
            act()
        except Error as problem:
            raise CommandError(str(loader.unreadable(problem))) from None

    def rotate(self) -> None:
        failed = 0
        for column in sealed.columns():
            result = sealed.rotate(column, using=DEFAULT_DB_ALIAS)
            failed += result.broken
            self.stdout.write(
                f"{column.label}: {result.sealed_anew} sealed anew, {result.newest_already} were already, "
                f"{result.broken} do not open"
            )
        self._tell_of_keys()
        if failed:
            raise CommandError(f"Secrets that do not open: {failed}. `manage.py secrets check` says which.")

    def check_all(self) -> None:
        failed = 0
        for column in sealed.columns():
            for row, advice in sealed.broken(column, using=DEFAULT_DB_ALIAS):
                failed += 1
                self.stdout.write(f"{column.label} {row.pk} ({_whose(row)}): {advice}")
            older = sealed.older(column, using=DEFAULT_DB_ALIAS)
            if older:
                self.stdout.write(f"{column.label}: {older} sealed with an older key: run `manage.py secrets rotate`.")
        self._tell_of_keys()
        if failed:
            raise CommandError(f"Secrets that do not open: {failed}.")
        self.stdout.write("Every secret opens.")

    def _tell_of_keys(self) -> None:
        """Callers' keys are kept as digests, which cannot be made anew: they move on when they are rotated."""
        count = ApiKey.objects.exclude(hash_key_id=vault.keyring().newest_id).count()
        if count:
            self.stdout.write(
                f"Callers' keys that hang on older keys: {count}. They stop working when those are taken out of "
                "RELAY_ENCRYPTION_KEYS, unless they are rotated (`manage.py keys rotate`) before."
            )


def _whose(row: Any) -> str:
    upstream = getattr(row, "upstream", None)
    return f"upstream {upstream.slug}" if upstream is not None else str(row)
