"""Signing keys in the admin: who may, what is made and revoked, what is signed, and what no page ever shows."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.test import Client
from django.urls import reverse

from relay.models import ApiKey, Consumer, Grant, SigningKey, Upstream
from relay.rules import signing
from tests.admin.conftest import SignIn

LIST = "/admin/relay/signingkey/"


@pytest.fixture
def images(db: None) -> Upstream:
    return Upstream.objects.create(slug="images", base_url="https://images.example", access="key")


@pytest.fixture
def shop(images: Upstream) -> Consumer:
    shop = Consumer.objects.create(name="shop")
    Grant.objects.create(consumer=shop, upstream=images, methods="GET, POST", path_prefixes="/public")
    return shop


@pytest.fixture
def key(shop: Consumer) -> SigningKey:
    return SigningKey.make(shop, label="newsletter")


@pytest.fixture
def issuer(sign_in: SignIn) -> Client:
    Permission.objects.get_or_create(
        codename="issue_apikey",
        content_type=ContentType.objects.get_for_model(ApiKey),
        defaults={"name": "Can see and issue keys"},
    )
    return sign_in("issue_apikey")


def page_of(key: SigningKey, end: str = "change") -> str:
    return f"{LIST}{key.pk}/{end}/"


def asked(images: Upstream, **fields: str) -> dict[str, Any]:
    return {"upstream": images.pk, "place": "/public/a.png", "method": "GET", "lifetime": "30d"} | fields


def shown_url(page: str) -> str:
    found = re.search(r'id="relay-signed".*?<code>(.*?)</code>', page, re.DOTALL)
    assert found is not None
    return unescape(found[1])


# Who may.


@pytest.mark.parametrize("rights", [(), ("view_signingkey", "add_signingkey", "change_signingkey", "view_upstream")])
def test_nothing_of_it_is_for_those_who_may_not_issue_keys(
    sign_in: SignIn, key: SigningKey, images: Upstream, rights: tuple[str, ...]
) -> None:
    client = sign_in(*rights)
    for page in (LIST, f"{LIST}add/", page_of(key), page_of(key, "sign"), page_of(key, "revoke")):
        assert client.get(page).status_code == 403
    assert client.post(page_of(key, "sign"), asked(images)).status_code == 403
    assert client.post(page_of(key, "revoke")).status_code == 403
    assert client.post(f"{LIST}add/", {"consumer": key.consumer_id}).status_code == 403
    assert "Signing keys" not in client.get("/admin/").content.decode()
    key.refresh_from_db()
    assert key.revoked_at is None


def test_strangers_are_sent_to_sign_in(client: Client, key: SigningKey) -> None:
    for end in ("change", "sign", "revoke"):
        answer = client.get(page_of(key, end))
        assert answer.status_code == 302
        assert answer.headers["Location"].startswith("/admin/login/")


def test_who_may_issue_keys_finds_them(issuer: Client, key: SigningKey) -> None:
    assert reverse("admin:relay_signingkey_changelist") in issuer.get("/admin/").content.decode()
    for page in (LIST, f"{LIST}add/", page_of(key), page_of(key, "sign"), page_of(key, "revoke")):
        assert issuer.get(page).status_code == 200


def test_a_key_is_never_changed(issuer: Client, key: SigningKey) -> None:
    before = key.public_id, bytes(key.secret_sealed)
    assert issuer.post(page_of(key), {"label": "other"}).status_code == 403
    key.refresh_from_db()
    assert (key.public_id, bytes(key.secret_sealed), key.label) == (*before, "newsletter")


def test_lookups_cannot_ask_for_the_secret(issuer: Client, key: SigningKey) -> None:
    assert issuer.get(f"{LIST}?secret_sealed__startswith=a").status_code == 400
    assert issuer.get(f"{LIST}?consumer__id__exact={key.consumer_id}").status_code == 200


# Made, listed, revoked, deleted.


def test_making_one_leads_to_the_page_that_says_how_to_use_it(issuer: Client, shop: Consumer) -> None:
    answer = issuer.post(f"{LIST}add/", {"consumer": str(shop.pk), "label": "e-mail “March”"}, follow=True)
    key = SigningKey.objects.get()
    assert (key.consumer, key.label) == (shop, "e-mail “March”")
    assert key.created_by == User.objects.get(username="issue_apikey")
    assert answer.redirect_chain[-1][0] == page_of(key)
    page = unescape(answer.content.decode())
    assert '{% relay_signed_url "images" "/logo.png?size=2" key="e-mail “March”" expires_in="30d" %}' in page
    assert f"--key {key.public_id}" in page
    assert LogEntry.objects.filter(object_id=str(key.pk)).exists()


def test_one_without_a_consumer_is_not_made(issuer: Client, shop: Consumer) -> None:
    assert issuer.post(f"{LIST}add/", {"label": "x"}).status_code == 200
    assert not SigningKey.objects.exists()


def test_the_list_tells_their_states(issuer: Client, key: SigningKey) -> None:
    SigningKey.make(key.consumer, label="old").revoke()
    off = Consumer.objects.create(name="press", enabled=False)
    SigningKey.make(off)
    gone = Consumer.objects.create(name="left", owner=User.objects.create_user("left", is_active=False))
    SigningKey.make(gone)
    page = issuer.get(LIST).content.decode()
    assert page.count("Off with its consumer") == 2
    assert page.count("Sign a URL</a>") == 3
    for state, lines in (("live", 3), ("revoked", 0)):
        assert issuer.get(f"{LIST}?state={state}").content.decode().count("Sign a URL</a>") == lines
    assert issuer.get(f"{LIST}?q={key.public_id}").content.decode().count("Sign a URL</a>") == 1


def test_an_empty_list_leads_to_the_first(issuer: Client) -> None:
    assert "Make the first signing key" in issuer.get(LIST).content.decode()


def test_revoking_asks_first_and_is_in_the_history(issuer: Client, key: SigningKey) -> None:
    assert "Every URL it signed opens nothing any more" in issuer.get(page_of(key, "revoke")).content.decode()
    key.refresh_from_db()
    assert key.revoked_at is None
    answer = issuer.post(page_of(key, "revoke"), follow=True)
    assert "what it signed opens nothing any more" in answer.content.decode()
    key.refresh_from_db()
    assert key.revoked_at is not None
    assert LogEntry.objects.get(object_id=str(key.pk)).change_message == "Revoked."


def test_a_revoked_key_offers_nothing_more(issuer: Client, key: SigningKey, images: Upstream) -> None:
    key.revoke()
    page = issuer.get(page_of(key)).content.decode()
    assert page_of(key, "sign") not in page
    assert "relay_signed_url" not in page
    for end in ("sign", "revoke"):
        answer = issuer.post(page_of(key, end), asked(images), follow=True)
        assert "was revoked" in answer.content.decode()
        assert "relay-signature" not in answer.content.decode()


def test_only_revoked_keys_are_deleted(sign_in: SignIn, issuer: Client, key: SigningKey) -> None:
    deleter = sign_in("issue_apikey", "delete_signingkey")
    assert deleter.post(page_of(key, "delete"), {"post": "yes"}).status_code == 403
    key.revoke()
    assert issuer.post(page_of(key, "delete"), {"post": "yes"}).status_code == 403
    assert deleter.post(page_of(key, "delete"), {"post": "yes"}).status_code == 302
    assert not SigningKey.objects.exists()


@pytest.mark.parametrize("end", ["sign", "revoke"])
def test_there_is_no_page_of_a_key_that_is_none(issuer: Client, key: SigningKey, end: str) -> None:
    gone = page_of(key, end)
    key.delete()
    assert issuer.get(gone).status_code == 404


# Signing.


def test_a_url_is_signed_and_shown_with_what_to_paste(issuer: Client, key: SigningKey, images: Upstream) -> None:
    answer = issuer.post(page_of(key, "sign"), asked(images, place="/public/a.png?w=1&h=2"))
    page = answer.content.decode()
    url = shown_url(page)
    assert url.startswith("http://testserver/relay/images/public/a.png?w=1&h=2&relay-signature=1.")
    query, value = signing.split(url.partition("?")[2].encode())
    assert value is not None
    signature = signing.read(value)
    signing.check(signature, key.secret(), method="GET", slug=b"images", path=b"/public/a.png", query=query, now=0)
    text = unescape(page)
    assert f'<img src="{url.replace("&", "&amp;")}" alt="">' in text
    assert f'<a href="{url.replace("&", "&amp;")}">' in text
    assert "no-store" in answer.headers["Cache-Control"]
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_the_history_has_who_signed_what_without_query_and_signature(
    issuer: Client, key: SigningKey, images: Upstream
) -> None:
    issuer.post(page_of(key, "sign"), asked(images, place="/public/a.png?token=SECRET"))
    entry = LogEntry.objects.get(object_id=str(key.pk))
    assert entry.change_message.startswith("Signed GET /relay/images/public/a.png until 2")
    assert entry.user.username == "issue_apikey"
    assert "SECRET" not in entry.change_message
    assert "relay-signature" not in entry.change_message


def test_other_methods_get_another_example(issuer: Client, key: SigningKey, images: Upstream) -> None:
    page = issuer.post(page_of(key, "sign"), asked(images, method="POST")).content.decode()
    assert f"curl -X POST '{shown_url(page)}'" in unescape(page)
    assert "&lt;img" not in page


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"place": "/private/a.png"}, "shop is not granted GET for this path."),
        ({"place": "/public/a b"}, "percent-encode it"),
        ({"place": "/public/../x"}, "dot segments"),
        ({"place": "/public/x?relay-signature=1"}, "a signature already"),
        ({"method": "DELETE"}, "shop is not granted DELETE for this path."),
        ({"method": "BREW"}, "Select a valid choice"),
        ({"lifetime": "400d"}, "Select a valid choice"),
        ({"upstream": "999999"}, "Select a valid choice"),
    ],
)
def test_what_would_open_nothing_is_not_signed(
    issuer: Client, key: SigningKey, images: Upstream, fields: dict[str, str], words: str
) -> None:
    page = issuer.post(page_of(key, "sign"), asked(images, **fields)).content.decode()
    assert words in unescape(page)
    assert "relay-signature=1." not in page
    assert not LogEntry.objects.exists()


def test_an_upstreams_methods_are_told_of(issuer: Client, key: SigningKey, images: Upstream) -> None:
    Upstream.objects.filter(pk=images.pk).update(allowed_methods="GET")
    page = issuer.post(page_of(key, "sign"), asked(images, method="POST")).content.decode()
    assert "images does not allow POST: choose one of GET." in page


def test_only_upstreams_that_it_may_call_with_a_key_are_offered(
    issuer: Client, key: SigningKey, images: Upstream, weather: Upstream, billing: Upstream
) -> None:
    Grant.objects.create(consumer=key.consumer, upstream=weather)  # open to anyone
    Grant.objects.create(consumer=key.consumer, upstream=billing)  # switched off
    other = Upstream.objects.create(slug="other", base_url="https://other.example")
    page = issuer.get(page_of(key, "sign")).content.decode()
    offered = re.findall(r'<option value="(\d+)"', page)
    assert offered == [str(images.pk)]
    assert "Select a valid choice" in issuer.post(page_of(key, "sign"), asked(other)).content.decode()


def test_grants_of_the_owners_groups_count(issuer: Client, images: Upstream) -> None:
    owner = User.objects.create_user("owner")
    group = Group.objects.create(name="editors")
    owner.groups.add(group)
    Grant.objects.create(group=group, upstream=images)
    key = SigningKey.make(Consumer.objects.create(name="app", owner=owner))
    assert shown_url(issuer.post(page_of(key, "sign"), asked(images)).content.decode())


def test_a_consumer_without_grants_has_nothing_to_sign_for(issuer: Client, images: Upstream) -> None:
    key = SigningKey.make(Consumer.objects.create(name="nobody"))
    assert "There is nothing to sign for" in issuer.get(page_of(key, "sign")).content.decode()


def test_no_page_shows_a_secret(issuer: Client, key: SigningKey, images: Upstream) -> None:
    pages = [issuer.get(page).content for page in (LIST, page_of(key), page_of(key, "sign"), page_of(key, "revoke"))]
    pages.append(issuer.post(page_of(key, "sign"), asked(images)).content)
    secret, sealed = key.secret(), bytes(key.secret_sealed)
    for page in pages:
        for value in (secret, sealed):
            assert value not in page
            assert value.hex().encode() not in page
            assert repr(value)[2:-1].encode() not in page
