"""Whatever is written about consumers reaches the roster by `load_changes`, on every way of writing it.

After each edit the snapshot that followed is compared with one that is loaded anew.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from relay import vault
from relay.catalog.loader import load_all, load_changes
from relay.catalog.roster import ApiKey as KeyInForce
from relay.catalog.roster import Roster
from relay.catalog.snapshot import Snapshot
from relay.models import ApiKey, Consumer, ConsumerChange, Grant, Revision, Upstream
from relay.rules import grants

pytestmark = pytest.mark.usefixtures("database")


class Installation:
    """A consumer of a person in a group, one without, an upstream, and the snapshot as a worker would have it."""

    def __init__(self) -> None:
        self.upstream = Upstream.objects.create(slug="api", base_url="https://api.example.com")
        self.other = Upstream.objects.create(slug="other", base_url="https://other.example.com")
        self.group = Group.objects.create(name="staff")
        self.person = User.objects.create_user("ada")
        self.person.groups.add(self.group)
        self.owned = Consumer.objects.create(name="owned", owner=self.person)
        self.lone = Consumer.objects.create(name="lone")
        self.key, self.text = ApiKey.issue(self.owned)
        self.lone_key, self.lone_text = ApiKey.issue(self.lone)
        self.grant = Grant.objects.create(consumer=self.lone, upstream=self.upstream, methods="GET")
        self.lent = Grant.objects.create(group=self.group, upstream=self.upstream, path_prefixes="/v1")
        self.snapshot = load_all()

    def follow(self) -> Roster:
        """The roster after what was edited; it has to be what a new start would load."""
        following = load_changes(self.snapshot)
        if following is not None:
            self.snapshot = following
        assert contents(self.snapshot) == contents(load_all())
        return self.snapshot.roster

    def grants_of(self, consumer: Consumer, upstream: Upstream) -> tuple[grants.Grant, ...]:
        found = self.follow().consumer(consumer.pk)
        assert found is not None
        return found.grants.get(upstream.pk, ())

    def finds(self, text: str) -> KeyInForce | None:
        return find(self.follow(), text)


def find(roster: Roster, text: str) -> KeyInForce | None:
    return roster.find(vault.keyring().digest(text.encode())[1])


def contents(snapshot: Snapshot) -> dict[UUID, Any]:
    """All that counts of a roster, whatever the order it was read in."""
    found = {}
    for consumer in snapshot.roster:
        held = {upstream: sorted(some, key=repr) for upstream, some in consumer.grants.items()}
        its_keys = sorted(
            (key.prefix, key.expires_at) for digest in consumer.digests if (key := snapshot.roster.find(digest))
        )
        assert len(its_keys) == len(consumer.digests)
        found[consumer.id] = (consumer.name, held, its_keys)
    return found


@pytest.fixture
def installation(database: object) -> Iterator[Installation]:
    yield Installation()
    connections["default"].close()


def test_a_key_leads_to_its_consumer_with_its_own_grants_and_those_of_its_owners_groups(
    installation: Installation,
) -> None:
    found = installation.finds(installation.text)
    assert found is not None
    assert (found.prefix, found.expires_at, found.consumer.name) == (installation.key.prefix, math.inf, "owned")
    assert found.consumer.grants == {installation.upstream.pk: (grants.Grant(prefixes=(b"/v1",)),)}
    lone = installation.finds(installation.lone_text)
    assert lone is not None
    assert lone.consumer.grants == {installation.upstream.pk: (grants.Grant(frozenset({"GET"})),)}


Edit = Callable[[Installation], object]


@pytest.mark.parametrize(
    "edit",
    [
        lambda i: i.key.revoke(),
        lambda i: i.key.delete(),
        lambda i: ApiKey.objects.filter(pk=i.key.pk).delete(),
        lambda i: ApiKey.objects.filter(pk=i.key.pk).update(revoked_at=timezone.now()),
        lambda i: Consumer.objects.filter(pk=i.owned.pk).update(enabled=False),
        lambda i: i.owned.delete(),
        lambda i: Consumer.objects.all().delete(),
        lambda i: User.objects.get(pk=i.person.pk).relay_consumers.update(enabled=False),  # type: ignore[attr-defined]
        lambda i: switch(i.owned, enabled=False),
        lambda i: switch(i.person, is_active=False),
    ],
    ids=[
        "revoked",
        "deleted",
        "deleted in bulk",
        "revoked in bulk",
        "consumer off in bulk",
        "consumer deleted",
        "consumers deleted in bulk",
        "consumer off through its owner",
        "consumer off",
        "owner inactive",
    ],
)
def test_what_ends_a_key_takes_it_out(installation: Installation, edit: Edit) -> None:
    edit(installation)
    assert installation.finds(installation.text) is None


def switch(row: Any, **fields: bool) -> None:
    for name, value in fields.items():
        setattr(row, name, value)
    row.save()


def test_what_was_switched_off_comes_back(installation: Installation) -> None:
    for row, field in ((installation.owned, "enabled"), (installation.person, "is_active")):
        switch(row, **{field: False})
        assert installation.finds(installation.text) is None
        switch(row, **{field: True})
        assert installation.finds(installation.text) is not None


def test_a_person_who_signs_in_changes_nothing(installation: Installation) -> None:
    installation.follow()
    before = Revision.objects.get().value
    installation.person.last_login = timezone.now()
    installation.person.save(update_fields=["last_login"])
    assert Revision.objects.get().value == before


def test_keys_that_are_issued_rotated_and_given_an_end_are_seen(installation: Installation) -> None:
    _, text = ApiKey.issue(installation.lone, expires_at=timezone.now() + timedelta(hours=1))
    found = installation.finds(text)
    assert found is not None
    assert found.expires_at < math.inf
    following, new_text = installation.key.rotate(grace=timedelta(minutes=5))
    former, new = installation.finds(installation.text), installation.finds(new_text)
    assert former is not None
    assert new is not None
    assert new.prefix == following.prefix
    assert former.expires_at == pytest.approx((timezone.now() + timedelta(minutes=5)).timestamp(), abs=60)


def test_a_key_is_found_after_the_installations_key_was_replaced(installation: Installation, settings: Any) -> None:
    former = settings.SECRET_KEY
    settings.RELAY_ENCRYPTION_KEYS = ("a new root " * 4,)
    digests = vault.keyring().digests(installation.text.encode())
    assert len(digests) == 2
    assert former
    assert [installation.follow().find(digest) is not None for digest in digests] == [False, True]


def test_a_consumer_is_renamed_and_given_to_another(installation: Installation) -> None:
    installation.owned.name = "renamed"
    installation.owned.owner = None
    installation.owned.save()
    found = installation.finds(installation.text)
    assert found is not None
    assert (found.consumer.name, found.consumer.grants) == ("renamed", {})


def test_grants_are_given_changed_and_taken(installation: Installation) -> None:
    lone, upstream, other = installation.lone, installation.upstream, installation.other
    Grant.objects.create(consumer=lone, upstream=upstream, methods="POST", path_prefixes="/up")
    assert len(installation.grants_of(lone, upstream)) == 2
    installation.grant.methods = "put"
    installation.grant.save()
    assert grants.Grant(frozenset({"PUT"})) in installation.grants_of(lone, upstream)
    Grant.objects.filter(pk=installation.grant.pk).update(upstream=other)
    assert installation.grants_of(lone, other) == (grants.Grant(frozenset({"PUT"})),)
    Grant.objects.filter(consumer=lone).delete()
    assert installation.grants_of(lone, upstream) == installation.grants_of(lone, other) == ()


def test_a_grant_that_moves_to_another_consumer_is_gone_from_the_first(installation: Installation) -> None:
    installation.grant.consumer = installation.owned
    installation.grant.save()
    assert installation.grants_of(installation.lone, installation.upstream) == ()
    assert len(installation.grants_of(installation.owned, installation.upstream)) == 2
    Grant.objects.filter(pk=installation.grant.pk).update(consumer=installation.lone)
    assert len(installation.grants_of(installation.lone, installation.upstream)) == 1
    assert len(installation.grants_of(installation.owned, installation.upstream)) == 1


@pytest.mark.parametrize(
    "edit",
    [
        lambda i: i.person.groups.remove(i.group),
        lambda i: i.person.groups.clear(),
        lambda i: i.person.groups.set([]),
        lambda i: i.group.user_set.remove(i.person),
        lambda i: i.group.user_set.clear(),
        lambda i: i.group.delete(),
        lambda i: Group.objects.all().delete(),
        lambda i: i.lent.delete(),
        lambda i: Grant.objects.filter(group=i.group).delete(),
        lambda i: Grant.objects.filter(group=i.group).update(upstream=i.other),
        lambda i: i.person.delete(),
        lambda i: User.objects.all().delete(),
    ],
    ids=[
        "person leaves",
        "person leaves all",
        "groups set anew",
        "group lets go",
        "group lets all go",
        "group deleted",
        "groups deleted in bulk",
        "grant deleted",
        "grants deleted in bulk",
        "grants moved in bulk",
        "owner deleted",
        "owners deleted in bulk",
    ],
)
def test_what_ends_a_groups_grant_takes_it_from_the_consumers_of_its_people(
    installation: Installation, edit: Edit
) -> None:
    edit(installation)
    assert installation.grants_of(installation.owned, installation.upstream) == ()


@pytest.mark.parametrize(
    "edit",
    [
        lambda i, person: person.groups.add(i.group),
        lambda i, person: i.group.user_set.add(person),
        lambda i, person: person.groups.set([i.group]),
    ],
)
def test_who_joins_a_group_lends_its_grants_to_its_consumers(
    installation: Installation, edit: Callable[[Installation, User], object]
) -> None:
    person = User.objects.create_user("grace")
    consumer = Consumer.objects.create(name="new", owner=person)
    assert installation.grants_of(consumer, installation.upstream) == ()
    edit(installation, person)
    assert installation.grants_of(consumer, installation.upstream) == (grants.Grant(prefixes=(b"/v1",)),)


def test_a_grant_outlives_a_change_of_the_upstreams_slug(installation: Installation) -> None:
    installation.upstream.slug = "renamed"
    installation.upstream.save()
    assert len(installation.grants_of(installation.lone, installation.upstream)) == 1
    found = installation.snapshot.find(b"renamed")
    assert found is not None
    assert found.id == installation.upstream.pk


@pytest.mark.parametrize(
    "edit", [lambda upstream: upstream.delete(), lambda upstream: Upstream.objects.filter(pk=upstream.pk).delete()]
)
def test_a_grant_ends_with_its_upstream(installation: Installation, edit: Callable[[Upstream], object]) -> None:
    number = installation.upstream.pk
    edit(installation.upstream)
    for consumer in (installation.lone, installation.owned):
        found = installation.follow().consumer(consumer.pk)
        assert found is not None
        assert number not in found.grants


def test_fixtures_are_seen(installation: Installation, tmp_path: Any) -> None:
    path = tmp_path / "rows.json"
    call_command("dumpdata", "relay.consumer", "relay.apikey", "relay.grant", output=str(path), verbosity=0)
    Consumer.objects.all().delete()
    assert installation.finds(installation.lone_text) is None
    call_command("loaddata", str(path), verbosity=0)
    assert installation.finds(installation.lone_text) is not None


def test_an_edit_reads_the_consumers_it_touched_in_one_statement(installation: Installation) -> None:
    for number in range(20):
        ApiKey.issue(Consumer.objects.create(name=f"more {number}"))
    installation.follow()
    before = installation.snapshot
    installation.key.revoke()
    with CaptureQueriesContext(connection) as queries:
        following = load_changes(before)
    assert following is not None
    assert sum("relay_apikey" in query["sql"] for query in queries) == 1
    untouched = [consumer for consumer in before.roster if consumer.id != installation.owned.pk]
    assert all(following.roster.consumer(consumer.id) is consumer for consumer in untouched)


def test_when_a_key_was_last_used_is_no_change(installation: Installation) -> None:
    before = Revision.objects.get().value
    ApiKey.objects.filter(pk=installation.key.pk).update(last_used_at=timezone.now())
    assert Revision.objects.get().value == before
    assert load_changes(installation.snapshot) is None


def test_a_consumer_that_cannot_be_read_is_left_out_and_the_others_are_not(
    installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE relay_apikey SET digest = 'no digest' WHERE id = %s", [installation.key.pk])
    ConsumerChange.objects.update(revision=Revision.objects.get().value + 1)
    Revision.objects.update(value=Revision.objects.get().value + 1)
    with caplog.at_level(logging.ERROR, logger="relay.catalog.consumers"):
        roster = installation.follow()
    assert roster.consumer(installation.owned.pk) is None
    assert find(roster, installation.lone_text) is not None
    assert str(installation.owned.pk) in caplog.text
    assert "no digest" not in caplog.text
