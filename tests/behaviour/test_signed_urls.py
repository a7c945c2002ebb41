"""Signed URLs on the wire: what they open and for how long, what the upstream sees of them, and how they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from relay import catalog
from relay.catalog import usage
from relay.catalog.roster import Consumer, Roster, SigningKey
from relay.rules import signing
from relay.rules.grants import Grant
from relay.serving import underway
from tests.behaviour.conftest import Logged, upstream_at
from tests.caller import Answer, Caller, request_bytes
from tests.origin import Gate, Origin, Received, drip, echo, reply
from tests.serving_ground import ServedProcess

SECRET = bytes(range(32))
ID = "abcdefghij"
EFFECT_SECONDS = 2.0
"""An edit takes effect in every worker within this."""

Publish = Callable[..., None]


@pytest.fixture(autouse=True)
def publish(origin: Origin) -> Publish:
    """Publishes upstream `o`, which wants a key, and a signing key of a consumer with `grants` there. Again, anew."""

    def publish(
        *, grants: tuple[Grant, ...] = (Grant(),), keys: tuple[str, ...] = (ID,), is_on: bool = True, **fields: Any
    ) -> None:
        revision = catalog.current().revision + 1
        fields = {"open_to_anyone": False, "id": 7, "revision": revision} | fields
        consumer = Consumer(uuid4(), "shop", {7: grants}, signing_keys=tuple(SigningKey(key, SECRET) for key in keys))
        roster = Roster([(consumer, ())] if is_on else [])
        catalog.publish(catalog.Snapshot([upstream_at(origin, **fields)], roster=roster, revision=revision))

    publish()
    origin.otherwise(reply(200, [(b"Content-Type", b"image/png")], b"a picture"))
    return publish


def signed(target: bytes, *, method: str = "GET", lives: float = 60, slug: bytes = b"o", key_id: str = ID) -> bytes:
    """`target` as `/relay/o/...` with its signature, made by the rule alone."""
    path, mark, query = target.partition(b"?")
    asked = query if mark else None
    value = signing.sign(
        SECRET,
        key_id=key_id,
        method=method,
        slug=slug,
        path=path.removeprefix(b"/relay/" + slug),
        query=asked,
        expires_at=int(time.time() + lives),
    )
    return path + b"?" + signing.join(asked, value)


def problem(answer: Answer) -> tuple[int, str]:
    (kind,) = answer.values(b"content-type")
    assert kind == b"application/problem+json"
    return answer.status, answer.data.partition(b"urn:relay:error:")[2].partition(b'"')[0].decode()


async def test_a_picture_is_fetched_as_often_as_it_is_asked_for(caller: Caller, origin: Origin) -> None:
    url = signed(b"/relay/o/logo.png")
    for _ in range(3):
        answer = await caller.get(url)
        assert (answer.status, answer.data) == (200, b"a picture")
        assert (await origin.next_request()).target == b"/logo.png"
    assert problem(await caller.get(b"/relay/o/logo.png")) == (401, "key-required")


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        (b"/relay/o/x", b"/x"),
        (b"/relay/o/x?", b"/x?"),
        (b"/relay/o", b"/"),
        (b"/relay/o/", b"/"),
        (b"/relay/o?a", b"/?a"),
        (b"/relay/o/x?a=1&b=%2f&&c=%zz;d", b"/x?a=1&b=%2f&&c=%zz;d"),
        (b"/relay/o//%C3%BC/;v=1,2/?q=relay-signature", b"//%C3%BC/;v=1,2/?q=relay-signature"),
    ],
)
async def test_the_upstream_sees_what_was_signed_byte_for_byte(
    caller: Caller, origin: Origin, target: bytes, seen: bytes
) -> None:
    assert (await caller.get(signed(target))).status == 200
    request = await origin.next_request()
    assert request.target == seen
    assert ID.encode() not in b"".join(value for _, value in request.headers)


async def test_head_and_ranges_pass_for_players(caller: Caller, origin: Origin) -> None:
    url = signed(b"/relay/o/film.mp4")
    assert (await caller.get(url, method=b"HEAD")).status == 200
    assert (await origin.next_request()).method == b"HEAD"
    origin.on(b"/film.mp4", reply(206, [(b"Content-Range", b"bytes 10-14/20")], b"parts"))
    answer = await caller.get(url, [(b"Range", b"bytes=10-14")])
    assert (answer.status, answer.data) == (206, b"parts")
    assert answer.values(b"content-range") == [b"bytes 10-14/20"]
    assert (await origin.next_request()).values(b"range") == [b"bytes=10-14"]


async def test_a_signed_post_takes_its_body_along(caller: Caller, origin: Origin) -> None:
    origin.on(b"/form", echo())
    answer = await caller.get(signed(b"/relay/o/form", method="POST"), method=b"POST", body=b"a=1")
    assert answer.status == 200
    assert (await origin.next_request()).body_length == 3


def flipped(url: bytes) -> bytes:
    return url[:-1] + (b"A" if url[-1:] != b"A" else b"Q")


def changed(old: bytes, new: bytes) -> bytes:
    url = signed(b"/relay/o/x?a=1")
    assert old in url
    return url.replace(old, new)


def twice() -> bytes:
    url = signed(b"/relay/o/x?a=1")
    return url + url[url.index(b"&") :]


REFUSED = (403, "signature-refused")
MISPLACED = (400, "signature-misplaced")


# Made when the test runs: a signature's time goes by.
@pytest.mark.parametrize(
    ("make", "method", "refusal"),
    [
        pytest.param(lambda: signed(b"/relay/o/x", lives=-1), b"GET", (403, "signature-expired"), id="expired"),
        pytest.param(lambda: signed(b"/relay/o/x", key_id="bbbbbbbbbb"), b"GET", REFUSED, id="unknown-key"),
        pytest.param(lambda: signed(b"/relay/o/x"), b"POST", REFUSED, id="method"),
        pytest.param(lambda: signed(b"/relay/o/x", method="HEAD"), b"GET", REFUSED, id="get-by-head"),
        pytest.param(lambda: changed(b"/x", b"/y"), b"GET", REFUSED, id="path"),
        pytest.param(lambda: changed(b"a=1", b"a=2"), b"GET", REFUSED, id="query"),
        pytest.param(lambda: changed(b"a=1&", b""), b"GET", REFUSED, id="query-gone"),
        pytest.param(lambda: changed(b"/x", b"/%78"), b"GET", REFUSED, id="spelling"),
        pytest.param(lambda: flipped(signed(b"/relay/o/x")), b"GET", REFUSED, id="code"),
        pytest.param(lambda: b"/relay/o/x?relay-signature=nonsense", b"GET", REFUSED, id="form"),
        pytest.param(lambda: signed(b"/relay/o/x") + b"&utm_source=mail", b"GET", MISPLACED, id="appended"),
        pytest.param(twice, b"GET", MISPLACED, id="twice"),
        pytest.param(lambda: changed(b"relay-s", b"relay%2ds"), b"GET", MISPLACED, id="name"),
        pytest.param(lambda: signed(b"/relay/p/x", slug=b"p"), b"GET", (404, "upstream-unknown"), id="upstream"),
    ],
)
async def test_anything_else_opens_nothing_and_reaches_nobody(
    caller: Caller,
    origin: Origin,
    logged: Logged,
    make: Callable[[], bytes],
    method: bytes,
    refusal: tuple[int, str],
) -> None:
    answer = await caller.get(make(), method=method)
    assert problem(answer) == refusal
    assert ID.encode() not in answer.data
    assert answer.values(b"cache-control") == [b"no-store"]
    line = await logged.next()
    assert (line["status"], line["outcome"]) == refusal
    assert "consumer" not in line
    with pytest.raises(TimeoutError):
        await origin.next_request(within=0.05)


async def test_a_signature_makes_no_path_less_ambiguous(caller: Caller, origin: Origin) -> None:
    assert problem(await caller.get(signed(b"/relay/o/%2e%2e/x"))) == (400, "path-ambiguous")
    with pytest.raises(TimeoutError):
        await origin.next_request(within=0.05)


@pytest.mark.parametrize(
    ("grants", "target", "method", "status"),
    [
        ((), b"/relay/o/x", "GET", 403),
        ((Grant(frozenset({"POST"})),), b"/relay/o/x", "GET", 403),
        ((Grant(prefixes=(b"/public",)),), b"/relay/o/private", "GET", 403),
        ((Grant(prefixes=(b"/public",)),), b"/relay/o/public/x", "GET", 200),
        ((Grant(frozenset({"GET"})),), b"/relay/o/x", "GET", 200),
        ((Grant(frozenset({"GET"})),), b"/relay/o/x", "POST", 403),
    ],
)
async def test_a_signature_opens_no_more_than_its_consumer_is_granted(
    caller: Caller, publish: Publish, grants: tuple[Grant, ...], target: bytes, method: str, status: int
) -> None:
    publish(grants=grants)
    answer = await caller.get(signed(target, method=method), method=method.encode())
    assert answer.status == status
    if status == 403:
        assert problem(answer) == (403, "not-granted")


async def test_an_upstreams_methods_count_for_signed_urls_too(caller: Caller, publish: Publish) -> None:
    publish(methods=frozenset({"GET"}))
    assert (await caller.get(signed(b"/relay/o/x", method="PUT"), method=b"PUT")).status == 405


@pytest.mark.parametrize("end", [{"keys": ()}, {"is_on": False}], ids=["revoked", "consumer-off"])
async def test_a_revoked_key_and_a_consumer_switched_off_end_it(
    caller: Caller, publish: Publish, end: dict[str, Any]
) -> None:
    url = signed(b"/relay/o/x")
    assert (await caller.get(url)).status == 200
    publish(**end)
    assert problem(await caller.get(url)) == (403, "signature-refused")
    publish()
    assert (await caller.get(url)).status == 200


async def test_the_log_names_consumer_and_key_and_never_the_signature(
    caller: Caller, origin: Origin, logged: Logged
) -> None:
    url = signed(b"/relay/o/x")
    await caller.get(url)
    line = await logged.next()
    assert (line["consumer"], line["key"], line["outcome"]) == ("shop", ID, "ok")
    assert url.rpartition(b".")[2].decode() not in str(line)


async def test_where_anyone_may_call_the_signature_is_cut_off_and_not_looked_at(
    caller: Caller, origin: Origin, publish: Publish
) -> None:
    publish(open_to_anyone=True)
    good = signed(b"/relay/o/x?a")
    for url in (good, flipped(good), signed(b"/relay/o/x?a", lives=-1), b"/relay/o/x?a&relay-signature=nonsense"):
        assert (await caller.get(url)).status == 200
        assert (await origin.next_request()).target == b"/x?a"
    assert problem(await caller.get(good + b"&b")) == MISPLACED


# What else could tell the upstream, or others, of it.


def referers(request: Received) -> list[bytes]:
    return request.values(b"referer")


async def test_a_referer_with_a_signature_does_not_reach_the_upstream(caller: Caller, origin: Origin) -> None:
    url = signed(b"/relay/o/x")
    for shown, seen in [
        (b"https://relay.example" + url, []),
        (b"https://relay.example/relay/o/x?relay%2Dsignature=1", []),
        (b"https://shop.example/page?q=relay-signature", [b"https://shop.example/page?q=relay-signature"]),
    ]:
        await caller.get(url, [(b"Referer", shown)])
        assert referers(await origin.next_request()) == seen


async def test_what_a_signed_page_loads_or_links_to_is_not_told_its_url(caller: Caller, origin: Origin) -> None:
    page = reply(200, [(b"Content-Type", b"text/html"), (b"Referrer-Policy", b"unsafe-url")], b"<p>page")
    origin.otherwise(page)
    assert (await caller.get(signed(b"/relay/o/page"))).values(b"referrer-policy") == [b"no-referrer"]


async def test_other_answers_keep_the_upstreams_referrer_policy(
    caller: Caller, origin: Origin, publish: Publish
) -> None:
    publish(open_to_anyone=True)
    origin.otherwise(reply(200, [(b"Referrer-Policy", b"unsafe-url")]))
    assert (await caller.get(b"/relay/o/page")).values(b"referrer-policy") == [b"unsafe-url"]


# What is under way.


@pytest.mark.parametrize(
    "end", [{"keys": ()}, {"is_on": False}, {"grants": ()}], ids=["revoked", "consumer-off", "grant-taken"]
)
async def test_what_is_fetched_is_cut_off_when_its_key_ends(
    caller: Caller, origin: Origin, publish: Publish, logged: Logged, end: dict[str, Any]
) -> None:
    gate = Gate()
    gate.open()
    origin.on(b"/film", drip([b"one", b"two"], gate))
    await caller.send(request_bytes(signed(b"/relay/o/film"), host=b"localhost"))
    assert (await caller.read_head()).status == 200
    assert await caller.read_chunk() == b"one"
    publish(**end)
    underway.judge_again(catalog.current())
    assert not (await caller.read_body()).ended.cleanly
    line = await logged.next()
    assert (line["status"], line["outcome"], line["key"]) == (200, "key-revoked", ID)


async def test_what_began_in_time_goes_on_past_its_urls_expiry_and_past_other_edits(
    caller: Caller, origin: Origin, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    gate.open()
    origin.on(b"/film", drip([b"one", b"two"], gate))
    await caller.send(request_bytes(signed(b"/relay/o/film"), host=b"localhost"))
    assert (await caller.read_head()).status == 200
    assert await caller.read_chunk() == b"one"
    monkeypatch.setattr(underway, "time", lambda: time.time() + 3600)
    publish()
    underway.judge_again(catalog.current())
    gate.open(2)
    assert await caller.read_chunk() == b"two"
    assert (await caller.read_body()).ended.cleanly


async def test_in_report_only_mode_a_wrong_signature_passes_and_is_told_of(
    caller: Caller, origin: Origin, publish: Publish, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "note_would_refuse", lambda *_: None)
    publish(report_only=True)
    good = signed(b"/relay/o/x?a")
    for url, reason in [
        (flipped(good), "signature-refused"),
        (signed(b"/relay/o/x?a", lives=-1), "signature-expired"),
        (good, None),
    ]:
        assert (await caller.get(url)).status == 200
        assert (await origin.next_request()).target == b"/x?a"
        assert (await logged.next()).get("would_refuse") == reason
    assert problem(await caller.get(good + b"&b")) == MISPLACED


async def test_a_signed_url_is_judged_by_its_signature_whatever_key_is_shown(
    caller: Caller, origin: Origin, logged: Logged
) -> None:
    nobodys = [(b"Relay-Key", b"rk_" + b"a" * 8 + b"B" * 43)]
    good = signed(b"/relay/o/x")
    assert (await caller.get(good, nobodys)).status == 200
    assert (await origin.next_request()).values(b"relay-key") == []
    assert (await logged.next())["key"] == ID
    assert problem(await caller.get(flipped(good), nobodys)) == REFUSED


# The whole way, from the command to the wire and back.

SETUP = """
from relay.models import Consumer, Grant, Upstream
upstream = Upstream.objects.create(slug="images", base_url="{url}", allowed_networks="127.0.0.0/8")
Grant.objects.create(consumer=Consumer.objects.create(name="shop"), upstream=upstream, methods="GET")
"""


@pytest.mark.timeout(180)  # it starts five processes, one after the other
async def test_a_key_made_by_the_command_signs_and_revoked_its_urls_are_dead(origin: Origin) -> None:
    async with ServedProcess() as served:

        async def manage(*arguments: str) -> str:
            finished = await served.manage(*arguments, within=60)
            assert finished.code == 0, finished.err
            return finished.out.strip()

        await manage("shell", "-v0", "-c", SETUP.format(url=origin.url))
        key_id = await manage("signing", "add", "shop", "--label", "newsletter")
        url = (await manage("signing", "sign", "/relay/images/logo.png?w=1", "--key", "newsletter")).encode()
        await until_status(served.port, url, 200)
        assert (await origin.next_request()).target == b"/logo.png?w=1"
        await manage("signing", "revoke", key_id)
        await until_status(served.port, url, 403)


async def until_status(port: int, url: bytes, status: int) -> None:
    async with asyncio.timeout(EFFECT_SECONDS), Caller(port) as caller:
        while (await caller.get(url)).status != status:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.05)
