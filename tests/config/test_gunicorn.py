"""gunicorn's options and the worker's server: what a stop has to look like from inside."""

from __future__ import annotations

import asyncio
import signal

import pytest
from gunicorn.config import Config as GunicornConfig
from uvicorn.config import Config

from config.gunicorn import SHUTDOWN_MARGIN_SECONDS, DrainingServer, RelayWorker, options


async def _application(*_: object) -> None:
    """Never called."""


def draining_server(told: list[str]) -> DrainingServer:
    return DrainingServer(Config(_application, log_config=None), begin_draining=lambda: told.append("draining"))


def test_gunicorn_takes_every_option() -> None:
    config = GunicornConfig()
    for name, value in options(bind="127.0.0.1:0", workers=3, graceful_seconds=7, log_level="INFO").items():
        config.set(name, value)
    assert config.workers == 3
    assert config.worker_class is RelayWorker
    assert config.control_socket_disable


@pytest.mark.parametrize("graceful_seconds", [0, 30, 3600])
def test_a_draining_worker_outlives_its_grace_before_gunicorn_kills_it(graceful_seconds: int) -> None:
    made = options(bind="127.0.0.1:0", workers=1, graceful_seconds=graceful_seconds, log_level="INFO")
    assert made["graceful_timeout"] == graceful_seconds + SHUTDOWN_MARGIN_SECONDS
    assert made["timeout"] > made["graceful_timeout"]


def test_the_application_is_told_as_soon_as_the_signal_arrives() -> None:
    told: list[str] = []
    server = draining_server(told)
    server.handle_exit(signal.SIGTERM, None)
    assert told == ["draining"]
    assert server.should_exit


async def test_stopping_now_cancels_what_is_under_way() -> None:
    told: list[str] = []
    server = draining_server(told)
    task = asyncio.create_task(asyncio.Event().wait())
    server.server_state.tasks.add(task)  # type: ignore[arg-type]  # uvicorn's tasks return None
    server.stop_now()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["draining"]
    assert server.should_exit
