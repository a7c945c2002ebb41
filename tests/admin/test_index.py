"""The start page and what hangs on it: numbers, docs, sign-in, users and groups."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from pytest_django.fixtures import Settings

from relay.admin import documentation
from relay.models import ApiKey, Consumer, Upstream
from tests.admin.conftest import SignIn


def test_the_numbers_are_those_of_the_lists_they_lead_to(
    admin_client: Client, weather: Upstream, billing: Upstream, batch: Consumer, key: ApiKey
) -> None:
    Upstream.objects.create(slug="open", base_url="https://open.example", access="anyone", verify_tls=False)
    ApiKey.issue(batch, expires_at=timezone.now() + timedelta(days=6))
    ApiKey.issue(Consumer.objects.create(name="off", enabled=False))
    ApiKey.objects.filter(pk=key.pk).update(created_at=timezone.now() - timedelta(days=91))
    groups = admin_client.get("/admin/").context_data["figure_groups"]
    assert [(title, [(figure.label, figure.count) for figure in figures]) for title, figures in groups] == [
        (
            "Upstreams",
            [
                ("Live", 2),
                ("Switched off", 1),
                ("Live and open to anyone", 2),
                ("Live with TLS verification off", 1),
            ],
        ),
        (
            "Callers",
            [
                ("Consumers", 2),
                ("Live keys", 2),
                ("Keys that expire within 7 days", 1),
                ("Keys unused for 90 days", 1),
            ],
        ),
    ]
    page = admin_client.get("/admin/").content.decode()
    for figure in (figure for _, figures in groups for figure in figures):
        assert admin_client.get(figure.page).context_data["cl"].result_count == figure.count
        assert figure.page.replace("&", "&amp;") in page


def test_readers_get_numbers_but_no_button(sign_in: SignIn, weather: Upstream) -> None:
    page = sign_in("view_upstream").get("/admin/").content.decode()
    assert "Live and open to anyone" in page
    assert "Register an upstream" not in page
    assert "Consumers" not in page


def test_the_numbers_of_keys_are_for_those_who_may_issue_them(sign_in: SignIn, key: ApiKey) -> None:
    page = sign_in("view_consumer").get("/admin/").content.decode()
    assert "Consumers" in page
    assert "Live keys" not in page
    page = sign_in("issue_apikey").get("/admin/").content.decode()
    assert "Live keys" in page
    assert "Issue a key" in page
    assert "/admin/relay/consumer/" not in page


def test_staff_without_rights_learn_nothing(sign_in: SignIn, weather: Upstream) -> None:
    page = sign_in().get("/admin/").content.decode()
    assert "Live and open to anyone" not in page
    assert "/admin/relay/upstream/" not in page.replace("/admin/relay/upstream/docs/", "")


def test_the_index_links_to_docs_that_can_be_read(admin_client: Client) -> None:
    names = [page.name for page in documentation.pages()]
    assert "configuration" in names
    index = admin_client.get("/admin/").content.decode()
    for name in names:
        assert f'href="/admin/relay/upstream/docs/{name}/"' in index
        assert admin_client.get(f"/admin/relay/upstream/docs/{name}/").status_code == 200
    assert "RELAY_DATA_DIR" in admin_client.get("/admin/relay/upstream/docs/configuration/").content.decode()


def test_docs_are_for_staff_and_for_those_pages_alone(admin_client: Client, client: Client) -> None:
    assert admin_client.get("/admin/relay/upstream/docs/nothing/").status_code == 404
    assert client.get("/admin/relay/upstream/docs/configuration/").status_code == 302


def test_an_installation_without_docs_has_no_pages(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "somebody-elses.md").write_text("# Not ours\n")
    assert documentation.pages(tmp_path) == []
    (tmp_path / "manage.py").touch()
    (tmp_path / "docs" / "untitled-notes.md").write_text("Just text\n")
    assert [(page.name, page.title, page.text) for page in documentation.pages(tmp_path)] == [
        ("somebody-elses", "Not ours", ""),
        ("untitled-notes", "Untitled notes", "Just text\n"),
    ]


def test_signing_in_without_a_page_in_mind_leads_to_the_index(client: Client, admin_user: User) -> None:
    response = client.post("/admin/login/", {"username": "admin", "password": "password"})
    assert response.headers["Location"] == "/admin/"


@pytest.mark.parametrize("page", ["user/", "user/add/", "user/{}/change/", "user/{}/password/", "group/", "group/add/"])
def test_users_and_groups_have_their_pages(admin_client: Client, admin_user: User, page: str) -> None:
    assert admin_client.get(f"/admin/auth/{page.format(admin_user.pk)}").status_code == 200


def test_the_overview_warns_while_relay_and_admin_share_an_origin(
    admin_client: Client, sign_in: SignIn, settings: Settings
) -> None:
    warning = "Relayed pages and the admin share an origin"
    assert warning in admin_client.get("/admin/").content.decode()
    assert warning not in sign_in().get("/admin/").content.decode()
    settings.RELAY_HOSTS = ["relay.test"]
    assert warning not in admin_client.get("/admin/").content.decode()
