"""Who has no key can neither fill disk or memory nor make the relay connect anywhere, however many ways it tries.

A real worker, and upstreams that want a key. What it holds is compared with what it held before.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from relay.observing.access_log import MAX_PATH_BYTES
from tests.attacks.test_authority_confusion import REFUSED_HOSTS
from tests.attacks.test_request_smuggling import CHUNKS, CODINGS, LENGTHS, LINES
from tests.caller import Caller
from tests.origin import Origin
from tests.rules.test_paths import DOT_SEGMENTS, OUTSIDE
from tests.serving_ground import ServedProcess

REQUESTS = 10_000
CALLERS = 64
GROWTH_BYTES = 24 * 1024 * 1024
METRICS_BYTES = 64 * 1024
LINE_BYTES = 4 * MAX_PATH_BYTES + 1024
"""Of a path, a byte takes up to four in a line."""

pytestmark = pytest.mark.timeout(240)


@pytest_asyncio.fixture
async def served(origin: Origin, tmp_path: Path) -> AsyncIterator[ServedProcess]:
    """One worker with the upstream `o`, for which a key is needed, and a log of its own."""
    environment = {"RELAY_ACCESS_LOG": str(tmp_path / "access.log"), "RELAY_HEAD_TIMEOUT_SECONDS": "1"}
    async with ServedProcess(environment=environment) as served:
        await served.register("o", origin.url, "--allow-network", "127.0.0.0/8")
        yield served


def polite(rng: random.Random) -> bytes:
    """A whole request that is refused on a connection that goes on."""
    path = rng.choice(
        [b"/a", b"", b"?q", *DOT_SEGMENTS, b"/" + b"a" * rng.randrange(4000), b"/%d" % rng.getrandbits(64)]
    )
    slug = rng.choice([b"o", b"o", b"nobody", b"%d" % rng.getrandbits(32), b"a" * rng.randrange(1000)])
    method = rng.choice([b"GET", b"DELETE", b"BREW", b"X%d" % rng.getrandbits(32)])
    names = [b"X-%d: %b\r\n" % (rng.getrandbits(32), b"v" * rng.randrange(500)) for _ in range(rng.randrange(20))]
    key = rng.choice([b"", b"Relay-Key: rk_%d\r\n", b"Authorization: Bearer rk_%d\r\n", b"Authorization: Basic %d\r\n"])
    if key:
        names.append(key % rng.getrandbits(128))
    host = rng.choice([b"localhost", b"localhost:%d" % rng.randrange(65_536), b"evil%d.example" % rng.getrandbits(32)])
    return b"%b /relay/%b%b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (method, slug, path, host, b"".join(names))


def rude(rng: random.Random) -> bytes:
    """What ends the connection, or leaves it hanging."""
    post = b"POST /relay/o/a HTTP/1.1\r\nHost: localhost\r\n"
    return rng.choice(
        [
            lambda: post + rng.choice(CODINGS) + b"\r\n\r\n0\r\n\r\n",
            lambda: post + rng.choice(LENGTHS) + b"\r\n\r\nabcd",
            lambda: post + b"Transfer-Encoding: chunked\r\n\r\n" + rng.choice(CHUNKS),
            lambda: post + b"Content-Length: 1000000000\r\n\r\n" + bytes(rng.randrange(300_000)),
            lambda: post + b"Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n",
            lambda: post + b"Relay-Key: rk_a\r\nRelay-Key: rk_b\r\n\r\n",
            lambda: rng.choice(LINES),
            lambda: b"GET /relay/o%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % rng.choice(OUTSIDE),
            lambda: b"GET /relay/o/a HTTP/1.1\r\nHost: %b\r\n\r\n" % rng.choice(REFUSED_HOSTS),
            lambda: b"GET /relay/o/" + b"a" * rng.randrange(200_000),
            lambda: post + b"X: y\r\n" * rng.randrange(20_000),
            lambda: post + b"X: " + b"y" * rng.randrange(200_000),
            lambda: b"POST /admin/login/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n",
            lambda: b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: localhost\r\n\r\n" + bytes(1000),
            lambda: rng.randbytes(rng.randrange(5000)),
            lambda: polite(rng) * 200,
            lambda: b"",
        ]
    )()


def attacks(rng: random.Random) -> Iterator[bytes]:
    """For one connection each, until there were `REQUESTS` in all."""
    done = 0
    while done < REQUESTS:
        many = rng.randrange(40)
        yield b"".join(polite(rng) for _ in range(many)) + rude(rng)
        done += many + 1


async def attack(port: int, waiting: Iterator[bytes], rng: random.Random) -> None:
    for sent in waiting:
        async with Caller(port, deadline_seconds=30) as caller:
            try:
                await caller.send(sent)
                if rng.random() < 0.9:
                    # Whoever hangs is ended by the head's time, or leaves here.
                    async with asyncio.timeout(rng.choice([0.05, 3.0])):
                        await caller.read_rest()
            except (ConnectionError, TimeoutError):
                pass


def files_in(folder: Path) -> dict[Path, int]:
    """But for the numbers that workers leave each other, which are written anew every two seconds."""
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.parent.name != "metrics"}


async def test_ten_thousand_hostile_requests_change_nothing(
    origin: Origin, served: ServedProcess, tmp_path: Path
) -> None:
    (worker,) = psutil.Process(served.pid).children()
    rng = random.Random(4)

    async def all_at_once() -> None:
        waiting = attacks(rng)
        await asyncio.gather(*(attack(served.port, waiting, rng) for _ in range(CALLERS)))
        async with Caller(served.port, deadline_seconds=30) as caller:
            assert (await caller.get(b"/healthz")).status == 200

    # Once to have everything in use that ever is, and once to see that it is enough.
    await all_at_once()
    memory, descriptors, files = worker.memory_info().rss, worker.num_fds(), files_in(served.data_dir)
    await all_at_once()
    async with asyncio.timeout(10):
        while worker.num_fds() > descriptors:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.05)
    assert origin.connections_made == 0
    assert worker.memory_info().rss - memory < GROWTH_BYTES
    assert files_in(served.data_dir) == files
    assert sum(path.stat().st_size for path in (served.data_dir / "metrics").iterdir()) < METRICS_BYTES
    assert served.output == [line for line in served.output if "Traceback" not in line and "ERROR" not in line]
    lines = (tmp_path / "access.log").read_bytes().splitlines()
    assert {json.loads(line)["outcome"] for line in lines} >= {
        "bad-request",
        "form-too-large",
        "headers-too-large",
        "key-refused",
        "key-required",
        "not-http",
        "target-too-long",
        "too-many-unknown-keys",
        "upstream-unknown",
        "wrong-host",
    }
    assert max(map(len, lines)) < LINE_BYTES
