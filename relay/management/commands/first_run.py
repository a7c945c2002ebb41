"""`manage.py first_run`: everything between a fresh checkout and `serve`.

Makes the data folder, migrates, collects static files and, when there are no users at all, the first admin. Harmless
to repeat and safe when two run at once. The secret key is there already: the project makes it before settings load.
"""

from __future__ import annotations

import fcntl
import secrets
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import IntegrityError, transaction

from relay.management.authored import AuthoredCommand
from relay.management.commands.serve import check_data_dir, count_waiting_migrations


class Command(AuthoredCommand):
    help = "Prepare the data folder, the database, static files and the first admin. Harmless to repeat."
    requires_system_checks = ()  # they are for a database that is there

    def handle(self, **_: Any) -> None:
        check_data_dir(settings.RELAY_DATA_DIR)
        count_waiting_migrations()  # says in one line when the database is out of reach
        with (Path(settings.RELAY_DATA_DIR) / "first_run.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            call_command("migrate", interactive=False, verbosity=0)
            call_command("collectstatic", interactive=False, verbosity=0)
            password = make_first_admin(settings.RELAY_FIRST_ADMIN_NAME, settings.RELAY_FIRST_ADMIN_PASSWORD)
        if password:
            self.stdout.write(
                f"The first admin is {settings.RELAY_FIRST_ADMIN_NAME} with the password {password}\n"
                "It is shown this once: keep it, or change it at /admin/password_change/."
            )


def make_first_admin(name: str, password: str | None) -> str | None:
    """Make a superuser when there are no users at all. Gives the password to show: only one that was made here."""
    users = get_user_model()._default_manager
    made = None if password else secrets.token_urlsafe(12)
    try:
        with transaction.atomic():
            if users.exists():
                return None
            users.create_superuser(name, password=password or made)
    except IntegrityError:  # another machine was faster
        return None
    return made
