"""What hostile pages can do in a real browser, opened through the relay by somebody who is signed in to the admin.

The attacks run in the hostile page itself. Afterwards the admin has to be as it was: signed in, readable by nobody
else, and without anything that nobody there saved.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.origin import Origin, Received, reply
from tests.serving_ground import ADMIN_PASSWORD, ServedProcess

pytestmark = pytest.mark.timeout(400)  # a browser and a server each, on machines that do other things too

START_SECONDS = 90.0
PATIENCE_MS = 30_000

SCRIPT = b"document.documentElement.setAttribute('data-ran', self.origin)"
XHTML = b'<html xmlns="http://www.w3.org/1999/xhtml"><body><script>%b</script></body></html>' % SCRIPT
HOSTILE = {
    b"/page.html": (b"text/html", b"<!doctype html><title>hostile</title><body><script>%b</script>" % SCRIPT),
    b"/page.svg": (b"image/svg+xml", b'<svg xmlns="http://www.w3.org/2000/svg"><script>%b</script></svg>' % SCRIPT),
    b"/page.xhtml": (b"application/xhtml+xml", XHTML),
    b"/page.xml": (b"text/xml", XHTML),
}

READ = """async (url) => {
    const outcomes = {};
    const attempt = async (name, act) => {
        try { outcomes[name] = String(await act()); } catch (problem) { outcomes[name] = problem.name; }
    };
    await attempt("fetch", async () => (await fetch(url, {credentials: "include"})).text());
    await attempt("post", async () => (await fetch(url, {method: "POST", credentials: "include"})).text());
    await attempt("request", () => new Promise((resolve, reject) => {
        const request = new XMLHttpRequest();
        request.open("GET", url);
        request.withCredentials = true;
        request.onload = () => resolve(request.responseText);
        request.onerror = () => reject({name: "NetworkError"});
        request.send();
    }));
    await attempt("frame", async () => {
        const frame = document.createElementNS("http://www.w3.org/1999/xhtml", "iframe");
        frame.src = url;
        const loaded = new Promise((resolve) => { frame.onload = resolve; });
        document.documentElement.append(frame);
        await loaded;
        const seen = frame.contentDocument;
        return seen === null ? "nothing" : seen.documentElement.outerHTML;
    });
    await attempt("window", async () => {
        const opened = window.open(url);
        if (opened === null) return "nothing";
        for (let turn = 0; turn < 20; turn += 1) {
            await new Promise((resolve) => setTimeout(resolve, 50));
            if (opened.closed) return "nothing";
            // Until it is there, an empty page of ours stands in its place.
            if (opened.location.href !== "about:blank") return opened.document.documentElement.outerHTML;
        }
        return "nothing";
    });
    await attempt("cookies", () => document.cookie);
    await attempt("storage", () => localStorage.length);
    await attempt("opener", () => window.opener && window.opener.document.documentElement.outerHTML);
    return outcomes;
}"""

REGISTER = """async ([script, scope]) => {
    try {
        await navigator.serviceWorker.register(script, scope ? {scope} : {});
        return "registered";
    } catch (problem) {
        return problem.name;
    }
}"""

SUBMIT = """([url, fields]) => {
    const form = document.createElementNS("http://www.w3.org/1999/xhtml", "form");
    form.method = "post";
    form.action = url;
    for (const [name, value] of Object.entries(fields)) {
        const field = document.createElementNS("http://www.w3.org/1999/xhtml", "input");
        field.name = name;
        field.value = value;
        form.append(field);
    }
    document.documentElement.append(form);
    form.submit();
}"""


@pytest_asyncio.fixture
async def served(origin: Origin) -> AsyncIterator[ServedProcess]:
    """Relay and admin at one host name."""
    for path, (kind, body) in HOSTILE.items():
        origin.on(path, reply(200, [(b"Content-Type", kind)], body))
    origin.on(b"/worker.js", reply(200, [(b"Content-Type", b"text/javascript"), (b"Service-Worker-Allowed", b"/")]))
    async with ServedProcess(start_seconds=START_SECONDS) as served:
        await register(served, origin)
        yield served


async def register(served: ServedProcess, origin: Origin) -> None:
    await served.register("evil", origin.url, "--access", "anyone", "--allow-network", "127.0.0.0/8")


async def signed_in(browser: Browser, url: str) -> tuple[BrowserContext, Page]:
    """(its cookies, the admin's own page)"""
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(f"{url}/admin/")
    await page.get_by_label("Username").fill("admin")
    await page.get_by_label("Password").fill(ADMIN_PASSWORD)
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("heading", name="What to do here")).to_be_visible(timeout=PATIENCE_MS)
    return context, page


async def is_still_signed_in(page: Page) -> None:
    response = await page.reload()
    assert response is not None
    assert response.status == 200
    await expect(page.get_by_role("heading", name="What to do here")).to_be_visible(timeout=PATIENCE_MS)


async def opened(context: BrowserContext, url: str, *, origin: str) -> Page:
    """A tab with a hostile page, whose script has run as `origin`."""
    page = await context.new_page()
    await go_to(page, url)
    assert await page.evaluate("document.documentElement.getAttribute('data-ran')") == origin
    return page


async def go_to(page: Page, url: str) -> None:
    response = await page.goto(url)
    assert response is not None
    assert response.status == 200


def nothing_was_read(outcomes: dict[str, str]) -> None:
    assert outcomes == {
        "fetch": "TypeError",
        "post": "TypeError",
        "request": "NetworkError",
        "frame": "nothing",
        "window": outcomes["window"],
        "cookies": "SecurityError",
        "storage": "SecurityError",
        "opener": "null",
    }
    assert outcomes["window"] in {"nothing", "SecurityError"}


async def test_hostile_pages_at_the_admins_origin_reach_nothing_of_it(browser: Browser, served: ServedProcess) -> None:
    context, admin = await signed_in(browser, served.url)
    session = await session_cookie(context)
    for path in sorted(HOSTILE):
        page = await opened(context, f"{served.url}/relay/evil{path.decode()}", origin="null")
        nothing_was_read(await page.evaluate(READ, f"{served.url}/admin/"))
        for scope in (None, "/", "/admin/", "/relay/evil/"):
            assert await page.evaluate(REGISTER, ["/relay/evil/worker.js", scope]) != "registered"
        await is_still_signed_in(admin)
    await forms_change_nothing(context, f"{served.url}/relay/evil/page.html", served.url)
    await is_still_signed_in(admin)
    assert await session_cookie(context) == session


async def forms_change_nothing(context: BrowserContext, hostile: str, admin: str) -> None:
    """Signing out and registering an upstream, as the hostile page's own forms and links."""
    upstream = {"slug": "planted", "base_url": "https://evil.example", "access": "anyone", "_save": "Save"}
    for url, fields in (
        ("/admin/logout/", {}),
        ("/admin/relay/upstream/add/", upstream),
        ("/admin/relay/upstream/1/empty-jar/", {}),
    ):
        page = await context.new_page()
        await page.goto(hostile)
        async with page.expect_response(admin + url) as answer:
            await page.evaluate(SUBMIT, [admin + url, fields])
        assert (await answer.value).status == 403, url
        await page.close()
    page = await context.new_page()
    await page.goto(hostile)
    async with page.expect_response(f"{admin}/admin/logout/") as answer:
        await page.evaluate("(url) => { location.href = url; }", f"{admin}/admin/logout/")
    assert (await answer.value).status == 405
    page = await context.new_page()
    assert (await page.goto(f"{admin}/admin/relay/upstream/?q=planted")) is not None
    assert "0 results" in await page.content()


async def session_cookie(context: BrowserContext) -> str:
    found = [
        cookie["value"]
        for cookie in await context.cookies()
        if "session" in cookie["name"] and not cookie["name"].startswith("relay.")
    ]
    assert len(found) == 1, "the admin's session is gone, or another was planted"
    return found[0]


async def test_cookies_of_an_upstream_neither_replace_nor_drown_the_admins(
    browser: Browser, origin: Origin, served: ServedProcess
) -> None:
    forged = [
        b"%b=forged; Path=%b" % (name, path) for name in (b"sessionid", b"csrftoken") for path in (b"/", b"/admin/")
    ]
    # Enough for heads too large, and more than browsers keep for a site.
    large = [b"large%d=%b; Path=/" % (number, b"x" * 3000) for number in range(20)]
    many = [b"many%d=1; Path=/x%d; Priority=High; SameSite=None; Secure" % (number, number) for number in range(200)]
    many += [b"more%d=1; Path=/; Priority=High; Max-Age=1000" % number for number in range(200)]

    lines = forged + large + many
    pages = [lines[first : first + 60] for first in range(0, len(lines), 60)]
    for number, some in enumerate(pages):
        origin.on(b"/%d" % number, reply(200, [(b"Set-Cookie", line) for line in some], b"planted"))
    context, admin = await signed_in(browser, served.url)
    session = await session_cookie(context)
    page = await context.new_page()
    for number in range(len(pages)):
        await go_to(page, f"{served.url}/relay/evil/{number}")
    # They did arrive, and the browser threw some out.
    assert 100 < len(await context.cookies()) < len(lines)
    await is_still_signed_in(admin)
    assert await session_cookie(context) == session


OWN = b"""<!doctype html><title>a site</title><link rel="stylesheet" href="/style.css">
<body><p id="said"></p><script src="/app.js"></script>"""
APP = b"""
document.cookie = "choice=dark; path=/";
fetch("/api/data", {credentials: "include"}).then((answer) => answer.text()).then((text) => {
    document.querySelector("#said").textContent = text + " " + self.origin + " " + document.cookie;
});
"""


async def test_a_site_at_a_host_name_of_its_own_works_and_still_does_not_reach_the_admin(
    browser: Browser, origin: Origin
) -> None:
    origin.on(
        b"/", reply(200, [(b"Content-Type", b"text/html"), (b"Set-Cookie", b"seen=1; Path=/; Domain=127.0.0.1")], OWN)
    )
    origin.on(b"/app.js", reply(200, [(b"Content-Type", b"text/javascript")], APP))
    origin.on(b"/style.css", reply(200, [(b"Content-Type", b"text/css")], b"body { color: rgb(1, 2, 3) }"))
    origin.on(b"/api/data", reply(200, [(b"Content-Type", b"text/plain")], b"data"))
    origin.on(b"/admin/", reply(200, [(b"Content-Type", b"text/html")], b"the site's own admin"))
    origin.on(b"/worker.js", reply(200, [(b"Content-Type", b"text/javascript")], b""))
    environment = {
        "RELAY_HOSTS": "<slug>.relay.localhost",
        "RELAY_ADMIN_HOSTS": "admin.localhost",
    }
    async with ServedProcess(environment=environment, start_seconds=START_SECONDS) as served:
        await register(served, origin)
        admin_url, site = (f"http://{host}:{served.port}" for host in ("admin.localhost", "evil.relay.localhost"))
        context, admin = await signed_in(browser, admin_url)
        session = await session_cookie(context)
        page = await context.new_page()
        await go_to(page, f"{site}/")
        await expect(page.locator("#said")).to_have_text(f"data {site} seen=1; choice=dark", timeout=PATIENCE_MS)
        assert await page.evaluate("getComputedStyle(document.body).color") == "rgb(1, 2, 3)"
        assert (await request_for(origin, b"/api/data")).values(b"cookie") == [b"seen=1; choice=dark"]
        assert await page.evaluate(REGISTER, ["/worker.js", "/"]) == "registered"

        outcomes = await page.evaluate(READ, f"{admin_url}/admin/")
        assert outcomes.pop("cookies") == "seen=1; choice=dark"
        assert outcomes.pop("storage") == "0"
        nothing_was_read(outcomes | {"cookies": "SecurityError", "storage": "SecurityError"})
        await forms_change_nothing(context, f"{site}/", admin_url)
        await is_still_signed_in(admin)
        assert await session_cookie(context) == session
        await page.goto(f"{site}/admin/")
        assert await page.content() == "<html><head></head><body>the site's own admin</body></html>"


async def request_for(origin: Origin, path: bytes) -> Received:
    while (request := await origin.next_request()).path != path:
        pass
    return request
