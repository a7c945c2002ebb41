"""In which order the addresses of one name are tried, so that connections spread over them.

Each dial begins at the next address; where the first begins is drawn, so that workers are not in step. Those that did
not connect come last for a while. The families take turns, and the one that the system put first begins (RFC 8305
section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

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
        """All of `found`, in the order to try them in: the families by turns, what is spared behind all others."""
        if len(found) == 1:
            return list(found)
        self._turn += 1
        self._spared = {info: until for info, until in self._spared.items() if until > now and info in found}
        # The family that the system prefers stays first, unless all of it is spared.
        families: dict[int, list[AddrInfo]] = {}
        for info in found:
            if info not in self._spared:
                families.setdefault(info[0], []).append(info)
        rows = zip_longest(*(self._rotated(kin) for kin in families.values()))
        return [info for row in rows for info in row if info is not None] + list(self._spared)

    def _rotated(self, kin: list[AddrInfo]) -> list[AddrInfo]:
        start = self._turn % len(kin)
        return kin[start:] + kin[:start]

    def spare(self, failed: Iterable[AddrInfo], now: float) -> None:
        """These were tried in vain, or too slowly, while another one connected."""
        for info in failed:
            self._spared[info] = now + SPARED_SECONDS
