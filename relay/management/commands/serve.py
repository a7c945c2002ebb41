"""`manage.py serve`: gunicorn with the project's worker, after what would fail later has been looked at.

What cannot work is said in one line, exit code 2, before a single worker starts. A database that is away can: workers
start with the snapshot that was stored last, if there is one. The listening socket is opened here and handed to
gunicorn, so the port that was found free is the port that is served.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from django.conf import settings
from django.core import checks
from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.migrations.executor import MigrationExecutor
from django.db.utils import Error as DatabaseError
from django.utils.module_loading import import_string

from relay import conf
from relay.catalog import store

BACKLOG = 2048


@runtime_checkable
class PooledConnection(Protocol):
    """What a PostgreSQL connection of Django has and others have not; its module cannot be imported without psycopg."""

    def close_pool(self) -> None: ...


class Command(BaseCommand):
    help = "Serve the relay with gunicorn and the project's uvicorn worker."
    requires_system_checks = ()  # `handle` runs them, and tells of warnings in a line each

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--bind", metavar="HOST:PORT", help="default: 127.0.0.1 and PORT, or 8000")
        parser.add_argument("--workers", type=int, metavar="N", help="default: WEB_CONCURRENCY, or the cores")

    def handle(self, *, bind: str | None, workers: int | None, **_: Any) -> None:
        host, port = _parse_bind(bind) if bind else ("127.0.0.1", settings.RELAY_PORT)
        if workers is not None and not 1 <= workers <= 1024:
            raise CommandError(f"--workers {workers} is wrong: give a number from 1 to 1024.", returncode=2)
        warnings = self.pass_checks()
        check_data_dir(settings.RELAY_DATA_DIR)
        look_at_database(may_be_away=can_start_without(), tell=self.stderr.write)
        if os.environ.keys() & {"GUNICORN_FD", "LISTEN_FDS"}:
            address = f"{host}:{port}"  # the socket is inherited: gunicorn's own re-execution (USR2), or systemd's
        else:
            listener = open_listener(host, port)
            url = _url(listener)
            address = f"fd://{listener.detach()}"
            self.stdout.write(f"Relay listening on {url} (admin: {url}/admin/)")
            self.stdout.flush()
        for message in warnings:
            self.stderr.write(f"Warning: {message.msg} ({message.id}: `manage.py check` says what to do)")
        close_connections()
        raise_file_limit()
        run = import_string(settings.RELAY_SERVER)
        run(bind=address, workers=workers or settings.RELAY_WORKERS or available_cores())

    def pass_checks(self) -> list[checks.CheckMessage]:
        """The system checks' warnings. Raises SystemCheckError for what keeps the relay from running."""
        found = [message for message in checks.run_checks() if not message.is_silenced()]
        if any(message.is_serious() for message in found):
            self.check()
        return [message for message in found if message.level >= checks.WARNING]


def check_data_dir(folder: Path) -> None:
    """Make the data folder if need be and write in it. Raises CommandError with what to do."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        Path(settings.STATIC_ROOT).mkdir(exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"The data folder {folder} cannot be written ({error.strerror}): make it writable for the user who runs the"
            " relay, or name another with RELAY_DATA_DIR.",
            returncode=2,
        ) from None


def can_start_without() -> bool:
    """Whether there is a snapshot to serve while the database is away."""
    folder = conf.current().store_folder
    return folder is not None and store.is_in(folder)


def look_at_database(*, may_be_away: bool, tell: Callable[[str], object]) -> None:
    """Raises CommandError, with what to do, for one that is not migrated, or is away and may not be."""
    try:
        waiting = count_waiting_migrations(empty_is_away=may_be_away)
    except CommandError as problem:
        if not may_be_away:
            raise
        tell(f"{problem} The relay starts with the snapshot that it stored last.")
    else:
        if waiting:
            raise CommandError(
                f"The database is not migrated ({waiting} migrations wait): run `python manage.py migrate`.",
                returncode=2,
            )


def count_waiting_migrations(*, empty_is_away: bool = False) -> int:
    """Connect once, past any pool, and count what is not migrated. Raises CommandError when that fails."""
    probe = connections[DEFAULT_DB_ALIAS].copy()
    probe.settings_dict["OPTIONS"].pop("pool", None)  # a pool would wait, and hide the reason
    try:
        executor = MigrationExecutor(probe)
        if empty_is_away and not executor.loader.applied_migrations:
            # SQLite makes a new file where the one with the data was moved away.
            raise CommandError("The database is empty: check DATABASE_URL.", returncode=2)
        return len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    except DatabaseError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CommandError(f"The database cannot be reached ({reason}): check DATABASE_URL.", returncode=2) from None
    finally:
        probe.close()


def close_connections() -> None:
    """Leave nothing open that a forked worker would share with its siblings: system checks may have connected, too."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        if isinstance(connection, PooledConnection):
            connection.close_pool()


def raise_file_limit() -> None:
    """As many open files as the system lets this user have: an exchange takes two, and shells often set 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS names a limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CommandError with what to do when the address is taken or not ours."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # Inheritable: gunicorn hands it on when it re-executes itself.
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except socket.gaierror:
        raise CommandError(f"{host} is no address of this machine: choose another with --bind.", returncode=2) from None
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise CommandError(f"{host}:{port} {reason}: choose another with --bind or PORT.", returncode=2) from None


def available_cores() -> int:
    """The cores this process may use, which a container or `taskset` can make fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parse_bind(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise CommandError(f"--bind {text} is wrong: give HOST:PORT, like 0.0.0.0:8000 or [::1]:8000.", returncode=2)
    return host, int(port)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
