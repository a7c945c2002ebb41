"""`relay.signing` and its template tag: what is signed, with which key, and what is refused with what advice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.template import Context, Template
from django.test import override_settings
from django.urls import set_script_prefix
from hypothesis import given
from hypothesis import strategies as st

from relay import signing
from relay.models import Consumer, SigningKey
from relay.rules import signing as rules
from relay.signing import CannotSign, asign, sign

pytestmark = pytest.mark.django_db
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    signing._kept.clear()
    yield
    signing._kept.clear()


@pytest.fixture
def shop() -> Consumer:
    return Consumer.objects.create(name="shop")


@pytest.fixture
def key(shop: Consumer) -> SigningKey:
    return SigningKey.make(shop, label="newsletter")


def opens(url: str, key: SigningKey, *, method: str = "GET", mount: str = "/relay/") -> rules.Signature:
    """Checks a signed URL as the relay does; gives what it says."""
    target, _, _ = url.partition("#")
    path, _, query = target.partition("?")
    left, value = rules.split(query.encode())
    assert value is not None
    slug, slash, rest = path.partition(mount)[2].partition("/")
    signature = rules.read(value)
    rules.check(
        signature,
        key.secret(),
        method=method,
        slug=slug.encode(),
        path=(slash + rest).encode(),
        query=left,
        now=signature.expires_at - 1,
    )
    return signature


# What is made of a URL.


@pytest.mark.parametrize(
    ("url", "before", "after"),
    [
        ("/relay/o/x", "/relay/o/x?", ""),
        ("/relay/o", "/relay/o?", ""),
        ("/relay/o/", "/relay/o/?", ""),
        ("/relay/o/x?", "/relay/o/x?&", ""),
        ("/relay/o/x?a=1&b", "/relay/o/x?a=1&b&", ""),
        ("/relay/o/x#part?no", "/relay/o/x?", "#part?no"),
        ("https://h.example:8443/relay/o/x?a#f", "https://h.example:8443/relay/o/x?a&", "#f"),
        ("HTTP://[::1]/relay/o//x;y/%20%C3%BC", "HTTP://[::1]/relay/o//x;y/%20%C3%BC?", ""),
        ("/relay/o/it's[1]?a[]=1", "/relay/o/it's[1]?a[]=1&", ""),
    ],
)
def test_the_parameter_is_put_behind_the_query_and_before_the_fragment(
    key: SigningKey, url: str, before: str, after: str
) -> None:
    signed = sign(url, key=key)
    assert signed.startswith(f"{before}relay-signature=1.{key.public_id}.")
    assert signed.endswith(after)
    opens(signed, key)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("/relay/o/a b", "percent-encode it as %20."),
        ("/relay/o/ä", "percent-encode it as %C3%A4."),
        ("/relay/o/\udc80", "percent-encode it as "),
        ("/relay/o/a\n", "percent-encode it as %0A."),
        ('/relay/o/"', "percent-encode it as %22."),
        ("/relay/o\\x", "percent-encode it as %5C."),
        ("/relay/o/x?a={1}", "percent-encode it as %7B."),
        ("/relay/o/x?a='1'", "%27"),
        ("/relay/o/../p/x", "dot segments"),
        ("/relay/o/%2e%2E/x", "dot segments"),
        ("/relay/o/%00", "dot segments and control characters"),
        ("/relay/", "names no upstream"),
        ("/relay", "begin the path with /relay/"),
        ("/elsewhere/relay/o/x", "begin the path with /relay/"),
        ("relay/o/x", "begin the path with /relay/"),
        ("//h.example/relay/o/x", "begin the path with /relay/"),
        ("ftp://h.example/relay/o/x", "begin the path with /relay/"),
        ("https://h.example", "begin the path with /relay/"),
        ("", "begin the path with /relay/"),
        ("/relay/o/x?relay-signature=1", "a signature already"),
        ("/relay/o/x?a&%72elay-signature=1&b", "a signature already"),
    ],
)
def test_what_would_not_open_is_refused(key: SigningKey, url: str, words: str) -> None:
    with pytest.raises(CannotSign) as refusal:
        sign(url, key=key)
    assert words in str(refusal.value)


def test_a_project_below_a_script_name_is_signed_for(key: SigningKey) -> None:
    set_script_prefix("/shop/")
    try:
        signed = sign("/shop/relay/o/x", key=key)
        opens(signed, key, mount="/shop/relay/")
        with pytest.raises(CannotSign, match="/shop/relay/"):
            sign("/relay/o/x", key=key)
    finally:
        set_script_prefix("/")


def test_the_lifetime_is_kept_to_the_second(key: SigningKey) -> None:
    signed = sign("/relay/o/x", key=key, expires_in=timedelta(minutes=5), now=NOON)
    assert opens(signed, key).expires_at == int(NOON.timestamp()) + 300
    assert sign("/relay/o/x", key=key, expires_in=timedelta(minutes=5), now=NOON) == signed
    week = opens(sign("/relay/o/x", key=key, now=NOON), key)
    assert week.expires_at == int(NOON.timestamp()) + 7 * 24 * 3600


@pytest.mark.parametrize("lifetime", [timedelta(), timedelta(seconds=-1), timedelta(days=366, seconds=1)])
def test_lifetimes_have_a_bound(key: SigningKey, lifetime: timedelta) -> None:
    with pytest.raises(CannotSign, match="at most 366 days"):
        sign("/relay/o/x", key=key, expires_in=lifetime)
    sign("/relay/o/x", key=key, expires_in=timedelta(days=366))


@pytest.mark.parametrize("method", ["", "G T", "GET\r\n", "x" * 65, "ÄT"])
def test_what_is_no_method_is_refused(key: SigningKey, method: str) -> None:
    with pytest.raises(CannotSign, match="is no method"):
        sign("/relay/o/x", key=key, method=method)


def test_the_method_is_signed(key: SigningKey) -> None:
    opens(sign("/relay/o/x", key=key, method="POST"), key, method="POST")


@given(text=st.text(max_size=8))
def test_a_lifetime_is_a_number_with_a_unit_or_refused(text: str) -> None:
    try:
        found = signing.lifetime(text)
    except CannotSign:
        return
    assert found == timedelta(seconds=int(text[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[text[-1]])
    assert found > timedelta()


@pytest.mark.parametrize(
    "text", ["", "5", "d", "0d", "-1d", "1.5h", "1w", " 1d", "1d ", "1D", "٣d", "1dd", "9" * 10 + "d"]
)
def test_other_texts_are_no_lifetime(text: str) -> None:
    with pytest.raises(CannotSign, match="such as 12h or 30d"):
        signing.lifetime(text)


# With which key.


def test_a_key_is_named_by_id_label_or_consumer(key: SigningKey) -> None:
    urls = {sign("/relay/o/x", key=name, now=NOON) for name in (key, key.public_id, "newsletter", "shop")}
    assert len(urls) == 1


def test_of_one_consumers_keys_with_a_label_the_newest_signs(shop: Consumer, key: SigningKey) -> None:
    newer = SigningKey.make(shop, label="newsletter")
    opens(sign("/relay/o/x", key="newsletter"), newer)
    newer.revoke()
    opens(sign("/relay/o/x", key="newsletter"), key)


def test_names_that_could_be_several_keys_are_refused_with_their_ids(shop: Consumer, key: SigningKey) -> None:
    other = SigningKey.make(shop, label="pictures")
    with pytest.raises(CannotSign) as refusal:
        sign("/relay/o/x", key="shop")
    assert key.public_id in str(refusal.value)
    assert other.public_id in str(refusal.value)
    elsewhere = SigningKey.make(Consumer.objects.create(name="press"), label="newsletter")
    with pytest.raises(CannotSign, match="Several consumers") as refusal:
        sign("/relay/o/x", key="newsletter")
    assert elsewhere.public_id in str(refusal.value)


@pytest.mark.parametrize("name", ["", "nobody", "aaaaaaaaaa"])
def test_a_name_of_no_key_is_refused(key: SigningKey, name: str) -> None:
    with pytest.raises(CannotSign, match="No signing key in force"):
        sign("/relay/o/x", key=name)


def test_a_key_without_a_label_is_not_found_by_an_empty_name(shop: Consumer) -> None:
    SigningKey.make(shop)
    with pytest.raises(CannotSign):
        sign("/relay/o/x", key="")


def test_a_revoked_key_signs_nothing(key: SigningKey) -> None:
    sign("/relay/o/x", key="newsletter")
    key.revoke()
    for name in ("newsletter", key.public_id, "shop"):
        with pytest.raises(CannotSign, match="No signing key in force"):
            sign("/relay/o/x", key=name)
    with pytest.raises(CannotSign, match="was revoked"):
        sign("/relay/o/x", key=key)


def test_a_page_of_pictures_asks_the_database_once(key: SigningKey, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        for number in range(100):
            sign(f"/relay/o/{number}", key="newsletter")


def test_what_was_revoked_by_another_process_is_noticed_in_seconds(
    key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign("/relay/o/x", key="newsletter")
    # No signal tells this process of it.
    SigningKey.objects.update(revoked_at=NOON)
    sign("/relay/o/x", key="newsletter")
    monkeypatch.setattr(signing, "KEPT_SECONDS", 0.0)
    with pytest.raises(CannotSign):
        sign("/relay/o/x", key="newsletter")


def test_what_is_kept_has_a_bound(key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "MOST_KEPT", 2)
    for name in (key.public_id, "newsletter", "shop"):
        sign("/relay/o/x", key=name)
    assert list(signing._kept) == ["shop"]


def test_a_secret_sealed_with_a_key_that_is_gone_is_told_of(key: SigningKey) -> None:
    others = override_settings(SECRET_KEY="another-one-" * 5, SECRET_KEY_FALLBACKS=[])
    with others, pytest.raises(CannotSign, match="RELAY_ENCRYPTION_KEYS"):
        sign("/relay/o/x", key="newsletter")


@pytest.mark.django_db(transaction=True)
async def test_async_code_signs_as_well() -> None:
    shop = await Consumer.objects.acreate(name="shop")
    key = SigningKey(consumer=shop, label="newsletter")
    await key.asave()
    for name in ("newsletter", "newsletter", key):  # from the database, from memory, and without either
        assert await asign("/relay/o/x", key=name, now=NOON) == sign("/relay/o/x", key=key, now=NOON)


# What a key is.


def test_a_secret_is_sealed_for_its_row(key: SigningKey, shop: Consumer) -> None:
    assert len(key.secret()) == 32
    assert key.secret() not in bytes(key.secret_sealed)
    other = SigningKey.make(shop)
    assert other.secret() != key.secret()
    other.secret_sealed = key.secret_sealed
    with pytest.raises(CannotSign, match="does not open"):
        sign("/relay/o/x", key=other)


def test_saving_a_key_again_keeps_its_secret(key: SigningKey) -> None:
    before = (key.public_id, key.secret())
    key.label = "  new   name "
    key.save()
    stored = SigningKey.objects.get()
    assert (stored.public_id, stored.secret()) == before
    assert stored.label == "new name"


def test_nothing_secret_is_in_what_prints_a_key(key: SigningKey) -> None:
    sign("/relay/o/x", key="newsletter")
    texts = f"{key} {key!r} {signing._kept!r}"
    assert repr(key.secret())[2:-1] not in texts
    assert str(key) == f"newsletter ({key.public_id})"


def test_a_key_needs_a_consumer() -> None:
    with pytest.raises(ValidationError):
        SigningKey().save()


# The template tag.


def rendered(text: str, **context: Any) -> str:
    return Template("{% load relay %}" + text).render(Context(context))


def test_the_tag_is_fit_for_an_attribute(key: SigningKey) -> None:
    html = rendered('<img src="{% relay_signed_url "images" "/a.png?w=1&h=2" key="newsletter" expires_in="30d" %}">')
    assert html.startswith('<img src="/relay/images/a.png?w=1&amp;h=2&amp;relay-signature=1.')
    signature = opens(unescape(html.split('"')[1]), key)
    assert abs(signature.expires_at - datetime.now(UTC).timestamp() - 30 * 24 * 3600) < 60


def test_the_tag_escapes_once_and_only_where_escaping_is_on(key: SigningKey) -> None:
    tag = '{% relay_signed_url slug path key="newsletter" as url %}'
    context = {"slug": "images", "path": "/a?b&c"}
    assert "?b&amp;c&amp;relay-signature" in rendered(tag + "{{ url }}", **context)
    assert "?b&c&relay-signature" in rendered(tag + "{% autoescape off %}{{ url }}{% endautoescape %}", **context)
    plain = '{% autoescape off %}{% relay_signed_url slug path key="newsletter" %}{% endautoescape %}'
    assert "?b&c&relay-signature" in rendered(plain, **context)


@pytest.mark.parametrize(
    ("path", "begins"),
    [
        ('"a.png"', "/relay/images/a.png?"),
        ('"/a.png"', "/relay/images/a.png?"),
        ('"?w=1"', "/relay/images?w=1&"),
        ("", "/relay/images?"),
    ],
)
def test_the_tag_puts_slug_and_path_together(key: SigningKey, path: str, begins: str) -> None:
    url = unescape(rendered('{% relay_signed_url "images" ' + path + ' key="newsletter" %}'))
    assert url.startswith(f"{begins}relay-signature=")
    opens(url, key)


def test_the_tag_takes_a_key_a_lifetime_and_a_method(key: SigningKey) -> None:
    tag = '{% relay_signed_url "o" "/x" key=key expires_in=lifetime method="POST" %}'
    opens(rendered(tag, key=key, lifetime=timedelta(hours=1)), key, method="POST")


def test_the_tag_refuses_what_cannot_be_signed(key: SigningKey) -> None:
    with pytest.raises(CannotSign):
        rendered('{% relay_signed_url "o" "/a b" key="newsletter" %}')
