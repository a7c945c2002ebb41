"""Which answers to a check are good, and how many it takes to change the verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.health import Check, Verdict, canonical_path, canonical_statuses, parse_statuses

CHECK = Check(
    target=b"/healthz",
    method="GET",
    statuses=frozenset({200}),
    body=b"",
    interval_seconds=10.0,
    timeout_seconds=5.0,
    failures=3,
    successes=2,
)


@pytest.mark.parametrize(
    ("heard", "changes", "healthy"),
    [
        ("", "", True),
        ("-", ".", True),
        ("--", "..", True),
        ("---", "..!", False),
        ("--+--", ".....", True),
        ("--+---", ".....!", False),
        ("----", "..!.", False),
        ("---+", "..!.", False),
        ("---++", "..!.!", True),
        ("---+-+", "..!...", False),
        ("---++---", "..!.!..!", False),
    ],
)
def test_it_takes_several_in_a_row_to_change_the_verdict(heard: str, changes: str, healthy: bool) -> None:
    verdict = Verdict()
    told = "".join("!" if verdict.heard(is_good=result == "+", check=CHECK) else "." for result in heard)
    assert (told, verdict.is_healthy) == (changes, healthy)


def test_one_taken_over_as_unhealthy_needs_its_successes() -> None:
    verdict = Verdict(is_healthy=False)
    assert not verdict.heard(is_good=True, check=CHECK)
    assert verdict.heard(is_good=True, check=CHECK)
    assert verdict.is_healthy


@pytest.mark.parametrize(
    ("text", "statuses"),
    [
        ("200", {200}),
        ("200, 204", {200, 204}),
        ("200 204,  301", {200, 204, 301}),
        ("200-202", {200, 201, 202}),
        ("100-100 599", {100, 599}),
        ("200-202, 201", {200, 201, 202}),
    ],
)
def test_statuses(text: str, statuses: set[int]) -> None:
    assert parse_statuses(text) == statuses
    assert parse_statuses(canonical_statuses(text)) == statuses


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "Write the statuses"),
        (" , ", "Write the statuses"),
        ("2xx", "“2xx” is no status"),
        ("99", "is no status"),
        ("600", "is no status"),
        ("200-", "is no status"),
        ("300-200", "runs backwards"),
        ("٢٠٠", "is no status"),
    ],
)
def test_what_is_no_status_is_refused(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_statuses(text)
    with pytest.raises(ValueError, match=advice):
        canonical_statuses(text)


@given(st.sets(st.integers(100, 599), min_size=1))
def test_any_set_of_statuses_can_be_written(statuses: set[int]) -> None:
    text = ", ".join(map(str, sorted(statuses)))
    assert canonical_statuses(text) == text
    assert parse_statuses(text) == statuses


@pytest.mark.parametrize("path", ["", "/", "/healthz", "/a/b?deep=1&x=%20", "/~a;b=c"])
def test_a_path_is_kept_as_it_is(path: str) -> None:
    assert canonical_path(f" {path} ") == path


@pytest.mark.parametrize("path", ["healthz", "http://a/healthz", "/a b", "/a#b", "/ä", '/a"b', "/a\nb"])
def test_what_no_request_could_ask_for_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"^(Begin|Percent-encode)"):
        canonical_path(path)
