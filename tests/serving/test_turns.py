"""Of requests that arrive together a few begin in each turn of the event loop, in their order, and none is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from relay.serving import door
from relay.serving.asgi import Receive, Scope, Send
from relay.serving.protocol import RelayProtocol
from relay.serving.turns import BEGUN_AT_ONCE, Turns
from tests.caller import Caller
from tests.serving.test_protocol import Wire, telling
from tests.serving_ground import Ground


class Callers:
    """As many connections, each sending what it is told to; `begun` has their numbers as their requests begin."""

    def __init__(self, count: int) -> None:
        self.begun: list[int] = []
        self.bodies: list[bytes] = []
        self.state = ServerState()
        config = Config(self.app, interface="asgi3", ws="none", lifespan="off", log_config=None, access_log=False)
        config.load()
        self.wires = [Wire() for _ in range(count)]
        self.protocols = []
        for wire in self.wires:
            loop = asyncio.get_running_loop()
            protocol = RelayProtocol(config=config, server_state=self.state, app_state={}, _loop=loop)
            protocol.connection_made(wire)  # type: ignore[arg-type]  # as much of a transport as is needed
            self.protocols.append(protocol)
        self.turns = door.door_of(self.state).turns

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.append(int(scope["path"].removeprefix("/")))
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    def send(self, number: int, headers: bytes = b"", body: bytes = b"") -> None:
        head = b"POST /%d HTTP/1.1\r\nHost: a\r\n%b\r\n" % (number, headers)
        self.protocols[number].data_received(head)
        if body:
            self.protocols[number].data_received(body)

    async def until_done(self) -> None:
        while self.state.tasks or len(self.turns):  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0)

    def leave(self) -> None:
        for protocol in self.protocols:
            protocol.connection_lost(None)


async def test_a_few_begin_in_each_turn_in_their_order() -> None:
    count = 3 * BEGUN_AT_ONCE + 1
    callers = Callers(count)
    for number in range(count):
        callers.send(number)
    assert len(callers.state.tasks) == BEGUN_AT_ONCE
    before, most = len(callers.begun), 0
    while len(callers.begun) < count:
        await asyncio.sleep(0)
        most = max(most, len(callers.begun) - before)
        before = len(callers.begun)
    assert callers.begun == list(range(count))
    assert most == BEGUN_AT_ONCE
    callers.leave()


async def test_who_comes_while_others_wait_waits_behind_them() -> None:
    callers = Callers(BEGUN_AT_ONCE + 2)
    for number in range(BEGUN_AT_ONCE + 1):
        callers.send(number)
    callers.send(BEGUN_AT_ONCE + 1)
    await callers.until_done()
    assert callers.begun == list(range(BEGUN_AT_ONCE + 2))
    callers.leave()


async def test_the_next_turn_has_all_places_again() -> None:
    callers = Callers(BEGUN_AT_ONCE)
    for _ in range(3):
        for number in range(BEGUN_AT_ONCE):
            callers.send(number)
        assert not len(callers.turns)
        await callers.until_done()
        await asyncio.sleep(0)
    callers.leave()


async def test_who_leaves_while_it_waits_takes_nobody_s_place() -> None:
    callers = Callers(2 * BEGUN_AT_ONCE + 1)
    for number in range(2 * BEGUN_AT_ONCE + 1):
        callers.send(number)
    for number in range(BEGUN_AT_ONCE, 2 * BEGUN_AT_ONCE):
        callers.protocols[number].connection_lost(None)
    await callers.until_done()
    assert callers.begun == [*range(BEGUN_AT_ONCE), 2 * BEGUN_AT_ONCE]


async def test_what_follows_a_head_that_waits_lets_it_begin_at_once() -> None:
    callers = Callers(BEGUN_AT_ONCE + 1)
    for number in range(BEGUN_AT_ONCE):
        callers.send(number)
    callers.send(BEGUN_AT_ONCE, b"Content-Length: 4\r\n", b"body")
    assert len(callers.state.tasks) == BEGUN_AT_ONCE + 1
    await callers.until_done()
    assert callers.begun == list(range(BEGUN_AT_ONCE + 1))
    assert callers.bodies[-1] == b"body"
    callers.leave()


def shut_down(protocol: RelayProtocol) -> None:
    protocol.shutdown()


def run_out_of_idle_time(protocol: RelayProtocol) -> None:
    protocol._head_deadline = protocol._idle_deadline = 0.0
    protocol.timeout_keep_alive_handler()


@pytest.mark.parametrize("happens", [shut_down, run_out_of_idle_time])
async def test_a_head_that_waits_counts_as_one_that_came(happens: Callable[[RelayProtocol], None]) -> None:
    callers = Callers(BEGUN_AT_ONCE + 1)
    for number in range(BEGUN_AT_ONCE + 1):
        callers.send(number)
    happens(callers.protocols[-1])
    await callers.until_done()
    assert callers.begun == list(range(BEGUN_AT_ONCE + 1))
    assert callers.wires[-1].written[0].startswith(b"HTTP/1.1 204 ")
    callers.leave()


async def test_one_that_fails_as_it_begins_holds_nobody_up() -> None:
    class One:
        loop = asyncio.get_running_loop()

        def begin(self) -> bool:
            begun.append(self)
            if len(begun) == 1:
                raise RuntimeError("it failed")
            return True

    begun: list[One] = []
    problems: list[str] = []
    One.loop.set_exception_handler(lambda _, context: problems.append(str(context["exception"])))
    turns = Turns()
    ones = [One() for _ in range(3 * BEGUN_AT_ONCE)]
    assert [turns.take(one) for one in ones] == [True] * BEGUN_AT_ONCE + [False] * 2 * BEGUN_AT_ONCE
    while len(turns):  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)
    assert begun == ones[BEGUN_AT_ONCE:]
    assert problems == ["it failed"]


async def test_hundreds_who_ask_at_once_are_all_answered() -> None:
    async with Ground(telling) as ground, AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(Caller(ground.port)) for _ in range(20 * BEGUN_AT_ONCE)]
        for _ in range(3):
            answers = await asyncio.gather(*(caller.get(b"/%d" % number) for number, caller in enumerate(callers)))
            assert [json.loads(answer.data)["target"] for answer in answers] == [f"/{n}" for n in range(len(callers))]
