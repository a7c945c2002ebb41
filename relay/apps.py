"""The Django app. `ready()` wires the start-up and shutdown signals and registers the system checks."""

from __future__ import annotations

from django.apps import AppConfig


class RelayConfig(AppConfig):
    name = "relay"
    verbose_name = "Relay"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from relay import checks  # noqa: F401 - registers the checks
        from relay.catalog import jars, usage, watcher
        from relay.models import consumers, people
        from relay.observing import access_log, descriptors
        from relay.observing import metrics as metrics_room
        from relay.serving import underway
        from relay.upstreams import budgets, bulkheads, client, health, targets

        for room in (client, descriptors, access_log, usage, health, watcher, jars, metrics_room):
            room.connect_signals()
        for reading in (client.read, bulkheads.read, budgets.read, targets.read, health.read, watcher.read):
            metrics_room.metrics.read_from(reading)
        for observed in (access_log.log, descriptors.descriptors):
            metrics_room.metrics.read_from(observed.read)
        consumers.follow_people()
        people.follow()
        watcher.subscribe(client.retire_pools)
        watcher.subscribe(health.follow)
        watcher.subscribe(underway.judge_again)
        watcher.subscribe(jars.jars.follow)
