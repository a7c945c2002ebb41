"""What the loader makes of the tables, and that following changes comes to the same as reading all of it anew."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from django.core import serializers
from django.core.management import call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from relay import catalog
from relay.catalog import loader
from relay.models import AuditEntry, Credential, HeaderRule, Revision, Target, Upstream
from relay.rules.balancing import Balancing
from relay.rules.breaker import BreakerPolicy
from relay.rules.cors import DEFAULT_HEADERS, compile_policy

pytestmark = pytest.mark.usefixtures("database")


def register(slug: str, **fields: Any) -> Upstream:
    return Upstream.objects.create(**{"slug": slug, "base_url": f"https://{slug}.example.com/v1"} | fields)


def picture(snapshot: catalog.Snapshot) -> dict[str, catalog.Upstream]:
    return {upstream.slug: upstream for upstream in snapshot}


def follow(snapshot: catalog.Snapshot) -> catalog.Snapshot:
    following = loader.load_changes(snapshot)
    return snapshot if following is None else following


def found(snapshot: catalog.Snapshot | None, slug: str) -> catalog.Upstream:
    assert snapshot is not None
    upstream = snapshot.find(slug.encode())
    assert upstream is not None
    return upstream


def test_an_empty_database_gives_an_empty_snapshot() -> None:
    snapshot = loader.load_all()
    assert len(snapshot) == 0
    assert snapshot.revision == 0
    assert loader.load_changes(snapshot) is None


def test_every_field_arrives_in_the_snapshot() -> None:
    row = register(
        "a",
        base_url="http://a.example.com:8080/v1/",
        access="anyone",
        allowed_methods="get, post",
        allowed_networks="10.0.0.0/8",
        total_timeout_seconds=9,
        min_upload_bytes_per_second=4,
        max_request_bytes=5,
        max_response_bytes=6,
        delivery="buffered",
        max_buffered_bytes=7,
        host_header="caller",
        cookie_mode="jar",
        cors_allowed_origins="https://App.example",
        cors_allowed_methods="post, put",
        cors_exposed_headers="x-a",
        cors_allow_credentials=True,
        cors_max_age_seconds=8,
        verify_tls=False,
        outbound_proxy="http://u:p@proxy.example.com:3128",
        balancing="header",
        balancing_header="x-session",
        max_retries=2,
        retry_percent=30,
        breaker_failures=4,
        breaker_percent=0,
        breaker_seconds=90,
    )
    row.header_rules.create(name="User-Agent", value="relay")
    row.header_rules.create(name="X-A", action="remove")
    row.header_rules.create(name="Server", side="response", action="remove")
    upstream = found(loader.load_all(), "a")
    assert (upstream.scheme, upstream.host, upstream.port, upstream.base_path) == (
        "http",
        "a.example.com",
        8080,
        b"/v1/",
    )
    assert upstream.authority == b"a.example.com:8080"
    assert upstream.open_to_anyone
    assert upstream.methods == {"GET", "POST"}
    assert upstream.allowed_networks == (ip_network("10.0.0.0/8"),)
    assert upstream.total_timeout_seconds == 9.0
    assert upstream.min_upload_bytes_per_second == 4
    assert (upstream.max_request_bytes, upstream.max_response_bytes, upstream.max_buffered_bytes) == (5, 6, 7)
    assert upstream.caller_host
    assert (upstream.relays_cookies, upstream.keeps_jar) == (False, True)
    assert upstream.cors == compile_policy(
        origins="https://app.example",
        methods="POST",
        headers=DEFAULT_HEADERS,
        exposed="x-a",
        allow_credentials=True,
        max_age_seconds=8,
    )
    assert not upstream.verify_tls
    assert upstream.outbound_proxy == "http://u:p@proxy.example.com:3128"
    assert upstream.request_changes.removed == {b"user-agent", b"x-a"}
    assert upstream.request_changes.appended == ((b"user-agent", b"relay"),)
    assert upstream.response_changes.removed == {b"server"}
    assert "u:p" not in repr(upstream)
    assert (upstream.balancing, upstream.balancing_header) == (Balancing.HEADER, b"x-session")
    assert (upstream.max_retries, upstream.retry_share) == (2, 0.3)
    assert upstream.breaker == BreakerPolicy(
        consecutive_failures=4, failure_rate=None, open_seconds=90, longest_open_seconds=90
    )


def test_disabled_upstreams_are_not_in_the_snapshot() -> None:
    register("on")
    register("off", enabled=False)
    assert set(picture(loader.load_all())) == {"on"}


def test_header_rules_keep_their_order() -> None:
    row = register("a")
    HeaderRule.objects.bulk_create(
        HeaderRule(upstream=row, action="add", name="x-n", value=str(number)) for number in range(20)
    )
    pairs = found(loader.load_all(), "a").request_changes.appended
    assert [value for _, value in pairs] == [str(number).encode() for number in range(20)]


# Targets.


def test_without_targets_the_base_urls_place_is_the_only_one() -> None:
    register("a", base_url="https://a.example.com:8443/v1")
    upstream = found(loader.load_all(), "a")
    assert upstream.listed_targets is None
    assert upstream.sole_target == upstream.targets[0]
    assert (upstream.targets[0].name, upstream.targets[0].authority) == ("a.example.com:8443", b"a.example.com:8443")


def test_targets_arrive_in_their_order_with_what_they_leave_to_the_base_url() -> None:
    row = register("a", base_url="https://a.example.com:8443/v1")
    row.targets.create(address="b.example.com", weight=3)
    row.targets.create(address="10.0.0.7:443", backup=True)
    row.targets.create(address="[2001:db8::1]:80")
    row.targets.create(address="off.example.com", enabled=False)
    upstream = found(loader.load_all(), "a")
    assert upstream.sole_target is None
    assert [
        (target.host, target.port, target.authority, target.weight, target.is_backup) for target in upstream.targets
    ] == [
        ("b.example.com", 8443, b"b.example.com:8443", 3, False),
        ("10.0.0.7", 443, b"10.0.0.7", 1, True),
        ("2001:db8::1", 80, b"[2001:db8::1]:80", 1, False),
    ]
    assert [target.name for target in upstream.targets] == ["b.example.com:8443", "10.0.0.7:443", "[2001:db8::1]:80"]


def test_a_target_with_and_without_the_base_urls_port_is_one() -> None:
    row = register("a")
    row.targets.create(address="b.example.com", weight=2)
    row.targets.create(address="b.example.com:443")
    upstream = found(loader.load_all(), "a")
    assert upstream.sole_target is not None
    assert upstream.sole_target.weight == 2


def test_all_targets_switched_off_leave_nowhere_to_go_not_the_base_url() -> None:
    row = register("a")
    row.targets.create(address="b.example.com", enabled=False)
    upstream = found(loader.load_all(), "a")
    assert upstream.listed_targets == upstream.targets == ()
    assert upstream.sole_target is None


def test_targets_rules_and_credentials_of_one_upstream_do_not_multiply_each_other() -> None:
    """They come in one statement, each with each."""
    for slug in ("a", "b"):
        row = register(slug)
        for number in range(3):
            row.targets.create(address=f"{slug}{number}.example.com")
            row.header_rules.create(action="add", name="x-n", value=f"{slug}{number}")
        Credential.put(row, "bearer", secrets={"secret": f"of-{slug}"})
        Credential.put(row, "query", secrets={"secret": f"of-{slug}"}, name="k")
    with CaptureQueriesContext(connection) as queries:
        loaded = {upstream.slug: upstream for upstream in loader._read(Upstream.objects.all())}
    assert len(queries) == 1
    for slug, upstream in loaded.items():
        numbers = range(3)
        assert [target.host for target in upstream.targets] == [f"{slug}{number}.example.com" for number in numbers]
        assert upstream.request_changes.appended == tuple((b"x-n", f"{slug}{number}".encode()) for number in numbers)
        assert upstream.credential is not None
        assert upstream.credential.fault is None


@pytest.mark.parametrize("address", ["user:s3cret@b.example.com", "b s3cret", "b.example.com:s3cret", ""])
@pytest.mark.parametrize("enabled", [True, False])
def test_an_unreadable_target_leaves_its_upstream_out(
    address: str, enabled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    register("good")
    target = register("bad").targets.create(address="b.example.com", enabled=enabled)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE relay_target SET address = %s WHERE id = %s", [address, target.pk])
    with caplog.at_level(logging.ERROR):
        assert set(picture(loader.load_all())) == {"good"}
    assert "bad is left out: its targets cannot be read" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_weight_that_is_no_number_makes_the_row_unreadable() -> None:
    row = Upstream(slug="a", base_url="https://a.example.com")
    with pytest.raises(loader.RowUnreadable, match="targets"):
        loader.snapshot_of(row, targets=[loader.TargetRow(1, "b.example.com", "s3cret", True, False)])  # type: ignore[arg-type]


def force(statement: str) -> None:
    """An edit by hand, which knows neither validation nor constraints."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA ignore_check_constraints=ON")
        else:
            cursor.execute("ALTER TABLE relay_upstream DROP CONSTRAINT relay_upstream_base_url")
        try:
            cursor.execute(statement)
        finally:
            if connection.vendor == "sqlite":
                cursor.execute("PRAGMA ignore_check_constraints=OFF")


@pytest.fixture
def constraint_back() -> Any:
    yield
    if connection.vendor == "postgresql":
        Upstream.objects.all().delete()
        constraint = next(c for c in Upstream._meta.constraints if c.name == "relay_upstream_base_url")
        with connection.schema_editor() as editor:
            editor.add_constraint(Upstream, constraint)


@pytest.mark.usefixtures("constraint_back")
def test_an_unreadable_row_is_left_out_and_named_and_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    register("good")
    register("bad")
    force("UPDATE relay_upstream SET base_url = 'https://user:s3cret@bad.example.com' WHERE slug = 'bad'")
    with caplog.at_level(logging.ERROR):
        assert set(picture(loader.load_all())) == {"good"}
    assert "bad is left out: its base_url cannot be read" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allowed_networks", "10.0.0.1/8"),
        ("outbound_proxy", "ftp://user:s3cret@x"),
        ("connect_timeout_seconds", "soon"),
        ("max_concurrent", "many"),
        ("min_upload_bytes_per_second", "few"),
        ("cors_max_age_seconds", "long"),
        ("cors_allowed_headers", "x-a: s3cret"),
        ("cors_exposed_headers", "x-a(s3cret)"),
    ],
)
def test_nonsense_in_any_field_makes_the_row_unreadable_and_is_not_repeated(field: str, value: object) -> None:
    row = Upstream(slug="a", base_url="https://a.example.com", cors_allowed_origins="https://app.example")
    setattr(row, field, value)
    with pytest.raises(loader.RowUnreadable) as problem:
        loader.snapshot_of(row, [])
    assert str(value) not in str(problem.value)


@pytest.mark.parametrize(
    "rule", [("request", "set", "host", "x"), ("request", "set", "x-a", "s3\r\ncret"), ("both", "set", "x-a", "s3cret")]
)
def test_a_header_rule_that_could_not_be_saved_makes_the_row_unreadable(rule: tuple[str, str, str, str]) -> None:
    with pytest.raises(loader.RowUnreadable, match="header_rules"):
        loader.snapshot_of(Upstream(slug="a", base_url="https://a.example.com"), [rule])


def test_an_edit_is_loaded_and_the_rest_is_shared() -> None:
    register("a")
    register("b")
    before = loader.load_all()
    Upstream.objects.filter(slug="a").update(access="anyone")
    after = loader.load_changes(before)
    assert found(after, "a").open_to_anyone
    assert found(after, "b") is found(before, "b")
    assert not found(before, "a").open_to_anyone


def test_a_renamed_slug_is_gone_under_the_old_name_and_there_under_the_new() -> None:
    row = register("old")
    before = loader.load_all()
    row.slug = "new"
    row.save()
    after = loader.load_changes(before)
    assert after is not None
    assert set(picture(after)) == {"new"}


def test_a_rolled_back_edit_is_not_seen() -> None:
    row = register("a")
    before = loader.load_all()
    with transaction.atomic():
        row.name = "x"
        row.save()
        transaction.set_rollback(True)
    assert loader.load_changes(before) is None


def test_a_database_with_a_lower_revision_is_read_anew() -> None:
    for slug in ("a", "b", "c"):
        register(slug)
    before = loader.load_all()
    Upstream.objects.filter(slug="b").delete()
    Revision.objects.update(value=1)
    after = loader.load_changes(before)
    assert after is not None
    assert set(picture(after)) == {"a", "c"}
    assert after.revision == 1


def test_a_flushed_database_is_read_anew_and_counts_on() -> None:
    register("a")
    before = loader.load_all()
    Upstream.objects.all().delete()
    Revision.objects.all().delete()
    after = loader.load_changes(before)
    assert after is not None
    assert len(after) == 0
    register("b")
    assert set(picture(loader.load_all())) == {"b"}


@pytest.mark.parametrize("neighbours", [10, 1000])
def test_the_cost_of_an_edit_does_not_grow_with_the_table(neighbours: int) -> None:
    Upstream.objects.bulk_create(
        Upstream(slug=f"n{number}", base_url="https://n.example.com") for number in range(neighbours)
    )
    row = register("a")
    row.header_rules.create(name="x-a", value="1")
    before = loader.load_all()
    row.name = "x"
    with CaptureQueriesContext(connection) as writing:
        row.save()
    with CaptureQueriesContext(connection) as reading:
        after = loader.load_changes(before)
    assert after is not None
    statements = [query["sql"] for query in reading if query["sql"].startswith(("SELECT", "DECLARE"))]
    assert len([sql for sql in statements if "set_config" not in sql]) == 4
    assert len(writing) < 25
    assert len(before.not_shared_with(after)) <= 1 + neighbours / 100


def test_an_idle_poll_is_one_query() -> None:
    before = loader.load_all()
    with CaptureQueriesContext(connection) as reading:
        assert loader.load_changes(before) is None
    assert len([query for query in reading if "relay_" in query["sql"]]) == 1


def test_bulk_switches_are_recorded_in_few_statements() -> None:
    Upstream.objects.bulk_create(Upstream(slug=f"n{number}", base_url="https://n.example.com") for number in range(300))
    before = loader.load_all()
    with CaptureQueriesContext(connection) as few:
        Upstream.objects.filter(slug="n1").update(enabled=False)
    with CaptureQueriesContext(connection) as many:
        Upstream.objects.update(enabled=False)
    entries = 300 * len(AuditEntry._meta.fields) / 999  # what SQLite takes in one statement
    assert len(many) - len(few) <= entries
    after = loader.load_changes(before)
    assert after is not None
    assert len(after) == 0


def test_many_changes_at_once_are_loaded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MANY_CHANGES", 5)
    before = loader.load_all()
    Upstream.objects.bulk_create(Upstream(slug=f"n{number}", base_url="https://n.example.com") for number in range(20))
    after = loader.load_changes(before)
    assert after is not None
    assert picture(after) == picture(loader.load_all())


# Following changes equals loading anew, whatever the edits.


class Edits:
    """Random edits by every road there is into the tables."""

    def __init__(self, chance: random.Random, folder: Path) -> None:
        self.chance = chance
        self.folder = folder
        self.made = 0
        self.stale: list[Upstream] = []

    def row(self) -> Upstream:
        rows = list(Upstream.objects.all())
        row = self.chance.choice(rows) if rows else self.create()
        self.stale.append(row)
        return row

    def new(self) -> Upstream:
        self.made += 1
        return Upstream(slug=f"s{self.made}", base_url=f"https://h{self.made}.example.com")

    def rule(self) -> HeaderRule:
        rules = list(HeaderRule.objects.all())
        return self.chance.choice(rules) if rules else self.add_rule()

    def create(self) -> Upstream:
        row = self.new()
        row.save()
        return row

    def bulk_create(self) -> None:
        Upstream.objects.bulk_create([self.new(), self.new()])

    def upsert(self) -> None:
        row = self.row()
        row.name = f"upserted {self.made}"
        Upstream.objects.bulk_create(
            [row, self.new()], update_conflicts=True, unique_fields=["slug"], update_fields=["name"]
        )

    def save(self) -> None:
        row = self.row()
        row.description = str(self.chance.random())
        row.save()

    def save_some_fields(self) -> None:
        row = self.row()
        row.enabled = not row.enabled
        row.save(update_fields=["enabled"])

    def rename(self) -> None:
        row = self.row()
        self.made += 1
        row.slug = f"r{self.made}"
        row.save()

    def save_what_was_loaded_long_ago(self) -> None:
        row = self.stale[0] if self.stale else self.row()
        if Upstream.objects.filter(pk=row.pk).exists() and not (
            Upstream.objects.filter(slug=row.slug).exclude(pk=row.pk).exists()
        ):
            row.save()

    def update(self) -> None:
        Upstream.objects.filter(pk__gte=self.row().pk).update(idle_timeout_seconds=self.chance.randint(1, 99))

    def rename_by_update(self) -> None:
        self.made += 1
        Upstream.objects.filter(pk=self.row().pk).update(slug=f"q{self.made}")

    def bulk_update(self) -> None:
        rows = list(Upstream.objects.all()[:3])
        for row in rows:
            self.made += 1
            row.slug = f"b{self.made}"
        Upstream.objects.bulk_update(rows, ["slug"])

    def delete(self) -> None:
        self.row().delete()

    def delete_many(self) -> None:
        Upstream.objects.filter(pk__in=[self.row().pk, self.row().pk]).delete()

    def add_rule(self) -> HeaderRule:
        return self.row().header_rules.create(name="x-a", value=str(self.chance.random()))

    def edit_rule(self) -> None:
        rule = self.rule()
        rule.value = str(self.chance.random())
        rule.save()

    def move_rule(self) -> None:
        rule = self.rule()
        rule.upstream = self.row()
        rule.save()

    def move_rules_by_update(self) -> None:
        HeaderRule.objects.filter(pk=self.rule().pk).update(upstream=self.row())

    def move_rules_by_manager(self) -> None:
        self.row().header_rules.add(self.rule())

    def bulk_create_rules(self) -> None:
        HeaderRule.objects.bulk_create([HeaderRule(upstream=self.row(), name="x-b", value="1")])

    def update_rules(self) -> None:
        HeaderRule.objects.filter(pk=self.rule().pk).update(value="2")

    def delete_rule(self) -> None:
        self.rule().delete()

    def delete_rules(self) -> None:
        HeaderRule.objects.filter(pk=self.rule().pk).delete()

    def target(self) -> Target:
        targets = list(Target.objects.all())
        return self.chance.choice(targets) if targets else self.add_target()

    def address(self) -> str:
        self.made += 1
        return f"t{self.made}.example.com"

    def add_target(self) -> Target:
        return self.row().targets.create(address=self.address(), weight=self.chance.randint(1, 9))

    def bulk_create_targets(self) -> None:
        row = self.row()
        Target.objects.bulk_create([Target(upstream=row, address=self.address()) for _ in range(2)])

    def switch_target(self) -> None:
        target = self.target()
        target.enabled = not target.enabled
        target.save(update_fields=["enabled"])

    def move_target(self) -> None:
        target = self.target()
        target.upstream = self.row()
        target.save()

    def move_targets_by_update(self) -> None:
        Target.objects.filter(pk=self.target().pk).update(upstream=self.row())

    def update_targets(self) -> None:
        Target.objects.filter(pk=self.target().pk).update(weight=7)

    def delete_target(self) -> None:
        self.target().delete()

    def delete_targets(self) -> None:
        Target.objects.filter(pk=self.target().pk).delete()

    def load_fixture(self) -> None:
        row, rule, new = self.row(), self.rule(), self.new()
        self.made += 1
        row.slug = f"f{self.made}"
        new.pk = 100_000 + self.made
        new.created_at = new.changed_at = timezone.now()
        rule.upstream = new
        # The rule comes before the upstream it points to.
        path = self.folder / "fixture.json"
        path.write_text(serializers.serialize("json", [rule, row, new]), encoding="utf-8")
        call_command("loaddata", str(path), verbosity=0)

    def roll_back(self) -> None:
        with transaction.atomic():
            self.rename()
            self.delete()
            transaction.set_rollback(True)


_NO_EDITS = {"__init__", "row", "new", "rule", "target", "address"}
EDITS = [name for name, what in vars(Edits).items() if callable(what) and name not in _NO_EDITS]


@pytest.mark.parametrize("seed", range(4))
def test_following_changes_comes_to_the_same_as_loading_all(seed: int, tmp_path: Path) -> None:
    edits = Edits(random.Random(seed), tmp_path)
    snapshot = loader.load_all()
    done: list[str] = []
    for _ in range(20):
        for name in edits.chance.choices(EDITS, k=edits.chance.randint(1, 3)):
            done.append(name)
            act: Callable[[], object] = getattr(edits, name)
            act()
        snapshot = follow(snapshot)
        assert picture(snapshot) == picture(loader.load_all()), done


@pytest.mark.parametrize("name", EDITS)
def test_each_kind_of_edit_is_seen(name: str, tmp_path: Path) -> None:
    edits = Edits(random.Random(name), tmp_path)
    edits.bulk_create()
    edits.add_rule()
    edits.add_target()
    snapshot = loader.load_all()
    getattr(edits, name)()
    assert picture(follow(snapshot)) == picture(loader.load_all())
