"""The door as a Django app: its commands, its static files, and what it does when somebody signs in."""

from __future__ import annotations

from django.apps import AppConfig


class DoorConfig(AppConfig):
    name = "config.door"
    verbose_name = "The admin's door"

    def ready(self) -> None:
        from config.door import sessions

        sessions.connect_signals()
