"""How long a session of the admin lasts, and what ends it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from config.door import sessions

PASSWORD = "the-right-password"


@pytest.fixture
def alice(db: None) -> User:
    return User.objects.create_superuser("alice", password=PASSWORD)


def sign_in(client: Client) -> None:
    assert client.post("/admin/login/", {"username": "alice", "password": PASSWORD}).status_code == 302
    assert is_in(client)


def is_in(client: Client) -> bool:
    return client.get("/admin/").status_code == 200


@pytest.fixture
def client(alice: User) -> Client:
    client = Client()
    sign_in(client)
    return client


@pytest.fixture
def later() -> Callable[[float], None]:
    """`later(seconds)`: so much time has passed for the one session there is."""

    def pass_time(seconds: float) -> None:
        row = Session.objects.get()
        kept = row.get_decoded()
        for name in (sessions.BEGAN, sessions.SEEN):
            kept[name] -= seconds
        row.session_data = SessionStore().encode(kept)
        row.expire_date -= timedelta(seconds=seconds)
        row.save()

    return pass_time


def expires_in() -> float:
    return (Session.objects.get().expire_date - timezone.now()).total_seconds()


def test_an_idle_session_ends(client: Client, later: Callable[[float], None], settings: Settings) -> None:
    later(settings.RELAY_ADMIN_IDLE_SECONDS + 1)
    assert not is_in(client)


def test_a_session_in_use_goes_on(client: Client, later: Callable[[float], None], settings: Settings) -> None:
    for _ in range(3):
        later(settings.RELAY_ADMIN_IDLE_SECONDS - 60)
        assert is_in(client)
        assert expires_in() == pytest.approx(settings.RELAY_ADMIN_IDLE_SECONDS, abs=30)


def test_no_use_carries_a_session_past_its_age(
    client: Client, later: Callable[[float], None], settings: Settings
) -> None:
    settings.RELAY_ADMIN_SESSION_SECONDS = 3 * settings.RELAY_ADMIN_IDLE_SECONDS // 2
    later(settings.RELAY_ADMIN_IDLE_SECONDS - 60)
    assert is_in(client)
    assert expires_in() == pytest.approx(settings.RELAY_ADMIN_IDLE_SECONDS // 2 + 60, abs=30)
    later(settings.RELAY_ADMIN_IDLE_SECONDS // 2 + 61)
    assert not is_in(client)


def test_a_shorter_age_counts_for_sessions_there_are(
    client: Client, later: Callable[[float], None], settings: Settings
) -> None:
    later(601)
    settings.RELAY_ADMIN_SESSION_SECONDS = 600
    assert not is_in(client)
    assert not Session.objects.exists()


def test_a_session_of_unknown_age_ends(client: Client) -> None:
    row = Session.objects.get()
    row.session_data = SessionStore().encode(row.get_decoded() | {sessions.BEGAN: 0})
    row.save()
    assert not is_in(client)


def test_the_date_moves_on_at_most_once_a_minute(client: Client, later: Callable[[float], None]) -> None:
    later(sessions.RENEW_SECONDS - 10)
    before = Session.objects.values().get()
    assert is_in(client)
    assert Session.objects.values().get() == before


def test_signing_in_makes_a_new_key(client: Client) -> None:
    before = client.cookies["sessionid"].value
    sign_in(client)
    assert client.cookies["sessionid"].value != before
    assert Session.objects.count() == 1
    planted = Client()
    planted.cookies["sessionid"] = before
    assert not is_in(planted)


def test_a_changed_password_ends_the_sessions_elsewhere(client: Client) -> None:
    other = Client()
    sign_in(other)
    new = "another-password-altogether"
    form = {"old_password": PASSWORD, "new_password1": new, "new_password2": new}
    assert other.post("/admin/password_change/", form).status_code == 302
    assert is_in(other)
    assert not is_in(client)


@pytest.mark.parametrize("field", ["is_active", "is_staff"])
def test_who_is_deactivated_is_out_at_once(client: Client, alice: User, field: str) -> None:
    User.objects.filter(pk=alice.pk).update(**{field: False})
    assert not is_in(client)


def test_signing_in_deletes_the_sessions_that_have_run_out(client: Client) -> None:
    for _ in range(5):
        sign_in(Client())
    Session.objects.update(expire_date=timezone.now() - timedelta(seconds=1))
    sign_in(Client())
    assert Session.objects.count() == 1


def test_a_visitor_gets_no_session(db: None) -> None:
    client = Client()
    assert client.get("/admin/login/").status_code == 200
    client.post("/admin/login/", {"username": "nobody", "password": "no"})
    assert not Session.objects.exists()


def test_all_sessions_of_a_user_are_ended_and_nobody_elses(client: Client, alice: User) -> None:
    bob = Client()
    bob.force_login(User.objects.create_superuser("bob"))
    sign_in(Client())
    sessions.end_all_of(alice)
    assert not is_in(client)
    assert is_in(bob)
