"""File descriptors run out: callers are told, exchanges under way go on, and all is well again by itself.

So it is when files cannot grow. `manage.py serve` is given few descriptors, and no room, as a system would; the last
test is about the single decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from relay.observing.descriptors import descriptors
from tests.behaviour.conftest import Relayed
from tests.behaviour.test_restarts import served_at, until_workers, workers_of
from tests.caller import Caller, request_bytes
from tests.origin import Exchange, Origin, reply
from tests.serving_ground import Ground, ServedProcess

FEW = 96


@pytest_asyncio.fixture
async def served(origin: Origin) -> AsyncIterator[ServedProcess]:
    """One worker with few descriptors, and `o` at `origin`."""
    async with served_at(origin, workers=1, RELAY_MAX_CONNECTIONS="10000") as served:
        resource.prlimit(served.pid, resource.RLIMIT_NOFILE, (FEW, FEW))
        old = workers_of(served.pid)
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        await until_workers(served.pid, without=old, count=1)
        await served.until_output(f"This worker may have {FEW} files", within=30)
        yield served


def told(served: ServedProcess, text: str) -> int:
    return sum(text in line for line in served.output)


@pytest.mark.timeout(120)
async def test_callers_beyond_the_last_descriptor_are_told_and_all_recovers(
    origin: Origin, served: ServedProcess
) -> None:
    go_on = asyncio.Event()

    async def in_two_pieces(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nfour")
        await go_on.wait()
        await exchange.send(b"more")

    origin.on(b"/slow", in_two_pieces)
    (worker,) = workers_of(served.pid)
    async with contextlib.AsyncExitStack() as open_callers:
        under_way = await open_callers.enter_async_context(Caller(served.port, deadline_seconds=30))
        await under_way.send(request_bytes(b"/relay/o/slow", host=b"localhost"))
        await under_way.read_head()
        refused = 0
        for _ in range(3 * FEW):
            caller = await open_callers.enter_async_context(Caller(served.port, deadline_seconds=30))
            with contextlib.suppress(OSError, EOFError):
                answer = await caller.get(b"/healthz")
                if answer.status == 503:
                    assert b"server-full" in answer.data
                    assert answer.values(b"retry-after") == [b"1"]
                    refused += 1
        assert refused > 0
        assert psutil.Process(worker).num_fds() <= FEW
        go_on.set()
        assert (await under_way.read_body()).data == b"fourmore"
    await served.until_output("There are file descriptors again", within=60)
    async with Caller(served.port) as caller:
        assert (await caller.get(b"/relay/o/x")).status == 200
    numbers = await served.numbers()
    assert workers_of(served.pid) == {worker}
    assert told(served, "File descriptors have run out") == 1
    assert told(served, "There are file descriptors again") == 1
    assert told(served, "Traceback") == 0
    assert numbers["process_max_fds"] == FEW
    assert 0 < numbers["process_open_fds"] < FEW
    assert numbers["relay_descriptor_refusals_total"] >= refused


@pytest.mark.timeout(120)
async def test_a_full_disk_costs_lines_and_notes_but_no_request(origin: Origin, tmp_path: Path) -> None:
    """The database, the metrics and the access log alike."""
    async with served_at(origin, workers=1, RELAY_ACCESS_LOG=str(tmp_path / "access.log")) as served:
        (worker,) = workers_of(served.pid)
        issued = await served.manage("keys", "issue", "shop", "--upstream", "o")
        assert issued.code == 0, issued.err
        key = [(b"Relay-Key", issued.out.split()[-1].encode())]
        async with asyncio.timeout(40), Caller(served.port) as caller:
            while b"relay_catalog_consumers 1\n" not in (await caller.get(b"/metrics")).data:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        _, most = resource.prlimit(worker, resource.RLIMIT_FSIZE)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (1, most))
        begins = (
            "The access log cannot be written, lines are lost",
            "Metrics cannot be written",
            "When keys were last used, and what report-only mode let pass, is not kept",
        )
        async with Caller(served.port) as caller:
            for text in begins:
                answer = await caller.get(b"/relay/o/x", key)
                assert (answer.status, answer.data) == (200, b"fine")
                await served.until_output(text, within=40)
            assert (await caller.get(b"/relay/o/x")).data == b"fine"
            assert (await caller.get(b"/readyz")).status == 200
            resource.prlimit(worker, resource.RLIMIT_FSIZE, (most, most))
            await served.until_output("Metrics are written again", within=30)
            assert (await caller.get(b"/relay/o/x", key)).data == b"fine"
            await served.until_output("The access log is written again", within=30)
            # SQLite's shared memory is a file, too: whether it could be read meanwhile is a matter of luck.
            changed = await served.manage("upstreams", "disable", "o")
            assert changed.code == 0, changed.err
            async with asyncio.timeout(40):
                while (await caller.get(b"/relay/o/x", key)).status != 404:  # noqa: ASYNC110 - nobody tells of it
                    await asyncio.sleep(0.05)
        assert workers_of(served.pid) == {worker}
        for text in begins:
            assert told(served, text) == 1
        assert told(served, "Traceback") == 0


@pytest.fixture
def none_for_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number the next socket to an upstream gets is one of those that are kept."""
    monkeypatch.setattr(descriptors, "upstreams_end", 0)
    monkeypatch.setattr(descriptors, "measure", lambda: None)


async def test_an_upstream_that_no_descriptor_is_left_for_is_not_at_fault(
    none_for_upstreams: None, origin: Origin, relayed: Relayed, ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    relayed(max_retries=3)
    origin.on(b"/x", reply(body=b"fine"))
    async with Caller(ground.port) as caller:
        for _ in range(3):
            answer = await caller.get(b"/relay/o/x")
            assert answer.status == 503
            assert b"urn:relay:error:server-full" in answer.data
            assert answer.values(b"retry-after") == [b"1"]
            assert b"connection_limit_reached" in answer.values(b"proxy-status")[0]
    assert origin.exchanges == []
    begun = [record for record in caplog.records if "File descriptors have run out" in record.getMessage()]
    assert len(begun) == 1
