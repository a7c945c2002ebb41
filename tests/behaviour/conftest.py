"""What tests of behaviour on the wire share: upstreams published without a database, and the law that nothing is kept.

`ground` is the project's application, served; when a test is over, whatever it did to its connections, every slot,
pooled exchange and task must have come back.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

import config.asgi  # noqa: F401 - sets the logging up, which would throw caplog out of a test already running
from relay import catalog, vault
from relay.catalog import Upstream, jars, usage, watcher
from relay.catalog.roster import ApiKey, Consumer, Entry
from relay.observing import access_log
from relay.rules import keys
from relay.rules.grants import Grant
from relay.rules.throttle import Throttle
from relay.serving import gate, underway
from relay.signals import server_shutdown, server_startup
from relay.upstreams import backlog, bulkheads, exchange, targets
from relay.upstreams import client as client_room
from tests.origin import Origin
from tests.serving_ground import LOOK_SECONDS, PROJECT, Ground

Relayed = Callable[..., Upstream]
FREE_TURNS = 100
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@pytest.fixture(autouse=True)
def catalog_without_database() -> Iterator[None]:
    """The watcher stays out: what a test publishes is in force until the test is over. Nothing is written either."""
    for room in (watcher, usage, jars):
        server_startup.disconnect(dispatch_uid=room.__name__)
        server_shutdown.disconnect(dispatch_uid=room.__name__)
    yield
    for room in (watcher, usage, jars):
        room.connect_signals()
    catalog.publish(catalog.Snapshot())


@pytest.fixture
def relayed(origin: Origin) -> Relayed:
    """`relayed(**fields)` publishes an upstream that leads to `origin`; again with the same slug, its next revision."""
    published: dict[str, Upstream] = {}

    def publish(slug: str = "o", /, **fields: Any) -> Upstream:
        published[slug] = upstream = upstream_at(origin, slug, **{"revision": catalog.current().revision + 1} | fields)
        roster = catalog.current().roster
        catalog.publish(catalog.Snapshot(published.values(), roster=roster, revision=upstream.revision))
        return upstream

    return publish


Issued = Callable[..., tuple[bytes, Consumer]]


@pytest.fixture
def issued() -> Issued:
    """`issued(upstream, name)` publishes a consumer with a grant of all that the upstream allows; gives its key and it.

    `grants` and `expires_at` give it others.
    """

    def issue(
        upstream: Upstream,
        name: str = "somebody",
        *,
        grants: Sequence[Grant] = (Grant(),),
        expires_at: float = math.inf,
    ) -> tuple[bytes, Consumer]:
        text = keys.make(os.urandom)
        _, digest = vault.keyring().digest(text.encode())
        consumer = Consumer(uuid4(), name, {upstream.id: tuple(grants)}, (digest,))
        publish_callers([(consumer, (ApiKey(consumer, keys.prefix_of(text), expires_at),))])
        return text.encode(), consumer

    return issue


def publish_callers(changed: Iterable[Entry], removed: Iterable[UUID] = ()) -> catalog.Snapshot:
    """Have consumers changed and removed, as after a poll, but without anybody being told."""
    current = catalog.current()
    roster = current.roster.with_changes(changed, removed)
    catalog.publish(current.with_changes([], [], roster=roster, revision=current.revision + 1))
    return catalog.current()


@pytest.fixture(autouse=True)
def forgiving_throttle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown keys that other tests showed are not counted."""
    fresh = Throttle(
        burst=gate.UNKNOWN_KEYS_AT_ONCE,
        per_second=gate.UNKNOWN_KEYS_PER_SECOND,
        max_addresses=gate.MAX_THROTTLED_ADDRESSES,
    )
    monkeypatch.setattr(gate, "unknown_keys", fresh)


def upstream_at(origin: Origin, slug: str = "o", **fields: Any) -> Upstream:
    """An upstream anyone may call, at `origin`."""
    given: dict[str, Any] = {
        "slug": slug,
        "revision": 1,
        "scheme": "https" if origin.tls else "http",
        "host": origin.host,
        "port": origin.port,
        "authority": origin.authority.encode(),
        "base_path": b"",
        "open_to_anyone": True,
        "allowed_networks": LOOPBACK,
    }
    return Upstream(**given | fields)


class Names:
    """DNS as a test scripts it: each look-up of a name takes the next of its answers, and then its last one again."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []

    async def getaddrinfo(self, host: str, port: int, *, family: int = 0, **_: Any) -> list[Any]:
        self.asked.append(host)
        answers = self.answers.get(host)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in found
        ]


@pytest_asyncio.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names.getaddrinfo)
    return names


class Logged:
    """The access log's entries as JSON objects, each as soon as it is added."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def add(self, entry: access_log.Entry) -> None:
        self._waiting.put_nowait(json.loads(entry.line()))

    async def next(self, *, within: float = 2.0) -> dict[str, Any]:
        async with asyncio.timeout(within):
            return await self._waiting.get()


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Logged:
    """Takes the access log's place."""
    logged = Logged()
    monkeypatch.setattr(access_log.log, "add", logged.add)
    return logged


@pytest_asyncio.fixture
async def ground() -> AsyncIterator[Ground]:
    """The project's application, served. All that exchanges held must be given back when the test is over."""
    async with Ground() as ground:
        yield ground
        await all_given_back(ground)


@pytest.fixture
def until_at_rest(ground: Ground) -> Callable[[], Awaitable[None]]:
    """Waits until no exchange holds anything any more; fails after five seconds."""
    return lambda: all_given_back(ground)


async def all_given_back(ground: Ground, *, within: float = 5.0) -> None:
    try:
        await until(lambda: not held(ground), within=within)
    except AssertionError:
        raise AssertionError(f"still held after {within} s: {held(ground)}") from None


def held(ground: Ground) -> dict[str, Any]:
    """What exchanges hold at this moment, by kind; empty when they hold nothing."""
    client = client_room.client
    holding = {
        "slots": dict(bulkheads.slots),
        "queued": bulkheads.queued(),
        "seats": {
            f"{slug} {member.name}": member.outstanding
            for slug, crew in targets._crews.items()
            for member in crew.members
            if member.outstanding
        },
        "open exchanges": client.transport.open_exchanges if client is not None else 0,
        "running requests": ground.running_requests,
        "admissions": underway.count(),
        "bytes of bodies": backlog.held_bytes() + exchange.held_bytes(),
        "tasks": sorted(task.get_name() for task in asyncio.all_tasks() if _is_of_relay(task)),
    }
    return {kind: what for kind, what in holding.items() if what}


def _is_of_relay(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and Path(code.co_filename).is_relative_to(PROJECT / "relay")


async def seconds(duration: float) -> None:
    """For where time itself is what is tested."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(duration, over.set)
    await over.wait()


async def until(true: Callable[[], object], *, within: float = 2.0) -> None:
    """Waits until it is so; for what tells of itself by no event.

    It looks at each of the loop's next turns, and then at times: one that turns for nothing takes a core from others.
    """
    turns = 0
    try:
        async with asyncio.timeout(within):
            while not true():
                await asyncio.sleep(0 if turns < FREE_TURNS else LOOK_SECONDS)
                turns += 1
    except TimeoutError:
        raise AssertionError(f"not so after {within} s") from None


async def until_still(value: Callable[[], int], *, turns: int = 300, within: float = 10.0) -> int:
    """Waits until a count stayed the same for `turns` turns of the loop, which origin, relay and caller share."""
    seen, unchanged = value(), 0
    async with asyncio.timeout(within):
        while unchanged < turns:
            await asyncio.sleep(0)
            now = value()
            unchanged = unchanged + 1 if now == seen else 0
            seen = now
    return seen
