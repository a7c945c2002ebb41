"""The main journeys in a real browser against `manage.py serve`: sign in, register, copy the relay URL, fetch; and
register, make a consumer, issue a key, copy it.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.origin import Origin, reply
from tests.serving_ground import ADMIN_PASSWORD, ServedProcess

STEP_SECONDS = 15.0
EFFECT_SECONDS = 2.0
"""An edit takes effect in every worker within this."""


async def test_register_an_upstream_copy_its_url_and_fetch_through_it(browser: Browser, origin: Origin) -> None:
    origin.on(b"/base/greeting", reply(200, [(b"Content-Type", b"text/plain")], b"hello from the origin"))
    async with ServedProcess() as served:
        context = await browser.new_context(base_url=served.url)
        await context.grant_permissions(["clipboard-read", "clipboard-write"], origin=served.url)
        page = await signed_in(context)

        await page.get_by_role("link", name="Register an upstream").click()
        await page.get_by_label("Slug").fill("greeter")
        await page.get_by_label("Base URL").fill(f"{origin.url}/base")
        await page.get_by_label("Anyone who can reach the relay").check()
        await page.get_by_label("Allowed networks").fill("127.0.0.0/8")
        await page.get_by_role("button", name="Save", exact=True).click()
        await expect(page.get_by_text("was added successfully")).to_be_visible()

        copy = page.get_by_role("button", name="Copy the relay URL of greeter")
        await copy.focus()
        await page.keyboard.press("Enter")
        await expect(copy).to_have_text("Copied")
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert copied == f"{served.url}/relay/greeter/"
        await selects_the_url_without_a_clipboard(context, copied)

        assert await body_through_the_relay(page, f"{copied}greeting") == "hello from the origin"


@pytest.mark.timeout(180)
async def test_issue_a_key_for_a_new_consumer_and_copy_it(browser: Browser, origin: Origin) -> None:
    async with ServedProcess() as served:
        context = await browser.new_context(base_url=served.url)
        await context.grant_permissions(["clipboard-read", "clipboard-write"], origin=served.url)
        page = await signed_in(context)

        await page.get_by_role("link", name="Register an upstream").click()
        await page.get_by_label("Slug").fill("greeter")
        await page.get_by_label("Base URL").fill(f"{origin.url}/base")
        await page.get_by_label("Allowed networks").fill("127.0.0.0/8")
        await page.get_by_role("button", name="Save and continue editing").click()
        await expect(page.get_by_text("Nobody yet")).to_be_visible()

        await page.get_by_role("link", name="Consumers").click()
        await page.get_by_role("link", name="Make the first consumer").click()
        await page.get_by_label("Name").fill("mobile app")
        await page.get_by_role("button", name="Save", exact=True).click()
        await page.get_by_role("link", name="Issue the first key").click()
        await expect(page.get_by_text("mobile app may call nothing yet.")).to_be_visible()
        await page.locator("[aria-labelledby='select2-id_upstream-container']").click()
        await page.get_by_role("option", name="greeter").click()
        await page.get_by_label("Label").fill("laptop")
        await page.get_by_role("button", name="Issue").click()

        await expect(page.get_by_text("it is shown this once")).to_be_visible()
        await page.get_by_role("button", name="Copy the key", exact=True).click()
        key = await page.evaluate("navigator.clipboard.readText()")
        await page.get_by_role("button", name="Copy Read for greeter").click()
        command = await page.evaluate("navigator.clipboard.readText()")
        assert command == f"curl -H 'Relay-Key: {key}' {served.url}/relay/greeter/"
        assert await consumers_that_show(key, served) == ["mobile app"]

        page.once("dialog", lambda dialog: dialog.accept())
        await page.reload()
        await expect(page.get_by_text("was issued the key")).to_be_visible()
        assert key not in await page.content()
        await page.get_by_role("link", name="Keys", exact=True).click()
        await expect(page.get_by_text(f"{key[:11]}…")).to_be_visible()
        assert await page.locator("#result_list tbody tr").count() == 1


async def signed_in(context: BrowserContext) -> Page:
    """The start page."""
    context.set_default_timeout(STEP_SECONDS * 1000)
    page = await context.new_page()
    await page.goto("/")
    await page.get_by_label("Username").fill("admin")
    await page.get_by_label("Password").fill(ADMIN_PASSWORD)
    await page.get_by_role("button", name="Log in").click()
    return page


async def consumers_that_show(key: str, served: ServedProcess) -> list[str]:
    """Whose key it is for a worker that loads the catalog now."""
    code = (
        "import json; from relay import vault; from relay.catalog import loader; roster = loader.load_all().roster; "
        f"found = [roster.find(digest) for digest in vault.keyring().digests({key.encode()!r})]; "
        "print(json.dumps([key.consumer.name for key in found if key]))"
    )
    ran = await served.manage("shell", "--no-imports", "-c", code)
    assert ran.code == 0, ran.err
    names: list[str] = json.loads(ran.out)
    return names


async def selects_the_url_without_a_clipboard(context: BrowserContext, url: str) -> None:
    page = await context.new_page()
    await page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    await page.add_init_script("document.execCommand = () => false")
    await page.goto("/admin/relay/upstream/")
    copy = page.get_by_role("button", name="Copy the relay URL of greeter")
    await copy.click()
    await expect(copy).to_have_text("Press Ctrl+C")
    assert await page.evaluate("getSelection().toString()") == url
    await page.close()


async def body_through_the_relay(page: Page, url: str) -> str:
    async with asyncio.timeout(EFFECT_SECONDS):
        while True:
            response = await page.goto(url)
            assert response is not None
            if response.status == 200:
                return await response.text()
