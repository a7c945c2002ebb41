"""What the relay is to reach, judged from the figures of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench import figures as keys
from bench.figures import Figures, Missing


@dataclass(frozen=True, slots=True)
class Goal:
    """`at_least` or `below`, whichever is given, is the bound of `figure`, which raises Missing."""

    text: str
    unit: str
    figure: Callable[[Mapping[str, Figures]], float]
    at_least: float | None = None
    below: float | None = None

    @property
    def bound(self) -> str:
        return (
            f"at least {self.at_least:g}{self.unit}"
            if self.at_least is not None
            else f"below {self.below:g}{self.unit}"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    goal: Goal
    figure: float | None
    met: bool | None
    """None when it could not be told. What the relay itself could not do is not met."""
    reason: str = ""


def judge(run: Mapping[str, Figures]) -> list[Verdict]:
    """`run`: the peers' figures by name."""
    return [_judge(goal, run) for goal in GOALS]


def _judge(goal: Goal, run: Mapping[str, Figures]) -> Verdict:
    try:
        figure = goal.figure(run)
    except Missing as missing:
        failed = missing.peer == "relay" and missing.reason != keys.LEFT_OUT
        return Verdict(goal, None, False if failed else None, str(missing))
    met = (goal.at_least is None or figure >= goal.at_least) and (goal.below is None or figure < goal.below)
    return Verdict(goal, figure, met)


def _figure(run: Mapping[str, Figures], peer: str, key: str) -> float:
    if peer not in run:
        raise Missing(peer, keys.LEFT_OUT)
    return run[peer][key]


def _against(peer: str, key: str) -> Callable[[Mapping[str, Figures]], float]:
    return lambda run: _figure(run, "relay", key) / _figure(run, peer, key)


def _own(key: str) -> Callable[[Mapping[str, Figures]], float]:
    return lambda run: _figure(run, "relay", key)


def _per_idle_stream(run: Mapping[str, Figures]) -> float:
    opened = _figure(run, "relay", keys.STREAMS_OPEN)
    if opened < keys.IDLE_STREAMS:
        raise Missing("relay", f"only {opened:,.0f} of {keys.IDLE_STREAMS:,} were open at once")
    return _figure(run, "relay", keys.PER_STREAM)


_SMALL_AT_32 = keys.rate_key("13 B", 32)
_LARGE_AT_32 = keys.rate_key("64 KiB", 32)

GOALS = (
    Goal("13 B at 32 connections: the example's rate", "x", _against("example", _SMALL_AT_32), at_least=14),
    Goal("13 B at 32 connections: asgiproxy's rate", "x", _own(keys.RATE_BESIDE), at_least=1),
    Goal("64 KiB at 32 connections: the example's rate", "x", _against("example", _LARGE_AT_32), at_least=9),
    Goal("13 B at 256 connections: own rate at 32", "x", _own(keys.SHARE_AT_256), at_least=0.95),
    Goal("13 B at 1,000 connections: own rate at 32", "x", _own(keys.SHARE_AT_1000), at_least=0.9),
    Goal(
        "13 B at 32 connections with a key and an injected header: own rate without",
        "x",
        _own(keys.AUTHORISED_SHARE),
        at_least=round(1 / 1.1, 3),  # at most a tenth over the time of one without
    ),
    Goal("200 MB down: the example's speed", "x", _against("example", keys.DOWNLOAD), at_least=3),
    Goal("200 MB down: nginx's speed with default settings", "x", _against("nginx", keys.DOWNLOAD), at_least=1.2),
    Goal("200 MB up: own speed down", "x", _own(keys.UPLOAD_SHARE), at_least=0.7),
    Goal(
        "median latency added at 1 connection: asgiproxy's divided by ours",
        "x",
        _own(keys.ADDED_BESIDE),
        at_least=1,
    ),
    Goal("memory growth over 2 GB down to a slow reader", " MiB", _own(keys.GROWTH_DOWN), below=24),
    Goal("memory growth over 2 GB up from a fast writer", " MiB", _own(keys.GROWTH_UP), below=24),
    Goal("each of 1,000 idle event streams", " KiB", _per_idle_stream, below=25),
)
