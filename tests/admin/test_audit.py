"""The audit trail's pages: who may read them, how entries are found and told, and what an export holds."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import AsyncClient, Client
from django.utils import timezone

from relay.admin.audit import rows_of
from relay.admin.trails import TrailedAdmin, trail_url
from relay.models import AuditEntry, Consumer, HeaderRule, Upstream, audit, exports
from relay.models.authors import Source
from tests.admin.conftest import SignIn
from tests.admin.filled_form import filled_form

LIST = "/admin/relay/auditentry/"


def found(client: Client, query: str = "") -> list[str]:
    """The objects of the entries listed, newest first."""
    response = client.get(f"{LIST}{query}")
    assert response.status_code == 200
    return [entry.object_name for entry in response.context_data["cl"].result_list]


def exported(client: Client, form: str, query: str = "") -> str:
    response = client.get(f"{LIST}export/{form}/{query}")
    assert response.status_code == 200
    assert response.headers["Content-Disposition"].endswith(f'.{form}"')
    return b"".join(response).decode()  # type: ignore[arg-type]  # not an async one here


def test_what_is_done_in_the_admin_has_its_author_and_address(
    admin_client: Client, admin_user: User, weather: Upstream
) -> None:
    form = filled_form(weather, description="Ours", new_rules=[{"name": "x-team", "value": "ours"}])
    response = admin_client.post(f"/admin/relay/upstream/{weather.pk}/change/", form, REMOTE_ADDR="192.0.2.7")
    assert response.status_code == 302
    rule, upstream = AuditEntry.objects.all()[:2]
    for entry in (rule, upstream):
        assert (entry.actor, entry.actor_name, entry.source) == (admin_user, "admin", Source.ADMIN)
        assert entry.address == "192.0.2.7"
    assert upstream.changes == {"description": ["", "Ours"]}
    assert (rule.object_type, rule.upstream) == ("relay.headerrule", "weather")


def test_bulk_actions_are_told_row_by_row(admin_client: Client, weather: Upstream, billing: Upstream) -> None:
    chosen = [weather.pk, billing.pk]
    admin_client.post("/admin/relay/upstream/", {"action": "switch_off", "_selected_action": chosen})
    assert [entry.changes for entry in AuditEntry.objects.filter(source=Source.ADMIN)] == [{"enabled": [True, False]}]
    admin_client.post(
        "/admin/relay/upstream/", {"action": "delete_selected", "_selected_action": chosen, "post": "yes"}
    )
    removed = AuditEntry.objects.filter(action="removed", actor_name="admin")
    assert sorted(removed.values_list("upstream", flat=True)) == ["billing", "weather", "weather", "weather"]


def test_reading_the_trail_is_a_right_of_its_own(sign_in: SignIn, weather: Upstream) -> None:
    entry = AuditEntry.objects.first()
    assert entry is not None
    pages = (LIST, f"{LIST}{entry.pk}/change/", f"{LIST}export/csv/", f"/admin/relay/upstream/{weather.pk}/history/")
    stranger = sign_in("view_upstream", "change_upstream")
    assert [stranger.get(page).status_code for page in pages] == [403] * 4
    assert "/history/" not in stranger.get(f"/admin/relay/upstream/{weather.pk}/change/").content.decode()
    assert LIST not in stranger.get("/admin/").content.decode()
    reader = sign_in("view_auditentry", "view_upstream")
    assert [reader.get(page, follow=True).status_code for page in pages] == [200] * 4
    assert LIST in reader.get("/admin/").content.decode()


def test_nobody_adds_changes_or_removes_entries(admin_client: Client, weather: Upstream) -> None:
    entry = AuditEntry.objects.first()
    assert entry is not None
    before = list(AuditEntry.objects.values())
    assert admin_client.get(f"{LIST}add/").status_code == 403
    assert admin_client.post(f"{LIST}{entry.pk}/change/", {"actor_name": "nobody"}).status_code == 403
    assert admin_client.post(f"{LIST}{entry.pk}/delete/", {"post": "yes"}).status_code == 403
    admin_client.post(LIST, {"action": "delete_selected", "_selected_action": [entry.pk], "post": "yes"})
    assert list(AuditEntry.objects.values()) == before


def test_entries_are_found(admin_client: Client, weather: Upstream, billing: Upstream) -> None:
    Consumer.objects.create(name="batch")
    AuditEntry._base_manager.filter(upstream="billing").update(
        moment=datetime(2026, 1, 31, 23, 30, tzinfo=UTC), actor_name="alice", address="192.0.2.7", source="admin"
    )
    billings = ["billing"]
    for query in (
        *("q=billing", "q=alice", "q=192.0.2.7", "source__exact=admin", "actor_name__icontains=ali"),
        *("moment_from=2026-01-31&moment_to=2026-01-31", "moment_to=2026-02-01", "moment_to=9999-12-31&q=alice"),
        f"upstream_key__exact={billing.pk}",
    ):
        assert found(admin_client, f"?{query}") == billings, query
    assert "billing" not in found(admin_client, "?moment_from=2026-02-01")
    assert found(admin_client, "?object_type__exact=relay.consumer") == ["batch"]
    assert found(admin_client, "?action__exact=removed") == []
    assert len(found(admin_client, "?moment_from=nonsense&moment_to=0001-01-01")) == 0
    assert len(found(admin_client, f"?upstream_key__exact={weather.pk}")) == 3


def test_every_audited_page_leads_to_its_own_trail(admin_client: Client, admin_user: User, weather: Upstream) -> None:
    consumer = Consumer.objects.create(name="batch")
    assert trail_url(Consumer, consumer.pk) == f"{LIST}?consumer_key__exact={consumer.pk}"
    checked = 0
    for kind in filter(admin.site.is_registered, audit.followed()):
        assert isinstance(admin.site.get_model_admin(kind), TrailedAdmin), kind
        row = kind._default_manager.first()
        if row is not None:
            name = f"/admin/{kind._meta.app_label}/{kind._meta.model_name}/{row.pk}"
            assert f'href="{name}/history/"' in admin_client.get(f"{name}/change/").content.decode(), kind
            response = admin_client.get(f"{name}/history/")
            assert response.headers.get("Location") == trail_url(kind, row.pk), kind
            assert found(admin_client, response.headers["Location"].removeprefix(LIST))
            checked += 1
    assert checked >= 2


def test_one_entry_is_told_field_by_field(admin_client: Client, admin_user: User, weather: Upstream) -> None:
    weather.description = "One\nTwo\nThree\n"
    weather.save()
    weather.description = "One\n<b>2</b>\nThree\n"
    weather.outbound_proxy = "http://proxy-user:another@other.example:3128"
    weather.created_by = admin_user
    weather.save()
    entry = AuditEntry.objects.first()
    assert entry is not None
    rows = {row.field: row for row in rows_of(entry)}
    marked = [(line.mark, line.text) for line in rows["description"].lines]
    assert marked == [(" ", "One"), ("-", "Two"), ("+", "<b>2</b>"), (" ", "Three")]
    assert (rows["outbound_proxy"].before, rows["outbound_proxy"].after) == (
        "http://proxy.example:3128",
        "http://other.example:3128",
    )
    assert rows["outbound_proxy_secret"].is_secret
    assert rows["created_by"].after == f"{admin_user.pk} (admin)"
    page = admin_client.get(f"{LIST}{entry.pk}/change/").content.decode()
    assert "Upstream Weather service" in page
    assert "&lt;b&gt;2&lt;/b&gt;</ins>" in page
    assert "another" not in page
    assert "Shell or script" in page


def test_an_entry_of_a_former_version_is_told_all_the_same(admin_client: Client, db: None) -> None:
    entry = AuditEntry.objects.create(
        object_type="relay.former",
        object_id="1",
        object_name="it",
        action="changed",
        source="server",
        changes={"gone": ["a", "b"], "list": [["x", "y"], []], "flag": [True, None]},
    )
    page = admin_client.get(f"{LIST}{entry.pk}/change/").content.decode()
    assert "Relay.former it" in page
    assert [(row.before, row.after) for row in rows_of(entry)] == [("a", "b"), ("x\ny", ""), ("true", "")]


def test_the_list_costs_the_same_for_many_entries(
    admin_client: Client, weather: Upstream, django_assert_max_num_queries: object
) -> None:
    Upstream.objects.bulk_create(Upstream(slug=f"n{number}", base_url="https://n.example") for number in range(45))
    with django_assert_max_num_queries(6):  # type: ignore[operator]  # a fixture without a type of its own
        assert len(found(admin_client)) > 45


# Exports


def test_an_export_holds_what_is_listed(
    admin_client: Client, weather: Upstream, billing: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "ENTRIES_A_PIECE", 2)
    Upstream.objects.filter(slug="weather").update(verify_tls=False)
    lines = [json.loads(line) for line in exported(admin_client, "jsonl", "?q=weather").splitlines()]
    assert [line["object_name"] for line in lines] == list(reversed(found(admin_client, "?q=weather")))
    assert [line["id"] for line in lines] == sorted(line["id"] for line in lines)
    assert lines[-1]["changes"] == {"verify_tls": [True, False]}
    rows = list(csv.DictReader(io.StringIO(exported(admin_client, "csv", "?q=weather"))))
    assert [row["id"] for row in rows] == [str(line["id"]) for line in lines]
    assert json.loads(rows[-1]["changes"]) == {"verify_tls": [True, False]}
    assert admin_client.get(f"{LIST}export/xlsx/").status_code == 404


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_a_csv_export_is_a_formula(admin_client: Client, db: None, name: str) -> None:
    Upstream.objects.create(slug="a", name=name, base_url="https://a.example")
    (row,) = csv.DictReader(
        io.StringIO(exported(admin_client, "csv", "?object_type__exact=relay.upstream"), newline="")
    )
    assert row["object_name"] == f"'{name}"
    assert json.loads(exported(admin_client, "jsonl", "?object_type__exact=relay.upstream"))["object_name"] == name


@pytest.mark.django_db(transaction=True)
async def test_under_asgi_an_export_streams_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "ENTRIES_A_PIECE", 2)
    user = await User.objects.acreate_superuser("root")
    await Upstream.objects.abulk_create(
        Upstream(slug=f"n{number}", base_url="https://n.example") for number in range(5)
    )
    client = AsyncClient()
    await client.aforce_login(user)
    response = await client.get(f"{LIST}export/jsonl/?object_type__exact=relay.upstream")
    assert response.is_async  # type: ignore[attr-defined]  # a streaming response has it
    pieces = [piece async for piece in response]  # type: ignore[attr-defined]  # as above
    assert [piece.count(b"\n") for piece in pieces] == [2, 2, 1]


def test_entries_that_come_during_an_export_are_left_out(weather: Upstream) -> None:
    running = exports.pieces(AuditEntry.objects.all(), exports.Format.JSONL)
    first = next(running)
    HeaderRule.objects.create(upstream=weather, name="x-late", value="1")
    assert "x-late" not in first + "".join(running)


def test_a_day_is_the_one_of_the_admins_time_zone(admin_client: Client, weather: Upstream) -> None:
    AuditEntry._base_manager.update(moment=datetime(2026, 1, 31, 23, 30, tzinfo=UTC))
    with timezone.override("Asia/Tokyo"):
        assert "Weather service" in found(admin_client, "?moment_from=2026-02-01")
    assert found(admin_client, "?moment_from=2026-02-01") == []
