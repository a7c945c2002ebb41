"""Who is measured, and how each is started: one process that serves, in the newest release the lock holds.

Where a default would decide the outcome by refusing the work (nginx's 1 MB of upload, its 512 connections), it is
lifted, and the peer's `note` says so. Access logs are off but for the relay, whose log is on as it ships.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from bench.load import find_tool
from bench.origin import BODIES, Origin, answers, free_port, nginx_command
from bench.processes import Server
from bench.relays import PROJECT, Installation, bare_environment

REVPROXY_THREADS = 32
ISSUE = """
from relay.models import ApiKey, Consumer, Grant, Upstream
consumer = Consumer.objects.create(name="bench")
Grant.objects.create(consumer=consumer, upstream=Upstream.objects.get(slug="guarded"), methods="GET", path_prefixes="/")
print(ApiKey.issue(consumer)[1])
"""
"""Prints a key for the guarded upstream on its last line."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a peer is started with. `folder` is its own and lasts for the run, `port` is free."""

    folder: Path
    port: int
    origin: Origin
    relay_python: Path


@dataclass(frozen=True, slots=True)
class Launch:
    command: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    """What stands before the origin's path in this peer's."""
    guarded_prefix: str = ""
    """The same where callers show a key and a header is injected."""
    key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    find_version: Callable[[], str]
    prepare: Callable[[Stage], Launch]
    note: str
    knows_keys: bool = False


@dataclass(frozen=True, slots=True)
class Serving:
    server: Server
    port: int
    prefix: str
    guarded_prefix: str = ""
    key: str = field(default="", repr=False)


@contextmanager
def running(peer: Peer, *, folder: Path, origin: Origin, relay_python: Path, core: int | None) -> Iterator[Serving]:
    """Serve until the block ends. Raises Failed when it does not start or does not relay."""
    folder.mkdir(exist_ok=True)
    stage = Stage(folder=folder, port=free_port(), origin=origin, relay_python=relay_python)
    launch = peer.prepare(stage)
    env = {**bare_environment(stage.folder), "ORIGIN": stage.origin.url, **launch.env}
    with Server(launch.command, core=core, env=env, log=folder / "output.log", cwd=PROJECT) as server:
        server.wait_until(lambda: answers(stage.port, launch.prefix + BODIES["13 B"]))
        yield Serving(
            server=server,
            port=stage.port,
            prefix=launch.prefix,
            guarded_prefix=launch.guarded_prefix,
            key=launch.key,
        )


def _prepare_relay(stage: Stage) -> Launch:
    return _serve_relay(stage, python=stage.relay_python, settings="config.settings")


def _prepare_relay_on_aiohttp(stage: Stage) -> Launch:
    """With the bench's own Python: the relay's has no aiohttp."""
    return _serve_relay(stage, python=Path(sys.executable), settings="bench.settings_on_aiohttp")


def _serve_relay(stage: Stage, *, python: Path, settings: str) -> Launch:
    """What an admin does: first run, one upstream that is open, one that asks for a key and injects a header, the key.
    Everything else is left as it is."""
    relay = Installation(stage.folder, python=python, settings=settings)
    key = stage.folder / "key"
    if not key.exists():
        place = [stage.origin.url, "--allow-network", "127.0.0.0/8"]
        credential = ["--header", "request:set:Authorization=Bearer injected"]
        for command in (
            ["first_run"],
            ["upstreams", "add", "origin", *place, "--access", "anyone"],
            ["upstreams", "add", "guarded", *place, "--access", "key", *credential],
            ["shell", "-c", ISSUE],
        ):
            said = relay.manage(*command)
        key.write_text(said.strip().rpartition("\n")[2])
    return Launch(
        relay.serve_command(stage.port, workers=1),
        env=relay.own_environment,
        prefix="/relay/origin",
        guarded_prefix="/relay/guarded",
        key=key.read_text(),
    )


def _prepare_nginx(stage: Stage) -> Launch:
    folder = stage.folder / str(stage.port)
    server = f"location / {{ proxy_pass {stage.origin.url}; }}"
    return Launch(nginx_command(folder, port=stage.port, server=server))


def _prepare_revproxy(stage: Stage) -> Launch:
    options = ["--workers", "1", "--worker-class", "gthread", "--threads", str(REVPROXY_THREADS)]
    place = ["--bind", f"127.0.0.1:{stage.port}", "--no-control-socket"]
    return Launch([sys.executable, "-m", "gunicorn", *options, *place, "bench.apps.revproxy_site:application"])


def _under_uvicorn(module: str) -> Callable[[Stage], Launch]:
    def prepare(stage: Stage) -> Launch:
        parts = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        place = ["--host", "127.0.0.1", "--port", str(stage.port)]
        return Launch([sys.executable, "-m", "uvicorn", *parts, *place, f"bench.apps.{module}:app"])

    return prepare


def _relay_version() -> str:
    return str(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"])


def _nginx_version() -> str:
    said = subprocess.run([find_tool("nginx"), "-v"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"nginx/(\S+)", said)
    return found[1] if found else "?"


PEERS = (
    Peer(
        "relay",
        _relay_version,
        _prepare_relay,
        "`manage.py serve --workers 1`, default settings, access log on",
        knows_keys=True,
    ),
    Peer(
        "relay-on-aiohttp",
        lambda: f"{_relay_version()} on aiohttp {version('aiohttp')}",
        _prepare_relay_on_aiohttp,
        "the same with the engine it had before, `bench.engines.aiohttp_engine`",
        knows_keys=True,
    ),
    Peer(
        "example",
        lambda: f"FastAPI {version('fastapi')}, httpx {version('httpx')}",
        _under_uvicorn("example"),
        "the plain proxy, one shared client with its defaults",
    ),
    Peer("fastapi-proxy-lib", lambda: version("fastapi-proxy-lib"), _under_uvicorn("proxy_lib"), "its ready-made app"),
    Peer("asgiproxy", lambda: version("asgiproxy"), _under_uvicorn("asgi_proxy"), "its command line's app"),
    Peer(
        "django-revproxy",
        lambda: version("django-revproxy"),
        _prepare_revproxy,
        f"gunicorn with {REVPROXY_THREADS} threads; Django's limit on a request body lifted",
    ),
    Peer(
        "nginx",
        _nginx_version,
        _prepare_nginx,
        "`proxy_pass` with its defaults (HTTP/1.0 to the origin, buffers on disk); its limits on upload size and on"
        " connections lifted",
    ),
)
