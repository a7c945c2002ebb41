"""One peer, measured with everything: rates, single streams, then memory, each on a freshly started server.

Fresh, because what one measurement leaves in a process (leaked pool slots, grown heaps) would be counted for the next.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import figures as keys
from bench import origin as origins
from bench.figures import Figures
from bench.load import put_load
from bench.origin import BODIES, Origin
from bench.peers import Peer, Serving, running
from bench.processes import Failed, ForeignLoad, MemoryWatch
from bench.transfers import (
    EVENT_GAP_SECONDS,
    SETTLE_SECONDS,
    download,
    fetch,
    idle_streams,
    time_to_first_event,
    upload,
)

MIB = 1 << 20
EVENT_SAMPLES = 20
FOREIGN_SHARE = 0.05
"""From here on, what others took of the server's core is said beside the figure."""
WARM_UP_SECONDS = 1
RATE_KEYS = [key(*cell) for cell in keys.CELLS for key in (keys.rate_key, keys.p50_key, keys.p99_key)]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure and where: `seconds` for each cell of wrk, `repeats` of a long transfer (the median counts)."""

    seconds: int
    repeats: int
    memory: bool
    folder: Path
    origin: Origin
    relay_python: Path
    server_core: int | None


def measure(peer: Peer, plan: Plan) -> Figures:
    figures = Figures(peer.name, note=peer.note)
    with attempt(figures):
        figures.version = peer.find_version()
    _say(f"{peer.name} {figures.version}")
    with attempt(figures, *RATE_KEYS, keys.IDLE_MEMORY, keys.PEAK_MEMORY), _running(peer, plan) as serving:
        _check_bodies(serving, plan.origin)
        _measure_rates(serving, figures, plan)
    with attempt(figures, keys.DOWNLOAD, keys.UPLOAD, keys.FIRST_EVENT), _running(peer, plan) as serving:
        _measure_streams(serving, figures, plan)
    growths = {keys.GROWTH_DOWN: _pass_down, keys.GROWTH_UP: _pass_up}
    if plan.memory:
        for key, pass_bytes in growths.items():
            _say(f"  {key}")
            with attempt(figures, key), _running(peer, plan) as serving:
                before = _warm_up(serving)
                with MemoryWatch(serving.server) as watch:
                    pass_bytes(serving)
                figures.values[key] = (watch.peak_bytes - before) / MIB
        _say(f"  {keys.PER_STREAM}")
        with attempt(figures, keys.PER_STREAM, keys.STREAMS_OPEN), _running(peer, plan) as serving:
            _measure_idle_streams(serving, figures)
    else:
        for key in (*growths, keys.PER_STREAM, keys.STREAMS_OPEN):
            figures.remarks[key] = keys.LEFT_OUT
    return figures


@contextmanager
def attempt(figures: Figures, *wanted: str, serving: Serving | None = None) -> Iterator[None]:
    """Turn a Failed into the remark of those wanted keys that have no value."""
    try:
        yield
    except Failed as failure:
        reason = str(failure)
        if serving is not None:
            try:
                serving.server.require_alive()
            except Failed as ended:
                reason = str(ended)
        _say(f"  {reason}")
        for key in wanted:
            if key not in figures.values:
                figures.remarks.setdefault(key, reason)


def measure_ceiling(origin: Origin, *, seconds: int) -> str:
    """What load and origin reach on their one core with nothing between them, in words: no peer can show more."""
    rate = put_load(origin.url + BODIES["13 B"], connections=32, seconds=seconds).per_second
    speeds = []
    for transfer, path in ((download, origins.LONG_BODY), (upload, origins.SINK)):
        transfer(origin.port, path, total=origins.LONG_BYTES)  # the first reads the file into memory
        speeds.append(origins.LONG_BYTES / transfer(origin.port, path, total=origins.LONG_BYTES) / 1e6)
    return f"{rate:,.0f} requests/s of 13 B at 32, {speeds[0]:,.0f} MB/s down, {speeds[1]:,.0f} MB/s up"


def disturbed(foreign: ForeignLoad) -> str:
    return f"other processes took {foreign.share:.0%} of the server's core"


def _running(peer: Peer, plan: Plan) -> AbstractContextManager[Serving]:
    return running(
        peer,
        folder=plan.folder / peer.name,
        origin=plan.origin,
        relay_python=plan.relay_python,
        core=plan.server_core,
    )


def _check_bodies(serving: Serving, origin: Origin) -> None:
    """A peer that changes what it relays is not measured."""
    for size, path in BODIES.items():
        if fetch(serving.port, serving.prefix + path) != fetch(origin.port, path):
            raise Failed(f"the body of {size} is not the origin's")


def _measure_rates(serving: Serving, figures: Figures, plan: Plan) -> None:
    server = serving.server
    server.wait_until_quiet()
    figures.values[keys.IDLE_MEMORY] = server.resident_bytes() / MIB
    with MemoryWatch(server) as watch:
        for cell in keys.CELLS:
            size, connections = cell
            rate_key, p50_key, p99_key = keys.rate_key(*cell), keys.p50_key(*cell), keys.p99_key(*cell)
            with attempt(figures, rate_key, p50_key, p99_key, serving=serving):
                server.require_alive()
                url = f"http://127.0.0.1:{serving.port}{serving.prefix}{BODIES[size]}"
                with attempt(figures):  # a warm-up may fail: then the measurement says so
                    put_load(url, connections=connections, seconds=WARM_UP_SECONDS)
                server.wait_until_quiet()
                with ForeignLoad(server) as foreign:
                    rate = put_load(url, connections=connections, seconds=plan.seconds)
                figures.values |= {rate_key: rate.per_second, p50_key: rate.p50_ms, p99_key: rate.p99_ms}
                remarks = [f"{rate.errors:,} errors or waits over 2 s besides"] if rate.errors else []
                if foreign.share > FOREIGN_SHARE:
                    remarks.append(disturbed(foreign))
                if remarks:
                    figures.remarks[rate_key] = "; ".join(remarks)
                _say(f"  {rate_key}: {rate.per_second:,.0f}")
            server.wait_until_quiet()
    figures.values[keys.PEAK_MEMORY] = watch.peak_bytes / MIB


def _measure_streams(serving: Serving, figures: Figures, plan: Plan) -> None:
    total = origins.LONG_BYTES
    with MemoryWatch(serving.server) as watch:
        for key, transfer, path in (
            (keys.DOWNLOAD, download, origins.LONG_BODY),
            (keys.UPLOAD, upload, origins.SINK),
        ):
            with attempt(figures, key, serving=serving):
                path = serving.prefix + path
                transfer(serving.port, path, total=total)
                with ForeignLoad(serving.server) as foreign:
                    seconds = median(transfer(serving.port, path, total=total) for _ in range(plan.repeats))
                figures.values[key] = total / seconds / 1e6
                if foreign.share > FOREIGN_SHARE:
                    figures.remarks[key] = disturbed(foreign)
                _say(f"  {key}: {figures.values[key]:,.0f}")
            serving.server.wait_until_quiet()
        with attempt(figures, keys.FIRST_EVENT, serving=serving):
            waits = [time_to_first_event(serving.port, serving.prefix + origins.EVENTS)]
            if waits[0] < EVENT_GAP_SECONDS:
                waits += [
                    time_to_first_event(serving.port, serving.prefix + origins.EVENTS) for _ in range(EVENT_SAMPLES)
                ]
            else:
                figures.remarks[keys.FIRST_EVENT] = "the first event was held back until the second or the end"
            figures.values[keys.FIRST_EVENT] = median(waits) * 1000
            _say(f"  {keys.FIRST_EVENT}: {figures.values[keys.FIRST_EVENT]:.2f}")
    peak = max(watch.peak_bytes / MIB, figures.values.get(keys.PEAK_MEMORY, 0))
    figures.values[keys.PEAK_MEMORY] = peak


def _pass_down(serving: Serving) -> None:
    path = serving.prefix + origins.ENDLESS_BODY
    download(serving.port, path, total=origins.ENDLESS_BYTES, stalling=True)


def _pass_up(serving: Serving) -> None:
    upload(serving.port, serving.prefix + origins.STALLING_SINK, total=origins.ENDLESS_BYTES)


def _measure_idle_streams(serving: Serving, figures: Figures) -> None:
    before = _warm_up(serving)
    with idle_streams(serving.port, serving.prefix + origins.IDLE, wanted=keys.IDLE_STREAMS) as opened:
        figures.values[keys.STREAMS_OPEN] = opened
        if not opened:
            raise Failed("no event stream was open after its first event")
        grown = serving.server.resident_bytes() - before
        figures.values[keys.PER_STREAM] = grown / opened / 1024
        if opened < keys.IDLE_STREAMS:
            figures.remarks[keys.PER_STREAM] = f"with {opened:,} streams: more were not open at once"


def _warm_up(serving: Serving) -> int:
    """Let a fresh server load what it loads late. Gives what it holds then, in bytes."""
    put_load(f"http://127.0.0.1:{serving.port}{serving.prefix}{BODIES['64 KiB']}", connections=4, seconds=1)
    serving.server.wait_until_quiet()
    time.sleep(SETTLE_SECONDS)
    return serving.server.resident_bytes()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
