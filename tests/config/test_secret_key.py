"""The secret key's file: for its user alone, made once, never overwritten."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from config import secret_key


def test_no_file_is_no_key(tmp_path: Path) -> None:
    assert secret_key.read(tmp_path) is None
    assert secret_key.read(tmp_path / "nowhere") is None


def test_a_made_key_is_for_its_user_alone_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    key = secret_key.ensure(folder)
    assert len(key) >= secret_key.SHORTEST
    assert (folder / "secret_key").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert secret_key.ensure(folder) == secret_key.read(folder) == key
    assert [path.name for path in folder.iterdir()] == ["secret_key"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o700, 0o606])
def test_a_file_open_to_others_is_closed_to_them(tmp_path: Path, mode: int) -> None:
    key = secret_key.ensure(tmp_path)
    (tmp_path / "secret_key").chmod(mode)
    assert secret_key.read(tmp_path) == key
    assert (tmp_path / "secret_key").stat().st_mode & 0o777 == 0o600


def test_a_stricter_mode_is_left_as_it_is(tmp_path: Path) -> None:
    secret_key.ensure(tmp_path)
    (tmp_path / "secret_key").chmod(0o400)
    secret_key.read(tmp_path)
    assert (tmp_path / "secret_key").stat().st_mode & 0o777 == 0o400


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 40])
def test_a_file_that_holds_no_key_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret_key").write_bytes(content)
    with pytest.raises(ValueError, match=r"secret_key (holds fewer than 32|cannot be used \(it is not text\))"):
        secret_key.read(tmp_path)


def test_a_folder_in_its_place_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "secret_key").mkdir()
    with pytest.raises(ValueError, match="make it readable and writable by its user alone"):
        secret_key.read(tmp_path)


def test_of_many_that_make_it_at_once_all_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(secret_key.ensure, [tmp_path] * 32))
    assert set(keys) == {secret_key.read(tmp_path)}
