"""Signing keys in the roster: those in force of live consumers, opened, and gone with the next poll when they end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.test import override_settings
from django.utils import timezone

from relay import catalog
from relay.catalog import loader
from relay.catalog.roster import Consumer as LiveConsumer
from relay.catalog.roster import Roster, Signer
from relay.catalog.roster import SigningKey as LiveKey
from relay.catalog.watcher import Watcher
from relay.models import Consumer, SigningKey

pytestmark = pytest.mark.usefixtures("database")


def make(name: str = "shop", **fields: Any) -> SigningKey:
    return SigningKey.make(Consumer.objects.get_or_create(name=name)[0], **fields)


def signer(snapshot: catalog.Snapshot | None, key: SigningKey) -> Signer | None:
    assert snapshot is not None
    return snapshot.roster.find_signer(key.public_id)


def test_a_key_arrives_opened_with_its_consumer() -> None:
    key = make()
    found = signer(loader.load_all(), key)
    assert found is not None
    assert found.key == LiveKey(key.public_id, key.secret())
    assert (found.consumer.id, found.consumer.name) == (key.consumer_id, "shop")
    assert repr(key.secret())[2:-1] not in repr(found)


def revoke(key: SigningKey) -> None:
    key.revoke()


def revoke_in_bulk(key: SigningKey) -> None:
    SigningKey.objects.filter(pk=key.pk).update(revoked_at=timezone.now())


def delete(key: SigningKey) -> None:
    key.delete()


def delete_in_bulk(key: SigningKey) -> None:
    SigningKey.objects.all().delete()


def switch_off(key: SigningKey) -> None:
    Consumer.objects.update(enabled=False)


def delete_consumer(key: SigningKey) -> None:
    key.consumer.delete()


def owner_leaves(key: SigningKey) -> None:
    key.consumer.owner = User.objects.create_user("owner", is_active=False)
    key.consumer.save()


ENDS = [revoke, revoke_in_bulk, delete, delete_in_bulk, switch_off, delete_consumer, owner_leaves]


@pytest.mark.parametrize("end", ENDS)
def test_its_end_reaches_the_next_load(end: Callable[[SigningKey], None]) -> None:
    key, other = make(), make("other")
    before = loader.load_all()
    end(SigningKey.objects.get(pk=key.pk))
    after = loader.load_changes(before)
    assert signer(before, key) is not None
    assert signer(after, key) is None
    assert signer(loader.load_all(), key) is None
    if end is not switch_off and end is not delete_in_bulk:
        assert signer(after, other) == signer(before, other) is not None


def test_a_new_key_and_one_moved_to_another_consumer_arrive() -> None:
    key = make()
    before = loader.load_all()
    newer = make()
    key.consumer = Consumer.objects.create(name="press")
    key.save()
    after = loader.load_changes(before)
    found = signer(after, key)
    assert found is not None
    assert found.consumer.name == "press"
    assert signer(after, newer) is not None
    assert signer(before, newer) is None


def test_one_that_does_not_open_is_left_out_and_told_of_and_the_others_stay(caplog: pytest.LogCaptureFixture) -> None:
    key, other = make(), make()
    sealed = bytes(key.secret_sealed)
    SigningKey.objects.filter(pk=key.pk).update(secret_sealed=bytes(other.secret_sealed))
    with caplog.at_level(logging.ERROR):
        snapshot = loader.load_all()
    assert signer(snapshot, key) is None
    assert signer(snapshot, other) is not None
    assert f"Signing key {key.public_id} is left out" in caplog.text
    for value in (sealed, bytes(other.secret_sealed), other.secret()):
        assert value.hex() not in caplog.text
        assert repr(value)[2:-1] not in caplog.text


def test_keys_sealed_with_a_former_root_open_as_long_as_it_is_there() -> None:
    with override_settings(RELAY_ENCRYPTION_KEYS=("former-root-" * 4,)):
        key = make()
    with override_settings(RELAY_ENCRYPTION_KEYS=("newest-root-" * 4, "former-root-" * 4)):
        assert signer(loader.load_all(), key) is not None
    with override_settings(RELAY_ENCRYPTION_KEYS=("newest-root-" * 4,)):
        assert signer(loader.load_all(), key) is None


async def test_the_watcher_brings_a_key_and_takes_it_away(watcher: Watcher, commit: Callable[..., Any]) -> None:
    key = await commit(make)
    await watcher.poll_now()
    assert signer(catalog.current(), key) is not None
    await commit(key.revoke)
    await watcher.poll_now()
    assert signer(catalog.current(), key) is None


def live(number: int, *ids: str) -> LiveConsumer:
    return LiveConsumer(UUID(int=number), f"c{number}", signing_keys=tuple(LiveKey(name, b"s") for name in ids))


def test_a_roster_keeps_to_itself_what_the_next_one_changes() -> None:
    first = Roster([(live(1, "aaaaaaaaaa", "bbbbbbbbbb"), ()), (live(2, "cccccccccc"), ())])
    second = first.with_changes([(live(1, "bbbbbbbbbb", "dddddddddd"), ())], [live(2).id])
    assert [first.find_signer(name * 10) is not None for name in "abcd"] == [True, True, True, False]
    assert [second.find_signer(name * 10) is not None for name in "abcd"] == [False, True, False, True]
    assert {kept.key.id for kept in first.not_shared_with(second) if isinstance(kept, Signer)} == {
        "aaaaaaaaaa",
        "bbbbbbbbbb",
        "cccccccccc",
    }
