"""Where an upstream points is a right of its own, whatever is posted."""

from __future__ import annotations

from typing import Any

import pytest
import trustme
from django.contrib.auth.models import Permission
from django.test import Client

from relay.models import Upstream
from relay.models.upstreams import POINTING_FIELDS
from tests.admin.conftest import SignIn
from tests.admin.filled_form import filled_form

ADD = "/admin/relay/upstream/add/"
ELSEWHERE: dict[str, str | None] = {
    "base_url": "https://attacker.example",
    "host_header": "caller",
    "allowed_networks": "0.0.0.0/0",
    "verify_tls": None,
    "ca_bundle": trustme.CA().cert_pem.bytes().decode(),
    "outbound_proxy": "http://attacker.example:3128",
}


def change_url(upstream: Upstream) -> str:
    return f"/admin/relay/upstream/{upstream.pk}/change/"


def pointing(upstream: Upstream) -> dict[str, Any]:
    return Upstream.objects.filter(pk=upstream.pk).values(*POINTING_FIELDS).get()


@pytest.fixture
def editor(sign_in: SignIn) -> Client:
    """Who may do all with upstreams but point them."""
    rules = ("add_headerrule", "change_headerrule", "view_headerrule")
    return sign_in("view_upstream", "add_upstream", "change_upstream", "delete_upstream", *rules)


def test_the_right_is_about_these_fields() -> None:
    assert set(ELSEWHERE) == set(POINTING_FIELDS)


@pytest.mark.parametrize("field", POINTING_FIELDS)
def test_without_the_right_what_is_posted_changes_nothing(editor: Client, weather: Upstream, field: str) -> None:
    before = pointing(weather)
    form = filled_form(weather, description="Ours", **{field: ELSEWHERE[field]})
    assert editor.post(change_url(weather), form).status_code == 302
    assert Upstream.objects.get().description == "Ours"
    assert pointing(weather) == before


def test_with_the_right_it_does(sign_in: SignIn, weather: Upstream) -> None:
    client = sign_in("view_upstream", "change_upstream", "point_upstream")
    assert client.post(change_url(weather), filled_form(weather, **ELSEWHERE)).status_code == 302
    changed = pointing(weather)
    assert (changed["base_url"], changed["verify_tls"]) == ("https://attacker.example", False)
    assert all(changed[field] != getattr(weather, field) for field in POINTING_FIELDS)


def test_without_the_right_the_form_shows_where_it_points_and_no_password(editor: Client, weather: Upstream) -> None:
    page = editor.get(change_url(weather)).content.decode()
    assert "https://api.weather.example/v1" in page
    assert "proxy-pass" not in page
    assert "(hidden)" in page
    assert not any(f'name="{field}"' in page for field in POINTING_FIELDS)
    assert 'name="_saveasnew"' not in page


def test_adding_takes_the_right_to_point(editor: Client, sign_in: SignIn) -> None:
    form = filled_form(Upstream(slug="new", base_url="https://new.example"))
    assert editor.get(ADD).status_code == 403
    assert editor.post(ADD, form).status_code == 403
    assert "Register an upstream" not in editor.get("/admin/").content.decode()
    assert sign_in("point_upstream", "view_upstream").post(ADD, form).status_code == 403
    assert not Upstream.objects.exists()


def test_save_as_new_is_no_way_around_it(editor: Client, weather: Upstream) -> None:
    form = filled_form(weather, slug="copy", _saveasnew="1", **ELSEWHERE)
    before = pointing(weather)
    assert editor.post(change_url(weather), form).status_code == 403
    assert Upstream.objects.count() == 1
    assert pointing(weather) == before


def test_the_right_to_point_alone_changes_nothing(sign_in: SignIn, weather: Upstream) -> None:
    client = sign_in("view_upstream", "point_upstream")
    assert client.post(change_url(weather), filled_form(weather, **ELSEWHERE)).status_code == 403


def test_deleting_and_switching_off_are_the_editors(editor: Client, weather: Upstream) -> None:
    editor.post("/admin/relay/upstream/", {"action": "switch_off", "_selected_action": [weather.pk]})
    assert not Upstream.objects.get().enabled
    assert editor.post(f"/admin/relay/upstream/{weather.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not Upstream.objects.exists()


def test_the_rights_read_well_in_the_groups_form(admin_client: Client) -> None:
    names = Permission.objects.filter(content_type__app_label="relay")
    told = dict(names.values_list("codename", "name"))
    assert told["point_upstream"] == "Can change where an upstream points"
    assert told["issue_apikey"] == "Can see and issue keys"
    assert {name for name in told if name.endswith("_auditentry")} == {"view_auditentry"}
    page = admin_client.get("/admin/auth/group/add/").content.decode()
    assert "Can change where an upstream points" in page
