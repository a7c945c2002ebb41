"""Two workers of one machine check targets once between them, go by the same verdicts, and need no particular one."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import psutil
import pytest
import pytest_asyncio

from tests.behaviour.conftest import until
from tests.caller import Caller
from tests.origin import Origin, reply
from tests.serving_ground import ServedProcess

INTERVAL_SECONDS = 0.5
SHORTEST_SECONDS = INTERVAL_SECONDS * 0.9
CONNECTIONS = 24
"""Each worker gets some of so many: the chance that one gets none is 2 ** -23."""

pytestmark = pytest.mark.timeout(120)


@pytest_asyncio.fixture
async def spare() -> AsyncIterator[Origin]:
    async with Origin() as spare:
        yield spare


@pytest_asyncio.fixture
async def served(origin: Origin, spare: Origin) -> AsyncIterator[ServedProcess]:
    """With an upstream `o` that has two targets: `origin`, which is well, and `spare`, which is not."""
    for place in (origin, spare):
        place.on(b"/x", reply())
    origin.on(b"/healthz", reply())
    spare.on(b"/healthz", reply(500))
    async with ServedProcess(workers=2) as served:
        await served.register(
            *("o", origin.url, "--access", "anyone", "--allow-network", "127.0.0.0/8"),
            *("--target", f"127.0.0.1:{origin.port}", "--target", f"127.0.0.1:{spare.port}"),
            *("--set", "check_path=/healthz", "--set", f"check_interval_seconds={INTERVAL_SECONDS}"),
        )
        yield served


def asked(place: Origin, path: bytes) -> int:
    return sum(request.target == path for request in place.requests)


async def call(served: ServedProcess) -> None:
    """Each on a connection of its own, at the same time, so that every worker gets some."""
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(Caller(served.port)) for _ in range(CONNECTIONS)]
        for answer in await asyncio.gather(*(caller.get(b"/relay/o/x") for caller in callers)):
            assert answer.status == 200


async def goes_to_spare(served: ServedProcess, spare: Origin) -> bool:
    before = asked(spare, b"/x")
    await call(served)
    return asked(spare, b"/x") > before


def leader_of(served: ServedProcess) -> psutil.Process | None:
    """The worker that keeps the lock open; others open it for a moment."""
    workers = psutil.Process(served.pid).children()
    found = [worker for worker in workers if any(file.path.endswith("/health-lock") for file in worker.open_files())]
    return found[0] if len(found) == 1 else None


async def until_checked(place: Origin, times: int) -> None:
    """Until so many further checks have come."""
    wanted = asked(place, b"/healthz") + times
    async with asyncio.timeout(40):
        while asked(place, b"/healthz") < wanted:
            await place.next_request(within=40)


async def test_workers_check_once_between_them_and_agree(served: ServedProcess, origin: Origin, spare: Origin) -> None:
    await until_checked(spare, 3)
    while await goes_to_spare(served, spare):
        pass  # until the other worker has heard of it
    began, before = time.monotonic(), asked(origin, b"/healthz")
    await until_checked(origin, 6)
    seconds, checks = time.monotonic() - began, asked(origin, b"/healthz") - before
    assert checks <= seconds / SHORTEST_SECONDS + 1, "one leads"
    for _ in range(3):
        assert not await goes_to_spare(served, spare)

    await until(lambda: leader_of(served) is not None, within=10)
    leader = leader_of(served)
    assert leader is not None
    os.kill(leader.pid, signal.SIGKILL)
    await until_checked(origin, 4)
    assert not await goes_to_spare(served, spare), "the verdict outlives its finder"
    killed = leader.pid
    await until(lambda: (successor := leader_of(served)) is not None and successor.pid != killed, within=10)

    spare.on(b"/healthz", reply())
    while not await goes_to_spare(served, spare):
        pass  # until it was well twice
    assert await served.stop() == 0
