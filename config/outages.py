"""What the admin's side answers while the database is away: 503 and a page that says so, instead of a failure.

The page needs neither the database nor a session. Relayed requests do not come here: they go on from the snapshot.
"""

from __future__ import annotations

import sys

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.views import defaults

RETRY_AFTER_SECONDS = 5


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's `handler500`, called while the exception is being handled."""
    if not isinstance(sys.exception(), OperationalError | InterfaceError):
        return defaults.server_error(request)
    response = HttpResponse(
        render_to_string("outage.html"),
        status=503,
        headers={"Retry-After": str(RETRY_AFTER_SECONDS), "Cache-Control": "no-store"},
    )
    # The watcher tells of an outage once; Django would each time, with a traceback that has the database's address.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response
