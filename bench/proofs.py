"""How the proof tools run and end: what was found on stdout, then what is wrong with it, and the exit code."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bench.processes import Failed, interrupt_when_told_to_end


class Proof(Protocol):
    """What was found; as text it is what a person reads."""

    @property
    def problems(self) -> list[str]:
        """What is wrong, a line each; empty when nothing is."""


def prove(name: str, find: Callable[[Path], Proof]) -> int:
    """0 when all is well, 1 when something is wrong, 2 when it could not be found out, 130 when stopped. `find` gets a
    folder; what it started it ends, also on ^C and SIGTERM."""
    interrupt_when_told_to_end()
    try:
        with tempfile.TemporaryDirectory(prefix=f"relay-{name}-") as folder:
            proof = find(Path(folder))
    except Failed as failure:
        say(str(failure))
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130
    print(proof)
    problems = proof.problems
    print("\n".join(["NOT CLEAN:", *problems]) if problems else "CLEAN: nothing was lost, nothing leaked.", flush=True)
    return 1 if problems else 0


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)
