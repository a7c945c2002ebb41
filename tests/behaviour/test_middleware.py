"""RELAY_MIDDLEWARE stands around the relay view: it may look, add and refuse, and never holds a body."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.http.request import RawPostDataException
from pytest_django.fixtures import Settings

from relay.checks import check_settings
from relay.serving.application import get_application
from tests.behaviour.conftest import Logged, Relayed, all_given_back
from tests.caller import Caller, Ended
from tests.origin import Origin, chunked, echo, patterned, reply
from tests.serving_ground import Ground

GetResponse = Callable[[HttpRequest], Awaitable[HttpResponseBase]]
Act = Callable[[HttpRequest, GetResponse], Awaitable[HttpResponseBase]]


class Acting:
    """Middleware that does what the test at hand put into `act`."""

    async_capable = True
    sync_capable = False
    act: Act

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return await type(self).act(request, self.get_response)


class Outer:
    """Middleware that marks what passes, to show the order."""

    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = await self.get_response(request)
        response.headers["X-Order"] = response.headers.get("X-Order", "") + "outer"
        return response


class Blocking:
    """Middleware as Django knew it before async."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)


async def function_middleware(request: HttpRequest) -> HttpResponseBase:
    return HttpResponse()


Acted = Callable[[Act], Any]


@pytest.fixture
def acting(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Acted:
    """`async with acting(act) as caller:` serves the relay with `act` around its view."""
    settings.RELAY_MIDDLEWARE = (f"{__name__}.Acting",)

    @asynccontextmanager
    async def served(act: Act) -> AsyncIterator[Caller]:
        monkeypatch.setattr(Acting, "act", staticmethod(act), raising=False)
        async with Ground(get_application()) as ground:
            async with Caller(ground.port) as caller:
                yield caller
            await all_given_back(ground)

    return served


async def test_middleware_adds_fields_and_cookies_to_what_the_upstream_sent(
    origin: Origin, relayed: Relayed, acting: Acted
) -> None:
    async def act(request: HttpRequest, get_response: GetResponse) -> HttpResponseBase:
        response = await get_response(request)
        response.headers["X-Added"] = "by middleware"
        response.set_cookie("seen", "1")
        assert response.headers.get("X-Added") == "by middleware"
        return response

    relayed()
    origin.on(b"/a", reply(200, [(b"X-Own", b"1"), (b"X-Own", b"2"), (b"Set-Cookie", b"a=1")], b"body"))
    async with acting(act) as caller:
        answer = await caller.get(b"/relay/o/a")
        assert (answer.status, answer.data, answer.values(b"x-own")) == (200, b"body", [b"1", b"2"])
        assert answer.values(b"x-added") == [b"by middleware"]
        assert answer.values(b"set-cookie") == [b"relay.o.a=1", b"seen=1; Path=/"]
        answer = await caller.get(b"/relay/nobody")
        assert (answer.status, answer.values(b"x-added")) == (404, [b"by middleware"])


async def test_middleware_refuses_before_anything_goes_out(
    origin: Origin, relayed: Relayed, acting: Acted, logged: Logged
) -> None:
    async def act(request: HttpRequest, get_response: GetResponse) -> HttpResponseBase:
        return JsonResponse({"error": "not today"}, status=403)

    relayed()
    async with acting(act) as caller:
        await caller.send(b"PUT /relay/o/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        head = await caller.read_head()
        assert (head.status, head.values(b"content-type")) == (403, [b"application/json"])
        assert json.loads((await caller.read_body()).data) == {"error": "not today"}
        assert (await logged.next())["status"] == 403
        await caller.send(b"GET /relay/o/a HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert (await caller.read_head()).values(b"transfer-encoding") == []
        assert json.loads((await caller.read_body()).data) == {"error": "not today"}
    assert origin.connections_made == 0


async def test_a_refusal_ends_the_connection_when_a_body_is_still_to_come(
    origin: Origin, relayed: Relayed, acting: Acted
) -> None:
    async def act(request: HttpRequest, get_response: GetResponse) -> HttpResponseBase:
        return HttpResponse("no", status=403)

    relayed()
    async with acting(act) as caller:
        # Were the connection kept, this body would be the next request.
        hidden = b"GET /relay/o/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = await caller.get(b"/relay/o/a", method=b"POST", body=hidden)
        assert (answer.status, answer.data) == (403, b"no")
        rest, ended = await caller.read_rest()
        assert rest == b""
        assert ended in (Ended.CLOSED, Ended.RESET)
    assert origin.connections_made == 0


async def test_middleware_may_answer_with_a_stream_of_its_own(relayed: Relayed, acting: Acted) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one,"
        yield b"two"

    async def act(request: HttpRequest, get_response: GetResponse) -> HttpResponseBase:
        return StreamingHttpResponse(pieces(), content_type="text/plain")

    async with acting(act) as caller:
        answer = await caller.get(b"/relay/o/a")
        assert (answer.status, answer.data, answer.body.ended) == (200, b"one,two", Ended.CHUNKED)


async def test_middleware_may_filter_the_stream(origin: Origin, relayed: Relayed, acting: Acted) -> None:
    async def upper(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            yield chunk.upper()

    async def act(request: HttpRequest, get_response: GetResponse) -> HttpResponseBase:
        response = await get_response(request)
        assert response.streaming
        response.streaming_content = upper(response.streaming_content)  # type: ignore[attr-defined]  # a stream's
        return response

    relayed()
    origin.on(b"/a", chunked([b"abc", b"def"]))
    async with acting(act) as caller:
        answer = await caller.get(b"/relay/o/a")
        assert (answer.data, answer.body.ended) == (b"ABCDEF", Ended.CHUNKED)


async def test_middleware_sees_the_request_as_django_shows_it(origin: Origin, relayed: Relayed, acting: Acted) -> None:
    seen: dict[str, Any] = {}

    async def act(request: HttpRequest, get_response: GetResponse) -> HttpResponseBase:
        seen.update(
            method=request.method,
            path=request.path,
            full_path=request.get_full_path(),
            query=request.GET.getlist("b"),
            header=request.headers["X-Custom"],
            cookie=request.COOKIES["seen"],
            host=request.get_host(),
            secure=request.is_secure(),
            url=request.build_absolute_uri(),
            peer=request.META["REMOTE_ADDR"],
            content_type=request.content_type,
            accepts=request.accepts("text/html"),
            shown=repr(request),
        )
        return await get_response(request)

    relayed()
    origin.on(b"/a%2Fb", echo())
    async with acting(act) as caller:
        fields = [(b"Host", b"localhost"), (b"X-Custom", b"yes"), (b"Cookie", b"seen=1")]
        fields.append((b"Content-Type", b"text/plain; charset=utf-8"))
        answer = await caller.get(b"/relay/o/a%2Fb?b=1&b=2", fields, method=b"PUT", body=b"x")
        assert json.loads(answer.data)["body_length"] == 1
    assert seen == {
        "method": "PUT",
        "path": "/relay/o/a/b",
        "full_path": "/relay/o/a/b?b=1&b=2",
        "query": ["1", "2"],
        "header": "yes",
        "cookie": "1",
        "host": "localhost",
        "secure": False,
        "url": "http://localhost/relay/o/a/b?b=1&b=2",
        "peer": "127.0.0.1",
        "content_type": "text/plain",
        "accepts": True,
        "shown": "<RelayRequest: PUT '/relay/o/a/b?b=1&b=2'>",
    }


@pytest.mark.parametrize(
    ("kind", "ask"),
    [
        (b"text/plain", lambda request: request.body),
        (b"text/plain", lambda request: request.read()),
        (b"text/plain", lambda request: request.readline()),
        (b"text/plain", list),
        (b"application/x-www-form-urlencoded", lambda request: request.POST),
        (b"multipart/form-data; boundary=b", lambda request: request.POST),
        (b"multipart/form-data; boundary=b", lambda request: request.FILES),
    ],
    ids=["body", "read", "readline", "iter", "form", "multipart", "files"],
)
async def test_asking_for_the_body_says_why_not(
    origin: Origin, relayed: Relayed, acting: Acted, kind: bytes, ask: Callable[[HttpRequest], object]
) -> None:
    told: list[str] = []

    async def act(request: HttpRequest, get_response: GetResponse) -> HttpResponseBase:
        try:
            ask(request)
        except RawPostDataException as refusal:
            told.append(str(refusal))
        return await get_response(request)

    relayed()
    origin.on(b"/a", echo())
    async with acting(act) as caller:
        answer = await caller.get(b"/relay/o/a", [(b"Content-Type", kind)], method=b"POST", body=patterned(100_000))
        assert json.loads(answer.data)["body_length"] == 100_000
    assert told == ["The relay streams request bodies to the upstream: middleware cannot read them."]


async def test_middleware_that_fails_is_a_500_that_tells_nothing(relayed: Relayed, acting: Acted) -> None:
    async def act(request: HttpRequest, get_response: GetResponse) -> HttpResponseBase:
        raise ValueError("a secret")

    async with acting(act) as caller:
        answer = await caller.get(b"/relay/o/a")
        assert (answer.status, json.loads(answer.data)["type"]) == (500, "urn:relay:error:internal")
        assert b"secret" not in answer.data


async def test_an_answer_that_middleware_throws_away_is_closed(origin: Origin, relayed: Relayed, acting: Acted) -> None:
    async def act(request: HttpRequest, get_response: GetResponse) -> HttpResponseBase:
        await get_response(request)
        return HttpResponse("instead", status=418)

    relayed()
    origin.on(b"/a", chunked([patterned(1_000_000)] * 20))
    async with acting(act) as caller:
        answer = await caller.get(b"/relay/o/a")
        assert (answer.status, answer.data) == (418, b"instead")
        await origin.until_connections(0)


async def test_the_first_middleware_is_the_outermost(relayed: Relayed, settings: Settings, acting: Acted) -> None:
    async def act(request: HttpRequest, get_response: GetResponse) -> HttpResponseBase:
        response = await get_response(request)
        response.headers["X-Order"] = "inner,"
        return response

    settings.RELAY_MIDDLEWARE = (f"{__name__}.Outer", f"{__name__}.Acting")
    async with acting(act) as caller:
        assert (await caller.get(b"/relay/nobody")).values(b"x-order") == [b"inner,outer"]


def test_middleware_that_cannot_run_async_is_an_error_of_the_system_check(settings: Settings) -> None:
    settings.RELAY_MIDDLEWARE = (f"{__name__}.Blocking", f"{__name__}.Acting", f"{__name__}.Missing", "no.such.module")
    found = [(message.id, message.msg) for message in check_settings(None)]
    assert found == [
        ("relay.E002", f"RELAY_MIDDLEWARE: {__name__}.Blocking cannot run async."),
        ("relay.E001", f'RELAY_MIDDLEWARE: Module "{__name__}" does not define a "Missing" attribute/class'),
        ("relay.E001", "RELAY_MIDDLEWARE: No module named 'no'"),
    ]
    assert all(message.hint for message in check_settings(None))
    assert iscoroutinefunction(function_middleware)
