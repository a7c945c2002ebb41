"""A grant covers another when it allows all that the other does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.grants import Grant

GET, POST = frozenset({"GET"}), frozenset({"POST"})


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        (Grant(), Grant()),
        (Grant(), Grant(GET, (b"/v1",))),
        (Grant(GET), Grant(GET, (b"/v1",))),
        (Grant(GET), Grant(frozenset({"GET", "HEAD"}))),
        (Grant(GET | POST), Grant(POST)),
        (Grant(prefixes=(b"/v1",)), Grant(POST, (b"/v1/chat", b"/v1/"))),
        (Grant(prefixes=(b"/a", b"/b")), Grant(prefixes=(b"/b/c",))),
    ],
)
def test_what_is_narrower_is_covered(wide: Grant, narrow: Grant) -> None:
    assert wide.covers(narrow)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (Grant(GET), Grant()),
        (Grant(prefixes=(b"/v1",)), Grant()),
        (Grant(GET), Grant(GET | POST)),
        (Grant(frozenset({"HEAD"})), Grant(GET)),
        (Grant(prefixes=(b"/v1/",)), Grant(prefixes=(b"/v1",))),
        (Grant(prefixes=(b"/v1",)), Grant(prefixes=(b"/v1", b"/v2"))),
        (Grant(GET, (b"/v1",)), Grant(GET, (b"/v1chat",))),
    ],
)
def test_what_is_wider_is_not_covered(narrow: Grant, wide: Grant) -> None:
    assert not narrow.covers(wide)


grants = st.builds(
    Grant,
    st.frozensets(st.sampled_from(["GET", "HEAD", "POST"])),
    st.lists(st.sampled_from([b"/a", b"/a/", b"/a/b", b"/ab", b"/b"]), max_size=2).map(tuple),
)


@given(
    grants, grants, st.sampled_from(["GET", "HEAD", "POST", "PUT"]), st.sampled_from([b"", b"/a", b"/a/b/c", b"/abc"])
)
def test_what_is_covered_allows_no_more(wide: Grant, narrow: Grant, method: str, path: bytes) -> None:
    if wide.covers(narrow) and narrow.allows(method, path):
        assert wide.allows(method, path)
