"""The audit trail's laws: what is in it, who it names, what is never in it, and that it is only added to.

That it misses no way of writing is played through in tests/catalog/test_trail.py.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core import serializers
from django.core.management import call_command
from django.db import NotSupportedError, connection, transaction
from django.http import HttpRequest
from django.test import RequestFactory, override_settings
from django.utils import timezone

from relay.admin.authorship import author_of
from relay.models import ApiKey, AuditEntry, Consumer, Deed, Grant, HeaderRule, Upstream, audit, authors
from relay.models.audit import CHANGED, AppendOnly
from relay.models.authors import Author, Source
from relay.models.exports import Format, pieces

pytestmark = pytest.mark.django_db


@pytest.fixture
def weather() -> Upstream:
    return Upstream.objects.create(slug="weather", name="Weather service", base_url="https://weather.example")


@pytest.fixture
def batch(weather: Upstream) -> Consumer:
    consumer = Consumer.objects.create(name="batch")
    ApiKey.issue(consumer, label="laptop")
    Grant.objects.create(consumer=consumer, upstream=weather, methods="GET")
    return consumer


def entries_of(edit: Callable[[], object]) -> list[AuditEntry]:
    """What an edit left in the trail, oldest first."""
    last = AuditEntry.objects.values_list("pk", flat=True).first() or 0
    edit()
    return list(AuditEntry.objects.filter(pk__gt=last).order_by("pk"))


def told(edit: Callable[[], object]) -> list[tuple[str, str, Any]]:
    return [(entry.action, entry.object_type, entry.changes) for entry in entries_of(edit)]


# What is told


def test_an_entry_names_the_object_and_what_it_belongs_to(weather: Upstream, batch: Consumer) -> None:
    def edit() -> None:
        weather.header_rules.create(name="x-a", value="1")
        batch.keys.get().revoke()
        Grant.objects.update(methods="POST")
        Upstream.objects.update(slug="climate")
        Consumer.objects.update(enabled=False)

    rule, key, grant, upstream, consumer = entries_of(edit)
    keys = [(entry.upstream_key, entry.consumer_key) for entry in (rule, key, grant, upstream, consumer)]
    assert keys == [(weather.pk, None), (None, batch.pk), (weather.pk, batch.pk), (weather.pk, None), (None, batch.pk)]
    assert (rule.object_name, rule.upstream, rule.consumer) == ("set x-a on the request", "weather", "")
    assert (key.object_name, key.upstream, key.consumer) == (str(batch.keys.get()), "", "batch")
    assert (grant.object_name, grant.upstream, grant.consumer) == ("POST", "weather", "batch")
    assert (upstream.object_name, upstream.upstream) == ("Weather service", "climate")
    assert upstream.changes == {"slug": ["weather", "climate"]}
    assert consumer.changes == {"enabled": [True, False]}
    assert str(key) == f"key {key.object_name}: changed"


def test_a_target_is_named_by_its_address_and_told_with_its_upstream(weather: Upstream) -> None:
    def edit() -> None:
        target = weather.targets.create(address="10.20.0.7:8080")
        target.weight = 3
        target.save()
        weather.targets.update(enabled=False)
        weather.targets.all().delete()

    left = entries_of(edit)
    named = [(entry.kind, entry.object_name, entry.upstream, entry.action) for entry in left]
    assert named == [
        ("target", "10.20.0.7:8080", "weather", action) for action in ("added", "changed", "changed", "removed")
    ]
    assert left[0].changes["address"] == [None, "10.20.0.7:8080"]
    assert [entry.changes for entry in left[1:3]] == [{"weight": [1, 3]}, {"enabled": [True, False]}]


def test_what_a_removal_takes_along_is_told_with_names(weather: Upstream, batch: Consumer) -> None:
    weather.header_rules.create(name="x-a", value="1")
    weather.targets.create(address="10.20.0.7")
    removed = entries_of(weather.delete)
    assert {(entry.object_type, entry.upstream, entry.consumer) for entry in removed} == {
        ("relay.headerrule", "weather", ""),
        ("relay.target", "weather", ""),
        ("relay.grant", "weather", "batch"),
        ("relay.upstream", "weather", ""),
    }
    assert all(entry.action == Deed.REMOVED for entry in removed)
    assert [(entry.object_type, entry.consumer) for entry in entries_of(batch.delete)] == [
        ("relay.apikey", "batch"),
        ("relay.consumer", "batch"),
    ]


def test_a_removal_tells_what_was_stored_and_not_what_was_in_memory(weather: Upstream) -> None:
    weather.name = "Never saved"
    (removed,) = entries_of(weather.delete)
    assert removed.object_name == "Weather service"
    assert removed.changes["name"] == ["Weather service", None]


def test_a_group_that_goes_takes_grants_and_memberships(weather: Upstream, django_user_model: type[User]) -> None:
    group = Group.objects.create(name="callers")
    member = django_user_model.objects.create_user("member")
    member.groups.add(group)
    Grant.objects.create(group=group, upstream=weather)
    changes = told(group.delete)
    assert sorted((action, kind) for action, kind, _ in changes) == [
        ("changed", "auth.user"),
        ("removed", "auth.group"),
        ("removed", "relay.grant"),
    ]
    assert ("changed", "auth.user", {"groups": [["callers"], []]}) in changes


def test_saving_what_is_there_already_leaves_no_entry(weather: Upstream, batch: Consumer) -> None:
    assert told(weather.save) == []
    assert told(lambda: Upstream.objects.update(enabled=True)) == []
    assert told(lambda: ApiKey.objects.update(last_used_at=timezone.now())) == []


def test_values_are_told_as_they_are_stored(weather: Upstream) -> None:
    def edit() -> None:
        weather.total_timeout_seconds, weather.allowed_methods = 1.5, "get post"
        weather.save()

    assert told(edit) == [
        ("changed", "relay.upstream", {"total_timeout_seconds": [None, 1.5], "allowed_methods": ["", "GET, POST"]})
    ]


def test_many_rows_at_once_are_all_told() -> None:
    Upstream.objects.bulk_create(Upstream(slug=f"n{number}", base_url="https://n.example") for number in range(1_203))
    HeaderRule.objects.bulk_create(HeaderRule(upstream=row, name="x-a") for row in Upstream.objects.all()[:1_100])
    assert len(entries_of(lambda: Upstream.objects.update(enabled=False))) == 1_203
    removed = entries_of(lambda: Upstream.objects.all().delete())
    assert len(removed) == 2_303
    assert all(entry.upstream.startswith("n") for entry in removed)


def test_a_row_keeps_its_key_and_conflicts_are_named(weather: Upstream) -> None:
    with pytest.raises(NotSupportedError):
        Upstream.objects.update(id=7)
    with pytest.raises(NotSupportedError):
        Upstream.objects.bulk_create([weather], ignore_conflicts=True)


# Users and groups


def test_what_people_may_do_is_told(django_user_model: type[User]) -> None:
    right = Permission.objects.get(codename="change_upstream")
    group = Group.objects.create(name="editors")
    user = django_user_model.objects.create_user("alice", password="first")

    def fields(**values: Any) -> None:
        for name, value in values.items():
            setattr(user, name, value)
        user.save()

    assert told(lambda: fields(is_staff=True)) == [("changed", "auth.user", {"is_staff": [False, True]})]
    assert told(lambda: fields(is_superuser=True, is_active=False)) == [
        ("changed", "auth.user", {"is_superuser": [False, True], "is_active": [True, False]})
    ]
    assert told(lambda: user.groups.add(group)) == [("changed", "auth.user", {"groups": [[], ["editors"]]})]
    assert told(lambda: user.groups.add(group)) == []
    assert told(lambda: user.groups.clear()) == [("changed", "auth.user", {"groups": [["editors"], []]})]
    assert told(lambda: group.user_set.add(user)) == [("changed", "auth.user", {"groups": [[], ["editors"]]})]
    assert told(lambda: group.user_set.remove(user)) == [("changed", "auth.user", {"groups": [["editors"], []]})]
    assert told(lambda: group.permissions.set([right])) == [
        ("changed", "auth.group", {"permissions": [[], ["relay.change_upstream"]]})
    ]
    assert told(lambda: user.user_permissions.add(right)) == [
        ("changed", "auth.user", {"user_permissions": [[], ["relay.change_upstream"]]})
    ]
    assert told(lambda: (user.set_password("second"), user.save())) == [("changed", "auth.user", {"password": CHANGED})]


def test_signing_in_is_no_change(client: Any, django_user_model: type[User]) -> None:
    user = django_user_model.objects.create_user("alice", password="first")
    assert told(lambda: client.force_login(user)) == []
    assert told(lambda: setattr(user, "last_name", "Other") or user.save()) == []


def test_the_trail_outlives_its_authors(weather: Upstream, django_user_model: type[User]) -> None:
    alice = django_user_model.objects.create_superuser("alice")
    author = Author(Source.ADMIN, user_id=alice.pk, name="alice", address="192.0.2.1")

    def edit() -> None:
        with authors.acting(lambda: author):
            weather.created_by = alice
            weather.save()
            Consumer.objects.create(name="hers", owner=alice)
            alice.delete()  # by herself

    left = entries_of(edit)
    assert [(entry.action, entry.object_type) for entry in left][-1] in {
        ("changed", "relay.consumer"),
        ("changed", "relay.upstream"),
    }
    assert {(entry.actor, entry.actor_name, entry.address) for entry in left} == {(None, "alice", "192.0.2.1")}
    connection.check_constraints()


# Who


def test_what_a_command_changes_is_in_the_trail_with_its_name() -> None:
    edit: list[tuple[str, ...]] = [("add", "a", "https://a.example"), ("set", "a", "--set", "name=A"), ("disable", "a")]
    for words in edit:
        (entry,) = entries_of(lambda words=words: call_command("upstreams", *words))  # type: ignore[misc]  # bound now
        assert (entry.source, entry.source_name) == (Source.COMMAND, f"upstreams {words[0]}")
        assert (entry.actor, entry.actor_name, entry.address) == (None, authors.system_user(), "")
    assert authors.current().source != Source.COMMAND


@pytest.mark.parametrize(
    ("argv", "source", "name"),
    [
        (["manage.py", "loaddata", "file"], Source.COMMAND, "loaddata"),
        (["/usr/bin/relay", "createsuperuser"], Source.COMMAND, "createsuperuser"),
        (["manage.py", "shell"], Source.SHELL, ""),
        (["manage.py", "serve"], Source.SERVER, ""),
        (["/venv/bin/gunicorn", "config.asgi"], Source.SERVER, ""),
        (["script.py"], Source.SHELL, ""),
        ([], Source.SHELL, ""),
    ],
)
def test_a_process_tells_what_it_is(argv: list[str], source: Source, name: str) -> None:
    author = authors.of_process(argv)
    assert (author.source, author.source_name) == (source, name)
    assert author.name == ("" if source == Source.SERVER else authors.system_user())


def request_from(peer: str, **headers: str) -> HttpRequest:
    return RequestFactory().get("/", REMOTE_ADDR=peer, **headers)  # type: ignore[arg-type]  # META, not query


@override_settings(RELAY_TRUSTED_PROXIES=("10.0.0.0/8",))
def test_the_address_is_the_nearest_that_is_believed() -> None:
    forged = {"HTTP_X_FORWARDED_FOR": "198.51.100.7, 203.0.113.9", "HTTP_X_REQUEST_ID": "request-id-1"}
    stranger = author_of(request_from("192.0.2.1", **forged))
    assert (stranger.address, stranger.request_id) == ("192.0.2.1", "")
    behind = author_of(request_from("10.0.0.1", **forged))
    assert (behind.address, behind.request_id) == ("203.0.113.9", "request-id-1")
    assert author_of(request_from("10.0.0.1", HTTP_X_FORWARDED_FOR="=cmd()")).address == "10.0.0.1"
    assert author_of(request_from("")).address == ""
    assert stranger.source == Source.SERVER


# What is never told


def put(kind: Any, row: Any, field: str, text: str, way: str) -> None:
    setattr(row, field, text)
    if way == "update":
        kind.objects.filter(pk=row.pk).update(**{field: text})
    else:
        row.save(**({"update_fields": [field]} if way == "save_some" else {}))


def rows_with_secrets(upstream: Upstream, consumer: Consumer) -> Iterator[tuple[str, Callable[[], object]]]:
    """(a new secret, what writes it), for each field that holds one, by each way of writing."""
    rule = upstream.header_rules.create(name="x-a", value="first")
    user = User.objects.create_user("alice")
    key = consumer.keys.get()
    for kind, row, field, form in (
        (HeaderRule, rule, "value", "Bearer {}"),
        (Upstream, upstream, "outbound_proxy", "http://user:{}@proxy.example:3128"),
        (Upstream, upstream, "outbound_proxy", "http://{}:password@proxy.example:3128"),
        (ApiKey, key, "digest", "{}"),
    ):
        for way in ("save", "update", "save_some"):
            secret = secrets.token_hex(24)

            def write(
                way: str = way, secret: str = secret, kind: Any = kind, row: Any = row, field: str = field
            ) -> None:
                text = form.format(secret)  # noqa: B023 - called before the next
                setattr(row, field, text)
                if way == "update":
                    kind.objects.filter(pk=row.pk).update(**{field: text})
                else:
                    row.save(**({"update_fields": [field]} if way == "save_some" else {}))

            yield secret, write
    secret = secrets.token_hex(24)
    yield secret, lambda: HeaderRule.objects.bulk_create([HeaderRule(upstream=upstream, name="x-b", value=secret)])
    yield secret, lambda: HeaderRule.objects.all().delete()

    def issue() -> None:
        _, text = ApiKey.issue(consumer)
        assert text not in whole_trail()

    yield secret, issue
    password = secrets.token_hex(24)

    def set_password() -> None:
        user.set_password(password)
        user.save()

    yield password, set_password


def whole_trail() -> str:
    """Every column of every entry, and both exports."""
    columns = json.dumps(list(AuditEntry.objects.values_list()), default=str)
    return "".join(
        (columns, *pieces(AuditEntry.objects.all(), Format.CSV), *pieces(AuditEntry.objects.all(), Format.JSONL))
    )


def test_no_secret_is_in_any_entry_or_export(weather: Upstream, batch: Consumer) -> None:
    written: list[str] = []
    for secret, write in rows_with_secrets(weather, batch):
        left = entries_of(write)
        assert any(CHANGED in entry.changes.values() for entry in left), write
        written.append(secret)
    weather.delete()
    batch.delete()
    trail = whole_trail()
    hashes = [user.password for user in User.objects.all()]
    for secret in (*written, *hashes, "first"):
        assert secret not in trail
        assert secret[:12] not in trail or secret == "first"


def test_whatever_sounds_like_a_secret_is_none_of_the_trails_business() -> None:
    words = ("secret", "token", "password", "digest", "sealed", "value", "private")
    # Where a secret is kept, and where tokens come from: to be told, since a change of these is what to look for.
    places = {"secret_reference", "session_token_reference", "token_networks", "token_url"}
    for kind in audit.followed():
        policy = audit._policies[kind]
        told_of = {field.name for field in policy.fields} - policy.secret - places
        assert {name for name in told_of if any(word in name for word in words)} == set(), kind


def test_a_proxy_is_told_without_user_and_password(weather: Upstream) -> None:
    def edit() -> None:
        weather.outbound_proxy = "http://user:s3cret@proxy.example:3128"
        weather.save()

    assert [entry.changes for entry in entries_of(edit)] == [
        {"outbound_proxy": ["", "http://proxy.example:3128"], "outbound_proxy_secret": CHANGED}
    ]
    assert [entry.changes for entry in entries_of(lambda: Upstream.objects.update(outbound_proxy=""))] == [
        {"outbound_proxy": ["http://proxy.example:3128", ""], "outbound_proxy_secret": CHANGED}
    ]


# Only added to


def test_entries_cannot_be_changed_or_removed(weather: Upstream, tmp_path: Path) -> None:
    entry = AuditEntry.objects.get()
    entry.actor_name = "nobody"
    attempts: list[Callable[[], object]] = [
        entry.save,
        entry.delete,
        lambda: AuditEntry.objects.update(actor_name="nobody"),
        lambda: AuditEntry.objects.bulk_update([entry], ["actor_name"]),
        lambda: AuditEntry.objects.all().delete(),
        lambda: AuditEntry.objects.bulk_create(
            [entry], update_conflicts=True, unique_fields=["id"], update_fields=["actor_name"]
        ),
        lambda: AuditEntry.objects.update_or_create(pk=entry.pk, defaults={"actor_name": "nobody"}),
    ]
    path = tmp_path / "fixture.json"
    path.write_text(serializers.serialize("json", [entry]), encoding="utf-8")
    attempts.append(lambda: call_command("loaddata", str(path), verbosity=0))
    for attempt in attempts:
        with pytest.raises(AppendOnly), transaction.atomic():
            attempt()
    assert AuditEntry.objects.get().actor_name == authors.system_user()


def test_pruning_takes_the_old_ones_and_leaves_an_entry(weather: Upstream) -> None:
    AuditEntry._base_manager.update(moment=timezone.now() - timedelta(days=40))
    Upstream.objects.update(name="Newer")
    assert AuditEntry.objects.prune(timezone.now() - timedelta(days=50)) == 0
    assert AuditEntry.objects.count() == 2
    assert AuditEntry.objects.prune(timezone.now() - timedelta(days=30)) == 1
    pruned, newer = AuditEntry.objects.all()
    assert newer.changes == {"name": ["Weather service", "Newer"]}
    assert (pruned.action, pruned.object_type, pruned.changes["entries"]) == ("removed", "relay.auditentry", [1, None])
    assert pruned.object_name.startswith("1 entry from before ")
