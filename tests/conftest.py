"""What every test can ask for: the two ends of the wire and the ground between them.

The request path never touches the ORM, so none of these brings a database. Settings for tests are in `tests.settings`.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import trustme
from hypothesis import HealthCheck, settings
from playwright.async_api import Browser, async_playwright

from tests import serving_ground
from tests.caller import Caller
from tests.origin import Origin
from tests.serving_ground import Ground

# How fast examples are made says something about the machine, nothing about the relay.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority of this run: `serving_context(authority, "127.0.0.1")` makes an origin's TLS context."""
    return trustme.CA()


@pytest.fixture(scope="session", autouse=True)
def prepared_in_base_temp(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What served processes copy is made where pytest clears up."""
    serving_ground.prepared_in = tmp_path_factory.mktemp("prepared")


@pytest_asyncio.fixture
async def origin() -> AsyncIterator[Origin]:
    async with Origin() as origin:
        yield origin


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
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
