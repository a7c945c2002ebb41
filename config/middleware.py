"""Middleware of the admin's side. Relayed requests do not pass here; `relay.rules.forwarding` decides for them."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from relay.rules.forwarding import TrustedProxies


def believe_trusted_proxies_only(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Drop `X-Forwarded-Proto` from all but trusted proxies: `SECURE_PROXY_SSL_HEADER` believes it."""
    trusted = TrustedProxies(settings.RELAY_TRUSTED_PROXIES)

    def respond(request: HttpRequest) -> HttpResponse:
        if not trusted.trusts(request.META.get("REMOTE_ADDR")):
            request.META.pop("HTTP_X_FORWARDED_PROTO", None)
        return get_response(request)

    return respond
