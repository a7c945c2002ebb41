"""How many unknown keys an address may show: never more than its share, and never fewer for what others do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.throttle import Throttle, bucket_of

GAPS = st.lists(st.floats(min_value=0, max_value=30, allow_nan=False), min_size=1, max_size=60)


def throttle(*, burst: int = 5, per_second: float = 0.5, max_addresses: int = 100) -> Throttle:
    return Throttle(burst=burst, per_second=per_second, max_addresses=max_addresses)


def test_the_burst_passes_and_the_next_is_told_how_long_to_wait() -> None:
    bucket = throttle()
    assert [bucket.wait_seconds("192.0.2.1", 10.0) for _ in range(7)] == [0, 0, 0, 0, 0, 2.0, 2.0]
    assert bucket.wait_seconds("192.0.2.1", 11.0) == 1.0
    assert bucket.wait_seconds("192.0.2.1", 12.0) == 0


@given(GAPS)
def test_in_any_stretch_of_time_no_more_pass_than_the_burst_and_what_came_since(gaps: list[float]) -> None:
    bucket, now = throttle(), 0.0
    passed: list[float] = []
    for gap in gaps:
        now += gap
        if not bucket.wait_seconds("192.0.2.1", now):
            passed.append(now)
    for first, start in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= 5 + (passed[last] - start) * 0.5 + 1e-6


@given(GAPS)
def test_who_waits_as_long_as_told_passes(gaps: list[float]) -> None:
    bucket, now = throttle(), 0.0
    for gap in gaps:
        now += gap
        wait = bucket.wait_seconds("192.0.2.1", now)
        if wait:
            now += wait + 1e-6
            assert bucket.wait_seconds("192.0.2.1", now) == 0


@given(st.lists(st.tuples(st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]), st.floats(0, 5)), max_size=60))
def test_addresses_are_counted_on_their_own(shown: list[tuple[str, float]]) -> None:
    together, alone, now = throttle(), {}, 0.0
    for address, gap in shown:
        now += gap
        own = alone.setdefault(address, throttle())
        assert together.wait_seconds(address, now) == own.wait_seconds(address, now)


@given(st.lists(st.integers(min_value=0, max_value=1000), max_size=300))
def test_the_table_never_holds_more_than_its_bound(numbers: list[int]) -> None:
    bucket = throttle(max_addresses=10)
    for number in numbers:
        bucket.wait_seconds(f"10.0.{number // 256}.{number % 256}", 0.0)
        assert len(bucket) <= 10


def test_the_address_longest_unseen_is_forgotten_first() -> None:
    bucket = throttle(burst=1, max_addresses=2)
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3"):
        bucket.wait_seconds(address, 0.0)
    assert bucket.wait_seconds("192.0.2.1", 0.0) > 0
    assert bucket.wait_seconds("192.0.2.2", 0.0) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:DB8:0:0:9:9:9:9", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "2001:db8::1", False),
        ("unknown", "unknown", True),
        ("", "unknown", False),
    ],
)
def test_whose_address_it_is(one: str, other: str, same: bool) -> None:
    assert (bucket_of(one) == bucket_of(other)) is same
