"""What keeps relayed content from acting as an origin that is not its own, on the wire. In a browser:
`test_browser_isolation`."""

from __future__ import annotations

import json

import pytest
from pytest_django.fixtures import Settings

from relay import errors
from relay.catalog import HeaderChanges
from relay.rules.headers import ORIGIN_WIDE, SANDBOX, compile_changes
from tests.behaviour.conftest import Relayed
from tests.caller import Caller
from tests.origin import Origin, chunked_head, raw, reply

WORKER = (b"Service-Worker", b"script")


@pytest.mark.parametrize("kind", [b"text/html", b"image/svg+xml", b"text/xml", b"application/pdf", b"image/png", None])
@pytest.mark.parametrize("buffered", [None, 1000])
@pytest.mark.parametrize("status", [200, 404, 302])
async def test_all_that_is_relayed_at_the_admins_origin_is_sandboxed(
    origin: Origin, relayed: Relayed, caller: Caller, kind: bytes | None, buffered: int | None, status: int
) -> None:
    relayed(max_buffered_bytes=buffered)
    fields = [(b"Content-Type", kind)] if kind else []
    origin.on(b"/a", reply(status, [*fields, (b"X-Content-Type-Options", b"none")], b"page"))
    answer = await caller.get(b"/relay/o/a")
    assert (answer.status, answer.data) == (status, b"page")
    assert answer.values(b"content-security-policy") == [SANDBOX]
    assert answer.values(b"x-content-type-options") == [b"nosniff"]


def test_the_sandbox_never_gives_the_origin_back() -> None:
    flags = SANDBOX.split()
    assert flags[0] == b"sandbox"
    assert not {b"allow-same-origin", b"allow-top-navigation", b"allow-popups-to-escape-sandbox"} & set(flags)


async def test_a_policy_of_the_upstreams_own_stays_beside_the_sandbox(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    own = b"sandbox allow-same-origin allow-scripts"
    origin.on(b"/a", reply(200, [(b"Content-Security-Policy", own)]))
    assert (await caller.get(b"/relay/o/a")).values(b"content-security-policy") == [own, SANDBOX]


async def test_an_admins_header_rules_have_the_last_word(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    rules = compile_changes([("set", "Content-Security-Policy", "default-src 'none'")])
    relayed(response_changes=HeaderChanges(*rules))
    assert (await caller.get(b"/relay/o/a")).values(b"content-security-policy") == [b"default-src 'none'"]


@pytest.mark.parametrize("name", ["RELAY_HOSTS", "RELAY_ADMIN_HOSTS"])
async def test_apart_from_the_admin_pages_run_as_they_are(
    origin: Origin, relayed: Relayed, caller: Caller, settings: Settings, name: str
) -> None:
    setattr(settings, name, ["relay.test" if name == "RELAY_HOSTS" else "admin.test"])
    relayed()
    answer = await caller.get(b"/relay/o/a", [(b"Host", b"relay.test" if name == "RELAY_HOSTS" else b"localhost")])
    assert answer.values(b"content-security-policy") == []
    assert answer.values(b"x-content-type-options") == [b"nosniff"]


@pytest.mark.parametrize("hosts", [[], ["relay.test"]])
async def test_a_service_worker_is_refused_where_upstreams_share_an_origin(
    origin: Origin, relayed: Relayed, caller: Caller, settings: Settings, hosts: list[str]
) -> None:
    settings.RELAY_HOSTS = hosts
    relayed()
    answer = await caller.get(b"/relay/o/sw.js", [WORKER, (b"Host", b"relay.test" if hosts else b"localhost")])
    assert (answer.status, json.loads(answer.data)["type"]) == (403, errors.WorkerRefused().type_uri)
    assert not origin.requests


@pytest.mark.parametrize("name", sorted(ORIGIN_WIDE))
async def test_nobody_speaks_for_a_shared_origin_in_head_hint_or_trailer(
    origin: Origin, relayed: Relayed, caller: Caller, name: bytes
) -> None:
    relayed()
    line = b"%b: x\r\n" % name
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n%b\r\n" % line
    head = chunked_head(200, [(b"Trailer", name), (name, b"x")])
    origin.on(b"/a", raw(hint + head + b"2\r\nok\r\n0\r\n%bX-Sum: 1\r\n\r\n" % line, then="keep"))
    answer = await caller.get(b"/relay/o/a", [(b"TE", b"trailers")])
    assert [pairs for head in answer.interim for pairs in head.headers] == [(b"link", b"</relay/o/a>")]
    assert answer.values(name) == []
    assert answer.body.trailers == [(b"x-sum", b"1")]
