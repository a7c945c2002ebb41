"""`manage.py serve` and `first_run` as processes: what cannot work is said in one line, and what can is served."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import secrets
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from django.core.management.base import SystemCheckError
from django.db.utils import ConnectionHandler
from django.test import override_settings

from relay.management.commands import serve
from tests.once import common_folder
from tests.serving_ground import ServedProcess, copy_prepared

ROOT = Path(__file__).resolve().parents[2]
LISTENING = re.compile(rb"Relay listening on (http://\S+) ")


def environment(data: Path, **more: str) -> dict[str, str]:
    measuring = {name: text for name, text in os.environ.items() if name.startswith("COVERAGE_")}
    return {"PATH": os.environ["PATH"], "RELAY_DATA_DIR": str(data), **measuring, **more}


def run(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "manage.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=50, check=False)


@asynccontextmanager
async def serving(*arguments: str, env: Mapping[str, str]) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A running `serve`: its URL and its process, stopped and awaited at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("manage.py", "serve", "--workers", "1", *arguments),
        cwd=ROOT,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            seen = b""
            while (found := LISTENING.search(seen)) is None:
                line = await process.stdout.readline()
                assert line, seen.decode()
                seen += line
        yield found[1].decode(), process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await process.communicate()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder after its first run."""
    data = tmp_path_factory.mktemp("data")
    copy_prepared(data, common_folder(tmp_path_factory))
    return data


def test_a_wrong_environment_is_told_in_plain_lines(tmp_path: Path) -> None:
    done = run("serve", env=environment(tmp_path, DEBUG="maybe", PORT="x"))
    assert done.returncode == 2
    assert done.stderr.startswith("The environment cannot be used as it is:\n  DEBUG: ")
    assert "\n  PORT: 'x' is wrong" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_example_environment_passes_djangos_deployment_checks() -> None:
    lines = (ROOT / "deploy" / "relay.env.example").read_text(encoding="utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    env = {"PATH": os.environ["PATH"], "SECRET_KEY": secrets.token_urlsafe(48), **example}
    done = run("check", "--deploy", "--fail-level", "WARNING", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "System check identified no issues (2 silenced).\n"


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_a_taken_port_is_told(prepared: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(run("serve", env=environment(prepared, PORT=str(port))), f"127.0.0.1:{port} is taken", "--bind")


def test_a_database_that_is_not_migrated_is_told(tmp_path: Path) -> None:
    env = environment(tmp_path, SECRET_KEY="k" * 40, PORT="0")
    assert_refused(run("serve", env=env), "not migrated", "python manage.py migrate")


@pytest.mark.parametrize("command", ["serve", "first_run"])
def test_a_database_out_of_reach_is_told_without_its_password(tmp_path: Path, command: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: refuses whoever connects
        url = f"postgres://relay:hunter2@127.0.0.1:{closed.getsockname()[1]}/relay"
        done = run(command, env=environment(tmp_path, SECRET_KEY="k" * 40, PORT="0", DATABASE_URL=url))
    assert_refused(done, "The database cannot be reached", "DATABASE_URL")
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("command", ["serve", "first_run"])
def test_a_data_folder_below_a_file_is_told(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    done = run(command, env=environment(tmp_path / "file" / "data", SECRET_KEY="k" * 40, PORT="0"))
    assert done.returncode == 2
    assert "RELAY_DATA_DIR" in done.stderr
    assert "is not a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unwritable_data_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(serve.tempfile, "TemporaryFile", refuse)
    with pytest.raises(
        serve.CommandError, match=r"cannot be written \(Permission denied\): make it writable"
    ) as caught:
        serve.check_data_dir(tmp_path)
    assert caught.value.returncode == 2


@pytest.mark.parametrize("bind", ["8000", ":8000", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1"])
def test_a_wrong_bind_is_told(bind: str) -> None:
    with pytest.raises(serve.CommandError, match="give HOST:PORT"):
        serve.Command().handle(bind=bind, workers=None)


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(serve.CommandError, match=r"192\.0\.2\.1:0 cannot be used"):
        serve.open_listener("192.0.2.1", 0)


def test_workers_inherit_no_connection_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "relay",
        "OPTIONS": {"pool": {"min_size": 0, "max_size": 1}},
    }
    handler = ConnectionHandler({"default": database})
    monkeypatch.setattr(serve, "connections", handler)
    pools = handler["default"]._connection_pools
    monkeypatch.setattr(handler["default"], "alias", "inherited")
    assert handler["default"].pool is pools["inherited"]
    serve.close_connections()
    assert "inherited" not in pools


def test_no_workers_are_refused() -> None:
    with pytest.raises(serve.CommandError, match="--workers 0 is wrong"):
        serve.Command().handle(bind=None, workers=0)


def test_an_ipv6_address_is_served_in_brackets() -> None:
    with serve.open_listener("::1", 0) as listener:
        assert serve._url(listener) == f"http://[::1]:{listener.getsockname()[1]}"


async def test_two_serve_on_one_data_folder_and_a_stop_is_clean(prepared: Path) -> None:
    env = environment(prepared, RELAY_GRACEFUL_SECONDS="5")
    async with (
        serving("--bind", "127.0.0.1:0", env=env) as (first, process),
        serving(env=env | {"PORT": "0"}) as (second, _),
    ):
        assert first != second
        for url in (first, second):
            answer = await asyncio.to_thread(urllib.request.urlopen, f"{url}/admin/login/", timeout=30)
            with answer:
                assert answer.status == 200
                assert answer.headers["Server"] is None
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
        assert process.returncode == 0
        assert b"Application shutdown complete." in output
        assert b"error" not in output.lower()


async def test_workers_share_what_was_loaded_before_them() -> None:
    async with ServedProcess(workers=2) as served:
        workers = psutil.Process(served.pid).children()
        assert len(workers) == 2
        for worker in workers:
            memory = worker.memory_full_info()
            assert memory.uss < memory.rss / 2


def test_workers_load_no_code_of_the_relays_but_what_makes_the_application(prepared: Path) -> None:
    """So a reload never mixes the code that was there with what is there now."""
    code = """
import sys
import django

django.setup()
from config import gunicorn

gunicorn.share_with_workers()
before = set(sys.modules)
import config.asgi
from django.contrib.staticfiles.storage import staticfiles_storage

staticfiles_storage.base_url
print(sorted(name for name in sys.modules.keys() - before if name.startswith(("config", "relay"))))
"""
    env = environment(prepared, DJANGO_SETTINGS_MODULE="config.settings")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=30)
    assert done.stdout == "['config.asgi']\n", done.stderr


def test_two_first_runs_at_once_make_one_admin(tmp_path: Path) -> None:
    command = [sys.executable, "manage.py", "first_run"]
    both = [
        subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=50)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum(b"The first admin is admin with the password " in output for output in outputs) == 1


def test_a_given_admin_password_is_not_printed(tmp_path: Path) -> None:
    env = environment(tmp_path, DJANGO_SUPERUSER_USERNAME="kim", DJANGO_SUPERUSER_PASSWORD="correct-horse")
    done = run("first_run", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_serving_may_open_as_many_files_as_the_system_lets_it() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, limits[1]), limits[1]))
    try:
        serve.raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_the_checks_warn_of_is_a_line_each(prepared: Path) -> None:
    """Relay and admin at one name are served, and told of."""
    env = environment(prepared)
    done = run("check", "--fail-level", "WARNING", env=env)
    assert done.returncode == 1
    assert "relay.W001" in done.stderr
    assert run("check", "--fail-level", "WARNING", env=env | {"RELAY_ADMIN_HOSTS": "admin.example"}).returncode == 0
    with override_settings(SILENCED_SYSTEM_CHECKS=[]):
        assert [message.id for message in serve.Command().pass_checks()] == ["relay.W001"]
    with override_settings(RELAY_HOSTS=["https://a.example"]), pytest.raises(SystemCheckError, match=r"relay\.E008"):
        serve.Command().pass_checks()
