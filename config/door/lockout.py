"""How often somebody may try to sign in. django-axes brings the table, the backend, the middleware and the commands.

An attempt is counted before its password is looked at and forgotten when it was the right one. So however many come at
once, on however many workers, no more passwords are tried than the limits allow: the one that commits last sees all the
others. Two limits hold: one for a name from an address, which a stranger elsewhere cannot use up for its owner, and a
wider one for an address whatever the names. What comes while the door is shut is not counted, so nobody can hold it
shut for longer.

The table has no names in it, because a password is easily typed into the wrong field, and none of what was posted.
Each attempt deletes what has run out. Checking a password is work on purpose, and keeps a database connection while it
lasts: a worker checks few at once, so that a flood takes neither from relayed requests.
"""

from __future__ import annotations

import logging
import threading
import unicodedata
from collections.abc import Callable, Mapping
from datetime import datetime
from ipaddress import ip_address, ip_network
from math import ceil
from typing import Any

from axes.handlers.database import AxesDatabaseHandler
from axes.models import AccessAttempt
from django.conf import settings
from django.contrib import admin
from django.db.models import F
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.crypto import salted_hmac

from relay.rules.forwarding import TrustedProxies, client_address

ADDRESS_FAILURES = 20
"""Attempts from one address, whatever the names, within the cool-off. `AXES_FAILURE_LIMIT` is that for one name."""
NO_ADDRESS = "::"
"""Stands for all callers whose peer has no address, behind a Unix socket."""
CHECKS_AT_ONCE = 2
"""Of passwords, in each worker."""
WAIT_SECONDS = 5.0
"""For a turn to have a password checked."""

log = logging.getLogger(__name__)


class Handler(AxesDatabaseHandler):
    """Asked by axes' backend before a password is looked at, and told how that went."""

    def is_locked(self, request: Any, credentials: Mapping[str, Any] | None = None) -> bool:
        """Whether this attempt is refused. One that is not has been counted."""
        name, address = _counted_name((credentials or {}).get("username")), counted_address(request)
        now = timezone.now()
        until = _locked_until(name, address, now=now, counted=0)
        if until is None:
            _count(name, address, now=now)
            until = _locked_until(name, address, now=now, counted=1)
        if until is not None:
            log.warning("Sign-in from %s is refused until %s: too many attempts", address, f"{until:%H:%M:%S %Z}")
        request.axes_locked_until = until
        return until is not None

    def user_login_failed(self, *_: Any, **__: Any) -> None:
        """Counted already."""

    def user_logged_in(self, sender: Any, request: Any, user: Any, **_: Any) -> None:
        name, address = _counted_name(user.get_username()), counted_address(request)
        AccessAttempt.objects.filter(username=name, ip_address=address).delete()

    def user_logged_out(self, *_: Any, **__: Any) -> None:
        """The table is about attempts."""

    def reset_attempts(
        self, *, ip_address: str | None = None, username: str | None = None, ip_or_username: bool = False
    ) -> int:
        """What `manage.py axes_reset`, `axes_reset_username` and `axes_reset_ip` do."""
        return int(
            super().reset_attempts(
                ip_address=ip_address and _block(ip_address),
                username=username and _counted_name(username),
                ip_or_username=ip_or_username,
            )
        )


def bound_checks_at_once(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Before the session middleware: who waits for a turn holds no database connection."""
    turns = threading.BoundedSemaphore(CHECKS_AT_ONCE)

    def respond(request: HttpRequest) -> HttpResponse:
        if request.method != "POST" or request.path != reverse("admin:login"):
            return get_response(request)
        if not turns.acquire(timeout=WAIT_SECONDS):
            return HttpResponse(
                "Too many are signing in at this moment. Try again in a few seconds.\n",
                status=503,
                content_type="text/plain; charset=utf-8",
                headers={"Retry-After": "5"},
            )
        try:
            return get_response(request)
        finally:
            turns.release()

    return respond


def refusal(request: Any, _original: HttpResponse | None = None, _credentials: Any = None) -> HttpResponse:
    """The page that says when to try again."""
    until: datetime = request.axes_locked_until
    seconds = max(1, ceil((until - timezone.now()).total_seconds()))
    context = {
        **admin.site.each_context(request),
        "title": "Too many attempts",
        "until": until,
        "minutes": ceil(seconds / 60),
    }
    response = render(request, "door/locked.html", context, status=429)
    response["Retry-After"] = str(seconds)
    return response


def counted_address(request: HttpRequest) -> str:
    """The caller's address as far as trusted proxies tell it; an IPv6 caller's network, which is all theirs (/64)."""
    trusted = TrustedProxies(settings.RELAY_TRUSTED_PROXIES)
    forwarded_for = request.META.get("HTTP_X_FORWARDED_FOR", "").encode("latin-1", "replace")
    return _block(client_address(request.META.get("REMOTE_ADDR"), trusted, [forwarded_for]))


def _block(text: str) -> str:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return NO_ADDRESS
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ip_network((address, 64), strict=False).network_address)


def _counted_name(name: object) -> str:
    """A keyed hash of the name, the same for all spellings that people take for one."""
    folded = "".join(unicodedata.normalize("NFKC", str(name)).casefold().split())
    return salted_hmac("config.door.lockout", folded, algorithm="sha256").hexdigest()


def _count(name: str, address: str, *, now: datetime) -> None:
    AccessAttempt.objects.filter(attempt_time__lte=now - settings.AXES_COOLOFF_TIME).delete()
    attempts = {"username": name, "ip_address": address, "user_agent": ""}
    # The row may be deleted by another worker's successful sign-in in between.
    while not AccessAttempt.objects.filter(**attempts).update(
        failures_since_start=F("failures_since_start") + 1, attempt_time=now
    ):
        AccessAttempt.objects.get_or_create(**attempts, defaults={"failures_since_start": 0})


def _locked_until(name: str, address: str, *, now: datetime, counted: int) -> datetime | None:
    """When the door opens again, None when it is open. `counted`: how many of the attempts are the one in question."""
    fresh = AccessAttempt.objects.filter(ip_address=address, attempt_time__gt=now - settings.AXES_COOLOFF_TIME)
    rows = list(fresh.order_by("attempt_time").values_list("username", "failures_since_start", "attempt_time"))
    last: datetime | None = None
    left = sum(failures for _, failures, _ in rows) - counted
    for row_name, failures, attempt_time in rows:
        if left >= ADDRESS_FAILURES or (row_name == name and failures - counted >= settings.AXES_FAILURE_LIMIT):
            last = attempt_time
        left -= failures
    return last and last + settings.AXES_COOLOFF_TIME
