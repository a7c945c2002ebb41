"""What the relay's process keeps in memory while much passes through it, and for what waits in it."""

from __future__ import annotations

import gc
import hashlib
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import psutil
import pytest
import pytest_asyncio

from tests.behaviour.conftest import Relayed, until, until_still
from tests.caller import Caller, request_bytes
from tests.origin import Exchange, Gate, Origin, Script, chunked, counted, echo, patterned, patterned_sha256, reply, sse
from tests.serving_ground import ServedProcess

KIB, MIB = 1024, 1024 * 1024
TOTAL = 256 * MIB
GROWTH_BYTES = 24 * MIB
STREAMS = 1000
STREAM_BYTES = 25 * KIB
EXCHANGES = 20
SETTLED_TURNS = 5000
"""Turns of this loop in which another process had time to do what it could."""

pytestmark = pytest.mark.timeout(120)


class Memory:
    """The resident memory of the one worker, against what it was."""

    def __init__(self, served: ServedProcess) -> None:
        (self._worker,) = psutil.Process(served.pid).children()
        self._before = self.resident

    @property
    def resident(self) -> int:
        return int(self._worker.memory_info().rss)

    @property
    def growth(self) -> int:
        return self.resident - self._before


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process and those it starts may have as many files open as the system lets them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest_asyncio.fixture
async def served(origin: Origin, many_files: None) -> AsyncIterator[ServedProcess]:
    """One worker as in production, with the upstream `o` at `origin`, warm."""
    origin.on(b"/warm", reply(body=bytes(MIB)))
    async with ServedProcess(environment={"RELAY_ACCESS_LOG": "off"}) as served:
        await served.register("o", origin.url, "--access", "anyone", "--allow-network", "127.0.0.0/8")
        async with Caller(served.port) as caller:
            for _ in range(20):
                await caller.get(b"/relay/o/warm", method=b"POST", body=bytes(MIB))
        yield served


async def test_a_slow_reader_costs_no_memory(origin: Origin, served: ServedProcess) -> None:
    origin.on(b"/much", counted(TOTAL, MIB))
    memory = Memory(served)
    most = read = 0
    digest = hashlib.sha256()
    async with Caller(served.port, buffer_bytes=64 * KIB) as slow:
        await slow.send(request_bytes(b"/relay/o/much", host=b"localhost"))
        await slow.read_head()
        exchange = origin.exchanges[-1]
        while piece := await slow.read_chunk():
            digest.update(piece)
            if read // (32 * MIB) != (read + len(piece)) // (32 * MIB):
                await until_still(lambda: exchange.sent, turns=SETTLED_TURNS)
                most = max(most, memory.growth)
            read += len(piece)
    assert read == TOTAL
    assert digest.hexdigest() == patterned_sha256(TOTAL)
    assert most < GROWTH_BYTES


async def test_a_fast_writer_to_a_slow_origin_costs_no_memory(origin: Origin, served: ServedProcess) -> None:
    memory = Memory(served)
    most = written = 0

    async def slowly(exchange: Exchange) -> None:
        nonlocal most
        read = 0
        while piece := await exchange.read_some():
            if read // (32 * MIB) != (read + len(piece)) // (32 * MIB):
                await until_still(lambda: written, turns=SETTLED_TURNS)
                most = max(most, memory.growth)
            read += len(piece)
        await exchange.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def fast() -> AsyncIterator[bytes]:
        nonlocal written
        for offset in range(0, TOTAL, MIB):
            yield patterned(MIB, offset=offset)
            written += MIB

    origin.on(b"/much", slowly)
    async with Caller(served.port, deadline_seconds=30) as caller:
        assert (await caller.get(b"/relay/o/much", method=b"POST", body=fast())).status == 204
    assert origin.requests[-1].body_length == TOTAL
    assert origin.requests[-1].body_sha256 == patterned_sha256(TOTAL)
    assert most < GROWTH_BYTES


async def test_an_idle_event_stream_costs_little(origin: Origin, served: ServedProcess) -> None:
    gate = Gate()
    origin.on(b"/events", sse(gate))
    memory = Memory(served)
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(Caller(served.port, deadline_seconds=30)) for _ in range(STREAMS)]
        for caller in callers:
            await caller.send(request_bytes(b"/relay/o/events", host=b"localhost"))
        for caller in callers:
            assert (await caller.read_head()).status == 200
        gate.open(STREAMS)
        for caller in callers:
            assert await caller.read_chunk() == b"data: 1\n\n"
        each = memory.growth / STREAMS
    await until(lambda: origin.open_connections <= 1, within=5)
    assert each < STREAM_BYTES, f"{each / KIB:.1f} KiB for each of {STREAMS} idle event streams"


@pytest.mark.parametrize("body", [None, b"hello"])
@pytest.mark.parametrize(
    "script", [reply(body=b"ok"), chunked([b"o", b"k"]), echo()], ids=["counted", "chunked", "echo"]
)
async def test_an_exchange_leaves_nothing_to_the_garbage_collector(
    origin: Origin, relayed: Relayed, caller: Caller, script: Script, body: bytes | None
) -> None:
    """Objects in a circle stay until a collection, and with thousands of them collections hold everyone up."""
    relayed()
    origin.on(b"/x", script)
    method = b"GET" if body is None else b"POST"
    try:
        for _ in range(2):  # the first makes what is made once
            gc.collect()
            gc.disable()
            for _ in range(EXCHANGES):
                await caller.get(b"/relay/o/x", method=method, body=body)
            found = gc.collect()
    finally:
        gc.enable()
    assert found < EXCHANGES
