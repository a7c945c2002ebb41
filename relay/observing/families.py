"""Metrics as numbers by family and labels: put together, written down, and rendered for Prometheus. No I/O.

Our own instead of a client library's, whose multi-process counters cost a write to shared memory each: an exchange has
ten of them.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds in seconds; what is longer is in `+Inf` alone."""
Kind = Literal["counter", "gauge", "histogram"]
Sample = tuple[tuple[str, ...], float]
"""Label values, in the family's order, and the number."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. How workers' numbers become one: counters and histograms are summed, gauges as `merge` says."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    merge: Literal["sum", "max", "min"] = "sum"


class Histogram:
    """How long something took, each time."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS) + 1)
        """Counts, not yet summed up; the last one is for all beyond the bounds."""
        self.seconds = 0.0

    def count(self, seconds: float) -> None:
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


class Numbers:
    """Samples by family. Histograms are kept as their buckets, `sum` and `count` under labels of their own."""

    def __init__(self) -> None:
        self.families: dict[str, Family] = {}
        self.samples: dict[str, dict[tuple[str, ...], float]] = {}

    def add(self, family: Family, sample: Sample) -> None:
        labels, value = sample
        self.families[family.name] = family
        held = self.samples.setdefault(family.name, {})
        if labels not in held:
            held[labels] = value
        elif family.merge == "sum":
            held[labels] += value
        else:
            held[labels] = max(held[labels], value) if family.merge == "max" else min(held[labels], value)

    def add_histogram(self, family: Family, labels: tuple[str, ...], histogram: Histogram) -> None:
        for bound, count in zip((*BUCKETS, "+Inf"), histogram.buckets, strict=True):
            self.add(family, ((*labels, str(bound)), count))
        self.add(family, ((*labels, "sum"), histogram.seconds))

    def merge(self, other: Numbers, *, lasting_only: bool = False) -> None:
        """Add those of another worker; of one that is gone only what lasts: counters and histograms."""
        for name, family in other.families.items():
            if family.kind == "gauge" and lasting_only:
                continue
            if name in self.families:
                for sample in other.samples[name].items():
                    self.add(family, sample)
            else:
                self.families[name] = family
                self.samples[name] = dict(other.samples[name])

    def dump(self) -> bytes:
        document = {
            name: {
                "kind": family.kind,
                "help": family.help,
                "labels": family.labels,
                "merge": family.merge,
                "samples": [[*labels, value] for labels, value in self.samples[name].items()],
            }
            for name, family in self.families.items()
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def load(cls, text: bytes) -> Numbers:
        """Raises ValueError for what no worker wrote."""
        numbers = cls()
        try:
            for name, told in json.loads(text).items():
                labels = tuple(told["labels"])
                numbers.families[name] = Family(name, told["kind"], told["help"], labels, told["merge"])
                numbers.samples[name] = {tuple(map(str, values)): float(number) for *values, number in told["samples"]}
        except (KeyError, TypeError, AttributeError) as problem:
            raise ValueError("it is no worker's file") from problem
        return numbers


def render(numbers: Numbers) -> str:
    """Prometheus' text format (version 0.0.4)."""
    lines: list[str] = []
    for name in sorted(numbers.families):
        family = numbers.families[name]
        lines += (f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}")
        samples = sorted(numbers.samples[name].items())
        if family.kind == "histogram":
            lines += _histogram(family, numbers.samples[name])
        else:
            lines += [f"{name}{_labels(family.labels, labels)} {_number(value)}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _histogram(family: Family, samples: Mapping[tuple[str, ...], float]) -> Iterator[str]:
    for labels in sorted({labels[:-1] for labels in samples}):
        count = 0.0
        for bound in (*map(str, BUCKETS), "+Inf"):
            count += samples.get((*labels, bound), 0)
            told = _labels((*family.labels, "le"), (*labels, bound))
            yield f"{family.name}_bucket{told} {_number(count)}"
        told = _labels(family.labels, labels)
        yield f"{family.name}_sum{told} {_number(samples.get((*labels, 'sum'), 0))}"
        yield f"{family.name}_count{told} {_number(count)}"


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
