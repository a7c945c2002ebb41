"""wrk: one thread, a number of connections, one URL. Rates count good answers only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Failed

SCRIPT = Path(__file__).with_name("wrk.lua")
MARK = "FIGURES "


@dataclass(frozen=True, slots=True)
class Rate:
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    """Answers of 400 and above, lost connections, and waits beyond wrk's 2 s."""


def put_load(url: str, *, connections: int, seconds: int, header: str = "") -> Rate:
    """Run wrk. `header` is a line of its own in each request. Raises Failed when it cannot."""
    command = [find_tool("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT), url]
    if header:
        command[1:1] = ["-H", header]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    except subprocess.TimeoutExpired:
        raise Failed("wrk did not end") from None
    if ended.returncode:
        raise Failed(f"wrk: {(ended.stderr or ended.stdout).strip().splitlines()[-1]}")
    return parse_wrk(ended.stdout)


def parse_wrk(output: str) -> Rate:
    """Read the line that `wrk.lua` printed. Raises Failed when nothing was answered at all."""
    line = next((line for line in output.splitlines() if line.startswith(MARK)), None)
    if line is None:
        raise Failed("wrk printed no figures")
    figures = json.loads(line.removeprefix(MARK))
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


def find_tool(name: str) -> str:
    """The path of nginx or wrk; Debian keeps nginx where only root looks. Raises Failed when it is not installed."""
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Failed(f"{name} is not installed: on Debian, apt-get install nginx-light wrk")
    return found
