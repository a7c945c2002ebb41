"""System checks: settings that cannot work are told at start-up, with what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core import checks
from django.utils.module_loading import import_string

from relay import conf
from relay.rules.addresses import parse_networks
from relay.rules.hosts import Hosts, check_entry

ONE_ORIGIN = "Relayed pages and the admin share an origin: browsers let the one act as the other."
ONE_ORIGIN_HINT = (
    "Give either host names of its own: RELAY_HOSTS, such as relay.example.org and <slug>.relay.example.org, or "
    "RELAY_ADMIN_HOSTS. Until then relayed pages are sandboxed (docs/security.md)."
)


@checks.register("relay")
def check_settings(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    settings = conf.current()
    found: list[checks.CheckMessage] = []
    for path in settings.middleware:
        try:
            middleware = import_string(path)
        except ImportError as problem:
            found.append(checks.Error(f"RELAY_MIDDLEWARE: {problem}", hint="Correct the dotted path.", id="relay.E001"))
            continue
        if not (getattr(middleware, "async_capable", False) or iscoroutinefunction(middleware)):
            found.append(
                checks.Error(
                    f"RELAY_MIDDLEWARE: {path} cannot run async.",
                    hint="The relay path makes no threads: give it async_capable = True and a coroutine __call__.",
                    id="relay.E002",
                )
            )
    for network in settings.trusted_proxies:
        try:
            parse_networks(network)
        except ValueError as problem:
            found.append(checks.Error(f"RELAY_TRUSTED_PROXIES: {problem}", id="relay.E003"))
    if settings.max_header_bytes < 1024:
        found.append(
            checks.Error("RELAY_MAX_HEADER_BYTES is below 1024.", hint="65536 is the default.", id="relay.E004")
        )
    if not 0.05 <= settings.catalog_poll_seconds <= 60:
        found.append(
            checks.Error(
                "RELAY_CATALOG_POLL_SECONDS is not between 0.05 and 60.", hint="0.5 is the default.", id="relay.E005"
            )
        )
    if settings.credentials_dir:
        folder = Path(settings.credentials_dir)
        held = [path for path in _private_paths() if path.resolve().is_relative_to(folder.resolve())]
        if held or not folder.is_absolute():
            found.append(
                checks.Error(
                    "RELAY_CREDENTIALS_DIR is not an absolute path, or holds the relay's own data or database.",
                    hint="Name a folder that holds secrets for upstreams and nothing else.",
                    id="relay.E007",
                )
            )
    found += _check_hosts(settings)
    try:
        import_string(settings.transport)
    except ImportError as problem:
        found.append(
            checks.Error(
                f"RELAY_TRANSPORT: {problem}",
                hint=f"Correct the dotted path, or leave the setting out for {conf.DEFAULT_TRANSPORT}.",
                id="relay.E006",
            )
        )
    return found


def _private_paths() -> list[Path]:
    """What no credential may name: the folder of the relay's own data, and databases that are files."""
    data_dir = getattr(django_settings, "RELAY_DATA_DIR", None)
    names = [database.get("NAME") for database in django_settings.DATABASES.values()]
    files = [Path(name) for name in names if isinstance(name, str | Path) and Path(name).is_absolute()]
    return [*([Path(data_dir)] if data_dir else []), *files]


def _check_hosts(settings: conf.Conf) -> list[checks.CheckMessage]:
    found: list[checks.CheckMessage] = []
    for entry in settings.relay_hosts:
        try:
            check_entry(entry)
        except ValueError as problem:
            found.append(checks.Error(f"RELAY_HOSTS: {problem}.", id="relay.E008"))
    hosts = Hosts(allowed=settings.allowed_hosts, relay=settings.relay_hosts, admin=settings.admin_hosts)
    if both := hosts.answered_by_both():
        found.append(
            checks.Error(
                f"RELAY_HOSTS and RELAY_ADMIN_HOSTS both have {', '.join(both)}.",
                hint="Leave each name in one of them: the admin does not answer where the relay does.",
                id="relay.E009",
            )
        )
    return found


@checks.register("relay")
def check_origins(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    settings = conf.current()
    hosts = Hosts(allowed=settings.allowed_hosts, relay=settings.relay_hosts, admin=settings.admin_hosts)
    return [checks.Warning(ONE_ORIGIN, hint=ONE_ORIGIN_HINT, id="relay.W001")] if hosts.one_origin else []
