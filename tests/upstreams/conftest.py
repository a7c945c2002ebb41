"""What tests of going out share: both event loops, and a seam that must be left as empty as it was found.

The product runs uvloop; asyncio's own loop tells a protocol things in another order, so every law has to hold on both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvloop

from relay.catalog import Upstream
from relay.observing.descriptors import Descriptors
from relay.upstreams import dialing
from relay.upstreams.messages import SeamRequest
from relay.upstreams.pool import Pool
from relay.upstreams.transport import PooledTransport
from tests.behaviour.conftest import until, upstream_at
from tests.origin import Origin
from tests.serving_ground import PROJECT

Pairs = Sequence[tuple[bytes, bytes]]


ON_ASYNCIO_ALONE = {"test_probe.py"}
"""uvloop tells the probe less of TLS and of which address was refused."""


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.name in ON_ASYNCIO_ALONE:
        return {"asyncio": asyncio.new_event_loop}
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    pairs: list[tuple[bytes, bytes]]
    body: bytes
    trailers: list[tuple[bytes, bytes]]


class Seam:
    """A transport, the upstream it is asked for, and short words for asking."""

    def __init__(self, origin: Origin, transport: PooledTransport) -> None:
        self.transport = transport
        self.upstream = upstream_at(origin)
        self.origin = origin
        self._revision = 1

    def rules(self, **fields: Any) -> Upstream:
        """From now on this upstream is asked for: the next revision."""
        self._revision += 1
        self.upstream = upstream_at(self.origin, **{"revision": self._revision} | fields)
        return self.upstream

    @property
    def pool(self) -> Pool:
        """Of the upstream as it is now."""
        target = self.upstream.targets[0]
        pool = self.transport._pools.get((self.upstream.slug, target.name))
        return pool if pool is not None else self.transport._pool_for(self.upstream, target, None)

    def request(
        self,
        target: bytes = b"/",
        *,
        method: str = "GET",
        pairs: Pairs = (),
        body: AsyncIterable[bytes] | None = None,
        **extensions: Any,
    ) -> SeamRequest:
        named = {"upstream": self.upstream, "target": target} | extensions
        return SeamRequest(method, [(b"host", b"o"), *pairs], stream=body, extensions=named)  # type: ignore[arg-type]

    async def ask(self, target: bytes = b"/", **given: Any) -> httpx.Response:
        """The answer as soon as its head is there; whoever asks closes it."""
        return await self.transport.handle_async_request(self.request(target, **given))

    async def get(self, target: bytes = b"/", **given: Any) -> Answer:
        """The whole answer, closed."""
        return await whole(await self.ask(target, **given))


async def whole(response: httpx.Response) -> Answer:
    try:
        body = b"".join([piece async for piece in response.stream])  # type: ignore[union-attr]
    finally:
        await response.stream.aclose()  # type: ignore[union-attr]
    return Answer(response.status_code, response.headers.raw, body, list(response.extensions.get("trailers", [])))


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


def chunked_body(*given: bytes) -> dict[str, Any]:
    return {"method": "POST", "pairs": [(b"transfer-encoding", b"chunked")], "body": pieces(*given)}


def counted_body(*given: bytes, length: int | None = None) -> dict[str, Any]:
    announced = sum(map(len, given)) if length is None else length
    return {"method": "POST", "pairs": [(b"content-length", b"%d" % announced)], "body": pieces(*given)}


@pytest_asyncio.fixture
async def seam(origin: Origin) -> AsyncIterator[Seam]:
    """Over a transport of its own. When the test is over every exchange must have been given back; then it is closed,
    and no socket or task may be left, nor may the loop have been told of anything nobody handled."""
    async with emptied(PooledTransport(), origin) as transport:
        yield Seam(origin, transport)


class emptied:  # noqa: N801 - reads as an adjective
    """The law that nothing is kept, around whatever is done to a transport."""

    def __init__(self, transport: PooledTransport, origin: Origin) -> None:
        self.transport = transport
        self.origin = origin
        self.complaints: list[dict[str, Any]] = []

    async def __aenter__(self) -> PooledTransport:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.complaints.append(context))
        return self.transport

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await until_at_rest(self.transport)
        finally:
            await self.transport.aclose()
        if kind is None:
            await until(lambda: not held(self.transport), within=5.0)
            await self.origin.until_connections(0)
            assert self.complaints == []


async def until_at_rest(transport: PooledTransport, *, within: float = 5.0) -> None:
    """Until no exchange holds anything and every connection is idle."""
    try:
        await until(lambda: not held(transport), within=within)
    except AssertionError:
        raise AssertionError(f"still held after {within} s: {held(transport)}") from None


def held(transport: PooledTransport) -> dict[str, Any]:
    """What is not given back, by kind; empty when everything is."""
    pools = [*transport._pools.values(), *transport._retired]
    holding = {
        "exchanges": sum(pool.exchanges for pool in pools),
        "waiting": sum(pool.waiting for pool in pools),
        "not idle": sum(pool.open_connections - pool.idle_connections for pool in pools),
        "retired": len(transport._retired),
        "tasks": tasks_of_relay(),
    }
    return {kind: what for kind, what in holding.items() if what}


def tasks_of_relay() -> list[str]:
    return [
        repr(task)
        for task in asyncio.all_tasks()
        if (code := getattr(task.get_coro(), "cr_code", None))
        and Path(code.co_filename).is_relative_to(PROJECT / "relay")
    ]


@pytest.fixture
def none_left(monkeypatch: pytest.MonkeyPatch) -> Descriptors:
    """Descriptors that have run out before, so that nothing more is told."""
    descriptors = Descriptors(1024)
    monkeypatch.setattr(descriptors, "_began_at", 0.0)
    monkeypatch.setattr(dialing, "descriptors", descriptors)
    return descriptors


def refusals_of(descriptors: Descriptors) -> float:
    return {family.name: number for family, (_, number) in descriptors.read()}["relay_descriptor_refusals_total"]
