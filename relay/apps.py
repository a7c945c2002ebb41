"""The Django app. `ready()` wires the start-up and shutdown signals and registers the system checks."""

from __future__ import annotations

from django.apps import AppConfig


class RelayConfig(AppConfig):
    name = "relay"
    verbose_name = "Relay"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from relay import checks  # noqa: F401 - registers the checks
        from relay.catalog import jars, watcher
        from relay.models import consumers
        from relay.observing import access_log
        from relay.upstreams import client

        for room in (client, access_log, watcher, jars):
            room.connect_signals()
        consumers.follow_people()
        watcher.subscribe(client.retire_pools)
        watcher.subscribe(jars.jars.follow)
