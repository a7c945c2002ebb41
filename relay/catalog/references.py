"""Secrets that are kept outside of the database: `env:NAME` and `file:/path`, which a credential names in their place.

Whoever may set credentials must not read the machine by them: of the environment they reach the variables that begin
with `RELAY_CREDENTIAL_`, of the files those below the folder `RELAY_CREDENTIALS_DIR`, with all symbolic links followed
first. Read when a snapshot is loaded, in the watcher's thread; never per request.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from relay import conf
from relay.models.credentials import check_reference
from relay.rules.credentials import MAX_SECRET_BYTES

Stamp = tuple[int, ...]


class ReferenceUnreadable(ValueError):
    """The text says what to do. It names the variable or file, and holds nothing of what is in it."""


def read(reference: str) -> str:
    """The secret. Raises `ReferenceUnreadable`."""
    try:
        check_reference(reference)
    except ValueError as problem:
        raise ReferenceUnreadable(f"{reference}: {problem}") from None
    kind, _, name = reference.partition(":")
    if kind == "env":
        if name not in os.environ:
            raise ReferenceUnreadable(f"The environment has no {name}: set it for every worker, and restart them.")
        return os.environ[name]
    return _read_file(Path(name))


def stamp_of(reference: str) -> tuple[str, Stamp | None] | None:
    """(path, what changes when the file does; None when there is none). None for what is no file."""
    kind, _, name = reference.partition(":")
    return (name, _stamp(name)) if kind == "file" else None


def have_changed(files: Iterable[tuple[str, Stamp | None]]) -> bool:
    """Whether any of them is another than when it was read."""
    return any(_stamp(path) != seen for path, seen in files)


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path for each look would cost more than the look
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _read_file(path: Path) -> str:
    folder = Path(conf.current().credentials_dir)
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(folder.resolve(strict=True)):
            raise ReferenceUnreadable(
                f"{path} leads out of {folder}: put the file itself there, or a link to one that is there."
            )
        # What was resolved holds no links: one that has come meanwhile is not followed. Nor is a pipe waited for.
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ReferenceUnreadable(f"{path} is not a file.")
            contents = file.read(MAX_SECRET_BYTES + 1)
    except (OSError, RuntimeError) as problem:
        reason = getattr(problem, "strerror", None) or "its links go round"
        raise ReferenceUnreadable(f"{path} cannot be read ({reason}): see that it is there and may be read.") from None
    if len(contents) > MAX_SECRET_BYTES:
        raise ReferenceUnreadable(f"{path} is longer than {MAX_SECRET_BYTES} bytes.")
    try:
        return contents.decode()
    except UnicodeDecodeError:
        raise ReferenceUnreadable(f"{path} is not text in UTF-8.") from None
