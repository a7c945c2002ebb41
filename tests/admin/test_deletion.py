"""Deleting names the relay URLs that stop working, one by one and in bulk."""

from __future__ import annotations

from django.test import Client

from relay.models import Change, Upstream
from tests.admin.conftest import SignIn

CONSEQUENCE = "Callers get 404 at once; exchanges that are running finish."


def delete_url(upstream: Upstream) -> str:
    return f"/admin/relay/upstream/{upstream.pk}/delete/"


def test_deleting_one_names_what_stops_working(admin_client: Client, weather: Upstream) -> None:
    page = admin_client.get(delete_url(weather)).content.decode()
    assert "Weather service: <code>http://testserver/relay/weather/</code>" in page
    assert CONSEQUENCE in page
    assert "rule-secret" not in page


def test_deleting_one_is_recorded(admin_client: Client, weather: Upstream) -> None:
    revision = Change.objects.get(slug="weather").revision
    assert admin_client.post(delete_url(weather), {"post": "yes"}).status_code == 302
    assert not Upstream.objects.exists()
    assert Change.objects.get(slug="weather").revision > revision


def test_deleting_in_bulk_names_each(admin_client: Client, weather: Upstream, billing: Upstream) -> None:
    chosen = {"action": "delete_selected", "_selected_action": [weather.pk, billing.pk]}
    page = admin_client.post("/admin/relay/upstream/", chosen).content.decode()
    assert "These 2 relay URLs stop working" in page
    assert "http://testserver/relay/weather/" in page
    assert "http://testserver/relay/billing/" in page
    assert CONSEQUENCE in page
    admin_client.post("/admin/relay/upstream/", {**chosen, "post": "yes"})
    assert not Upstream.objects.exists()


def test_deleting_is_a_right_of_its_own(sign_in: SignIn, weather: Upstream) -> None:
    changer = sign_in("view_upstream", "change_upstream")
    assert changer.post(delete_url(weather), {"post": "yes"}).status_code == 403
    deleter = sign_in("view_upstream", "delete_upstream")
    assert deleter.post(delete_url(weather), {"post": "yes"}).status_code == 302
