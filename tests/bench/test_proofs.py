"""What the proof tools say is wrong, and how they end; and one short soak of a real relay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import proofs, slow_readers, streams
from bench.leaks import MIB, Growth, Line
from bench.processes import Failed
from bench.proofs import prove
from bench.soak import Plan, soak
from bench.soak_report import Outcome
from bench.streams import Held, Times
from bench.traffic import KINDS, Tally


def growth_by(bytes_per_minute: float) -> Growth:
    line = Line(bytes_per_minute, 300, 300)
    return Growth(line, line, line)


def outcome(**fields: Any) -> Outcome:
    """A clean one, but for these fields."""
    clean: dict[str, Any] = {
        "seed": 1,
        "seconds": 60.0,
        "tally": Tally({"small: right": 5}),
        "warm_up": Tally({"small: right": 1}),
        "left_over": {},
        "strays": 0,
        "memory": {7: growth_by(0.1 * MIB)},
        "reloads": 1,
        "edits": 1,
        "replaced": 2,
        "replaced_peak_bytes": 100 * MIB,
    }
    return Outcome(**clean | fields)


def with_loss() -> Tally:
    tally = Tally()
    tally.lose("download", "another body")
    return tally


def test_a_soak_that_found_nothing_is_clean() -> None:
    assert outcome().problems == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tally": with_loss()}, "download: another body"),
        ({"warm_up": with_loss()}, "lost in the warm-up: 1 requests"),
        ({"left_over": {"descriptors: socket": 3}}, "leaked: 3 more of descriptors: socket"),
        ({"left_over": {"tasks: exchange": 1}}, "leaked: 1 more of tasks: exchange"),
        ({"strays": 1}, "leaked: 1 processes"),
        ({"died": 1}, "died: 1 workers"),
        ({"memory": {7: growth_by(5 * MIB)}}, "leaked: memory of worker 7"),
        ({"troubles": ["Traceback (most recent call last):"]}, "logged: Traceback"),
        ({"origin": {"asked": 1, "met": ["MalformedRequest: two framings"]}}, "the origin met MalformedRequest"),
        ({"tally": Tally()}, "no traffic"),
    ],
    ids=[
        "lost",
        "lost early",
        "sockets",
        "tasks",
        "processes",
        "crashed",
        "memory",
        "logged",
        "malformed",
        "nothing tried",
    ],
)
def test_a_soak_tells_what_was_lost_or_leaked(fields: dict[str, Any], told: str) -> None:
    assert told in "\n".join(outcome(**fields).problems)


def test_streams_tell_what_did_not_open_was_dropped_or_fell_silent() -> None:
    def held(*of_callers: Held, failed: int = 0) -> list[str]:
        times = Times([1.0], failed)
        found = streams.Outcome(
            open_files=1,
            seconds=90.0,
            held=list(of_callers),
            before=Times([1.0]),
            beside=times,
            before_bytes=0,
            after_bytes=0,
        )
        return found.problems

    assert held(Held(10, 10, 10, 3)) == []
    assert held(Held(10, 10, 10, 3), Held(10, 8, 7, 2), failed=4) == [
        "2 of 10 streams did not open",
        "1 of 8 streams were dropped",
        "a stream had 2 events where 3 were due",
        "0 exchanges failed before, 4 beside the streams",
    ]


def test_shares_of_times_are_of_all_of_them() -> None:
    times = Times([float(number) for number in range(100, 0, -1)])
    assert (times.share(0.5), times.share(0.99), times.share(1)) == (51, 100, 100)
    assert Times([]).share(0.99) == float("inf")


def test_slow_readers_tell_what_was_dropped_and_what_was_held_for_them() -> None:
    def problems(dropped: int, peak_bytes: int) -> list[str]:
        found = slow_readers.Outcome(
            readers=5,
            seconds=1,
            dropped=dropped,
            read_bytes=0,
            before_bytes=100 * MIB,
            peak_bytes=peak_bytes,
            end_bytes=0,
        )
        return found.problems

    assert problems(0, 225 * MIB) == []
    assert problems(2, 226 * MIB) == ["2 readers were dropped", "it grew by more than 125 MiB"]


@pytest.fixture
def untouched_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "interrupt_when_told_to_end", lambda: None)


@pytest.mark.usefixtures("untouched_signals")
def test_the_exit_code_says_whether_anything_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert prove("soak", lambda folder: outcome()) == 0
    assert "CLEAN: nothing was lost, nothing leaked." in capsys.readouterr().out
    assert prove("soak", lambda folder: outcome(strays=2)) == 1
    assert "NOT CLEAN:\nleaked: 2 processes" in capsys.readouterr().out


@pytest.mark.usefixtures("untouched_signals")
@pytest.mark.parametrize(("raised", "code"), [(Failed("no port"), 2), (KeyboardInterrupt(), 130)])
def test_what_could_not_be_found_out_has_a_code_of_its_own(raised: BaseException, code: int) -> None:
    def find(folder: Path) -> Outcome:
        raise raised

    assert prove("soak", find) == code


@pytest.mark.timeout(180)  # a dozen processes, on a machine that may have two cores for all tests
def test_a_short_soak_of_a_real_relay_with_a_reload_is_clean(tmp_path: Path) -> None:
    plan = Plan(3, 1, tmp_path, scale=0.01, workers=1, warm_up_seconds=0.5, edit_seconds=0.3, reload_seconds=30)
    found = soak(plan)
    assert found.problems == []
    assert found.reloads > 0
    assert found.edits > 0
    assert found.replaced >= plan.workers
    assert {how.partition(":")[0] for how in found.tally.ended} == {kind.name for kind in KINDS}
