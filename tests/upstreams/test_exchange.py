"""An exchange on the httpx seam: what it sends, what it makes of httpx's errors, and that it gives everything back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from time import monotonic
from typing import Any

import httpx
import pytest
import respx

from relay import errors
from relay.catalog import Target, Upstream
from relay.rules.breaker import State
from relay.upstreams import client as client_room
from relay.upstreams import exchange as exchange_room
from relay.upstreams import faults, targets
from relay.upstreams.bulkheads import slots
from relay.upstreams.client import RelayClient
from relay.upstreams.exchange import Exchange

PAIRS = [(b"host", b"a.example"), (b"x-a", b"1"), (b"x-a", b"\xff")]
ANSWER = [(b"X-B", b"1"), (b"X-B", b"2")]


def upstream(**fields: Any) -> Upstream:
    place = {"scheme": "http", "host": "a.example", "port": 80, "authority": b"a.example", "base_path": b""}
    return Upstream(slug="o", revision=1, **place, **fields)


@pytest.fixture(autouse=True)
def all_slots_come_back() -> Iterator[None]:
    yield
    assert slots == {}


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> respx.MockRouter:
    """In the place of the wire."""
    router = respx.MockRouter(assert_all_called=False)
    monkeypatch.setattr(client_room, "client", RelayClient(httpx.MockTransport(router.async_handler)))
    return router


class Pieces(httpx.AsyncByteStream, httpx.SyncByteStream):
    """An answer's body as the transport gives it: pieces, perhaps an error; it knows whether it was closed."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces = pieces
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def close(self) -> None:
        self.closed += 1


async def opened(exchange: Exchange, body: AsyncIterator[bytes] | None = None) -> tuple[int, Any]:
    return await exchange.open(target=b"/a?b", pairs=PAIRS, body=body)


async def sent(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_the_request_carries_method_pairs_target_and_upstream(router: respx.MockRouter) -> None:
    route = router.route().respond(299, headers=ANSWER, stream=Pieces(b"ab", b"c"))
    there = upstream()
    exchange = Exchange(there, method="BREW")
    status, pairs = await opened(exchange)
    assert status == 299
    assert pairs[:2] == ANSWER
    request = route.calls.last.request
    assert request.method == "BREW"
    assert request.headers.raw == PAIRS
    assert request.extensions["target"] == b"/a?b"
    assert request.extensions["upstream"] is there
    assert [chunk async for chunk in exchange.body()] == [b"ab", b"c"]
    assert exchange.body_bytes == 3
    exchange.close()


async def test_a_slot_is_held_from_opening_to_closing(router: respx.MockRouter) -> None:
    body = Pieces(b"a")
    router.route().respond(200, stream=body)
    there = upstream(max_concurrent=2, max_queued=0)
    first, second = Exchange(there, method="GET"), Exchange(there, method="GET")
    assert slots == {}
    await opened(first)
    await opened(second)
    assert slots == {"o": 2}
    with pytest.raises(errors.UpstreamFull):
        await opened(Exchange(there, method="GET"))
    first.close()
    first.close()
    assert slots == {"o": 1}
    assert body.closed == 1
    second.close()


async def test_closing_what_was_never_opened_gives_nothing_back(router: respx.MockRouter) -> None:
    router.route().respond(200)
    held = Exchange(upstream(), method="GET")
    await opened(held)
    refused = Exchange(upstream(max_concurrent=1, max_queued=0), method="GET")
    with pytest.raises(errors.UpstreamFull):
        await opened(refused)
    refused.close()
    Exchange(upstream(), method="GET").close()
    assert slots == {"o": 1}
    held.close()


async def test_without_a_client_the_relay_is_draining(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_room, "client", None)
    with pytest.raises(errors.Draining):
        await opened(Exchange(upstream(), method="GET"))


ERRORS = [
    (faults.AddressRefused, errors.EgressRefused),
    (faults.LedBack, errors.LoopDetected),
    (faults.NameUnresolved, errors.NameUnresolved),
    (faults.PortClosed, errors.ConnectionRefused),
    (faults.OutOfFiles, errors.ServerFull),
    (faults.CertificateUntrusted, errors.CertificateRefused),
    (faults.HandshakeFailed, errors.TLSFailed),
    (faults.HeadTimeout, errors.HeadTimedOut),
    (faults.UploadTooSlow, errors.UploadTooSlow),
    (faults.CallerStalled, errors.CallerTimedOut),
    (faults.HungUp, errors.UpstreamHungUp),
    (faults.ConnectionsClosed, errors.UpstreamHungUp),
    (httpx.ConnectTimeout, errors.ConnectTimedOut),
    (httpx.PoolTimeout, errors.UpstreamFull),
    (httpx.ReadTimeout, errors.IdleTimedOut),
    (httpx.WriteTimeout, errors.UploadTimedOut),
    (httpx.ProxyError, errors.OutboundProxyFailed),
    (httpx.ConnectError, errors.ConnectionFailed),
    (httpx.ReadError, errors.UpstreamHungUp),
    (httpx.WriteError, errors.UpstreamHungUp),
    (httpx.CloseError, errors.UpstreamHungUp),
    (httpx.LocalProtocolError, errors.RequestRefused),
    (httpx.RemoteProtocolError, errors.UpstreamProtocolFailed),
    (httpx.UnsupportedProtocol, errors.UpstreamFailed),
    (httpx.DecodingError, errors.UpstreamFailed),
    (httpx.TooManyRedirects, errors.UpstreamFailed),
]


def httpx_errors(kind: type[httpx.HTTPError]) -> set[type[httpx.HTTPError]]:
    return {kind}.union(*(httpx_errors(child) for child in kind.__subclasses__()))


def test_every_error_of_httpx_and_of_ours_has_its_row() -> None:
    families = {
        httpx.HTTPError,
        httpx.HTTPStatusError,
        httpx.RequestError,
        httpx.TransportError,
        httpx.TimeoutException,
        httpx.NetworkError,
        httpx.ProtocolError,
    }
    assert httpx_errors(httpx.HTTPError) - families == {kind for kind, _ in ERRORS}


@pytest.mark.parametrize(("kind", "error"), ERRORS, ids=lambda value: value.__name__)
async def test_what_httpx_raises_before_the_head_is_told_in_the_relays_words(
    router: respx.MockRouter, kind: type[httpx.HTTPError], error: type[errors.RelayError]
) -> None:
    router.route().mock(side_effect=kind("the detail"))
    exchange = Exchange(upstream(), method="GET")
    with pytest.raises(errors.RelayError) as told:
        await opened(exchange)
    assert type(told.value) is error
    assert told.value.detail == "the detail"
    assert slots == {"o": 1}
    exchange.close()


@pytest.mark.parametrize(("kind", "error"), ERRORS, ids=lambda value: value.__name__)
async def test_what_httpx_raises_in_the_body_is_told_in_the_relays_words(
    router: respx.MockRouter, kind: type[httpx.HTTPError], error: type[errors.RelayError]
) -> None:
    router.route().respond(200, stream=Pieces(b"half", kind("the detail")))
    exchange = Exchange(upstream(), method="GET")
    await opened(exchange)
    body = exchange.body()
    assert await anext(body) == b"half"
    with pytest.raises(errors.RelayError) as told:
        await anext(body)
    assert type(told.value) is error
    exchange.close()


async def test_that_descriptors_run_out_is_held_against_no_target_and_not_tried_again(
    router: respx.MockRouter,
) -> None:
    listed = [Target(host=host, port=80, authority=host.encode()) for host in ("a.example", "b.example")]
    there = upstream(listed_targets=tuple(listed), max_retries=3)
    out_of_files = faults.placed(faults.OutOfFiles("EMFILE"), faults.Progress("connect"))
    router.route().mock(side_effect=out_of_files)
    for _ in range(100):
        exchange = Exchange(there, method="GET")
        with pytest.raises(errors.ServerFull):
            await opened(exchange)
        assert exchange.attempts == 1
        exchange.close()
    assert [member.breaker.state(monotonic()) for member in targets.crew_of(there).members] == [State.CLOSED] * 2


async def test_an_error_of_the_relays_own_passes_through(router: respx.MockRouter) -> None:
    router.route().mock(side_effect=errors.RequestTooLarge("as it is"))
    exchange = Exchange(upstream(), method="POST")
    with pytest.raises(errors.RequestTooLarge, match="as it is"):
        await opened(exchange)
    exchange.close()


# Bounds.


async def test_a_request_body_is_counted_as_it_passes(router: respx.MockRouter) -> None:
    exchange = Exchange(upstream(max_request_bytes=5), method="POST")
    router.route().mock(side_effect=whole_request)
    await opened(exchange, sent(b"abc", b"de"))
    assert exchange.request_body is not None
    assert exchange.request_body.passed == 5
    exchange.close()


async def test_a_request_body_over_the_bound_is_cut_before_it_passes(router: respx.MockRouter) -> None:
    exchange = Exchange(upstream(max_request_bytes=5), method="POST")
    route = router.route().mock(side_effect=whole_request)
    with pytest.raises(errors.RequestTooLarge):
        await opened(exchange, sent(b"abc", b"def"))
    assert not route.called or route.calls.last.response is None
    exchange.close()


async def whole_request(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=await request.aread())


async def test_an_answer_that_tells_it_is_over_the_bound_is_refused_at_its_head(router: respx.MockRouter) -> None:
    body = Pieces(b"never read")
    router.route().respond(200, headers={"content-length": "6"}, stream=body)
    exchange = Exchange(upstream(max_response_bytes=5), method="GET")
    with pytest.raises(errors.ResponseTooLarge):
        await opened(exchange)
    exchange.close()
    assert body.closed == 1


async def test_an_answer_over_the_bound_is_cut_before_it_passes(router: respx.MockRouter) -> None:
    router.route().respond(200, stream=Pieces(b"abc", b"de", b"f"))
    exchange = Exchange(upstream(max_response_bytes=5), method="GET")
    await opened(exchange)
    body = exchange.body()
    assert [await anext(body), await anext(body)] == [b"abc", b"de"]
    with pytest.raises(errors.ResponseTooLarge):
        await anext(body)
    exchange.close()


async def test_a_whole_body_is_bounded(router: respx.MockRouter) -> None:
    router.route().respond(200, stream=Pieces(b"abc", b"de"))
    for limit in (5, 4):
        exchange = Exchange(upstream(), method="GET")
        await opened(exchange)
        if limit == 5:
            assert await exchange.whole_body(5) == b"abcde"
        else:
            with pytest.raises(errors.BufferExceeded):
                await exchange.whole_body(4)
        exchange.close()


# The client.


async def test_the_client_adds_nothing_and_keeps_nothing(router: respx.MockRouter) -> None:
    route = router.route().respond(302, headers={"Set-Cookie": "a=1", "Location": "http://b.example/"})
    for _ in range(2):
        exchange = Exchange(upstream(), method="GET")
        assert (await opened(exchange))[0] == 302
        exchange.close()
    client = client_room.client
    assert client is not None
    assert [call.request.headers.raw for call in route.calls] == [PAIRS, PAIRS]
    assert not client.cookies
    assert not client.trust_env


async def test_the_client_opens_and_closes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_room, "client", None)
    await client_room.open_client()
    first = client_room.client
    await client_room.open_client()
    assert client_room.client is first
    await client_room.close_client()
    assert client_room.client is None
    await client_room.close_client()


def test_the_last_row_fits_whatever_httpx_raises() -> None:
    assert exchange_room._ERRORS[-1] == (httpx.HTTPError, errors.UpstreamFailed)
