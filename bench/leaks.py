"""What samples of workers mean: the line through their memory, and what is held at rest that was not held before.

Theory of operation. A relay that was asked for a while and is left alone holds what it held at rest before: as many
descriptors of each kind, the same tasks, no slot, no exchange, no connection. So rest is compared with rest, number
by number, and one more is a leak. Memory has no such rest: a worker keeps what was in use at once at its fullest
moment (`config.gunicorn.keep_freed_memory`), so it grows in steps, ever rarer. There the line counts, by least squares
over one worker's samples once it is warm. A leak rises by `TELLING_RISE_BYTES` in all, and steeply in the later half of
the line as in the earlier. A step does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

MIB = 1 << 20
MOST_POINTS = 2048
"""Kept of one worker. At twice as many every second one goes, so a run may last as long as it likes."""
CURVE_POINTS = 12
SHORTEST_LINE_SECONDS = 60.0
MOST_BYTES_PER_MINUTE = 1 * MIB
TELLING_RISE_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True)
class Sample:
    """One worker at one moment: `held` by what it is."""

    pid: int
    at: float
    rss_bytes: int
    held: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Line:
    """Least squares over points of (seconds, bytes)."""

    bytes_per_minute: float
    span_seconds: float
    points: int

    @property
    def rise_bytes(self) -> float:
        return self.bytes_per_minute * self.span_seconds / 60

    @property
    def is_told(self) -> bool:
        return self.span_seconds >= SHORTEST_LINE_SECONDS

    @property
    def is_steep(self) -> bool:
        return self.bytes_per_minute > MOST_BYTES_PER_MINUTE

    def __str__(self) -> str:
        if not self.is_told:
            return f"no line: {self.span_seconds:.0f} s are too short"
        return (
            f"{self.bytes_per_minute / MIB:+.3f} MiB a minute over {self.span_seconds:.0f} s"
            f" ({self.points} samples, {self.rise_bytes / MIB:+.2f} MiB)"
        )


def line_through(points: Sequence[tuple[float, float]]) -> Line:
    """Flat for fewer than two moments."""
    if len(points) < 2:
        return Line(0.0, 0.0, len(points))
    middle_at = sum(at for at, _ in points) / len(points)
    middle = sum(value for _, value in points) / len(points)
    across = sum((at - middle_at) ** 2 for at, _ in points)
    along = sum((at - middle_at) * (value - middle) for at, value in points)
    span = points[-1][0] - points[0][0]
    return Line(60 * along / across if across else 0.0, span, len(points))


@dataclass(frozen=True, slots=True)
class Growth:
    """One worker's memory: the line through it, through the halves of that time, and all of its life in MiB."""

    whole: Line
    earlier: Line
    later: Line
    curve: list[float] = field(default_factory=list)

    @property
    def is_leak(self) -> bool:
        rises = self.whole.is_told and self.whole.rise_bytes > TELLING_RISE_BYTES
        return rises and all(line.is_steep for line in (self.whole, self.earlier, self.later))

    def __str__(self) -> str:
        if not self.whole.is_told:
            return str(self.whole)
        halves = (
            f"{self.earlier.bytes_per_minute / MIB:+.2f} in its earlier half, {self.later.bytes_per_minute / MIB:+.2f}"
        )
        return f"{self.whole}; {halves} in its later"


@dataclass(slots=True)
class Track:
    """One worker's memory over time, bounded, and the last that was seen of it."""

    points: list[tuple[float, float]] = field(default_factory=list)
    last: Sample | None = None
    peak_bytes: int = 0
    _stride: int = 1
    _skipped: int = 0

    def add(self, sample: Sample) -> None:
        """The same moment twice counts once."""
        if self.last is not None and sample.at <= self.last.at:
            return
        self.last = sample
        self.peak_bytes = max(self.peak_bytes, sample.rss_bytes)
        self._skipped += 1
        if self._skipped < self._stride:
            return
        self._skipped = 0
        self.points.append((sample.at, sample.rss_bytes))
        if len(self.points) >= 2 * MOST_POINTS:
            del self.points[::2]
            self._stride *= 2

    def growth(self, *, since: float, until: float) -> Growth:
        points = [point for point in self.points if since <= point[0] <= until]
        middle = len(points) // 2
        stride = max(1, len(self.points) // CURVE_POINTS)
        return Growth(
            whole=line_through(points),
            earlier=line_through(points[:middle]),
            later=line_through(points[middle:]),
            curve=[round(value / MIB, 1) for _, value in self.points[::stride]],
        )


def most_held(samples: Iterable[Sample]) -> dict[str, int]:
    """Number by number the most that one of them held."""
    most: dict[str, int] = {}
    for sample in samples:
        for what, number in sample.held.items():
            most[what] = max(number, most.get(what, 0))
    return most


def left_over(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What is held at rest beyond what was held at rest before, by what it is."""
    more = {what: number - before.get(what, 0) for what, number in after.items()}
    return {what: number for what, number in sorted(more.items()) if number > 0}
