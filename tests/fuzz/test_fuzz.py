"""Runs the fuzz target for `RELAY_TEST_FUZZ_SECONDS`, or one: does it work? CI fuzzes for a minute (`make fuzz`)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = int(os.environ.get("RELAY_TEST_FUZZ_SECONDS") or 1)
ROOM_SECONDS = 90
"""To start, to read the corpus, and to end."""


@pytest.mark.timeout(SECONDS + ROOM_SECONDS + 10)
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this platform")
def test_no_input_makes_the_reading_of_answers_fail_in_another_way_than_it_may(tmp_path: Path) -> None:
    fuzzing = subprocess.run(
        [
            *(sys.executable, "-X", "dev", "-W", "error", "-m", "tests.fuzz.fuzz_answers"),
            *(f"-max_total_time={SECONDS}", "-print_final_stats=1", str(tmp_path / "corpus")),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SECONDS + ROOM_SECONDS,
    )
    assert fuzzing.returncode == 0, fuzzing.stdout
    assert "stat::number_of_executed_units" in fuzzing.stdout, fuzzing.stdout
