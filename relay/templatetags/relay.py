"""Signed relay URLs in templates. `relay.signing` does the work and says what may be signed."""

from __future__ import annotations

from datetime import timedelta

from django import template

from relay import signing

register = template.Library()


@register.simple_tag
def relay_signed_url(
    slug: str, path: str = "", *, key: str, expires_in: str | timedelta = signing.DEFAULT_LIFETIME, method: str = "GET"
) -> str:
    """`{% relay_signed_url "images" "/logo.png?size=2" key="newsletter" expires_in="30d" %}`

    Begins with `/relay/`: in an e-mail, write scheme and host before it. Escaped like any value, so it is fit for an
    attribute; with `as name`, escaping is the business of where the name is used.
    """
    if path and not path.startswith(("/", "?")):
        path = f"/{path}"
    lifetime = signing.lifetime(expires_in) if isinstance(expires_in, str) else expires_in
    return signing.sign(signing.relay_path(slug, path), key=key, method=method, expires_in=lifetime)
