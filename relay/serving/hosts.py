"""Which host name serves what, by the settings in force: `relay.rules.hosts` decides, this remembers.

Pages that are relayed and the admin's are one origin for browsers when they have one host name. With `RELAY_HOSTS` or
`RELAY_ADMIN_HOSTS` they have none in common, and a pattern in the first gives each upstream an origin of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from relay import conf
from relay.conf import Conf, Derived
from relay.rules.hosts import LONGEST_HOST, Hosts, Place

REMEMBERED_HOSTS = 4096
"""Values of Host whose place is kept. Callers choose them, so they must not fill memory."""


def place_of(pairs: list[tuple[bytes, bytes]], settings: Conf) -> Place:
    """Where a request with these header pairs belongs, by its first Host; a second one is refused later."""
    for name, value in pairs:
        if name == b"host":
            return place(value, settings)
    return place(b"", settings)


def place(host: bytes, settings: Conf) -> Place:
    """What this value of the Host header serves."""
    if len(host) > LONGEST_HOST:
        host = b""
    return _places.of(settings)(host)


def names() -> Hosts:
    """The names of the settings in force."""
    return _hosts.of(conf.current())


def _remembering(settings: Conf) -> Callable[[bytes], Place]:
    return lru_cache(maxsize=REMEMBERED_HOSTS)(_hosts.of(settings).place)


_hosts = Derived(
    lambda settings: Hosts(allowed=settings.allowed_hosts, relay=settings.relay_hosts, admin=settings.admin_hosts)
)
_places = Derived(_remembering)
