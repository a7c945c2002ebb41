"""`manage.py signing` as scripts use it: keys made, listed and revoked, URLs signed, and no secret printed."""

from __future__ import annotations

import io
import json

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from relay.models import Consumer, ConsumerChange, SigningKey
from relay.rules import signing

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop() -> Consumer:
    return Consumer.objects.create(name="shop")


def run(*arguments: str) -> tuple[str, str]:
    """(standard output, standard error)"""
    out, err = io.StringIO(), io.StringIO()
    call_command("signing", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def refusal(*arguments: str) -> str:
    with pytest.raises(CommandError) as problem:
        run(*arguments)
    assert problem.value.returncode == 1
    return str(problem.value)


def test_add_prints_the_id_alone(shop: Consumer) -> None:
    out, err = run("add", "shop", "--label", "newsletter")
    key = SigningKey.objects.get()
    assert (out, err) == (f"{key.public_id}\n", "")
    assert (key.consumer, key.label, key.revoked_at) == (shop, "newsletter", None)


def test_add_as_json_has_no_secret(shop: Consumer) -> None:
    made = json.loads(run("add", "shop", "--json")[0])
    key = SigningKey.objects.get()
    assert made == {
        "id": key.public_id,
        "label": "",
        "consumer": "shop",
        "created_at": key.created_at.isoformat(),
        "revoked_at": None,
    }


def test_add_for_nobody_is_refused() -> None:
    assert "There is no consumer nobody" in refusal("add", "nobody")
    assert not SigningKey.objects.exists()


def test_a_label_that_is_too_long_is_refused(shop: Consumer) -> None:
    assert "at most 100 characters" in refusal("add", "shop", "--label", "x" * 101)


def test_list_shows_every_key_with_its_state(shop: Consumer) -> None:
    first = SigningKey.make(shop, label="news\x1b[2Jletter")
    SigningKey.make(shop).revoke()
    out, _ = run("list")
    lines = out.splitlines()
    assert lines[0].split() == ["ID", "LABEL", "CONSUMER", "STATE", "MADE"]
    assert len(lines) == 3
    assert lines[2].startswith(first.public_id)
    assert "\x1b" not in out
    assert " revoked 2" in lines[1]
    listed = json.loads(run("list", "--json")[0])
    assert [key["revoked_at"] is None for key in listed] == [False, True]


def test_an_empty_list_says_how_to_make_one() -> None:
    assert run("list") == ("", "There are no signing keys. Make one with `signing add CONSUMER`.\n")


def test_revoke_takes_several_and_is_noted_for_the_watcher(shop: Consumer) -> None:
    keys = [SigningKey.make(shop), SigningKey.make(shop)]
    before = ConsumerChange.objects.get(pk=shop.pk).revision
    out, _ = run("revoke", *(key.public_id for key in keys))
    assert set(out.removeprefix("Revoked ").strip().split(", ")) == {key.public_id for key in keys}
    assert not SigningKey.objects.filter(revoked_at=None).exists()
    assert ConsumerChange.objects.get(pk=shop.pk).revision > before


def test_when_one_is_unknown_none_is_revoked(shop: Consumer) -> None:
    key = SigningKey.make(shop)
    assert "There is no signing key nosuchkey2." in refusal("revoke", key.public_id, "nosuchkey2")
    assert SigningKey.objects.get().revoked_at is None


def test_sign_prints_the_url_alone(shop: Consumer) -> None:
    key = SigningKey.make(shop, label="newsletter")
    out, err = run("sign", "https://h.example/relay/o/x?a=1#f", "--key", "newsletter", "--method", "put")
    assert err == ""
    assert out.endswith("#f\n")
    query, value = signing.split(out.strip().removesuffix("#f").partition("?")[2].encode())
    assert (query, value is not None) == (b"a=1", True)
    read = signing.read(value or b"")
    signing.check(read, key.secret(), method="PUT", slug=b"o", path=b"/x", query=b"a=1", now=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/relay/o/x", "--key", "nobody"], "No signing key in force has the id, label or consumer “nobody”"),
        (["/relay/o/x", "--key", "shop", "--expires-in", "soon"], "“soon” is no time"),
        (["/relay/o/x", "--key", "shop", "--expires-in", "367d"], "at most 366 days"),
        (["/elsewhere", "--key", "shop"], "is no URL of the relay"),
    ],
)
def test_what_cannot_be_signed_is_said(shop: Consumer, arguments: list[str], words: str) -> None:
    SigningKey.make(shop)
    assert words in refusal("sign", *arguments)


def test_secrets_rotate_seals_them_with_the_newest_root(shop: Consumer) -> None:
    with override_settings(RELAY_ENCRYPTION_KEYS=("former-root-" * 4,)):
        secret = SigningKey.make(shop).secret()
    with override_settings(RELAY_ENCRYPTION_KEYS=("newest-root-" * 4, "former-root-" * 4)):
        out = io.StringIO()
        call_command("secrets", "rotate", stdout=out)
        assert "signingkey.secret_sealed: 1 sealed anew, 0 were already, 0 do not open" in out.getvalue()
    with override_settings(RELAY_ENCRYPTION_KEYS=("newest-root-" * 4,)):
        assert SigningKey.objects.get().secret() == secret


def test_no_secret_is_ever_printed(shop: Consumer) -> None:
    key = SigningKey.make(shop)
    shown = "".join(
        "".join(run(*arguments))
        for arguments in (["list"], ["list", "--json"], ["sign", "/relay/o/x", "--key", key.public_id])
    )
    secret = key.secret()
    for spelling in (secret.hex(), repr(secret)[2:-1]):
        assert spelling not in shown
