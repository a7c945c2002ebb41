"""The callers of the soak: so many at a time of each kind, good and bad, each drawing what it asks next from one seed.

Started by `bench.soak` as `python -m bench.traffic FILE`, which holds a `Course` as JSON; its last line is its `Tally`
as JSON. A good kind knows its whole right answer: a request is lost when anything else comes, unless its caller gave
up, which callers of good kinds do at a random moment in every few calls. A bad kind is lost when its failure is told as
something else, above all as a whole answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.processes import raise_open_files_limit
from bench.rough_origin import EVENT
from tests.caller import Answer, Caller
from tests.origin import patterned

SIZES = (0, 1, 13, 1024, 65_536)
DOWNLOADS = (200_000, 1_000_000, 4_000_000)
UPLOADS = (1, 4096, 300_000, 2_000_000)
PIECE_BYTES = 16_384
ABORTED_SHARE = 0.15
LATEST_ABORT_SECONDS = 0.4
DEADLINE_SECONDS = 45.0
"""Of one step of a caller: beyond it the relay has lost the request."""
MOST_KEPT = 30
"""Of what was lost, told in full; the rest is counted."""
PAUSE_SECONDS = 0.05
"""The most that a caller rests between two calls: the machine's cores are the bound, and they are shared."""


@dataclass(frozen=True, slots=True)
class Course:
    """Where to call, for how long, with what."""

    port: int
    seconds: float
    seed: int
    scale: float = 1.0
    """Of the callers of each kind; one of each there is always."""
    key: str = field(default="", repr=False)
    revoked_key: str = field(default="", repr=False)
    signed: str = field(default="", repr=False)
    """A signed target, and the length of what it leads to."""
    signed_bytes: int = 0


@dataclass(slots=True)
class Tally:
    """How many calls of each kind ended how, and what was lost or wrong, the first of it in full."""

    ended: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    told: list[str] = field(default_factory=list)

    def add(self, kind: str, how: str) -> None:
        key = f"{kind}: {how}"
        self.ended[key] = self.ended.get(key, 0) + 1

    def lose(self, kind: str, reason: str) -> None:
        self.add(kind, "LOST")
        self.lost += 1
        if len(self.told) < MOST_KEPT:
            self.told.append(f"{time.strftime('%H:%M:%S')} {kind}: {reason}")


class Wrong(Exception):
    """Not the answer that was due; says which came."""


Draw = random.Random
Call = Callable[[Course, Draw, Tally], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Kind:
    """Traffic of one sort: how many callers at once."""

    name: str
    callers: int
    call: Call
    is_good: bool = True


async def run(course: Course) -> Tally:
    """Call until the time is over, then wait for what is under way."""
    tally = Tally()
    ends_at = time.monotonic() + course.seconds
    told_to_end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_end.set)

    async def caller(kind: Kind, number: int) -> None:
        draw = random.Random(f"{course.seed}/{kind.name}/{number}")
        while time.monotonic() < ends_at and not told_to_end.is_set():
            await call_once(kind, course, draw, tally)
            await asyncio.sleep(draw.uniform(0, PAUSE_SECONDS))

    async with asyncio.TaskGroup() as callers:
        for kind in KINDS:
            for number in range(max(1, round(kind.callers * course.scale))):
                callers.create_task(caller(kind, number))
    return tally


async def call_once(kind: Kind, course: Course, draw: Draw, tally: Tally) -> None:
    gives_up_after = None
    if kind.is_good and draw.random() < ABORTED_SHARE:
        gives_up_after = LATEST_ABORT_SECONDS * draw.random() ** 3  # mostly early, or all would be over
    giving_up = asyncio.timeout(gives_up_after)
    try:
        async with giving_up:
            await kind.call(course, draw, tally)
    except Wrong as wrong:
        tally.lose(kind.name, str(wrong))
    except Exception as failure:  # resets, early ends, deadlines, and what no parser takes
        if giving_up.expired():
            tally.add(kind.name, "given up by its caller")
        else:
            tally.lose(kind.name, f"{type(failure).__name__}: {failure}")
    else:
        tally.add(kind.name, "right")


def calling(course: Course, **options: Any) -> Caller:
    return Caller(course.port, deadline_seconds=DEADLINE_SECONDS, **options)


# Good ones.


async def small(course: Course, draw: Draw, tally: Tally) -> None:
    """Several on one connection. One that the relay closed while it was idle, as HTTP lets it, is asked anew."""
    left = draw.randint(1, 20)
    while left:
        async with calling(course) as caller:
            served = 0
            while left:
                size = draw.choice(SIZES)
                try:
                    answer = await caller.get(b"/relay/open/counted/%d" % size)
                except (ConnectionError, asyncio.IncompleteReadError) as failure:
                    if not served or getattr(failure, "partial", False):
                        raise
                    tally.add("small", "asked anew, for its idle connection was closed")
                    break
                expect(answer, patterned_sha256(size))
                tally.add("small", "right, on a kept connection" if served else "right, on a new connection")
                left -= 1
                served += 1
                if b"close" in answer.values(b"connection"):
                    break


async def keyed(course: Course, draw: Draw, tally: Tally) -> None:
    size = draw.choice(SIZES)
    async with calling(course) as caller:
        named = draw.choice(((b"Relay-Key", course.key.encode()), (b"Authorization", f"Bearer {course.key}".encode())))
        expect(await caller.get(b"/relay/guarded/counted/%d" % size, [named]), patterned_sha256(size))


async def signed(course: Course, draw: Draw, tally: Tally) -> None:
    async with calling(course) as caller:
        expect(await caller.get(course.signed.encode()), patterned_sha256(course.signed_bytes))


async def download(course: Course, draw: Draw, tally: Tally) -> None:
    size = draw.choice(DOWNLOADS)
    path = draw.choice((b"counted/%d" % size, b"chunked/%d/%d" % (size, draw.randint(500, 60_000))))
    async with calling(course) as caller:
        expect(await caller.get(b"/relay/open/" + path, keep=False), patterned_sha256(size))


async def slow_reader(course: Course, draw: Draw, tally: Tally) -> None:
    size = draw.choice(DOWNLOADS)
    seen = hashlib.sha256()
    async with calling(course, buffer_bytes=PIECE_BYTES) as caller:
        await caller.send(b"GET /relay/open/counted/%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % size)
        if (head := await caller.read_head()).status != 200:
            raise Wrong(f"answered with {head.status}")
        pauses = draw.randint(1, 10)
        while piece := await caller.read_chunk():
            seen.update(piece)
            if pauses:
                pauses -= 1
                await asyncio.sleep(draw.uniform(0, 0.2))
        if caller.ended is None or not caller.ended.cleanly or seen.hexdigest() != patterned_sha256(size):
            raise Wrong(f"a body that ended {caller.ended}, or another one")


async def upload(course: Course, draw: Draw, tally: Tally) -> None:
    size = draw.choice(UPLOADS)
    body = patterned(size)
    pieces = [body[offset : offset + PIECE_BYTES] for offset in range(0, size, PIECE_BYTES)]
    async with calling(course) as caller:
        method = draw.choice((b"PUT", b"POST"))
        answer = await caller.get(b"/relay/open/echo", method=method, body=draw.choice((body, pieces)))
    if answer.status != 200 or not answer.body.ended.cleanly:
        raise Wrong(f"answered with {answer.status}, which ended {answer.body.ended}")
    if json.loads(answer.data)["body_sha256"] != patterned_sha256(size):
        raise Wrong("the origin was sent another body")


async def events(course: Course, draw: Draw, tally: Tally) -> None:
    number = draw.randint(1, 20)
    async with calling(course) as caller:
        answer = await caller.get(b"/relay/open/events/%d/%d" % (number, draw.randint(0, 150)))
        expect(answer, hashlib.sha256(b"".join(EVENT % index for index in range(number))).hexdigest())


async def drip(course: Course, draw: Draw, tally: Tally) -> None:
    size = draw.randint(1, 40)
    async with calling(course) as caller:
        expect(await caller.get(b"/relay/open/drip/%d/%d" % (size, draw.randint(0, 60))), patterned_sha256(size))


# Bad ones.


async def cut_answer(course: Course, draw: Draw, tally: Tally) -> None:
    promised = draw.randint(2, 200_000)
    path = b"/relay/bad/cut/%d/%d/%b" % (promised, draw.randrange(promised), draw.choice((b"close", b"reset")))
    async with calling(course) as caller:
        try:
            answer = await caller.get(path, keep=False)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
    if answer.status not in (200, 502) or (answer.status == 200 and answer.body.ended.cleanly):
        raise Wrong(f"a cut answer came as {answer.status}, which ended {answer.body.ended}")


def refused(target: bytes, *statuses: int) -> Call:
    """A GET that is to be answered with one of these."""

    async def call(course: Course, draw: Draw, tally: Tally) -> None:
        async with calling(course) as caller:
            answer = await caller.get(target)
        if answer.status not in statuses or not answer.body.ended.cleanly:
            raise Wrong(f"answered with {answer.status} instead of {' or '.join(map(str, statuses))}")

    return call


async def bad_key(course: Course, draw: Draw, tally: Tally) -> None:
    key = draw.choice((course.revoked_key, course.key[:-1], "rk_nonsense"))
    async with calling(course) as caller:
        answer = await caller.get(b"/relay/guarded/counted/1", [(b"Relay-Key", key.encode())])
    if answer.status not in (401, 429):  # many from one address are told to wait
        raise Wrong(f"a bad key was answered with {answer.status}")


async def switched(course: Course, draw: Draw, tally: Tally) -> None:
    """An upstream that is switched off and on meanwhile is there or is not, and nothing between."""
    async with calling(course) as caller:
        answer = await caller.get(b"/relay/switched/counted/13")
    if answer.status != 404:
        expect(answer, patterned_sha256(13))


async def noise(course: Course, draw: Draw, tally: Tally) -> None:
    """A caller that speaks no HTTP is told so or hung up on."""
    async with calling(course) as caller:
        try:
            await caller.send(draw.randbytes(draw.randint(1, 2000)) + b"\r\n\r\n")
            said, _ = await caller.read_rest()
        except ConnectionError:
            return
    if said and not said.startswith(b"HTTP/1.1 4"):
        raise Wrong(f"noise was answered with {said[:40]!r}")


async def slow_head(course: Course, draw: Draw, tally: Tally) -> None:
    """A head that comes bit by bit, and never whole."""
    async with calling(course) as caller:
        await caller.send(b"GET /relay/open/counted/1 HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        for number in range(draw.randint(0, 10)):
            await asyncio.sleep(draw.uniform(0, 0.2))
            await caller.send(b"X-%d: bit by bit\r\n" % number)
        draw.choice((caller.abort, caller.close))()


async def half_upload(course: Course, draw: Draw, tally: Tally) -> None:
    size = draw.choice(UPLOADS)
    async with calling(course) as caller:
        head = b"PUT /relay/open/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % (size + 1)
        await caller.send(head + patterned(size))
        draw.choice((caller.abort, caller.close))()


KINDS = (
    Kind("small", 8, small),
    Kind("keyed", 4, keyed),
    Kind("signed", 2, signed),
    Kind("download", 3, download),
    Kind("slow reader", 4, slow_reader),
    Kind("upload", 4, upload),
    Kind("events", 8, events),
    Kind("drip", 6, drip),
    Kind("cut answer", 3, cut_answer, is_good=False),
    Kind("garbage", 2, refused(b"/relay/bad/garbage", 502), is_good=False),
    Kind("reset", 2, refused(b"/relay/bad/reset", 502), is_good=False),
    Kind("time-out", 3, refused(b"/relay/bad/hang", 504), is_good=False),
    Kind("nobody there", 2, refused(b"/relay/away/", 502), is_good=False),
    Kind("unknown upstream", 2, refused(b"/relay/unknown/", 404), is_good=False),
    Kind("bad key", 2, bad_key, is_good=False),
    Kind("switched", 2, switched, is_good=False),
    Kind("noise", 2, noise, is_good=False),
    Kind("slow head", 3, slow_head, is_good=False),
    Kind("half upload", 3, half_upload, is_good=False),
)


def expect(answer: Answer, sha256: str) -> None:
    """Raises Wrong unless it is a 200 with this body, which ended as its sender meant."""
    if answer.status != 200:
        told = answer.data[:200].decode(errors="replace")
        raise Wrong(f"answered with {answer.status}: {told}")
    if not answer.body.ended.cleanly:
        raise Wrong(f"the body ended {answer.body.ended} after {answer.body.length:,} bytes")
    if answer.body.sha256 != sha256:
        raise Wrong(f"another body, of {answer.body.length:,} bytes")


@lru_cache(maxsize=256)
def patterned_sha256(length: int) -> str:
    return hashlib.sha256(patterned(length)).hexdigest()


def main() -> None:
    raise_open_files_limit()
    tally = asyncio.run(run(Course(**json.loads(Path(sys.argv[1]).read_text()))))
    print(json.dumps(asdict(tally)), flush=True)


if __name__ == "__main__":
    main()
