"""What a grant allows: methods and paths, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.grants import Grant, allow, check_prefix

SEGMENTS = st.lists(st.sampled_from([b"", b"a", b"b", b"ab", b"%61", b"A"]), min_size=1, max_size=5)
PATHS = SEGMENTS.map(lambda segments: b"/" + b"/".join(segments))


def is_below(path: bytes, prefix: bytes) -> bool:
    return Grant(prefixes=(prefix,)).allows("GET", path)


@given(st.sampled_from(["GET", "BREW"]), PATHS | st.just(b""))
def test_an_empty_grant_allows_all(method: str, path: bytes) -> None:
    assert Grant().allows(method, path)


@pytest.mark.parametrize(
    ("methods", "method", "allowed"),
    [
        ({"GET"}, "GET", True),
        ({"GET"}, "HEAD", True),
        ({"HEAD"}, "GET", False),
        ({"POST"}, "HEAD", False),
        ({"GET"}, "get", False),
        ({"GET", "POST"}, "POST", True),
        ({"GET"}, "OPTIONS", False),
    ],
)
def test_methods(methods: set[str], method: str, allowed: bool) -> None:
    assert Grant(frozenset(methods)).allows(method, b"/x") is allowed


@pytest.mark.parametrize(
    ("prefix", "path", "below"),
    [
        (b"/v1", b"/v1", True),
        (b"/v1", b"/v1/", True),
        (b"/v1", b"/v1/a", True),
        (b"/v1", b"/v1//a", True),
        (b"/v1", b"/v12", False),
        (b"/v1", b"/v1;a", False),
        (b"/v1", b"/v1%2fa", False),
        (b"/v1", b"/%76%31/a", False),
        (b"/v1", b"/V1", False),
        (b"/v1", b"//v1", False),
        (b"/v1", b"", False),
        (b"/v1/", b"/v1/", True),
        (b"/v1/", b"/v1", False),
        (b"/v1/", b"/v1/a", True),
        (b"/", b"/a", True),
        (b"/", b"", False),
    ],
)
def test_paths(prefix: bytes, path: bytes, below: bool) -> None:
    assert is_below(path, prefix) is below
    assert Grant(prefixes=(b"/other", prefix)).allows("GET", path) is below


@given(PATHS, PATHS)
def test_what_is_below_is_the_prefix_or_has_it_as_its_first_segments(path: bytes, prefix: bytes) -> None:
    own, others = prefix.removesuffix(b"/").split(b"/"), path.split(b"/")
    expected = path == prefix or (others[: len(own)] == own and len(others) > len(own))
    assert is_below(path, prefix) is expected


@given(PATHS, PATHS, PATHS)
def test_being_below_is_transitive(one: bytes, two: bytes, three: bytes) -> None:
    if is_below(one, two) and is_below(two, three):
        assert is_below(one, three)


def test_grants_add_up_but_do_not_mix() -> None:
    held = (Grant(frozenset({"GET"}), (b"/a",)), Grant(frozenset({"POST"}), (b"/b",)))
    assert allow(held, "GET", b"/a/x")
    assert allow(held, "POST", b"/b/x")
    assert not allow(held, "GET", b"/b/x")
    assert not allow(held, "POST", b"/a/x")
    assert not allow((), "GET", b"/a")


@pytest.mark.parametrize("prefix", ["/", "/v1", "/v1/", "/a//b", "/%C3%BC", "/a;b=c", "/~a/b.c"])
def test_prefixes_that_paths_can_have(prefix: str) -> None:
    check_prefix(prefix)


@pytest.mark.parametrize(
    ("prefix", "advice"),
    [
        ("v1", "write /v1"),
        ("", "slash"),
        ("/a?b", "path alone"),
        ("/a#b", "path alone"),
        ("/a b", "percent-encode"),
        ("/ü", "percent-encode"),
        ("/a\tb", "percent-encode"),
        ("/a/../b", "dot segments"),
        ("/%2e%2e/b", "dot segments"),
    ],
)
def test_prefixes_that_none_can_have_are_refused_with_what_to_do(prefix: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        check_prefix(prefix)
