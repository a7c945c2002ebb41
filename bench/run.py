"""All peers, measured with everything: rates and long bodies round by round, then events and memory peer by peer.

In a round each peer has its turn, so that what else the machine does meets all alike. Every measurement has a freshly
started server, because what one leaves in a process (leaked pool slots, grown heaps) would be counted for the next.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import figures as keys
from bench import origin as origins
from bench.figures import Figures
from bench.in_turn import put_loads_in_turn
from bench.load import put_load, put_load_in_phases
from bench.origin import BODIES, Origin
from bench.peers import Peer, Serving, running
from bench.processes import Failed, ForeignLoad, MemoryWatch, Server
from bench.rounds import Series
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
WARM_UP_SECONDS = 1
CONNECTED_A_SECOND = 250
"""wrk counts its time from before it connects, so cells of many connections get more of it: one second for as many."""
SECONDS_OF_PHASES = 4
"""As many times a cell's."""
TURNS = 5
"""Of each number of connections, for each second of a cell."""
NEAREST = "asgiproxy"
"""Who is near enough to the relay that the two are measured beside each other."""
PAIRS = 6
"""In a round, after one to warm up."""
SECONDS_OF_PAIRS = 2
LONG_BODIES_IN_TURN = 5
"""Of each kind in a round: one takes a fraction of a second, in which a shared machine does what it likes."""
LONG_BODIES = {keys.DOWNLOAD: (download, origins.LONG_BODY), keys.UPLOAD: (upload, origins.SINK)}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What load and origin reach on their one core with nothing between them: no peer can show more."""

    per_second: float
    p50_ms_at_1: float
    down_mb_per_second: float
    up_mb_per_second: float

    def __str__(self) -> str:
        return (
            f"{self.per_second:,.0f} requests/s of 13 B at 32, a median of {self.p50_ms_at_1:.3f} ms at 1,"
            f" {self.down_mb_per_second:,.0f} MB/s down, {self.up_mb_per_second:,.0f} MB/s up"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure and where: `rounds` of all rates and long bodies, `seconds` of wrk for each cell of a round."""

    seconds: int
    rounds: int
    memory: bool
    folder: Path
    origin: Origin
    ceiling: Ceiling
    relay_python: Path
    server_core: int | None

    def seconds_at(self, connections: int) -> int:
        return self.seconds + connections // CONNECTED_A_SECOND


class Turns:
    """One peer, and what its turns in the rounds gave."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.figures = Figures(peer.name, note=peer.note)
        self.idle_memory = Series(keys.IDLE_MEMORY)
        self.cells = {
            cell: Series(keys.rate_key(*cell), keys.p50_key(*cell), keys.p99_key(*cell)) for cell in keys.CELLS
        }
        self.shares = Series(keys.AUTHORISED, keys.AUTHORISED_SHARE, keys.SHARE_AT_256, keys.SHARE_AT_1000)
        self.long_bodies = {key: Series(key) for key in LONG_BODIES}
        self.upload_share = Series(keys.UPLOAD_SHARE)
        self.beside = Series(keys.RATE_BESIDE, keys.ADDED_BESIDE)

    def settle(self, ceiling: Ceiling) -> None:
        """Make figures of the rounds."""
        figures = self.figures
        shares = [self.shares] if self.peer.knows_keys else []
        if not self.beside:
            figures.remarks |= dict.fromkeys(self.beside.keys, keys.LEFT_OUT)
        rest = (*self.long_bodies.values(), self.upload_share, self.beside)
        for series in (self.idle_memory, *self.cells.values(), *shares, *rest):
            series.settle(figures)
        try:
            figures.values[keys.MEDIAN_AT_1] = median_at_1 = figures[keys.p50_key("13 B", 1)]
            figures.values[keys.ADDED_AT_1] = median_at_1 - ceiling.p50_ms_at_1
        except keys.Missing as missing:
            figures.remarks |= dict.fromkeys((keys.MEDIAN_AT_1, keys.ADDED_AT_1), missing.reason)
        if keys.PEAK_MEMORY not in figures.values:  # then it never served
            figures.remarks[keys.PEAK_MEMORY] = figures.remarks[keys.IDLE_MEMORY]


def measure(peers: Sequence[Peer], plan: Plan) -> list[Figures]:
    turns = [Turns(peer) for peer in peers]
    for number in range(1, plan.rounds + 1):
        for turn in turns:
            _say(f"round {number} of {plan.rounds}: {turn.peer.name}")
            _take_turn(turn, number, plan)
        _take_turn_together(turns, number, plan)
    for turn in turns:
        _say(f"once: {turn.peer.name}")
        turn.settle(plan.ceiling)
        with attempt(turn.figures):
            turn.figures.version = turn.peer.find_version()
        _measure_once(turn.peer, turn.figures, plan)
    plan.origin.require_alive()
    return [turn.figures for turn in turns]


def measure_ceiling(origin: Origin, *, seconds: int, rounds: int) -> Ceiling:
    url = origin.url + BODIES["13 B"]
    speeds = {}
    for key, (transfer, path) in LONG_BODIES.items():
        transfer(origin.port, path, total=origins.LONG_BYTES)  # the first reads the file into memory
        times = [transfer(origin.port, path, total=origins.LONG_BYTES) for _ in range(rounds)]
        speeds[key] = origins.LONG_BYTES / median(times) / 1e6
    rates = [[put_load(url, connections=many, seconds=seconds) for many in (1, 32)] for _ in range(rounds)]
    return Ceiling(
        per_second=median(at_32.per_second for _, at_32 in rates),
        p50_ms_at_1=median(at_1.p50_ms for at_1, _ in rates),
        down_mb_per_second=speeds[keys.DOWNLOAD],
        up_mb_per_second=speeds[keys.UPLOAD],
    )


def _take_turn(turn: Turns, number: int, plan: Plan) -> None:
    """The rates of small bodies, then those of larger ones, those to be compared with each other, then long bodies."""
    small, large = ({cell: turn.cells[cell] for cell in cells} for cells in (keys.SMALL_CELLS, keys.LARGE_CELLS))
    with a_round([turn.idle_memory, *small.values()], number), _running(turn.peer, plan) as serving:
        _check_bodies(serving, plan.origin)
        serving.server.wait_until_quiet()
        turn.idle_memory.add(serving.server.resident_bytes() / MIB)
        with _peak_watched(serving.server, turn.figures):
            _measure_rates(serving, small, number, plan)
    with a_round(list(large.values()), number), _running(turn.peer, plan) as serving:
        _check_bodies(serving, plan.origin)
        with _peak_watched(serving.server, turn.figures):
            _measure_rates(serving, large, number, plan)
    if turn.peer.knows_keys:
        with a_round([turn.shares], number), _running(turn.peer, plan) as serving:
            _measure_shares(serving, turn.shares, plan)
    with (
        a_round([*turn.long_bodies.values(), turn.upload_share], number),
        _running(turn.peer, plan) as serving,
        _peak_watched(serving.server, turn.figures),
    ):
        _measure_long_bodies(serving, turn, number)


def _take_turn_together(turns: Sequence[Turns], number: int, plan: Plan) -> None:
    """The relay and who is nearest to it, both at the server's core, one at a time at work."""
    by_name = {turn.peer.name: turn for turn in turns}
    if not {"relay", NEAREST} <= by_name.keys():
        return
    ours, nearest = by_name["relay"], by_name[NEAREST]
    _say(f"round {number} of {plan.rounds}: relay beside {NEAREST}")
    with a_round([ours.beside], number), _running(ours.peer, plan) as here, _running(nearest.peer, plan) as there:
        rates, added, errors = [], [], 0
        for _ in range(1 + PAIRS):
            at_32, at_1 = (
                [
                    put_load(
                        f"http://127.0.0.1:{serving.port}{serving.prefix}{BODIES['13 B']}",
                        connections=connections,
                        seconds=SECONDS_OF_PAIRS,
                    )
                    for serving in (here, there)
                ]
                for connections in (32, 1)
            )
            errors += sum(rate.errors for rate in (*at_32, *at_1))
            rates.append(at_32[0].per_second / at_32[1].per_second)
            added.append((at_1[1].p50_ms - plan.ceiling.p50_ms_at_1) / (at_1[0].p50_ms - plan.ceiling.p50_ms_at_1))
        beside = median(rates[1:]), median(added[1:])
        ours.beside.add(*beside, errors=errors)
        _say(f"  {', '.join(f'{value:.3f} {key}' for key, value in zip(ours.beside.keys, beside, strict=True))}")


def _measure_once(peer: Peer, figures: Figures, plan: Plan) -> None:
    with attempt(figures, keys.FIRST_EVENT), _running(peer, plan) as serving:
        _measure_first_event(serving, figures)
    growths = {keys.GROWTH_DOWN: _pass_down, keys.GROWTH_UP: _pass_up}
    if not plan.memory:
        figures.remarks |= dict.fromkeys((*growths, keys.PER_STREAM, keys.STREAMS_OPEN), keys.LEFT_OUT)
        return
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


@contextmanager
def attempt(figures: Figures, *wanted: str) -> Iterator[None]:
    """Turn a Failed into the remark of those wanted keys that have no value."""
    try:
        yield
    except Failed as failure:
        _say(f"  {failure}")
        for key in wanted:
            if key not in figures.values:
                figures.remarks.setdefault(key, str(failure))


@contextmanager
def a_round(wanted: Sequence[Series], number: int, *, serving: Serving | None = None) -> Iterator[None]:
    """Turn a Failed into a round without a figure, for those series that have none of round `number` yet."""
    try:
        yield
    except Failed as failure:
        reason = str(failure)
        if serving is not None:
            try:
                serving.server.require_alive()
            except Failed as ended:  # which is why
                reason = str(ended)
        _say(f"  {reason}")
        for series in wanted:
            if len(series) < number:
                series.fail(reason)


@contextmanager
def _peak_watched(server: Server, figures: Figures) -> Iterator[None]:
    """Keep the highest sample of all servers that are watched so."""
    watch = MemoryWatch(server)
    try:
        with watch:
            yield
    finally:
        peak = watch.peak_bytes / MIB
        figures.values[keys.PEAK_MEMORY] = max(peak, figures.values.get(keys.PEAK_MEMORY, 0))
        if watch.overran:
            figures.remarks[keys.PEAK_MEMORY] = "stopped there: it would have taken the machine's memory"


def _running(peer: Peer, plan: Plan) -> AbstractContextManager[Serving]:
    plan.origin.require_alive()
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


def _measure_rates(serving: Serving, cells: Mapping[tuple[str, int], Series], number: int, plan: Plan) -> None:
    server = serving.server
    for (size, connections), series in cells.items():
        with a_round([series], number, serving=serving):
            server.require_alive()
            url = f"http://127.0.0.1:{serving.port}{serving.prefix}{BODIES[size]}"
            try:
                put_load(url, connections=connections, seconds=WARM_UP_SECONDS)
            except Failed as failure:  # then the measurement says so
                _say(f"  warm-up: {failure}")
            server.wait_until_quiet()
            with ForeignLoad(server) as foreign:
                rate = put_load(url, connections=connections, seconds=plan.seconds_at(connections))
            series.add(rate.per_second, rate.p50_ms, rate.p99_ms, errors=rate.errors, foreign_share=foreign.share)
            _say(f"  {series.keys[0]}: {rate.per_second:,.0f}")
        server.wait_until_quiet()


def _measure_shares(serving: Serving, series: Series, plan: Plan) -> None:
    """With a key and without, in turn on the same connections; then at 32 and at more connections, in turn as well.
    Whatever the machine does meanwhile falls on all alike."""
    place = f"http://127.0.0.1:{serving.port}"
    paths = (serving.prefix + BODIES["13 B"], serving.guarded_prefix + BODIES["13 B"])
    with ForeignLoad(serving.server) as foreign:
        phases = put_load_in_phases(
            place,
            paths,
            header=("Relay-Key", serving.key),
            connections=32,
            seconds=WARM_UP_SECONDS + SECONDS_OF_PHASES * plan.seconds,
        )
        beside = put_loads_in_turn(
            place + paths[0],
            (32, 256, 1000),
            turns=TURNS * plan.seconds,
            warm_up_seconds=lambda connections: WARM_UP_SECONDS + connections / CONNECTED_A_SECOND,
            served=plan.origin.served,
        )
    rates = beside.rates
    shares = (phases.second / phases.first, rates[256] / rates[32], rates[1000] / rates[32])
    series.add(phases.second, *shares, errors=phases.errors + beside.errors, foreign_share=foreign.share)
    _say(f"  {', '.join(f'{share:.3f} {key}' for key, share in zip(series.keys[1:], shares, strict=True))}")


def _measure_long_bodies(serving: Serving, turn: Turns, number: int) -> None:
    """Down and up in turn, after one each to warm up."""
    seconds: dict[str, list[float]] = {key: [] for key in LONG_BODIES}
    with ForeignLoad(serving.server) as foreign:
        for _ in range(1 + LONG_BODIES_IN_TURN):
            for key, (transfer, path) in LONG_BODIES.items():
                series = turn.long_bodies[key]
                if len(series) < number:  # so far all went well
                    with a_round([series], number, serving=serving):
                        seconds[key].append(transfer(serving.port, serving.prefix + path, total=origins.LONG_BYTES))
                    serving.server.wait_until_quiet()
    for key, series in turn.long_bodies.items():
        if len(series) < number:
            speed = origins.LONG_BYTES / median(seconds[key][1:]) / 1e6
            series.add(speed, foreign_share=foreign.share)
            _say(f"  {key}: {speed:,.0f}")
    down, up = (turn.long_bodies[key].last for key in (keys.DOWNLOAD, keys.UPLOAD))
    if down is None or up is None:
        raise Failed("one of the two has no figure")
    turn.upload_share.add(up / down)


def _measure_first_event(serving: Serving, figures: Figures) -> None:
    path = serving.prefix + origins.EVENTS
    waits = [time_to_first_event(serving.port, path)]
    if waits[0] < EVENT_GAP_SECONDS:
        waits += [time_to_first_event(serving.port, path) for _ in range(EVENT_SAMPLES)]
    else:
        figures.remarks[keys.FIRST_EVENT] = "the first event was held back until the second or the end"
    figures.values[keys.FIRST_EVENT] = median(waits) * 1000
    _say(f"  {keys.FIRST_EVENT}: {figures.values[keys.FIRST_EVENT]:.2f}")


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
