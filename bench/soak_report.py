"""What a soak found, as text and as verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.leaks import MIB, Growth
from bench.traffic import Tally


@dataclass(slots=True)
class Outcome:
    """All that was found. `left_over` by what it is, the most of one worker."""

    seed: int
    seconds: float
    tally: Tally
    warm_up: Tally
    left_over: dict[str, int]
    strays: int
    """Processes that a reload should have ended."""
    memory: dict[int, Growth]
    """By process id, of workers that lived to the end."""
    reloads: int
    edits: int
    replaced: int
    replaced_peak_bytes: int
    died: int = 0
    """Workers that ended though no reload told them to."""
    troubles: list[str] = field(default_factory=list)
    """Errors in the relay's log."""
    origin: dict[str, Any] = field(default_factory=lambda: {"asked": 0, "met": []})
    """How often the origin was asked, and what it met that no relay may send."""

    @property
    def problems(self) -> list[str]:
        """What is wrong, a line each; empty when nothing is."""
        return list(self._problems())

    def _problems(self) -> Iterator[str]:
        for name, tally in (("", self.tally), (" in the warm-up", self.warm_up)):
            if tally.lost:
                yield f"lost{name}: {tally.lost} requests"
                yield from (f"  {told}" for told in tally.told)
        for what, number in self.left_over.items():
            yield f"leaked: {number} more of {what}"
        if self.strays:
            yield f"leaked: {self.strays} processes that a reload should have ended"
        if self.died:
            yield f"died: {self.died} workers that no reload had told to end"
        for pid, growth in self.memory.items():
            if growth.is_leak:
                yield f"leaked: memory of worker {pid}, {growth}"
        for met in self.origin["met"]:
            yield f"the origin met {met}"
        for line in self.troubles:
            yield f"logged: {line}"
        if not self.tally.ended:
            yield "no traffic: nothing was tried"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"seed {self.seed}, {self.seconds / 60:.1f} minutes, {self.reloads} reloads, {self.edits} edits"
        yield f"{sum(self.tally.ended.values()):,} calls; the origin was asked {self.origin['asked']:,} times"
        for how, number in sorted(self.tally.ended.items()):
            yield f"  {how}: {number:,}"
        peak = self.replaced_peak_bytes / MIB
        yield f"{self.replaced} workers were replaced, none of which held more than {peak:.0f} MiB"
        for pid, growth in sorted(self.memory.items()):
            yield f"worker {pid}: {growth}"
            yield f"  MiB over its life: {' '.join(map(str, growth.curve))}"
