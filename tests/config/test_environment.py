"""The environment: every value parsed or refused by name, and the documentation made of the same records."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from config import environment, secret_key
from config.environment import VARIABLES, EnvironmentInvalid, read, reference_markdown

ROOT = Path(__file__).resolve().parents[2]
KEY = "k" * 40


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv("RELAY_DATA_DIR", str(tmp_path / "data"))


def problems_of(monkeypatch: pytest.MonkeyPatch, **given: str) -> tuple[str, ...]:
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(EnvironmentInvalid) as caught:
        read()
    return caught.value.problems


def test_everything_wrong_is_reported_together_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = problems_of(monkeypatch, DEBUG="maybe", PORT="70000", TIME_ZONE="Mars/Olympus", LOG_LEVEL="loud")
    assert [line.partition(":")[0] for line in problems] == ["DEBUG", "SECRET_KEY", "LOG_LEVEL", "TIME_ZONE", "PORT"]
    assert "'70000' is wrong: expected a port from 0 to 65535" in problems[4]


def test_a_second_factor_without_its_packages_is_told_with_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    problems = problems_of(monkeypatch, RELAY_ADMIN_MFA="on", PORT="70000", SECRET_KEY=KEY)
    assert [line.partition(":")[0] for line in problems] == ["RELAY_ADMIN_MFA", "PORT"]
    assert "needs the packages of the `mfa` extra, and there is no django_otp and no segno" in problems[0]
    monkeypatch.setenv("RELAY_ADMIN_MFA", "off")
    monkeypatch.delenv("PORT")
    assert read()["RELAY_ADMIN_MFA"] is False


def test_the_error_reads_as_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG", "maybe")
    with pytest.raises(
        EnvironmentInvalid, match=r"^The environment cannot be used as it is:\n  DEBUG: 'maybe' is wrong"
    ):
        read()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DEBUG", "2"),
        ("ALLOWED_HOSTS", "https://relay.example"),
        ("ALLOWED_HOSTS", "relay.example:8000"),
        ("RELAY_HOSTS", "relay.example:8000"),
        ("RELAY_HOSTS", "*"),
        ("RELAY_HOSTS", "<slug>."),
        ("CSRF_TRUSTED_ORIGINS", "relay.example"),
        ("CSRF_TRUSTED_ORIGINS", "https://relay.example/path"),
        ("DATABASE_URL", "mysql://localhost/relay"),
        ("DATABASE_URL", "sqlite://:memory:"),
        ("DATABASE_URL", "postgres://localhost:notaport/relay"),
        ("DJANGO_SUPERUSER_PASSWORD", "short"),
        ("DJANGO_SUPERUSER_USERNAME", "two words"),
        ("LOG_LEVEL", "loud"),
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("PORT", "\uff18\uff10"),
        ("RELAY_ACCESS_LOG", "somewhere"),
        ("RELAY_CATALOG_POLL_SECONDS", "0"),
        ("RELAY_CATALOG_POLL_SECONDS", "nan"),
        ("RELAY_GRACEFUL_SECONDS", "1.5"),
        ("RELAY_HTTPS_ONLY", "always"),
        ("RELAY_HEAD_TIMEOUT_SECONDS", "0"),
        ("RELAY_MAX_CONNECTIONS", "0"),
        ("RELAY_MAX_CONNECTIONS_PER_PEER", "0"),
        ("RELAY_MAX_FORM_BYTES", "1"),
        ("RELAY_MAX_HEADER_BYTES", "10"),
        ("RELAY_MAX_HEADER_FIELDS", "1"),
        ("RELAY_MAX_TARGET_BYTES", "65536"),
        ("RELAY_MIDDLEWARE", "no-dots"),
        ("RELAY_VIA", "two words"),
        ("RELAY_STALL_TIMEOUT_SECONDS", "0"),
        ("SECRET_KEY", "short"),
        ("TIME_ZONE", "../etc/passwd"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("TRUSTED_PROXIES", "proxy.example"),
        ("WEB_CONCURRENCY", "0"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv("SECRET_KEY", KEY)
    expects = next(variable.expects for variable in VARIABLES if variable.name == name)
    (problem,) = problems_of(monkeypatch, **{name: text})
    assert problem.startswith(f"{name}: ")
    assert f"expected {expects}" in problem


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("DEBUG", "Yes", True),
        ("ALLOWED_HOSTS", "a.example, .b.example [::1]", ("a.example", ".b.example", "[::1]")),
        ("RELAY_HOSTS", "a.example,<slug>.a.example *.b.example", ("a.example", "<slug>.a.example", "*.b.example")),
        ("CSRF_TRUSTED_ORIGINS", "https://a.example:8443,", ("https://a.example:8443",)),
        ("LOG_LEVEL", "debug", "DEBUG"),
        ("PORT", "0", 0),
        ("RELAY_ACCESS_LOG", "off", "off"),
        ("RELAY_ACCESS_LOG", "./access.log", str(ROOT / "access.log")),
        ("RELAY_CATALOG_POLL_SECONDS", "0.25", 0.25),
        ("RELAY_MIDDLEWARE", "a.b,c.d", ("a.b", "c.d")),
        ("RELAY_VIA", "edge-1", "edge-1"),
        ("TIME_ZONE", "Europe/Berlin", "Europe/Berlin"),
        ("TRUSTED_PROXIES", "10.0.0.0/8 ::1", ("10.0.0.0/8", "::1")),
        ("WEB_CONCURRENCY", "", None),
        ("PORT", " ", 8000),
    ],
)
def test_a_right_value_is_parsed(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object) -> None:
    monkeypatch.setenv("SECRET_KEY", KEY)
    monkeypatch.setenv(name, text)
    assert read()[name] == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SECRET_KEY", "hunter2"),
        ("DJANGO_SUPERUSER_PASSWORD", "hunter2"),
        ("DATABASE_URL", "mysql://relay:hunter2@localhost/relay"),
        ("DATABASE_URL", "postgres://relay:hunter2@[/relay"),
    ],
)
def test_no_secret_is_repeated_in_an_error(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    assert "hunter2" not in "\n".join(problems_of(monkeypatch, **{name: text}))


def test_without_anything_but_a_key_all_defaults_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_KEY", KEY)
    values = read()
    assert values["DEBUG"] is False
    assert values["DATABASE_URL"]["NAME"] == str(tmp_path / "data" / "relay.sqlite3")
    assert values.keys() == {variable.name for variable in VARIABLES}


def test_the_data_folder_is_var_in_the_project_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", KEY)
    monkeypatch.delenv("RELAY_DATA_DIR")
    assert read()["RELAY_DATA_DIR"] == environment.PROJECT_ROOT / "var" == ROOT / "var"


def test_a_data_folder_below_a_file_says_which_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (problem,) = problems_of(monkeypatch, RELAY_DATA_DIR=str(file / "data"))
    assert f"{file} is not a folder" in problem


def test_the_folder_for_credentials_is_named_by_its_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", KEY)
    assert read()["RELAY_CREDENTIALS_DIR"] == ""
    monkeypatch.setenv("RELAY_CREDENTIALS_DIR", "/run/secrets/../secrets/relay/")
    assert read()["RELAY_CREDENTIALS_DIR"] == "/run/secrets/relay"
    (problem,) = problems_of(monkeypatch, RELAY_CREDENTIALS_DIR="secrets")
    assert "the whole path of a folder" in problem


def test_a_missing_key_says_what_to_do_and_makes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (problem,) = problems_of(monkeypatch)
    assert problem.startswith("SECRET_KEY: missing")
    assert "python manage.py first_run" in problem
    assert not (tmp_path / "data").exists()


def test_debug_makes_and_keeps_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEBUG", "on")
    made = read()["SECRET_KEY"]
    monkeypatch.setenv("DEBUG", "off")
    assert read()["SECRET_KEY"] == made == secret_key.read(tmp_path / "data")


def test_the_first_run_makes_a_key_without_debug(tmp_path: Path) -> None:
    assert read(make_secret_key=True)["SECRET_KEY"] == secret_key.read(tmp_path / "data")


def test_a_key_that_cannot_be_kept_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(_: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(secret_key, "ensure", refuse)
    with pytest.raises(EnvironmentInvalid, match=re.escape(f"no key could be kept in {tmp_path / 'data'} (Permission")):
        read(make_secret_key=True)


def test_the_reference_lists_every_variable_once() -> None:
    names = re.findall(r"^\| `([A-Z_]+)` \|", reference_markdown(), re.MULTILINE)
    assert names == [variable.name for variable in VARIABLES]


def test_the_configuration_page_holds_the_reference_as_it_is() -> None:
    assert reference_markdown() in (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
