"""Which host names the relay answers for: Django's ALLOWED_HOSTS, without a Django request."""

from __future__ import annotations

from functools import lru_cache

from django.http.request import split_domain_port, validate_host

from relay.errors import HostRefused


def check_host(host: bytes, allowed: tuple[str, ...]) -> None:
    """Raises `HostRefused` unless the Host header names one of `allowed` (Django's patterns)."""
    if not _is_allowed(host, allowed):
        raise HostRefused


@lru_cache(maxsize=256)
def _is_allowed(host: bytes, allowed: tuple[str, ...]) -> bool:
    domain, _ = split_domain_port(host.decode("latin-1"))
    return bool(domain) and validate_host(domain, allowed)
