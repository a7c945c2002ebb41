"""Keys and grants as models: two people at one key undo nothing of each other, and no grant is doubled."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from relay.models import ApiKey, Consumer, Grant, Upstream

pytestmark = pytest.mark.django_db


@pytest.fixture
def key() -> ApiKey:
    return ApiKey.issue(Consumer.objects.create(name="batch"))[0]


def test_of_two_rotations_the_second_is_refused(key: ApiKey) -> None:
    stale = ApiKey.objects.get()
    following, _ = key.rotate(grace=timedelta(hours=1))
    with pytest.raises(ValidationError, match=f"rotated already, to {following}"):
        stale.rotate(grace=timedelta(hours=1))
    assert ApiKey.objects.count() == 2


def test_a_key_that_was_revoked_meanwhile_is_not_rotated(key: ApiKey) -> None:
    stale = ApiKey.objects.get()
    key.revoke()
    with pytest.raises(ValidationError, match="no longer in force"):
        stale.rotate(grace=timedelta(hours=1))
    assert ApiKey.objects.count() == 1


def test_revoking_keeps_what_was_written_meanwhile(key: ApiKey) -> None:
    stale = ApiKey.objects.get()
    following, _ = key.rotate(grace=timedelta(hours=1))
    used = timezone.now()
    ApiKey.objects.filter(pk=key.pk).update(last_used_at=used)
    stale.revoke()
    row = ApiKey.objects.get(pk=key.pk)
    assert row.revoked_at is not None
    assert (row.rotated_to, row.last_used_at, row.expires_at) == (following, used, key.expires_at)


def test_lacking_grants_are_looked_for_among_the_consumers_own_at_that_upstream(key: ApiKey) -> None:
    here = Upstream.objects.create(slug="here", base_url="https://here.example")
    there = Upstream.objects.create(slug="there", base_url="https://there.example")
    Grant.objects.create(consumer=Consumer.objects.create(name="other"), upstream=here)
    Grant.objects.create(consumer=key.consumer, upstream=there)
    assert Grant.add_lacking(key.consumer, here) is not None
    assert Grant.add_lacking(key.consumer, here, methods="GET") is None
    assert key.consumer.grants.count() == 2
