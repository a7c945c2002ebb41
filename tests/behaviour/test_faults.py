"""Each fault in each phase of an exchange: what the caller is told, what the log and the metrics tell, and that nothing
is left behind, in memory either. `ground` sees to the last when a test is over; here the upstream also serves again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from relay.observing.access_log import Entry
from relay.observing.metrics import metrics
from relay.serving.body import Inbound
from relay.serving.cycle import RelayCycle
from relay.serving.protocol import RelayProtocol
from relay.serving.request import RelayRequest
from relay.upstreams import exchange as relay_exchange
from relay.upstreams import names
from relay.upstreams.connection import Connection
from relay.upstreams.targets import Seat
from relay.upstreams.wire import Wire
from tests.behaviour.conftest import Logged, Relayed, all_given_back, until
from tests.caller import Caller
from tests.origin import (
    Exchange,
    Origin,
    Script,
    chunked,
    counted,
    head_bytes,
    patterned,
    raw,
    refusing_port,
    reply,
    truncate,
)
from tests.serving_ground import Ground

SHORT = 0.1
MIB = 1024 * 1024
OK = b"HTTP/1.1 200 OK\r\n"
HALF_A_CHUNK = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel"
BAD_CHUNK = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"


async def stalled(exchange: Exchange) -> None:
    await exchange.closed.wait()


async def stalled_in_the_head(exchange: Exchange) -> None:
    await exchange.send(OK + b"Content-Le")
    await exchange.closed.wait()


async def stalled_in_the_body(exchange: Exchange) -> None:
    await exchange.send(head_bytes(200, [(b"Content-Length", b"1000")]) + b"some")
    await exchange.closed.wait()


async def takes_nothing(exchange: Exchange) -> None:
    exchange.pause_reading()
    await exchange.closed.wait()


async def resets_an_upload(exchange: Exchange) -> None:
    await exchange.read_some()
    exchange.abort()


def dripping(data: bytes) -> Script:
    """A byte now and then, never silent for long, and never done."""

    async def script(exchange: Exchange) -> None:
        for place in range(len(data)):
            with contextlib.suppress(ConnectionError):
                await exchange.send(data[place : place + 1])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(exchange.closed.wait(), SHORT / 5)
                return
        await exchange.closed.wait()

    return script


@dataclass(frozen=True)
class Fault:
    script: Script
    status: int
    """0: the caller has the upstream's head, and is cut off in the middle of the body."""
    outcome: str
    error: str
    fields: dict[str, Any] = field(default_factory=dict)
    sends: bytes | None = None


FAULTS = {
    "reset while the request is sent": Fault(
        resets_an_upload, 502, "upstream-hung-up", "http_response_incomplete", sends=b"x" * 8 * MIB
    ),
    "stalled while the request is sent": Fault(
        takes_nothing,
        504,
        "upload-timeout",
        "connection_write_timeout",
        {"idle_timeout_seconds": SHORT},
        sends=b"x" * 32 * MIB,
    ),
    "closed before the head": Fault(raw(b""), 502, "upstream-hung-up", "http_response_incomplete"),
    "reset before the head": Fault(raw(b"", then="reset"), 502, "upstream-hung-up", "http_response_incomplete"),
    "stalled before the head": Fault(
        stalled, 504, "head-timeout", "http_response_timeout", {"head_timeout_seconds": SHORT}
    ),
    "truncated in the head": Fault(raw(OK + b"Content-Le"), 502, "upstream-hung-up", "http_response_incomplete"),
    "reset in the head": Fault(
        raw(OK + b"Content-Le", then="reset"), 502, "upstream-hung-up", "http_response_incomplete"
    ),
    "stalled in the head": Fault(
        stalled_in_the_head, 504, "head-timeout", "http_response_timeout", {"head_timeout_seconds": SHORT}
    ),
    "garbage for a head": Fault(raw(b"\x15\x03\x01\0\2", then="keep"), 502, "upstream-protocol", "http_protocol_error"),
    "slow drip in the head": Fault(
        dripping(OK + b"A: " + b"x" * 1000),
        504,
        "head-timeout",
        "http_response_timeout",
        {"head_timeout_seconds": 2 * SHORT},
    ),
    "oversize head": Fault(
        raw(OK + b"A: " + b"x" * 200_000 + b"\r\n\r\n", then="keep"), 502, "upstream-protocol", "http_protocol_error"
    ),
    "oversize body announced": Fault(
        counted(10 * MIB), 502, "response-too-large", "http_response_body_size", {"max_response_bytes": 99}
    ),
    "truncated body": Fault(truncate(1 * MIB, 300_000), 0, "upstream-hung-up", "http_response_incomplete"),
    "reset in the body": Fault(
        truncate(1 * MIB, 300_000, then="reset"), 0, "upstream-hung-up", "http_response_incomplete"
    ),
    "stalled in the body": Fault(
        stalled_in_the_body, 0, "idle-timeout", "http_response_timeout", {"idle_timeout_seconds": SHORT}
    ),
    "slow drip in the body": Fault(
        dripping(head_bytes(200, [(b"Content-Length", b"1000")]) + patterned(1000)),
        504,
        "total-timeout",
        "http_response_timeout",
        {"total_timeout_seconds": 3 * SHORT},
    ),
    "oversize body": Fault(
        chunked([patterned(MIB)] * 10),
        0,
        "response-too-large",
        "http_response_body_size",
        {"max_response_bytes": 3 * MIB},
    ),
    "truncated chunk": Fault(
        raw(HALF_A_CHUNK), 502, "upstream-hung-up", "http_response_incomplete", {"max_buffered_bytes": 1000}
    ),
    "garbage for a chunk": Fault(
        raw(BAD_CHUNK, then="keep"), 502, "upstream-protocol", "http_protocol_error", {"max_buffered_bytes": 1000}
    ),
}


def alive() -> Counter[str]:
    """Objects of the kinds that an exchange is made of."""
    gc.collect()  # errors hold the frames they came through
    kinds = (Connection, Entry, relay_exchange.Exchange, Inbound, RelayCycle, RelayProtocol, RelayRequest, Seat, Wire)
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds))


def ended(outcome: str) -> float:
    """Exchanges with upstream `o` that ended so, by the metrics."""
    numbers = metrics.numbers().samples.get("relay_exchanges_total", {})
    return sum(count for (slug, how, _), count in numbers.items() if (slug, how) == ("o", outcome))


async def assert_told(
    caller: Caller, logged: Logged, ground: Ground, *, status: int, outcome: str, error: str, sends: bytes | None = None
) -> None:
    before = ended(outcome)
    answer = await caller.get(b"/relay/o/x", method=b"PUT" if sends else b"GET", body=sends)
    if status:
        assert (answer.status, json.loads(answer.data)["type"]) == (status, f"urn:relay:error:{outcome}")
        assert answer.values(b"proxy-status")[0].endswith(b"error=" + error.encode())
    else:
        assert answer.status == 200
        assert not answer.body.ended.cleanly
    line = await logged.next()
    assert (line["status"], line["outcome"], line["error"]) == (status or 200, outcome, error)
    assert ended(outcome) == before + 1
    await all_given_back(ground)


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_of_the_upstream_is_told_alike_everywhere_and_leaves_nothing(
    origin: Origin, relayed: Relayed, ground: Ground, logged: Logged, name: str
) -> None:
    fault = FAULTS[name]
    relayed(**fault.fields)
    origin.on(b"/x", fault.script)
    left: list[Counter[str]] = []
    for _ in range(2):
        async with Caller(ground.port) as caller:
            await assert_told(
                caller,
                logged,
                ground,
                status=fault.status,
                outcome=fault.outcome,
                error=fault.error,
                sends=fault.sends,
            )
        await origin.until_connections(0)
        await until(lambda: not ground.server.server_state.connections)
        left.append(alive())
    assert left[1] == left[0], "what it left in memory grows with each time"
    origin.on(b"/x", reply(body=b"well again"))
    async with Caller(ground.port) as caller:
        assert (await caller.get(b"/relay/o/x")).data == b"well again"


# Before there is a connection.


@pytest.fixture
async def tcp() -> AsyncIterator[Any]:
    """`await tcp(greeting)` is the port of a server that says so much to whoever connects, and no more."""
    servers: list[asyncio.Server] = []
    open_writers: list[asyncio.StreamWriter] = []

    async def serve(greeting: bytes | None) -> int:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            open_writers.append(writer)
            if greeting is None:
                writer.transport.abort()
                return
            writer.write(greeting)
            with contextlib.suppress(ConnectionError):
                while await reader.read(1000):
                    pass
            writer.transport.abort()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    yield serve
    for writer in open_writers:
        writer.transport.abort()
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_a_refused_connection(relayed: Relayed, ground: Ground, caller: Caller, logged: Logged) -> None:
    with refusing_port() as port:
        relayed(port=port)
        await assert_told(caller, logged, ground, status=502, outcome="connection-refused", error="connection_refused")


@pytest.mark.parametrize(
    ("greeting", "status", "outcome", "error"),
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", 502, "tls", "tls_protocol_error", id="garbage"),
        pytest.param(None, 502, "tls", "tls_protocol_error", id="reset"),
        pytest.param(b"", 504, "connect-timeout", "connection_timeout", id="stalled"),
    ],
)
async def test_a_handshake_that_fails(
    relayed: Relayed,
    ground: Ground,
    caller: Caller,
    logged: Logged,
    tcp: Any,
    greeting: bytes | None,
    status: int,
    outcome: str,
    error: str,
) -> None:
    relayed(scheme="https", port=await tcp(greeting), connect_timeout_seconds=2 * SHORT if greeting == b"" else 5.0)
    await assert_told(caller, logged, ground, status=status, outcome=outcome, error=error)


@pytest.mark.parametrize(
    ("hangs", "status", "outcome", "error"),
    [
        pytest.param(False, 502, "dns", "dns_error", id="no-address"),
        pytest.param(True, 504, "connect-timeout", "connection_timeout", id="no-answer"),
    ],
)
async def test_a_name_that_does_not_resolve(
    relayed: Relayed,
    ground: Ground,
    caller: Caller,
    logged: Logged,
    monkeypatch: pytest.MonkeyPatch,
    hangs: bool,
    status: int,
    outcome: str,
    error: str,
) -> None:
    """The system's resolver is what fails, so it is one that does on command."""
    answered = asyncio.Event()

    async def resolve(host: str, port: int) -> socket.gaierror:
        if hangs:
            await answered.wait()
        return socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(names, "_found", resolve)
    relayed(host="somewhere.example", connect_timeout_seconds=SHORT if hangs else 5.0)
    answering = asyncio.get_running_loop().call_later(2 * SHORT, answered.set)
    await assert_told(caller, logged, ground, status=status, outcome=outcome, error=error)
    answering.cancel()
    answered.set()
