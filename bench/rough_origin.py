"""The origin of the soak: `tests.origin` in a process of its own, which keeps nothing of what it was asked.

Started as `python -m bench.rough_origin`; its first line says the port, its last, when it is told to end, as JSON what
it met that no relay may send. The path says what it does, so callers know the right answer:

    /counted/N            N patterned bytes, counted        /hang           no answer ever
    /chunked/N/P          the same in chunks of P           /reset          RST instead of an answer
    /echo                 what arrived, as JSON             /garbage        no HTTP
    /events/N/MS          N events, one each MS             /cut/N/M/HOW    M of the N bytes promised, then `close` or
    /drip/N/MS            N bytes, one each MS                              `reset`
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable

from bench.processes import raise_open_files_limit
from tests.origin import (
    Exchange,
    Origin,
    Script,
    chunked,
    chunked_head,
    counted,
    echo,
    hang,
    head_bytes,
    patterned,
    raw,
    reply,
    truncate,
)

MOST_FAILURES_KEPT = 20
EVENT = b"data: %d\n\n"


class ForgetfulOrigin(Origin):
    """Counts instead of keeping: it is asked for hours."""

    asked = 0

    def _note(self, exchange: Exchange) -> None:
        self.asked += 1
        del self.failures[MOST_FAILURES_KEPT:]


def script_of(path: bytes) -> Script:
    name, *arguments = path.decode("ascii", "replace").strip("/").split("/")
    make = SCRIPTS.get(name)
    return reply(404, body=b"no such script") if make is None else make(*arguments)


def _in_chunks(length: str, piece: str) -> Script:
    total, size = int(length), int(piece)
    return chunked([patterned(min(size, total - offset), offset=offset) for offset in range(0, total, size)])


def _events(number: str, milliseconds: str) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(chunked_head(200, [(b"Content-Type", b"text/event-stream")]))
        for index in range(int(number)):
            await exchange.send_chunk(EVENT % index)
            await asyncio.sleep(int(milliseconds) / 1000)
        await exchange.send_chunk(b"")

    return script


def _drip(length: str, milliseconds: str) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(head_bytes(200, [(b"Content-Length", length.encode())]))
        for index in range(int(length)):
            await exchange.send(patterned(1, offset=index))
            await asyncio.sleep(int(milliseconds) / 1000)

    return script


def _reset() -> Script:
    async def script(exchange: Exchange) -> None:
        exchange.abort()

    return script


def _cut(promised: str, sent: str, how: str) -> Script:
    return truncate(int(promised), int(sent), then="reset" if how == "reset" else "close")


SCRIPTS: dict[str, Callable[..., Script]] = {
    "counted": lambda length: counted(int(length)),
    "chunked": _in_chunks,
    "echo": echo,
    "events": _events,
    "drip": _drip,
    "hang": hang,
    "reset": _reset,
    "garbage": lambda: raw(b"\x16\x03\x01 this is no HTTP\r\n\r\n"),
    "cut": _cut,
}


async def _dispatch(exchange: Exchange) -> None:
    await script_of(exchange.head.path)(exchange)


async def main() -> None:
    raise_open_files_limit()
    told_to_end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_end.set)
    origin = ForgetfulOrigin()
    origin.otherwise(_dispatch)
    async with origin:
        print(json.dumps({"port": origin.port}), flush=True)
        await told_to_end.wait()
        met = [f"{type(failure).__name__}: {failure}" for failure in origin.failures]
        origin.failures.clear()
        print(json.dumps({"asked": origin.asked, "met": met}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
