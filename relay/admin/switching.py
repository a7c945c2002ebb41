"""The bulk switches of what can be switched on and off: upstreams and consumers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = object


class Switches(_ModelAdmin):
    """For models with `enabled` and `changed_by`. Those that are so already are left as they are."""

    @admin.action(permissions=("change",), description="Switch on selected %(verbose_name_plural)s")
    def switch_on(self, request: HttpRequest, chosen: QuerySet[Any]) -> None:
        self._switch(request, chosen, enabled=True)

    @admin.action(permissions=("change",), description="Switch off selected %(verbose_name_plural)s")
    def switch_off(self, request: HttpRequest, chosen: QuerySet[Any]) -> None:
        self._switch(request, chosen, enabled=False)

    def _switch(self, request: HttpRequest, chosen: QuerySet[Any], *, enabled: bool) -> None:
        """Their last change stays with those that are so already."""
        user = cast(User, request.user)
        with transaction.atomic():
            total = chosen.count()
            others = chosen.filter(enabled=not enabled)
            word = "on" if enabled else "off"
            LogEntry.objects.log_actions(user.pk, others, CHANGE, f"Switched {word}.")
            count = others.update(enabled=enabled, changed_by=user)
        left = f"; {total - count} {'was' if total - count == 1 else 'were'} {word} already" if count < total else ""
        what = self.opts.verbose_name if count == 1 else self.opts.verbose_name_plural
        self.message_user(
            request, f"{count} {what} switched {word}{left}.", messages.SUCCESS if count else messages.INFO
        )
