"""Which clock goes for what. The wall clock leaps: what it decides is written down here, and nothing else may ask it.

Waiting, throttles, breakers, time-outs and lifetimes that are told in seconds go by the clocks that never go back. What
is told as a moment, to people, in a URL or to another process, goes by the wall clock.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from relay.catalog.watcher import Watcher
from relay.upstreams.tokens import Tokens
from tests.serving_ground import PROJECT

ASKS_THE_WALL_CLOCK = {
    "config/door/factors.py": "Retry-After of a lock, whose end the database keeps",
    "config/door/lockout.py": "attempts are counted in the database, for all workers and across restarts",
    "config/door/sessions.py": "sessions outlive the process",
    "relay/admin/consumers.py": "which keys are in force",
    "relay/admin/index.py": "which keys are in force",
    "relay/admin/key_forms.py": "when a key ends, and when the form was opened",
    "relay/admin/keys.py": "which keys are in force",
    "relay/admin/signing.py": "when a signed URL ends",
    "relay/catalog/jar_rows.py": "when cookies end (RFC 6265)",
    "relay/catalog/jars.py": "when cookies end (RFC 6265)",
    "relay/catalog/store.py": "times of files, which other workers and later starts read",
    "relay/catalog/usage.py": "the day of a count",
    "relay/catalog/watcher.py": "since when polls fail, for people",
    "relay/management/commands/audit.py": "which entries are old",
    "relay/management/commands/keys.py": "when keys end",
    "relay/models/audit.py": "when a change was made",
    "relay/models/consumers.py": "when a key was made and revoked",
    "relay/models/credentials.py": "when a credential was set and confirmed",
    "relay/models/revisions.py": "when a row was changed",
    "relay/models/signing.py": "when a signing key was revoked",
    "relay/models/usage.py": "which days are kept",
    "relay/observing/access_log.py": "the time of a line",
    "relay/observing/metrics.py": "since when a worker lives: Prometheus wants the epoch's seconds",
    "relay/observing/shelf.py": "a name that no earlier process had",
    "relay/serving/heads.py": "the Date field",
    "relay/serving/underway.py": "when keys end",
    "relay/signing.py": "when a signed URL ends",
    "relay/upstreams/exchange.py": "the time in an AWS signature",
    "relay/upstreams/health.py": "a time for people, and of a file that others read",
    "relay/upstreams/probe.py": "how long a certificate lasts",
}
_NAMES = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("timezone", "now")}


def test_who_asks_the_wall_clock_says_what_for() -> None:
    found = {
        str(path.relative_to(PROJECT))
        for folder in ("relay", "config")
        for path in (PROJECT / folder).rglob("*.py")
        if "migrations" not in path.parts and any(wall_clocks(path))
    }
    assert found == set(ASKS_THE_WALL_CLOCK)


def wall_clocks(path: Path) -> Iterator[ast.AST]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in _NAMES:
                yield node
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (name for name in node.names if name.name in {"time", "time_ns"})


def test_access_tokens_live_by_a_clock_that_never_goes_back() -> None:
    """Their life is told in seconds (RFC 6749 section 5.1), from when they were asked for."""

    async def send(_: object) -> None:
        """Never called."""

    assert Tokens(send).clock is time.monotonic  # type: ignore[arg-type]  # it is never called


@pytest.mark.parametrize("leap", [timedelta(hours=1), timedelta(hours=-1)])
def test_how_long_an_outage_was_is_told_whatever_the_wall_clock_did(
    leap: timedelta, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = Watcher()
    watcher._failed("OperationalError")
    assert watcher._failing_since is not None
    watcher._failing_since -= leap
    watcher._recovered(0)
    assert caplog.records[-1].getMessage() == "Edits are seen again, after 0 s."
