"""A relay as an admin sets one up: a data folder of its own, first run, commands, and what serves it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import Failed

PROJECT = Path(__file__).resolve().parent.parent


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
