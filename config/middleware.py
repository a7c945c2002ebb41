"""Middleware of the admin's side. Relayed requests do not pass here; `relay.rules` decides for them."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from relay.rules.forwarding import TrustedProxies

Respond = Callable[[HttpRequest], HttpResponse]

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        # Alpine.js, which unfold is built on, makes functions of the attributes it finds.
        "script-src 'self' 'unsafe-eval'",
        # unfold's colours are a style element, and Alpine sets styles.
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


def believe_trusted_proxies_only(get_response: Respond) -> Respond:
    """Drop `X-Forwarded-Proto` from all but trusted proxies: `SECURE_PROXY_SSL_HEADER` believes it."""
    trusted = TrustedProxies(settings.RELAY_TRUSTED_PROXIES)

    def respond(request: HttpRequest) -> HttpResponse:
        if not trusted.trusts(request.META.get("REMOTE_ADDR")):
            request.META.pop("HTTP_X_FORWARDED_PROTO", None)
        return get_response(request)

    return respond


def bound_what_pages_load(get_response: Respond) -> Respond:
    """The admin's Content-Security-Policy. Django's own error pages under DEBUG are built of inline scripts."""

    def respond(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if not (settings.DEBUG and response.status_code in {404, 500}):
            response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        return response

    return respond
