"""What the relay reads from Django settings, with its defaults, read once and frozen.

Every name is optional, so the app installs into another project as it is. `relay.checks` complains at start-up about
values that cannot work; nothing here does I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from django.conf import settings
from django.core.signals import setting_changed
from django.dispatch import receiver

MOUNT = "/relay/"


@dataclass(frozen=True, slots=True)
class Conf:
    """The relay's settings. Sizes in bytes, times in seconds."""

    middleware: tuple[str, ...]
    """Dotted paths of async-capable middleware around the relay view, outermost first."""
    trusted_proxies: tuple[str, ...]
    """CIDRs of the proxies in front whose forwarding headers and request ids are believed."""
    allowed_hosts: tuple[str, ...]
    relay_hosts: tuple[str, ...]
    """The names that are the relay's alone, and patterns such as `<slug>.relay.example.org` that map hosts to
    upstreams. Empty: it answers at all of `allowed_hosts` that are not the admin's."""
    admin_hosts: tuple[str, ...]
    """The names that are the admin's alone. Empty: it answers at all of `allowed_hosts` that are not the relay's."""
    max_header_bytes: int
    """Bound of a request's head: the request line and all header fields."""
    max_header_fields: int
    max_target_bytes: int
    """Bound of a request's target: path and query."""
    head_timeout_seconds: float
    """For a request's head, from its first byte or, on a new connection, from the connection on."""
    stall_timeout_seconds: float
    """How long a caller may leave an answer waiting that it was sent."""
    max_connections: int
    """Of one worker. 0: half of the files that it may have open."""
    max_connections_per_peer: int
    """Of one worker, from one address."""
    max_form_bytes: int
    """Bound of a request's body where Django answers."""
    access_log: str
    """`stdout`, `off`, or a path that lines are appended to."""
    metrics_networks: tuple[str, ...]
    """CIDRs of those who may ask for `/metrics` and the details of `/readyz`."""
    metrics_folder: Path | None
    """Where workers leave their numbers for each other. None: each tells of itself alone."""
    store_folder: Path | None
    """Where the last good snapshot is kept, to serve from when the database is away at start. None: nowhere."""
    via: str
    """The name this installation gives itself in `Via`; a request that comes with it has looped."""
    catalog_poll_seconds: float
    encryption_keys: tuple[str, ...] = field(repr=False)
    """The roots of `relay.vault`, newest first: those set for it, then Django's secret key and its fallbacks."""
    credentials_dir: str
    """The one folder below which upstreams' credentials may name files. Empty: none."""
    transport: str
    """Dotted path of the engine that goes out: an `httpx.AsyncBaseTransport`, called without arguments at start-up."""


DEFAULT_MAX_HEADER_BYTES = 64 * 1024
DEFAULT_MAX_HEADER_FIELDS = 256
DEFAULT_MAX_TARGET_BYTES = 16 * 1024
DEFAULT_HEAD_TIMEOUT_SECONDS = 15.0
DEFAULT_STALL_TIMEOUT_SECONDS = 300.0
DEFAULT_MAX_CONNECTIONS_PER_PEER = 512
DEFAULT_MAX_FORM_BYTES = 10 * 1024 * 1024
DEFAULT_CATALOG_POLL_SECONDS = 0.5
DEFAULT_METRICS_NETWORKS = ("127.0.0.0/8", "::1/128")
DEFAULT_TRANSPORT = "relay.upstreams.transport.PooledTransport"


@lru_cache(maxsize=1)
def current() -> Conf:
    """The settings in force. Cached; tests that override settings get a fresh one through `setting_changed`."""
    return Conf(
        middleware=tuple(getattr(settings, "RELAY_MIDDLEWARE", ())),
        trusted_proxies=tuple(getattr(settings, "RELAY_TRUSTED_PROXIES", ())),
        allowed_hosts=tuple(settings.ALLOWED_HOSTS),
        relay_hosts=tuple(getattr(settings, "RELAY_HOSTS", ())),
        admin_hosts=tuple(getattr(settings, "RELAY_ADMIN_HOSTS", ())),
        max_header_bytes=getattr(settings, "RELAY_MAX_HEADER_BYTES", DEFAULT_MAX_HEADER_BYTES),
        max_header_fields=getattr(settings, "RELAY_MAX_HEADER_FIELDS", DEFAULT_MAX_HEADER_FIELDS),
        max_target_bytes=getattr(settings, "RELAY_MAX_TARGET_BYTES", DEFAULT_MAX_TARGET_BYTES),
        head_timeout_seconds=getattr(settings, "RELAY_HEAD_TIMEOUT_SECONDS", DEFAULT_HEAD_TIMEOUT_SECONDS),
        stall_timeout_seconds=getattr(settings, "RELAY_STALL_TIMEOUT_SECONDS", DEFAULT_STALL_TIMEOUT_SECONDS),
        max_connections=getattr(settings, "RELAY_MAX_CONNECTIONS", None) or 0,
        max_connections_per_peer=getattr(settings, "RELAY_MAX_CONNECTIONS_PER_PEER", DEFAULT_MAX_CONNECTIONS_PER_PEER),
        max_form_bytes=getattr(settings, "RELAY_MAX_FORM_BYTES", DEFAULT_MAX_FORM_BYTES),
        access_log=getattr(settings, "RELAY_ACCESS_LOG", "stdout"),
        metrics_networks=tuple(getattr(settings, "RELAY_METRICS_NETWORKS", DEFAULT_METRICS_NETWORKS)),
        metrics_folder=getattr(settings, "RELAY_METRICS_FOLDER", None),
        store_folder=getattr(settings, "RELAY_STORE_FOLDER", None),
        via=getattr(settings, "RELAY_VIA", "") or _installation_name(),
        catalog_poll_seconds=getattr(settings, "RELAY_CATALOG_POLL_SECONDS", DEFAULT_CATALOG_POLL_SECONDS),
        encryption_keys=(
            *getattr(settings, "RELAY_ENCRYPTION_KEYS", ()),
            settings.SECRET_KEY,
            *settings.SECRET_KEY_FALLBACKS,
        ),
        credentials_dir=str(getattr(settings, "RELAY_CREDENTIALS_DIR", "") or ""),
        transport=getattr(settings, "RELAY_TRANSPORT", DEFAULT_TRANSPORT),
    )


def _installation_name() -> str:
    """The same on every worker and machine that shares the SECRET_KEY, and tells nothing of it."""
    return "relay-" + hashlib.sha256(b"relay.via:" + settings.SECRET_KEY.encode()).hexdigest()[:8]


_T = TypeVar("_T")


class Derived(Generic[_T]):
    """What is worked out from the settings in force, once for each."""

    def __init__(self, work_out: Callable[[Conf], _T]) -> None:
        self._work_out = work_out
        self._known: tuple[Conf, _T] | None = None

    def of(self, settings: Conf) -> _T:
        known = self._known
        if known is None or known[0] is not settings:
            known = self._known = settings, self._work_out(settings)
        return known[1]


@receiver(setting_changed)
def _forget(**_: Any) -> None:
    current.cache_clear()
