"""One line for every request, true about how it ended; and no complaint of the server about what the relay meant."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from django.test import override_settings

from relay.observing import access_log, episodes
from relay.observing.access_log import AccessLog, Entry
from relay.upstreams import bulkheads
from tests.behaviour.conftest import Relayed, until
from tests.caller import Caller, request_bytes
from tests.origin import Gate, Origin, counted, drip, hang, raw, refusing_port, reply, truncate, upload_sink
from tests.serving_ground import Ground, Message, disk_with_room_for

Lines = Callable[[int], Awaitable[list[dict[str, Any]]]]

GET = request_bytes(b"/relay/o/x", host=b"localhost")


@pytest.fixture(autouse=True)
def log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(access_log, "FLUSH_SECONDS", 0.0)
    path = tmp_path / "access.log"
    with override_settings(RELAY_ACCESS_LOG=str(path)):
        yield path


@pytest.fixture
def lines(log_file: Path, ground: Ground) -> Lines:
    """The lines written, once there are that many."""

    async def read(count: int) -> list[dict[str, Any]]:
        await until(lambda: log_file.read_bytes().count(b"\n") >= count)
        return lines_of(log_file)

    return read


def lines_of(log_file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log_file.read_text().splitlines()]


async def test_a_whole_exchange(origin: Origin, relayed: Relayed, caller: Caller, lines: Lines) -> None:
    relayed()
    origin.on(b"/a%20b", upload_sink())
    answer = await caller.get(b"/relay/o/a%20b?key=secret", method=b"POST", body=b"twelve bytes")
    (line,) = await lines(1)
    assert line["request_id"] == answer.values(b"x-request-id")[0].decode()
    assert (line["client"], line["method"], line["upstream"], line["path"]) == ("127.0.0.1", "POST", "o", "/a%20b")
    assert (line["status"], line["outcome"], line["bytes_in"], line["bytes_out"]) == (200, "ok", 12, 2)
    assert 0 <= line["head_ms"] <= line["total_ms"]
    assert not {"detail", "error", "queued_ms"} & set(line)


async def test_no_query_header_or_body_is_in_a_line(
    origin: Origin, relayed: Relayed, ground: Ground, lines: Lines
) -> None:
    relayed()
    origin.on(b"/x", reply(body=b"SECRET-5"))
    secret = [(b"Authorization", b"Bearer SECRET-2"), (b"Cookie", b"relay.o.a=SECRET-3"), (b"Relay-Key", b"SECRET-6")]
    for path in (b"/relay/o/x?a=SECRET-1", b"/relay/nobody/x?a=SECRET-1", b"/relay/o/../x?a=SECRET-1"):
        async with Caller(ground.port) as caller:
            await caller.get(path, secret, method=b"POST", body=b"SECRET-4")
    assert "SECRET" not in json.dumps(await lines(3))


async def test_one_line_is_one_line_whatever_is_in_the_path(
    origin: Origin, relayed: Relayed, caller: Caller, lines: Lines
) -> None:
    relayed()
    await caller.get(b'/relay/o/%0a{"outcome":"forged"}')
    found = await lines(1)
    assert len(found) == 1
    assert found[0]["outcome"] != "forged"


@pytest.mark.parametrize(
    ("script", "fields", "status", "outcome"),
    [
        pytest.param(reply(body=b"fine"), {}, 200, "ok", id="ok"),
        pytest.param(reply(503, body=b"down"), {}, 503, "ok", id="the-upstreams-own-error"),
        pytest.param(raw(b""), {}, 502, "upstream-hung-up", id="hung-up"),
        pytest.param(raw(b"nonsense\r\n\r\n"), {}, 502, "upstream-protocol", id="protocol"),
        pytest.param(hang(), {"head_timeout_seconds": 0.1}, 504, "head-timeout", id="head"),
        pytest.param(hang(), {"total_timeout_seconds": 0.1}, 504, "total-timeout", id="total"),
        pytest.param(counted(100), {"max_response_bytes": 10}, 502, "response-too-large", id="too-large"),
        pytest.param(counted(100), {"max_buffered_bytes": 10}, 502, "buffer-exceeded", id="buffer"),
        pytest.param(reply(), {"open_to_anyone": False}, 401, "key-required", id="key"),
        pytest.param(reply(), {"allowed_networks": ()}, 502, "egress-refused", id="egress"),
    ],
)
async def test_the_outcome_is_ok_or_the_errors_type(
    origin: Origin,
    relayed: Relayed,
    caller: Caller,
    lines: Lines,
    script: Any,
    fields: dict[str, Any],
    status: int,
    outcome: str,
) -> None:
    relayed(**fields)
    origin.on(b"/x", script)
    assert (await caller.get(b"/relay/o/x")).status == status
    (line,) = await lines(1)
    assert (line["status"], line["outcome"]) == (status, outcome)


async def test_an_answer_cut_off_after_its_head_tells_both(
    origin: Origin, relayed: Relayed, ground: Ground, lines: Lines
) -> None:
    relayed(idle_timeout_seconds=0.1)
    gate = Gate()
    gate.open()
    origin.on(b"/x", drip([b"four"], gate))
    async with Caller(ground.port) as caller:
        await caller.get(b"/relay/o/x")
    (line,) = await lines(1)
    assert (line["status"], line["outcome"], line["bytes_out"]) == (200, "idle-timeout", 4)
    assert line["error"] == "http_response_timeout"


async def test_waiting_for_a_turn_is_told_of(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller, lines: Lines
) -> None:
    relayed(max_concurrent=1)
    origin.on(b"/x", hang())
    origin.on(b"/y", reply(body=b"fine"))
    async with Caller(ground.port) as holder:
        await holder.send(GET)
        await origin.next_exchange()
        waiting = asyncio.create_task(caller.get(b"/relay/o/y"))
        await until(lambda: bulkheads.queued() == {"o": 1})
    await waiting
    left, waited = await lines(2)
    assert "queued_ms" not in left
    assert 0 < waited["queued_ms"] <= waited["head_ms"]


async def test_a_line_tells_where_it_went_and_what_a_connection_took(
    origin: Origin, relayed: Relayed, caller: Caller, lines: Lines
) -> None:
    relayed()
    await caller.get(b"/relay/o/x")
    await caller.get(b"/relay/o/x")
    first, second = await lines(2)
    for line in (first, second):
        assert (line["target"], line["attempts"]) == (f"127.0.0.1:{origin.port}", 1)
    assert 0 <= first["dns_ms"] <= first["head_ms"]
    assert 0 < first["connect_ms"] <= first["head_ms"]
    assert not {"pool_ms", "proxy_ms", "tls_ms"} & set(first)
    assert not {"pool_ms", "dns_ms", "connect_ms"} & set(second), "its connection was there already"


async def test_a_line_tells_what_a_connection_that_did_not_come_about_took(
    relayed: Relayed, caller: Caller, lines: Lines
) -> None:
    with refusing_port() as port:
        relayed(port=port, max_retries=2)
        assert (await caller.get(b"/relay/o/x")).status == 502
    [line] = await lines(1)
    assert (line["outcome"], line["attempts"]) == ("connection-refused", 3)
    assert 0 < line["connect_ms"] <= line["total_ms"]


async def test_who_is_refused_at_once_has_not_waited(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller, lines: Lines
) -> None:
    relayed(max_concurrent=1, max_queued=0)
    origin.on(b"/x", hang())
    async with Caller(ground.port) as holder:
        await holder.send(GET)
        await origin.next_exchange()
        assert (await caller.get(b"/relay/o/x")).status == 503
    refused, _ = await lines(2)
    assert refused["outcome"] == "upstream-full"
    assert "queued_ms" not in refused


@pytest.mark.parametrize(("head_first", "status"), [(False, 0), (True, 200)])
async def test_a_caller_who_leaves_is_told_of(
    origin: Origin, relayed: Relayed, caller: Caller, lines: Lines, head_first: bool, status: int
) -> None:
    relayed()
    origin.on(b"/x", drip([b"one"], Gate()) if head_first else hang())
    await caller.send(GET)
    await origin.next_exchange()
    if head_first:
        await caller.read_head()
    caller.close()
    (line,) = await lines(1)
    assert (line["status"], line["outcome"]) == (status, "caller-gone")


async def test_who_leaves_after_an_error_does_not_hide_it(
    origin: Origin, relayed: Relayed, caller: Caller, lines: Lines
) -> None:
    relayed(max_request_bytes=10)
    origin.on(b"/x", upload_sink())
    await caller.send(request_bytes(b"/relay/o/x", [(b"Content-Length", b"100")], method=b"POST", host=b"localhost"))
    assert (await caller.read_head()).status == 413
    caller.close()
    (line,) = await lines(1)
    assert (line["status"], line["outcome"]) == (413, "request-too-large")


async def test_every_request_of_a_busy_second_has_its_line(
    origin: Origin, relayed: Relayed, caller: Caller, lines: Lines
) -> None:
    relayed()
    origin.on(b"/x", reply())
    for _ in range(200):
        await caller.get(b"/relay/o/x")
    found = await lines(200)
    assert len({line["request_id"] for line in found}) == 200


# The queue of lines.


def entry(number: int = 0) -> Entry:
    return Entry("GET", b"%032d" % number, 0.0, path=b"/" + b"x" * 200)


@pytest_asyncio.fixture
async def blocked(tmp_path: Path) -> AsyncIterator[tuple[AccessLog, int]]:
    """A log whose reader takes nothing: (log, descriptor to read it by)."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog()
    log.open(str(path))
    yield log, reading
    os.close(reading)
    await log.close()


async def test_a_blocked_pipe_holds_nobody_up_and_what_does_not_fit_is_counted(
    blocked: tuple[AccessLog, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, reading = blocked
    monkeypatch.setattr(access_log, "MAX_WAITING_LINES", 500)
    loop = asyncio.get_running_loop()
    for number in range(1000):
        log.add(entry(number))
    began = loop.time()
    await until(lambda: log._writing is not None)
    for number in range(1000):
        log.add(entry(number))
    assert loop.time() - began < 0.5, "adding a line never waits for the pipe"
    received = bytearray()

    def take() -> bool:
        with contextlib.suppress(BlockingIOError):
            received.extend(os.read(reading, 65_536))
        return received.count(b"\n") >= 1002

    await until(take)
    found = [json.loads(line) for line in received.decode().splitlines()]
    assert sum(line.get("count", 1) for line in found) == 2000
    assert [line["count"] for line in found if line["outcome"] == "lines-dropped"] == [500, 500]


async def test_a_blocked_pipe_does_not_keep_the_relay_from_stopping(
    blocked: tuple[AccessLog, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _ = blocked
    monkeypatch.setattr(access_log, "CLOSE_SECONDS", 0.1)
    for number in range(1000):
        log.add(entry(number))
    await until(lambda: log._writing is not None)
    async with asyncio.timeout(1):
        await log.close()


async def written(log: AccessLog, *entries: Entry) -> None:
    """Adds these and waits until they have been written, or not."""
    for each in entries:
        log.add(each)
    await until(lambda: log._writing is None and log._timer is None)


async def test_a_full_disk_is_told_once_at_each_end_and_what_it_did_not_take_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(access_log, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(episodes, "CALM_SECONDS", 0.0)
    path = tmp_path / "log"
    log = AccessLog()
    log.open(str(path))
    await written(log, entry(0))
    size = path.stat().st_size
    with disk_with_room_for(size * 5 // 2):
        await written(log, entry(1), entry(2), entry(3))
        await written(log, entry(4))
        await written(log, entry(5))
    assert [number for _, (_, number) in log.read()] == [4]
    await written(log, entry(6))
    await log.close()
    lines = path.read_text().splitlines()
    torn = lines.pop(2)
    assert torn.startswith("{")
    whole = [json.loads(line) for line in lines]
    assert [int(line["request_id"]) for line in whole if "request_id" in line] == [0, 1, 6]
    assert [line["count"] for line in whole if line["outcome"] == "lines-dropped"] == [4]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


async def test_a_device_that_is_full_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog()
    log.open("/dev/full")
    log.add(entry())
    await log.close()
    assert "lines are lost: No space left on device" in caplog.text


async def test_what_waits_is_written_before_the_end(tmp_path: Path) -> None:
    log = AccessLog()
    log.open(str(tmp_path / "log"))
    log.add(entry())
    await log.close()
    assert (tmp_path / "log").read_bytes().count(b"\n") == 1


async def test_a_log_that_is_off_takes_nothing() -> None:
    log = AccessLog()
    log.open("off")
    log.add(entry())
    await log.close()


# The server's own complaints.


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"]


async def test_the_server_does_not_complain_of_answers_the_relay_cut_off(
    origin: Origin, relayed: Relayed, ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    relayed(total_timeout_seconds=0.1)
    origin.on(b"/cut", truncate(100, 10))
    origin.on(b"/late", drip([b"one"], Gate()))
    caplog.set_level(logging.WARNING)
    for path in (b"/relay/o/cut", b"/relay/o/late"):
        async with Caller(ground.port) as caller:
            assert not (await caller.get(path)).body.ended.cleanly
    assert complaints(caplog) == []


async def test_the_server_complains_of_others_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    async def incomplete(scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for done in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{done}.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async with Ground():
        pass  # puts the filter on
    async with Ground(incomplete) as ground, Caller(ground.port) as caller:
        assert not (await caller.get(b"/")).body.ended.cleanly
    assert "ASGI callable returned without completing response." in complaints(caplog)
