"""Reloads, upgrades, stops and killed workers, under load: what is lost, and what is not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import psutil
import pytest

from tests.caller import Caller, Ended
from tests.origin import Gate, Origin, drip, reply
from tests.serving_ground import ServedProcess

pytestmark = pytest.mark.timeout(180)
CALLERS = 12
GET = b"GET /relay/o/x HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Load:
    """Callers that call one after the other on connections they keep for as long as they are let."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._port = port
        self._stopping = False
        self._progress = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._callers = [asyncio.create_task(self._call()) for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._callers)

    async def until_answered(self, more: int) -> None:
        goal = self.answered + more
        async with asyncio.timeout(60):
            while self.answered < goal:
                self._progress.clear()
                await self._progress.wait()

    async def _call(self) -> None:
        while not self._stopping:
            async with Caller(self._port, deadline_seconds=30) as caller:
                goes_on = True
                while goes_on and not self._stopping:
                    try:
                        answer = await caller.get(b"/relay/o/x")
                    except Exception as problem:
                        self.failures.append(repr(problem))
                        break
                    if answer.status != 200 or not answer.body.ended.cleanly:
                        self.failures.append(f"{answer.status} {answer.body.ended} {answer.data[:200]!r}")
                    self.answered += 1
                    self._progress.set()
                    goes_on = b"close" not in answer.values(b"connection")


@asynccontextmanager
async def served_at(origin: Origin, *, workers: int = 2, **environment: str) -> AsyncIterator[ServedProcess]:
    origin.on(b"/x", reply(body=b"fine"))
    async with ServedProcess(workers=workers, environment={"RELAY_ACCESS_LOG": "off", **environment}) as served:
        url = f"http://{origin.host}:{origin.port}"
        await served.register("o", url, "--access", "anyone", "--allow-network", "127.0.0.0/8")
        yield served


def workers_of(arbiter: int) -> set[int]:
    return {child.pid for child in psutil.Process(arbiter).children()}


async def until_workers(arbiter: int, *, without: set[int], count: int) -> set[int]:
    async with asyncio.timeout(60):
        while True:
            now = workers_of(arbiter)
            if len(now) == count and not now & without:
                return now
            await asyncio.sleep(0.02)  # processes tell nobody that they began


async def test_rolling_reloads_lose_no_request(origin: Origin) -> None:
    rounds = int(os.environ.get("RELAY_TEST_RELOADS", "2"))
    async with served_at(origin) as served, Load(served.port) as load:
        for _ in range(rounds):
            await load.until_answered(50)
            before = workers_of(served.pid)
            os.kill(served.pid, signal.SIGHUP)
            await until_workers(served.pid, without=before, count=2)
        await load.until_answered(50)
    assert load.failures == []


async def test_a_binary_upgrade_loses_no_request(origin: Origin) -> None:
    async with served_at(origin) as served, Load(served.port) as load:
        os.kill(served.pid, signal.SIGUSR2)
        async with asyncio.timeout(30):
            while not (  # noqa: ASYNC110 - nobody tells of it
                arbiters := [
                    child.pid
                    for child in psutil.Process(served.pid).children()
                    if len(child.children()) == 2 and "serve" in child.cmdline()
                ]
            ):
                await asyncio.sleep(0.02)
        [following] = arbiters
        await load.until_answered(50)
        os.kill(served.pid, signal.SIGTERM)
        async with asyncio.timeout(60):
            # Not by asyncio's own process, which waits for the output's end: the new arbiter has it, too.
            while psutil.pid_exists(served.pid) and psutil.Process(served.pid).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await load.until_answered(50)
        assert load.failures == []
        async with Caller(served.port) as caller:
            assert (await caller.get(b"/readyz")).status == 200
        await load.stop()
        os.kill(following, signal.SIGTERM)
    assert load.failures == []


async def test_a_killed_worker_fails_only_its_own_exchanges_and_comes_back(origin: Origin) -> None:
    async with served_at(origin) as served, Load(served.port) as load:
        await load.until_answered(50)
        before = workers_of(served.pid)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        await until_workers(served.pid, without={victim}, count=2)
        # By then each of its callers has noticed: all that are left take turns.
        await load.until_answered(20 * CALLERS)
        failures = len(load.failures)
        assert failures <= CALLERS, "no more than had a connection to it"
        await load.until_answered(200)
        assert len(load.failures) == failures


async def test_a_stop_is_told_at_once_and_serves_until_the_balancer_noticed(origin: Origin) -> None:
    gate = Gate()
    async with served_at(origin, workers=1, RELAY_DRAIN_SECONDS="3", RELAY_GRACEFUL_SECONDS="20") as served:
        origin.on(b"/slow", drip([b"one"], gate))
        async with Caller(served.port) as running, Caller(served.port) as kept, Caller(served.port) as probe:
            await running.send(GET.replace(b"/x", b"/slow"))
            await running.read_head()
            assert (await kept.get(b"/relay/o/x")).status == 200
            os.kill(served.pid, signal.SIGTERM)
            async with asyncio.timeout(2):
                while (await probe.get(b"/readyz")).status != 503:
                    pass
            async with Caller(served.port) as late:
                assert (await late.get(b"/relay/o/x")).status == 200, "the balancer has not noticed yet"
            async with asyncio.timeout(10):
                while True:  # until it takes nothing new
                    try:
                        async with Caller(served.port, deadline_seconds=5) as late:
                            await late.get(b"/relay/o/x")
                    except (OSError, AssertionError, EOFError):
                        break
            gate.open(2)
            assert (await running.read_body()).ended is Ended.CHUNKED
        assert await served.stop() == 0


async def test_past_the_drain_a_request_on_an_open_connection_is_refused_with_what_to_do(origin: Origin) -> None:
    gate = Gate()
    async with served_at(origin, workers=1, RELAY_GRACEFUL_SECONDS="20") as served:
        origin.on(b"/slow", drip([b"one"], gate))
        async with Caller(served.port) as half, Caller(served.port) as running:
            await running.send(GET.replace(b"/x", b"/slow"))
            await running.read_head()
            await half.send(GET[:30])
            os.kill(served.pid, signal.SIGTERM)
            async with asyncio.timeout(10):
                while True:
                    try:
                        async with Caller(served.port, deadline_seconds=5) as late:
                            await late.get(b"/healthz")
                    except (OSError, AssertionError, EOFError):
                        break
            await half.send(GET[30:])
            head = await half.read_head()
            assert head.status == 503
            assert json.loads((await half.read_body()).data)["type"] == "urn:relay:error:draining"
            assert head.values(b"connection") == [b"close"]
            assert head.values(b"retry-after")
            gate.open(2)
            assert (await running.read_body()).ended is Ended.CHUNKED
        assert await served.stop() == 0
