"""References to the upstream become references to its mount; every other byte stays."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.rules.location import UpstreamPlace, relayed_link, relayed_location, relayed_refresh

PLACE = UpstreamPlace(scheme=b"https", host=b"up.example", port=443, base_path=b"/v1", mount=b"/relay/a")
BARE = dataclasses.replace(PLACE, base_path=b"")
PLAIN = UpstreamPlace(scheme=b"http", host=b"up.example", port=8080, base_path=b"", mount=b"/relay/a")
LITERAL = UpstreamPlace(scheme=b"http", host=b"2001:db8::1", port=80, base_path=b"", mount=b"/relay/a")


@pytest.mark.parametrize(
    ("place", "value", "relayed"),
    [
        (PLACE, b"https://up.example/v1/x?q=1#f", b"/relay/a/x?q=1#f"),
        (PLACE, b"HTTPS://UP.Example:443/v1", b"/relay/a"),
        (PLACE, b"https://up.example:0443/v1/", b"/relay/a/"),
        (PLACE, b"https://up.example:/v1?/v2/../", b"/relay/a?/v2/../"),
        (PLACE, b"https://up.example/v1#../", b"/relay/a#../"),
        (PLACE, b"//up.example/v1/x", b"/relay/a/x"),
        (PLACE, b"/v1/x", b"/relay/a/x"),
        (PLACE, b"/v1", b"/relay/a"),
        (PLACE, b"/v1?q", b"/relay/a?q"),
        (PLACE, b"/v1/%2F%zz\xff a//b;c", b"/relay/a/%2F%zz\xff a//b;c"),
        (PLACE, b"/v1/...", b"/relay/a/..."),
        (PLACE, b"/v1/.well-known/..x", b"/relay/a/.well-known/..x"),
        (BARE, b"https://up.example", b"/relay/a"),
        (BARE, b"https://up.example?q", b"/relay/a?q"),
        (BARE, b"https://up.example/", b"/relay/a/"),
        (BARE, b"https://up.example//evil.example/x", b"/relay/a//evil.example/x"),
        (BARE, b"/", b"/relay/a/"),
        (BARE, b"/v1", b"/relay/a/v1"),
        (PLAIN, b"http://up.example:8080/x", b"/relay/a/x"),
        (PLAIN, b"//up.example:8080/x", b"/relay/a/x"),
        (LITERAL, b"http://[2001:DB8::1]/x", b"/relay/a/x"),
        (LITERAL, b"http://[2001:db8::1]:80/x", b"/relay/a/x"),
    ],
)
def test_a_reference_below_the_base_path_leads_to_the_mount(place: UpstreamPlace, value: bytes, relayed: bytes) -> None:
    assert relayed_location(value, place) == relayed


@pytest.mark.parametrize(
    ("place", "value"),
    [
        # relative
        (PLACE, b""),
        (PLACE, b"x"),
        (PLACE, b"../x"),
        (PLACE, b"?q"),
        (PLACE, b"#f"),
        # another place
        (PLACE, b"https://other.example/v1/x"),
        (PLACE, b"https://up.example.evil.example/v1/x"),
        (PLACE, b"https://up.example:8443/v1/x"),
        (PLACE, b"http://up.example/v1/x"),
        (PLACE, b"http://up.example:443/v1/x"),
        (PLAIN, b"https://up.example:8080/x"),
        (PLAIN, b"https://up.example/x"),
        (PLAIN, b"http://up.example/x"),
        (PLAIN, b"//up.example/x"),
        (PLACE, b"ftp://up.example/v1/x"),
        (PLACE, b"urn:up.example:/v1"),
        # outside the base path
        (PLACE, b"https://up.example/"),
        (PLACE, b"https://up.example"),
        (PLACE, b"https://up.example/v10"),
        (PLACE, b"https://up.example/V1/x"),
        (PLACE, b"/v10"),
        (PLACE, b"/"),
        (PLACE, b"/x"),
        (PLACE, b"/v1/../x"),
        (PLACE, b"/v1/.."),
        (PLACE, b"/v1/.?q"),
        (PLACE, b"/v1/%2E%2e/x"),
        (PLACE, b"/v1/.%2e#f"),
        (PLACE, b"/v1/x\\..\\..\\y"),
        (PLACE, b"https://up.example/v1/../x"),
        # not to be understood, or by browsers differently
        (PLACE, b"https://user@up.example/v1/x"),
        (PLACE, b"https://up.example:443@evil.example/v1/x"),
        (PLACE, b"https://up.example\\@evil.example/v1/x"),
        (PLACE, b"https://up.example:port/v1"),
        (PLACE, b"https://up.example:000443/v1"),
        (PLACE, b"https://[up.example]/v1"),
        (PLACE, b"https:///v1/x"),
        (PLACE, b"https:/up.example/v1/x"),
        (PLACE, b"https:\\\\up.example/v1/x"),
        (PLACE, b" https://up.example/v1/x"),
        (PLACE, b"https://up.example/v1/\tx"),
        (PLACE, b"/v1/\x00"),
        (PLACE, b"/v1\n"),
        (BARE, b"/\\evil.example/x"),
        (BARE, b"//evil.example/x"),
        (BARE, b"///x"),
    ],
)
def test_every_other_reference_is_left_byte_for_byte(place: UpstreamPlace, value: bytes) -> None:
    assert relayed_location(value, place) == value


@pytest.mark.parametrize(
    ("value", "relayed"),
    [
        (b"5; url=https://up.example/v1/x", b"5; url=/relay/a/x"),
        (b"0;URL='/v1/x' ; more", b"0;URL='/relay/a/x' ; more"),
        (b' 1.5 , Url = "//up.example/v1"', b' 1.5 , Url = "/relay/a"'),
        (b'5; url="/v1/x', b'5; url="/relay/a/x'),
        (b"5; /v1/x", b"5; /relay/a/x"),
        (b"5; url=x", b"5; url=x"),
        (b"5; url=https://other.example/v1", b"5; url=https://other.example/v1"),
        (b"5; url=", b"5; url="),
        (b"5", b"5"),
        (b"", b""),
        (b"soon; url=/v1/x", b"soon; url=/v1/x"),
    ],
)
def test_refresh_is_rewritten_in_its_reference_alone(value: bytes, relayed: bytes) -> None:
    assert relayed_refresh(value, PLACE) == relayed


@pytest.mark.parametrize(
    ("value", "relayed"),
    [
        (b'<https://up.example/v1/x?page=2>; rel="next"', b'</relay/a/x?page=2>; rel="next"'),
        (
            b"</v1/a>; rel=prev, </v1/b>;rel=next ,\t</v1/c>",
            b"</relay/a/a>; rel=prev, </relay/a/b>;rel=next ,\t</relay/a/c>",
        ),
        (b"</v1/a,b>;rel=x,,</v1/c>", b"</relay/a/a,b>;rel=x,,</relay/a/c>"),
        (b'  </v1/">; title="', b'  </relay/a/">; title="'),
        (b'<x>; title="a, </v1/b>", </v1/c>', b'<x>; title="a, </v1/b>", </relay/a/c>'),
        (b'<x>; title="\\", </v1/b>", </v1/c>', b'<x>; title="\\", </v1/b>", </relay/a/c>'),
        (b'<x>; title="open, </v1/b>', b'<x>; title="open, </v1/b>'),
        (b'<x>; title="open, </v1/b>\\', b'<x>; title="open, </v1/b>\\'),
        (b"<x>; anchor=</v1/b>", b"<x>; anchor=</v1/b>"),
        (b'<x>; anchor="/v1/b"', b'<x>; anchor="/v1/b"'),
        (b"</v1/a", b"</v1/a"),
        (b"</v1/a, </v1/b>", b"</v1/a, </relay/a/b>"),
        (b"<../x>, <https://other.example/v1/x>", b"<../x>, <https://other.example/v1/x>"),
        (b"", b""),
    ],
)
def test_link_is_rewritten_in_its_targets_alone(value: bytes, relayed: bytes) -> None:
    assert relayed_link(value, PLACE) == relayed


# Long inputs that make a careless pattern quadratic or worse; the suite's time limit is the judge.
@pytest.mark.parametrize("piece", [b",", b", ", b"<", b",<", b'"\\', b'\\"', b'"', b"<>", b",\t\t<"])
def test_hostile_link_lines_take_linear_time(piece: bytes) -> None:
    value = piece * 50_000
    assert relayed_link(value, PLACE) == value


REWRITERS = [relayed_location, relayed_refresh, relayed_link]
wire = st.text(st.sampled_from('/v1.\\%2e:@?#<>",;= upexamhtsrl0\t')).map(str.encode)


@given(st.binary() | wire)
@example(b"")
def test_values_without_the_upstreams_place_are_identical(value: bytes) -> None:
    value = value.replace(b"/v1", b"/w")
    for rewrite in REWRITERS:
        assert rewrite(value, PLACE) == value


@given(st.binary() | wire)
def test_a_rewritten_location_stays_below_the_mount(value: bytes) -> None:
    for place in (PLACE, BARE, PLAIN):
        relayed = relayed_location(value, place)
        if relayed != value:
            assert relayed.startswith(b"/relay/a")
            assert relayed[8:9] in (b"", b"/", b"?", b"#")
            assert value.endswith(relayed.removeprefix(b"/relay/a"))


tail = st.text(st.sampled_from("abc/?#;%=&:@~")).map(lambda text: b"/" + text.encode())


@given(tail)
def test_all_spellings_of_one_reference_become_the_same(tail: bytes) -> None:
    expected = b"/relay/a" + tail
    for front in (b"", b"//up.example", b"https://up.example", b"https://UP.example:443"):
        target = front + b"/v1" + tail
        assert relayed_location(target, PLACE) == expected
        assert relayed_refresh(b"1; url=" + target, PLACE) == b"1; url=" + expected
        assert relayed_link(b"<" + target + b">; rel=next", PLACE) == b"<" + expected + b">; rel=next"


# At a host name of the upstream's own the mount is empty.

OWN = dataclasses.replace(PLACE, mount=b"")


@pytest.mark.parametrize(
    ("value", "relayed"),
    [
        (b"https://up.example/v1/x?q#f", b"/x?q#f"),
        (b"https://up.example/v1", b"/"),
        (b"https://up.example/v1?q", b"/?q"),
        (b"/v1#f", b"/#f"),
        (b"/v1/", b"/"),
        (b"/v1//evil.example", b"/.//evil.example"),
        (b"/v1/\\evil.example", b"/./\\evil.example"),
        (b"/other", b"/other"),
        (b"https://up.example/other", b"https://up.example/other"),
        (b"x", b"x"),
    ],
)
def test_a_reference_below_the_base_path_leads_to_the_host_of_its_own(value: bytes, relayed: bytes) -> None:
    assert relayed_location(value, OWN) == relayed


@given(st.text(alphabet="/\\v1.ex?#:@%", max_size=20))
def test_no_reference_leaves_the_host_because_of_the_relay(tail: str) -> None:
    value = b"/v1" + tail.encode()
    relayed = relayed_location(value, OWN)
    assert relayed == value or (relayed.startswith(b"/") and relayed[1:2] not in (b"/", b"\\"))
