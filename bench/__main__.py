"""The command line: what to measure, then the report on stdout and the figures as JSON. Progress goes to stderr."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from bench.goals import judge
from bench.load import find_tool
from bench.origin import OriginEnded, running_origin
from bench.peers import PEERS
from bench.processes import Failed, interrupt_when_told_to_end, on_core, raise_open_files_limit, two_cores
from bench.relays import PROJECT
from bench.report import as_data, as_text
from bench.run import Plan, measure, measure_ceiling

QUICK_PEERS = ["relay", "example", "nginx"]
NEEDED_DISK_BYTES = 6_000_000_000
NEEDED_OPEN_FILES = 8192
BUSY_LOAD = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    interrupt_when_told_to_end()
    try:
        find_tool("nginx"), find_tool("wrk")
        with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
            return _bench(options, Path(folder))
    except (Failed, OriginEnded) as failure:
        print(failure, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _bench(options: argparse.Namespace, folder: Path) -> int:
    server_core, load_core = two_cores()
    facts = _facts(server_core, load_core, options)
    open_files = raise_open_files_limit()
    if open_files < NEEDED_OPEN_FILES:
        raise Failed(f"{open_files} open files are allowed and {NEEDED_OPEN_FILES} are needed: raise `ulimit -Hn`")
    if options.memory and shutil.disk_usage(folder).free < NEEDED_DISK_BYTES:
        raise Failed(
            f"{folder.parent} has less than 6 GB free, which nginx may need: set TMPDIR, or give --skip-memory"
        )
    # Everything of this process and all that it starts, but for the servers measured.
    with on_core(load_core), running_origin(folder / "origin", core=load_core) as origin:
        ceiling = measure_ceiling(origin, seconds=options.seconds, rounds=options.rounds)
        facts["without a server between"] = str(ceiling)
        plan = Plan(
            seconds=options.seconds,
            rounds=options.rounds,
            memory=options.memory,
            folder=folder,
            origin=origin,
            ceiling=ceiling,
            relay_python=options.relay_python,
            server_core=server_core,
        )
        run = measure([peer for peer in PEERS if peer.name in options.only], plan)
    verdicts = judge({figures.peer: figures for figures in run})
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(as_data(run, verdicts, facts), indent=2) + "\n")
    print(as_text(run, verdicts, facts))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure the relay beside its peers. All of it takes about 40 minutes."
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="of all rates and long bodies (3): the median counts")
    parser.add_argument("--seconds", type=int, metavar="N", help="wrk's time for each cell of a round (3)")
    parser.add_argument("--only", metavar="PEER,...", help=f"of {','.join(names)}")
    parser.add_argument(
        "--skip-memory", action="store_true", help="leave out what takes 2 GB or 1,000 streams: about 30 minutes"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{','.join(QUICK_PEERS)} in one round of 1 s a cell, without memory: about 2 minutes, rough",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", default=PROJECT / "var" / "bench.json")
    parser.add_argument(
        "--relay-python", type=Path, metavar="PATH", default=Path(sys.executable), help="the one with the relay's lock"
    )
    options = parser.parse_args(arguments)
    options.only = options.only.split(",") if options.only else QUICK_PEERS if options.quick else names
    if unknown := set(options.only) - set(names):
        parser.error(f"--only {','.join(sorted(unknown))}: choose of {','.join(names)}")
    for name, quick, usual in (("seconds", 1, 3), ("rounds", 1, 3)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
        if getattr(options, name) < 1:
            parser.error(f"--{name}: at least 1")
    options.memory = not (options.skip_memory or options.quick)
    options.relay_python = Path(os.path.abspath(options.relay_python))  # noqa: PTH100 - resolving would leave the venv
    options.json = options.json.resolve()
    return options


def _facts(server_core: int | None, load_core: int | None, options: argparse.Namespace) -> dict[str, str]:
    said = subprocess.run([find_tool("wrk"), "-v"], capture_output=True, text=True, check=False).stdout
    load = os.getloadavg()[0]
    pinned = server_core is not None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "wrk": said.splitlines()[0].split("[")[0].strip() if said else "?",
        "cores": f"server on {server_core}, load and origin on {load_core}"
        if pinned
        else "not pinned: ratios mean little",
        "load before": f"{load:.2f}"
        + (": the machine was not quiet, the figures are rough" if load > BUSY_LOAD else ""),
        "rounds": f"{options.rounds} of {options.seconds} s a cell"
        + (" (quick: the figures are rough)" if options.quick else ""),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
