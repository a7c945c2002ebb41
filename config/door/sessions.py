"""How long a session lasts: so long idle, so long at all, whichever ends first.

Both are in the session's own expiry date, so Django's store refuses what has run out, whatever the cookie says. The
date moves on at most once a minute: fewer writes, and two requests at once seldom overwrite each other's session.
Signing in makes a new key and deletes the sessions that have run out, so the table holds those of one idle time at
most. That a changed password or a deactivated user ends sessions is Django's doing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.models import AbstractBaseUser
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.models import Session
from django.http import HttpRequest, HttpResponse

RENEW_SECONDS = 60
BEGAN = "door.began"
SEEN = "door.seen"


def connect_signals() -> None:
    user_logged_in.connect(_begin, dispatch_uid="config.door.sessions")


def end_old_sessions(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Between Django's session and authentication middleware: who comes with an old session is nobody."""

    def respond(request: HttpRequest) -> HttpResponse:
        session = request.session
        if SESSION_KEY in session:
            now = int(time.time())
            left = session.get(BEGAN, 0) + settings.RELAY_ADMIN_SESSION_SECONDS - now
            if left <= 0:
                session.flush()
            elif now - session.get(SEEN, 0) >= RENEW_SECONDS:
                _expire(session, now=now, left=left)
        return get_response(request)

    return respond


def end_all_of(user: AbstractBaseUser) -> None:
    """End every session of the user. The table knows no users, so each session is looked into."""
    for session in Session.objects.iterator():
        if session.get_decoded().get(SESSION_KEY) == str(user.pk):
            session.delete()


def _begin(sender: Any, request: HttpRequest, **_: Any) -> None:
    now = int(time.time())
    request.session.cycle_key()  # Django keeps it when the same user signs in again
    request.session[BEGAN] = now
    _expire(request.session, now=now, left=settings.RELAY_ADMIN_SESSION_SECONDS)
    request.session.clear_expired()


def _expire(session: SessionBase, *, now: int, left: int) -> None:
    session[SEEN] = now
    session.set_expiry(min(left, settings.RELAY_ADMIN_IDLE_SECONDS))
