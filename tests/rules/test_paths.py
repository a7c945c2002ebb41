"""Paths: cut where the slug ends, joined byte for byte, refused where a server could read them in another way."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.errors import PathRefused
from relay.rules.paths import check_own_host, check_path, join_target, query_of, split_relay_path

MOUNT = len(b"/relay/")


@pytest.mark.parametrize(
    ("raw_path", "slug", "rest"),
    [
        (b"/relay/a", b"a", b""),
        (b"/relay/a/", b"a", b"/"),
        (b"/relay/a//", b"a", b"//"),
        (b"/relay/a/b/c", b"a", b"/b/c"),
        (b"/relay/a%2Fb/c", b"a%2Fb", b"/c"),
        (b"/relay/", b"", b""),
        (b"/relay//a", b"", b"/a"),
    ],
)
def test_the_slug_ends_at_the_next_slash(raw_path: bytes, slug: bytes, rest: bytes) -> None:
    assert split_relay_path(raw_path, mount_length=MOUNT) == (slug, rest)


@given(st.binary().filter(lambda slug: b"/" not in slug), st.binary())
def test_nothing_is_lost_at_the_cut(slug: bytes, rest: bytes) -> None:
    rest = b"/" + rest
    assert split_relay_path(b"/relay/" + slug + rest, mount_length=MOUNT) == (slug, rest)


PLAIN = [
    b"",
    b"/",
    b"//",
    b"/a",
    b"/a/b/",
    b"/a//b",
    b"/v1/items:batch@2,3=(x)'!$&*+~_-",
    b"/a.b/c..d/e...",
    b"/file.tar.gz",
]
PASS = [
    *PLAIN,
    b"/...",
    b"/....",
    b"/.well-known/acme",
    b"/..a",
    b"/.a.",
    b"/%2e%2e%2e",
    b"/%2ea",
    b"/a%2Fb",
    b"/%252F",
    b"/%25",
    b"/%",
    b"/%zz",
    b"/100%/",
    b"/a%",
    b"/;",
    b"/;..",
    b"/a;..;/b",
    b"/a;v=.",
    b"/a\\b",
    b"/%C3%A9",
    b"/%c0%ae%c0%aea",
    b"/caf%e9%c0",
    b"/%ef%bc%8ea",
    b"/%u002ea",
    b"/a%20b",
    b"/a?b",
    b"/\"<>{}|^`[]'",
]
DOT_SEGMENTS = [
    b"/.",
    b"/..",
    b"/./",
    b"/../",
    b"/a/.",
    b"/a/..",
    b"/a/../b",
    b"//..",
    b"/%2e",
    b"/%2E%2e",
    b"/.%2e",
    b"/%2e.",
    b"/..;",
    b"/..;a=b/c",
    b"/.;/a",
    b"/..%3b",
    b"/..%3Bx",
    b"/%2e%2e%3b",
    b"/a\\..",
    b"\\..\\a",
    b"/a\\.\\b",
    b"/..\\a",
    b"/a%2f..",
    b"/a%2F..%2fb",
    b"/a%5c..%5Cb",
    b"/..%2f",
    b"/..%5c",
    b"/%2e%2e%2f",
    b"/;/..",
    b"/a;b%2f..%2fc",
    # Encoded again, whole or in parts.
    b"/%252e",
    b"/%252e%252e/",
    b"/%25252e%2e",
    b"/a%252f..%252fb",
    b"/..%253b",
    b"/..%255c",
    b"/%25%32%65",
    b"/%%32%65%2e",
    b"/%2%65",
    b"/%252%65./",
    # In characters that some servers take for dots and separators.
    b"/%c0%ae%c0%ae/",
    b"/.%C0%AE",
    b"/%e0%80%ae%f0%80%80%ae",
    b"/a%c0%af..",
    b"/a%c1%9c..%c1%9cb",
    b"/a%e0%80%af..%e0%81%9c",
    b"/%u002e%u002E/",
    b"/a%u002f..%u005cb",
    b"/a%uff0f%uFF0E.",
    b"/%ef%bc%8e%ef%bc%8e",
    b"/a%EF%BC%8F..%ef%bc%bc",
    b"/%25c0%25ae.",
]
OUTSIDE = [
    b"/\x00",
    b"/a\x1fb",
    b"/a b",
    b"/a\x7f",
    b"/\x80",
    b"/\xc3\xa9",
    b"/%00",
    b"/%0a",
    b"/%0D%0A",
    b"/%1f",
    b"/%7F",
]


@pytest.mark.parametrize("path", PASS)
def test_paths_with_one_meaning_pass(path: bytes) -> None:
    check_path(path)


@pytest.mark.parametrize("path", DOT_SEGMENTS)
def test_dot_segments_are_refused_in_any_spelling(path: bytes) -> None:
    with pytest.raises(PathRefused) as refusal:
        check_path(path)
    assert refusal.value.detail == "dot segment"


@pytest.mark.parametrize("path", OUTSIDE)
def test_bytes_no_path_has_are_refused(path: bytes) -> None:
    with pytest.raises(PathRefused) as refusal:
        check_path(path)
    assert refusal.value.detail == "control byte or byte outside of URIs"


@pytest.mark.parametrize("path", [b"/%" + b"25" * 20, b"/" + b"a/" * 8000 + b"%" + b"25" * 16000])
def test_a_path_that_is_encoded_without_end_is_refused_at_a_bounded_price(path: bytes) -> None:
    # Looking once for each layer would cost the square of the length: a minute for 64 KiB, and this test's time-out.
    with pytest.raises(PathRefused) as refusal:
        check_path(path)
    assert refusal.value.detail == "percent-encoded over and over"


PIECES = st.sampled_from(
    [b".", b"..", b"/", b"\\", b"%2e", b"%2E", b"%2f", b"%5c", b";", b"%3b", b"%25", b"%", b"a", b"2e", b"25"]
)


@given(st.lists(PIECES, max_size=12).map(b"".join), st.integers(min_value=0, max_value=5))
@example(b"%%32%65%2e", 2)
def test_no_decoding_of_a_path_that_passed_leaves_its_folder(path: bytes, decodings: int) -> None:
    path = b"/" + path
    try:
        check_path(path)
    except PathRefused:
        return
    for _ in range(decodings):
        path = unquote_to_bytes(path)
    segments = [segment.partition(b";")[0] for segment in path.replace(b"\\", b"/").split(b"/")]
    assert not {b".", b".."} & set(segments)
    # As a server would resolve it: nothing above the root it is joined to is ever reached.
    assert posixpath.normpath(b"/base" + b"/".join(segments)).startswith(b"/base")


@given(st.binary())
def test_what_passed_holds_no_byte_outside_of_uris(path: bytes) -> None:
    try:
        check_path(path)
    except PathRefused:
        return
    assert all(0x20 < byte < 0x7F for byte in path)


@given(
    st.lists(st.sampled_from([b"..", b".", b"%2e%2e", b".%2e", b"%252e."]), min_size=1),
    st.sampled_from([b"/", b"\\", b"%2F", b"%5c"]),
)
def test_a_dot_segment_is_found_between_any_separators(dots: list[bytes], separator: bytes) -> None:
    with pytest.raises(PathRefused):
        check_path(b"/a" + separator + separator.join(dots) + separator + b"b")


@given(st.binary(), st.none() | st.binary())
def test_joining_keeps_every_byte(path: bytes, query: bytes | None) -> None:
    assert join_target(path, query) == path + (b"" if query is None else b"?" + query)


@pytest.mark.parametrize(
    ("query", "sent_target", "expected"),
    [
        (b"", None, None),
        (b"a=b", None, b"a=b"),
        (b"", b"/a", None),
        (b"", b"/a?", b""),
        (b"?", b"/a??", b"?"),
        (b"a=b", b"/a?a=b", b"a=b"),
    ],
)
def test_a_lone_question_mark_is_kept_where_the_server_tells(
    query: bytes, sent_target: bytes | None, expected: bytes | None
) -> None:
    assert query_of(query, sent_target=sent_target) == expected


@pytest.mark.parametrize("sent_target", [b"/a#b", b"/a?b#c", b"#", b"/a#?b"])
def test_a_fragment_is_refused(sent_target: bytes) -> None:
    with pytest.raises(PathRefused):
        query_of(b"", sent_target=sent_target)


@pytest.mark.parametrize(("path", "sent"), [(b"*", b"*"), (b"", b"http://h"), (b"/a", b"http://h/a"), (b"*", None)])
def test_a_target_at_a_host_of_its_own_is_a_path(path: bytes, sent: bytes | None) -> None:
    with pytest.raises(PathRefused):
        check_own_host(path, sent_target=sent)
    check_own_host(b"/a", sent_target=b"/a?q")
    check_own_host(b"//a", sent_target=None)
