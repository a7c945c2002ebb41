"""`make run` as a newcomer meets it: a fresh copy of the checkout, an empty environment, twice.

`make VENV=...` points it at the environment these tests run in, so that nothing is installed.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LISTENING = re.compile(r"Relay listening on (http://\S+) \(admin: (\S+)\)")
PASSWORD = re.compile(r"The first admin is (\S+) with the password (\S+)")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what git knows or would add, in an empty folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


@asynccontextmanager
async def make_run(checkout: Path) -> AsyncIterator[str]:
    """`make run` on a free port with nothing but PATH in its environment; all it printed until it listened."""
    process = await asyncio.create_subprocess_exec(
        *("make", "run", f"VENV={sys.prefix}", "PORT=0"),
        cwd=checkout,
        env={"PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(45):
            printed = ""
            while not LISTENING.search(printed):
                line = await process.stdout.readline()
                assert line, printed
                printed += line.decode()
        yield printed
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGINT)  # what ^C sends: to make and to all it started
        async with asyncio.timeout(45):
            await process.communicate()


def sign_in(admin: str, name: str, password: str) -> str:
    """The admin's index, through its login form."""
    jar = CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    with browser.open(f"{admin}login/", timeout=30) as page:
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.read().decode())
    assert token is not None
    form = {"csrfmiddlewaretoken": token[1], "username": name, "password": password, "next": "/admin/"}
    with browser.open(f"{admin}login/", urllib.parse.urlencode(form).encode(), timeout=30) as page:
        assert page.url == admin
        return str(page.read().decode())


@pytest.mark.timeout(180)
async def test_make_run_serves_from_a_fresh_copy_and_again(checkout: Path) -> None:
    async with make_run(checkout) as printed:
        listening, admin = PASSWORD.search(printed), LISTENING.search(printed)
        assert listening is not None
        assert admin is not None
        with await asyncio.to_thread(urllib.request.urlopen, f"{admin[1]}/readyz", timeout=30) as answer:
            assert answer.status == 200
        assert "/admin/logout/" in await asyncio.to_thread(sign_in, admin[2], listening[1], listening[2])
    assert (checkout / "var" / "secret_key").stat().st_mode & 0o777 == 0o600
    key = (checkout / "var" / "secret_key").read_text()

    async with make_run(checkout) as printed:
        assert PASSWORD.search(printed) is None
        assert "Installing" not in printed
        admin = LISTENING.search(printed)
        assert admin is not None
        assert "/admin/logout/" in await asyncio.to_thread(sign_in, admin[2], listening[1], listening[2])
    assert (checkout / "var" / "secret_key").read_text() == key


def test_an_environment_without_a_python_says_so(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tools = tmp_path_factory.mktemp("tools")
    for name in ("sh", "make", "find", "mkdir", "test"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    done = subprocess.run(
        [str(tools / "make"), "run"],
        cwd=checkout,
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed and none is on PATH" in done.stderr
