"""The list of upstreams: what a row tells, how rows are found, and the bulk switches."""

from __future__ import annotations

import re

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client

from relay.models import Change, Revision, Upstream
from tests.admin.conftest import SignIn

LIST = "/admin/relay/upstream/"


def rows(client: Client, query: str = "") -> set[str]:
    """The slugs of the upstreams listed."""
    response = client.get(f"{LIST}{query}")
    assert response.status_code == 200
    return {upstream.slug for upstream in response.context_data["cl"].result_list}


def act(client: Client, action: str, *chosen: Upstream) -> str:
    """The text of the page that follows."""
    data = {"action": action, "_selected_action": [upstream.pk for upstream in chosen]}
    return client.post(LIST, data, follow=True).content.decode()


def test_a_row_tells_name_slug_urls_access_state_and_last_change(
    admin_client: Client, admin_user: User, weather: Upstream, billing: Upstream
) -> None:
    Upstream.objects.filter(slug="weather").update(changed_by=admin_user)
    page = admin_client.get(LIST).content.decode()
    row = re.sub(
        r"\s+", " ", page[page.index("Weather service") : page.index("</tbody>", page.index("Weather service"))]
    )
    assert "<code>http://testserver/relay/weather/</code>" in row
    assert 'aria-label="Copy the relay URL of Weather service"' in row
    assert "https://api.weather.example/v1" in row
    for words in ("weather", "Anyone", "Live", f"by {admin_user}", f"{weather.changed_at:%Y-%m-%d}"):
        assert words in row
    for words in ("With a key", "Switched off", "http://testserver/relay/billing/"):
        assert words in page


def test_the_relay_url_is_the_one_of_the_host_the_admin_was_reached_by(admin_client: Client, weather: Upstream) -> None:
    page = admin_client.get(LIST, headers={"host": "127.0.0.1:9999"}).content.decode()
    assert "<code>http://127.0.0.1:9999/relay/weather/</code>" in page


@pytest.mark.parametrize("words", ["weather", "Weather serv", "api.weather.example"])
def test_search_finds_slug_name_and_host(
    admin_client: Client, weather: Upstream, billing: Upstream, words: str
) -> None:
    assert rows(admin_client, f"?q={words}") == {"weather"}


@pytest.mark.parametrize(
    "query",
    [
        "enabled__exact=1",
        "access__exact=anyone",
        "verify_tls__exact=1",
        "outbound_proxy__isempty=0",
        "allowed_networks__isempty=0",
    ],
)
def test_filters_narrow_the_list(admin_client: Client, weather: Upstream, billing: Upstream, query: str) -> None:
    assert rows(admin_client, f"?{query}") == {"weather"}
    assert rows(admin_client, "?delivery__exact=stream") == {"weather", "billing"}


@pytest.mark.parametrize("column", range(1, 7))
def test_every_column_sorts(admin_client: Client, weather: Upstream, billing: Upstream, column: int) -> None:
    assert rows(admin_client, f"?o=-{column}") == {"weather", "billing"}


@pytest.mark.parametrize(
    "query",
    [
        "outbound_proxy__startswith=http://proxy-user:p",
        "outbound_proxy=http://proxy-user:proxy-pass@proxy.example:3128",
        "header_rules__value__startswith=Bearer",
        "changed_by__password__startswith=md5",
    ],
)
def test_lookups_cannot_ask_for_secrets(sign_in: SignIn, weather: Upstream, query: str) -> None:
    assert sign_in("view_upstream").get(f"{LIST}?{query}").status_code == 400


def test_an_empty_list_says_what_to_do(admin_client: Client, sign_in: SignIn) -> None:
    page = admin_client.get(LIST).content.decode()
    assert "No upstreams yet" in page
    assert "Register the first upstream" in page
    assert "Register the first upstream" not in sign_in("view_upstream").get(LIST).content.decode()


def test_a_search_without_hits_is_not_an_empty_list(admin_client: Client, weather: Upstream) -> None:
    page = admin_client.get(f"{LIST}?q=nothing-like-it").content.decode()
    assert "No upstreams yet" not in page
    assert "No results found" in page


def test_switching_off_in_bulk_counts_and_is_recorded(
    admin_client: Client, admin_user: User, weather: Upstream, billing: Upstream
) -> None:
    revision = Revision.objects.get().value
    assert "1 upstream switched off; 1 was off already." in act(admin_client, "switch_off", weather, billing)
    before = weather.changed_at
    weather.refresh_from_db()
    assert not weather.enabled
    assert weather.changed_by == admin_user
    assert weather.changed_at > before
    assert Change.objects.get(slug="weather").revision > revision
    assert [(entry.object_id, entry.change_message) for entry in LogEntry.objects.all()] == [
        (str(weather.pk), "Switched off.")
    ]


def test_switching_on_leaves_alone_what_is_on(
    admin_client: Client, admin_user: User, weather: Upstream, billing: Upstream
) -> None:
    assert "1 upstream switched on; 1 was on already." in act(admin_client, "switch_on", weather, billing)
    assert Upstream.objects.get(slug="billing").changed_by == admin_user
    assert Upstream.objects.get(slug="weather").changed_by is None
    assert "0 upstreams switched on; 2 were on already." in act(admin_client, "switch_on", weather, billing)


def test_readers_have_no_bulk_actions(sign_in: SignIn, weather: Upstream) -> None:
    client = sign_in("view_upstream")
    assert b"switch_off" not in client.get(LIST).content
    act(client, "switch_off", weather)
    assert Upstream.objects.get().enabled


def test_deleting_and_switching_are_rights_of_their_own(sign_in: SignIn, weather: Upstream) -> None:
    changer = sign_in("view_upstream", "change_upstream").get(LIST).content
    deleter = sign_in("view_upstream", "delete_upstream").get(LIST).content
    assert b"switch_off" in changer
    assert b"delete_selected" not in changer
    assert b"switch_off" not in deleter
    assert b"delete_selected" in deleter


def test_the_list_costs_the_same_for_many_rows(
    admin_client: Client, admin_user: User, weather: Upstream, django_assert_max_num_queries: object
) -> None:
    many = (Upstream(slug=f"u{number}", base_url="http://u.example", changed_by=admin_user) for number in range(40))
    Upstream.objects.bulk_create(many)
    with django_assert_max_num_queries(8):  # type: ignore[operator]  # a fixture without a type of its own
        assert len(rows(admin_client)) == 41
