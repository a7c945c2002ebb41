"""Targets in an upstream's form: who may do what with them, what is refused where, and what is warned of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from relay.models import Change, Credential, Target, Upstream
from relay.models.targets import LISTED_ALREADY, MOST_TARGETS, TOO_MANY
from tests.admin.conftest import SignIn, warnings_of
from tests.admin.filled_form import filled_form


def change_url(upstream: Upstream) -> str:
    return f"/admin/relay/upstream/{upstream.pk}/change/"


def targets(upstream: Upstream) -> list[tuple[str, int, bool, bool]]:
    return list(upstream.targets.values_list("address", "weight", "enabled", "backup"))


@pytest.fixture
def spread(db: None) -> Upstream:
    """An upstream with three targets, of which one is a backup."""
    spread = Upstream.objects.create(slug="spread", base_url="http://api.example:8080", allowed_networks="10.0.0.0/8")
    for address, weight, backup in (("10.0.0.1", 1, False), ("10.0.0.2:81", 3, False), ("c.example", 1, True)):
        spread.targets.create(address=address, weight=weight, backup=backup)
    return spread


@pytest.fixture
def editor(sign_in: SignIn) -> Client:
    """Who may change upstreams, but not point them."""
    return sign_in("view_upstream", "change_upstream")


def inline(response: Any) -> Any:
    (found,) = [each for each in response.context_data["inline_admin_formsets"] if each.opts.model is Target]
    return found


def errors(response: Any) -> tuple[list[Mapping[str, list[str]]], list[str]]:
    """(those of each row, those of all together)"""
    assert response.status_code == 200
    formset = inline(response).formset
    return formset.errors, list(formset.non_form_errors())


# What is saved


def test_targets_are_added_changed_and_removed(admin_client: Client, admin_user: User, spread: Upstream) -> None:
    before, revision = spread.changed_at, Change.objects.get(slug="spread").revision
    form = filled_form(spread, new_targets=[{"address": " [2001:DB8::1]:080 ", "weight": "100", "backup": "on"}])
    form |= {"targets-0-address": "A.example", "targets-1-weight": "5", "targets-2-DELETE": "on"}
    del form["targets-0-enabled"]
    assert admin_client.post(change_url(spread), form).status_code == 302
    assert targets(spread) == [
        ("a.example", 1, False, False),
        ("10.0.0.2:81", 5, True, False),
        ("[2001:db8::1]:80", 100, True, True),
    ]
    spread.refresh_from_db()
    assert spread.changed_by == admin_user
    assert spread.changed_at > before
    assert Change.objects.get(slug="spread").revision > revision


def test_an_upstream_is_registered_with_its_targets(sign_in: SignIn) -> None:
    client = sign_in("add_upstream", "point_upstream")
    form = filled_form(
        Upstream(slug="new", base_url="https://new.example"), new_targets=[{"address": "a.example"}, {"address": "b"}]
    )
    assert client.post("/admin/relay/upstream/add/", form).status_code == 302
    assert [address for address, *_ in targets(Upstream.objects.get())] == ["a.example", "b"]


def test_save_as_new_copies_the_targets(admin_client: Client, spread: Upstream) -> None:
    form = filled_form(spread, slug="spread-2", _saveasnew="1")
    assert admin_client.post(change_url(spread), form).status_code == 302
    copy = Upstream.objects.get(slug="spread-2")
    assert targets(copy) == targets(spread)
    assert len(targets(copy)) == 3


def test_saving_without_an_edit_changes_nothing(admin_client: Client, spread: Upstream) -> None:
    revision = Change.objects.get(slug="spread").revision
    assert admin_client.post(change_url(spread), filled_form(spread)).status_code == 302
    assert Change.objects.get(slug="spread").revision == revision


# What is refused


@pytest.mark.parametrize(
    ("field", "text", "advice"),
    [
        ("address", "", "required"),
        ("address", "http://a.example", "Write host and port alone"),
        ("address", "10.1", "four decimal numbers"),
        ("address", "a.example:0", "from 1 to 65535"),
        ("weight", "0", "greater than or equal to 1"),
        ("weight", "101", "less than or equal to 100"),
    ],
)
def test_field_errors_stand_at_their_field(
    admin_client: Client, spread: Upstream, field: str, text: str, advice: str
) -> None:
    before = targets(spread)
    form = filled_form(spread) | {f"targets-1-{field}": text}
    rows, together = errors(admin_client.post(change_url(spread), form))
    assert [list(row) for row in rows] == [[], [field], []]
    assert advice in rows[1][field][0]
    assert together == []
    assert targets(spread) == before


def test_two_new_ones_with_the_same_address_are_refused_in_whatever_spelling(
    admin_client: Client, spread: Upstream
) -> None:
    form = filled_form(spread, new_targets=[{"address": "d.example:81"}, {"address": "D.example:081"}])
    rows, _ = errors(admin_client.post(change_url(spread), form))
    assert rows[3:] == [{}, {"address": [LISTED_ALREADY]}]
    assert len(targets(spread)) == 3


def test_an_address_that_is_there_is_refused_in_whatever_spelling(admin_client: Client, spread: Upstream) -> None:
    form = filled_form(spread, new_targets=[{"address": "C.EXAMPLE"}])
    rows, _ = errors(admin_client.post(change_url(spread), form))
    assert rows[3] == {"address": [LISTED_ALREADY]}
    assert len(targets(spread)) == 3


def test_targets_that_swap_their_addresses_do_so_in_two_steps(admin_client: Client, spread: Upstream) -> None:
    form = filled_form(spread) | {"targets-0-address": "10.0.0.2:81", "targets-1-address": "10.0.0.1"}
    rows, _ = errors(admin_client.post(change_url(spread), form))
    assert [list(row) for row in rows] == [["address"], ["address"], []]
    form = filled_form(spread) | {"targets-0-address": "c.example", "targets-2-DELETE": "on"}
    rows, _ = errors(admin_client.post(change_url(spread), form))
    assert [list(row) for row in rows] == [["address"], []]
    assert targets(spread)[0] == ("10.0.0.1", 1, True, False)


def test_a_removed_address_may_be_added_in_the_same_step(admin_client: Client, spread: Upstream) -> None:
    form = filled_form(spread, new_targets=[{"address": "c.example", "weight": "9"}]) | {"targets-2-DELETE": "on"}
    assert admin_client.post(change_url(spread), form).status_code == 302
    assert targets(spread)[2] == ("c.example", 9, True, False)


def test_more_than_the_most_are_refused_together(admin_client: Client, spread: Upstream) -> None:
    added = [{"address": f"n{number}.example"} for number in range(MOST_TARGETS - 2)]
    _, together = errors(admin_client.post(change_url(spread), filled_form(spread, new_targets=added)))
    assert len(together) == 1
    assert len(targets(spread)) == 3
    assert admin_client.post(change_url(spread), filled_form(spread, new_targets=added[1:])).status_code == 302
    assert len(targets(spread)) == MOST_TARGETS
    rows, _ = errors(admin_client.post(change_url(spread), filled_form(spread, new_targets=added[:1])))
    assert rows[-1] == {"__all__": [TOO_MANY]}


# Who may what


def test_without_the_right_to_point_shares_are_changed_and_places_are_not(editor: Client, spread: Upstream) -> None:
    form = filled_form(spread, new_targets=[{"address": "attacker.example"}])
    form |= {"targets-0-address": "attacker.example", "targets-0-weight": "7", "targets-0-backup": "on"}
    form |= {"targets-2-DELETE": "on"}
    del form["targets-1-enabled"]
    assert editor.post(change_url(spread), form).status_code == 302
    assert targets(spread) == [
        ("10.0.0.1", 7, True, True),
        ("10.0.0.2:81", 3, False, False),
        ("c.example", 1, True, True),
    ]


def test_without_the_right_to_point_the_page_offers_no_other_place(editor: Client, spread: Upstream) -> None:
    response = editor.get(change_url(spread))
    page = response.content.decode()
    assert "10.0.0.2:81" in page
    assert 'name="targets-1-weight"' in page
    assert 'name="targets-1-address"' not in page
    assert 'name="targets-1-DELETE"' not in page
    assert "To add, move or remove targets you need the permission" in page
    assert not inline(response).has_add_permission


def test_readers_see_targets_and_change_none(sign_in: SignIn, spread: Upstream) -> None:
    for rights in (("view_upstream",), ("view_upstream", "point_upstream")):
        client = sign_in(*rights)
        page = client.get(change_url(spread)).content.decode()
        assert "10.0.0.2:81" in page
        assert 'name="targets-1-weight"' not in page
        assert 'name="_save"' not in page
        form = filled_form(spread) | {"targets-0-weight": "7"}
        assert client.post(change_url(spread), form).status_code == 403
    assert targets(spread)[0][1] == 1


def test_there_are_no_permissions_of_targets_own(db: None) -> None:
    assert not Permission.objects.filter(codename__endswith="_target").exists()


# What the pages tell


def test_the_form_tells_where_requests_go_without_targets(
    admin_client: Client, spread: Upstream, billing: Upstream
) -> None:
    words = "There are none: requests go to the base URL."
    assert words in admin_client.get(change_url(billing)).content.decode()
    assert words not in admin_client.get(change_url(spread)).content.decode()


def test_the_list_tells_how_many_targets_there_are_and_finds_them(
    admin_client: Client, spread: Upstream, billing: Upstream
) -> None:
    page = admin_client.get("/admin/relay/upstream/").content.decode()
    assert re.findall(r"\d targets?\b", page) == ["3 targets"], "of the one that has none, nothing is said"
    Target.objects.filter(address="c.example").update(enabled=False)
    assert "3 targets, 1 switched off" in admin_client.get("/admin/relay/upstream/").content.decode()
    Target.objects.exclude(address="c.example").delete()
    assert "1 target, 1 switched off" in admin_client.get("/admin/relay/upstream/").content.decode()
    found = admin_client.get("/admin/relay/upstream/?q=c.example").context_data["cl"].result_list
    assert [upstream.slug for upstream in found] == ["spread"]


@pytest.mark.parametrize("edit", ["add", "move", "remove"])
def test_a_changed_place_warns_that_the_credential_needs_to_be_confirmed(
    admin_client: Client, spread: Upstream, edit: str
) -> None:
    Credential.put(spread, "bearer", secrets={"secret": "s3cret"})
    form = filled_form(spread, new_targets=[{"address": "d.example"}] if edit == "add" else [])
    form |= {"targets-0-address": "a.example"} if edit == "move" else {}
    form |= {"targets-0-DELETE": "on"} if edit == "remove" else {}
    page = admin_client.post(change_url(spread), form, follow=True)
    assert [sentence.partition(" until")[0] for sentence in warnings_of(page)] == [
        "Its credential (Bearer token) was confirmed for another place than it leads to now. Requests are refused"
    ]


def test_a_changed_share_is_no_other_place(editor: Client, spread: Upstream) -> None:
    Credential.put(spread, "bearer", secrets={"secret": "s3cret"})
    form = filled_form(spread) | {"targets-0-weight": "7"}
    del form["targets-1-enabled"]
    assert warnings_of(editor.post(change_url(spread), form, follow=True)) == []
    assert Credential.objects.get().is_confirmed


def test_switching_all_off_is_saved_with_a_warning(editor: Client, spread: Upstream) -> None:
    form = filled_form(spread)
    for number in range(3):
        del form[f"targets-{number}-enabled"]
    (sentence,) = warnings_of(editor.post(change_url(spread), form, follow=True))
    assert sentence.startswith("All of its targets are switched off: callers get 503.")
