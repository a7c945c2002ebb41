"""The verdicts of the model and of the database's constraints, and the log of changes that every write leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trustme
from django.core.exceptions import ValidationError
from django.db import DataError, IntegrityError, connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from relay.models import Change, HeaderRule, JarCookie, Revision, Target, Upstream, empty_jar
from relay.models.targets import MOST_TARGETS

pytestmark = pytest.mark.django_db

CA_BUNDLE = trustme.CA().cert_pem.bytes().decode()
KEY = trustme.CA().private_key_pem.bytes().decode()


def upstream(**fields: Any) -> Upstream:
    return Upstream(**{"slug": "a", "base_url": "https://a.example.com"} | fields)


def saved(**fields: Any) -> Upstream:
    row = upstream(**fields)
    row.save()
    row.refresh_from_db()
    return row


def recorded(edit: Callable[[], object]) -> set[str]:
    """The slugs that an edit noted as changed."""
    before = Revision.objects.get(pk=1).value
    edit()
    return set(Change.objects.filter(revision__gt=before).values_list("slug", flat=True))


WRONG = [
    ("slug", "A"),
    ("slug", "-a"),
    ("slug", "a/b"),
    ("slug", "a\n"),
    ("slug", ""),
    ("slug", "a" * 64),
    ("base_url", ""),
    ("base_url", "ftp://a.example.com"),
    ("base_url", "https://user:s3cret@a.example.com"),
    ("base_url", "https://a.example.com/?q"),
    ("base_url", "https://a.example.com/#f"),
    ("base_url", "https://a.example.com/../b"),
    ("base_url", "https://127.1"),
    ("access", "everyone"),
    ("delivery", "slowly"),
    ("host_header", "mine"),
    ("cookie_mode", "share"),
    ("cors_allowed_origins", "app.example.com"),
    ("cors_allowed_origins", "null"),
    ("cors_allowed_methods", "GET, TRACE"),
    ("cors_allowed_headers", "X-A: 1"),
    ("cors_exposed_headers", "X A;"),
    ("cors_max_age_seconds", 86_401),
    ("cors_max_age_seconds", -1),
    ("allowed_methods", "GET, TRACE"),
    ("allowed_methods", "G=T"),
    ("allowed_methods", "A" * 65),
    ("allowed_networks", "10.0.0.1/8"),
    ("allowed_networks", "ten"),
    ("connect_timeout_seconds", 0),
    ("connect_timeout_seconds", float("nan")),
    ("connect_timeout_seconds", float("inf")),
    ("total_timeout_seconds", 0),
    ("min_upload_bytes_per_second", -1),
    ("min_upload_bytes_per_second", 2**30 + 1),
    ("keepalive_seconds", -1),
    ("keepalive_seconds", float("nan")),
    ("balancing", "random"),
    ("balancing_header", "X A"),
    ("max_retries", 6),
    ("max_retries", -1),
    ("retry_percent", 101),
    ("breaker_failures", 1001),
    ("breaker_percent", 101),
    ("breaker_seconds", 0),
    ("check_path", "healthz"),
    ("check_path", "/a b"),
    ("check_path", "http://elsewhere.example/"),
    ("check_method", "POST"),
    ("check_statuses", ""),
    ("check_statuses", "600"),
    ("check_statuses", "299-200"),
    ("check_interval_seconds", 0),
    ("check_timeout_seconds", float("nan")),
    ("check_failures", 0),
    ("check_successes", 1001),
    ("max_request_bytes", -1),
    ("max_response_bytes", 2**51),
    ("max_concurrent", 0),
    ("max_connections", 65_536),
    ("max_buffered_bytes", 0),
    ("ca_bundle", "no certificate"),
    ("ca_bundle", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"),
    ("ca_bundle", "-----BEGIN CERTIFICATE-----é"),
    ("ca_bundle", CA_BUNDLE + KEY),
    ("outbound_proxy", "socks5://proxy.example.com"),
    ("outbound_proxy", "http://user:s3cret@proxy.example.com/path"),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_wrong_value_is_refused_at_its_field_without_repeating_secrets(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as problem:
        upstream(**{field: value}).save()
    assert set(problem.value.message_dict) == {field}
    assert "s3cret" not in str(problem.value)
    assert not Upstream.objects.exists()


@pytest.mark.parametrize(
    ("field", "value", "constraint"),
    [
        ("slug", "A", "relay_upstream_slug"),
        ("access", "everyone", "relay_upstream_access"),
        ("max_retries", 99, "relay_upstream_balancing"),
        ("total_timeout_seconds", -1.0, "relay_upstream_timeouts"),
        ("max_request_bytes", -1, "relay_upstream_bounds"),
    ],
)
def test_what_the_database_would_refuse_is_told_before(field: str, value: Any, constraint: str) -> None:
    row = upstream(**{field: value})
    with pytest.raises(ValidationError, match=constraint):
        row.validate_constraints()
    row.validate_constraints(exclude={field})  # its form has shown that field's error


def test_all_that_the_database_would_refuse_is_told_together() -> None:
    with pytest.raises(ValidationError) as problem:
        upstream(slug="A", access="everyone").validate_constraints()
    assert [line.split("“")[1].split("”")[0] for line in problem.value.messages] == [
        "relay_upstream_slug",
        "relay_upstream_access",
    ]


def test_the_database_is_asked_once_and_only_about_what_its_conditions_name() -> None:
    row = upstream(slug="the-slug", description="of no condition")
    with CaptureQueriesContext(connection) as statements:
        row.validate_constraints()
        row.validate_constraints(exclude={field.name for field in Upstream._meta.fields})  # nothing is left to ask
    (question,) = (statement["sql"] for statement in statements if statement["sql"].startswith("SELECT"))
    assert "the-slug" in question
    assert "of no condition" not in question


@pytest.mark.parametrize(("field", "value"), [case for case in WRONG if case[0] != "slug"])
def test_bulk_writes_give_the_same_verdicts(field: str, value: Any) -> None:
    saved(slug="b")
    with pytest.raises(ValidationError) as problem:
        Upstream.objects.bulk_create([upstream(**{field: value})])
    assert field in problem.value.message_dict
    with transaction.atomic(), pytest.raises((ValidationError, IntegrityError, DataError)), transaction.atomic():
        Upstream.objects.filter(slug="b").update(**{field: value})
    assert Upstream.objects.get().slug == "b"
    assert getattr(Upstream.objects.get(), field) != value


def test_every_method_that_a_caller_may_send_can_be_listed() -> None:
    longest = "!#$%&'*+-.^_`|~" + "A1" * 24 + "B"
    assert saved(allowed_methods=f"BREW M-SEARCH {longest}").allowed_methods == f"BREW, M-SEARCH, {longest}"


def test_texts_are_stored_in_one_canonical_form() -> None:
    row = saved(
        base_url=" HTTPS://BÜCHER.example:443/ ",
        allowed_methods="get post,GET",
        allowed_networks="10.0.0.0/8, 192.0.2.1 10.0.0.0/8",
        ca_bundle=f"\n{CA_BUNDLE}\n\n",
        outbound_proxy=" http://proxy.example.com:3128 ",
    )
    assert row.base_url == "https://xn--bcher-kva.example"
    assert row.allowed_methods == "GET, POST"
    assert row.allowed_networks == "10.0.0.0/8\n192.0.2.1/32"
    assert row.ca_bundle == CA_BUNDLE.strip() + "\n"
    assert row.outbound_proxy == "http://proxy.example.com:3128"
    row = saved(slug="b", balancing_header=" X-Session-Id ", check_path=" /x?y=1 ", check_statuses="200 204,300-399")
    assert (row.balancing_header, row.check_path, row.check_statuses) == ("x-session-id", "/x?y=1", "200, 204, 300-399")


def test_an_at_sign_in_the_path_is_no_userinfo() -> None:
    assert saved(base_url="https://a.example.com/@me").base_url == "https://a.example.com/@me"


def test_defaults_are_the_careful_ones() -> None:
    row = saved()
    assert (row.access, row.delivery, row.verify_tls, row.allowed_networks, row.enabled) == (
        "key",
        "stream",
        True,
        "",
        True,
    )
    assert str(row) == "a"
    assert row.relay_path == "/relay/a/"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_url": "http://127.0.0.1:9000"}, "127.0.0.1 is not a public address"),
        ({"outbound_proxy": "http://10.0.0.9:3128"}, "10.0.0.9 is not a public address"),
        ({"verify_tls": False}, "TLS verification is off"),
        ({"max_connections": 1, "max_concurrent": 2}, "Only 1 of 2"),
    ],
)
def test_what_will_not_work_is_saved_with_a_warning(fields: dict[str, Any], words: str) -> None:
    warnings = saved(**fields).warnings()
    assert len(warnings) == 1
    assert words in warnings[0]


def test_an_allowed_network_or_a_name_needs_no_warning() -> None:
    assert saved(base_url="http://127.0.0.1", allowed_networks="127.0.0.0/8").warnings() == []
    assert upstream(outbound_proxy="http://proxy.example.com:3128").warnings() == []


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("name", {"name": "Host"}),
        ("name", {"name": "Transfer-Encoding"}),
        ("name", {"name": "X A"}),
        ("name", {"name": ""}),
        ("value", {"value": "s3cret\r\nX-B: 1"}),
        ("value", {"value": "s3cret\0"}),
        ("value", {"value": "s3cret" * 2000}),
        ("value", {"action": "remove", "value": "s3cret"}),
        ("side", {"side": "both"}),
        ("action", {"action": "replace"}),
    ],
)
def test_a_wrong_header_rule_is_refused_without_repeating_its_value(field: str, fields: dict[str, str]) -> None:
    row = saved()
    with pytest.raises(ValidationError) as problem:
        HeaderRule(upstream=row, **{"name": "X-A", "value": "1"} | fields).save()
    assert field in problem.value.message_dict
    assert "s3cret" not in str(problem.value)


def test_a_header_rule_is_stored_in_lower_case_and_trimmed() -> None:
    rule = saved().header_rules.create(name=" X-A ", value="\t1 ")
    assert (rule.name, rule.value) == ("x-a", "1")
    assert str(rule) == "set x-a on the request"


def test_header_rules_of_bulk_writes_are_validated_too() -> None:
    rule = saved().header_rules.create(name="x-a", value="1")
    with transaction.atomic(), pytest.raises(IntegrityError), transaction.atomic():
        HeaderRule.objects.filter(pk=rule.pk).update(name="via me")
    with pytest.raises(ValidationError):
        HeaderRule.objects.filter(pk=rule.pk).update(value="a\x01b")
    with pytest.raises(ValidationError):
        HeaderRule.objects.bulk_create([HeaderRule(upstream=rule.upstream, name="host", value="x")])
    rule.refresh_from_db()
    assert (rule.name, rule.value) == ("x-a", "1")


def test_every_write_notes_the_slugs_it_touches() -> None:
    row = saved()
    other = saved(slug="b")
    assert recorded(row.save) == {"a"}
    row.slug = "c"
    assert recorded(row.save) == {"a", "c"}
    rule = HeaderRule(upstream=row, name="x-a", value="1")
    assert recorded(rule.save) == {"c"}
    rule.upstream = other
    assert recorded(rule.save) == {"b", "c"}
    assert recorded(rule.delete) == {"b"}
    assert recorded(lambda: Upstream.objects.update(enabled=False)) == {"b", "c"}
    assert recorded(lambda: Upstream.objects.filter(slug="b").update(slug="d")) == {"b", "d"}
    assert recorded(lambda: Upstream.objects.bulk_create([upstream(slug="e"), upstream(slug="f")])) == {"e", "f"}
    assert recorded(row.delete) == {"c"}
    assert recorded(Upstream.objects.all().delete) == {"d", "e", "f"}


def test_an_update_moves_the_last_change() -> None:
    row = saved()
    Upstream.objects.update(enabled=False)
    before, row = row.changed_at, Upstream.objects.get()
    assert row.changed_at > before


def test_a_query_set_is_deleted_by_query_sets_only() -> None:
    assert not hasattr(Upstream.objects, "delete")


def test_revision_and_change_read_well() -> None:
    saved()
    assert str(Revision.objects.get()) == "1"
    assert str(Change.objects.get()) == "a at 1"


def test_any_origin_with_credentials_is_refused_with_what_to_do() -> None:
    for fields in (
        {"cors_allowed_origins": " * "},
        {"cors_allowed_origins": "https://a.example", "cors_exposed_headers": "*"},
    ):
        with pytest.raises(ValidationError) as refused:
            upstream(cors_allow_credentials=True, **fields).full_clean()
        assert "name the origins" in refused.value.message_dict["cors_allow_credentials"][0]
    row = saved(cors_allowed_origins="*")
    with pytest.raises(IntegrityError), transaction.atomic():
        Upstream.objects.filter(pk=row.pk).update(cors_allow_credentials=F("enabled"))
    assert (
        saved(slug="b", cors_allowed_origins="HTTPS://A.example:443/".rstrip("/")).cors_allowed_origins
        == "https://a.example"
    )


def test_emptying_a_jar_is_no_change_of_the_upstream() -> None:
    row = saved(cookie_mode="jar")
    JarCookie.objects.create(
        upstream=row, domain="a.example.com", path="/", name="a", host_only=True, secure=False, sealed_value=b"x"
    )
    before = Revision.objects.get(pk=1).value
    assert recorded(lambda: empty_jar(row)) == set()
    assert Revision.objects.get(pk=1).value > before
    assert not JarCookie.objects.exists()


# Targets


def with_targets(*addresses: str, **fields: Any) -> Upstream:
    row = saved(**fields)
    for address in addresses:
        row.targets.create(address=address)
    return row


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" API.example ", "api.example"),
        ("api.example.:080", "api.example:80"),
        ("bücher.example:443", "xn--bcher-kva.example:443"),
        ("10.20.0.7", "10.20.0.7"),
        ("[2001:DB8:0:0::1]", "[2001:db8::1]"),
        ("[2001:db8::1]:8080", "[2001:db8::1]:8080"),
    ],
)
def test_an_address_is_stored_in_its_canonical_form(text: str, canonical: str) -> None:
    row = with_targets(text)
    assert [str(target) for target in row.targets.all()] == [canonical]
    row.targets.update(address=canonical)
    Target.objects.bulk_create([Target(upstream=saved(slug="b"), address=text)])
    assert Target.objects.get(upstream__slug="b").address == canonical


WRONG_TARGETS = [
    ("address", ""),
    ("address", "http://a.example"),
    ("address", "a.example/x"),
    ("address", "user@a.example"),
    ("address", "a example"),
    ("address", "a.example:65536"),
    ("address", "127.1"),
    ("address", "2001:db8::1"),
    ("weight", 0),
    ("weight", 101),
]


@pytest.mark.parametrize(("field", "value"), WRONG_TARGETS)
def test_a_wrong_target_is_refused_on_every_way(field: str, value: Any) -> None:
    row = with_targets("a.example")
    wrong = Target(upstream=row, **{"address": "b.example", "weight": 1} | {field: value})
    for write in (wrong.save, lambda: Target.objects.bulk_create([wrong])):
        with pytest.raises(ValidationError) as problem:
            write()
        assert set(problem.value.message_dict) >= {field}
    with transaction.atomic(), pytest.raises((ValidationError, IntegrityError)), transaction.atomic():
        Target.objects.update(**{field: value})
    assert Target.objects.values_list("address", "weight").get() == ("a.example", 1)


def test_the_database_refuses_a_weight_that_validation_has_not_seen() -> None:
    target = Target(upstream=saved(), address="a.example", weight=101)
    with transaction.atomic(), pytest.raises(IntegrityError, match="relay_target_weight"), transaction.atomic():
        target.save_base()


def test_an_address_is_listed_once_whatever_its_spelling() -> None:
    row = with_targets("a.example:80")
    with pytest.raises(ValidationError, match="has a target with this address already"):
        row.targets.create(address="A.example:080")
    with transaction.atomic(), pytest.raises(IntegrityError), transaction.atomic():
        row.targets.bulk_create([Target(upstream=row, address="A.example:080")])
    saved(slug="b").targets.create(address="a.example:80")


def test_an_upstream_has_at_most_so_many_targets_on_every_way() -> None:
    row, other = saved(), with_targets("z.example", slug="b")
    many = [Target(upstream=row, address=f"n{number}.example") for number in range(MOST_TARGETS + 1)]
    with pytest.raises(ValidationError, match="at most 32 targets"):
        Target.objects.bulk_create(many)
    assert not row.targets.exists()
    Target.objects.bulk_create(many[1:])
    row.targets.first().save()  # type: ignore[union-attr]  # there are 32
    with pytest.raises(ValidationError, match="at most 32 targets"):
        row.targets.create(address="one-more.example")
    with pytest.raises(ValidationError, match="at most 32 targets"):
        other.targets.update(upstream=row)
    assert (row.targets.count(), other.targets.count()) == (MOST_TARGETS, 1)


def test_every_write_of_a_target_notes_its_upstream() -> None:
    row = with_targets("a.example")
    target = row.targets.get()
    assert recorded(target.save) == {"a"}
    assert recorded(lambda: Target.objects.update(enabled=False)) == {"a"}
    assert recorded(target.delete) == {"a"}


def test_balancing_by_a_header_takes_its_name() -> None:
    with pytest.raises(ValidationError) as problem:
        upstream(balancing="header").save()
    assert problem.value.message_dict == {"balancing_header": ["Name the header to balance by."]}
    saved(balancing="header", balancing_header="x-a")


def test_a_check_for_a_text_takes_an_answer_with_a_body() -> None:
    with pytest.raises(ValidationError) as problem:
        upstream(check_path="/healthz", check_method="HEAD", check_body="ok").save()
    assert set(problem.value.message_dict) == {"check_body"}
    saved(check_path="/healthz", check_method="GET", check_body="ok")


@pytest.mark.parametrize(
    ("addresses", "fields", "words"),
    [
        (["10.0.0.1"], {}, "10.0.0.1 is not a public address (private). Requests will be refused"),
        (["10.0.0.1", "[fd00::1]", "10.0.0.2"], {}, "10.0.0.1, fd00::1, 10.0.0.2 are not public addresses"),
        (["10.0.0.1", "b.example"], {}, "10.0.0.1 is not a public address"),
        (["a.example:443", "a.example"], {}, "a.example:443 and a.example are the same place"),
        (["a.example", "b.example"], {"max_connections": 1, "max_concurrent": 3}, "Only 2 of 3"),
        (["a.example"], {"check_path": "/x"}, "Its health checks only inform"),
        ([], {"check_path": "/x"}, "Its health checks only inform"),
    ],
)
def test_targets_that_will_not_work_are_saved_with_a_warning(
    addresses: list[str], fields: dict[str, Any], words: str
) -> None:
    (sentence,) = with_targets(*addresses, **fields).warnings()
    assert words in sentence


def test_of_an_upstream_with_targets_the_base_url_s_own_address_does_not_matter() -> None:
    row = with_targets("a.example", "10.0.0.1:8080", base_url="http://127.0.0.1:9000", allowed_networks="10.0.0.0/8")
    assert row.warnings() == []


def test_targets_that_are_switched_off_or_backups_alone_are_warned_of() -> None:
    row = with_targets("10.0.0.1", "a.example", "b.example", check_path="/healthz")
    row.targets.filter(address="10.0.0.1").update(enabled=False)
    assert row.warnings() == [], "what is switched off is not connected to"
    row.targets.update(backup=True)
    (sentence,) = row.warnings()
    assert sentence.startswith("Only backups are switched on")
    row.targets.update(enabled=False)
    (sentence,) = row.warnings()
    assert sentence.startswith("All of its targets are switched off: callers get 503.")
