"""Who is at work: whose name the audit trail puts to a change.

Whoever begins a piece of work says so with `acting`: `relay.admin.authorship` for each request, `AuthoredCommand` for
each command of ours. Of all else the process itself tells: a foreign command, a shell, a script, a server.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.core.management import get_commands
from django.db.models import TextChoices


class Source(TextChoices):
    ADMIN = "admin", "Admin"
    COMMAND = "command", "Command"
    SHELL = "shell", "Shell or script"
    SERVER = "server", "Server"


@dataclass(frozen=True, slots=True)
class Author:
    """`name` is a user's name where there is a `user_id`; a person at the machine goes by the operating system's."""

    source: Source
    source_name: str = ""
    """Of a command: its name and action, such as `upstreams set`."""
    user_id: Any = None
    name: str = ""
    address: str = ""
    request_id: str = ""


_at_work: ContextVar[Callable[[], Author] | None] = ContextVar("relay_author", default=None)

_SHELLS = frozenset({"shell", "shell_plus"})
_SERVING_COMMANDS = frozenset({"serve", "runserver", "runserver_plus"})
_SERVERS = frozenset({"gunicorn", "uvicorn", "daphne", "hypercorn", "granian", "uwsgi", "mod_wsgi"})


@contextmanager
def acting(author: Callable[[], Author]) -> Iterator[None]:
    """Within it, changes are `author`'s. It is asked at each change: who signs in is known only then."""
    token = _at_work.set(author)
    try:
        yield
    finally:
        _at_work.reset(token)


def current() -> Author:
    author = _at_work.get()
    return author() if author is not None else of_process(sys.argv)


def of_command(name: str) -> Author:
    return Author(Source.COMMAND, name, name=system_user())


def of_process(argv: list[str]) -> Author:
    """Who a process with this command line is."""
    program = Path(argv[0]).name if argv else ""
    command = argv[1] if len(argv) > 1 else ""
    if program in _SERVERS or command in _SERVING_COMMANDS:
        return Author(Source.SERVER)
    if command in get_commands() and command not in _SHELLS:
        return of_command(command)
    return Author(Source.SHELL, name=system_user())


def system_user() -> str:
    """By the process's id, not by variables that anyone may set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without an entry
        return str(os.getuid())
