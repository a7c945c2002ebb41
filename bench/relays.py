"""A relay as an admin sets one up: a data folder of its own, first run, commands, and what serves it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.origin import answers, free_port
from bench.processes import Failed, Server

PROJECT = Path(__file__).resolve().parent.parent
SPARE = 256
"""Exchanges beside those that are held."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where a relay lives and what runs it. Of the shell's environment it has little, so that no setting of it decides;
    `env` is added."""

    folder: Path
    python: Path
    settings: str = "config.settings"
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def own_environment(self) -> dict[str, str]:
        return {
            "RELAY_DATA_DIR": str(self.folder / "data"),
            "DJANGO_SETTINGS_MODULE": self.settings,
            **self.env,
        }

    @property
    def environment(self) -> dict[str, str]:
        return {**bare_environment(self.folder), **self.own_environment}

    def manage(self, *arguments: str) -> str:
        """What `manage.py` prints. Raises Failed with the last it said when it fails."""
        return run([str(self.python), "manage.py", *arguments], env=self.environment)

    def serve_command(self, port: int, *, workers: int) -> list[str]:
        place = ["--bind", f"127.0.0.1:{port}", "--workers", str(workers)]
        return [str(self.python), "manage.py", "serve", *place]


@contextmanager
def serving(relay: Installation, port: int, *, workers: int) -> Iterator[Server]:
    """Serve until the block ends. Raises Failed when it does not start."""
    command = relay.serve_command(port, workers=workers)
    with Server(command, core=None, env=relay.environment, log=relay.folder / "relay.log", cwd=PROJECT) as server:
        server.wait_until(lambda: answers(port, "/readyz"))
        yield server


@contextmanager
def one_worker(folder: Path, origin_url: str, *, held: int) -> Iterator[tuple[Server, int]]:
    """A relay of one worker with one open upstream, `/relay/origin`, that may hold so many exchanges at once. Gives its
    port, too."""
    env = {"RELAY_ACCESS_LOG": "off"}
    relay = Installation(
        folder,
        python=Path(sys.executable),
        env=env | dict.fromkeys(("RELAY_MAX_CONNECTIONS", "RELAY_MAX_CONNECTIONS_PER_PEER"), str(held + SPARE)),
    )
    bounds = [f"{field}={held + SPARE}" for field in ("max_concurrent", "max_connections")]
    relay.manage("first_run")
    place = [origin_url, "--access", "anyone", "--allow-network", "127.0.0.0/8"]
    relay.manage("upstreams", "add", "origin", *place, *(word for bound in bounds for word in ("--set", bound)))
    port = free_port()
    with serving(relay, port, workers=1) as server:
        yield server, port


def bare_environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "LANG": "C.UTF-8"}


def run(command: list[str], *, env: Mapping[str, str]) -> str:
    try:
        ended = subprocess.run(command, env=dict(env), cwd=PROJECT, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Failed(f"{command[0]} cannot be run: {error.strerror}") from None
    if ended.returncode:
        lines = (ended.stderr or ended.stdout).strip().splitlines()
        raise Failed(f"{' '.join(command[1:3])}: {lines[-1] if lines else f'exit code {ended.returncode}'}")
    return ended.stdout


def run_module(name: str, *arguments: str, folder: Path, env: Mapping[str, str] | None = None) -> Server:
    """`python -m bench.NAME` in a process of its own."""
    command = [sys.executable, "-m", f"bench.{name}", *arguments]
    log = folder / f"{name}.log"
    log.unlink(missing_ok=True)
    return Server(command, core=None, env=env or bare_environment(folder), log=log, cwd=PROJECT)


def told_url(origin: Server) -> str:
    """Where an origin is whose first line tells its port."""
    origin.wait_until(lambda: bool(origin.last_line()))
    return f"http://127.0.0.1:{json.loads(origin.last_line())['port']}"
