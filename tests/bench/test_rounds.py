"""Figures are medians of rounds; what each round gave, and what it failed at, stays to be seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.figures import Figures
from bench.rounds import Series


def settled(fill: Callable[[Series], None]) -> Figures:
    series = Series("rate", "p50")
    fill(series)
    figures = Figures("relay")
    series.settle(figures)
    return figures


def test_the_median_of_the_rounds_counts_for_each_key_and_every_round_is_kept() -> None:
    def fill(series: Series) -> None:
        series.add(100.0, 3.0)
        series.add(900.0, 1.0)
        series.add(110.0, 2.0)

    figures = settled(fill)
    assert figures.values == {"rate": 110.0, "p50": 2.0}
    assert figures.rounds == {"rate": [100.0, 900.0, 110.0], "p50": [3.0, 1.0, 2.0]}
    assert figures.remarks == {}


def test_a_round_without_a_figure_keeps_its_place_and_is_told() -> None:
    def fill(series: Series) -> None:
        series.add(100.0, 3.0)
        series.fail("wrk did not end")
        series.add(200.0, 5.0)

    figures = settled(fill)
    assert figures.values == {"rate": 150.0, "p50": 4.0}
    assert figures.rounds == {"rate": [100.0, None, 200.0], "p50": [3.0, None, 5.0]}
    assert figures.remarks == {"rate": "1 of 3 rounds gave no figure: wrk did not end"}


def test_rounds_that_all_failed_give_every_key_their_reasons_once() -> None:
    def fill(series: Series) -> None:
        for reason in ("no answer", "no answer", "wrk did not end"):
            series.fail(reason)

    figures = settled(fill)
    assert figures.values == {}
    assert figures.rounds == {"rate": [None] * 3, "p50": [None] * 3}
    assert figures.remarks == dict.fromkeys(("rate", "p50"), "no answer, wrk did not end")


@pytest.mark.parametrize(
    ("rounds", "remark"),
    [
        ([(0, 0.05), (0, 0.0)], None),
        ([(1200, 0.0), (3, 0.0)], "1,203 errors or waits over 2 s besides"),
        ([(0, 0.051)], "other processes took up to 5% of the server's core"),
        (
            [(0, 0.2), (7, 0.4), (0, 0.01)],
            "7 errors or waits over 2 s besides; other processes took up to 40% of the server's core in 2 of 3 rounds",
        ),
    ],
)
def test_errors_are_added_up_and_the_worst_disturbance_is_told(
    rounds: list[tuple[int, float]], remark: str | None
) -> None:
    def fill(series: Series) -> None:
        for errors, share in rounds:
            series.add(100.0, 3.0, errors=errors, foreign_share=share)

    assert settled(fill).remarks.get("rate") == remark
