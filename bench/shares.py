"""Where the relay's time goes: `python -m bench.shares FILE` sums up what py-spy recorded, by whose work it is.

FILE is py-spy's raw format, as in docs/performance.md. A sample counts for the Python function that was running, and
what that calls in C (a write to a socket, a search) counts as its own. Other threads than the main one are left out.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

SHARES = (
    ("access log", r"relay/observing/"),
    (
        "decisions: rules, snapshot, view",
        r"relay/(?:rules|catalog)/|relay/views\.py|relay/conf\.py|serving/(?:heads|hosts)\.py",
    ),
    ("server: parsing the request, writing the answer", r"relay/serving/(?:protocol|cycle)\.py|uvicorn/"),
    ("Django's request, response and handler, cut down", r"relay/serving/|django/"),
    ("engine: pool, connection, wire, answers", r"relay/upstreams/(?:answers|connection|pool|silence|states|wire)\.py"),
    ("exchange: slot, bounds, errors", r"relay/upstreams/exchange\.py"),
    ("httpx: client, request, response, headers", r"httpx/|relay/upstreams/"),
    ("event loop: waiting, reading, timers, tasks", r"asyncio/|_weakrefset\.py"),
)
"""The first whose pattern is found in a frame's file counts."""
OTHER = "other"
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>.*?)(?::\d+)?\)$")


def shares(lines: Iterable[str]) -> dict[str, float]:
    """Each share's part of all samples, largest first; they add up to 1. Empty without samples."""
    samples: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if any("_bootstrap (threading.py" in frame for frame in frames):
            continue
        samples[_share_of(frames[-1])] += int(count)
    total = samples.total()
    return {name: count / total for name, count in samples.most_common()}


def _share_of(frame: str) -> str:
    found = _FRAME.match(frame)
    if found is None:
        return OTHER
    return next((name for name, pattern in SHARES if re.search(pattern, found["file"])), OTHER)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.shares FILE, which py-spy record --format raw has written")
    with Path(sys.argv[1]).open() as file:
        for name, share in shares(file).items():
            print(f"| {name} | {share:.0%} |")
