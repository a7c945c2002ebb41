"""Active checks of targets: what is asked for, which answers are good, and how many it takes to change the verdict."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TARGET = re.compile(r"/[A-Za-z0-9\-._~!$&'()*+,;=:@%/?]*")
_STATUSES = re.compile(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How an upstream's targets are checked. Times in seconds."""

    target: bytes
    """The request target, with the base URL's path."""
    method: str
    statuses: frozenset[int]
    """The good ones."""
    body: bytes
    """What has to be in the answer; empty: nothing."""
    interval_seconds: float
    timeout_seconds: float
    failures: int
    """In a row, until a target counts as unhealthy."""
    successes: int
    """In a row, until it counts as healthy again."""


class Verdict:
    """Whether a target is healthy, as its checks say. It is, until they say otherwise."""

    __slots__ = ("_against", "is_healthy")

    def __init__(self, *, is_healthy: bool = True) -> None:
        self.is_healthy = is_healthy
        self._against = 0

    def heard(self, *, is_good: bool, check: Check) -> bool:
        """Take one check's result in; whether it changed the verdict."""
        if is_good is self.is_healthy:
            self._against = 0
            return False
        self._against += 1
        if self._against < (check.successes if is_good else check.failures):
            return False
        self.is_healthy = is_good
        self._against = 0
        return True


def parse_statuses(text: str) -> frozenset[int]:
    """`200, 300-399` as a set. Raises ValueError with a sentence for the admin."""
    found: set[int] = set()
    for part in text.replace(",", " ").split():
        match = _STATUSES.fullmatch(part)
        if match is None:
            raise ValueError(f"“{part}” is no status: write statuses and ranges such as 200, 204, 300-399.")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise ValueError(f"The range {part} runs backwards: write the lower status first.")
        found.update(range(first, last + 1))
    if not found:
        raise ValueError("Write the statuses that count as healthy, such as 200-399.")
    return frozenset(found)


def canonical_statuses(text: str) -> str:
    """As given, in one spelling. Raises ValueError."""
    parse_statuses(text)
    return ", ".join(text.replace(",", " ").split())


def canonical_path(text: str) -> str:
    """Raises ValueError with a sentence for the admin."""
    text = text.strip()
    if text and not text.startswith("/"):
        raise ValueError("Begin the path with a slash, such as /healthz: host and port are each target's own.")
    if text and not _TARGET.fullmatch(text):
        raise ValueError("Percent-encode what a URL cannot hold, and leave fragments out: such as /healthz?deep=1.")
    return text
