"""Registering and editing: who did it, what is refused in which words, what is warned of, and what readers see."""

from __future__ import annotations

from datetime import UTC

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from relay.models import Access, Change, CookieMode, HeaderRule, JarCookie, Upstream
from relay.models.usage import add_counts
from tests.admin.conftest import SignIn, warnings_of
from tests.admin.filled_form import filled_form

ADD = "/admin/relay/upstream/add/"


def change_url(upstream: Upstream) -> str:
    return f"/admin/relay/upstream/{upstream.pk}/change/"


def errors_of(client: Client, **changes: str | None) -> dict[str, list[str]]:
    form = filled_form(Upstream(slug="new", base_url="https://new.example"), **changes)
    response = client.post(ADD, form)
    assert response.status_code == 200
    assert not Upstream.objects.filter(slug=form.get("slug")).exists()
    errors: dict[str, list[str]] = response.context_data["adminform"].form.errors
    return errors


def test_registering_notes_who_did_it(admin_client: Client, admin_user: User) -> None:
    form = filled_form(
        Upstream(slug="new", base_url="HTTPS://New.example:443/v1/"),
        new_rules=[{"name": "User-Agent", "value": "relay"}],
    )
    assert admin_client.post(ADD, form).status_code == 302
    new = Upstream.objects.get()
    assert (new.created_by, new.changed_by) == (admin_user, admin_user)
    assert new.base_url.startswith("https://new.example/v1")
    assert [(rule.name, rule.value) for rule in new.header_rules.all()] == [("user-agent", "relay")]


def test_changing_notes_who_did_it_and_leaves_who_registered(
    admin_client: Client, admin_user: User, weather: Upstream
) -> None:
    before = weather.changed_at
    assert admin_client.post(change_url(weather), filled_form(weather, description="Ours")).status_code == 302
    weather.refresh_from_db()
    assert (weather.created_by, weather.changed_by, weather.description) == (None, admin_user, "Ours")
    assert weather.changed_at > before


@pytest.mark.parametrize("edit", ["change", "add", "delete"])
def test_an_edit_of_header_rules_alone_changes_the_upstream(
    admin_client: Client, admin_user: User, weather: Upstream, edit: str
) -> None:
    before, revision = weather.changed_at, Change.objects.get(slug="weather").revision
    added = [{"name": "x-team", "value": "ours"}] if edit == "add" else []
    form = filled_form(weather, new_rules=added)
    if edit == "change":
        form["header_rules-0-value"] = "Bearer another"
    if edit == "delete":
        form["header_rules-0-DELETE"] = "on"
    assert admin_client.post(change_url(weather), form).status_code == 302
    weather.refresh_from_db()
    assert weather.changed_by == admin_user
    assert weather.changed_at > before
    assert Change.objects.get(slug="weather").revision > revision
    assert weather.header_rules.count() == {"change": 2, "add": 3, "delete": 1}[edit]


def test_saving_without_an_edit_changes_nothing(admin_client: Client, weather: Upstream) -> None:
    before, revision = weather.changed_at, Change.objects.get(slug="weather").revision
    assert admin_client.post(change_url(weather), filled_form(weather)).status_code == 302
    weather.refresh_from_db()
    assert (weather.changed_at, weather.changed_by) == (before, None)
    assert Change.objects.get(slug="weather").revision == revision
    assert LogEntry.objects.get().get_change_message() == "No fields changed."


def test_save_as_new_copies_the_upstream_and_its_header_rules(
    admin_client: Client, admin_user: User, weather: Upstream
) -> None:
    form = filled_form(weather, slug="weather-2", _saveasnew="1")
    assert admin_client.post(change_url(weather), form).status_code == 302
    copy = Upstream.objects.get(slug="weather-2")
    assert (copy.created_by, copy.changed_by) == (admin_user, admin_user)
    assert copy.outbound_proxy == weather.outbound_proxy
    assert copy.header_rules.count() == weather.header_rules.count() == 2


def test_a_taken_slug_says_what_to_do(admin_client: Client, weather: Upstream) -> None:
    response = admin_client.post(change_url(weather), filled_form(weather, _saveasnew="1"))
    assert b"Another upstream has this slug: choose another." in response.content
    assert Upstream.objects.count() == 1


@pytest.mark.parametrize(
    ("field", "text", "advice"),
    [
        ("slug", "Not A Slug", "Use lower-case letters"),
        ("base_url", "ftp://new.example", "Begin the URL with http:// or https://"),
        ("base_url", "https://user:pass@new.example", ""),
        ("base_url", "https://new.example/#part", ""),
        ("allowed_networks", "10.0.0.1/8", "write 10.0.0.0/8"),
        ("ca_bundle", "no certificate", "Paste whole PEM certificates"),
        ("allowed_methods", "CONNECT", "leave it out"),
        ("idle_timeout_seconds", "0", "greater than or equal to 0.05"),
        ("outbound_proxy", "socks5://proxy.example", ""),
    ],
)
def test_field_errors_say_what_to_do(admin_client: Client, field: str, text: str, advice: str) -> None:
    errors = errors_of(admin_client, **{field: text})
    assert list(errors) == [field]
    assert advice in errors[field][0]


def test_a_header_rule_that_frames_the_message_is_refused_at_its_field(admin_client: Client) -> None:
    form = filled_form(
        Upstream(slug="new", base_url="https://new.example"), new_rules=[{"name": "Transfer-Encoding", "value": "x"}]
    )
    response = admin_client.post(ADD, form)
    assert list(response.context_data["inline_admin_formsets"][1].formset.errors[0]) == ["name"]
    assert not Upstream.objects.exists()


def test_what_will_not_work_is_saved_with_a_warning(admin_client: Client) -> None:
    form = filled_form(Upstream(slug="inside", base_url="https://10.1.2.3", verify_tls=False))
    page = admin_client.post(ADD, form, follow=True)
    warnings = warnings_of(page)
    assert warnings == Upstream.objects.get(slug="inside").warnings()
    assert len(warnings) == 2


def test_the_page_shows_how_to_call_it(admin_client: Client, weather: Upstream) -> None:
    page = admin_client.get(change_url(weather)).content.decode()
    assert "<code>http://testserver/relay/weather/</code>" in page
    assert "<code>curl http://testserver/relay/weather/</code>" in page
    assert "curl -N -H &#x27;Accept: text/event-stream&#x27; http://testserver/relay/weather/" in page
    assert "Relay-Key: rk_" not in page
    Upstream.objects.update(access=Access.KEY)
    assert "-H &#x27;Relay-Key: rk_…&#x27;" in admin_client.get(change_url(weather)).content.decode()


def test_the_page_of_one_that_is_off_says_so(admin_client: Client, billing: Upstream) -> None:
    assert b"It is switched off: callers get 404" in admin_client.get(change_url(billing)).content


def test_the_page_with_errors_shows_how_to_call_what_is_saved(admin_client: Client, weather: Upstream) -> None:
    page = admin_client.post(change_url(weather), filled_form(weather, slug="other", base_url="nonsense"))
    assert b"<code>http://testserver/relay/weather/</code>" in page.content


def test_readers_see_all_but_secrets(sign_in: SignIn, weather: Upstream) -> None:
    client = sign_in("view_upstream", "view_headerrule")
    page = client.get(change_url(weather)).content.decode()
    assert "https://api.weather.example/v1" in page
    assert "http://(hidden)@proxy.example:3128" in page
    assert "authorization" in page
    assert page.count("(hidden)") == 2
    for secret in ("proxy-user", "proxy-pass", "rule-secret"):
        assert secret not in page


def test_readers_of_header_rules_who_may_change_upstreams_see_no_values(sign_in: SignIn, weather: Upstream) -> None:
    client = sign_in("view_upstream", "change_upstream", "point_upstream", "view_headerrule", "add_headerrule")
    page = client.get(change_url(weather)).content.decode()
    assert "proxy-pass" in page
    assert "rule-secret" not in page


def test_readers_cannot_change(sign_in: SignIn, weather: Upstream) -> None:
    client = sign_in("view_upstream", "view_headerrule")
    assert client.post(change_url(weather), filled_form(weather, name="Mine")).status_code == 403
    assert client.get(ADD).status_code == 403
    assert Upstream.objects.get().name == "Weather service"


def test_adding_is_a_right_of_its_own(sign_in: SignIn, weather: Upstream) -> None:
    client = sign_in("add_upstream", "point_upstream")
    form = filled_form(Upstream(slug="new", base_url="https://new.example"))
    assert client.post(ADD, form).status_code == 302
    assert Upstream.objects.filter(slug="new").exists()
    assert client.get(change_url(weather)).status_code == 403


def test_those_who_may_change_see_what_they_change(admin_client: Client, weather: Upstream) -> None:
    page = admin_client.get(change_url(weather)).content.decode()
    assert "proxy-pass" in page
    assert "rule-secret" in page


def test_the_history_holds_no_secrets(admin_client: Client, weather: Upstream) -> None:
    form = filled_form(weather, outbound_proxy="http://proxy-user:new-pass@proxy.example:3128")
    form["header_rules-0-value"] = "Bearer new-secret"
    admin_client.post(change_url(weather), form)
    trail = admin_client.get(f"/admin/relay/upstream/{weather.pk}/history/", follow=True).content.decode()
    assert "outbound_proxy" in trail
    for text in (trail, *(f"{entry.change_message}{entry.object_repr}" for entry in LogEntry.objects.all())):
        assert "new-pass" not in text
        assert "new-secret" not in text
    assert "rule-secret" not in "".join(map(repr, HeaderRule.objects.all()))


def test_the_page_tells_what_report_only_let_pass(sign_in: SignIn, weather: Upstream) -> None:
    client = sign_in("view_upstream")
    page = change_url(weather)
    assert "Report only:" not in client.get(page).content.decode()
    Upstream.objects.update(report_only=True)
    assert "Report only: no request would have been refused" in client.get(page).content.decode()
    today = timezone.now().astimezone(UTC).date()
    add_counts({(weather.pk, "key-required", today): 120, (weather.pk, "not-granted", today): 12}, today=today)
    expected = "Report only: 132 requests would have been refused in the last 7 days: key-required 120, not-granted 12."
    assert expected in client.get(page).content.decode()


def test_saving_report_only_with_keys_warns_that_everybody_passes(sign_in: SignIn, weather: Upstream) -> None:
    client = sign_in("view_upstream", "change_upstream")
    answer = client.post(change_url(weather), filled_form(weather, access="key", report_only="on"), follow=True)
    assert "Report only is on: everybody may call" in answer.content.decode()
    weather.refresh_from_db()
    assert weather.report_only


@pytest.fixture
def legacy(db: None) -> Upstream:
    """An upstream with a jar and a cookie in it."""
    legacy = Upstream.objects.create(slug="legacy", base_url="https://legacy.example", cookie_mode=CookieMode.JAR)
    JarCookie.objects.create(
        upstream=legacy,
        domain="legacy.example",
        path="/",
        name="sid",
        host_only=True,
        secure=True,
        sealed_value=b"s3al",
    )
    return legacy


def test_the_page_tells_how_many_cookies_a_jar_has_and_empties_it(admin_client: Client, legacy: Upstream) -> None:
    page = admin_client.get(change_url(legacy)).content.decode()
    assert "The relay keeps 1 cookie for all callers" in page
    assert "s3al" not in page
    url = f"/admin/relay/upstream/{legacy.pk}/empty-jar/"
    assert f'action="{url}"' in page
    answer = admin_client.post(url, follow=True)
    assert "The jar of legacy is empty: 1 cookie gone." in answer.content.decode()
    assert "The relay keeps 0 cookies" in answer.content.decode()
    assert LogEntry.objects.get().change_message == "Emptied the cookie jar (1)."


def test_a_jar_is_emptied_by_nothing_but_a_form_of_who_may_change_it(
    admin_client: Client, sign_in: SignIn, legacy: Upstream
) -> None:
    url = f"/admin/relay/upstream/{legacy.pk}/empty-jar/"
    assert admin_client.get(url).status_code == 405
    reader = sign_in("view_upstream")
    assert reader.post(url).status_code == 403
    assert "Empty the jar" not in reader.get(change_url(legacy)).content.decode()
    assert admin_client.post("/admin/relay/upstream/999/empty-jar/").status_code == 403
    careful = Client(enforce_csrf_checks=True)
    careful.cookies = admin_client.cookies
    assert careful.post(url).status_code == 403
    assert JarCookie.objects.count() == 1


def test_the_page_of_an_upstream_without_a_jar_does_not_speak_of_one(admin_client: Client, weather: Upstream) -> None:
    assert "Empty the jar" not in admin_client.get(change_url(weather)).content.decode()
