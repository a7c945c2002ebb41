"""The transport at httpx's seam: a pool for each upstream, what its users see of it, and that much costs no memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import psutil
import pytest

from relay.upstreams.transport import PooledTransport
from relay.upstreams.wire import Wire
from tests.behaviour.conftest import until, upstream_at
from tests.origin import Gate, Origin, drip, hang, raw, reply, truncate
from tests.serving_ground import PROJECT
from tests.upstreams.conftest import Seam, pieces, whole

GIBIBYTE = 1024**3
GROWTH_BYTES = 24 * 1024**2


async def test_a_connection_of_one_upstream_never_serves_another(origin: Origin, seam: Seam) -> None:
    origin.otherwise(reply())
    for slug in ("a", "b", "a", "b"):
        seam.upstream = upstream_at(origin, slug)
        await seam.get()
    assert [request.connection for request in origin.requests] == [1, 2, 1, 2]
    assert seam.transport.open_pools == 2


async def test_an_equal_picture_of_an_upstream_is_the_same_upstream(origin: Origin, seam: Seam) -> None:
    origin.otherwise(reply())
    for _ in range(2):
        seam.upstream = upstream_at(origin, "a")
        await seam.get()
    assert (seam.transport.open_pools, origin.connections_made) == (1, 1)


async def test_exchanges_are_counted_until_their_answer_is_closed(origin: Origin, seam: Seam) -> None:
    origin.otherwise(reply(body=b"abc"))
    first, second = await seam.ask(), await seam.ask()
    assert seam.transport.open_exchanges == 2
    await whole(first)
    assert seam.transport.open_exchanges == 1
    await whole(second)
    assert seam.transport.open_exchanges == 0


async def test_keeping_retires_what_changed_and_lets_its_exchanges_end(origin: Origin, seam: Seam) -> None:
    gate = Gate()
    origin.otherwise(drip([b"a"], gate))
    response = await seam.ask()
    seam.transport.keep(lambda upstream: True)
    assert seam.transport.open_pools == 1
    seam.transport.keep(lambda upstream: False)
    assert (seam.transport.open_pools, seam.transport.open_exchanges) == (1, 1)
    gate.open(2)
    assert (await whole(response)).body == b"a"
    assert seam.transport.open_pools == 0
    await origin.until_connections(0)


async def test_keeping_retires_what_served_nobody_for_its_keep_alive_time(origin: Origin, seam: Seam) -> None:
    seam.rules(keepalive_seconds=0.05)
    origin.otherwise(reply())
    await seam.get()

    def is_gone() -> bool:
        seam.transport.keep(lambda upstream: True)
        return seam.transport.open_pools == 0

    assert not is_gone()
    await until(is_gone)


async def test_closing_ends_idle_connections_and_exchanges_alike(origin: Origin) -> None:
    transport = PooledTransport()
    seam = Seam(origin, transport)
    origin.on(b"/x", reply())
    origin.on(b"/hang", hang())
    origin.on(b"/body", drip([b"a"], Gate()))
    await seam.get(b"/x")
    response = await seam.ask(b"/body")
    hanging = asyncio.create_task(seam.get(b"/hang"))
    await until(lambda: origin.requests[-1].target == b"/hang")
    await seam.get(b"/x")
    assert origin.open_connections == 3
    await transport.aclose()
    await transport.aclose()
    with pytest.raises(httpx.TransportError):
        await hanging
    with pytest.raises(httpx.TransportError):
        await whole(response)
    await origin.until_connections(0)
    assert (transport.open_exchanges, transport.open_pools) == (0, 0)


async def test_an_httpx_client_can_use_it(origin: Origin, seam: Seam) -> None:
    origin.on(b"/a%2Fb", reply(201, [(b"X-A", b"1"), (b"X-A", b"2")], b"hello"))
    origin.on(b"/upload", reply())
    origin.on(b"/cut", truncate(5, 2))
    origin.on(b"/garbage", raw(b"garbage"))
    async with httpx.AsyncClient(transport=seam.transport, trust_env=False) as client:

        async def ask(method: str, target: bytes, **given: object) -> httpx.Response:
            extensions = {"upstream": seam.upstream, "target": target}
            return await client.request(method, "http://o/", extensions=extensions, **given)  # type: ignore[arg-type]

        response = await ask("GET", b"/a%2Fb")
        assert (response.status_code, response.text) == (201, "hello")
        assert response.headers.get_list("x-a") == ["1", "2"]
        assert (await ask("POST", b"/upload", content=pieces(b"ab", b"c"))).status_code == 200
        assert origin.requests[-1].body == b"abc"
        for target in (b"/cut", b"/garbage"):
            with pytest.raises(httpx.RemoteProtocolError):
                await ask("GET", target)
        async with client.stream("GET", "http://o/", extensions={"upstream": seam.upstream, "target": b"/a%2Fb"}) as it:
            assert [piece async for piece in it.aiter_raw()] == [b"hello"]
    assert seam.transport.open_exchanges == 0


# Much.


@pytest.fixture
def flood_port() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-m", "tests.flood"], cwd=PROJECT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@pytest.mark.timeout(300)
async def test_any_number_of_gigabytes_through_one_connection_keep_memory_flat(
    origin: Origin, seam: Seam, flood_port: int
) -> None:
    length = int(float(os.environ.get("RELAY_TEST_GIGABYTES", "1")) * GIBIBYTE)
    process = psutil.Process()
    seam.upstream = upstream_at(origin, port=flood_port)
    # Whatever is made once is made by then.
    await drained(seam, GIBIBYTE // 16, process)
    before = process.memory_info().rss
    most = await drained(seam, length, process)
    print(f"{length / GIBIBYTE:g} GiB, RSS before {before / 1024**2:.1f} MiB, at most {most / 1024**2:.1f} MiB")
    assert most - before < GROWTH_BYTES
    assert seam.pool.open_connections == seam.pool.idle_connections == 1


async def drained(seam: Seam, length: int, process: psutil.Process) -> int:
    """Reads that much, checking how it begins and that it is all; the most memory that was held meanwhile."""
    response = await seam.ask(b"/%d" % length)
    stream = response.stream
    assert isinstance(stream, Wire)
    seen = most = due = 0
    while piece := await stream.read():
        assert piece[0] == seen % 256
        seen += len(piece)
        if seen >= due:
            most = max(most, process.memory_info().rss)
            due += GIBIBYTE // 64
    stream.close()
    assert seen == length
    return most
