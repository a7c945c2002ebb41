"""What is said of a key: the state that says most, in words, and the same keys in the lists."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from relay.models import ApiKey, Consumer, KeyState
from relay.models.key_states import expiring, in_force, local, not_over, state_of, unused, words_for

pytestmark = pytest.mark.django_db


@pytest.fixture
def now() -> datetime:
    return timezone.now()


@pytest.fixture
def consumer() -> Consumer:
    return Consumer.objects.create(name="batch", owner=User.objects.create_user("ann"))


def test_a_key_is_live_until_it_expires(consumer: Consumer, now: datetime) -> None:
    end = now + timedelta(days=30)
    key, _ = ApiKey.issue(consumer, expires_at=end)
    assert state_of(key, now) is KeyState.LIVE
    assert state_of(key, end - timedelta(days=7)) is KeyState.EXPIRING
    assert words_for(key, end - timedelta(days=3)) == ("Expires in 3 days", "")
    assert state_of(key, end) is KeyState.EXPIRED
    key.revoke()
    assert state_of(key, end) is KeyState.REVOKED


def test_a_replaced_key_says_by_which_and_until_when(consumer: Consumer, now: datetime) -> None:
    key, _ = ApiKey.issue(consumer)
    following, _ = key.rotate(grace=timedelta(hours=1))
    assert state_of(key, now) is KeyState.REPLACED
    assert words_for(key, now) == ("Replaced", f"by {following}, works until {local(key.expires_at)}")


def test_a_key_goes_off_with_its_consumer_and_with_its_owner(consumer: Consumer, now: datetime) -> None:
    key, _ = ApiKey.issue(consumer)
    User.objects.update(is_active=False)
    assert state_of(ApiKey.objects.get(), now) is KeyState.OFF
    User.objects.update(is_active=True)
    Consumer.objects.update(enabled=False)
    assert state_of(ApiKey.objects.get(), now) is KeyState.OFF
    assert not ApiKey.objects.filter(in_force(now)).exists()
    assert ApiKey.objects.get(not_over(now)) == key


def test_keys_in_force_are_those_that_the_states_call_so(consumer: Consumer, now: datetime) -> None:
    ApiKey.issue(consumer)
    ApiKey.issue(consumer, expires_at=now + timedelta(days=2))
    ApiKey.issue(consumer, expires_at=now - timedelta(days=2))
    ApiKey.issue(consumer)[0].revoke()
    ApiKey.issue(consumer)[0].rotate(grace=timedelta(days=1))
    ApiKey.issue(Consumer.objects.create(name="off", enabled=False))
    later = now + timedelta(minutes=1)
    working = {KeyState.LIVE, KeyState.EXPIRING, KeyState.REPLACED}
    said = {key for key in ApiKey.objects.all() if state_of(key, later) in working}
    assert set(ApiKey.objects.filter(in_force(later))) == said
    assert {state_of(key, later) for key in ApiKey.objects.filter(expiring(later))} == {KeyState.EXPIRING}


def test_unused_are_old_keys_that_nobody_showed_of_late(consumer: Consumer, now: datetime) -> None:
    key, _ = ApiKey.issue(consumer)
    old = now + timedelta(days=91)
    assert not ApiKey.objects.filter(unused(now)).exists()
    assert ApiKey.objects.get(unused(old)) == key
    ApiKey.objects.update(last_used_at=now + timedelta(days=80))
    assert not ApiKey.objects.filter(unused(old)).exists()
    assert ApiKey.objects.get(unused(now + timedelta(days=171))) == key
