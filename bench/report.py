"""Figures as Markdown tables and as JSON. A figure that is missing shows a number that leads to its reason below."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench import figures as keys
from bench.figures import Figures
from bench.goals import Verdict

SPEEDS = (*(keys.rate_key(*cell) for cell in keys.CELLS), keys.DOWNLOAD, keys.UPLOAD)
REST = (
    keys.AUTHORISED,
    keys.AUTHORISED_SHARE,
    keys.SHARE_AT_256,
    keys.SHARE_AT_1000,
    keys.UPLOAD_SHARE,
    keys.MEDIAN_AT_1,
    keys.ADDED_AT_1,
    keys.RATE_BESIDE,
    keys.ADDED_BESIDE,
    keys.FIRST_EVENT,
    keys.IDLE_MEMORY,
    keys.PEAK_MEMORY,
    keys.GROWTH_DOWN,
    keys.GROWTH_UP,
    keys.PER_STREAM,
    keys.STREAMS_OPEN,
)
YARDSTICKS = ("relay-on-aiohttp", "example", "nginx")
WORDS = {True: "met", False: "NOT met", None: "not told"}


def as_text(run: Sequence[Figures], verdicts: Sequence[Verdict], facts: Mapping[str, str]) -> str:
    remarks = Remarks()
    by_name = {figures.peer: figures for figures in run}
    parts = ["## Peers\n", *(f"- {figures.peer} {figures.version}: {figures.note}" for figures in run)]
    parts += ["\n## Figures\n", _table("", run, (*SPEEDS, *REST), remarks)]
    parts += ["\n## Latency, median / 99th percentile in ms\n", _latency_table(run, remarks)]
    for yardstick in YARDSTICKS:
        if yardstick in by_name:
            parts += [f"\n## Times {yardstick}\n", _ratio_table(run, by_name[yardstick])]
    parts += ["\n## To reach\n", *(_verdict_line(verdict) for verdict in verdicts)]
    if lines := remarks.lines():
        parts += ["\n## Remarks\n", *lines]
    parts += ["\n## Machine\n", *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join(parts)


def as_data(run: Sequence[Figures], verdicts: Sequence[Verdict], facts: Mapping[str, str]) -> dict[str, Any]:
    """The same for `json.dump`."""
    return {
        "machine": dict(facts),
        "peers": [asdict(figures) for figures in run],
        "goals": [
            {
                "goal": verdict.goal.text,
                "bound": verdict.goal.bound,
                "figure": verdict.figure,
                "met": verdict.met,
                "reason": verdict.reason,
            }
            for verdict in verdicts
        ],
    }


class Remarks:
    """Numbers for remarks: one for the same words, whichever peers they are about."""

    def __init__(self) -> None:
        self._peers: dict[str, list[str]] = {}

    def mark(self, figures: Figures, key: str) -> str:
        remark = figures.remarks.get(key)
        if remark is None:
            return ""
        peers = self._peers.setdefault(remark, [])
        if figures.peer not in peers:
            peers.append(figures.peer)
        return f"[{list(self._peers).index(remark) + 1}]"

    def lines(self) -> list[str]:
        return [
            f"- [{number}] {', '.join(peers)}: {text}" for number, (text, peers) in enumerate(self._peers.items(), 1)
        ]


def significant(value: float) -> str:
    """Three digits that mean something, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(corner: str, run: Sequence[Figures], rows: Sequence[str], remarks: Remarks) -> str:
    def cell(figures: Figures, key: str) -> str:
        value = significant(figures.values[key]) if key in figures.values else "-"
        return " ".join(filter(None, (value, remarks.mark(figures, key))))

    return _aligned([corner, *(figures.peer for figures in run)], rows, run, cell)


def _latency_table(run: Sequence[Figures], remarks: Remarks) -> str:
    rows = {f"{size} at {connections:,}": (size, connections) for size, connections in keys.CELLS}

    def cell(figures: Figures, row: str) -> str:
        p50, p99 = keys.p50_key(*rows[row]), keys.p99_key(*rows[row])
        if p50 not in figures.values:
            return " ".join(filter(None, ("-", remarks.mark(figures, p50))))
        return f"{significant(figures.values[p50])} / {significant(figures.values[p99])}"

    return _aligned(["", *(figures.peer for figures in run)], list(rows), run, cell)


def _ratio_table(run: Sequence[Figures], yardstick: Figures) -> str:
    def cell(figures: Figures, key: str) -> str:
        measured = key in figures.values and key in yardstick.values
        return f"{significant(figures.values[key] / yardstick.values[key])}" if measured else "-"

    return _aligned(["", *(figures.peer for figures in run)], SPEEDS, run, cell)


def _aligned(
    head: Sequence[str], rows: Sequence[str], run: Sequence[Figures], cell: Callable[[Figures, str], str]
) -> str:
    lines = [list(head), *([row, *(cell(figures, row) for figures in run)] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        "| "
        + " | ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def _verdict_line(verdict: Verdict) -> str:
    goal = verdict.goal
    said = f"({verdict.reason})" if verdict.figure is None else f"{significant(verdict.figure)}{goal.unit}"
    return f"- {WORDS[verdict.met]}: {goal.text}, {goal.bound}: {said}"
