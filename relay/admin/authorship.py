"""Middleware that tells the audit trail who is behind a request, and from which address.

An embedding project puts `relay.admin.authorship.name_author` last into its MIDDLEWARE. The address is the one
`RELAY_TRUSTED_PROXIES` lets us believe: a caller cannot make it up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from django.http import HttpRequest, HttpResponse

from relay import conf
from relay.models import authors
from relay.models.authors import Author, Source
from relay.rules import forwarding


def name_author(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def respond(request: HttpRequest) -> HttpResponse:
        with authors.acting(lambda: author_of(request)):
            return get_response(request)

    return respond


def author_of(request: HttpRequest) -> Author:
    user = getattr(request, "user", None)
    known = user is not None and user.is_authenticated
    place = request.resolver_match
    peer = request.META.get("REMOTE_ADDR") or None
    trusted = _trusted_proxies(conf.current().trusted_proxies)
    address = forwarding.client_address(peer, trusted, [_header(request, "X_FORWARDED_FOR")])
    incoming = _header(request, "X_REQUEST_ID")
    request_id = forwarding.request_id(incoming, trusted=trusted.trusts(peer), make=bytes)
    return Author(
        Source.ADMIN if place is not None and "admin" in place.app_names else Source.SERVER,
        user_id=user.pk if user is not None and known else None,
        name=user.get_username() if user is not None and known else "",
        address="" if address == forwarding.UNKNOWN else address,
        request_id=request_id.decode("ascii"),
    )


def _header(request: HttpRequest, name: str) -> bytes:
    return str(request.META.get(f"HTTP_{name}", "")).encode("latin-1", "replace")


@lru_cache(maxsize=2)
def _trusted_proxies(cidrs: tuple[str, ...]) -> forwarding.TrustedProxies:
    return forwarding.TrustedProxies(cidrs)
