"""What may be sent again, how often in all, and how far apart: no request twice by mistake, no flood of retries."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.retries import IDEMPOTENT_METHODS, PAUSE_CEILINGS, Budget, may_repeat, pause_seconds

YES_OR_NO = (False, True)
BELOW_ONE = 1 - 2**-53
"""The largest number that a draw can give."""

# Method, has a body, replayable, begun, request sent, answer begun: may it be sent again?
CASES: list[tuple[str, tuple[str, bool, bool, bool, bool, bool], bool]] = [
    ("a GET that never left", ("GET", False, False, False, False, False), True),
    ("a POST that never left", ("POST", True, False, False, False, False), True),
    ("a POST that never left, its body read from", ("POST", True, False, True, False, False), False),
    ("a POST that never left, its body kept", ("POST", True, True, True, False, False), True),
    ("a PATCH without a body that never left", ("PATCH", False, False, False, False, False), True),
    ("a GET on a connection that died", ("GET", False, False, False, True, False), True),
    ("a GET whose answer broke off", ("GET", False, False, False, True, True), False),
    ("a DELETE that may have arrived", ("DELETE", False, False, False, True, False), True),
    ("a PUT that may have arrived, its body kept", ("PUT", True, True, True, True, False), True),
    ("a PUT that may have arrived, its body gone", ("PUT", True, False, True, True, False), False),
    ("a PUT of which the head left", ("PUT", True, False, False, True, False), False),
    ("a GET with a body that is gone", ("GET", True, False, True, True, False), False),
    ("a POST that may have arrived", ("POST", True, True, True, True, False), False),
    ("a POST without a body that may have arrived", ("POST", False, False, False, True, False), False),
    ("a method in another case is another method", ("get", False, False, False, True, False), False),
    ("a method that nobody knows", ("BREW", False, False, False, True, False), False),
]


def judge(case: tuple[str, bool, bool, bool, bool, bool]) -> bool:
    method, has_body, is_replayable, body_begun, request_sent, response_begun = case
    return may_repeat(
        method=method,
        has_body=has_body,
        is_replayable=is_replayable,
        body_begun=body_begun,
        request_sent=request_sent,
        response_begun=response_begun,
    )


@pytest.mark.parametrize(("case", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_may_be_sent_again(case: tuple[str, bool, bool, bool, bool, bool], verdict: bool) -> None:
    assert judge(case) is verdict


@pytest.mark.parametrize("method", [*sorted(IDEMPOTENT_METHODS), "POST", "PATCH", "CONNECT", "TRACE", "PROPFIND"])
def test_every_case_keeps_three_promises(method: str) -> None:
    """Not twice what counts once, not again what began to be answered, never a body of which a piece is missing."""
    for has_body, is_replayable, body_begun, sent, answered in product(YES_OR_NO, repeat=5):
        if not judge((method, has_body, is_replayable, body_begun, sent, answered)):
            continue
        assert not sent or method in {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}
        assert not (sent and answered)
        assert not (has_body and body_begun and not is_replayable)


def test_ten_first_attempts_pay_for_one_retry_at_a_tenth() -> None:
    budget = Budget(0.1, 0, 1)
    assert [budget.withdraw(5.0), budget.withdraw(5.0)] == [True, False]
    for _ in range(9):
        budget.deposit()
    assert not budget.withdraw(5.0)
    budget.deposit()
    assert [budget.withdraw(5.0), budget.withdraw(5.0)] == [True, False]


def test_some_retries_come_in_by_time_alone() -> None:
    budget = Budget(0, 2, 3)
    assert [budget.withdraw(100.0) for _ in range(4)] == [True, True, True, False]
    assert not budget.withdraw(100.25)
    assert [budget.withdraw(100.5), budget.withdraw(100.5)] == [True, False]


def test_time_counts_once_whoever_comes_next() -> None:
    budget = Budget(0.5, 2, 3)
    assert [budget.withdraw(100.0) for _ in range(3)] == [True, True, True]
    budget.deposit()
    assert [budget.withdraw(100.25), budget.withdraw(100.25)] == [True, False]
    budget.deposit()
    budget.deposit()
    assert [budget.withdraw(100.75) for _ in range(3)] == [True, True, False]


def test_a_quiet_night_saves_up_no_more_than_the_most() -> None:
    budget = Budget(0.5, 1, 4)
    budget.withdraw(1.0)
    assert [budget.withdraw(100_000.0) for _ in range(5)] == [True, True, True, True, False]
    for _ in range(1000):
        budget.deposit()
    assert [budget.withdraw(100_000.0) for _ in range(5)] == [True, True, True, True, False]


def test_a_budget_is_full_until_it_is_drawn_from_and_when_it_has_all_back() -> None:
    budget = Budget(0.5, 1, 4)
    assert budget.is_full(10.0)
    assert budget.withdraw(10.0)
    assert not budget.is_full(10.0)
    budget.deposit()
    assert not budget.is_full(10.25)
    assert budget.is_full(10.5)


def test_a_budget_of_nothing_allows_nothing() -> None:
    budget = Budget(0, 0, 0)
    budget.deposit()
    assert not budget.withdraw(1000.0)


@given(
    share=st.sampled_from([0.0, 0.1, 0.2, 1.0]),
    per_second=st.sampled_from([0.0, 0.1, 3.0]),
    most=st.sampled_from([1.0, 5.0, 100.0]),
    steps=st.lists(st.tuples(st.booleans(), st.floats(min_value=0, max_value=10)), max_size=100),
)
def test_no_stretch_has_more_retries_than_were_put_in(
    share: float, per_second: float, most: float, steps: list[tuple[bool, float]]
) -> None:
    """Each step: a first attempt or a wish to retry, and the seconds before it. Holds from any moment on."""
    budget, now = Budget(share, per_second, most), 0.0
    told: list[tuple[float, bool, bool]] = []
    for is_first, gap in steps:
        now += gap
        if is_first:
            budget.deposit()
        told.append((now, is_first, not is_first and budget.withdraw(now)))
    for start in range(len(told)):
        firsts = retries = 0
        for moment, is_first, is_retry in told[start:]:
            firsts += is_first
            retries += is_retry
            assert retries <= most + share * firsts + per_second * (moment - told[start][0]) + 1e-6


@given(st.integers(min_value=0, max_value=10_000), st.floats(min_value=0, max_value=BELOW_ONE))
def test_a_pause_is_anything_up_to_its_ceiling(retries_done: int, drawn: float) -> None:
    pause = pause_seconds(retries_done, lambda: drawn)
    assert 0 <= pause < 0.25
    assert pause == drawn * pause_seconds(retries_done, lambda: 1.0)


def test_ceilings_double_from_25_ms_to_250() -> None:
    ceilings = [pause_seconds(retries_done, lambda: 1.0) for retries_done in range(7)]
    assert ceilings == [0.025, 0.05, 0.1, 0.2, 0.25, 0.25, 0.25]
    assert tuple(ceilings[: len(PAUSE_CEILINGS)]) == PAUSE_CEILINGS
