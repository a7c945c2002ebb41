"""A file of tables' rows, sealed: what the database has, for when it is away.

Theory of operation. The file begins with what may be seen by anyone: its format, the tables' columns, the revision, the
key it needs. Then come chunks of rows, each compressed and sealed by `relay.vault`, for header values and proxies'
passwords stand in the database as they are. A chunk is bound to all of the file's head, in which a number is random, to
its table, to its place there, and to whether it is the table's last: so none can be left out, moved, or taken from
another file. Chunks are bounded, and so is the memory that writing or reading takes.

A file is written whole or not at all. One with other columns than asked for is refused: the code that made it is not
this code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from relay import vault

MAGIC = b"relay rows\n"
FORMAT = 1
PURPOSE = "catalog.rows"
CHUNK_ROWS = 500
CHUNK_CHARACTERS = 1024 * 1024
"""A chunk ends with the row that reaches either bound."""
MOST_HEAD_BYTES = 64 * 1024

_LENGTH = struct.Struct("!I")
_CHUNK = struct.Struct("!B?I")
"""Number of the table, whether it is the table's last, bytes that follow."""

Row = Sequence[Any]
Columns = Mapping[str, Sequence[str]]
"""By table, in the tables' order."""


class RowsUnusable(Exception):
    """There is no such file, or not one to read from. The text says why and holds no value."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a file says of itself."""

    revision: int
    key: str
    """The id of the root it was sealed with."""
    columns: Columns
    confirmed_at: float
    """When the rows were last known to be what the database has, in seconds since the epoch: the file's own time."""
    raw: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()

    def has(self, columns: Columns) -> bool:
        return {name: list(names) for name, names in columns.items()} == self.columns


def read_head(path: Path) -> Head:
    """Raises RowsUnusable."""
    with _opened(path) as file:
        return _head(file)


@contextmanager
def reading(path: Path, columns: Columns) -> Iterator[StoredRows]:
    """The rows of a file whose tables have these columns. Raises RowsUnusable, also while they are read."""
    with _opened(path) as file:
        head = _head(file)
        if not head.has(columns):
            raise RowsUnusable("it was written by another version of the relay, which has other columns")
        yield StoredRows(file, head)


class StoredRows:
    """The rows of one file, while it is open."""

    def __init__(self, file: BinaryIO, head: Head) -> None:
        self._file = file
        self.head = head
        self.revision = head.revision
        self._first_chunk = file.tell()

    def of(self, table: str) -> Iterator[Row]:
        """One pass at a time."""
        wanted = list(self.head.columns).index(table)
        size = os.fstat(self._file.fileno()).st_size
        self._file.seek(self._first_chunk)
        number = 0
        while True:
            frame = self._file.read(_CHUNK.size)
            if len(frame) < _CHUNK.size:
                raise RowsUnusable("it ends too early")
            index, last, length = _CHUNK.unpack(frame)
            if length > size - self._file.tell():
                raise RowsUnusable("it ends too early")
            if index != wanted:
                self._file.seek(length, os.SEEK_CUR)
                continue
            try:
                place = _place(self.head, table, number, last=last)
                text = zlib.decompress(vault.keyring().open(self._file.read(length), purpose=PURPOSE, row=place))
            except vault.SealBroken:
                raise RowsUnusable("it was changed, or its key is not there any more") from None
            yield from json.loads(text, object_hook=_revived)
            if last:
                return
            number += 1


def write(
    path: Path,
    columns: Columns,
    rows_of: Callable[[str], Iterable[Row]],
    *,
    revision: int,
    confirmed_at: float,
    go_on: Callable[[], bool] = lambda: True,
) -> None:
    """Put all of these rows in the place of what the file had. Raises OSError, and what `rows_of` raises: the file is
    then as it was. So it is when `go_on` says no in between. Never for two at a time."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for piece in _pieces(columns, rows_of, revision):
                if not go_on():
                    return
                file.write(piece)
            file.flush()
            os.utime(file.fileno(), (confirmed_at, confirmed_at))
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _pieces(columns: Columns, rows_of: Callable[[str], Iterable[Row]], revision: int) -> Iterator[bytes]:
    keyring = vault.keyring()
    said = {
        "format": FORMAT,
        "revision": revision,
        "key": keyring.newest_id,
        "file": os.urandom(16).hex(),
        "columns": {name: list(names) for name, names in columns.items()},
    }
    raw = json.dumps(said).encode()
    head = Head(revision, keyring.newest_id, columns, 0.0, raw)
    yield MAGIC + _LENGTH.pack(len(raw)) + raw
    for index, table in enumerate(columns):
        for number, (text, last) in enumerate(_chunks(rows_of(table))):
            place = _place(head, table, number, last=last)
            sealed = keyring.seal(zlib.compress(text.encode(), 1), purpose=PURPOSE, row=place)
            yield _CHUNK.pack(index, last, len(sealed)) + sealed


def _chunks(rows: Iterable[Row]) -> Iterator[tuple[str, bool]]:
    """(rows as JSON, whether it is the last chunk); at least one."""
    texts: list[str] = []
    characters = 0
    for row in rows:
        if len(texts) >= CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield f"[{','.join(texts)}]", False
            texts, characters = [], 0
        # A row at a time, so that other threads get their turn.
        texts.append(json.dumps(row, default=_tagged))
        characters += len(texts[-1])
    yield f"[{','.join(texts)}]", True


def _place(head: Head, table: str, number: int, *, last: bool) -> str:
    return f"{head.digest}:{table}:{number}:{'last' if last else 'more'}"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise RowsUnusable("there is none yet") from None
    except OSError as problem:
        raise RowsUnusable(f"it cannot be read ({problem.strerror})") from None


def _head(file: BinaryIO) -> Head:
    try:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        raw = file.read(min(length, MOST_HEAD_BYTES))
        said = json.loads(raw)
        if said["format"] != FORMAT:
            raise RowsUnusable("it was written by another version of the relay, in another format")
        return Head(
            int(said["revision"]), str(said["key"]), dict(said["columns"]), os.fstat(file.fileno()).st_mtime, raw
        )
    except (ValueError, LookupError, TypeError, struct.error):
        raise RowsUnusable("it is no file of the relay's") from None


_TAG = "\0"
"""Begins the one key of an object that stands for what JSON does not know."""


def _tagged(value: object) -> dict[str, str]:
    if isinstance(value, bytes | bytearray | memoryview):
        return {_TAG + "bytes": b64encode(value).decode()}
    if isinstance(value, UUID):
        return {_TAG + "uuid": value.hex}
    if isinstance(value, datetime):
        return {_TAG + "moment": value.isoformat()}
    if isinstance(value, Decimal):
        return {_TAG + "decimal": str(value)}
    raise TypeError(f"a row holds a {type(value).__name__}, which a file of rows does not")


_REVIVED: Mapping[str, Callable[[str], Any]] = {
    _TAG + "bytes": b64decode,
    _TAG + "uuid": UUID,
    _TAG + "moment": datetime.fromisoformat,
    _TAG + "decimal": Decimal,
}


def _revived(found: dict[str, Any]) -> Any:
    if len(found) == 1:
        [(tag, text)] = found.items()
        if tag in _REVIVED:
            return _REVIVED[tag](text)
    return found
