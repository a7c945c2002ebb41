"""Consumers in the admin: the list, the form with its grants, the bulk switches, and what deletion says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone

from relay.models import ApiKey, Consumer, ConsumerChange, Grant, Upstream
from tests.admin.conftest import SignIn

LIST = "/admin/relay/consumer/"


def change_url(consumer: Consumer) -> str:
    return f"{LIST}{consumer.pk}/change/"


def filled_form(
    consumer: Consumer | None = None, *, new_grants: Iterable[Mapping[str, Any]] = (), **changes: Any
) -> dict[str, Any]:
    """What a browser posts."""
    posted: dict[str, Any] = {"name": "new", "enabled": "on", "notes": "", "owner": ""}
    grants: list[Mapping[str, Any]] = []
    if consumer is not None:
        posted |= {"name": consumer.name, "notes": consumer.notes, "owner": consumer.owner_id or ""}
        grants = [
            {
                "id": grant.pk,
                "consumer": consumer.pk,
                "upstream": grant.upstream_id,
                "methods": grant.methods,
                "path_prefixes": grant.path_prefixes.replace("\n", "\r\n"),
            }
            for grant in consumer.grants.all()
        ]
    posted |= {"grants-INITIAL_FORMS": len(grants), "grants-MIN_NUM_FORMS": 0, "grants-MAX_NUM_FORMS": 1000}
    grants += [{"methods": "", "path_prefixes": "", **grant} for grant in new_grants]
    posted["grants-TOTAL_FORMS"] = len(grants)
    for number, grant in enumerate(grants):
        posted |= {f"grants-{number}-{name}": value for name, value in grant.items()}
    return posted | changes


def rows(client: Client, query: str = "") -> dict[str, Any]:
    response = client.get(f"{LIST}{query}")
    assert response.status_code == 200
    return {consumer.name: consumer for consumer in response.context_data["cl"].result_list}


# The list.


def test_a_row_tells_owner_state_keys_upstreams_and_use(
    admin_client: Client, batch: Consumer, forecast: Grant, key: ApiKey
) -> None:
    ApiKey.objects.update(last_used_at=timezone.now().replace(year=2025, month=3, day=4))
    ApiKey.issue(batch)[0].revoke()
    group = Group.objects.create(name="data")
    batch.owner.groups.add(group)  # type: ignore[union-attr]  # it has one
    for slug in ("one", "two"):
        Grant.objects.create(group=group, upstream=Upstream.objects.create(slug=slug, base_url="https://a.example"))
    Grant.objects.create(group=group, upstream=forecast.upstream)
    row = rows(admin_client)["batch"]
    assert (row.key_count, row.upstream_count) == (1, 3)
    page = re.sub(r"\s+", " ", admin_client.get(LIST).content.decode())
    for words in ("ann", "Live", "2025-03-04"):
        assert words in page


def test_a_consumer_that_is_off_has_no_live_keys(admin_client: Client, batch: Consumer, key: ApiKey) -> None:
    User.objects.filter(username="ann").update(is_active=False)
    assert rows(admin_client)["batch"].key_count == 0
    assert "Off with its owner" in admin_client.get(LIST).content.decode()
    Consumer.objects.update(enabled=False)
    assert "Switched off" in admin_client.get(LIST).content.decode()


def test_the_list_is_searched_and_filtered(admin_client: Client, batch: Consumer, key: ApiKey) -> None:
    Consumer.objects.create(name="other", enabled=False, notes="for the night")
    for query in ("?q=bat", "?q=ann", "?enabled__exact=1", "?keys=live", "?owner__isempty=0"):
        assert list(rows(admin_client, query)) == ["batch"]
    for query in ("?q=night", "?enabled__exact=0", "?keys=none", "?owner__isempty=1"):
        assert list(rows(admin_client, query)) == ["other"]


@pytest.mark.parametrize("column", range(1, 8))
def test_every_column_sorts(admin_client: Client, batch: Consumer, column: int) -> None:
    Consumer.objects.create(name="other")
    assert set(rows(admin_client, f"?o=-{column}")) == {"batch", "other"}


@pytest.mark.parametrize("lookup", ["keys__digest__startswith=a", "owner__password__startswith=md5"])
def test_lookups_cannot_ask_for_secrets(sign_in: SignIn, batch: Consumer, lookup: str) -> None:
    assert sign_in("view_consumer").get(f"{LIST}?{lookup}").status_code == 400


def test_an_empty_list_says_what_to_do(admin_client: Client, sign_in: SignIn) -> None:
    assert "Make the first consumer" in admin_client.get(LIST).content.decode()
    page = sign_in("view_consumer").get(LIST).content.decode()
    assert "No consumers yet" in page
    assert "Make the first consumer" not in page


def test_switching_in_bulk_is_recorded(admin_client: Client, admin_user: User, batch: Consumer) -> None:
    revision = ConsumerChange.objects.get().revision
    chosen = {"action": "switch_off", "_selected_action": [batch.pk]}
    page = admin_client.post(LIST, chosen, follow=True).content.decode()
    assert "1 consumer switched off." in page
    batch.refresh_from_db()
    assert (batch.enabled, batch.changed_by) == (False, admin_user)
    assert ConsumerChange.objects.get().revision > revision
    assert (
        "0 consumers switched off; 1 was off already." in admin_client.post(LIST, chosen, follow=True).content.decode()
    )


def test_the_list_costs_the_same_for_many_rows(
    admin_client: Client, batch: Consumer, forecast: Grant, django_assert_max_num_queries: Any
) -> None:
    for number in range(40):
        consumer = Consumer.objects.create(name=f"c{number}", owner=batch.owner)
        Grant.objects.create(consumer=consumer, upstream=forecast.upstream)
    with django_assert_max_num_queries(8):
        assert len(rows(admin_client)) == 41


# The form.


def test_making_a_consumer_leads_to_its_page_and_its_first_key(
    admin_client: Client, admin_user: User, weather: Upstream
) -> None:
    form = filled_form(new_grants=[{"upstream": weather.pk, "methods": "get post", "path_prefixes": "/v1\r\n/v2"}])
    response = admin_client.post(f"{LIST}add/", form, follow=True)
    new = Consumer.objects.get()
    assert response.redirect_chain == [(change_url(new), 302)]
    page = response.content.decode()
    assert "Issue the first key" in page
    assert f"/admin/relay/apikey/add/?consumer={new.pk}" in page
    assert (new.created_by, new.changed_by) == (admin_user, admin_user)
    grant = new.grants.get()
    assert (grant.methods, grant.path_prefixes) == ("GET, POST", "/v1\n/v2")


@pytest.mark.parametrize(
    ("grant", "field", "words"),
    [
        ({"methods": "CONNECT"}, "methods", "leave it out"),
        ({"path_prefixes": "v1"}, "path_prefixes", "write /v1"),
        ({"path_prefixes": "/a/../b"}, "path_prefixes", "leave out dot segments"),
    ],
)
def test_what_is_wrong_with_a_grant_is_said_at_its_field(
    admin_client: Client, weather: Upstream, grant: dict[str, str], field: str, words: str
) -> None:
    form = filled_form(new_grants=[{"upstream": weather.pk, **grant}])
    response = admin_client.post(f"{LIST}add/", form)
    errors = response.context_data["inline_admin_formsets"][0].formset.errors[0]
    assert list(errors) == [field]
    assert words in errors[field][0]
    assert not Consumer.objects.exists()


def test_an_edit_of_grants_alone_changes_the_consumer(
    admin_client: Client, admin_user: User, batch: Consumer, forecast: Grant
) -> None:
    before, revision = batch.changed_at, ConsumerChange.objects.get().revision
    form = filled_form(batch) | {"grants-0-methods": "GET, PUT"}
    assert admin_client.post(change_url(batch), form).status_code == 302
    batch.refresh_from_db()
    forecast.refresh_from_db()
    assert (batch.changed_by, forecast.methods) == (admin_user, "GET, PUT")
    assert batch.changed_at > before
    assert ConsumerChange.objects.get().revision > revision


def test_saving_without_an_edit_changes_nothing(admin_client: Client, batch: Consumer, forecast: Grant) -> None:
    revision = ConsumerChange.objects.get().revision
    assert admin_client.post(change_url(batch), filled_form(batch)).status_code == 302
    batch.refresh_from_db()
    assert batch.changed_by is None
    assert ConsumerChange.objects.get().revision == revision


def test_a_taken_name_says_what_to_do(admin_client: Client, batch: Consumer) -> None:
    page = admin_client.post(f"{LIST}add/", filled_form(name="batch")).content.decode()
    assert "Another consumer has this name: choose another." in page


def test_the_page_lists_keys_with_state_and_what_to_do(admin_client: Client, batch: Consumer, key: ApiKey) -> None:
    old, _ = ApiKey.issue(batch)
    following, _ = old.rotate(grace=timedelta(hours=2))
    dead, _ = ApiKey.issue(batch)
    dead.revoke()
    page = re.sub(r"\s+", " ", admin_client.get(change_url(batch)).content.decode())
    assert f"by {following}, works until {timezone.localtime(old.expires_at):%Y-%m-%d %H:%M}" in page
    assert f'aria-label="Rotate {key}"' in page
    assert f'aria-label="Revoke {old}"' in page
    assert f'aria-label="Rotate {old}"' not in page
    assert f'aria-label="Revoke {dead}"' not in page
    assert "laptop" in page
    assert key.digest not in page


def test_the_page_says_what_the_owners_groups_lend(admin_client: Client, batch: Consumer, weather: Upstream) -> None:
    group = Group.objects.create(name="data team")
    batch.owner.groups.add(group)  # type: ignore[union-attr]  # it has one
    Grant.objects.create(group=group, upstream=weather, methods="GET")
    page = re.sub(r"\s+", " ", admin_client.get(change_url(batch)).content.decode())
    assert "What it may do by its owner's groups" in page
    assert "Weather service" in page
    assert "group data team" in page


def test_readers_cannot_change(sign_in: SignIn, batch: Consumer) -> None:
    client = sign_in("view_consumer", "view_grant")
    assert client.get(change_url(batch)).status_code == 200
    assert client.post(change_url(batch), filled_form(batch, name="mine")).status_code == 403
    assert client.get(f"{LIST}add/").status_code == 403


def test_grants_are_a_right_of_their_own(sign_in: SignIn, batch: Consumer, weather: Upstream) -> None:
    client = sign_in("view_consumer", "change_consumer")
    form = filled_form(batch, new_grants=[{"upstream": weather.pk}])
    assert client.post(change_url(batch), form).status_code == 302
    assert not Grant.objects.exists()


# Deletion.


def test_deleting_says_that_the_keys_stop_and_takes_live_ones_along(
    sign_in: SignIn, batch: Consumer, forecast: Grant, key: ApiKey
) -> None:
    client = sign_in("view_consumer", "delete_consumer")
    url = f"{LIST}{batch.pk}/delete/"
    page = client.get(url).content.decode()
    for words in ("batch: 1 live key", "callers get 401", "open streams are cut"):
        assert words in page
    assert client.post(url, {"post": "yes"}).status_code == 302
    assert not Consumer.objects.exists()
    assert not ApiKey.objects.exists()


def test_deleting_in_bulk_names_each(admin_client: Client, batch: Consumer, key: ApiKey) -> None:
    other = Consumer.objects.create(name="other")
    chosen = {"action": "delete_selected", "_selected_action": [batch.pk, other.pk]}
    page = admin_client.post(LIST, chosen).content.decode()
    for words in ("The keys of these 2 consumers open nothing any more", "batch: 1 live key", "other: 0 live keys"):
        assert words in page
    admin_client.post(LIST, {**chosen, "post": "yes"})
    assert not Consumer.objects.exists()
