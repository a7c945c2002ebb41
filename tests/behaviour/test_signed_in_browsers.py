"""What may be signed is what browsers send as it stands: every other character is refused before it is signed."""

from __future__ import annotations

from html import escape
from uuid import UUID

from playwright.async_api import Browser

from relay import catalog
from relay.catalog.roster import Consumer, Roster, SigningKey
from relay.models import SigningKey as StoredKey
from relay.rules.grants import Grant
from relay.signing import CannotSign, sign
from tests.behaviour.conftest import upstream_at
from tests.origin import Origin, reply
from tests.serving_ground import Ground

ASCII = "".join(map(chr, range(0x20, 0x7F)))


def signable(before: str, key: StoredKey) -> str:
    """The characters that may stand behind `before`."""
    found = ""
    for character in ASCII:
        try:
            sign(f"{before}{character}", key=key)
        except CannotSign:
            continue
        found += character
    return found


async def test_pictures_in_a_page_are_fetched_by_the_very_urls_that_were_signed(
    origin: Origin, ground: Ground, browser: Browser
) -> None:
    key = StoredKey(public_id="abcdefghij")
    key.secret_sealed = key.sealed(bytes(range(32)))
    consumer = Consumer(UUID(int=1), "shop", {7: (Grant(),)}, signing_keys=(SigningKey(key.public_id, key.secret()),))
    upstream = upstream_at(origin, open_to_anyone=False, id=7)
    catalog.publish(catalog.Snapshot([upstream], roster=Roster([(consumer, ())])))
    origin.otherwise(reply(200, [(b"Content-Type", b"text/plain")], b"fetched"))
    in_path = signable("/relay/o/a", key).replace("?", "").replace("#", "")
    in_query = signable("/relay/o/a?", key).replace("#", "")
    assert {"'", "[", "&", "%", "/"} <= set(in_path)
    assert "'" not in in_query
    assert {"[", "&", "%", "/", "?"} <= set(in_query)
    places = [f"/a{in_path}z", f"/a?a{in_query}z", "/a?", "/a//b/;c=1,2/%C3%BC?x=%27"]
    page = await browser.new_page()
    await page.goto(f"{ground.url}/healthz")
    for place in places:
        url = sign(f"/relay/o{place}", key=key)
        async with page.expect_response(lambda response: "relay-signature" in response.url) as fetched:
            await page.set_content(f'<img src="{escape(ground.url + url)}" alt="">')
        assert (await fetched.value).status == 200, url
        assert (await origin.next_request()).target.decode() == place
