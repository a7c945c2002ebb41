"""Groups hold grants; deleting people says what it means for consumers."""

from __future__ import annotations

from django.contrib.auth.models import Group, User
from django.test import Client

from relay.models import Consumer, Grant, Upstream
from tests.admin.conftest import SignIn


def group_form(group: Group, **grant: object) -> dict[str, object]:
    posted: dict[str, object] = {"name": group.name, "relay_grants-TOTAL_FORMS": 1, "relay_grants-INITIAL_FORMS": 0}
    posted |= {"relay_grants-MIN_NUM_FORMS": 0, "relay_grants-MAX_NUM_FORMS": 1000}
    return posted | {f"relay_grants-0-{name}": value for name, value in grant.items()}


def test_a_group_gets_grants_on_its_page(admin_client: Client, weather: Upstream) -> None:
    group = Group.objects.create(name="data")
    url = f"/admin/auth/group/{group.pk}/change/"
    assert "What this group's consumers may do" in admin_client.get(url).content.decode().replace("&#x27;", "'")
    form = group_form(group, upstream=weather.pk, methods="get", path_prefixes="/v1")
    assert admin_client.post(url, form).status_code == 302
    grant = Grant.objects.get()
    assert (grant.group, grant.consumer, grant.methods, grant.path_prefixes) == (group, None, "GET", "/v1")


def test_a_new_group_is_made_before_its_grants(admin_client: Client) -> None:
    page = admin_client.get("/admin/auth/group/add/").content.decode()
    assert "relay_grants" not in page
    assert admin_client.post("/admin/auth/group/add/", {"name": "data"}).status_code == 302
    assert Group.objects.get().name == "data"


def test_changing_groups_alone_gives_no_right_to_grant(sign_in: SignIn, weather: Upstream) -> None:
    group = Group.objects.create(name="data")
    client = sign_in("view_group", "change_group")
    client.post(f"/admin/auth/group/{group.pk}/change/", group_form(group, upstream=weather.pk))
    assert not Grant.objects.exists()


def test_deleting_an_owner_says_that_the_consumers_stay(admin_client: Client, batch: Consumer) -> None:
    owner = User.objects.get(username="ann")
    page = admin_client.get(f"/admin/auth/user/{owner.pk}/delete/").content.decode()
    assert "The consumers of ann stay, and belong to nobody" in page
    assert "batch" in page
    chosen = {"action": "delete_selected", "_selected_action": [owner.pk]}
    assert "belong to nobody" in admin_client.post("/admin/auth/user/", chosen).content.decode()
    admin_client.post(f"/admin/auth/user/{owner.pk}/delete/", {"post": "yes"})
    batch.refresh_from_db()
    assert batch.owner is None


def test_deleting_somebody_without_consumers_says_nothing_of_them(admin_client: Client) -> None:
    user = User.objects.create_user("bob")
    assert "belong to nobody" not in admin_client.get(f"/admin/auth/user/{user.pk}/delete/").content.decode()


def test_deleting_a_group_says_what_its_members_consumers_lose(admin_client: Client, weather: Upstream) -> None:
    group = Group.objects.create(name="data")
    Grant.objects.create(group=group, upstream=weather, methods="GET")
    page = admin_client.get(f"/admin/auth/group/{group.pk}/delete/").content.decode()
    assert "lose what the group was granted" in page
    assert "GET at weather" in page
    chosen = {"action": "delete_selected", "_selected_action": [group.pk]}
    assert "GET at weather" in admin_client.post("/admin/auth/group/", chosen).content.decode()
