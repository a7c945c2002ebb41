"""What the settings make of the environment, where it is more than handing a value on."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_django
from django.conf import settings
from django.db.utils import ConnectionHandler
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings

from config.logs import LineFormatter
from config.middleware import (
    CONTENT_SECURITY_POLICY,
    believe_trusted_proxies_only,
    bound_what_pages_load,
    keep_own_cookies,
)
from config.settings import _database
from config.static import CollectedStaticFiles

ROOT = Path(__file__).resolve().parents[2]


def test_sqlite_runs_with_wal_a_busy_timeout_and_foreign_keys(
    tmp_path: Path, django_db_blocker: pytest_django.DjangoDbBlocker
) -> None:
    database = _database({"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "relay.sqlite3")})
    connection = ConnectionHandler({"default": database})["default"]
    pragmas = {}
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        for name in ("journal_mode", "busy_timeout", "foreign_keys", "synchronous"):
            cursor.execute(f"PRAGMA {name}")
            pragmas[name] = cursor.fetchone()[0]
    connection.close()
    assert pragmas == {"journal_mode": "wal", "busy_timeout": 5000, "foreign_keys": 1, "synchronous": 1}
    assert database["OPTIONS"]["transaction_mode"] == "IMMEDIATE"


def test_postgres_pools_inside_django_and_gives_up_connecting() -> None:
    database = _database(
        {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "relay",
            "CONN_MAX_AGE": 600,
            "OPTIONS": {"sslmode": "require"},
        }
    )
    assert database["CONN_MAX_AGE"] == 0
    assert database["OPTIONS"]["connect_timeout"] == 5
    assert database["OPTIONS"]["sslmode"] == "require"
    assert database["OPTIONS"]["pool"]["max_size"] >= 1


def test_the_admins_cookies_stay_under_the_admin() -> None:
    assert settings.SESSION_COOKIE_PATH == settings.CSRF_COOKIE_PATH == "/admin/"
    assert settings.SESSION_COOKIE_HTTPONLY
    assert settings.CSRF_COOKIE_HTTPONLY


@pytest.mark.parametrize(("peer", "secure"), [("10.1.2.3", True), ("192.0.2.1", False), ("", False)])
def test_only_a_trusted_proxy_says_that_a_request_came_over_https(peer: str, secure: bool) -> None:
    seen: list[bool] = []

    def answer(request: HttpRequest) -> HttpResponse:
        seen.append(request.is_secure())
        return HttpResponse()

    request = RequestFactory().get("/admin/", REMOTE_ADDR=peer, HTTP_X_FORWARDED_PROTO="https")
    with override_settings(RELAY_TRUSTED_PROXIES=("10.0.0.0/8",)):
        believe_trusted_proxies_only(answer)(request)
    assert seen == [secure]


@pytest.mark.parametrize(("status", "debug", "bounded"), [(200, True, True), (404, False, True), (404, True, False)])
def test_pages_come_with_a_policy_but_for_djangos_debug_pages(status: int, *, debug: bool, bounded: bool) -> None:
    with override_settings(DEBUG=debug):
        answer = bound_what_pages_load(lambda _: HttpResponse(status=status))(RequestFactory().get("/admin/"))
    assert (answer.headers.get("Content-Security-Policy") == CONTENT_SECURITY_POLICY) is bounded


def test_a_page_with_a_policy_of_its_own_keeps_it() -> None:
    own = HttpResponse(headers={"Content-Security-Policy": "sandbox"})
    answer = bound_what_pages_load(lambda _: own)(RequestFactory().get("/admin/"))
    assert answer.headers["Content-Security-Policy"] == "sandbox"


def test_static_files_have_plain_names_before_they_are_collected() -> None:
    assert CollectedStaticFiles().url("unfold/css/styles.css") == "/static/unfold/css/styles.css"


def record(message: str, *args: object, exception: BaseException | None = None) -> logging.LogRecord:
    info = (type(exception), exception, exception.__traceback__) if exception else None
    return logging.LogRecord("relay", logging.WARNING, "", 0, message, args, info)


def test_a_caller_cannot_begin_a_log_line() -> None:
    line = LineFormatter().format(record("Not Found: %s", "/a\r\n2026-01-01 ERROR forged\x1b[2J\u2028"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert r"/a\r\n2026-01-01 ERROR forged\x1b[2J\u2028" in line


def test_a_traceback_is_indented_below_its_line() -> None:
    lines = LineFormatter().format(record("failed", exception=ValueError("a\nb"))).splitlines()
    assert lines[0].endswith("WARNING relay failed")
    assert len(lines) > 1
    assert all(line.startswith("  ") for line in lines[1:])


def test_the_admins_cookies_are_the_last_that_browsers_throw_out() -> None:
    def answer(request: HttpRequest) -> HttpResponse:
        response = HttpResponse()
        response.set_cookie(settings.SESSION_COOKIE_NAME, "s3cret", httponly=True, samesite="Lax")
        response.set_cookie("other", "1")
        return response

    cookies = keep_own_cookies(answer)(RequestFactory().get("/admin/")).cookies
    session = cookies[settings.SESSION_COOKIE_NAME].output(header="").strip()
    assert session == f"{settings.SESSION_COOKIE_NAME}=s3cret; HttpOnly; Path=/; SameSite=Lax; Priority=High"
    assert "Priority" not in cookies["other"].output()


def test_the_hosts_of_the_relay_and_the_admin_are_allowed_and_those_of_upstreams_are_not() -> None:
    script = "from config import settings; print(settings.ALLOWED_HOSTS)"
    environment = {
        "PATH": os.environ["PATH"],
        "SECRET_KEY": "k" * 40,
        "ALLOWED_HOSTS": "a.test",
        "RELAY_HOSTS": "relay.test,<slug>.relay.test",
        "RELAY_ADMIN_HOSTS": "admin.test",
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "['a.test', 'relay.test', 'admin.test']", done.stderr
