"""wrk: one thread, a number of connections, one URL or two in turn. Rates count good answers only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import Failed

SCRIPT = Path(__file__).with_name("wrk.lua")
PHASES_SCRIPT = Path(__file__).with_name("phases.lua")
MARK = "FIGURES "
PHASES_MARK = "PHASES "


@dataclass(frozen=True, slots=True)
class Rate:
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    """Answers of 400 and above, lost connections, and waits beyond wrk's 2 s."""


@dataclass(frozen=True, slots=True)
class Phases:
    """Requests per second of either kind."""

    first: float
    second: float
    errors: int


def put_load(url: str, *, connections: int, seconds: int, header: str = "") -> Rate:
    """Run wrk. `header` is a line of its own in each request. Raises Failed when it cannot."""
    options = ["-H", header] if header else []
    return parse_wrk(_run_wrk(SCRIPT, url, connections=connections, seconds=seconds, options=options))


def put_load_in_phases(
    place: str, paths: tuple[str, str], *, header: tuple[str, str], connections: int, seconds: int
) -> Phases:
    """Run wrk with two kinds of requests in turn on the same connections: for the one path, and for the other with
    `header`. A phase is a fraction of a second, so what else the machine does falls on both. Raises Failed when it
    cannot."""
    arguments = [*paths, *header]
    return parse_phases(_run_wrk(PHASES_SCRIPT, place, connections=connections, seconds=seconds, arguments=arguments))


def _run_wrk(
    script: Path,
    url: str,
    *,
    connections: int,
    seconds: int,
    options: Sequence[str] = (),
    arguments: Sequence[str] = (),
) -> str:
    load = [f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
    command = [find_tool("wrk"), "-t1", *options, *load, url, *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    except subprocess.TimeoutExpired:
        raise Failed("wrk did not end") from None
    if ended.returncode:
        raise Failed(f"wrk: {(ended.stderr or ended.stdout).strip().splitlines()[-1]}")
    return ended.stdout


def parse_phases(output: str) -> Phases:
    """Read the line that `phases.lua` printed. Raises Failed when there was no whole phase of each kind, and for
    answers of 400 and above, of which nobody knows to which kind they were."""
    figures = _figures(output, PHASES_MARK)
    if figures["status"]:
        raise Failed(f"{figures['status']:,} answers were errors")
    if not all(figures["requests"]):
        raise Failed("no whole phase of each kind in the time of the cell")
    first, second = (
        requests / micros * 1e6 for requests, micros in zip(figures["requests"], figures["micros"], strict=True)
    )
    return Phases(first, second, figures["errors"])


def parse_wrk(output: str) -> Rate:
    """Read the line that `wrk.lua` printed. Raises Failed when nothing was answered at all."""
    figures = _figures(output, MARK)
    good = figures["requests"] - figures["status"]
    errors = sum(figures[kind] for kind in ("connect", "read", "write", "status", "timeout"))
    if good <= 0:
        raise Failed(f"no good answer, {errors:,} errors" if errors else "no answer in the time of the cell")
    return Rate(
        per_second=good / (figures["duration"] / 1e6),
        p50_ms=figures["p50"] / 1e3,
        p99_ms=figures["p99"] / 1e3,
        errors=errors,
    )


def _figures(output: str, mark: str) -> dict[str, Any]:
    line = next((line for line in output.splitlines() if line.startswith(mark)), None)
    if line is None:
        raise Failed("wrk printed no figures")
    figures: dict[str, Any] = json.loads(line.removeprefix(mark))
    return figures


def find_tool(name: str) -> str:
    """The path of nginx or wrk; Debian keeps nginx where only root looks. Raises Failed when it is not installed."""
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Failed(f"{name} is not installed: on Debian, apt-get install nginx-light wrk")
    return found
