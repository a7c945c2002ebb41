"""The line through a worker's memory, and rest compared with rest."""

from __future__ import annotations

import pytest

from bench import leaks
from bench.leaks import MIB, Growth, Line, Sample, Track, left_over, line_through, most_held


def sample(at: float, rss_bytes: int = 0, **held: int) -> Sample:
    return Sample(7, at, rss_bytes, held)


def test_the_line_through_points_of_a_line_is_that_line() -> None:
    line = line_through([(second, 100 * MIB + 2 * MIB * second / 60) for second in range(121)])
    assert line.bytes_per_minute == pytest.approx(2 * MIB)
    assert (line.span_seconds, line.points) == (120, 121)
    assert line.rise_bytes == pytest.approx(4 * MIB)


def test_what_goes_up_and_down_alike_has_a_flat_line() -> None:
    points = [(second, 100 * MIB + MIB * (-1) ** (second // 2)) for second in range(121)]
    assert abs(line_through(points).rise_bytes) < 0.1 * MIB


@pytest.mark.parametrize("points", [[], [(1.0, 5.0)], [(1.0, 5.0), (1.0, 9.0)]])
def test_less_than_two_moments_have_a_flat_line(points: list[tuple[float, float]]) -> None:
    assert line_through(points).bytes_per_minute == 0


def grown(*, seconds: int, **curve: float) -> Growth:
    """Over time by `linear` MiB a minute and a `step` in MiB in the middle."""
    track = Track()
    for second in range(seconds + 1):
        mib = 100 + curve.get("linear", 0) * second / 60 + (curve.get("step", 0) if second > seconds / 2 else 0)
        track.add(sample(second, int(mib * MIB)))
    return track.growth(since=0, until=seconds)


@pytest.mark.parametrize(
    ("growth", "is_leak"),
    [
        (grown(seconds=300, linear=2), True),
        (grown(seconds=300, linear=0.9), False),
        (grown(seconds=200, linear=2), False),
        (grown(seconds=50, linear=100), False),
        (grown(seconds=300, linear=-2), False),
        (grown(seconds=300, step=30), False),
        (grown(seconds=300, linear=2, step=30), True),
    ],
    ids=["steady", "not steep", "not risen enough", "too short to tell", "falling", "a step", "a step in a leak"],
)
def test_what_rises_steeply_steadily_and_far_enough_is_a_leak(growth: Growth, is_leak: bool) -> None:
    assert growth.is_leak is is_leak


def test_a_short_line_is_not_told() -> None:
    assert "too short" in str(Line(100 * MIB, 20, 20))


def test_a_track_is_bounded_and_keeps_its_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "MOST_POINTS", 4)
    track = Track()
    for second in range(1000):
        track.add(sample(second, 60 * second))
        assert len(track.points) < 8
    line = track.growth(since=100, until=1000).whole
    assert line.bytes_per_minute == pytest.approx(3600)
    assert line.span_seconds > 400
    assert track.peak_bytes == 60 * 999


def test_a_track_counts_one_moment_once() -> None:
    track = Track()
    for at in (1, 1, 2, 2, 2):
        track.add(sample(at))
    assert [at for at, _ in track.points] == [1, 2]


def test_a_line_is_of_its_time_alone() -> None:
    track = Track()
    for second in range(100):
        track.add(sample(second, 0 if second < 50 else 600 * (second - 50)))
    assert track.growth(since=0, until=49).whole.bytes_per_minute == 0
    assert track.growth(since=50, until=99).whole.bytes_per_minute == pytest.approx(36_000)


def test_what_is_held_beyond_is_left_over_also_what_was_not_held_at_all() -> None:
    before = most_held([sample(1, sockets=2, files=9), sample(1, sockets=3)])
    assert before == {"sockets": 3, "files": 9}
    assert left_over(before, {"sockets": 3, "files": 8}) == {}
    assert left_over(before, {"sockets": 5, "files": 8, "slots": 1}) == {"sockets": 2, "slots": 1}
