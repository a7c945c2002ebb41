"""Which host names the relay answers for, and which are the admin's: Django's patterns, without a Django request.

Pages that are relayed and the admin's are one origin for browsers when they have one host name; with `admin_hosts` set
they have none in common.
"""

from __future__ import annotations

from functools import lru_cache

from django.http.request import split_domain_port, validate_host

from relay.conf import Conf
from relay.errors import HostRefused


def check_relay_host(host: bytes, settings: Conf) -> None:
    """Raises `HostRefused` unless relayed requests are answered at this value of the Host header."""
    if not _matches(host, settings.allowed_hosts) or _matches(host, settings.admin_hosts):
        raise HostRefused


def is_admin_host(host: bytes, settings: Conf) -> bool:
    """Whether Django's own pages may answer here. Django checks `allowed_hosts` itself."""
    return not settings.admin_hosts or _matches(host, settings.admin_hosts)


LONGEST_HOST = 261
"""A name of 255 bytes and its port. Callers must not fill the cache with longer ones."""


def _matches(host: bytes, patterns: tuple[str, ...]) -> bool:
    return len(host) <= LONGEST_HOST and _are_matching(host, patterns)


@lru_cache(maxsize=256)
def _are_matching(host: bytes, patterns: tuple[str, ...]) -> bool:
    domain, _ = split_domain_port(host.decode("latin-1"))
    return bool(domain) and validate_host(domain, patterns)
