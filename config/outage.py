"""What the admin answers when a request failed: while the database is away a 503 page that says so, else Django's 500.

The page is made of its template alone. Nothing of it asks for the session, the user or the database.
"""

from __future__ import annotations

import sys

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template import loader
from django.views import defaults

RETRY_AFTER_SECONDS = 10


def server_error(request: HttpRequest) -> HttpResponse:
    """The project's `handler500`, which Django calls while it handles the exception."""
    if not isinstance(sys.exception(), OperationalError | InterfaceError):
        return defaults.server_error(request)
    response = HttpResponse(
        loader.get_template("outage.html").render(),
        status=503,
        headers={"Retry-After": str(RETRY_AFTER_SECONDS), "Cache-Control": "no-store"},
    )
    # The watcher tells of an outage once; Django would, with a traceback that has the database's address, each time.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response
