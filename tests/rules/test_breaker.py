"""The breaker: what opens it, what closes it again, what says nothing, and what holds on every way through."""

from __future__ import annotations

from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.rules.breaker import BUCKETS, JITTER, Breaker, BreakerPolicy, State

START = 1000.0
CLOSED, OPEN, HALF_OPEN = State.CLOSED, State.OPEN, State.HALF_OPEN

DEAD = BreakerPolicy(consecutive_failures=3, failure_rate=None)
"""Opens for failures in a row alone."""
FLAKY = BreakerPolicy(consecutive_failures=0, failure_rate=0.5, window_seconds=10, minimum_exchanges=4)
"""Opens for their share alone."""


def no_jitter() -> float:
    return 0.0


def told(breaker: Breaker, now: float, verdicts: str) -> Breaker:
    """Exchanges one after the other: `+` succeeds, `-` fails, `.` is dropped."""
    for verdict in verdicts:
        is_probe = breaker.begin(now)
        if verdict == "+":
            breaker.succeeded(now, is_probe)
        elif verdict == "-":
            breaker.failed(now, is_probe, no_jitter)
        else:
            breaker.dropped(is_probe)
    return breaker


def opened(policy: BreakerPolicy = DEAD) -> Breaker:
    return told(Breaker(policy), START, "-" * policy.consecutive_failures)


def retry_at(breaker: Breaker) -> float:
    assert breaker.retry_at is not None
    return breaker.retry_at


# What a policy is told, all at one time, and what becomes of the breaker.
VERDICTS: list[tuple[str, BreakerPolicy, str, State]] = [
    ("nothing", DEAD, "", CLOSED),
    ("too few failures in a row", DEAD, "--", CLOSED),
    ("failures in a row", DEAD, "---", OPEN),
    ("failures that a success divides", DEAD, "--+--", CLOSED),
    ("failures in a row after a success", DEAD, "--+---", OPEN),
    ("failures that a dropped exchange does not divide", DEAD, "--.-", OPEN),
    ("dropped exchanges", DEAD, "......", CLOSED),
    ("a single failure where one is enough", BreakerPolicy(consecutive_failures=1), "-", OPEN),
    ("failures with everything off", BreakerPolicy(consecutive_failures=0, failure_rate=None), "-" * 99, CLOSED),
    ("a share of too few exchanges", FLAKY, "---", CLOSED),
    ("a share of just enough", FLAKY, "----", OPEN),
    ("half of them", FLAKY, "+-+-", OPEN),
    ("less than half of them", FLAKY, "+-++-", CLOSED),
    ("a share that the last exchange made count, which succeeded", FLAKY, "---+", CLOSED),
    ("the failure after that", FLAKY, "---+-", OPEN),
    ("a share of which dropped exchanges are no part", FLAKY, "+-..-", CLOSED),
    ("all of them", BreakerPolicy(consecutive_failures=0, failure_rate=1.0, minimum_exchanges=2), "--", OPEN),
    ("all but one", BreakerPolicy(consecutive_failures=0, failure_rate=1.0, minimum_exchanges=2), "+--", CLOSED),
    ("a tenth", BreakerPolicy(consecutive_failures=0, failure_rate=0.1, minimum_exchanges=30), "+" * 27 + "---", OPEN),
]


@pytest.mark.parametrize(
    ("policy", "verdicts", "state"), [case[1:] for case in VERDICTS], ids=[case[0] for case in VERDICTS]
)
def test_what_opens_a_breaker(policy: BreakerPolicy, verdicts: str, state: State) -> None:
    assert told(Breaker(policy), START, verdicts).state(START) is state


# Every event in every state: the state before, what happens, the state at once after.
# `probe` has taken a place; `old` was sent while the breaker was closed, or without leave.
TABLE: list[tuple[State, str, State]] = [
    (CLOSED, "old succeeds", CLOSED),
    (CLOSED, "old fails", CLOSED),
    (CLOSED, "old fails once too often", OPEN),
    (CLOSED, "old dropped", CLOSED),
    (CLOSED, "probe succeeds", CLOSED),
    (CLOSED, "probe fails", CLOSED),
    (CLOSED, "probe fails once too often", OPEN),
    (CLOSED, "probe dropped", CLOSED),
    (CLOSED, "time", CLOSED),
    (OPEN, "old succeeds", OPEN),
    (OPEN, "old fails", OPEN),
    (OPEN, "old dropped", OPEN),
    (OPEN, "probe succeeds", OPEN),
    (OPEN, "probe fails", OPEN),
    (OPEN, "probe dropped", OPEN),
    (OPEN, "time", HALF_OPEN),
    (HALF_OPEN, "old succeeds", HALF_OPEN),
    (HALF_OPEN, "old fails", HALF_OPEN),
    (HALF_OPEN, "old dropped", HALF_OPEN),
    (HALF_OPEN, "probe succeeds", HALF_OPEN),
    (HALF_OPEN, "probe succeeds, the last one asked for", CLOSED),
    (HALF_OPEN, "probe fails", OPEN),
    (HALF_OPEN, "probe dropped", HALF_OPEN),
    (HALF_OPEN, "time", HALF_OPEN),
]

PROBED = BreakerPolicy(consecutive_failures=3, failure_rate=None, open_seconds=5, probes=4, probes_to_close=2)


def standing_in(state: State) -> tuple[Breaker, float]:
    """A breaker with a probe in flight, and the time."""
    breaker = opened(PROBED)
    now = retry_at(breaker)
    assert breaker.begin(now)
    if state is CLOSED:
        told(breaker, now, "++")
    elif state is OPEN:
        told(breaker, now, "-")
    assert breaker.state(now) is state
    return breaker, now


@pytest.mark.parametrize(("before", "event", "after"), TABLE, ids=[f"{row[0]}: {row[1]}" for row in TABLE])
def test_what_leads_where(before: State, event: str, after: State) -> None:
    breaker, now = standing_in(before)
    is_probe = event.startswith("probe")
    if event == "time":
        now += 60 * (1 + JITTER)
    elif "dropped" in event:
        breaker.dropped(is_probe)
    elif "succeeds" in event:
        if "last" in event:
            told(breaker, now, "+")
        breaker.succeeded(now, is_probe)
    else:
        if "too often" in event:
            told(breaker, now, "--")
        breaker.failed(now, is_probe, no_jitter)
    assert breaker.state(now) is after


def test_the_table_names_every_event_in_every_state() -> None:
    events = {event for _, event, _ in TABLE if "often" not in event and "last" not in event}
    assert {(before, event) for before, event, _ in TABLE} >= {(state, event) for state in State for event in events}


@pytest.mark.parametrize("verdict", ["+", "-", "."])
def test_what_was_sent_without_leave_changes_nothing(verdict: str) -> None:
    breaker = opened()
    before = retry_at(breaker)
    assert not breaker.may_pass(START)
    told(breaker, START, verdict * 50)
    assert (breaker.state(START), breaker.retry_at) == (OPEN, before)


# Passing.


def test_a_closed_breaker_lets_everything_pass_and_probes_nothing() -> None:
    breaker = Breaker(DEAD)
    assert [breaker.begin(START) for _ in range(50)] == [False] * 50
    assert breaker.may_pass(START)
    assert breaker.retry_at is None


def test_nothing_passes_until_it_is_time_and_then_so_many_probes() -> None:
    breaker = opened(BreakerPolicy(consecutive_failures=1, open_seconds=5, probes=2))
    assert retry_at(breaker) == START + 5
    assert not breaker.may_pass(START + 4.999)
    assert not breaker.begin(START + 4.999)
    assert [(breaker.may_pass(START + 5), breaker.begin(START + 5)) for _ in range(4)] == [
        (True, True),
        (True, True),
        (False, False),
        (False, False),
    ]


@pytest.mark.parametrize("end", ["succeeded", "failed", "dropped"])
def test_a_probe_that_ends_leaves_its_place(end: str) -> None:
    breaker = opened(BreakerPolicy(consecutive_failures=1, open_seconds=5, probes=1, probes_to_close=9))
    now = retry_at(breaker)
    assert breaker.begin(now)
    assert not breaker.may_pass(now)
    if end == "succeeded":
        breaker.succeeded(now, True)
    elif end == "failed":
        breaker.failed(now, True, no_jitter)
        now = retry_at(breaker)
    else:
        breaker.dropped(True)
    assert breaker.begin(now)
    assert not breaker.may_pass(now)


def test_an_exchange_that_is_no_probe_leaves_no_place() -> None:
    breaker = opened(BreakerPolicy(consecutive_failures=1, open_seconds=5, probes=1))
    now = retry_at(breaker)
    assert breaker.begin(now)
    breaker.succeeded(now, False)
    breaker.failed(now, False, no_jitter)
    breaker.dropped(False)
    assert not breaker.may_pass(now)


def test_successes_are_counted_in_a_row_and_a_failure_between_begins_anew() -> None:
    breaker = opened(BreakerPolicy(consecutive_failures=1, probes_to_close=3))
    told(breaker, retry_at(breaker), "++-")
    now = retry_at(breaker)
    assert told(breaker, now, "++").state(now) is HALF_OPEN
    assert told(breaker, now, "+").state(now) is CLOSED


def test_a_probe_of_an_earlier_time_half_open_keeps_its_place() -> None:
    breaker = opened(BreakerPolicy(consecutive_failures=1, probes=2))
    now = retry_at(breaker)
    assert [breaker.begin(now), breaker.begin(now)] == [True, True]
    breaker.failed(now, True, no_jitter)
    now = retry_at(breaker)
    assert [breaker.begin(now), breaker.begin(now)] == [True, False]


# How long.


def test_each_probe_that_fails_doubles_the_open_time_up_to_the_longest() -> None:
    breaker, now, lengths = opened(), START, []
    for _ in range(6):
        lengths.append(retry_at(breaker) - now)
        now = retry_at(breaker)
        told(breaker, now, "-")
    assert lengths == [5, 10, 20, 40, 60, 60]


@pytest.mark.parametrize(("closed_for", "open_seconds"), [(0.0, 20.0), (59.0, 20.0), (60.0, 5.0), (1e9, 5.0)])
def test_the_open_time_begins_anew_once_it_was_closed_for_the_longest(closed_for: float, open_seconds: float) -> None:
    breaker = opened()
    for _ in range(2):
        told(breaker, retry_at(breaker), "-")
    now = retry_at(breaker)
    assert told(breaker, now, "++").state(now) is CLOSED
    now += closed_for
    assert retry_at(told(breaker, now, "---")) - now == open_seconds


def test_an_open_time_above_the_longest_is_the_longest() -> None:
    assert retry_at(opened(BreakerPolicy(consecutive_failures=1, open_seconds=99))) == START + 60


@pytest.mark.parametrize(("drawn", "longer"), [(0.0, 0.0), (0.5, 0.25), (1.0, 0.5)])
def test_a_draw_makes_it_up_to_a_tenth_longer(drawn: float, longer: float) -> None:
    breaker = Breaker(BreakerPolicy(consecutive_failures=1, open_seconds=5))
    breaker.failed(START, False, lambda: drawn)
    assert retry_at(breaker) == pytest.approx(START + 5 + longer)
    now = retry_at(breaker)
    breaker.failed(now, breaker.begin(now), lambda: drawn)
    assert retry_at(breaker) == pytest.approx(now + 2 * (5 + longer))


def test_only_what_opens_it_draws() -> None:
    def no_draw() -> float:
        raise AssertionError

    breaker = Breaker(DEAD)
    breaker.failed(START, False, no_draw)
    breaker.failed(START, False, no_draw)
    breaker.failed(START, False, no_jitter)
    breaker.failed(START, False, no_draw)
    assert breaker.state(START) is OPEN


# The window.


def test_what_is_older_than_the_window_no_longer_counts() -> None:
    breaker = told(Breaker(FLAKY), START, "---")
    assert told(breaker, START + 10, "-").state(START + 10) is CLOSED
    assert told(breaker, START + 19, "--").state(START + 19) is CLOSED
    assert told(breaker, START + 19, "-").state(START + 19) is OPEN


@pytest.mark.parametrize("leap", [10.0, 1e4, 1e9, 1e15])
def test_after_a_leap_of_time_the_window_is_empty(leap: float) -> None:
    breaker = told(told(Breaker(FLAKY), START, "---"), START + leap, "+++")
    assert told(breaker, START + leap, "--").state(START + leap) is CLOSED
    assert told(breaker, START + leap, "-").state(START + leap) is OPEN


def test_a_moment_that_is_told_late_counts_as_now() -> None:
    breaker = told(told(Breaker(FLAKY), START, "-"), START - 3, "--")
    assert told(breaker, START, "-").state(START) is OPEN


def test_closing_forgets_what_was_counted() -> None:
    for policy, failures in ((DEAD, "---"), (FLAKY, "----")):
        breaker = told(Breaker(policy), START, failures)
        now = retry_at(breaker)
        assert told(breaker, now, "++" + failures[1:]).state(now) is CLOSED
        assert told(breaker, now, "-").state(now) is OPEN


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.9, 1.0, 3.0, 9.5, 40.0])), min_size=1, max_size=80),
    st.sampled_from([0.2, 0.5, 0.9]),
)
def test_the_share_is_of_what_came_in_the_last_buckets(exchanges: list[tuple[bool, float]], rate: float) -> None:
    breaker = Breaker(BreakerPolicy(0, rate, window_seconds=10, minimum_exchanges=4))
    now, seen = START, []
    for succeeds, gap in exchanges:
        now += gap
        seen.append((int(now), not succeeds))
        told(breaker, now, "+" if succeeds else "-")
        counted = [failed for second, failed in seen if second > int(now) - BUCKETS]
        if not succeeds and len(counted) >= 4 and sum(counted) / len(counted) >= rate:
            assert breaker.state(now) is OPEN
            return
        assert breaker.state(now) is CLOSED


# The policy.


@pytest.mark.parametrize("wrong", [{"probes": 0}, {"probes_to_close": 0}, {"window_seconds": 0.0}])
def test_a_policy_by_which_it_could_not_close_or_count_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"probe to close|window of no time"):
        BreakerPolicy(**wrong)


def test_what_holds_where_nobody_chose() -> None:
    policy = BreakerPolicy()
    assert (policy.consecutive_failures, policy.failure_rate) == (5, 0.5)
    assert (policy.window_seconds, policy.minimum_exchanges) == (10.0, 20)
    assert (policy.open_seconds, policy.longest_open_seconds) == (5.0, 60.0)
    assert (policy.probes, policy.probes_to_close) == (1, 2)


def test_another_policy_keeps_what_was_counted() -> None:
    breaker = told(Breaker(BreakerPolicy(consecutive_failures=9, failure_rate=None)), START, "--")
    breaker.retune(DEAD)
    assert told(breaker, START, "-").state(START) is OPEN
    breaker = told(Breaker(FLAKY), START, "---")
    breaker.retune(BreakerPolicy(consecutive_failures=0, failure_rate=0.5, window_seconds=10, minimum_exchanges=4))
    assert told(breaker, START, "-").state(START) is OPEN


def test_a_window_of_another_length_begins_empty() -> None:
    breaker = told(Breaker(FLAKY), START, "---")
    breaker.retune(BreakerPolicy(consecutive_failures=0, failure_rate=0.5, window_seconds=20, minimum_exchanges=4))
    assert told(breaker, START, "---").state(START) is CLOSED
    assert told(breaker, START + 15, "-").state(START + 15) is OPEN


def test_what_is_open_stays_open_as_long_as_it_was_to() -> None:
    breaker = opened()
    breaker.retune(BreakerPolicy(consecutive_failures=0, failure_rate=None, open_seconds=1, probes_to_close=1))
    assert (breaker.state(START + 4), breaker.state(START + 5)) == (OPEN, HALF_OPEN)
    assert told(breaker, START + 5, "+").state(START + 5) is CLOSED


def test_another_open_time_holds_from_the_next_opening() -> None:
    breaker = opened()
    breaker.retune(BreakerPolicy(open_seconds=30, longest_open_seconds=40))
    now = retry_at(breaker)
    assert retry_at(told(breaker, now, "-")) == now + 30
    now = retry_at(breaker)
    assert retry_at(told(breaker, now, "-")) == now + 40


# Every way through.

POLICIES = st.builds(
    BreakerPolicy,
    consecutive_failures=st.integers(0, 4),
    failure_rate=st.sampled_from([None, 0.1, 0.5, 1.0]),
    window_seconds=st.sampled_from([1.0, 10.0]),
    minimum_exchanges=st.integers(0, 6),
    open_seconds=st.sampled_from([0.0, 0.5, 5.0]),
    longest_open_seconds=st.sampled_from([0.0, 5.0, 60.0]),
    probes=st.integers(1, 3),
    probes_to_close=st.integers(1, 3),
)
DRAWS = st.sampled_from([0.0, 0.3, 1 - 2**-53])


class Lives(RuleBasedStateMachine):
    """Exchanges that begin with leave or without, end in any order or late, while time passes and admins save."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.in_flight: list[bool] = []
        self.longest_wait = 0.0

    @initialize(policy=POLICIES)
    def begins(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.breaker = Breaker(policy)

    @rule(policy=POLICIES)
    def retuned(self, policy: BreakerPolicy) -> None:
        before = self.breaker.state(self.now), self.breaker.retry_at
        self.policy = policy
        self.breaker.retune(policy)
        assert (self.breaker.state(self.now), self.breaker.retry_at) == before

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.5, 1.0, 4.9, 30.0, 1e6]))
    def time_passes(self, seconds: float) -> None:
        before = self.breaker.state(self.now)
        self.now += seconds
        after = self.breaker.state(self.now)
        assert after is before or (before, after) == (OPEN, HALF_OPEN)

    @rule(times=st.integers(1, 4))
    def exchanges_begin(self, times: int) -> None:
        for _ in range(times):
            before = self.breaker.state(self.now)
            may_pass = self.breaker.may_pass(self.now)
            is_probe = self.breaker.begin(self.now)
            assert is_probe == (may_pass and before is HALF_OPEN)
            assert self.breaker.state(self.now) is before
            self.in_flight.append(is_probe)
            assert not is_probe or sum(self.in_flight) <= self.policy.probes

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def one_succeeds(self, data: st.DataObject) -> None:
        before = self.breaker.state(self.now)
        is_probe = self._ends(data)
        self.breaker.succeeded(self.now, is_probe)
        after = self.breaker.state(self.now)
        assert after is before or (before, after, is_probe) == (HALF_OPEN, CLOSED, True)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), drawn=DRAWS)
    def one_fails(self, data: st.DataObject, drawn: float) -> None:
        before, retry_before = self.breaker.state(self.now), self.breaker.retry_at
        is_probe = self._ends(data)
        self.breaker.failed(self.now, is_probe, lambda: drawn)
        retry_after = self.breaker.retry_at
        if before is OPEN or (before is HALF_OPEN and not is_probe):
            assert retry_after == retry_before
        elif before is HALF_OPEN or retry_after is not None:
            assert retry_after is not None
            shortest = min(self.policy.open_seconds, self.policy.longest_open_seconds)
            assert shortest <= retry_after - self.now + 1e-6
            assert retry_after - self.now <= self.policy.longest_open_seconds * (1 + JITTER)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def one_is_dropped(self, data: st.DataObject) -> None:
        before = self.breaker.state(self.now), self.breaker.retry_at
        self.breaker.dropped(self._ends(data))
        assert (self.breaker.state(self.now), self.breaker.retry_at) == before

    def _ends(self, data: st.DataObject) -> bool:
        return self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))

    @invariant()
    def passes_by_its_state(self) -> None:
        state = self.breaker.state(self.now)
        has_place = state is HALF_OPEN and sum(self.in_flight) < self.policy.probes
        assert self.breaker.may_pass(self.now) == (state is CLOSED or has_place)
        assert (self.breaker.retry_at is None) == (state is CLOSED)

    @invariant()
    def time_and_successes_close_it(self) -> None:
        breaker, now = deepcopy(self.breaker), self.now
        for is_probe in self.in_flight:
            breaker.dropped(is_probe)
        if breaker.retry_at is not None:
            now = max(now, breaker.retry_at)
            assert breaker.state(now) is HALF_OPEN
        for _ in range(self.policy.probes_to_close):
            assert breaker.may_pass(now)
            told(breaker, now, "+")
        assert breaker.state(now) is CLOSED


TestLives = Lives.TestCase
