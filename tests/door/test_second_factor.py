"""The second factor: nothing of the admin without it, codes good for once, guessing slowed down."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable
from io import StringIO
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.management import CommandError, call_command
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse
from django_otp.oath import TOTP
from django_otp.plugins.otp_static.models import StaticDevice, StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice
from pytest_django import Settings

from config.door import factors

PASSWORD = "the-right-password"
NOW = 1_900_000_000.0
ASK, SET_UP = "/admin/second-factor/", "/admin/second-factor/set-up/"


@pytest.fixture(autouse=True)
def _asked_for(db: None, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_otp.plugins.otp_totp.models.time", SimpleNamespace(time=lambda: NOW))
    settings.RELAY_ADMIN_MFA = True
    after = settings.MIDDLEWARE.index("django.contrib.auth.middleware.AuthenticationMiddleware") + 1
    asking = ["django_otp.middleware.OTPMiddleware", "config.door.factors.ask_for_second_factor"]
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[:after], *asking, *settings.MIDDLEWARE[after:]]
    User.objects.create_superuser("alice", password=PASSWORD)


class Phone:
    """An authenticator app: the key from the page, and a clock that can be moved by steps of a code."""

    def __init__(self, page: str) -> None:
        found = re.search(r'class="door-secret">([A-Z2-7 ]+)<', page)
        assert found is not None, page
        self.secret = found[1].replace(" ", "")

    def code(self, *, steps: int = 0) -> str:
        totp = TOTP(base64.b32decode(self.secret))
        totp.time = NOW + 30 * steps
        return f"{totp.token():06d}"

    def wrong(self) -> str:
        near = {self.code(steps=steps) for steps in range(-3, 4)}
        return next(code for code in ("000000", "111111", *(f"{n:06d}" for n in range(8))) if code not in near)


def with_password(name: str = "alice") -> Client:
    client = Client()
    assert client.post("/admin/login/", {"username": name, "password": PASSWORD}).status_code == 302
    return client


def give(client: Client, code: str, *, at: str = ASK) -> HttpResponse:
    return client.post(at, {"code": code})  # type: ignore[return-value]


def text(answer: object) -> str:
    content: bytes = answer.content  # type: ignore[attr-defined]
    return html.unescape(content.decode())


def is_in(client: Client) -> bool:
    return client.get("/admin/").status_code == 200


@pytest.fixture
def enrolled() -> tuple[Phone, list[str]]:
    """Alice's phone, whose code of this moment is used up, and her backup codes."""
    client = with_password()
    phone = Phone(text(client.get(SET_UP)))
    page = text(give(client, phone.code(steps=-1), at=SET_UP))
    codes = re.findall(r"<li>([a-z2-7-]{19})</li>", page)
    assert len(codes) == factors.BACKUP_CODES
    return phone, codes


PAGES = [
    "/admin/",
    "/admin/relay/upstream/",
    "/admin/auth/user/1/change/",
    "/admin/password_change/",
    "/admin/jsi18n/",
    "/admin/search/",
    "/admin/nowhere/",
    "/",
]


@pytest.mark.parametrize("path", PAGES)
def test_the_password_alone_opens_nothing(path: str) -> None:
    answer = with_password().get(path)
    assert answer.status_code == 302
    assert answer["Location"].startswith(f"{ASK}?next=")


def test_the_password_alone_changes_nothing() -> None:
    client = with_password()
    new = "another-password-altogether"
    form = {"old_password": PASSWORD, "new_password1": new, "new_password2": new}
    assert client.post("/admin/password_change/", form)["Location"].startswith(ASK)
    assert User.objects.get().check_password(PASSWORD)


def test_who_has_no_device_sets_one_up_before_anything_else() -> None:
    client = with_password()
    assert client.get("/admin/relay/upstream/", follow=True).redirect_chain == [
        (f"{ASK}?next=/admin/relay/upstream/".replace("/admin/relay/upstream/", "%2Fadmin%2Frelay%2Fupstream%2F"), 302),
        (f"{SET_UP}?next=%2Fadmin%2Frelay%2Fupstream%2F", 302),
    ]
    page = text(client.get(SET_UP))
    assert "<svg" in page
    phone = Phone(page)
    done = give(client, phone.code(), at=SET_UP)
    assert done.status_code == 200
    assert is_in(client)


def test_a_code_that_is_not_the_keys_sets_nothing_up() -> None:
    client = with_password()
    phone = Phone(text(client.get(SET_UP)))
    answer = give(client, phone.wrong(), at=SET_UP)
    assert "That code does not belong to this key" in text(answer)
    assert Phone(text(answer)).secret == phone.secret
    assert not TOTPDevice.objects.exists()
    assert not is_in(client)


def test_a_key_is_seen_by_nobody_but_who_confirms_it() -> None:
    one, other = with_password(), with_password()
    phones = [Phone(text(client.get(SET_UP))) for client in (one, other)]
    assert phones[0].secret != phones[1].secret
    assert "does not belong" in text(give(one, phones[1].code(), at=SET_UP))


def test_of_two_who_set_up_at_once_the_second_is_asked_for_the_firsts_code() -> None:
    one, other = with_password(), with_password()
    phones = [Phone(text(client.get(SET_UP))) for client in (one, other)]
    assert give(one, phones[0].code(), at=SET_UP).status_code == 200
    late = give(other, phones[1].code(), at=SET_UP)
    assert late["Location"].startswith(ASK)
    assert TOTPDevice.objects.count() == 1
    assert not is_in(other)


def test_a_device_that_is_set_up_is_not_shown_again(enrolled: tuple[Phone, list[str]]) -> None:
    phone, _ = enrolled
    client = with_password()
    assert client.get(SET_UP)["Location"].startswith(ASK)
    assert give(client, phone.code()).status_code == 302
    for path in (SET_UP, ASK, "/admin/"):
        assert phone.secret not in text(client.get(path, follow=True))
    key = TOTPDevice.objects.get().key
    assert all(key not in repr(session.get_decoded()) for session in Session.objects.all())


def test_the_admin_has_no_page_of_devices(enrolled: tuple[Phone, list[str]]) -> None:
    phone, _ = enrolled
    client = with_password()
    give(client, phone.code())
    assert client.get("/admin/otp_totp/totpdevice/").status_code == 404
    assert client.get("/admin/otp_static/staticdevice/").status_code == 404


def test_a_code_lets_in_with_a_new_session_key(enrolled: tuple[Phone, list[str]]) -> None:
    phone, _ = enrolled
    client = with_password()
    before = client.cookies["sessionid"].value
    answer = client.post(f"{ASK}?next=/admin/relay/upstream/", {"code": phone.code()})
    assert answer["Location"] == "/admin/relay/upstream/"
    assert is_in(client)
    assert client.cookies["sessionid"].value != before
    assert client.get(ASK)["Location"] == reverse("admin:index")


@pytest.mark.parametrize(
    "where", ["https://evil.example/", "//evil.example", "javascript:alert(1)", "\\\\evil.example"]
)
def test_nobody_is_led_away_after_the_code(enrolled: tuple[Phone, list[str]], where: str) -> None:
    phone, _ = enrolled
    answer = with_password().post(ASK, {"code": phone.code()}, query_params={"next": where})
    assert answer["Location"] == reverse("admin:index")


def test_a_code_is_taken_with_the_blanks_that_apps_show(enrolled: tuple[Phone, list[str]]) -> None:
    phone, _ = enrolled
    code = phone.code()
    assert give(with_password(), f" {code[:3]} {code[3:]} ").status_code == 302


@pytest.mark.parametrize(
    "change", [lambda code: f"+{code}", lambda code: f"{code[:3]}_{code[3:]}", lambda _: "\uff11" * 6]
)
def test_only_six_digits_are_a_code(enrolled: tuple[Phone, list[str]], change: Callable[[str], str]) -> None:
    phone, _ = enrolled
    client = with_password()
    assert give(client, change(phone.code())).status_code == 200
    assert not is_in(client)


def test_a_code_is_not_taken_twice(enrolled: tuple[Phone, list[str]]) -> None:
    phone, _ = enrolled
    code = phone.code()
    assert give(with_password(), code).status_code == 302
    thief = with_password()
    assert "was used before" in text(give(thief, code))
    assert not is_in(thief)


def test_the_code_that_set_the_device_up_is_not_taken_again() -> None:
    client = with_password()
    phone = Phone(text(client.get(SET_UP)))
    code = phone.code()
    assert give(client, code, at=SET_UP).status_code == 200
    assert give(with_password(), code).status_code == 200


def test_after_a_wrong_code_the_right_one_has_to_wait(enrolled: tuple[Phone, list[str]]) -> None:
    phone, backup = enrolled
    client = with_password()
    TOTPDevice.objects.update(throttling_failure_count=9)
    assert give(client, phone.wrong()).status_code == 200
    answer = give(client, phone.code())
    assert answer.status_code == 429
    assert 500 < int(answer["Retry-After"]) <= 512
    assert "The next code is taken at" in text(answer)
    assert not is_in(client)
    assert give(client, backup[0]).status_code == 302  # the other kind does not wait


def test_a_backup_code_lets_in_once(enrolled: tuple[Phone, list[str]]) -> None:
    _, backup = enrolled
    client = with_password()
    assert give(client, backup[3].upper()).status_code == 302
    page = text(client.get("/admin/"))
    assert f"Codes left: {factors.BACKUP_CODES - 1}" in page
    thief = with_password()
    assert give(thief, backup[3]).status_code == 200
    assert not is_in(thief)


def test_the_database_has_no_backup_code(enrolled: tuple[Phone, list[str]]) -> None:
    _, backup = enrolled
    kept = " ".join(StaticToken.objects.values_list("token", flat=True))
    for code in backup:
        assert code not in kept
        assert code.replace("-", "") not in kept


def test_another_users_code_lets_nobody_in(enrolled: tuple[Phone, list[str]]) -> None:
    phone, backup = enrolled
    User.objects.create_superuser("bob", password=PASSWORD)
    bob = with_password("bob")
    assert give(bob, phone.code())["Location"].startswith(SET_UP)
    bobs = Phone(text(bob.get(SET_UP)))
    assert give(bob, bobs.code(), at=SET_UP).status_code == 200
    again = with_password("bob")
    assert give(again, backup[0]).status_code == 200
    assert not is_in(again)


@pytest.mark.parametrize("path", [ASK, SET_UP])
def test_the_pages_are_for_who_gave_a_password(path: str) -> None:
    assert Client().get(path)["Location"] == f"/admin/login/?next={path}"
    assert Client().post(path, {"code": "123456"})["Location"] == f"/admin/login/?next={path}"


@pytest.mark.parametrize("path", [ASK, SET_UP])
def test_the_pages_are_not_kept_by_caches(path: str) -> None:
    assert "no-store" in with_password().get(path, follow=True)["Cache-Control"]


def test_who_only_gave_a_password_may_leave() -> None:
    client = with_password()
    assert client.post("/admin/logout/").status_code == 200
    assert client.get(ASK)["Location"].startswith("/admin/login/")


def test_a_reset_ends_the_sessions_and_asks_to_set_up_anew(enrolled: tuple[Phone, list[str]]) -> None:
    phone, backup = enrolled
    client = with_password()
    assert give(client, phone.code()).status_code == 302
    out = StringIO()
    call_command("mfa", "reset", "alice", stdout=out)
    assert "alice has no second factor any more" in out.getvalue()
    assert not is_in(client)
    assert not StaticDevice.objects.exists()
    assert give(with_password(), backup[0])["Location"].startswith(SET_UP)
    call_command("mfa", "reset", "alice", stdout=out)
    assert "alice had no second factor" in out.getvalue()


def test_a_reset_of_nobody_is_told(settings: Settings) -> None:
    with pytest.raises(CommandError, match="There is no user carol"):
        call_command("mfa", "reset", "carol")
    settings.RELAY_ADMIN_MFA = False
    with pytest.raises(CommandError, match="RELAY_ADMIN_MFA is off"):
        call_command("mfa", "reset", "alice")
