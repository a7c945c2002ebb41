"""A figure measured several times: every round is kept, the median counts, and what went wrong is said beside it.

A shared machine is faster in one minute than in the next. What is to be compared is therefore measured in turn within a
round, and the rounds lie minutes apart: one bad moment decides neither a figure nor a ratio.
"""

from __future__ import annotations

from statistics import median

from bench.figures import Figures

FOREIGN_SHARE = 0.05
"""From here on, what others took of the server's core is said beside the figure."""


class Series:
    """The rounds of figures measured together, such as a cell's rate and latencies. The first key has the remarks."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self._rounds: list[tuple[float, ...] | None] = []
        self._failures: list[str] = []
        self._errors = 0
        self._foreign_shares: list[float] = []

    def __len__(self) -> int:
        return len(self._rounds)

    @property
    def last(self) -> float | None:
        """The first key's value in the last round; None when that gave none."""
        values = self._rounds[-1]
        return None if values is None else values[0]

    def add(self, *values: float, errors: int = 0, foreign_share: float = 0.0) -> None:
        """A round's values, one for each key."""
        self._rounds.append(values)
        self._errors += errors
        if foreign_share > FOREIGN_SHARE:
            self._foreign_shares.append(foreign_share)

    def fail(self, reason: str) -> None:
        """A round without a figure."""
        self._rounds.append(None)
        self._failures.append(reason)

    def settle(self, figures: Figures) -> None:
        """Put medians, rounds and remarks into `figures`."""
        good = [values for values in self._rounds if values is not None]
        for place, key in enumerate(self.keys):
            figures.rounds[key] = [None if values is None else values[place] for values in self._rounds]
            if good:
                figures.values[key] = median(values[place] for values in good)
        if remark := "; ".join(self._remarks()):
            figures.remarks |= dict.fromkeys(self.keys[:1] if good else self.keys, remark)

    def _remarks(self) -> list[str]:
        reasons = ", ".join(dict.fromkeys(self._failures))
        if len(self._failures) == len(self._rounds):
            return [reasons] if reasons else []
        remarks = []
        if self._failures:
            remarks.append(f"{len(self._failures)} of {len(self._rounds)} rounds gave no figure: {reasons}")
        if self._errors:
            remarks.append(f"{self._errors:,} errors or waits over 2 s besides")
        if self._foreign_shares:
            rounds = f" in {len(self._foreign_shares)} of {len(self._rounds)} rounds" if len(self._rounds) > 1 else ""
            remarks.append(f"other processes took up to {max(self._foreign_shares):.0%} of the server's core{rounds}")
        return remarks
