"""A profile is summed up by whose work each sample is."""

from __future__ import annotations

import pytest

from bench.shares import OTHER, SHARES, shares

PROFILE = """\
main (manage.py:1);run (asyncio/runners.py:118);send (relay/serving/cycle.py:9) 30
main (manage.py:1);run (asyncio/runners.py:118);send (relay/serving/cycle.py:12);feed (relay/upstreams/answers.py:5) 40
main (manage.py:1);run (asyncio/runners.py:118) 20
main (manage.py:1);strange (elsewhere.py:1) 10
Thread._bootstrap (threading.py:1002);Thread.run (threading.py:982);_worker (concurrent/futures/thread.py:81) 900
"""


def test_a_sample_counts_for_the_function_that_ran() -> None:
    server, engine, loop = SHARES[2][0], SHARES[4][0], SHARES[7][0]
    assert shares(PROFILE.splitlines()) == {engine: 0.4, server: 0.3, loop: 0.2, OTHER: 0.1}


def test_nothing_recorded_is_no_shares() -> None:
    assert shares([]) == {}


@pytest.mark.parametrize("frame", ["", "<native>", "(no file)"])
def test_a_frame_of_another_form_is_other(frame: str) -> None:
    assert shares([f"{frame} 3"]) == {OTHER: 1.0}
