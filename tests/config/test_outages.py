"""While the database is away the admin says so, and the relay goes on."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from django.db import IntegrityError, InterfaceError, OperationalError
from django.test import RequestFactory

from config import outages
from tests.caller import Answer, Caller
from tests.config.test_serve import environment, run, serving
from tests.origin import Origin, reply

SIGNED_IN = [(b"Cookie", b"sessionid=abcdefghijklmnopqrstuvwxyz012345")]


async def ask(url: str, path: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> Answer:
    async with Caller(int(url.rpartition(":")[2]), deadline_seconds=15) as caller:
        return await caller.get(path, headers or [])


async def test_the_admin_tells_that_the_database_is_away_and_comes_back_with_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    env = environment(data, PORT="0")
    assert (await asyncio.to_thread(run, "first_run", env=env)).returncode == 0
    database, elsewhere = data / "relay.sqlite3", data / "elsewhere"
    async with Origin() as origin:
        origin.on(b"/x", reply(body=b"fine"))
        place = f"http://127.0.0.1:{origin.port}"
        adding = ("upstreams", "add", "o", place, "--access", "anyone", "--allow-network", "127.0.0.0/8")
        assert (await asyncio.to_thread(run, *adding, env=env)).returncode == 0
        async with serving(env=env) as (url, _):
            assert (await ask(url, b"/admin/", SIGNED_IN)).status == 302
            database.rename(elsewhere)
            database.mkdir()
            away = await ask(url, b"/admin/", SIGNED_IN)
            assert (away.status, away.values(b"retry-after")) == (503, [b"5"])
            assert b"The database is away" in away.data
            assert away.values(b"content-security-policy")
            assert (await ask(url, b"/relay/o/x")).data == b"fine"
            database.rmdir()
            elsewhere.rename(database)
            assert (await ask(url, b"/admin/", SIGNED_IN)).status == 302


@pytest.mark.parametrize(
    ("problem", "status"),
    [(OperationalError(), 503), (InterfaceError(), 503), (IntegrityError(), 500), (ValueError(), 500)],
)
def test_only_a_database_that_is_away_is_told_to_be(rf: RequestFactory, problem: Exception, status: int) -> None:
    with contextlib.suppress(type(problem)):
        try:
            raise problem
        except Exception:
            answer = outages.server_error(rf.get("/admin/"))
            raise
    assert answer.status_code == status
