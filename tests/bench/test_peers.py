"""How the relay and its old engine are started for the measurement: alike, but for the engine. Nothing is started."""

from __future__ import annotations

import ast
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import relays
from bench.origin import Origin
from bench.peers import PEERS, Launch, Stage

RELAY_PYTHON = Path("/relay/bin/python")


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Launch]:
    """By peer. What would be run to prepare them is not."""
    monkeypatch.setattr(relays, "run", lambda command, *, env: "2 objects imported\nrk_the-key\n")
    stage = Stage(folder=tmp_path, port=8000, origin=Origin(port=9000), relay_python=RELAY_PYTHON)
    return {peer.name: peer.prepare(stage) for peer in PEERS if peer.name.startswith("relay")}


def test_the_old_engine_serves_as_the_new_one_does_from_an_environment_that_has_it(launched: dict[str, Launch]) -> None:
    new, old = launched["relay"], launched["relay-on-aiohttp"]
    assert (new.command[0], old.command[0]) == (str(RELAY_PYTHON), sys.executable)
    assert new.command[1:] == old.command[1:]
    assert new.prefix == old.prefix
    settings = {launch.env["DJANGO_SETTINGS_MODULE"] for launch in (new, old)}
    assert settings == {"config.settings", "bench.settings_on_aiohttp"}


def test_the_settings_differ_by_the_engine_alone_and_name_one_that_is_there() -> None:
    new, old = (vars(importlib.import_module(name)) for name in ("config.settings", "bench.settings_on_aiohttp"))
    names = {name for name in new.keys() | old.keys() if name.isupper() and not name.startswith("_")}
    assert {name for name in names if new.get(name) != old.get(name)} == {"RELAY_TRANSPORT"}
    module, _, name = old["RELAY_TRANSPORT"].rpartition(".")
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    parsed = ast.parse(Path(spec.origin).read_text())  # not imported: aiohttp need not be here
    assert name in {node.name for node in parsed.body if isinstance(node, ast.ClassDef)}


def test_both_engines_are_given_an_open_upstream_and_one_that_asks_for_a_key(launched: dict[str, Launch]) -> None:
    for launch in launched.values():
        assert (launch.prefix, launch.guarded_prefix, launch.key) == ("/relay/origin", "/relay/guarded", "rk_the-key")
        assert launch.key not in repr(launch)
    assert [peer.name for peer in PEERS if peer.knows_keys] == list(launched)
