"""Middleware of the admin's side. Relayed requests do not pass here; `relay.rules` decides for them."""

from __future__ import annotations

from collections.abc import Callable, Container
from http.cookies import Morsel

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


class KeptCookie(Morsel[str]):
    """A cookie that browsers throw out last. They keep some 180 for a site, and relayed pages may set any number;
    `relay.rules.cookies` lets none of those have this priority."""

    def OutputString(self, attrs: Container[str] | None = None) -> str:  # noqa: N802 - the library's name
        return f"{super().OutputString(attrs)}; Priority=High"


def keep_own_cookies(get_response: Respond) -> Respond:
    """Have browsers keep the session, whatever an upstream does to their store of cookies. Chromium knows how."""

    def respond(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        for name in (settings.SESSION_COOKIE_NAME, settings.CSRF_COOKIE_NAME):
            cookie = response.cookies.get(name)
            if cookie is not None:
                kept = KeptCookie()
                kept.set(cookie.key, cookie.value, cookie.coded_value)
                kept.update(cookie)
                response.cookies[name] = kept
        return response

    return respond
