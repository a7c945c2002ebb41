"""Out of an upstream's base path, by what the caller writes; refused before anything goes out, or sent byte for byte.

tests/rules/test_paths.py has the spellings of dot segments, tests/behaviour/test_fidelity_paths.py what passes.
"""

from __future__ import annotations

import pytest

from tests.attacks.conftest import Relayed, answer_to, error_type
from tests.origin import Origin, reply
from tests.rules.test_paths import DOT_SEGMENTS, OUTSIDE
from tests.serving_ground import Ground

ON_THE_WIRE = [path for path in DOT_SEGMENTS if path.startswith(b"/")]


@pytest.mark.parametrize("form", [b"%b", b"http://localhost%b"])
async def test_no_spelling_of_a_dot_segment_leaves_the_base_path(
    origin: Origin, relayed: Relayed, ground: Ground, form: bytes
) -> None:
    relayed(base_path=b"/v1/public")
    for path in ON_THE_WIRE:
        target = form % (b"/relay/o" + path)
        answer = await answer_to(ground, b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % target)
        assert (answer.status, error_type(answer)) == (400, "path-ambiguous"), path
    assert origin.connections_made == 0


async def test_no_byte_outside_of_urls_passes(origin: Origin, relayed: Relayed, ground: Ground) -> None:
    relayed(base_path=b"/v1/public")
    for path in OUTSIDE:
        answer = await answer_to(ground, b"GET /relay/o%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
        assert answer.status == 400, path
    assert origin.connections_made == 0


@pytest.mark.parametrize(
    "target",
    [
        b"/relay/../admin/",
        b"/relay/o/../../admin/",
        b"/relay/%2e%2e/admin/",
        b"/relay/..%2fadmin/",
        b"/relay/..;/admin/",
        b"/relay/o/..%2f..%2fadmin/login/",
        b"/relay/o\\..\\..\\admin\\",
        b"/relay/./o/a",
        b"/./relay/o/a",
        b"/healthz/../relay/o/a",
        b"/static/../relay/o/a",
    ],
)
async def test_nothing_leads_from_one_part_of_the_relay_to_another(
    origin: Origin, relayed: Relayed, ground: Ground, target: bytes
) -> None:
    relayed()
    answer = await answer_to(ground, b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % target)
    assert answer.status in (400, 404)
    assert origin.connections_made == 0


@pytest.mark.parametrize(
    ("sent", "arrived"),
    [
        (b"/a%3fb=c", b"/v1/a%3fb=c"),
        (b"/a%3Fb?c", b"/v1/a%3Fb?c"),
        (b"/a%23b", b"/v1/a%23b"),
        (b"/a;b=c/d", b"/v1/a;b=c/d"),
        (b"/a&b=c", b"/v1/a&b=c"),
        (b"?a=1?b=2", b"/v1?a=1?b=2"),
        (b"?a=%26b=2", b"/v1?a=%26b=2"),
        (b"?a=1;b=2&a=3", b"/v1?a=1;b=2&a=3"),
        (b"?a=%23frag", b"/v1?a=%23frag"),
        (b"?%0d%0aHost:%20evil", b"/v1?%0d%0aHost:%20evil"),
        (b"?a=%00&b", b"/v1?a=%00&b"),
        (b"?../../x", b"/v1?../../x"),
        (b"??", b"/v1??"),
        (b"/?", b"/v1/?"),
    ],
)
async def test_path_and_query_keep_their_border_and_their_bytes(
    origin: Origin, relayed: Relayed, ground: Ground, sent: bytes, arrived: bytes
) -> None:
    relayed(base_path=b"/v1")
    origin.otherwise(reply(200))
    answer = await answer_to(ground, b"GET /relay/o%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % sent)
    assert answer.status == 200
    assert (origin.requests[0].target, len(origin.requests[0].values(b"host"))) == (arrived, 1)
