"""A long download counts every byte of the body and nothing else, whichever way its bytes are dropped."""

from __future__ import annotations

import asyncio
import sys

import pytest

from bench import transfers
from bench.processes import Failed
from bench.transfers import STALL_SECONDS, download
from tests.origin import Origin, Script, chunked, counted, head_bytes, patterned, raw, reply, truncate

TOTAL = 3_000_000
BODY = patterned(TOTAL)


@pytest.fixture(params=[True, False], ids=["in the kernel", "in http.client"])
def drops_in_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and sys.platform != "linux":
        pytest.skip("only Linux can")
    monkeypatch.setattr(transfers, "DROPS_IN_KERNEL", request.param)


async def downloaded(origin: Origin, script: Script, *, total: int = TOTAL, stalling: bool = False) -> float:
    origin.on(b"/long", script)
    return await asyncio.to_thread(download, origin.port, "/long", total=total, stalling=stalling)


@pytest.mark.parametrize(
    "script",
    [
        counted(TOTAL),
        reply(body=BODY),
        reply(headers=[(b"Content-Length", b"%d" % TOTAL), (b"Connection", b"close")], body=BODY),
        chunked([BODY[:10], BODY[10:1_000_000], BODY[1_000_000:]]),
        raw(b"HTTP/1.0 200 OK\r\n\r\n" + BODY),
        raw(head_bytes(200, [(b"Content-Length", b"%d" % TOTAL)]) + BODY + b"beyond the end", then="keep"),
    ],
    ids=["counted", "at once", "counted and closed", "chunked", "until the close", "more than announced"],
)
@pytest.mark.usefixtures("drops_in_kernel")
async def test_a_whole_body_is_taken_however_it_is_framed(origin: Origin, script: Script) -> None:
    assert await downloaded(origin, script) > 0


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (truncate(TOTAL, 2_000_000), "^2,000,000 bytes of 3,000,000 arrived$"),
        (truncate(TOTAL, 0), "^0 bytes of 3,000,000 arrived$"),
        (counted(TOTAL - 1), "^2,999,999 bytes of 3,000,000 arrived$"),
        (counted(TOTAL + 1), "^3,000,001 bytes of 3,000,000 arrived$"),
        (chunked([BODY[:-1]]), "^2,999,999 bytes of 3,000,000 arrived$"),
        (reply(body=b""), "^0 bytes of 3,000,000 arrived$"),
        (raw(head_bytes(200, [(b"Transfer-Encoding", b"chunked")]) + b"5\r\nab"), "^the connection failed"),
        (truncate(TOTAL, 2_000_000, then="reset"), "^the connection failed"),
        (reply(502, body=BODY), "^answered with 502 Bad Gateway$"),
    ],
    ids=["cut", "nothing", "one less", "one more", "chunks", "empty", "cut in a chunk", "reset", "refused"],
)
@pytest.mark.usefixtures("drops_in_kernel")
async def test_a_body_of_another_size_is_no_figure(origin: Origin, script: Script, reason: str) -> None:
    with pytest.raises(Failed, match=reason):
        await downloaded(origin, script)


@pytest.mark.usefixtures("drops_in_kernel")
async def test_a_stalling_reader_stops_at_the_start_and_again_and_again(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[float] = []
    monkeypatch.setattr(transfers, "STALL_EVERY_BYTES", 2_000_000)
    monkeypatch.setattr(transfers.time, "sleep", stops.append)
    await downloaded(origin, counted(5_000_000), total=5_000_000, stalling=True)
    assert stops == [STALL_SECONDS] * 3
