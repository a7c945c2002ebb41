"""What all peers relay to: one nginx of one worker with bodies as files, and `inner_origin` behind it for streams."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import find_tool
from bench.processes import Failed, Server
from bench.transfers import fetch

BODIES = {"13 B": "/13", "64 KiB": "/64k", "1 MiB": "/1m"}
LONG_BODY = "/200m"
LONG_BYTES = 200_000_000
ENDLESS_BODY = "/2g"
ENDLESS_BYTES = 2_000_000_000
COUNTS = "/counts"
SINK, STALLING_SINK, EVENTS, IDLE = "/sink", "/stalling-sink", "/events", "/idle"

NGINX = """
{user}
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log {folder}/log;
worker_rlimit_nofile 65536;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/client_body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        client_max_body_size 0;
        {server}
    }}
}}
"""
_ORIGIN = """
        root {root};
        default_type application/octet-stream;
        sendfile on;
        tcp_nopush on;
        keepalive_requests 1000000;
        location = /13 {{ default_type text/plain; return 200 "Hello, World!"; }}
        location = /counts {{ stub_status; }}
        location ~ ^/(sink|stalling-sink|events|idle)$ {{
            proxy_pass http://127.0.0.1:{inner_port};
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_request_buffering off;
            client_body_buffer_size 1m;
        }}
"""


class OriginEnded(Exception):
    """What is measured afterwards says nothing about a peer: the whole run is over."""


@dataclass(frozen=True, slots=True)
class Origin:
    port: int
    servers: tuple[Server, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def served(self) -> int:
        """How many requests it has taken so far, this one among them. Raises Failed."""
        # Two lines, then three numbers: connections accepted, connections handled, requests.
        return int(fetch(self.port, COUNTS).split()[9])

    def require_alive(self) -> None:
        """Raise OriginEnded when it is not."""
        for server in self.servers:
            try:
                server.require_alive()
            except Failed as ended:
                raise OriginEnded(f"the origin is gone, and the run with it: {ended}") from None


@contextmanager
def running_origin(folder: Path, *, core: int | None) -> Iterator[Origin]:
    """Serve the bodies on a free port until the block ends. Their content is random, the long ones' is zeros."""
    root = folder / "bodies"
    root.mkdir(parents=True)
    for name, size in (("64k", 1 << 16), ("1m", 1 << 20)):
        (root / name).write_bytes(os.urandom(size))
    for path, size in ((LONG_BODY, LONG_BYTES), (ENDLESS_BODY, ENDLESS_BYTES)):
        with (root / path[1:]).open("wb") as file:
            file.truncate(size)
    inner_port, port = free_port(), free_port()
    server = _ORIGIN.format(root=root, inner_port=inner_port)
    command = nginx_command(folder / "nginx", port=port, server=server)
    inner = [sys.executable, "-m", "bench.inner_origin", str(inner_port)]
    project = Path(__file__).resolve().parent.parent
    with (
        Server(inner, core=core, env=os.environ, log=folder / "inner.log", cwd=project) as inner_server,
        Server(command, core=core, env=os.environ, log=folder / "nginx.log") as nginx,
    ):
        inner_server.wait_until(lambda: answers(inner_port, SINK))
        nginx.wait_until(lambda: answers(port, SINK))
        yield Origin(port, servers=(inner_server, nginx))


def nginx_command(folder: Path, *, port: int, server: str) -> list[str]:
    """Write a configuration whose one server holds the directives of `server`, and give what runs it."""
    folder.mkdir(exist_ok=True)  # a port may come back in a later round
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""  # the folder is closed to others
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(user=user, folder=folder, port=port, server=server))
    return [find_tool("nginx"), "-e", str(folder / "log"), "-p", str(folder), "-c", str(config)]


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        fetch(port, path)
    except Failed:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
