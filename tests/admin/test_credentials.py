"""The page for credentials takes secrets and gives none back: not in pages, history, errors or error reports."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trustme
from django.contrib.admin.models import LogEntry
from django.http import HttpRequest
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils.log import AdminEmailHandler
from django.views.debug import ExceptionReporter

from relay import vault
from relay.admin.reports import SecretsHidden
from relay.models import Credential, Upstream
from tests.admin.conftest import SignIn

SECRET = "s3cret-value"


def page(upstream: Upstream) -> str:
    return reverse("admin:relay_upstream_credentials", args=(upstream.pk,))


@pytest.fixture
def setter(sign_in: SignIn) -> Client:
    return sign_in("view_upstream", "set_credential")


def destination(upstream: Upstream) -> str:
    row = Credential(upstream=upstream)
    return row.destination(upstream)


def post(client: Client, upstream: Upstream, **fields: str) -> Any:
    given = {"action": "set", "kind": "bearer", "secret": SECRET, "destination": destination(upstream)} | fields
    return client.post(page(upstream), given, follow=True)


def text(response: Any) -> str:
    shown: str = response.content.decode()
    assert SECRET not in shown
    return shown


def put(upstream: Upstream) -> Credential:
    return Credential.put(upstream, "bearer", secrets={"secret": SECRET})


def opened() -> str:
    row = Credential.objects.get()
    return vault.keyring().open(row.secret_sealed, purpose="credential.secret", row=str(row.pk)).decode()


def test_a_secret_is_set_and_never_shown(setter: Client, weather: Upstream) -> None:
    shown = text(post(setter, weather))
    assert "Bearer token is set." in shown
    assert "sealed" in shown
    assert "by view_upstream-set_credential" in shown
    assert opened() == SECRET
    assert bytes(Credential.objects.get().secret_sealed).hex() not in shown
    text(setter.get(page(weather)))
    text(setter.get(reverse("admin:relay_upstream_change", args=(weather.pk,))))
    text(setter.get(reverse("admin:relay_upstream_history", args=(weather.pk,))))
    [entry] = LogEntry.objects.all()
    assert entry.change_message == "Set the credential: Bearer token."


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("header", {"name": "X-Api-Key"}),
        ("basic", {"identity": "user"}),
        ("query", {"name": "api_key"}),
        ("oauth", {"identity": "c", "token_url": "https://login.example/token", "auth_style": "body"}),
        ("aws", {"identity": "AKIDEXAMPLE", "region": "eu-central-1", "service": "s3"}),
    ],
)
def test_every_kind_has_its_form(setter: Client, weather: Upstream, kind: str, fields: dict[str, str]) -> None:
    form = text(setter.get(page(weather) + f"?kind={kind}"))
    for name in fields:
        assert f'name="{name}"' in form
    text(post(setter, weather, kind=kind, **fields))
    row = Credential.objects.get()
    assert (row.kind, row.is_confirmed) == (kind, True)
    assert all(getattr(row, name).lower() == value.lower() for name, value in fields.items())
    assert all(
        f'value="{getattr(row, name)}"' in text(setter.get(page(weather))) for name in set(fields) - {"auth_style"}
    )


def test_a_client_certificate_is_set(setter: Client, weather: Upstream) -> None:
    issued = trustme.CA().issue_cert("client.example")
    key = issued.private_key_pem.bytes().decode()
    chain = issued.cert_chain_pems[0].bytes().decode()
    wrong = post(setter, weather, kind="certificate", secret=key.replace("A", "B"), certificates=chain)
    assert "The private key cannot be read" in wrong.content.decode()
    assert "PRIVATE KEY-----\n" not in wrong.content.decode()
    assert post(setter, weather, kind="certificate", secret=key, certificates=chain).status_code == 200
    assert Credential.objects.get().kind == "certificate"


def test_a_form_with_errors_gives_no_secret_back(setter: Client, weather: Upstream) -> None:
    for fields in (
        {"kind": "header"},
        {"kind": "header", "name": "Host"},
        {"secret_reference": "env:RELAY_CREDENTIAL_A"},
        {"secret": SECRET + " with blanks"},
        {"destination": "https://elsewhere.example"},
        {"kind": "certificate", "certificates": "none"},
    ):
        shown = text(post(setter, weather, **fields))
        assert "errornote" in shown or "errors" in shown or "changed meanwhile" in shown
    assert not Credential.objects.exists()


def test_a_reference_is_shown_and_its_value_is_not(
    setter: Client, weather: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_CREDENTIAL_A", SECRET)
    assert "env:RELAY_CREDENTIAL_A" in text(post(setter, weather, secret="", secret_reference="env:RELAY_CREDENTIAL_A"))
    monkeypatch.delenv("RELAY_CREDENTIAL_A")
    assert "The environment has no RELAY_CREDENTIAL_A" in text(setter.get(page(weather)))
    refused = text(post(setter, weather, secret="", secret_reference="env:SECRET_KEY"))
    assert "Name a variable that begins with RELAY_CREDENTIAL_" in refused


def test_others_see_which_kind_is_set_and_no_field_for_a_secret(sign_in: SignIn, weather: Upstream) -> None:
    put(weather)
    for rights in (("view_upstream",), ("view_upstream", "change_upstream")):
        client = sign_in(*rights)
        shown = text(client.get(page(weather)))
        assert "Bearer token" in shown
        assert 'name="secret"' not in shown
        assert "<button class" not in shown.partition('class="relay-head"')[2]
        assert "Bearer token" in text(client.get(reverse("admin:relay_upstream_change", args=(weather.pk,))))


@pytest.mark.parametrize("action", ["set", "confirm", "remove"])
def test_without_the_permission_nothing_is_set_confirmed_or_removed(
    sign_in: SignIn, weather: Upstream, action: str
) -> None:
    row = put(weather)
    Upstream.objects.update(base_url="https://evil.example")
    weather.refresh_from_db()
    client = sign_in("view_upstream", "change_upstream", "delete_upstream")
    assert post(client, weather, action=action, credential=str(row.pk), sure="on").status_code == 403
    row.refresh_from_db()
    assert not row.is_confirmed
    assert opened() == SECRET


def test_who_may_not_see_the_upstream_sees_nothing(sign_in: SignIn, weather: Upstream) -> None:
    put(weather)
    assert sign_in("set_credential").get(page(weather)).status_code == 403
    assert Client().get(page(weather)).status_code == 302


def test_a_changed_base_url_asks_for_confirmation(sign_in: SignIn, setter: Client, weather: Upstream) -> None:
    row = put(weather)
    Upstream.objects.update(base_url="https://elsewhere.example")
    weather.refresh_from_db()
    shown = text(setter.get(page(weather)))
    assert "Requests are refused with 502" in shown
    assert "https://elsewhere.example" in shown
    given = {"action": "confirm", "credential": str(row.pk)}
    stale = text(setter.post(page(weather), given | {"destination": "https://api.weather.example"}, follow=True))
    assert "changed meanwhile" in stale
    assert not Credential.objects.get().is_confirmed
    done = text(setter.post(page(weather), given | {"destination": destination(weather)}, follow=True))
    assert "is confirmed for where the upstream leads now" in done
    row = Credential.objects.get()
    assert row.is_confirmed
    assert row.confirmed_by is not None


def test_a_changed_target_asks_for_confirmation(setter: Client, weather: Upstream) -> None:
    weather.targets.create(address="10.20.0.7:8080")
    row = put(weather)
    assert "<code>at 10.20.0.7:8080</code>" in text(setter.get(page(weather)))
    weather.targets.update(weight=5, enabled=False, backup=True)
    assert Credential.objects.get().is_confirmed, "shares are no places"
    weather.targets.create(address="10.20.0.8:8080")
    assert not Credential.objects.get().is_confirmed
    shown = text(setter.get(page(weather)))
    assert "Requests are refused with 502" in shown
    assert "<code>at 10.20.0.8:8080</code>" in shown
    given = {"action": "confirm", "credential": str(row.pk), "destination": destination(weather)}
    assert "is confirmed for where" in text(setter.post(page(weather), given, follow=True))
    weather.targets.filter(address="10.20.0.7:8080").delete()
    assert not Credential.objects.get().is_confirmed


def test_removing_asks_whether_one_is_sure(setter: Client, weather: Upstream) -> None:
    given = {"action": "remove", "credential": str(put(weather).pk)}
    assert "Tick that you are sure" in text(setter.post(page(weather), given, follow=True))
    assert Credential.objects.exists()
    assert "is removed" in text(setter.post(page(weather), given | {"sure": "on"}, follow=True))
    assert not Credential.objects.exists()
    assert "Nothing was changed" in text(setter.post(page(weather), given | {"sure": "on"}, follow=True))


def test_saving_as_new_takes_no_credential_along(admin_client: Client, weather: Upstream) -> None:
    put(weather)
    copy = Upstream.objects.get()
    copy.pk, copy.slug = None, "copy"
    copy.save()
    assert not copy.credentials.exists()


def test_the_page_is_kept_by_no_cache(setter: Client, weather: Upstream) -> None:
    assert "no-store" in setter.get(page(weather))["Cache-Control"]


# Error pages and mails.


@pytest.fixture
def failing(setter: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Setting a credential fails in the depth, with the secret in the variables of many frames."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("in the depth")

    monkeypatch.setattr("relay.vault.Keyring.seal", fail)
    setter.raise_request_exception = False
    return setter


@pytest.mark.parametrize("debug", [True, False])
def test_an_error_page_shows_nothing_that_was_typed_in(
    failing: Client, weather: Upstream, settings: Any, debug: bool
) -> None:
    settings.DEBUG = debug
    response = post(failing, weather)
    assert response.status_code == 500
    assert ("in the depth" in response.content.decode()) is debug
    assert SECRET not in response.content.decode()


class Mailed(AdminEmailHandler):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__(include_html=True)
        self.sent = ""

    def send_mail(self, subject: str, message: str, *args: Any, html_message: str | None = None, **_: Any) -> None:
        self.sent += subject + message + str(html_message)


def test_an_error_mail_shows_nothing_that_was_typed_in(
    failing: Client, weather: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Mailed()
    logger = logging.getLogger("django.request")
    logger.addHandler(handler)
    try:
        post(failing, weather)
    finally:
        logger.removeHandler(handler)
    assert "in the depth" in handler.sent
    assert SECRET not in handler.sent
    assert SECRET not in caplog.text


def test_settings_and_variables_of_credentials_are_hidden(settings: Any) -> None:
    settings.RELAY_CREDENTIAL_A = SECRET
    settings.RELAY_ENCRYPTION_KEYS = (SECRET * 4,)
    try:
        raise RuntimeError
    except RuntimeError as problem:
        request: HttpRequest = RequestFactory().get("/", RELAY_CREDENTIAL_A=SECRET)
        reporter = ExceptionReporter(request, type(problem), problem, problem.__traceback__)
    assert isinstance(reporter.filter, SecretsHidden)
    assert SECRET not in reporter.get_traceback_text().partition("Traceback")[0]
