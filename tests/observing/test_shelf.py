"""Workers' numbers meet on the shelf; those of workers that are gone are kept, once."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from relay.observing import episodes
from relay.observing.descriptors import count_open
from relay.observing.families import Family, Numbers
from relay.observing.shelf import Shelf
from tests.serving_ground import disk_with_room_for

COUNT = Family("relay_things_total", "counter", "Things.")
NOW = Family("relay_now", "gauge", "Now.")


def numbers(count: int) -> Numbers:
    made = Numbers()
    made.add(COUNT, ((), count))
    made.add(NOW, ((), 1))
    return made


def told(shelf: Shelf, own: int) -> tuple[float, float]:
    total = shelf.sum_with(numbers(own))
    return total.samples[COUNT.name][()], total.samples[NOW.name][()]


def test_a_worker_tells_of_itself_and_the_others(tmp_path: Path) -> None:
    mine, other = Shelf(tmp_path), Shelf(tmp_path)
    mine.put(numbers(1))
    other.put(numbers(10))
    assert told(mine, 2) == (12, 2)


def test_counts_of_one_that_ended_stay_and_its_gauges_go(tmp_path: Path) -> None:
    mine, other = Shelf(tmp_path), Shelf(tmp_path)
    other.put(numbers(10))
    other.end(numbers(11))
    assert told(mine, 1) == (12, 1)
    assert told(mine, 1) == (12, 1)
    following = Shelf(tmp_path)
    following.end(numbers(5))
    assert told(mine, 1) == (17, 1)


def test_counts_of_one_that_was_killed_are_added_once(tmp_path: Path) -> None:
    script = (
        "import os, sys, signal; from pathlib import Path\n"
        "from tests.observing.test_shelf import Shelf, numbers\n"
        "Shelf(Path(sys.argv[1])).put(numbers(7)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode < 0
    mine = Shelf(tmp_path)
    assert told(mine, 1) == (8, 1)
    assert told(mine, 1) == (8, 1)
    assert not [path for path in tmp_path.glob("*.lock") if path.stem != mine._name]


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    mine = Shelf(tmp_path)
    (tmp_path / "99-1.json").write_bytes(b"{torn")
    assert told(mine, 1) == (1, 1)


def test_a_folder_that_vanished_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "metrics"
    mine = Shelf(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            mine.put(numbers(1))
    assert len(caplog.records) == 1
    folder.mkdir()
    mine.put(numbers(1))
    assert told(Shelf(folder), 1)[0] >= 1


def test_a_full_disk_loses_no_counts_of_the_dead_and_no_descriptors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes, "CALM_SECONDS", 0.0)
    mine, other, dead = Shelf(tmp_path), Shelf(tmp_path), Shelf(tmp_path)
    other.put(numbers(10))
    dead.put(numbers(100))
    assert dead._lock is not None
    os.close(dead._lock)  # as when its process is gone
    before = count_open()
    with disk_with_room_for(0):
        for _ in range(3):
            mine.put(numbers(1))
            assert told(mine, 1)[0] == 111
    assert count_open() == before
    assert not list(tmp_path.glob(".*"))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "Metrics cannot be written",
        "What ended workers counted cannot be kept",
    ]
    mine.put(numbers(1))
    assert told(mine, 1) == (111, 2)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "WARNING", "WARNING"]


def test_files_are_for_their_user_alone(tmp_path: Path) -> None:
    mine = Shelf(tmp_path / "metrics")
    mine.put(numbers(1))
    assert (tmp_path / "metrics").stat().st_mode & 0o077 == 0


def test_one_being_born_is_not_buried(tmp_path: Path) -> None:
    """While another holds the guard, a new worker waits: its lock is never there without being held."""
    Shelf(tmp_path)
    guard = os.open(tmp_path / "guard", os.O_RDWR)
    fcntl.flock(guard, fcntl.LOCK_EX)
    script = (
        "import sys; from pathlib import Path; from relay.observing.shelf import Shelf\n"
        "print('up', flush=True); Shelf(Path(sys.argv[1]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as born:
        assert born.stdout is not None
        assert born.stdout.readline() == b"up\n"
        assert len(list(tmp_path.glob("*.lock"))) == 1
        os.close(guard)
        assert born.wait(timeout=30) == 0
