"""The path after the slug and the query reach the upstream byte for byte, or the request is refused."""

from __future__ import annotations

import pytest

from tests.behaviour.conftest import Relayed
from tests.caller import Caller
from tests.origin import Origin, reply

SENT_AS_THEY_ARE = [
    b"/",
    b"/a",
    b"/a/",
    b"//",
    b"//a///b//",
    b"/%2F",
    b"/%2f%41%7e",
    b"/a%2Fb/%2f/c",
    b"/%zz",
    b"/%",
    b"/%4",
    b"/100%",
    b"/%25",
    b"/%252f",
    b"/%C3%A9%ff",
    b"/a;b=c;d/e;",
    b"/;",
    b'/"quoted"',
    b"/it's",
    b"/{x}|^`<>[]",
    b"/a\\b",
    b"/%5Cb",
    b"/a+b%20c",
    b"/~!$&'()*+,=:@-._",
    b"/:80",
    b"/@host/",
    b"/http://other.example/x",
    b"/*",
    b"/...",
    b"/.a/a./a..b/.well-known/..a",
    b"/a?b=c",
    b"/a?b=%zz&c=d;e&&=",
    b"/a?",
    b"/?",
    b"/a??",
    b"/a?x?y/?z",
    b"/a?back=/../b/./c",
    b"/a?..",
    b"/a?%2e%2e/",
    b"/a?q=\"{}<>|\\^`'",
    b"/a?%00%0d%0a",
    b"/a?b=http://other.example/",
    b"//?//",
]

REFUSED = [
    b"/..",
    b"/.",
    b"/a/../b",
    b"/a/./b",
    b"/../../etc/passwd",
    b"/%2e%2e/b",
    b"/%2E%2e",
    b"/.%2e/b",
    b"/%2e./b",
    b"/%2e",
    b"/a/..;x/b",
    b"/a/..%3bx/b",
    b"/a/.;/b",
    b"/a\\..\\b",
    b"/a/..\\b",
    b"/a%5c..%5Cb",
    b"/a%2f..%2Fb",
    b"/a%2F%2e%2e%2fb",
    b"/%252e%252e/b",
    b"/%25252e%25252E/b",
    b"/a%255c..",
    b"//../b",
    b"/a#b",
    b"/a?b#c",
    b"/#",
    b"/a#b?c",
    b"/%00",
    b"/a%0d%0aX-Injected:%20yes",
    b"/a%0Ab",
    b"/a%1f",
    b"/a%7Fb",
    b"/a%09b",
    b"/%25%32%65./b",
    b"/a/%2%65%2%65/b",
    b"/%" + b"25" * 20,
]


@pytest.mark.parametrize("target", SENT_AS_THEY_ARE)
async def test_path_and_query_arrive_byte_for_byte(
    origin: Origin, relayed: Relayed, caller: Caller, target: bytes
) -> None:
    relayed()
    origin.otherwise(reply(200))
    assert (await caller.get(b"/relay/o" + target)).status == 200
    assert (await origin.next_request()).line == b"GET " + target + b" HTTP/1.1"


@pytest.mark.parametrize("path", REFUSED)
async def test_an_ambiguous_path_is_refused_before_anything_goes_out(
    origin: Origin, relayed: Relayed, caller: Caller, path: bytes
) -> None:
    relayed()
    answer = await caller.get(b"/relay/o" + path)
    assert answer.status == 400
    assert b"urn:relay:error:path-ambiguous" in answer.data
    assert origin.connections_made == 0


@pytest.mark.parametrize("path", [b"/a\tb", b"/a\x7fb", b"/\x01", b"/\xc3\xa9", b"/a?\xff", b"/a?b\x7f", b"/a b"])
async def test_bytes_that_no_target_has_are_refused(
    origin: Origin, relayed: Relayed, caller: Caller, path: bytes
) -> None:
    relayed()
    assert (await caller.get(b"/relay/o" + path)).status == 400
    assert origin.connections_made == 0


async def test_an_endless_target_is_refused(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    assert (await caller.get(b"/relay/o/a?" + b"b" * 70_000)).status == 414
    assert origin.connections_made == 0


@pytest.mark.parametrize(
    ("base_path", "asked", "target"),
    [
        (b"", b"", b"/"),
        (b"", b"?q", b"/?q"),
        (b"", b"/", b"/"),
        (b"/", b"", b"/"),
        (b"/", b"/a", b"/a"),
        (b"/v1", b"", b"/v1"),
        (b"/v1", b"?q=1", b"/v1?q=1"),
        (b"/v1", b"/", b"/v1/"),
        (b"/v1", b"//", b"/v1//"),
        (b"/v1", b"/a?q", b"/v1/a?q"),
        (b"/v1/", b"", b"/v1/"),
        (b"/v1/", b"?q", b"/v1/?q"),
        (b"/v1", b"?", b"/v1?"),
        (b"", b"?", b"/?"),
        (b"/v1/", b"/", b"/v1/"),
        (b"/v1/", b"/a", b"/v1/a"),
        (b"/v1/", b"//a", b"/v1//a"),
        (b"/%7Euser/x;y", b"/a", b"/%7Euser/x;y/a"),
    ],
)
async def test_the_slug_stands_for_the_base_path(
    origin: Origin, relayed: Relayed, caller: Caller, base_path: bytes, asked: bytes, target: bytes
) -> None:
    relayed(base_path=base_path)
    origin.otherwise(reply(200))
    assert (await caller.get(b"/relay/o" + asked)).status == 200
    assert (await origin.next_request()).target == target


@pytest.mark.parametrize("slug", [b"O", b"o%20", b"%6f", b"", b"o;x", b"o.", b"O/", b"nobody"])
async def test_a_slug_is_known_in_its_own_spelling_only(
    origin: Origin, relayed: Relayed, caller: Caller, slug: bytes
) -> None:
    relayed()
    answer = await caller.get(b"/relay/" + slug)
    assert answer.status == 404
    assert b"urn:relay:error:upstream-unknown" in answer.data
    assert origin.connections_made == 0


@pytest.mark.parametrize("path", [b"/%72elay/o/a", b"/relay%2Fo/a"])
async def test_a_mount_in_disguise_is_not_the_mount(
    origin: Origin, relayed: Relayed, caller: Caller, path: bytes
) -> None:
    relayed()
    assert (await caller.get(path)).status in (400, 404)
    assert origin.connections_made == 0


async def test_an_absolute_target_is_the_same_as_its_path(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed()
    origin.otherwise(reply(200))
    assert (await caller.get(b"http://localhost/relay/o/a%2Fb?c", [(b"Host", b"localhost")])).status == 200
    assert (await origin.next_request()).target == b"/a%2Fb?c"
