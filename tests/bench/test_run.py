"""The order of a run: peers take turns in each round, small bodies are measured in a row, every server is fresh.

What would start servers and put load on them is replaced; only what a run makes of it is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from bench import __main__ as command
from bench import figures as keys
from bench import run as bench_run
from bench.figures import Figures
from bench.goals import judge
from bench.in_turn import InTurn
from bench.load import Phases, Rate
from bench.origin import BODIES, Origin, OriginEnded
from bench.peers import Peer, Serving
from bench.processes import Failed, Server
from bench.run import (
    LONG_BODIES,
    SECONDS_OF_PAIRS,
    Ceiling,
    Plan,
    Turns,
    _take_turn_together,
    measure,
    measure_ceiling,
)

SMALL = [("13 B", connections) for connections in (1, 32, 256, 1000)]
LARGE = [(size, connections) for connections in (1, 32, 256) for size in ("64 KiB", "1 MiB")]


class StandIn:
    """In a server's place; it holds 3 MiB."""

    core = None
    ended = ""

    def wait_until_quiet(self) -> None:
        pass

    def require_alive(self) -> None:
        if self.ended:
            raise Failed(self.ended)

    def resident_bytes(self) -> int:
        return 3 << 20

    def cpu_seconds(self) -> float:
        return 0.0

    def processes(self) -> list[object]:
        return []


class Stage:
    """What a run would have done, in its order, and what it meets."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.rate: Callable[[tuple[str, int], int], Rate] = lambda cell, seconds: Rate(100.0, 0.5, 1.0, 0)
        self.refuse_start: Callable[[str], None] = lambda peer: None
        self.server = StandIn()
        self.knows_keys = False
        self.transfer: Callable[[str], float] = lambda path: 0.5

    def plan(self, *, rounds: int = 1) -> Plan:
        return Plan(
            seconds=2,
            rounds=rounds,
            memory=False,
            folder=Path(),
            origin=Origin(9000),
            ceiling=Ceiling(per_second=1.0, p50_ms_at_1=0.03, down_mb_per_second=1.0, up_mb_per_second=1.0),
            relay_python=Path(),
            server_core=None,
        )

    def measure(self, *peers: str, rounds: int = 1) -> list[Figures]:
        plan = self.plan(rounds=rounds)
        return measure([Peer(name, lambda: "1", cast(Any, None), "a note", self.knows_keys) for name in peers], plan)

    def measured(self) -> list[tuple[Any, ...]]:
        """Without warm-ups."""
        return [what for what in self.done if what[0] != "load" or what[2] > 1]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    sizes = {path: size for size, path in BODIES.items()}

    @contextmanager
    def running(peer: Peer, **_: object) -> Iterator[Serving]:
        stage.refuse_start(peer.name)
        stage.done.append(("start", peer.name))
        stage.server = StandIn()
        server = cast(Server, stage.server)
        yield Serving(server, port=8000, prefix="/relay/origin", guarded_prefix="/relay/guarded", key="rk_key")

    def put_load(url: str, *, connections: int, seconds: int, header: str = "") -> Rate:
        cell = (sizes["/" + url.rpartition("/")[2]], connections)
        stage.done.append(("load", cell, seconds))
        return stage.rate(cell, seconds)

    def put_load_in_phases(
        place: str, paths: tuple[str, str], *, header: tuple[str, str], connections: int, seconds: int
    ) -> Phases:
        stage.done.append(("phases", paths, header, seconds))
        return Phases(100.0, 90.0, 2)

    def put_loads_in_turn(url: str, ways: tuple[int, ...], *, turns: int, **_: object) -> InTurn:
        stage.done.append(("in turn", url, ways, turns))
        return InTurn(dict(zip(ways, (100.0, 97.0, 91.0), strict=True)), 1)

    def transfer(port: int, path: str, *, total: int) -> float:
        stage.done.append(("transfer", path))
        return stage.transfer(path)

    monkeypatch.setattr(bench_run, "running", running)
    monkeypatch.setattr(bench_run, "put_load", put_load)
    monkeypatch.setattr(bench_run, "put_load_in_phases", put_load_in_phases)
    monkeypatch.setattr(bench_run, "put_loads_in_turn", put_loads_in_turn)
    monkeypatch.setattr(bench_run, "fetch", lambda port, path: b"")
    monkeypatch.setattr(bench_run, "time_to_first_event", lambda port, path: 0.002)
    monkeypatch.setattr(bench_run, "LONG_BODIES", {key: (transfer, path) for key, (_, path) in LONG_BODIES.items()})
    return stage


def measured_seconds(cell: tuple[str, int]) -> int:
    """wrk's time has its connecting in it."""
    return {256: 3, 1000: 6}.get(cell[1], 2)


def turn(peer: str) -> list[tuple[Any, ...]]:
    """What one peer's turn in a round is to be."""
    small, large = ([("load", cell, measured_seconds(cell)) for cell in cells] for cells in (SMALL, LARGE))
    long = [("transfer", f"/relay/origin/{name}") for name in ("200m", "sink")] * 6
    return [("start", peer), *small, ("start", peer), *large, ("start", peer), *long]


def test_peers_take_turns_in_each_round_and_every_part_of_a_turn_has_a_fresh_server(stage: Stage) -> None:
    stage.measure("relay", "example", rounds=2)
    once = [("start", "relay"), ("start", "example")]
    assert stage.measured() == [*turn("relay"), *turn("example")] * 2 + once


def test_each_cell_is_warmed_up_on_the_server_that_is_measured(stage: Stage) -> None:
    stage.measure("relay")
    loads = [what[1:] for what in stage.done if what[0] == "load"]
    assert loads == [(cell, seconds) for cell in SMALL + LARGE for seconds in (1, measured_seconds(cell))]


def test_figures_are_medians_of_the_rounds(stage: Stage) -> None:
    speeds = iter([300.0, 100.0, 200.0])

    def rate(cell: tuple[str, int], seconds: int) -> Rate:
        measured = cell == ("13 B", 1000) and seconds > 1
        return Rate(next(speeds) if measured else 100.0, 0.5, 1.0, 0)

    stage.rate = rate
    [figures] = stage.measure("relay", rounds=3)
    key = keys.rate_key("13 B", 1000)
    assert (figures.values[key], figures.rounds[key]) == (200.0, [300.0, 100.0, 200.0])
    assert figures.rounds[keys.DOWNLOAD] == [400.0] * 3
    assert (figures.values[keys.IDLE_MEMORY], figures.values[keys.PEAK_MEMORY]) == (3.0, 3.0)
    assert figures.values[keys.FIRST_EVENT] == 2.0
    assert figures.remarks[keys.GROWTH_DOWN] == keys.LEFT_OUT


def test_what_a_peer_adds_is_its_median_without_what_is_there_without_it(stage: Stage) -> None:
    [figures] = stage.measure("relay")
    assert figures.values[keys.MEDIAN_AT_1] == 0.5
    assert figures.values[keys.ADDED_AT_1] == pytest.approx(0.47)


def test_a_peer_that_cannot_take_1000_connections_has_a_remark_and_all_else(stage: Stage) -> None:
    def rate(cell: tuple[str, int], seconds: int) -> Rate:
        if cell[1] == 1000:
            raise Failed("no good answer, 1,000 errors")
        return Rate(100.0, 0.5, 1.0, 0)

    stage.rate = rate
    [figures] = stage.measure("example", rounds=2)
    key = keys.rate_key("13 B", 1000)
    assert (key in figures.values, figures.remarks[key]) == (False, "no good answer, 1,000 errors")
    assert figures.rounds[key] == [None, None]
    assert all(keys.rate_key(*cell) in figures.values for cell in keys.CELLS if cell[1] < 1000)


def test_a_server_that_ends_under_load_is_the_reason_and_the_next_round_has_another(stage: Stage) -> None:
    deaths = iter(["the server ended with code 1: out of files"])

    def rate(cell: tuple[str, int], seconds: int) -> Rate:
        if cell == ("13 B", 256) and seconds > 1 and (death := next(deaths, "")):
            stage.server.ended = death
            raise Failed("wrk: unable to connect")
        return Rate(100.0, 0.5, 1.0, 0)

    stage.rate = rate
    [figures] = stage.measure("relay", rounds=2)
    for connections in (256, 1000):
        key = keys.rate_key("13 B", connections)
        assert figures.rounds[key] == [None, 100.0]
        assert figures.remarks[key] == "1 of 2 rounds gave no figure: the server ended with code 1: out of files"


def test_a_peer_that_never_starts_has_the_reason_at_every_figure(stage: Stage) -> None:
    def refuse(peer: str) -> None:
        if peer == "example":
            raise Failed("no answer within 60 s of its start")

    stage.refuse_start = refuse
    relay, example = stage.measure("relay", "example")
    assert keys.LEFT_OUT in relay.remarks.values()
    assert example.values == {}
    shown = [keys.rate_key("13 B", 1000), keys.MEDIAN_AT_1, keys.ADDED_AT_1, keys.DOWNLOAD, keys.FIRST_EVENT]
    for key in (*shown, keys.IDLE_MEMORY, keys.PEAK_MEMORY):
        assert example.remarks[key] == "no answer within 60 s of its start"


def test_an_origin_that_is_gone_ends_the_run_instead_of_failing_the_peers() -> None:
    gone = StandIn()
    gone.ended = "the server ended with code -9: no output"
    with pytest.raises(OriginEnded, match=r"^the origin is gone, .* code -9: no output$"):
        Origin(9000, servers=(cast(Server, gone),)).require_alive()


def test_what_is_there_without_a_server_is_the_median_of_rounds_too(stage: Stage) -> None:
    medians_at_1, rates_at_32 = iter([0.03, 0.09, 0.02]), iter([100.0, 300.0, 200.0])

    def rate(cell: tuple[str, int], seconds: int) -> Rate:
        return Rate(1.0, next(medians_at_1), 1.0, 0) if cell[1] == 1 else Rate(next(rates_at_32), 9.0, 9.0, 0)

    stage.rate = rate
    ceiling = measure_ceiling(Origin(9000), seconds=2, rounds=3)
    assert (ceiling.p50_ms_at_1, ceiling.per_second, ceiling.down_mb_per_second) == (0.03, 200.0, 400.0)
    assert [what[1][1] for what in stage.done if what[0] == "load"] == [1, 32] * 3


@pytest.mark.parametrize("option", ["--rounds", "--seconds"])
def test_a_run_without_rounds_or_time_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([option, "0"])
    assert f"{option}: at least 1" in capsys.readouterr().err


def test_help_says_how_long_a_run_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "about 40 minutes" in capsys.readouterr().out


def test_shares_are_of_what_is_measured_beside_it_on_one_fresh_server(stage: Stage) -> None:
    stage.knows_keys = True
    [figures] = stage.measure("relay")
    shares = (keys.AUTHORISED_SHARE, keys.SHARE_AT_256, keys.SHARE_AT_1000)
    assert figures.values[keys.AUTHORISED] == 90.0
    assert [figures.values[key] for key in shares] == pytest.approx([0.9, 0.97, 0.91])
    assert figures.remarks[keys.AUTHORISED] == "3 errors or waits over 2 s besides"
    phases = ("phases", ("/relay/origin/13", "/relay/guarded/13"), ("Relay-Key", "rk_key"), 9)
    in_turn = ("in turn", "http://127.0.0.1:8000/relay/origin/13", (32, 256, 1000), 10)
    begun = stage.done.index(phases)
    assert stage.done[begun - 1 : begun + 2] == [("start", "relay"), phases, in_turn]


def test_a_round_of_long_bodies_is_the_median_of_five_and_its_share_its_own(stage: Stage) -> None:
    downs = iter([9.0, 0.5, 0.4, 0.5, 4.0, 0.5, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0])  # each round's first is to warm up
    stage.transfer = lambda path: next(downs) if path.endswith("200m") else 1.0
    [figures] = stage.measure("relay", rounds=2)
    assert figures.rounds[keys.DOWNLOAD] == [400.0, 200.0]
    assert figures.rounds[keys.UPLOAD] == [200.0, 200.0]
    assert figures.rounds[keys.UPLOAD_SHARE] == [0.5, 1.0]


def test_an_upload_that_fails_leaves_the_download_its_figure(stage: Stage) -> None:
    def transfer(path: str) -> float:
        if path.endswith("sink"):
            raise Failed("answered with 413 Content Too Large")
        return 0.5

    stage.transfer = transfer
    [figures] = stage.measure("example")
    assert figures.values[keys.DOWNLOAD] == 400.0
    assert figures.remarks[keys.UPLOAD] == "answered with 413 Content Too Large"
    assert figures.remarks[keys.UPLOAD_SHARE] == "one of the two has no figure"
    assert [what[1] for what in stage.done if what[0] == "transfer"].count("/relay/origin/sink") == 1


def test_the_relay_and_who_is_nearest_are_measured_beside_each_other(stage: Stage) -> None:
    ours = iter([1.0, 60.0, 40.0, 50.0, 70.0, 60.0, 50.0])  # the first pair is to warm up

    def rate(cell: tuple[str, int], seconds: int) -> Rate:
        loads = [what for what in stage.done if what[0] == "load"]
        if seconds != SECONDS_OF_PAIRS or len(loads) % 2 == 0:
            return Rate(20.0, 0.63, 1.0, 1)
        return Rate(next(ours) if cell[1] == 32 else 20.0, 0.43, 1.0, 0)

    stage.rate = rate
    relay = Turns(Peer("relay", lambda: "1", cast(Any, None), "a note"))
    nearest = Turns(Peer("asgiproxy", lambda: "1", cast(Any, None), "a note"))
    _take_turn_together([relay, nearest], 1, stage.plan())
    assert stage.done[:2] == [("start", "relay"), ("start", "asgiproxy")]
    relay.beside.settle(relay.figures)
    assert relay.figures.values[keys.RATE_BESIDE] == 2.75
    assert relay.figures.values[keys.ADDED_BESIDE] == pytest.approx(1.5)
    assert relay.figures.remarks[keys.RATE_BESIDE] == "14 errors or waits over 2 s besides"


def test_without_the_nearest_nothing_is_told_of_the_two(stage: Stage) -> None:
    [figures] = stage.measure("relay")
    assert figures.remarks[keys.RATE_BESIDE] == figures.remarks[keys.ADDED_BESIDE] == keys.LEFT_OUT
    verdicts = {verdict.goal.text: verdict.met for verdict in judge({"relay": figures})}
    assert verdicts["13 B at 32 connections: asgiproxy's rate"] is None


def test_peers_without_keys_have_no_figure_and_no_remark_for_it(stage: Stage) -> None:
    [figures] = stage.measure("example")
    shares = {keys.AUTHORISED, keys.AUTHORISED_SHARE, keys.SHARE_AT_256, keys.SHARE_AT_1000}
    assert not shares & (figures.values.keys() | figures.remarks.keys())
