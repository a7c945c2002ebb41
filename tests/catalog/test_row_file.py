"""A file of rows gives back what was written, or nothing: it cannot be read by others, cut, mixed, or half written."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from relay.catalog import row_file
from relay.catalog.row_file import RowsUnusable

COLUMNS = {"people": ("name", "age"), "things": ("id", "what", "when", "price", "sealed", "none", "more")}
PEOPLE = [[f"person {number}", number] for number in range(7)]
THINGS = [
    [UUID(int=number), "ü\n\0", datetime(2026, 1, 2, 3, 4, 5, 678, UTC), Decimal("1.10"), b"\0\xff", None, 0.1 + number]
    for number in range(3)
]
SECRET = "correct-horse-battery"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "CHUNK_ROWS", 2)


def write(path: Path, *, revision: int = 5, **tables: list[Any]) -> None:
    rows = {"people": PEOPLE, "things": THINGS} | tables
    row_file.write(path, COLUMNS, rows.__getitem__, revision=revision, confirmed_at=1_000.0)


def read(path: Path, columns: row_file.Columns = COLUMNS) -> dict[str, list[Any]]:
    with row_file.reading(path, columns) as rows:
        return {table: list(rows.of(table)) for table in reversed(list(columns))}


def chunks(whole: bytes) -> tuple[bytes, list[bytes]]:
    """(the head, the chunks with their frames)"""
    start = len(row_file.MAGIC)
    at = start + 4 + struct.unpack_from("!I", whole, start)[0]
    head, found = whole[:at], []
    while at < len(whole):
        end = at + 6 + struct.unpack_from("!B?I", whole, at)[2]
        found.append(whole[at:end])
        at = end
    return head, found


def test_rows_come_back_as_they_were_in_any_order_of_tables(path: Path) -> None:
    write(path)
    assert read(path) == {"people": PEOPLE, "things": THINGS}
    head = row_file.read_head(path)
    assert (head.revision, head.confirmed_at, head.has(COLUMNS)) == (5, 1_000.0, True)


def test_empty_tables_come_back_empty(path: Path) -> None:
    write(path, people=[], things=[])
    assert read(path) == {"people": [], "things": []}


def test_nothing_of_a_row_stands_in_the_file_and_nobody_else_may_read_it(path: Path) -> None:
    write(path, people=[[SECRET, 1]])
    assert SECRET.encode() not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_chunk_can_be_left_out_moved_repeated_or_taken_from_another_file(path: Path) -> None:
    write(path)
    head, whole = chunks(path.read_bytes())
    assert len(whole) == 6
    write(path)
    _, other = chunks(path.read_bytes())
    bad = [whole[:index] + whole[index + 1 :] for index in range(6)]
    bad += [[*whole[:index], whole[index + 1], whole[index], *whole[index + 2 :]] for index in (0, 1, 4)]
    bad += [[*whole[:index], other[index], *whole[index + 1 :]] for index in range(6)]
    bad += [[whole[0], *whole], whole[:3], []]
    last_now = bytearray(whole[2])
    last_now[1] = 1
    bad += [[*whole[:2], bytes(last_now), *whole[4:]]]
    for tampered in bad:
        path.write_bytes(head + b"".join(tampered))
        with pytest.raises(RowsUnusable):
            read(path)
    path.write_bytes(head + b"".join(whole))
    assert read(path)["people"] == PEOPLE


def test_a_file_changed_or_cut_anywhere_gives_no_wrong_row(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    chance = random.Random(1)
    for _ in range(200):
        at = chance.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged if chance.random() < 0.7 else whole[:at])
        with pytest.raises(RowsUnusable):
            read(path)


def test_a_file_of_other_columns_or_another_format_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path)
    with pytest.raises(RowsUnusable, match="other columns"):
        read(path, {**COLUMNS, "people": ("name",)})
    monkeypatch.setattr(row_file, "FORMAT", 2)
    with pytest.raises(RowsUnusable, match="another format"):
        read(path)


def test_a_file_whose_key_is_gone_is_refused_and_one_of_an_older_key_is_read(path: Path, settings: Any) -> None:
    settings.RELAY_ENCRYPTION_KEYS = ("first" * 8,)
    write(path)
    settings.RELAY_ENCRYPTION_KEYS = ("second" * 8, "first" * 8)
    assert read(path)["people"] == PEOPLE
    settings.RELAY_ENCRYPTION_KEYS = ("second" * 8,)
    with pytest.raises(RowsUnusable, match="key"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"x", b"relay rows\n", b"relay rows\n\0\0\0\2{}", b"relay rows\n\xff" * 9])
def test_what_is_no_such_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RowsUnusable, match="no file of the relay"):
        read(path)


def test_a_missing_file_and_one_that_cannot_be_opened_are_told(path: Path) -> None:
    with pytest.raises(RowsUnusable, match="none yet"):
        read(path)
    path.mkdir()
    with pytest.raises(RowsUnusable, match="cannot be read"):
        read(path)


def test_writing_that_fails_half_way_leaves_the_file_as_it_was(path: Path) -> None:
    write(path)

    def fail() -> Iterator[list[Any]]:
        yield from PEOPLE
        raise OSError(28, "No space left on device")

    def told_to_stop(table: str) -> list[Any]:
        return [*PEOPLE] if table == "people" else [*THINGS]

    with pytest.raises(OSError, match="No space"):
        row_file.write(path, COLUMNS, lambda _: fail(), revision=6, confirmed_at=0.0)
    answers = iter([True, True, False])
    row_file.write(path, COLUMNS, told_to_stop, revision=6, confirmed_at=0.0, go_on=lambda: next(answers))
    assert row_file.read_head(path).revision == 5
    assert read(path) == {"people": PEOPLE, "things": THINGS}
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_that_was_killed_is_in_nobodys_way(path: Path) -> None:
    path.with_name(".rows.unfinished").write_bytes(b"half")
    write(path)
    assert read(path)["people"] == PEOPLE


def test_a_chunk_holds_few_rows_or_few_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "CHUNK_ROWS", 500)
    monkeypatch.setattr(row_file, "CHUNK_CHARACTERS", 10_000)
    large = [["x" * 6_000, number] for number in range(8)]
    write(path, people=large, things=[])
    assert len(chunks(path.read_bytes())[1]) == 4 + 1
    assert read(path)["people"] == large


def test_a_value_that_no_file_can_hold_is_an_error_and_no_guess(path: Path) -> None:
    with pytest.raises(TypeError, match="set"):
        write(path, people=[[{1}, 1]])
