"""What every test can ask for: the two ends of the wire and the ground between them.

The request path never touches the ORM, so none of these brings a database. Settings for tests are in `tests.settings`.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import pytest_django
import trustme
from django.core.management import call_command
from django.db import connections
from django.template.base import Template
from hypothesis import HealthCheck, settings
from playwright.async_api import Browser, async_playwright

from tests import serving_ground
from tests.caller import Caller
from tests.databases import default_database
from tests.once import common_folder, made_once
from tests.origin import Origin
from tests.serving_ground import Ground

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

UNWATCHED_RENDER = Template._render

# How fast examples are made says something about the machine, nothing about the relay.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Thousands of tests stay to the end: looking for garbage among them, again and again, finds none."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever takes long begins: of xdist's processes each gets a slice of the list, and the last to end is short.

    Tests that take long are those with a time limit of their own, and they mostly wait: one process has none of them,
    or the cores would be idle first and too few then. Among themselves both kinds stay in random order.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    with_long = max(processes - 1, 1)
    long = [item for item in items if item.get_closest_marker("timeout")]
    short = iter([item for item in items if not item.get_closest_marker("timeout")])
    ordered: list[pytest.Item] = []
    for n in range(processes):
        size = (len(items) - len(ordered)) // (processes - n)  # as xdist cuts the list
        begin = long[n::with_long] if n < with_long else []
        ordered += (*begin, *itertools.islice(short, max(0, size - len(begin))))
    items[:] = ordered


@pytest.fixture(scope="session", autouse=True)
def templates_render_unwatched(django_test_environment: None) -> None:
    """Django's test client copies the context of each template that a page is made of. A page of the admin is made of
    hundreds, and that takes a tenth of its time; `response.context_data` has what a view gave, too."""
    Template._render = UNWATCHED_RENDER  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority of this run: `serving_context(authority, "127.0.0.1")` makes an origin's TLS context."""
    return trustme.CA()


@pytest.fixture(scope="session", autouse=True)
def ground_for_served_processes(
    tmp_path_factory: pytest.TempPathFactory, django_db_blocker: pytest_django.DjangoDbBlocker
) -> None:
    """What served processes copy is made where pytest clears up."""
    serving_ground.prepared_in = common_folder(tmp_path_factory)
    serving_ground.database_blocker = django_db_blocker


@pytest.fixture(scope="session")
def migrated_file(
    tmp_path_factory: pytest.TempPathFactory,
    django_test_environment: None,
    django_db_blocker: pytest_django.DjangoDbBlocker,
) -> Path:
    """A SQLite file as `migrate` leaves it, to be copied."""

    def migrate(path: Path) -> None:
        with default_database(f"sqlite:///{path}", django_db_blocker):
            call_command("migrate", verbosity=0)

    return made_once(common_folder(tmp_path_factory) / "migrated.sqlite3", migrate)


@pytest.fixture(scope="session")
def django_db_keepdb(request: pytest.FixtureRequest, django_db_modify_db_settings: None) -> bool:
    """pytest-django's, but a SQLite database begins as a copy of the migrated one, which it then takes as it is."""
    database = connections.settings["default"]
    if not database["ENGINE"].endswith("sqlite3"):
        return bool(request.config.getvalue("reuse_db"))
    shutil.copyfile(request.getfixturevalue("migrated_file"), database["TEST"]["NAME"])
    return True


@pytest_asyncio.fixture
async def origin() -> AsyncIterator[Origin]:
    async with Origin() as origin:
        yield origin


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail("This test drives a browser: put chromium or google-chrome on PATH. `make test` installs it.")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture
async def ground() -> AsyncIterator[Ground]:
    """The project's application, served."""
    async with Ground() as ground:
        yield ground


@pytest_asyncio.fixture
async def caller(ground: Ground) -> AsyncIterator[Caller]:
    """One connection to `ground`."""
    async with Caller(ground.port) as caller:
        yield caller
