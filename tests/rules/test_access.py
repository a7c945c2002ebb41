"""Which requests may pass at all."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import KeyRefused, KeyRequired, LoopDetected, MethodRefused, NotGranted, WorkerRefused
from relay.rules.access import NEVER_RELAYED, check_grants, check_key, check_loop, check_method, check_worker
from relay.rules.grants import Grant

OWN = b"relay-1234abcd"


@pytest.mark.parametrize(
    ("method", "allowed"),
    [
        ("GET", frozenset()),
        ("BREW", frozenset()),
        ("get", frozenset()),
        ("PROPFIND", frozenset({"PROPFIND"})),
        ("GET", frozenset({"HEAD", "GET"})),
    ],
)
def test_methods_pass_that_are_allowed(method: str, allowed: frozenset[str]) -> None:
    check_method(method, allowed)


@pytest.mark.parametrize(
    ("method", "allowed", "allow"),
    [
        ("TRACE", frozenset(), b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        ("CONNECT", frozenset(), b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        ("TRACE", frozenset({"TRACE", "GET"}), b"GET"),
        ("Trace", frozenset(), b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        ("connect", frozenset(), b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        ("CONNECT", frozenset({"CONNECT"}), b""),
        ("POST", frozenset({"PUT", "GET"}), b"GET, PUT"),
        ("get", frozenset({"GET"}), b"GET"),
    ],
)
def test_other_methods_are_refused_and_told_which_pass(method: str, allowed: frozenset[str], allow: bytes) -> None:
    with pytest.raises(MethodRefused) as refusal:
        check_method(method, allowed)
    assert refusal.value.headers == ((b"allow", allow),)


@given(st.sampled_from(sorted(NEVER_RELAYED)), st.frozensets(st.text()))
def test_trace_and_connect_never_pass(method: str, allowed: frozenset[str]) -> None:
    with pytest.raises(MethodRefused):
        check_method(method, allowed | {method})


def test_who_shows_no_key_is_asked_for_one_and_told_of_no_error() -> None:
    with pytest.raises(KeyRequired) as refusal:
        check_key(shown=False, expires_at=None, now=100.0)
    assert refusal.value.headers == ((b"www-authenticate", b'Bearer realm="relay"'),)


@pytest.mark.parametrize(("expires_at", "detail"), [(None, "unknown or revoked key"), (100.0, "expired key")])
def test_a_key_that_is_not_there_or_has_run_out_is_refused(expires_at: float | None, detail: str) -> None:
    with pytest.raises(KeyRefused, match=detail) as refusal:
        check_key(shown=True, expires_at=expires_at, now=100.0)
    assert refusal.value.headers == ((b"www-authenticate", b'Bearer realm="relay", error="invalid_token"'),)


@pytest.mark.parametrize("expires_at", [100.01, inf])
def test_a_key_passes_until_it_expires(expires_at: float) -> None:
    check_key(shown=True, expires_at=expires_at, now=100.0)


def test_one_grant_that_allows_it_is_enough() -> None:
    held = (Grant(frozenset({"GET"}), (b"/a",)), Grant(frozenset({"POST"})))
    check_grants(held, "GET", b"/a/b")
    check_grants(held, "POST", b"/c")
    with pytest.raises(NotGranted, match="outside of its grants") as refusal:
        check_grants(held, "GET", b"/c")
    assert refusal.value.headers == ((b"www-authenticate", b'Bearer realm="relay", error="insufficient_scope"'),)


def test_without_a_grant_nothing_is_granted() -> None:
    with pytest.raises(NotGranted, match="no grant here"):
        check_grants((), "GET", b"/")


@pytest.mark.parametrize(
    "via",
    [
        [],
        [b""],
        [b",, ,"],
        [b"1.1 proxy.example, 2 other"],
        [b"1.1 " + OWN + b"5"],
        [b"1.1 x" + OWN],
        [b"1.1 other (" + OWN + b")"],
        [OWN],
        [OWN + b" 1.1"],
        [b"1.1 other, " + OWN],
    ],
)
def test_a_request_of_other_proxies_is_no_loop(via: list[bytes]) -> None:
    check_loop(via, OWN)


@pytest.mark.parametrize(
    "via",
    [
        [b"1.1 " + OWN],
        [b"HTTP/1.1 " + OWN],
        [b"2\t" + OWN + b" (comment)"],
        [b"1.1 a, 1.1 b", b"1.0 c , 1.1 " + OWN + b", 1.1 d"],
        [b"1.1 " + OWN + b", 1.1 " + OWN],
    ],
)
def test_a_request_that_names_this_relay_is_a_loop(via: list[bytes]) -> None:
    with pytest.raises(LoopDetected):
        check_loop(via, OWN)


@given(st.lists(st.binary()), st.lists(st.binary()))
def test_no_neighbour_hides_a_loop(before: list[bytes], after: list[bytes]) -> None:
    with pytest.raises(LoopDetected):
        check_loop([*before, b"1.1 " + OWN, *after], OWN)


def test_a_service_worker_needs_a_host_of_its_own() -> None:
    check_worker(registers_worker=True, own_host=True)
    check_worker(registers_worker=False, own_host=False)
    with pytest.raises(WorkerRefused):
        check_worker(registers_worker=True, own_host=False)
