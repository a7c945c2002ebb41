"""Keys in the admin: who may, what is shown once and kept nowhere, rotating, revoking, deleting, the list."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core import serializers
from django.test import Client
from django.utils import timezone

from relay import vault
from relay.catalog import consumers
from relay.catalog.roster import Roster
from relay.models import ApiKey, Consumer, ConsumerChange, Grant, Upstream
from tests.admin.conftest import SignIn

LIST = "/admin/relay/apikey/"
ISSUE = f"{LIST}add/"
WHOLE_KEY = re.compile(r"rk_[a-km-np-z2-9]{8}[A-Za-z0-9_-]{43}")


def issue(client: Client, query: str = "", **fields: Any) -> Any:
    """What a browser posts: the page's own fields, then what one changes."""
    opened = client.get(f"{ISSUE}{query}").context_data["form"]["opened"].value()
    return client.post(f"{ISSUE}{query}", {"ends": "never", "opened": opened, **fields})


def page_of(key: ApiKey, end: str = "change") -> str:
    return f"{LIST}{key.pk}/{end}/"


def key_in(response: Any) -> str:
    """The one key of the page."""
    found = set(WHOLE_KEY.findall(response.content.decode()))
    assert len(found) == 1
    return str(found.pop())


def assert_live(text: str, consumer: Consumer) -> None:
    digests = vault.keyring().digests(text.encode())
    roster = Roster(consumers.read(consumers.rows()))
    found = [key for digest in digests if (key := roster.find(digest))]
    assert [key.consumer.id for key in found] == [consumer.id]


def assert_kept_nowhere(text: str, client: Client) -> None:
    """Of a key, the database has its prefix and digest, and the session and the cookies nothing."""
    secret = text[11:]
    rows = [*ApiKey.objects.all(), *Consumer.objects.all(), *Grant.objects.all(), *LogEntry.objects.all()]
    kept = serializers.serialize("json", rows)
    kept += "".join(str(session.get_decoded()) for session in Session.objects.all())
    kept += str(client.cookies)
    assert secret not in kept
    assert text[:11] in kept


# Issuing.


def test_a_new_key_is_shown_once_with_examples_and_works(
    admin_client: Client, admin_user: User, batch: Consumer, forecast: Grant, caplog: pytest.LogCaptureFixture
) -> None:
    response = issue(admin_client, f"?consumer={batch.pk}", label="production")
    text = key_in(response)
    page = response.content.decode()
    assert "it is shown this once" in page
    assert f"curl -H &#x27;Relay-Key: {text}&#x27; http://testserver/relay/forecast/v1/days" in page
    assert f"curl -N -H &#x27;Relay-Key: {text}&#x27;" in page
    assert "httpx.stream(&quot;GET&quot;, &quot;http://testserver/relay/forecast/v1/days&quot;" in page
    assert "await fetch(&quot;http://testserver/relay/forecast/v1/days&quot;" in page
    row = ApiKey.objects.get()
    assert (row.consumer, row.label, row.expires_at, row.created_by) == (batch, "production", None, admin_user)
    assert row.digest not in page
    assert_live(text, batch)
    assert_kept_nowhere(text, admin_client)
    assert text[11:] not in caplog.text
    for url in (LIST, page_of(row), page_of(row, "history"), f"/admin/relay/consumer/{batch.pk}/change/"):
        later = admin_client.get(url, follow=True).content.decode()
        assert row.prefix in later
        assert text[11:] not in later
        assert row.digest not in later


def test_the_page_with_the_key_is_kept_by_no_cache_and_tells_no_referrer(admin_client: Client, batch: Consumer) -> None:
    response = issue(admin_client, f"?consumer={batch.pk}")
    assert key_in(response)
    assert "no-store" in response.headers["Cache-Control"]
    assert response.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_sent_again_issues_no_second_key(admin_client: Client, batch: Consumer) -> None:
    opened = admin_client.get(f"{ISSUE}?consumer={batch.pk}").context_data["form"]["opened"].value()
    fields = {"ends": "never", "opened": opened}
    assert key_in(admin_client.post(f"{ISSUE}?consumer={batch.pk}", fields))
    again = admin_client.post(f"{ISSUE}?consumer={batch.pk}", fields)
    assert ApiKey.objects.count() == 1
    page = again.content.decode()
    assert "batch was issued the key" in page
    assert "by admin since this page was opened" in page
    assert not WHOLE_KEY.search(page)
    meant = admin_client.post(
        f"{ISSUE}?consumer={batch.pk}", {**fields, "opened": again.context_data["form"]["opened"].value()}
    )
    assert key_in(meant)
    assert ApiKey.objects.count() == 2


def test_a_new_consumer_a_grant_and_a_key_are_made_together(
    admin_client: Client, admin_user: User, weather: Upstream
) -> None:
    fields = {"new_consumer": " mobile  app ", "upstream": weather.pk}
    text = key_in(issue(admin_client, f"?upstream={weather.pk}", **fields))
    consumer = Consumer.objects.get()
    assert (consumer.name, consumer.created_by) == ("mobile app", admin_user)
    grant = Grant.objects.get()
    assert (grant.consumer, grant.upstream, grant.methods, grant.path_prefixes) == (consumer, weather, "", "")
    assert_live(text, consumer)
    again = issue(admin_client, **fields)
    assert "There is a consumer of this name already: choose it above." in again.content.decode()
    assert ApiKey.objects.count() == 1


def test_a_grant_that_is_there_is_neither_doubled_nor_widened(
    admin_client: Client, batch: Consumer, forecast: Grant
) -> None:
    assert key_in(issue(admin_client, f"?consumer={batch.pk}", upstream=forecast.upstream.pk))
    assert Grant.objects.get().methods == "GET"


@pytest.mark.parametrize(("ends", "days"), [("30", 30), ("90", 90), ("365", 365)])
def test_a_key_can_be_given_an_end(admin_client: Client, batch: Consumer, ends: str, days: int) -> None:
    before = timezone.now()
    issue(admin_client, f"?consumer={batch.pk}", ends=ends)
    end = ApiKey.objects.get().expires_at
    assert end is not None
    assert before <= end - timedelta(days=days) <= timezone.now()


def test_a_key_works_until_the_end_of_its_last_day(admin_client: Client, batch: Consumer) -> None:
    issue(admin_client, f"?consumer={batch.pk}", ends="date", ends_on="2099-01-31")
    end = ApiKey.objects.get().expires_at
    assert end is not None
    assert f"{timezone.localtime(end):%Y-%m-%d %H:%M:%S}" == "2099-02-01 00:00:00"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "Say who is to have the key."),
        ({"new_consumer": "!"}, "Use letters, digits, spaces"),
        ({"new_consumer": "a", "ends": "date"}, "Give the last day on which it works"),
        ({"new_consumer": "a", "ends": "date", "ends_on": "2020-01-01"}, "This day is over"),
        ({"new_consumer": "a", "ends_on": "2099-01-01"}, "Leave the day empty"),
        ({"new_consumer": "a", "opened": "nonsense"}, "look it over and press Issue again"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_made(admin_client: Client, fields: dict[str, str], words: str) -> None:
    response = issue(admin_client, **fields)
    assert words in response.content.decode()
    assert not Consumer.objects.exists()
    assert not ApiKey.objects.exists()


def test_a_consumer_is_chosen_or_made_not_both(admin_client: Client, batch: Consumer) -> None:
    response = issue(admin_client, consumer=batch.pk, new_consumer="other")
    assert "Choose a consumer or name a new one, not both." in response.content.decode()
    assert not ApiKey.objects.exists()


def test_links_that_ask_for_what_is_not_there_lead_to_the_plain_page(admin_client: Client, batch: Consumer) -> None:
    for query in (
        "?consumer=nonsense",
        "?consumer=00000000-0000-0000-0000-000000000000",
        "?upstream=x",
        "?upstream=99",
    ):
        assert "consumer" in admin_client.get(f"{ISSUE}{query}").context_data["form"].fields


def test_a_key_without_a_grant_says_that_it_opens_nothing(admin_client: Client, batch: Consumer) -> None:
    page = issue(admin_client, f"?consumer={batch.pk}").content.decode()
    assert "It opens nothing yet" in page


def test_making_consumers_and_grants_on_the_way_are_rights_of_their_own(
    sign_in: SignIn, batch: Consumer, weather: Upstream
) -> None:
    client = sign_in("issue_apikey")
    fields = client.get(ISSUE).context_data["form"].fields
    assert "new_consumer" not in fields
    assert "upstream" not in fields
    assert key_in(issue(client, f"?consumer={batch.pk}", upstream=weather.pk, new_consumer="other"))
    assert not Grant.objects.exists()
    assert [consumer.name for consumer in Consumer.objects.all()] == ["batch"]


def test_getting_pages_issues_and_changes_nothing(admin_client: Client, batch: Consumer, key: ApiKey) -> None:
    admin_client.get(f"{ISSUE}?consumer={batch.pk}")
    admin_client.get(page_of(key, "rotate"))
    admin_client.get(page_of(key, "revoke"))
    assert ApiKey.objects.get().revoked_at is None


def test_posts_without_a_csrf_token_are_refused(admin_user: User, batch: Consumer, key: ApiKey) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    for url in (f"{ISSUE}?consumer={batch.pk}", page_of(key, "rotate"), page_of(key, "revoke")):
        assert client.post(url, {"ends": "never", "grace": "0", "opened": "2020-01-01"}).status_code == 403
    assert ApiKey.objects.get().revoked_at is None


# People without the permission.


@pytest.mark.parametrize(
    "rights", [(), ("view_consumer", "change_consumer", "view_apikey", "add_apikey", "change_apikey")]
)
def test_people_who_may_not_issue_keys_see_none_and_can_do_nothing(
    sign_in: SignIn, batch: Consumer, key: ApiKey, rights: tuple[str, ...]
) -> None:
    client = sign_in(*rights)
    for url in (LIST, ISSUE, page_of(key), page_of(key, "rotate"), page_of(key, "revoke"), page_of(key, "delete")):
        assert client.get(url).status_code == 403
        assert client.post(url, {"ends": "never", "grace": "0", "post": "yes"}).status_code == 403
    chosen = {"action": "revoke_selected", "_selected_action": [key.pk], "post": "yes"}
    assert client.post(LIST, chosen).status_code == 403
    row = ApiKey.objects.get()
    assert (row.revoked_at, row.rotated_to) == (None, None)
    assert b"/admin/relay/apikey/" not in client.get("/admin/").content
    if rights:
        page = client.get(f"/admin/relay/consumer/{batch.pk}/change/").content.decode()
        assert key.prefix not in page
        assert "/admin/relay/apikey/" not in page


# Rotating.


def test_rotating_shows_the_new_key_once_and_says_until_when_the_old_one_works(
    admin_client: Client, admin_user: User, batch: Consumer, key: ApiKey
) -> None:
    before = timezone.now()
    assert admin_client.get(page_of(key, "rotate")).context_data["form"]["grace"].value() == "86400"
    response = admin_client.post(page_of(key, "rotate"), {"grace": "86400", "ends": "never"})
    text = key_in(response)
    key.refresh_from_db()
    assert key.rotated_to is not None
    assert key.expires_at is not None
    assert before <= key.expires_at - timedelta(hours=24) <= timezone.now()
    assert (key.rotated_to.label, key.rotated_to.created_by) == ("laptop", admin_user)
    assert f"works until {timezone.localtime(key.expires_at):%Y-%m-%d %H:%M}" in response.content.decode()
    assert "no-store" in response.headers["Cache-Control"]
    assert_live(text, batch)
    assert_kept_nowhere(text, admin_client)


def test_a_rotation_sent_again_makes_no_third_key(admin_client: Client, key: ApiKey) -> None:
    fields = {"grace": "86400", "ends": "never"}
    assert key_in(admin_client.post(page_of(key, "rotate"), fields))
    page = admin_client.post(page_of(key, "rotate"), fields, follow=True).content.decode()
    assert "was not rotated. It was rotated already." in page
    assert not WHOLE_KEY.search(page)
    assert ApiKey.objects.count() == 2


def test_rotating_without_grace_ends_the_old_key_at_once(admin_client: Client, key: ApiKey) -> None:
    admin_client.post(page_of(key, "rotate"), {"grace": "0", "ends": "never"})
    key.refresh_from_db()
    assert not key.is_live(timezone.now())


def test_the_new_key_can_keep_the_end_of_the_old_one_or_get_another(admin_client: Client, batch: Consumer) -> None:
    end = timezone.now() + timedelta(days=3)
    for ends, expected in (("same", end), ("never", None)):
        key, _ = ApiKey.issue(batch, expires_at=end)
        assert admin_client.get(page_of(key, "rotate")).context_data["form"]["ends"].value() == "same"
        admin_client.post(page_of(key, "rotate"), {"grace": "3600", "ends": ends})
        key.refresh_from_db()
        assert key.rotated_to is not None
        assert key.rotated_to.expires_at == expected


def test_a_key_that_is_over_is_not_rotated(admin_client: Client, key: ApiKey) -> None:
    key.revoke()
    page = admin_client.post(page_of(key, "rotate"), {"grace": "0", "ends": "never"}, follow=True).content.decode()
    assert "It opens nothing any more: issue a new one." in page
    assert ApiKey.objects.count() == 1


# Revoking.


def test_revoking_asks_first_and_says_what_stops(admin_client: Client, batch: Consumer, key: ApiKey) -> None:
    page = admin_client.get(page_of(key, "revoke")).content.decode()
    for words in (str(key), "batch", "Last used: never", "in every worker within 2 seconds", "open streams are cut"):
        assert words in page
    revision = ConsumerChange.objects.get().revision
    page = admin_client.post(page_of(key, "revoke"), follow=True).content.decode()
    assert f"Revoked {key}. It acts in every worker within 2 seconds." in page
    key.refresh_from_db()
    assert key.revoked_at is not None
    assert ConsumerChange.objects.get().revision > revision
    assert [entry.get_change_message() for entry in LogEntry.objects.all()] == ["Revoked."]


def test_revoking_again_changes_nothing(admin_client: Client, key: ApiKey) -> None:
    key.revoke()
    moment = key.revoked_at
    page = admin_client.post(page_of(key, "revoke"), follow=True).content.decode()
    assert "was revoked already." in page
    key.refresh_from_db()
    assert key.revoked_at == moment


def test_revoking_in_bulk_asks_first(admin_client: Client, batch: Consumer, key: ApiKey) -> None:
    other, _ = ApiKey.issue(batch)
    dead, _ = ApiKey.issue(batch)
    dead.revoke()
    chosen = {"action": "revoke_selected", "_selected_action": [key.pk, other.pk, dead.pk]}
    page = admin_client.post(LIST, chosen).content.decode()
    assert "These 2 keys open nothing any more" in page
    assert str(dead) not in page
    assert ApiKey.objects.filter(revoked_at=None).count() == 2
    admin_client.post(LIST, {**chosen, "post": "yes"})
    assert not ApiKey.objects.filter(revoked_at=None).exists()
    assert "Every selected key was revoked already." in admin_client.post(LIST, chosen, follow=True).content.decode()


# Deleting.


def test_live_keys_are_not_deleted(admin_client: Client, batch: Consumer, key: ApiKey) -> None:
    assert admin_client.post(page_of(key, "delete"), {"post": "yes"}).status_code == 403
    dead, _ = ApiKey.issue(batch)
    dead.revoke()
    chosen = {"action": "delete_selected", "_selected_action": [key.pk, dead.pk], "post": "yes"}
    page = admin_client.post(LIST, chosen).content.decode()
    assert "Revoke live keys before you delete them" in page
    assert str(key) in page
    assert ApiKey.objects.count() == 2


def test_keys_that_are_over_can_be_deleted(admin_client: Client, batch: Consumer) -> None:
    revoked, _ = ApiKey.issue(batch)
    revoked.revoke()
    expired, _ = ApiKey.issue(batch, expires_at=timezone.now() - timedelta(seconds=1))
    assert admin_client.get(page_of(revoked, "delete")).status_code == 200
    assert admin_client.post(page_of(revoked, "delete"), {"post": "yes"}).status_code == 302
    chosen = {"action": "delete_selected", "_selected_action": [expired.pk]}
    assert str(expired) in admin_client.post(LIST, chosen).content.decode()
    admin_client.post(LIST, {**chosen, "post": "yes"})
    assert not ApiKey.objects.exists()


def test_deleting_keys_takes_djangos_right_too(sign_in: SignIn, key: ApiKey) -> None:
    key.revoke()
    assert sign_in("issue_apikey").post(page_of(key, "delete"), {"post": "yes"}).status_code == 403
    assert sign_in("issue_apikey", "delete_apikey").post(page_of(key, "delete"), {"post": "yes"}).status_code == 302


# The list and the page of one.


def prefixes(client: Client, query: str = "") -> set[str]:
    response = client.get(f"{LIST}{query}")
    assert response.status_code == 200
    return {key.prefix for key in response.context_data["cl"].result_list}


def test_an_empty_list_says_what_to_do(admin_client: Client) -> None:
    page = admin_client.get(LIST).content.decode()
    assert "No keys yet" in page
    assert "Issue the first key" in page


def test_filters_tell_the_states_apart(admin_client: Client, batch: Consumer) -> None:
    now = timezone.now()
    live, _ = ApiKey.issue(batch)
    expiring, _ = ApiKey.issue(batch, expires_at=now + timedelta(days=2))
    expired, _ = ApiKey.issue(batch, expires_at=now - timedelta(days=2))
    revoked, _ = ApiKey.issue(batch)
    revoked.revoke()
    replaced, _ = ApiKey.issue(batch)
    following, _ = replaced.rotate(grace=timedelta(hours=1))
    unused, _ = ApiKey.issue(batch)
    ApiKey.objects.filter(pk=unused.pk).update(created_at=now - timedelta(days=100))
    off, _ = ApiKey.issue(Consumer.objects.create(name="off", enabled=False))
    found = {
        state: prefixes(admin_client, f"?state={state}") for state in ("expiring", "expired", "revoked", "replaced")
    }
    assert found == {
        "expiring": {expiring.prefix},
        "expired": {expired.prefix},
        "revoked": {revoked.prefix},
        "replaced": {replaced.prefix},
    }
    assert prefixes(admin_client, "?state=unused") == {unused.prefix}
    working = {key.prefix for key in (live, expiring, replaced, following, unused)}
    assert prefixes(admin_client, "?state=live") == working
    assert off.prefix in prefixes(admin_client)
    page = re.sub(r"\s+", " ", admin_client.get(LIST).content.decode())
    for words in ("Live", "Expires in 1 day", "Expired", "Revoked", f"by {following}, works until", "Off with its"):
        assert words in page


@pytest.mark.parametrize("shown", ["{prefix}", "{prefix}…", "{prefix}{secret}", "lapt", "batch"])
def test_a_key_is_found_by_what_is_known_of_it(admin_client: Client, batch: Consumer, key: ApiKey, shown: str) -> None:
    ApiKey.issue(Consumer.objects.create(name="other"))
    words = shown.format(prefix=key.prefix, secret="A" * 43)
    assert prefixes(admin_client, f"?q={words}") == {key.prefix}


@pytest.mark.parametrize("lookup", ["digest__startswith=a", "hash_key_id=1", "consumer__owner__password__startswith=p"])
def test_lookups_cannot_ask_for_digests(sign_in: SignIn, key: ApiKey, lookup: str) -> None:
    assert sign_in("issue_apikey").get(f"{LIST}?{lookup}").status_code == 400


def test_the_keys_of_one_consumer_can_be_listed(admin_client: Client, batch: Consumer, key: ApiKey) -> None:
    ApiKey.issue(Consumer.objects.create(name="other"))
    assert prefixes(admin_client, f"?consumer__id__exact={batch.pk}") == {key.prefix}


def test_the_page_of_a_key_is_for_reading(admin_client: Client, key: ApiKey) -> None:
    page = admin_client.get(page_of(key)).content.decode()
    assert page_of(key, "rotate") in page
    assert page_of(key, "revoke") in page
    assert key.digest not in page
    assert admin_client.post(page_of(key), {"label": "mine"}).status_code == 403
    key.revoke()
    assert page_of(key, "revoke") not in admin_client.get(page_of(key)).content.decode()


def test_there_is_no_page_for_a_key_that_is_not_there(admin_client: Client) -> None:
    assert admin_client.get(f"{LIST}99/rotate/").status_code == 404


def test_the_list_costs_the_same_for_many_keys(
    admin_client: Client, admin_user: User, batch: Consumer, django_assert_max_num_queries: Any
) -> None:
    for _ in range(20):
        ApiKey.issue(batch, created_by=admin_user)[0].rotate(grace=timedelta(hours=1))
    with django_assert_max_num_queries(8):
        assert len(prefixes(admin_client)) == 40
