"""gunicorn's options and the worker's server: what a stop has to look like from inside."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from gunicorn.config import Config as GunicornConfig
from uvicorn.config import Config

from config.gunicorn import (
    ACCEPTED_AT_ONCE,
    DEAF_TICKS,
    HANDOVER_SECONDS,
    SHUTDOWN_MARGIN_SECONDS,
    DrainingServer,
    RelayWorker,
    _Listener,
    options,
)
from relay.serving import status


async def _application(_scope: object, _receive: object, _send: object) -> None:
    """Never called."""


@pytest.fixture(autouse=True)
def told() -> Iterator[None]:
    # Before, too: an application that a test elsewhere has shut down told so.
    status.begin_anew()
    yield
    status.begin_anew()


def draining_server(*, drain_seconds: float = 0, whole: bool = True, workers: int = 1) -> DrainingServer:
    http = RelayWorker.CONFIG_KWARGS["http"]
    config = Config(_application, interface="asgi3", log_config=None, http=http, lifespan="off")
    return DrainingServer(config, drain_seconds=drain_seconds, is_whole_stop=lambda: whole, workers=workers)


def is_draining() -> bool:
    return status._draining


def made_options(**given: int) -> dict[str, Any]:
    return options(
        bind="127.0.0.1:0", **{"workers": 1, "drain_seconds": 0, "graceful_seconds": 30} | given, log_level="INFO"
    )


def test_gunicorn_takes_every_option() -> None:
    config = GunicornConfig()
    for name, value in made_options(workers=3, graceful_seconds=7).items():
        config.set(name, value)
    assert config.workers == 3
    assert config.worker_class is RelayWorker
    assert config.control_socket_disable


@pytest.mark.parametrize("drain_seconds", [0, 1, 600])
@pytest.mark.parametrize("graceful_seconds", [0, 30, 3600])
def test_a_draining_worker_outlives_its_grace_before_gunicorn_kills_it(
    drain_seconds: int, graceful_seconds: int
) -> None:
    made = made_options(drain_seconds=drain_seconds, graceful_seconds=graceful_seconds)
    longest = max(drain_seconds, HANDOVER_SECONDS) + graceful_seconds
    assert made["graceful_timeout"] == longest + SHUTDOWN_MARGIN_SECONDS
    assert made["timeout"] > made["graceful_timeout"]


def test_readiness_is_told_as_soon_as_the_signal_arrives() -> None:
    server = draining_server()
    server.handle_exit(signal.SIGTERM, None)
    assert is_draining()
    assert server.should_exit


async def test_a_drain_goes_on_taking_requests_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    server = draining_server(drain_seconds=5)
    server.handle_exit(signal.SIGTERM, None)
    assert is_draining()
    now = 104.9
    assert not await server.on_tick(1)
    server.handle_exit(signal.SIGTERM, None)  # a second one changes nothing
    now = 105.0
    assert await server.on_tick(2)


async def test_who_hands_over_stays_ready_and_takes_requests_until_the_others_have_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    server = draining_server(whole=False)
    server.handle_exit(signal.SIGTERM, None)
    assert not is_draining()
    assert not await server.on_tick(1)
    now += HANDOVER_SECONDS
    assert await server.on_tick(2)


@asynccontextmanager
async def started(listening: socket.socket, *, workers: int = 1) -> AsyncIterator[DrainingServer]:
    server = draining_server(workers=workers)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listening])
    try:
        yield server
    finally:
        await server.shutdown(sockets=[listening])


async def turns_until(true: Callable[[], object]) -> int:
    """How many turns of the event loop it takes until it is so."""
    turns = 0
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0)
            turns += 1
    return turns


def test_callers_who_come_together_are_let_in_several_in_a_turn() -> None:
    many = 10 * ACCEPTED_AT_ONCE

    async def let_them_in() -> int:
        with socket.create_server(("127.0.0.1", 0), backlog=many) as listening, contextlib.ExitStack() as callers:
            async with started(listening) as server:
                for _ in range(many):
                    callers.enter_context(socket.create_connection(listening.getsockname()))
                return await turns_until(lambda: len(server.server_state.connections) == many)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(let_them_in()) < many / ACCEPTED_AT_ONCE * 2


@pytest.mark.parametrize(("workers", "handles"), [(1, 8), (2, 4), (3, 2), (8, 1), (64, 1)])
async def test_workers_let_in_as_many_in_a_turn_however_many_they_are(workers: int, handles: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with started(listening, workers=workers) as server:
            assert len(server.servers) == handles


async def test_a_worker_that_nobody_gets_into_listens_anew(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with started(listening) as server:
            loop = asyncio.get_running_loop()
            for handle in server.servers:
                loop.remove_reader(handle.sockets[0])  # so uvloop leaves it when there is no descriptor at all
            _, writer = await asyncio.open_connection(*listening.getsockname())
            for tick in range(DEAF_TICKS):
                assert not caplog.records
                await server.on_tick(tick)
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            assert "It listens again." in caplog.text
            assert len(server.servers) == ACCEPTED_AT_ONCE
            await turns_until(lambda: server.server_state.connections)
            for tick in range(DEAF_TICKS + 1):
                await server.on_tick(tick)
            assert len(caplog.records) == 1
            writer.close()
            await writer.wait_closed()


async def test_without_descriptors_for_more_a_worker_listens_by_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: _Listener) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    with socket.create_server(("127.0.0.1", 0)) as listening, monkeypatch.context() as short:
        short.setattr(_Listener, "dup", refuse)
        async with started(listening) as server:
            _, writer = await asyncio.open_connection(*listening.getsockname())
            await turns_until(lambda: server.server_state.connections)
            await server.on_tick(1)
            assert len(server.servers) == 1
            short.undo()
            await server.on_tick(2)
            assert len(server.servers) == ACCEPTED_AT_ONCE
            writer.close()
            await writer.wait_closed()


def test_a_worker_that_lets_some_in_is_not_deaf() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()):
        listener = _Listener(listening)
        assert not any(listener.is_deaf(seen) for seen in range(1, 3 * DEAF_TICKS))
        listener.close()


def test_an_interrupt_waits_for_no_balancer() -> None:
    server = draining_server(drain_seconds=5)
    server.handle_exit(signal.SIGINT, None)
    assert is_draining()
    assert server.should_exit


async def test_stopping_now_cancels_what_is_under_way() -> None:
    server = draining_server(drain_seconds=5)
    task = asyncio.create_task(asyncio.Event().wait())
    server.server_state.tasks.add(task)  # type: ignore[arg-type]  # uvicorn's tasks return None
    server.stop_now()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_draining()
    assert server.should_exit
