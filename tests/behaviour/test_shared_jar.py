"""One jar for all workers of `manage.py serve`, and for those that come after them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.caller import Caller
from tests.origin import Origin, reply
from tests.serving_ground import ServedProcess

pytestmark = pytest.mark.timeout(180)  # processes that start and stop, on machines that do other things too

EFFECT_SECONDS = 15.0
IN_A_ROW = 12
"""New connections, each taken by any of two workers."""


async def test_every_worker_sends_what_one_was_given_and_so_do_those_after_a_restart(
    origin: Origin, tmp_path: Path
) -> None:
    origin.on(b"/in", reply(200, [(b"Set-Cookie", b"session=s3cret; Path=/")]))
    options = ("--access", "anyone", "--allow-network", "127.0.0.0/8", "--set", "cookie_mode=jar")
    async with ServedProcess(data_dir=tmp_path, workers=2, start_seconds=90) as served:
        await served.register("legacy", origin.url, *options)
        async with Caller(served.port) as caller:
            assert (await caller.get(b"/relay/legacy/in")).status == 200
        await until_all_send(served, origin, [b"session=s3cret"])
    async with ServedProcess(data_dir=tmp_path, workers=2, start_seconds=90, first_run=False) as served:
        for _ in range(IN_A_ROW):
            assert await sent_up(served, origin) == [b"session=s3cret"]


async def until_all_send(served: ServedProcess, origin: Origin, cookies: list[bytes]) -> None:
    in_a_row = 0
    async with asyncio.timeout(EFFECT_SECONDS):
        while in_a_row < IN_A_ROW:
            in_a_row = in_a_row + 1 if await sent_up(served, origin) == cookies else 0


async def sent_up(served: ServedProcess, origin: Origin) -> list[bytes]:
    """The Cookie lines that reach the origin with a caller that has none; a worker that is not told yet sends none."""
    before = len(origin.requests)
    async with Caller(served.port, deadline_seconds=EFFECT_SECONDS) as caller:
        await caller.get(b"/relay/legacy/a")
    return [line for request in origin.requests[before:] for line in request.values(b"cookie")]
