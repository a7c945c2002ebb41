"""Places of the same upstream come back as places of the relay; all others are left as they are."""

from __future__ import annotations

import pytest

from tests.behaviour.conftest import Relayed
from tests.caller import Caller
from tests.origin import Origin, reply
from tests.serving_ground import Ground

SAME_UPSTREAM = [
    (b"", b"/b?c#d", b"/relay/o/b?c#d"),
    (b"", b"{origin}/b%2Fc;d", b"/relay/o/b%2Fc;d"),
    (b"", b"//{authority}/b", b"/relay/o/b"),
    (b"", b"{origin}", b"/relay/o"),
    (b"/v1", b"/v1/b", b"/relay/o/b"),
    (b"/v1", b"{origin}/v1?q", b"/relay/o?q"),
    (b"/v1/", b"/v1/b", b"/relay/o/b"),
]
ELSEWHERE = [
    (b"", b"b/c"),
    (b"", b"?q"),
    (b"", b"https://other.example/b"),
    (b"", b"http://127.0.0.1:1/b"),
    (b"", b"https://{authority}/b"),
    (b"", b"mailto:a@b"),
    (b"", b""),
    (b"/v1", b"/v2/b"),
    (b"/v1", b"/v11"),
    (b"/v1", b"/v1/../v2"),
    (b"/v1", b"{origin}/"),
]


def at(origin: Origin, place: bytes) -> bytes:
    return place.replace(b"{origin}", origin.url.encode()).replace(b"{authority}", origin.authority.encode())


@pytest.mark.parametrize(("base_path", "given", "relayed_as"), SAME_UPSTREAM)
async def test_places_of_the_same_upstream_come_back_as_the_relays(
    origin: Origin, relayed: Relayed, caller: Caller, base_path: bytes, given: bytes, relayed_as: bytes
) -> None:
    relayed(base_path=base_path)
    place = at(origin, given)
    fields = [
        (b"Location", place),
        (b"Content-Location", place),
        (b"Refresh", b"5; url=" + place),
        (b"Link", b'<%b>; rel="next", <https://other.example/>; rel="up"' % place),
        (b"Link", b"<%b>; rel=prev" % place),
    ]
    origin.otherwise(reply(302, fields))
    answer = await caller.get(b"/relay/o/a")
    assert answer.status == 302
    assert answer.values(b"location") == answer.values(b"content-location") == [relayed_as]
    assert answer.values(b"refresh") == [b"5; url=" + relayed_as]
    assert answer.values(b"link") == [
        b'<%b>; rel="next", <https://other.example/>; rel="up"' % relayed_as,
        b"<%b>; rel=prev" % relayed_as,
    ]


@pytest.mark.parametrize(("base_path", "given"), ELSEWHERE)
async def test_other_places_are_left_as_they_are(
    origin: Origin, relayed: Relayed, caller: Caller, base_path: bytes, given: bytes
) -> None:
    relayed(base_path=base_path)
    place = at(origin, given)
    origin.otherwise(reply(301, [(b"Location", place), (b"Link", b"<%b>" % place), (b"Refresh", b"0;" + place)]))
    answer = await caller.get(b"/relay/o/a")
    assert answer.values(b"location") == [place]
    assert answer.values(b"link") == [b"<%b>" % place]
    assert answer.values(b"refresh") == [b"0;" + place]


async def test_redirects_are_relayed_and_never_followed(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.on(b"/a", reply(307, [(b"Location", b"/b")], b"go"))
    answer = await caller.get(b"/relay/o/a", method=b"POST", body=b"x")
    assert (answer.status, answer.data, answer.values(b"location")) == (307, b"go", [b"/relay/o/b"])
    assert [request.path for request in origin.requests] == [b"/a"]


async def test_a_redirect_through_the_relay_leads_to_its_place(
    origin: Origin, relayed: Relayed, ground: Ground
) -> None:
    relayed(base_path=b"/v1")
    origin.on(b"/v1/a", reply(302, [(b"Location", at(origin, b"{origin}/v1/b?c"))]))
    origin.on(b"/v1/b", reply(200, body=b"arrived"))
    async with Caller(ground.port) as caller:
        (place,) = (await caller.get(b"/relay/o/a")).values(b"location")
        assert (await caller.get(place)).data == b"arrived"
