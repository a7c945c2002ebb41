"""What one run found out about one peer: numbers by key, and the remarks without which they would mislead."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter

CONNECTIONS = {"13 B": (1, 32, 256, 1000), "64 KiB": (1, 32, 256), "1 MiB": (1, 32, 256)}
CELLS = tuple((size, connections) for size, numbers in CONNECTIONS.items() for connections in numbers)
SMALL_CELLS = tuple(cell for cell in CELLS if cell[0] == "13 B")
LARGE_CELLS = tuple(sorted((cell for cell in CELLS if cell[0] != "13 B"), key=itemgetter(1)))
"""Like the small ones in the order they are measured: what many connections leave behind must not slow the others."""

MEDIAN_AT_1 = "median at 1 connection, ms"
ADDED_AT_1 = "added at 1 connection, ms"
AUTHORISED = "with a key and an injected header, 13 B at 32, requests/s"
AUTHORISED_SHARE = "the same, of the rate without"
SHARE_AT_256 = "13 B at 256, of the rate at 32"
SHARE_AT_1000 = "13 B at 1,000, of the rate at 32"
DOWNLOAD = "download, MB/s"
UPLOAD = "upload, MB/s"
RATE_BESIDE = "13 B at 32, times asgiproxy's beside it"
ADDED_BESIDE = "added at 1 connection, asgiproxy's beside it divided by ours"
UPLOAD_SHARE = "upload, of the speed down"
FIRST_EVENT = "first event, ms"
IDLE_MEMORY = "idle memory, MiB"
PEAK_MEMORY = "peak memory, MiB"
GROWTH_DOWN = "growth over 2 GB down, MiB"
GROWTH_UP = "growth over 2 GB up, MiB"
PER_STREAM = "memory of an idle event stream, KiB"
STREAMS_OPEN = "idle event streams open"
IDLE_STREAMS = 1000
LEFT_OUT = "left out of this run"


def rate_key(size: str, connections: int) -> str:
    return f"{size} at {connections:,}, requests/s"


def p50_key(size: str, connections: int) -> str:
    return f"{size} at {connections:,}, median ms"


def p99_key(size: str, connections: int) -> str:
    return f"{size} at {connections:,}, 99th percentile ms"


class Missing(Exception):
    """A figure that is not there: whose, and why."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"{peer}: {reason}")
        self.peer = peer
        self.reason = reason


@dataclass(slots=True)
class Figures:
    """One peer's. A key without a value has a remark that says why; a value may have one too."""

    peer: str
    version: str = "?"
    note: str = ""
    values: dict[str, float] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, list[float | None]] = field(default_factory=dict)
    """Of what is measured in rounds, each round's value, None where it gave none; the median of them is the value."""

    def __getitem__(self, key: str) -> float:
        """Raises Missing."""
        if key not in self.values:
            raise Missing(self.peer, self.remarks.get(key, "not measured"))
        return self.values[key]
