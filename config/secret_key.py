"""The secret key's file in the data folder: made once with mode 0600, read ever after.

`config.environment` decides when a missing file is an error; only the first run (`make run`) and DEBUG make one.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

FILE_NAME = "secret_key"
MODE = 0o600
SHORTEST = 32


def read(data_dir: Path) -> str | None:
    """The kept key, or None when there is no file. A file that others may read is closed to them first.

    Raises ValueError with what to do when the file cannot serve: unreadable, too short, or not ours to close.
    """
    path = data_dir / FILE_NAME
    try:
        if path.stat().st_mode & 0o777 & ~MODE:
            path.chmod(MODE)
        key = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"{path} cannot be used ({_reason(error)}): make it readable and writable by its user alone"
        ) from None
    if len(key) < SHORTEST:
        raise ValueError(
            f"{path} holds fewer than {SHORTEST} characters: delete it and run `make run` to have it made anew"
        )
    return key


def ensure(data_dir: Path) -> str:
    """The kept key, made if there is none. Of two that make it at once, one wins and both get the winner's.

    Raises ValueError as `read` does, and OSError when the folder cannot be written.
    """
    kept = read(data_dir)
    if kept is not None:
        return kept
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = secrets.token_urlsafe(48)
    draft = data_dir / f"{FILE_NAME}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "w", encoding="ascii") as file:  # noqa: PTH123 - a Path cannot be opened with a mode
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())
        # link() fails where rename() would overwrite: a reader sees a whole key or none, and the first one stays.
        os.link(draft, data_dir / FILE_NAME)
    except FileExistsError:
        return read(data_dir) or key
    finally:
        draft.unlink(missing_ok=True)
    return key


def _reason(error: Exception) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else "it is not text"
