"""What every test can ask for: the two ends of the wire and the ground between them.

The request path never touches the ORM, so none of these brings a database. Settings for tests are in `tests.settings`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import trustme
from hypothesis import HealthCheck, settings

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


@pytest_asyncio.fixture
async def origin() -> AsyncIterator[Origin]:
    async with Origin() as origin:
        yield origin


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
