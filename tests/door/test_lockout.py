"""How often somebody may try to sign in: for a name from an address, and for an address."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest
from axes.models import AccessAttempt
from django.conf import settings as project_settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from django.utils import timezone
from pytest_django import Settings

from config.door import lockout
from config.door.lockout import ADDRESS_FAILURES
from tests.serving_ground import ServedProcess

NAME_FAILURES: int = project_settings.AXES_FAILURE_LIMIT
COOL_OFF: timedelta = project_settings.AXES_COOLOFF_TIME
RIGHT = "the-right-password"
WRONG = "a-wrong-password"
HERE, ELSEWHERE = "192.0.2.1", "198.51.100.1"


@pytest.fixture(autouse=True)
def _alice(db: None) -> None:
    User.objects.create_superuser("alice", password=RIGHT)
    User.objects.create_superuser("bob", password=RIGHT)


def attempt(name: str = "alice", password: str = WRONG, *, address: str = HERE, **headers: str) -> int:
    """302: let in. 200: the password was wrong. 429: it was not looked at."""
    form = {"username": name, "password": password}
    return Client(REMOTE_ADDR=address).post("/admin/login/", form, headers=headers).status_code


def shut(name: str = "alice", *, address: str = HERE) -> None:
    assert [attempt(name, address=address) for _ in range(NAME_FAILURES)] == [200] * NAME_FAILURES
    assert attempt(name, address=address) == 429


def ago(elapsed: timedelta) -> None:
    """Every attempt so far was that long ago."""
    AccessAttempt.objects.update(attempt_time=timezone.now() - elapsed)


def test_after_so_many_wrong_passwords_the_right_one_is_refused() -> None:
    shut()
    assert attempt(password=RIGHT) == 429


def test_the_refusal_is_a_page_that_says_when_to_try_again(caplog: pytest.LogCaptureFixture) -> None:
    shut()
    with caplog.at_level(logging.WARNING, "config.door.lockout"):
        answer = Client(REMOTE_ADDR=HERE).post("/admin/login/", {"username": "alice", "password": RIGHT})
    assert 0 < int(answer["Retry-After"]) <= COOL_OFF.total_seconds()
    text = answer.content.decode()
    assert re.search(r"Try again at <strong><time [^>]*>\d\d:\d\d:\d\d UTC</time>", text)
    assert "in 15 minutes" in text
    assert HERE in caplog.text
    assert "alice" not in caplog.text + text
    assert RIGHT not in caplog.text + text


@pytest.mark.parametrize("name", ["Alice", " alice ", "ALICE", "al ice", "\uff41lice", "alice\u00a0"])
def test_no_spelling_of_the_name_evades(name: str) -> None:
    shut()
    assert attempt(name) == 429


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-Ip", "Client-Ip"])
def test_no_forwarding_line_of_a_stranger_evades(header: str) -> None:
    statuses = [attempt(**{header: f"203.0.113.{turn}"}) for turn in range(NAME_FAILURES + 1)]
    assert statuses == [200] * NAME_FAILURES + [429]


def test_behind_a_trusted_proxy_the_nearest_address_that_is_not_one_counts(settings: Settings) -> None:
    settings.RELAY_TRUSTED_PROXIES = ("10.0.0.0/8",)

    def through(forwarded_for: str) -> int:
        return attempt(address="10.0.0.1", **{"X-Forwarded-For": forwarded_for})

    statuses = [through(f"203.0.113.{turn}, {HERE}, 10.0.0.2") for turn in range(NAME_FAILURES + 1)]
    assert statuses == [200] * NAME_FAILURES + [429]
    assert through(f"{HERE}, {ELSEWHERE}") == 200
    assert attempt(address=HERE) == 429  # the same caller, come past the proxy


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::1", True),
        ("", "no address at all", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, *, same: bool) -> None:
    shut(address=one)
    assert attempt(address=other) == (429 if same else 200)


def test_somebody_elsewhere_does_not_shut_the_door_for_the_owner_of_the_name() -> None:
    shut(address=ELSEWHERE)
    assert attempt(password=RIGHT) == 302


def test_somebody_at_the_address_is_not_shut_out_by_few_attempts_for_another_name() -> None:
    shut("alice")
    assert attempt("bob", RIGHT) == 302


def test_many_names_from_one_address_shut_the_door_for_that_address() -> None:
    assert [attempt(f"guess-{turn}") for turn in range(ADDRESS_FAILURES)] == [200] * ADDRESS_FAILURES
    assert attempt("bob", RIGHT) == 429
    assert attempt("bob", RIGHT, address=ELSEWHERE) == 302


def test_who_has_an_account_cannot_wash_an_address_clean_of_attempts_for_others() -> None:
    for turn in range(ADDRESS_FAILURES - 1):
        assert attempt(f"guess-{turn}") == 200
    assert attempt("bob", RIGHT) == 302
    assert attempt("another") == 200
    assert attempt("bob", RIGHT) == 429


def test_the_right_password_forgets_the_wrong_ones_before() -> None:
    for _ in range(3):
        assert [attempt() for _ in range(NAME_FAILURES - 1)] == [200] * (NAME_FAILURES - 1)
        assert attempt(password=RIGHT) == 302


def test_the_door_opens_when_the_time_is_over() -> None:
    shut()
    ago(COOL_OFF - timedelta(seconds=30))
    assert attempt(password=RIGHT) == 429
    ago(COOL_OFF)
    assert attempt(password=RIGHT) == 302


def test_an_address_is_let_in_again_as_soon_as_enough_attempts_have_run_out() -> None:
    for turn in range(ADDRESS_FAILURES):
        assert attempt(f"guess-{turn}") == 200
    oldest = AccessAttempt.objects.order_by("attempt_time").values_list("pk", flat=True)[:1]
    AccessAttempt.objects.filter(pk__in=list(oldest)).update(attempt_time=timezone.now() - COOL_OFF)
    assert attempt("bob") == 200
    assert attempt("bob") == 429


def test_attempts_at_a_shut_door_do_not_keep_it_shut() -> None:
    shut()
    before = AccessAttempt.objects.values_list("attempt_time", "failures_since_start").get()
    assert attempt() == 429
    assert AccessAttempt.objects.values_list("attempt_time", "failures_since_start").get() == before


def test_what_has_run_out_is_deleted_by_the_next_attempt() -> None:
    for turn in range(10):
        attempt(f"guess-{turn}", address=f"203.0.113.{turn}")
    ago(COOL_OFF)
    attempt()
    assert AccessAttempt.objects.count() == 1


def test_the_table_has_nothing_of_what_was_typed() -> None:
    secret = "typed-into-the-wrong-field"
    client = Client(REMOTE_ADDR=HERE)
    for _ in range(2):
        client.post(f"/admin/login/?next=/{secret}", {"username": secret, "password": secret, "more": secret})
    row = AccessAttempt.objects.values().get()
    assert secret not in repr(row)
    assert row["get_data"] == row["post_data"] == ""


@pytest.mark.parametrize(
    ("command", "argument"),
    [("axes_reset", ()), ("axes_reset_username", ("Alice",)), ("axes_reset_ip", (HERE,))],
)
def test_an_operator_opens_the_door_by_name_or_address(command: str, argument: tuple[str, ...]) -> None:
    shut()
    call_command(command, *argument)
    assert attempt(password=RIGHT) == 302


def test_an_operator_who_opens_for_another_leaves_the_door_shut() -> None:
    shut()
    call_command("axes_reset_username", "bob")
    call_command("axes_reset_ip", ELSEWHERE)
    assert attempt(password=RIGHT) == 429


def test_a_worker_checks_few_passwords_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockout, "WAIT_SECONDS", 0.0)
    full = threading.Barrier(lockout.CHECKS_AT_ONCE + 1)
    go_on = threading.Event()

    def check(_: HttpRequest) -> HttpResponse:
        full.wait(timeout=10)
        go_on.wait(timeout=10)
        return HttpResponse()

    respond = lockout.bound_checks_at_once(check)
    sign_in = RequestFactory().post("/admin/login/")
    with ThreadPoolExecutor() as threads:
        checked = [threads.submit(respond, sign_in) for _ in range(lockout.CHECKS_AT_ONCE)]
        full.wait(timeout=10)
        late = respond(sign_in)
        go_on.set()
    assert (late.status_code, late["Retry-After"]) == (503, "5")
    assert [turn.result().status_code for turn in checked] == [200] * lockout.CHECKS_AT_ONCE


def test_a_turn_is_given_back_whatever_happens_and_other_pages_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockout, "CHECKS_AT_ONCE", 1)
    monkeypatch.setattr(lockout, "WAIT_SECONDS", 0.0)

    def answer(request: HttpRequest) -> HttpResponse:
        if request.method == "GET":
            return HttpResponse()
        assert respond(RequestFactory().get("/admin/login/")).status_code == 200
        raise ConnectionError

    respond = lockout.bound_checks_at_once(answer)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            respond(RequestFactory().post("/admin/login/"))


async def test_attempts_at_once_on_several_workers_try_no_more_passwords_than_allowed() -> None:
    async with (
        ServedProcess(workers=2, start_seconds=60) as served,
        httpx.AsyncClient(base_url=served.url, timeout=60) as client,
    ):
        await client.get("/admin/login/")
        form = {"username": "admin", "password": WRONG, "csrfmiddlewaretoken": client.cookies["csrftoken"]}

        async def try_once(turn: int) -> int:
            spoofed = {"X-Forwarded-For": f"203.0.113.{turn}"}
            return (await client.post("/admin/login/", data=form, headers=spoofed)).status_code

        statuses = Counter(await asyncio.gather(*map(try_once, range(30))))
    assert statuses[200] <= NAME_FAILURES
    assert statuses.keys() <= {200, 429, 503}
