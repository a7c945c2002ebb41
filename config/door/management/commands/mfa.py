"""`manage.py mfa reset USER`: for somebody whose device and backup codes are lost."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError

from config.door import sessions


class Command(BaseCommand):
    help = "Second factors of those who sign in to the admin."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="ACTION", required=True)
        words = "Forget a user's second factor and end their sessions. The next sign-in sets up a new one."
        reset = actions.add_parser("reset", help=words, description=words)
        reset.add_argument("user", metavar="USER", help="the name they sign in with")

    def handle(self, *, user: str, **_: Any) -> None:
        if not settings.RELAY_ADMIN_MFA:
            raise CommandError("There are no second factors: RELAY_ADMIN_MFA is off.")
        from config.door import factors  # its packages are an extra's

        users = get_user_model()
        try:
            found = users._default_manager.get_by_natural_key(user)
        except users.DoesNotExist:
            raise CommandError(f"There is no user {user}.") from None
        had = factors.reset(found)
        sessions.end_all_of(found)
        self.stdout.write(f"{user} {'has' if had else 'had'} no second factor{' any more' if had else ''}.")
