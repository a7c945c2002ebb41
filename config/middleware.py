"""Middleware of the admin's side. Relayed requests do not pass here; `relay.rules.forwarding` decides for them."""

from __future__ import annotations

from collections.abc import Callable, Container
from http.cookies import Morsel

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


class KeptCookie(Morsel[str]):
    """A cookie that browsers throw out last. They keep some 180 for a site, and relayed pages may set any number;
    `relay.rules.cookies` lets none of those have this priority."""

    def OutputString(self, attrs: Container[str] | None = None) -> str:  # noqa: N802 - the library's name
        return f"{super().OutputString(attrs)}; Priority=High"


def keep_own_cookies(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
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
