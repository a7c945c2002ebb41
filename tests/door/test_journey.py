"""The door in a real browser: password, setting up the second factor, the code, the lock; and the policy for pages."""

from __future__ import annotations

import base64
import time

import pytest
from django_otp.oath import TOTP
from playwright.async_api import Browser, Page, expect

from config.middleware import CONTENT_SECURITY_POLICY
from tests.origin import Origin, reply
from tests.serving_ground import ADMIN_PASSWORD, ServedProcess

pytestmark = pytest.mark.timeout(180)

ADMIN_PAGES = [
    "",
    "relay/upstream/",
    "relay/upstream/add/",
    "relay/upstream/1/change/",
    "relay/upstream/1/delete/",
    "relay/upstream/1/history/",
    "auth/user/?q=adm",
    "auth/user/1/change/",
    "auth/user/1/password/",
    "auth/group/add/",
    "password_change/",
    "nowhere/",
]


async def give_password(page: Page, password: str = ADMIN_PASSWORD) -> None:
    await page.goto("/admin/relay/upstream/")
    await page.get_by_label("Username").fill("admin")
    await page.get_by_label("Password").fill(password)
    await page.get_by_role("button", name="Log in").click()


def code_of(secret: str, *, steps: int = 0) -> str:
    totp = TOTP(base64.b32decode(secret.replace(" ", "")))
    totp.time = time.time() + 30 * steps
    return f"{totp.token():06d}"


async def test_password_then_second_factor_then_the_page_asked_for(browser: Browser) -> None:
    environment = {"RELAY_ADMIN_MFA": "on"}
    async with ServedProcess(environment=environment, start_seconds=60) as served:
        page = await (await browser.new_context(base_url=served.url)).new_page()
        await give_password(page)
        await expect(page.get_by_role("heading", name="Set up a second factor")).to_be_visible()
        await expect(page.locator("svg.door-picture")).to_be_visible()
        secret = await page.locator(".door-secret").inner_text()
        await page.get_by_label("Code").fill(code_of(secret))
        await page.get_by_role("button", name="Confirm").click()
        backup = await page.get_by_role("list", name="Backup codes").get_by_role("listitem").all_inner_texts()
        await page.get_by_role("link", name="I have kept them").click()
        await expect(page).to_have_url(f"{served.url}/admin/relay/upstream/")

        other = await (await browser.new_context(base_url=served.url)).new_page()
        await give_password(other)
        await other.get_by_label("Code").fill(backup[0])
        await other.get_by_role("button", name="Go on").click()
        await expect(other).to_have_url(f"{served.url}/admin/relay/upstream/")

        assert (await served.manage("mfa", "reset", "admin")).code == 0
        await page.goto("/admin/")
        await expect(page.get_by_label("Username")).to_be_visible()
        await give_password(page)
        await expect(page.get_by_role("heading", name="Set up a second factor")).to_be_visible()


async def test_the_lock_in_a_browser_and_how_an_operator_opens_it(browser: Browser) -> None:
    async with ServedProcess(start_seconds=60) as served:
        page = await (await browser.new_context(base_url=served.url)).new_page()
        for _ in range(5):
            await give_password(page, "wrong")
            await expect(page.get_by_text("Please enter the correct")).to_be_visible()
        await give_password(page)
        await expect(page.get_by_role("heading", name="Too many attempts")).to_be_visible()
        assert ADMIN_PASSWORD not in "\n".join(served.output)
        assert (await served.manage("axes_reset_username", "admin")).code == 0
        await page.get_by_role("link", name="Back to sign-in").click()
        await give_password(page)
        await expect(page).to_have_url(f"{served.url}/admin/relay/upstream/")


async def test_no_page_of_the_admin_breaks_the_policy_and_relayed_pages_do_not_get_it(
    browser: Browser, origin: Origin
) -> None:
    origin.on(b"/page", reply(200, [(b"Content-Type", b"text/html")], b"<p>hello"))
    async with ServedProcess(start_seconds=60) as served:
        for_anyone = ("--access", "anyone", "--allow-network", "127.0.0.0/8")
        await served.register("o", origin.url, *for_anyone)
        page = await (await browser.new_context(base_url=served.url)).new_page()
        complaints: list[str] = []
        page.on("console", lambda line: complaints.append(line.text) if "Security Policy" in line.text else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await give_password(page)
        for path in ADMIN_PAGES:
            answer = await page.goto(f"/admin/{path}")
            assert answer is not None
            assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        # The policy is in force: what a page was made to say does not run.
        await page.goto("/admin/")
        ran = await page.evaluate(
            """() => { const script = document.createElement('script'); script.textContent = 'window.ran = 1';
                       document.body.append(script); return window.ran === 1 }"""
        )
        assert not ran
        assert len(complaints) == 1, complaints
        relayed = await page.goto("/relay/o/page")
        assert relayed is not None
        assert relayed.headers.get("content-security-policy") != CONTENT_SECURITY_POLICY
