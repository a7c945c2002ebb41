"""Databases besides the one that Django's settings for tests name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import dj_database_url
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import ConnectionHandler
from pytest_django import DjangoDbBlocker

from config.settings import _database as with_options


@contextmanager
def default_database(url: str, blocker: DjangoDbBlocker) -> Iterator[BaseDatabaseWrapper]:
    """The database at `url` is Django's default one, for this thread and no other."""
    usual = connections["default"]
    settings = with_options(dict(dj_database_url.parse(url)))
    # Django knows a pool by the alias alone: the next database would get connections to this one.
    settings["OPTIONS"].pop("pool", None)
    own = ConnectionHandler({"default": settings})["default"]
    with blocker.unblock(), closing(own):
        connections["default"] = own
        try:
            yield own
        finally:
            connections["default"] = usual
