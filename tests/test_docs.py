"""The documents say what the code says: what lists settings, commands, errors, fields or headers is made from the code.

A region between `<!-- NAME:begin -->` and `<!-- NAME:end -->` is written anew from the project's folder with
`PYTHONPATH=. python tests/test_docs.py`; the tests compare. What people wrote around the regions is checked for names
that do not exist: links, make targets, commands, fields, variables, error types.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import django

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()

import pytest
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand
from django.db import models

from config.environment import VARIABLES, reference_markdown
from config.gunicorn import HANDOVER_SECONDS, SHUTDOWN_MARGIN_SECONDS
from relay import errors
from relay.catalog import watcher
from relay.management.commands.upstreams import FIELDS
from relay.models import HeaderRule, Target, Upstream
from relay.observing import access_log, descriptors, metrics
from relay.observing.families import Family
from relay.rules import addresses, headers
from relay.upstreams import budgets, bulkheads, health, targets, transport

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
METRIC_ROOMS = (access_log, budgets, bulkheads, descriptors, health, metrics, targets, transport, watcher)
TOP_PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = [*TOP_PAGES, *sorted(DOCS.glob("*.md"))]
OWN_COMMANDS = ("audit", "credentials", "first_run", "keys", "mfa", "secrets", "serve", "signing", "upstreams")


# What the regions hold.


def table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def code(text: object) -> str:
    return f"`{text}`"


def error_table() -> str:
    rows = [
        [str(error.status), code(error.type), error.title, code(error.proxy_status), error.advice]
        for error in errors.every_error()
    ]
    return table(["status", "type", "title", "Proxy-Status error", "what the caller is told to do"], rows)


def field_table(model: type[models.Model], names: tuple[str, ...]) -> str:
    rows = []
    for name in names:
        field: Any = model._meta.get_field(name)
        rows.append([code(name), _default(field), _takes(field), field.help_text])
    return table(["field", "default", "takes", "meaning"], rows)


def _default(field: Any) -> str:
    if not field.has_default():
        return "empty" if field.blank else "required"
    if isinstance(field.default, bool):
        return code("true" if field.default else "false")
    return code(field.default)


def _takes(field: Any) -> str:
    if field.choices:
        return ", ".join(code(value) for value, _ in field.choices)
    if isinstance(field, models.BooleanField):
        return "`true`, `false`"
    if isinstance(field, models.FloatField | models.IntegerField):
        least = max(validator.limit_value for validator in field.validators if validator_kind(validator) == "min_value")
        most = min(validator.limit_value for validator in field.validators if validator_kind(validator) == "max_value")
        kind = "a number" if isinstance(field, models.FloatField) else "a whole number"
        return f"{kind} from {least} to {most}"
    return f"up to {field.max_length} characters" if field.max_length else "text"


def validator_kind(validator: object) -> str:
    return str(getattr(validator, "code", ""))


def command_reference(name: str) -> str:
    parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)
    parts = []
    for path, words in _parsers(name, parser):
        own = [action for action in words._actions if not _is_djangos(action)]
        positional = [action for action in own if not action.option_strings]
        usage = " ".join([path, *(_metavar(action) for action in positional)])
        parts.append(f"### `{usage}`\n\n{(words.description or '').strip()}\n")
        rows = [[code(_usage(action)), action.help or ""] for action in own if action.help]
        if rows:
            parts.append(table(["argument", "what it does"], rows))
    return "\n".join(parts)


def _parsers(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for sub_name, sub_parser in action.choices.items():
            yield f"{name} {sub_name}", sub_parser


def _is_djangos(action: argparse.Action) -> bool:
    stock = BaseCommand().create_parser("manage.py", "any")
    return action.option_strings != [] and any(
        action.option_strings == known.option_strings for known in stock._actions
    )


def _metavar(action: argparse.Action) -> str:
    return f"{action.metavar} [{action.metavar} ...]" if action.nargs == "+" else str(action.metavar)


def _usage(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar)
    value = "|".join(action.choices) if action.choices else action.metavar
    return " ".join(filter(None, (", ".join(action.option_strings), None if action.nargs == 0 else str(value))))


def names_list(names: frozenset[bytes] | frozenset[str]) -> str:
    texts = sorted(name.decode() if isinstance(name, bytes) else name for name in names)
    return ", ".join(map(code, texts)) + "\n"


REGIONS: dict[tuple[str, str], Callable[[], str]] = {
    ("configuration.md", "settings"): reference_markdown,
    ("errors.md", "errors"): error_table,
    ("upstream-fields.md", "fields"): lambda: field_table(Upstream, ("slug", *FIELDS)),
    ("upstream-fields.md", "target-fields"): lambda: field_table(Target, ("address", "weight", "enabled", "backup")),
    ("upstream-fields.md", "header-rule-fields"): lambda: field_table(HeaderRule, ("side", "action", "name", "value")),
    ("headers.md", "hop-by-hop"): lambda: names_list(headers.HOP_BY_HOP),
    ("headers.md", "forwarding"): lambda: names_list(headers.FORWARDING),
    ("headers.md", "origin-wide"): lambda: names_list(headers.ORIGIN_WIDE),
    ("headers.md", "beyond-host"): lambda: names_list(headers.BEYOND_HOST),
    ("headers.md", "file-orders"): lambda: names_list(headers.FILE_ORDERS),
    ("headers.md", "fixed"): lambda: names_list(headers.FIXED_NAMES),
    **{("commands.md", name): lambda name=name: command_reference(name) for name in OWN_COMMANDS},  # type: ignore[misc]  # the name is bound now
}


def region(text: str, name: str) -> re.Match[str]:
    found = re.search(rf"(?<=<!-- {name}:begin -->\n)(.*?)(?=<!-- {name}:end -->)", text, re.DOTALL)
    assert found is not None, f"there is no region {name}"
    return found


def write_regions() -> None:
    for (page, name), make in REGIONS.items():
        text = (DOCS / page).read_text(encoding="utf-8")
        found = region(text, name)
        (DOCS / page).write_text(f"{text[: found.start()]}\n{make()}\n{text[found.end() :]}", encoding="utf-8")


@pytest.mark.parametrize(("page", "name"), list(REGIONS))
def test_what_is_made_from_the_code_is_up_to_date(page: str, name: str) -> None:
    found = region((DOCS / page).read_text(encoding="utf-8"), name)[0]
    assert found.strip() == REGIONS[page, name]().strip(), "write it anew: PYTHONPATH=. python tests/test_docs.py"


# What people wrote.


def code_of(page: Path) -> list[str]:
    """The page's code, blocks and spans."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return blocks + re.findall(r"`([^`\n]+)`", rest)


def found_in_code(pattern: str) -> dict[str, list[str]]:
    """What `pattern` finds in code, and on which pages."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        for piece in code_of(page):
            for match in re.findall(pattern, piece):
                found.setdefault(match, []).append(page.name)
    return found


def anchors(page: Path) -> set[str]:
    """The fragments that lead to the page's headings, as code hosts make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not fragment or fragment in anchors(target), link


def test_every_make_target_in_the_documents_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    named = found_in_code(r"(?:^|[\s;&|])make (?:[A-Z_]+=\S+ )*([a-z][a-z-]*)")
    assert {"run", "test", "bench"} <= named.keys()
    assert {target: pages for target, pages in named.items() if target not in targets} == {}


def test_the_operations_page_has_every_metric_with_its_labels() -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `((?:relay|process)_[a-z_]+)` \| ([^|]*)\|", page, re.MULTILINE)
    families = [value for room in METRIC_ROOMS for value in vars(room).values() if isinstance(value, Family)]
    assert {name: re.findall("`([a-z_]+)`", labels) for name, labels in told} == {
        family.name: list(family.labels) for family in families
    }


def test_every_command_in_the_documents_exists() -> None:
    named = found_in_code(r"manage\.py ([a-z_]+)")
    assert set(OWN_COMMANDS) <= named.keys()
    assert {command: pages for command, pages in named.items() if command not in get_commands()} == {}


@pytest.mark.parametrize("command", ["keys", "upstreams"])
def test_every_action_of_the_commands_in_the_documents_exists(command: str) -> None:
    parser = load_command_class("relay", command).create_parser("manage.py", command)
    actions = {path.split()[1] for path, _ in _parsers(command, parser)}
    named = found_in_code(rf"(?:manage\.py|^)\s*{command} ([a-z]+)")
    assert named
    assert {action: pages for action, pages in named.items() if action not in actions} == {}


def test_every_field_that_the_documents_set_exists() -> None:
    named = found_in_code(r"--set '?([a-z_]+)=")
    assert named
    assert {field: pages for field, pages in named.items() if field not in FIELDS} == {}


def test_every_environment_variable_in_the_documents_exists() -> None:
    known = {variable.name for variable in VARIABLES} | {"DJANGO_SETTINGS_MODULE"}
    known |= set(re.findall(r'"(RELAY_[A-Z_]+)"', (ROOT / "relay" / "conf.py").read_text(encoding="utf-8")))
    known |= {"RELAY_TEST_EXAMPLES", "RELAY_TEST_FUZZ_SECONDS"}  # the tests' own
    # Those that begin with RELAY_CREDENTIAL_ are the readers' own.
    named = found_in_code(r"(?<![A-Z_])((?:RELAY_(?!CREDENTIAL_)|DJANGO_)[A-Z_]+[A-Z])(?![A-Z_])")
    assert {name: pages for name, pages in named.items() if name not in known} == {}


def test_every_error_type_in_the_documents_exists_and_each_tells_operators_what_to_look_at() -> None:
    types = {error.type for error in errors.every_error()}
    assert {
        name: pages for name, pages in found_in_code(r"urn:relay:error:([a-z-]+)").items() if name not in types
    } == {}
    causes = (DOCS / "errors.md").read_text(encoding="utf-8").partition("## What operators look at")[2]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", causes, re.MULTILINE)) == types


def test_the_egress_table_gives_the_verdicts_of_the_guard() -> None:
    rows = re.findall(
        r"^\| ([a-z-]+) \| (.+?) \| (yes|never) \|$", (DOCS / "security.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {row[0] for row in rows} == {str(verdict) for verdict in addresses.Verdict} - {"public", "own-address"}
    for verdict, cells, can_be_opened in rows:
        for cell in re.findall(r"`([^`]+)`", cells):
            network = ip_network(cell)
            judgement = addresses.judge(network[0], allowed_networks=(network,))
            assert (str(judgement.verdict), judgement.allowed) == (verdict, can_be_opened == "yes"), cell
            assert not addresses.judge(network[0]).allowed, cell


def proofs(region: str) -> dict[str, list[str]]:
    """The rows of a table in docs/security.md: what is claimed, and the tests that prove it."""
    page = (DOCS / "security.md").read_text(encoding="utf-8")
    _, _, text = page.partition(f"<!-- {region}:begin -->")
    rows = [line.strip("| ").split(" | ") for line in text.partition(f"<!-- {region}:end -->")[0].strip().splitlines()]
    return {claim: re.findall(r"`([^`]+)`", tests) for claim, tests in rows[2:]}


@pytest.mark.parametrize("region", ["promises", "attacks"])
def test_every_promise_and_every_attack_has_tests_that_exist(region: str) -> None:
    claimed = proofs(region)
    assert len(claimed) > 10
    for claim, tests in claimed.items():
        assert tests, claim
        for test in tests:
            path, _, name = test.partition("::")
            assert path.startswith("tests/"), test
            text = (ROOT / path).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {name}\(" if name else r"^(async )?def test_", text, re.MULTILINE), test


def test_every_attack_that_is_tried_is_listed() -> None:
    listed = {test.partition("::")[0] for tests in proofs("attacks").values() for test in tests}
    tried = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "attacks").glob("test_*.py")}
    assert tried
    assert tried - listed == set()


def test_the_bounds_at_the_door_are_the_settings() -> None:
    table = (DOCS / "security.md").read_text(encoding="utf-8").partition("## The door")[2].partition("\n## ")[0]
    named = re.findall(r"^\| [^|]+ \| `([A-Z_]+)` \| ([^|]+) \|", table, re.MULTILINE)
    assert len(named) == 8
    units = {"": 1, "s": 1, "KiB": 1024, "MiB": 1024**2}
    defaults = {variable.name: variable.default for variable in VARIABLES}
    for name, shown in named:
        if match := re.match(r"(\d+) ?(s|KiB|MiB|)\b", shown):
            assert defaults[name] == str(int(match[1]) * units[match[2]]), name
        else:
            assert defaults[name] is None, name


def test_the_readme_names_the_one_test_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make test\b", readme, re.MULTILINE)
    assert re.search(r"^\s*make test$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_page_is_on_the_map() -> None:
    listed = set(re.findall(r"\]\(([a-z-]+\.md)\)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert listed == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


# What is deployed.


def test_the_example_environment_has_nothing_but_known_variables_with_values_that_work() -> None:
    lines = (ROOT / "deploy" / "relay.env.example").read_text(encoding="utf-8").splitlines()
    settings = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", "\n".join(lines), re.MULTILINE))
    assert {"RELAY_DATA_DIR", "ALLOWED_HOSTS", "TRUSTED_PROXIES"} <= settings.keys()
    parsers = {variable.name: variable.parse for variable in VARIABLES}
    for name, value in settings.items():
        if value:
            parsers[name](value)


def test_systemd_waits_longer_than_the_relay_does_for_its_exchanges() -> None:
    unit = (ROOT / "deploy" / "relay.service").read_text(encoding="utf-8")
    example = (ROOT / "deploy" / "relay.env.example").read_text(encoding="utf-8")
    patience = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0])
    grace = int(re.findall(r"^RELAY_GRACEFUL_SECONDS=(\d+)$", example, re.MULTILINE)[0])
    assert str(grace) == next(variable.default for variable in VARIABLES if variable.name == "RELAY_GRACEFUL_SECONDS")
    drain = int(re.findall(r"^RELAY_DRAIN_SECONDS=(\d+)$", example, re.MULTILINE)[0])
    assert patience > max(drain, HANDOVER_SECONDS) + grace + SHUTDOWN_MARGIN_SECONDS


if __name__ == "__main__":
    write_regions()
