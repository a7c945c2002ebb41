"""What a caller is told when a request is refused or fails: a problem document, or a page where HTML is asked for."""

from __future__ import annotations

import json
import re

import pytest
from pytest_django.fixtures import Settings

from relay import conf, errors
from tests.behaviour.conftest import Logged, Relayed
from tests.caller import Answer, Caller
from tests.origin import Gate, Origin, drip, hang, raw, refusing_port, reply, truncate
from tests.serving_ground import Ground


def assert_problem(answer: Answer, error: type[errors.RelayError]) -> dict[str, object]:
    """`answer` is the document of `error`, whole; gives the document."""
    document: dict[str, object] = json.loads(answer.data)
    assert answer.status == error.status
    assert set(document) == {"type", "title", "status", "detail", "request_id"}
    assert document["type"] == error.type_uri.fget(error)  # type: ignore[attr-defined]  # a property of the class
    assert document["title"] == error.title
    assert document["status"] == error.status
    assert document["detail"] == error.advice
    assert answer.values(b"content-type") == [b"application/problem+json"]
    assert answer.values(b"proxy-status") == [f"{conf.current().via}; error={error.proxy_status}".encode()]
    assert answer.values(b"x-request-id") == [str(document["request_id"]).encode()]
    assert answer.values(b"cache-control") == [b"no-store"]
    assert answer.values(b"x-content-type-options") == [b"nosniff"]
    assert answer.body.ended.cleanly
    return document


@pytest.mark.parametrize("path", [b"/relay/nobody", b"/relay/nobody/a?b", b"/relay/", b"/relay//a"])
async def test_an_unknown_upstream_is_404(relayed: Relayed, caller: Caller, path: bytes) -> None:
    relayed()
    assert_problem(await caller.get(path), errors.UpstreamUnknown)


async def test_access_by_key_is_401_and_says_how(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(open_to_anyone=False)
    answer = await caller.get(b"/relay/o/a", [(b"Authorization", b"Bearer somebody-elses")])
    assert_problem(answer, errors.KeyRequired)
    assert answer.values(b"www-authenticate") == [b'Bearer realm="relay"']
    assert origin.connections_made == 0


@pytest.mark.parametrize("host", [b"other.example", b"localhost.other.example", b"127.0.0.2", b"", b"a b", b"[::2]"])
async def test_a_host_that_is_not_the_relays_is_421(
    origin: Origin, relayed: Relayed, caller: Caller, host: bytes
) -> None:
    relayed()
    assert_problem(await caller.get(b"/relay/o/a", [(b"Host", host)]), errors.HostRefused)
    assert origin.connections_made == 0


@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:8000", b"127.0.0.1", b"[::1]:80", b"localhost."])
async def test_the_relays_hosts_are_known_in_any_spelling(
    origin: Origin, relayed: Relayed, caller: Caller, host: bytes
) -> None:
    relayed()
    origin.on(b"/a", reply(200))
    assert (await caller.get(b"/relay/o/a", [(b"Host", host)])).status == 200


async def test_allowed_hosts_may_be_patterns(
    origin: Origin, relayed: Relayed, caller: Caller, settings: Settings
) -> None:
    settings.ALLOWED_HOSTS = [".example.com"]
    relayed()
    origin.on(b"/a", reply(200))
    assert (await caller.get(b"/relay/o/a", [(b"Host", b"a.b.example.com:1")])).status == 200
    assert (await caller.get(b"/relay/o/a", [(b"Host", b"localhost")])).status == 421


async def test_a_port_nobody_listens_at_is_connection_refused(relayed: Relayed, caller: Caller, logged: Logged) -> None:
    with refusing_port() as port:
        relayed(port=port)
        assert_problem(await caller.get(b"/relay/o/a"), errors.ConnectionRefused)
    line = await logged.next()
    assert (line["status"], line["outcome"]) == (502, "connection-refused")


async def test_a_name_that_does_not_resolve_is_dns(relayed: Relayed, caller: Caller) -> None:
    relayed(host="nowhere.invalid", authority=b"nowhere.invalid")
    assert_problem(await caller.get(b"/relay/o/a"), errors.NameUnresolved)


async def test_an_upstream_that_hangs_up_is_told(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(max_buffered_bytes=1000)
    origin.on(b"/nothing", raw(b""))
    origin.on(b"/half", truncate(100, 50))
    for path in (b"/relay/o/nothing", b"/relay/o/half"):
        assert_problem(await caller.get(path), errors.UpstreamHungUp)


async def test_a_full_upstream_is_503_and_says_when_to_come_back(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    relayed(max_concurrent=1, max_queued=0)
    gate = Gate()
    origin.on(b"/held", drip([], gate))
    async with Caller(ground.port) as holder:
        await holder.send(b"GET /relay/o/held HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await holder.read_head()
        answer = await caller.get(b"/relay/o/a")
        assert_problem(answer, errors.UpstreamFull)
        assert answer.values(b"retry-after") == [b"1"]
        gate.open()
        assert (await holder.read_body()).ended.cleanly
    assert (await caller.get(b"/relay/o/a")).status == 404


async def test_a_slow_head_is_504(origin: Origin, relayed: Relayed, caller: Caller) -> None:
    relayed(head_timeout_seconds=0.05)
    origin.on(b"/a", hang())
    assert_problem(await caller.get(b"/relay/o/a"), errors.HeadTimedOut)


async def test_a_body_that_is_announced_too_large_is_413_before_anything_goes_out(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed(max_request_bytes=10)
    await caller.send(b"PUT /relay/o/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 11\r\n\r\n")
    head = await caller.read_head()
    body = await caller.read_body()
    assert_problem(Answer(head, body), errors.RequestTooLarge)
    assert head.values(b"connection") == [b"close"]
    assert origin.connections_made == 0


async def test_a_refusal_keeps_the_connection_when_the_request_is_whole(relayed: Relayed, caller: Caller) -> None:
    for _ in range(3):
        assert (await caller.get(b"/relay/nobody")).values(b"connection") == []


# The upstream's address and the caller's bytes are nobody's to read.


async def test_a_problem_tells_nothing_of_where_the_upstream_is(
    relayed: Relayed, caller: Caller, logged: Logged
) -> None:
    with refusing_port() as port:
        relayed("o", port=port)
        relayed("p", host="secret-name.invalid", authority=b"secret-name.invalid")
        relayed("q", allowed_networks=())
        for slug in (b"o", b"p", b"q"):
            for accept in (b"*/*", b"text/html"):
                answer = await caller.get(b"/relay/%b/a" % slug, [(b"Accept", accept)])
                told = answer.data + b"".join(name + value for name, value in answer.head.headers)
                assert answer.status == 502
                for secret in (b"127.0.0.1", b"secret-name", b"%d" % port):
                    assert secret not in told


BROWSER = (b"Accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")


async def test_a_browser_gets_a_page(relayed: Relayed, caller: Caller) -> None:
    answer = await caller.get(b"/relay/nobody/a", [BROWSER])
    page = answer.data.decode()
    assert (answer.status, answer.values(b"content-type")) == (404, [b"text/html; charset=utf-8"])
    assert answer.values(b"vary") == [b"accept"]
    assert answer.values(b"content-security-policy") == [b"default-src 'none'; style-src 'unsafe-inline'"]
    assert page.startswith("<!doctype html>")
    for text in (errors.UpstreamUnknown.title, errors.UpstreamUnknown.advice, "urn:relay:error:upstream-unknown"):
        assert text in page
    assert answer.values(b"x-request-id")[0].decode() in page
    assert not re.search(r"<(script|img|link|iframe)", page)


@pytest.mark.parametrize("error", errors.every_error(), ids=lambda error: error.type)
def test_every_error_has_a_page_and_a_document(error: type[errors.RelayError]) -> None:
    from relay.serving.problems import problem_response

    hidden = "<b>10.0.0.1 & secrets</b>"
    for accept in (b"text/html", b"application/json"):
        response = problem_response(error(hidden), request_id=b"id-of-the-request", accept=accept)
        assert response.status_code == error.status
        assert b"id-of-the-request" in response.whole
        assert b"secrets" not in response.whole
        assert error.type.encode() in response.whole


@pytest.mark.parametrize("wanted", [BROWSER, (b"Accept", b"*/*")])
async def test_nothing_of_the_caller_is_repeated_to_it(
    relayed: Relayed, caller: Caller, settings: Settings, wanted: tuple[bytes, bytes]
) -> None:
    settings.RELAY_TRUSTED_PROXIES = ("127.0.0.1",)
    evil = b"<script>alert(1)</script>"
    fields = [wanted, (b"X-Request-Id", evil), (b"User-Agent", evil), (b"Referer", evil), (b"X-Forwarded-Host", evil)]
    answer = await caller.get(b"/relay/" + evil + b"?" + evil, fields)
    assert answer.status == 404
    told = answer.data + b"".join(name + value for name, value in answer.head.headers)
    assert b"script" not in told
    assert b"alert" not in told


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        ([b"text/html"], True),
        ([b"TEXT/HTML; q=0.5, */*"], True),
        ([b"application/xhtml+xml"], True),
        ([b"application/json, text/html"], False),
        ([b"application/problem+json", b"text/html"], False),
        ([b"image/png", b"text/html"], True),
        ([b"*/*"], False),
        ([b""], False),
        ([], False),
        ([b"\xff\xfe,;;=,"], False),
    ],
)
async def test_html_is_for_who_asks_for_it_first(
    relayed: Relayed, caller: Caller, accept: list[bytes], is_page: bool
) -> None:
    answer = await caller.get(b"/relay/nobody", [(b"Accept", value) for value in accept])
    assert (b"text/html" in answer.values(b"content-type")[0]) is is_page


async def test_an_error_of_the_relays_own_is_500_and_tells_nothing(
    origin: Origin, relayed: Relayed, caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    relayed()

    def fail(*_: object, **__: object) -> None:
        raise ValueError("a secret")

    monkeypatch.setattr("relay.serving.heads.request_pairs", fail)
    answer = await caller.get(b"/relay/o/a")
    assert_problem(answer, errors.RelayError)
    assert b"secret" not in answer.data
    (record,) = [record for record in caplog.records if record.name == "relay.serving"]
    assert answer.values(b"x-request-id")[0].decode() in record.getMessage()


async def test_the_log_names_outcome_and_id(origin: Origin, relayed: Relayed, caller: Caller, logged: Logged) -> None:
    relayed(methods=frozenset({"GET"}))
    answer = await caller.get(b"/relay/o/a?secret=1", method=b"PUT")
    line = await logged.next()
    assert line["request_id"].encode() == answer.values(b"x-request-id")[0]
    assert (line["status"], line["outcome"], line["upstream"], line["path"]) == (405, "method-not-allowed", "o", "/a")
    assert "secret" not in json.dumps(line)


async def test_head_is_told_the_status_alone(relayed: Relayed, caller: Caller) -> None:
    answer = await caller.get(b"/relay/nobody", method=b"HEAD")
    assert (answer.status, answer.data) == (404, b"")
    assert int(answer.values(b"content-length")[0]) > 0
    # Nothing follows but the next answer.
    assert (await caller.get(b"/relay/nobody")).status == 404
