"""Whatever exchanges, faults and cancellations meet: nothing is kept, and nobody gets a byte of another's answer.

Hypothesis looks for the turn of the loop at which a cancellation does harm; a thousand exchanges at once look for harm
they do each other. `RELAY_TEST_SEED` repeats the latter's choices, though not the kernel's.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.upstreams import wire as wire_room
from relay.upstreams.transport import PooledTransport
from tests.origin import Exchange, Origin, chunked_head, counted_answer, head_bytes
from tests.upstreams.conftest import Seam, emptied, until_at_rest

LOOPS = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
MakeLoop = Callable[[], asyncio.AbstractEventLoop]


def run(main: Coroutine[Any, Any, None], loop_factory: MakeLoop) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main)


async def turns(number: int) -> None:
    """Of the loop, which origin and relay share."""
    for _ in range(number):
        await asyncio.sleep(0)


# Cancelled at any turn.

BEHAVIOURS = ("quick", "slow head", "slow body", "hang", "reset", "close early", "refuse", "close after", "half")


@dataclass(frozen=True, slots=True)
class Attempt:
    behaviour: str
    sends: int
    """Pieces of a body; none for a GET."""
    starts: int
    """The turn at which it starts."""
    cancelled: int | None
    """The turn after that at which its task is cancelled."""
    reads: int | None
    """Pieces of the answer that are read before it is closed; None for all."""


attempts = st.builds(
    Attempt,
    behaviour=st.sampled_from(BEHAVIOURS),
    sends=st.sampled_from([0, 0, 1, 3]),
    starts=st.integers(0, 30),
    cancelled=st.none() | st.integers(0, 60),
    reads=st.none() | st.integers(0, 2),
)


async def behave(exchange: Exchange) -> None:
    behaviour = exchange.head.path[1:].decode().replace("-", " ")
    if behaviour == "refuse":
        await exchange.send(counted_answer(403, (), b"no"))
        return
    if behaviour == "half":
        await exchange.read_some()
    else:
        await exchange.read_body()
    match behaviour:
        case "quick":
            await exchange.send(counted_answer(200, (), b"quick"))
        case "slow head":
            await turns(20)
            await exchange.send(counted_answer(200, (), b"slow"))
        case "slow body":
            await exchange.send(chunked_head(200, ()))
            for _ in range(3):
                await exchange.send_chunk(b"slow")
                await turns(8)
            await exchange.send_chunk(b"")
        case "hang":
            await exchange.closed.wait()
        case "reset":
            await exchange.send(head_bytes(200, [(b"Content-Length", b"9")]))
            exchange.abort()
        case "close early" | "half":
            await exchange.close()
        case "close after":
            await exchange.send(counted_answer(200, (), b"gone"))
            await exchange.close()


async def attempt_one(seam: Seam, attempt: Attempt) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(attempt.sends):
            await turns(3)
            yield b"piece"

    given: dict[str, Any] = {}
    if attempt.sends:
        given = {"method": "POST", "pairs": [(b"transfer-encoding", b"chunked")], "body": body()}
    await turns(attempt.starts)
    response = await seam.ask(b"/" + attempt.behaviour.replace(" ", "-").encode(), **given)
    stream = response.stream
    assert isinstance(stream, wire_room.Wire)
    try:
        reads = 0
        while reads != attempt.reads and await stream.read():
            reads += 1
    finally:
        stream.close()


async def attempt_all(
    planned: list[Attempt], max_connections: int, keepalive_seconds: float, complaints: list[dict[str, Any]]
) -> None:
    async with Origin() as origin:
        origin.otherwise(behave)
        law = emptied(PooledTransport(), origin)
        law.complaints = complaints
        async with law as transport:
            seam = Seam(origin, transport)
            seam.rules(max_connections=max_connections, keepalive_seconds=keepalive_seconds)
            tasks = [asyncio.create_task(attempt_one(seam, attempt)) for attempt in planned]
            for turn in range(100):
                for task, attempt in zip(tasks, planned, strict=True):
                    if attempt.cancelled is not None and attempt.starts + attempt.cancelled == turn:
                        task.cancel()
                await asyncio.sleep(0)
            # Whoever hangs holds others up, so all of those are cancelled now.
            for task, attempt in zip(tasks, planned, strict=True):
                if attempt.behaviour == "hang":
                    task.cancel()
            outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
            for outcome in outcomes:
                assert isinstance(outcome, httpx.TransportError | asyncio.CancelledError | None), repr(outcome)
            await until_at_rest(transport)
            pool = seam.pool
            assert (pool.exchanges, pool.waiting) == (0, 0)
            assert pool.open_connections == pool.idle_connections == len(pool._connections)
            await origin.until_connections(pool.open_connections)
            tasks_left = asyncio.all_tasks() - {asyncio.current_task()} - origin._conversations
            assert not tasks_left


@LOOPS
@settings(max_examples=int(os.environ.get("RELAY_TEST_EXAMPLES", "60")), deadline=None)
@given(
    planned=st.lists(attempts, min_size=1, max_size=8),
    max_connections=st.integers(1, 3),
    keepalive_seconds=st.sampled_from([0, 20]),
)
def test_exchanges_cancelled_and_closed_at_any_turn_leave_nothing(
    loop_factory: MakeLoop, planned: list[Attempt], max_connections: int, keepalive_seconds: float
) -> None:
    complaints: list[dict[str, Any]] = []
    run(attempt_all(planned, max_connections, keepalive_seconds, complaints), loop_factory)
    assert complaints == []


# A thousand, fifty at a time.

NUMBER = 1000
AT_ONCE = 50
MAX_BODY_BYTES = 300_000
STALL_SECONDS = 0.1
PIECE_BYTES = 16 * 1024

REQUESTS = ("GET", "GET", "HEAD", "counted", "chunked", "expect")
ANSWERS = ("counted", "counted", "chunked", "chunked", "until close", "204", "304", "early", "refusal", "closing")
FAULTS = ("reset", "close", "garbage", "stall", "cancel", "slow reader", "caller stalls", "caller fails", "depart")
GARBAGE = ("before", "between", "behind")


class Planned:
    """One exchange of the thousand: all of its choices, and what each side must see of the other."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.number = number
        self.shape = rng.choice(REQUESTS)
        self.answer = rng.choice(ANSWERS)
        self.fault = rng.choice(FAULTS) if rng.random() < 0.4 else None
        self.fraction = rng.random()
        self.garbage = GARBAGE[int(self.fraction * len(GARBAGE))]
        if self.fault == "garbage" and self.garbage == "behind":
            # An upstream that may go on behind its answer can answer the next request before it is asked.
            self.answer = "closing"
        if self.fault == "depart" and self.answer in ("early", "refusal"):
            # Its reset may overtake the answer.
            self.fault = "close"
        self.method = self.shape if self.shape in ("GET", "HEAD") else "POST"
        size = rng.choice([0, 1, 100, 10_000, MAX_BODY_BYTES])
        self.sent = b"" if self.method != "POST" else self._tagged(rng, b"q", rng.randint(0, size))
        self.body = self._tagged(rng, b"a", rng.randint(0, rng.choice([0, 1, 100, 10_000, MAX_BODY_BYTES])))
        self.status = {"204": 204, "304": 304, "refusal": 413}.get(self.answer, 200)
        if self.status in (204, 304) or self.method == "HEAD":
            self.body = b""
        self.trailers = [(b"X-Id", b"%d" % number)] if self.answer == "chunked" and self.method != "HEAD" else []
        self.interims = rng.choice([0, 0, 0, 1, 2])
        self.continues = rng.random() < 0.5
        self.pieces = rng.choice([1, 2, 7])
        self.turns = rng.choice([0, 0, 1, 5])
        self.cancelled_at = rng.choice([0, 1, 2, 3, 5, 8, 13, 50, 200])
        self.reads = rng.randint(0, 3)
        self.runs = 0
        """How often the origin was asked."""

    def _tagged(self, rng: random.Random, side: bytes, length: int) -> bytes:
        return (b"%s%d:" % (side, self.number) + rng.randbytes(length))[:length]

    @property
    def target(self) -> bytes:
        return b"/%d" % self.number

    @property
    def is_early(self) -> bool:
        return self.answer in ("early", "refusal")

    def cut(self, data: bytes) -> list[bytes]:
        size = max(1, len(data) // self.pieces)
        return [data[start : start + size] for start in range(0, len(data), size)]

    def wire(self) -> bytes:
        """The answer as the origin would send it whole."""
        pairs = [(b"X-Id", b"%d" % self.number)]
        interim = b"HTTP/1.1 103 Early Hints\r\nX-Id: %d\r\n\r\n" % self.number
        match self.answer:
            case "chunked":
                head = chunked_head(200, pairs)
                chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in self.cut(self.body))
                body = b"" if self.method == "HEAD" else chunks + b"0\r\nX-Id: %d\r\n\r\n" % self.number
            case "until close":
                head, body = head_bytes(200, pairs), self.body
            case "204" | "304":
                head, body = head_bytes(self.status, pairs), b""
            case _:
                closing = [(b"Connection", b"close")] if self.answer == "closing" else []
                head = head_bytes(self.status, [*pairs, *closing, (b"Content-Length", b"%d" % len(self.body))])
                body = self.body
        return interim * self.interims + head + body


class Play:
    """The origin's side of all of them."""

    def __init__(self, planned: list[Planned]) -> None:
        self.planned = planned

    async def script(self, exchange: Exchange) -> None:
        plan = self.planned[int(exchange.head.target[1:])]
        plan.runs += 1
        assert exchange.head.method.decode() == plan.method
        assert exchange.head.values(b"x-id") == [b"%d" % plan.number]
        if not plan.is_early:
            if exchange.head.values(b"expect") and plan.continues:
                await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            received = bytearray()
            while piece := await exchange.read_some():
                received += piece
                assert plan.sent.startswith(piece, len(received) - len(piece))
            assert received == plan.sent
        data = plan.wire()
        if plan.fault == "garbage":
            data = self._spoilt(plan, data)
        if plan.fault in ("reset", "close", "stall"):
            data = data[: int(len(data) * plan.fraction)]
        for piece in plan.cut(data):
            await exchange.send(piece)
            await turns(plan.turns)
        if plan.fault == "stall":
            await exchange.closed.wait()
        elif plan.fault == "reset":
            exchange.abort()
        elif plan.fault == "close" or plan.answer in ("until close", "closing"):
            await exchange.close()
        elif plan.fault == "depart":
            await turns(plan.cancelled_at)
            await exchange.close()

    def _spoilt(self, plan: Planned, data: bytes) -> bytes:
        if plan.garbage == "behind":
            return data + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nbehind"
        if plan.garbage == "between" and plan.answer == "chunked":
            return data.replace(b"\r\n\r\n", b"\r\n\r\nzz\r\n", 1 + plan.interims)
        return b"\x16\x03\x01" + data


async def ask(plan: Planned, seams: dict[bool, Seam], outcomes: Counter[str]) -> None:
    """One of the thousand, from the caller's side."""
    told: list[Any] = []
    body: AsyncIterator[bytes] | None = None
    pairs = [(b"x-id", b"%d" % plan.number)]
    if plan.method == "POST":
        body = caller_body(plan)
        pairs.append(
            (b"content-length", b"%d" % len(plan.sent))
            if plan.shape == "counted"
            else (b"transfer-encoding", b"chunked")
        )
        if plan.shape == "expect":
            pairs.append((b"expect", b"100-continue"))
    seam = seams[plan.fault in ("stall", "caller stalls")]
    seen = bytearray()
    response: httpx.Response | None = None
    try:
        response = await seam.ask(
            plan.target, method=plan.method, pairs=pairs, body=body, interim=lambda *given: told.append(given)
        )
        assert (response.status_code, response.headers["x-id"]) == (plan.status, str(plan.number))
        assert told in ([], [(103, [(b"X-Id", b"%d" % plan.number)])] * plan.interims)
        stream = response.stream
        assert isinstance(stream, wire_room.Wire)
        pieces_read = 0
        while piece := await stream.read():
            assert plan.body.startswith(piece, len(seen)), "bytes that are not this answer's"
            seen += piece
            pieces_read += 1
            if plan.fault == "slow reader":
                await turns(20)
                if pieces_read > plan.reads:
                    outcomes["closed early"] += 1
                    return
        if seen != plan.body:
            assert plan.answer == "until close", "half an answer was taken for the whole"
            assert plan.fault == "close"
        else:
            assert response.extensions["trailers"] == plan.trailers
        outcomes["whole"] += 1
    except (httpx.TransportError, LookupError) as problem:
        # Whom no fault was planned for may still meet a connection that departs: then nobody saw the request.
        is_foreseen = plan.fault not in (None, "cancel", "slow reader", "depart") or plan.runs == 0
        outcomes[type(problem).__name__ if is_foreseen else f"{plan.number}: {problem!r}"] += 1
    finally:
        if response is not None:
            response.stream.close()  # type: ignore[union-attr]


async def caller_body(plan: Planned) -> AsyncIterator[bytes]:
    half = len(plan.sent) // 2
    sent = 0
    for piece in plan.cut(plan.sent):
        await turns(plan.turns)
        yield piece
        sent += len(piece)
        if sent >= half and plan.fault == "caller stalls":
            await asyncio.Event().wait()
        if sent >= half and plan.fault == "caller fails":
            raise LookupError("the caller went")


async def play(seed: int, complaints: list[dict[str, Any]]) -> Counter[str]:
    rng = random.Random(seed)
    planned = [Planned(number, rng) for number in range(NUMBER)]
    outcomes: Counter[str] = Counter()
    async with Origin() as origin:
        origin.otherwise(Play(planned).script)
        law = emptied(PooledTransport(), origin)
        law.complaints = complaints
        async with law as transport:
            patient, hasty = Seam(origin, transport), Seam(origin, transport)
            patient.rules(slug="patient", max_connections=AT_ONCE // 2, connect_timeout_seconds=30)
            hasty.rules(
                slug="hasty",
                max_connections=AT_ONCE // 2,
                connect_timeout_seconds=30,
                head_timeout_seconds=STALL_SECONDS,
                idle_timeout_seconds=STALL_SECONDS,
            )
            seams = {False: patient, True: hasty}
            waiting = iter(planned)

            async def worker() -> None:
                for plan in waiting:
                    asking = asyncio.create_task(ask(plan, seams, outcomes))
                    if plan.fault == "cancel":
                        await turns(plan.cancelled_at)
                        asking.cancel()
                    await asyncio.wait([asking])
                    if asking.cancelled():
                        outcomes["cancelled"] += 1
                    else:
                        asking.result()

            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(worker())
            await until_at_rest(transport)
            pools = list(transport._pools.values())
            assert len(pools) == 2
            await origin.until_connections(sum(pool.idle_connections for pool in pools))
            assert not asyncio.all_tasks() - {asyncio.current_task()} - origin._conversations
    return outcomes


@LOOPS
def test_a_thousand_exchanges_of_random_shapes_with_random_faults_leave_nothing_open(
    loop_factory: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_room, "CONTINUE_SECONDS", 0.02)
    seed = int(os.environ.get("RELAY_TEST_SEED") or random.SystemRandom().getrandbits(32))
    print(f"RELAY_TEST_SEED={seed}")
    complaints: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=loop_factory, debug=False) as runner:
        outcomes = runner.run(play(seed, complaints))
    gc.collect()
    assert complaints == []
    assert not [outcome for outcome in outcomes if ":" in outcome]
    assert sum(outcomes.values()) == NUMBER
    assert outcomes["whole"] > NUMBER / 2
