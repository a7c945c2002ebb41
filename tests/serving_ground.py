"""Where wire tests meet the product: `Ground` in the test's own event loop, `ServedProcess` as `manage.py serve`.

`Ground` runs any ASGI callable under a real uvicorn server with the settings the project's worker uses; the wire
between `tests.caller` and `tests.origin` is then real, and the test can still look inside. `ServedProcess` is for what
only a process shows: signals, workers, files, exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from django.core.management import call_command
from pytest_django import DjangoDbBlocker

from tests.caller import Caller
from tests.databases import default_database
from tests.once import made_once

Message = MutableMapping[str, Any]
Application = Callable[[Message, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

PROJECT = Path(__file__).resolve().parent.parent
LISTENING = "Relay listening on "
LOOK_SECONDS = 0.001
ADMIN_PASSWORD = "a-password-for-the-admin"
SQLITE = "sqlite:///"
SHAPES_FIRST_RUN = ("DJANGO_SUPERUSER_PASSWORD", "RELAY_ADMIN_MFA", "SECRET_KEY")
"""Variables by which the first run makes something else than usual. So does a database other than SQLite."""


class Ground:
    """`async with Ground(app) as ground:` serves on a free port of 127.0.0.1.

    Without `app` it serves the project's own application. Lifespan start-up is over when it is entered and lifespan
    shutdown when it is left; an application that refuses to start raises.
    """

    def __init__(
        self, app: Application | None = None, *, graceful_seconds: int = 1, keepalive_seconds: int = 75
    ) -> None:
        self.app = app or project_application()
        self.graceful_seconds = graceful_seconds
        self.keepalive_seconds = keepalive_seconds
        self.port = 0

    async def __aenter__(self) -> Self:
        # The protocol is named, or asyncio leaves Nagle's algorithm on for what it accepts; gunicorn and uvloop do not.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app,
            interface="asgi3",
            http="relay.serving.protocol:RelayProtocol",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=self.keepalive_seconds,
            timeout_graceful_shutdown=self.graceful_seconds,
        )
        self.server = TellingServer(config)
        # `_serve` is `serve` without the signal handlers, which belong to the test run.
        self._serving = asyncio.create_task(self.server._serve(sockets=[listener]))
        up = asyncio.create_task(self.server.up.wait())
        try:
            await asyncio.wait({self._serving, up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        if self._serving.done():
            listener.close()
            await self._serving
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.stop()
        await self._serving
        # Past the graceful time uvicorn cancels what still runs without waiting for it.
        await asyncio.gather(*self.server.server_state.tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running_requests(self) -> int:
        """How many requests' application tasks are not over."""
        return len(self.server.server_state.tasks)


class TellingServer(uvicorn.Server):
    """uvicorn's server, but it says when it is up, and stops when told and as soon as it can, not at its next tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self._told_to_stop = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._told_to_stop.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets=sockets)
        except SystemExit as refusal:
            # In a task it would end the whole test run.
            raise RuntimeError("The application's lifespan start-up failed: see the log of uvicorn.error.") from refusal
        self.up.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._told_to_stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own steps, without its waits of a tenth of a second: thousands of tests have a server each."""
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110 - nobody tells of it
                    await asyncio.sleep(LOOK_SECONDS)
                await asyncio.gather(*(server.wait_closed() for server in self.servers))
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()
        await self.lifespan.shutdown()


def project_application() -> Application:
    # Imported when asked for: it sets Django up, and the ground also serves applications that are none of Django's.
    from config.asgi import application

    return application


@dataclass(frozen=True, slots=True)
class Finished:
    """A management command that has run."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: what a full disk does, but for the error's number."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


prepared_in: Path | None = None
"""Where a data folder is kept as `first_run` made it; None for not at all."""

database_blocker: DjangoDbBlocker | None = None
"""What keeps tests from a database that they did not ask for."""


async def run_manage(*arguments: str, environment: Mapping[str, str], within: float) -> Finished:
    """Runs the project's `manage.py` with these arguments."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "manage.py",
        *arguments,
        cwd=PROJECT,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(within):
            out, err = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())


def bare_environment(data_dir: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONUNBUFFERED": "1",
        "DJANGO_SUPERUSER_PASSWORD": ADMIN_PASSWORD,
        "RELAY_DATA_DIR": str(data_dir),
    }


async def run_first(environment: Mapping[str, str], *, within: float = 30.0) -> None:
    """`manage.py first_run`, which has to succeed."""
    done = await run_manage("first_run", environment=environment, within=within)
    if done.code:
        raise AssertionError(f"first_run ended with {done.code}:\n{done.out}{done.err}")


def copy_prepared(data_dir: Path, folder: Path, *, database: Path | None = None) -> None:
    """Have `data_dir` as `first_run` makes it in a bare environment, with its SQLite file at `database` if need be.

    It is made once, in `folder`.
    """
    prepared = made_once(folder / "first-run", lambda made: asyncio.run(run_first(bare_environment(made))))
    # With times and modes: a file of secrets is its owner's alone.
    shutil.copytree(prepared, data_dir, dirs_exist_ok=True)
    if database is not None:
        (data_dir / "relay.sqlite3").rename(database)


class ServedProcess:
    """`async with ServedProcess() as served:` is `manage.py first_run`, then `manage.py serve`, on its own data folder.

    Entered when `/readyz` answers 200. The first admin is `admin` with ADMIN_PASSWORD. `environment` is added to an
    otherwise empty one. Left, it sends SIGTERM and waits, and kills the whole process group past `stop_seconds`.
    `data_dir` names a folder to serve from (again); it is then kept, and `first_run=False` takes it as it is. A new
    folder is a copy of one that `first_run` made once, unless the environment SHAPES_FIRST_RUN.
    """

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        port: int = 0,
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
        start_seconds: float = 30.0,
        stop_seconds: float = 15.0,
        first_run: bool = True,
    ) -> None:
        self._first_run = first_run
        self._folder = tempfile.TemporaryDirectory() if data_dir is None else contextlib.nullcontext(str(data_dir))
        self.port = port
        self.workers = workers
        self.start_seconds = start_seconds
        self.stop_seconds = stop_seconds
        self.output: list[str] = []
        self._added = dict(environment or {})
        self._new_line = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.data_dir = Path(self._folder.__enter__())
        self.environment = bare_environment(self.data_dir) | self._added
        try:
            if self._first_run:
                await self._prepare()
            await self._start()
        except BaseException:
            self._folder.__exit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            self._folder.__exit__(None, None, None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """gunicorn's arbiter."""
        return self._process.pid

    async def _prepare(self) -> None:
        """Let `first_run` make the data folder, or copy what it made before."""
        is_new = not self.data_dir.exists() or not any(self.data_dir.iterdir())
        url = self._added.get("DATABASE_URL")
        is_usual = (url is None or url.startswith(SQLITE)) and not any(name in self._added for name in SHAPES_FIRST_RUN)
        if is_new and is_usual and prepared_in is not None:
            database = Path(url.removeprefix(SQLITE)) if url is not None else None
            await asyncio.to_thread(copy_prepared, self.data_dir, prepared_in, database=database)
        else:
            await run_first(self.environment, within=self.start_seconds)

    async def manage(self, *arguments: str, within: float = 20.0) -> Finished:
        """Runs `manage.py` with these arguments on the same data folder and environment."""
        return await run_manage(*arguments, environment=self.environment, within=within)

    async def register(self, slug: str, url: str, *options: str) -> None:
        """`manage.py upstreams add` on the same database, but in this process: one of its own takes a second.

        Done when every worker knows the upstream.
        """

        def add() -> int:
            from relay.models import Revision  # once Django is set up

            assert database_blocker is not None
            usual = f"{SQLITE}{self.data_dir}/relay.sqlite3"
            with default_database(self.environment.get("DATABASE_URL", usual), database_blocker):
                call_command("upstreams", "add", slug, url, *options, stdout=io.StringIO(), stderr=io.StringIO())
                return Revision.objects.get().value

        await self._until_in_force(await asyncio.to_thread(add))

    async def _until_in_force(self, revision: int) -> None:
        """Until every worker has told the others that it has read this revision."""
        async with asyncio.timeout(20):
            while True:
                told = await self.numbers()
                if told["relay_workers"] == self.workers and told["relay_catalog_revision"] >= revision:
                    return
                await asyncio.sleep(0.05)

    async def numbers(self) -> dict[str, float]:
        """What `/metrics` tells, by name and labels as they stand there."""
        async with Caller(self.port, deadline_seconds=30) as caller:
            answer = await caller.get(b"/metrics")
        assert answer.status == 200
        samples = (line.rpartition(" ") for line in answer.data.decode().splitlines() if not line.startswith("#"))
        return {name: float(number) for name, _, number in samples}

    async def until_output(self, text: str, *, within: float = 5.0) -> str:
        """The first line of stdout or stderr, past or to come, that has `text` in it."""
        seen = 0
        async with asyncio.timeout(within):
            while True:
                for line in self.output[seen:]:
                    seen += 1
                    if text in line:
                        return line
                if self._reading.done():
                    raise AssertionError(f"serve ended without saying {text!r}:\n" + "\n".join(self.output))
                self._new_line.clear()
                await self._new_line.wait()

    async def stop(self) -> int:
        """SIGTERM, past `stop_seconds` SIGKILL to all that is left; gives the exit code. Harmless to repeat."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(self.stop_seconds):
                await self._until_gone()
        except TimeoutError:
            # Somebody of the group still lives, so its id is still ours and nobody else's.
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._until_gone()
        return await self._process.wait()

    async def _until_gone(self) -> None:
        """Until the arbiter has ended and no worker holds its output open any more."""
        await self._process.wait()
        await asyncio.wait({self._reading})

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "manage.py",
            "serve",
            "--bind",
            f"127.0.0.1:{self.port}",
            "--workers",
            str(self.workers),
            cwd=PROJECT,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self._reading = asyncio.create_task(self._read_output())
        self._reading.add_done_callback(lambda _: self._new_line.set())
        try:
            async with asyncio.timeout(self.start_seconds):
                await self._until_ready()
        except BaseException as failure:
            await self.stop()
            if isinstance(failure, TimeoutError):
                raise AssertionError("serve did not become ready:\n" + "\n".join(self.output)) from None
            raise

    async def _until_ready(self) -> None:
        """The line is written once the socket listens, so a request then waits for the worker to come up."""
        line = await self.until_output(LISTENING, within=self.start_seconds)
        self.port = int(line.partition(LISTENING)[2].split()[0].rpartition(":")[2])
        async with Caller(self.port, deadline_seconds=self.start_seconds) as caller:
            status = (await caller.get(b"/readyz")).status
        if status != 200:
            raise AssertionError(f"/readyz answered {status}:\n" + "\n".join(self.output))

    async def _read_output(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.output.append(line.decode(errors="replace").rstrip("\n"))
            self._new_line.set()
