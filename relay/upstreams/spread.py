"""In which order the addresses of one name are tried, so that connections spread over them.

Each dial begins at the next address; where the first begins is drawn, so that workers are not in step. Those that did
not connect come last for a while. The families keep the order that the system gave them in: which is tried first, and
how they take turns, is Happy Eyeballs' to say (RFC 8305 section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from relay.upstreams.egress import AddrInfo

SPARED_SECONDS = 10.0
"""How long an address that did not connect comes after the others."""


class Spread:
    """Of one dialer's name. Times in seconds on a clock that never goes back."""

    __slots__ = ("_spared", "_turn")

    def __init__(self, draw: Callable[[], float]) -> None:
        """`draw` gives a number from 0 to 1, 1 excluded."""
        self._turn = int(draw() * 2**16)
        self._spared: dict[AddrInfo, float] = {}
        """Until when. Never more than the name has addresses."""

    def order(self, found: Sequence[AddrInfo], now: float) -> list[AddrInfo]:
        """All of `found`, those to be tried first in front."""
        if len(found) == 1:
            return list(found)
        self._turn += 1
        ordered: list[AddrInfo] = []
        for family in dict.fromkeys(info[0] for info in found):
            kin = [info for info in found if info[0] == family]
            start = self._turn % len(kin)
            ordered += kin[start:] + kin[:start]
        if self._spared:
            self._spared = {info: until for info, until in self._spared.items() if until > now and info in found}
            ordered.sort(key=self._spared.__contains__)
        return ordered

    def spare(self, failed: Iterable[AddrInfo], now: float) -> None:
        """These were tried in vain, or too slowly, while another one connected."""
        for info in failed:
            self._spared[info] = now + SPARED_SECONDS
