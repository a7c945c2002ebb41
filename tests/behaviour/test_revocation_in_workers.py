"""A key revoked by one process ends its open streams in every worker of another, within two seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import psutil
import pytest
import pytest_asyncio

from tests.caller import Caller, Ended, request_bytes
from tests.origin import Exchange, Origin, chunked_head
from tests.serving_ground import ServedProcess

WORKERS = 2
STREAMS_AT_MOST = 64
"""By then the kernel has given each worker one, but for a chance of 2 ** -63."""
SECONDS = 2.0

ISSUE = """
from relay.models import ApiKey, Consumer, Grant, Upstream
consumer = Consumer.objects.create(name="somebody")
Grant.objects.create(consumer=consumer, upstream=Upstream.objects.get())
print(ApiKey.issue(consumer)[1])
"""
REVOKE = """
import time
from relay.models import ApiKey
ApiKey.objects.get().revoke()
print(time.time())
"""

LAST_USED = """
from relay.models import ApiKey
print(ApiKey.objects.get().last_used_at is not None)
"""


@pytest_asyncio.fixture
async def served(origin: Origin) -> AsyncIterator[ServedProcess]:
    """With an upstream `o` at `origin`, for callers with a key."""
    async with ServedProcess(workers=WORKERS) as served:
        await served.register("o", origin.url, "--allow-network", "127.0.0.0/8")
        yield served


async def done(served: ServedProcess, *arguments: str) -> str:
    """The last line that the command printed."""
    finished = await served.manage(*arguments, within=40)
    assert finished.code == 0, finished.err
    return finished.out.strip().rpartition("\n")[2]


@dataclass(frozen=True, slots=True)
class Stream:
    caller: Caller
    worker: int


async def open_stream(served: ServedProcess, key: str, stack: AsyncExitStack) -> Stream:
    caller = await stack.enter_async_context(Caller(served.port, deadline_seconds=30))
    # The workers hear of key and grant with their next poll.
    while True:
        shown = [(b"Relay-Key", key.encode())]
        await caller.send(request_bytes(b"/relay/o/x", shown, host=b"localhost"))
        if (await caller.read_head()).status == 200:
            break
        await caller.read_body()
    await caller.read_chunk()
    return Stream(caller, worker_of(served, caller))


def worker_of(served: ServedProcess, caller: Caller) -> int:
    """Which process has the other end of this connection."""
    port = caller._writer.get_extra_info("sockname")[1]
    for worker in psutil.Process(served.pid).children():
        if any(link.raddr and link.raddr.port == port for link in worker.net_connections("tcp")):
            return worker.pid
    raise AssertionError(f"no worker has the connection from port {port}")


async def ended(stream: Stream) -> tuple[Ended, float]:
    body = await stream.caller.read_body()
    return body.ended, time.time()


async def an_event(exchange: Exchange) -> None:
    """Head and one event, and then nothing for as long as the relay holds the connection."""
    await exchange.send(chunked_head(200, [(b"Content-Type", b"text/event-stream")]))
    await exchange.send_chunk(b"data: 1\n\n")
    await exchange.closed.wait()


@pytest.mark.timeout(120)
async def test_open_streams_are_cut_in_every_worker(served: ServedProcess, origin: Origin) -> None:
    origin.on(b"/x", an_event)
    key = await done(served, "shell", "-c", ISSUE)
    async with AsyncExitStack() as stack:
        streams: list[Stream] = []
        while len({stream.worker for stream in streams}) < WORKERS:
            assert len(streams) < STREAMS_AT_MOST
            streams.append(await open_stream(served, key, stack))
        waiting = [asyncio.create_task(ended(stream)) for stream in streams]
        committed = float(await done(served, "shell", "-c", REVOKE))
        for ending, moment in await asyncio.gather(*waiting):
            assert ending is Ended.TRUNCATED
            assert moment - committed < SECONDS
        async with Caller(served.port) as caller:
            assert (await caller.get(b"/relay/o/x", [(b"Relay-Key", key.encode())])).status == 401
        await origin.until_connections(0)
    assert await served.stop() == 0
    assert await done(served, "shell", "-c", LAST_USED) == "True", "what was noted is written at the latest by the end"
