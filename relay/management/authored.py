"""Commands whose name the audit trail puts to what they change, with that of who runs them at the machine."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from relay.models import authors


class AuthoredCommand(BaseCommand):
    def execute(self, *args: Any, **options: Any) -> str | None:
        words = (type(self).__module__.rpartition(".")[2], options.get("action"))
        author = authors.of_command(" ".join(filter(None, words)))
        with authors.acting(lambda: author):
            return super().execute(*args, **options)
