"""The admin's cookies where HTTPS is demanded, over the wire: their names, and that no upstream gets or sets them."""

from __future__ import annotations

import re
from http.cookies import SimpleCookie

import httpx

from tests.origin import Origin, reply
from tests.serving_ground import ADMIN_PASSWORD, ServedProcess

BEHIND_TLS = {"RELAY_HTTPS_ONLY": "on", "TRUSTED_PROXIES": "127.0.0.1/32"}
SESSION, CSRF = "__Host-relay_session", "__Host-relay_csrf"


def cookies_of(answer: httpx.Response) -> SimpleCookie:
    cookies = SimpleCookie[str]()
    for line in answer.headers.get_list("set-cookie"):
        # So that browsers keep it. The library of this Python would take the attribute for a cookie.
        assert line.endswith("; Priority=High")
        cookies.load(line.removesuffix("; Priority=High"))
    return cookies


async def signed_in(client: httpx.AsyncClient) -> SimpleCookie:
    """Both cookies. httpx keeps no secure cookies of plain http, so the test carries them."""
    csrf = cookies_of(await client.get("/admin/login/"))
    form = {"username": "admin", "password": ADMIN_PASSWORD, "csrfmiddlewaretoken": csrf[CSRF].value}
    answer = await client.post("/admin/login/", data=form, headers={"Cookie": f"{CSRF}={csrf[CSRF].value}"})
    assert answer.status_code == 302
    return cookies_of(answer)


async def test_behind_tls_the_cookies_are_this_hosts_alone_and_no_upstream_gets_or_sets_them(origin: Origin) -> None:
    forged = [(b"Set-Cookie", b"%b=forged; Path=/; Secure" % name.encode()) for name in (SESSION, CSRF)]
    origin.on(b"/a", reply(200, forged))
    async with ServedProcess(environment=BEHIND_TLS, start_seconds=60) as served:
        for_anyone = ("--access", "anyone", "--allow-network", "127.0.0.0/8")
        await served.register("o", origin.url, *for_anyone)
        told = {"X-Forwarded-Proto": "https", "Referer": f"https://127.0.0.1:{served.port}/admin/login/"}
        async with httpx.AsyncClient(base_url=served.url, headers=told) as client:
            assert (await client.get("/admin/", headers={"X-Forwarded-Proto": "http"})).status_code == 301

            cookies = await signed_in(client)
            assert cookies.keys() == {SESSION, CSRF}
            for cookie in cookies.values():
                assert (cookie["path"], cookie["domain"], cookie["samesite"]) == ("/", "", "Lax")
                assert cookie["secure"]
                assert cookie["httponly"]

            carried = "; ".join(f"{name}={cookie.value}" for name, cookie in cookies.items())
            assert (await client.get("/admin/", headers={"Cookie": carried})).status_code == 200
            answer = await client.get("/relay/o/a", headers={"Cookie": f"{carried}; relay.o.own=1"})
    assert (await origin.next_request()).values(b"cookie") == [b"own=1"]
    names = [re.match("[^=]*", line)[0] for line in answer.headers.get_list("set-cookie")]  # type: ignore[index]
    assert names == [f"relay.o.{SESSION}", f"relay.o.{CSRF}"]
