"""Loads that take turns: one goes on at a time, and what is answered then is its own. A script stands in for wrk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench import in_turn
from bench.in_turn import HeldLoad, put_loads_in_turn
from bench.processes import Failed
from tests.bench.test_figures import wrk_output

URL = "http://127.0.0.1:8000/relay/origin/13"


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_turn, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(in_turn, "SETTLE_SECONDS", 0.0)


class Wrk:
    """A script in wrk's place."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "wrk"

    def does(self, script: str) -> None:
        # Its second argument is the number of connections.
        self._path.write_text(f"#!/bin/sh\n{script.replace('READY', f': > {self._path}$2')}\n")
        self._path.chmod(0o755)

    def has_begun(self, connections: int) -> float:
        """Waits until it would take an interrupt for one; gives no more time to wait."""
        deadline = time.monotonic() + 10
        while not self._path.with_name(f"wrk-c{connections}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return 0.0


def until_interrupted(output: str, *, times: int = 1) -> str:
    ending = f"n=$((n + 1)); test $n -lt {times} || {{ cat <<END; exit 0; }}\n{output}\nEND\n"
    return f"n=0\ntrap '{ending}' INT\nREADY\nwhile :; do sleep 0.001; done"


@pytest.fixture
def wrk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wrk:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Wrk(tmp_path)


def loads() -> list[psutil.Process]:
    return [process for process in psutil.Process().children() if str(in_turn.SCRIPT) in process.cmdline()]


def test_one_load_goes_on_at_a_time_there_and_back(wrk: Wrk) -> None:
    wrk.does(until_interrupted(wrk_output(status=2)))
    seen: list[str] = []

    def counts() -> Iterator[int]:
        total = 0
        while True:
            yield total
            total += 5  # in a turn, and again between two

    counted = counts()

    def served() -> int:
        awake = [load for load in loads() if load.status() != psutil.STATUS_STOPPED]
        seen.extend(word for load in awake for word in load.cmdline() if word.startswith("-c"))
        return next(counted)

    beside = put_loads_in_turn(URL, (32, 256), turns=3, warm_up_seconds=wrk.has_begun, served=served)
    assert seen == [f"-c{connections}" for connections in (32, 256, 256, 32, 32, 256) for _ in ("before", "after")]
    # Five answers in each turn, which is a hundredth of a second and what looking at the processes takes.
    assert all(0 < rate <= 5 / 0.01 for rate in beside.rates.values())
    assert beside.errors == 4
    assert not loads()


def test_a_load_that_ends_says_why(wrk: Wrk) -> None:
    wrk.does("echo 'unable to connect to 127.0.0.1:8000' >&2; exit 1")
    with HeldLoad(URL, connections=32) as load:
        load._process.wait()
        with pytest.raises(Failed, match=r"^wrk ended: unable to connect to 127\.0\.0\.1:8000$"):
            load.end()
    assert not loads()


def test_a_load_is_interrupted_until_it_ends(wrk: Wrk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As wrk, whose threads may take an interrupt that was meant for its first."""
    monkeypatch.setattr(in_turn, "END_SECONDS", 0.05)
    wrk.does(until_interrupted(wrk_output(read=3), times=2))
    with HeldLoad(URL, connections=32) as load:
        wrk.has_begun(32)
        assert load.end() == 3


def test_a_load_that_does_not_end_is_killed(wrk: Wrk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_turn, "END_SECONDS", 0.01)
    wrk.does("trap '' INT\nREADY\nwhile :; do sleep 0.001; done")
    with HeldLoad(URL, connections=32) as load:
        wrk.has_begun(32)
        with pytest.raises(Failed, match="wrk did not end"):
            load.end()
    assert not loads()
