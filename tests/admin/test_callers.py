"""An upstream's page says who may call it."""

from __future__ import annotations

import re

from django.contrib.auth.models import Group
from django.test import Client

from relay.admin import callers
from relay.models import Access, Consumer, Grant, Upstream
from tests.admin.conftest import SignIn


def page_of(client: Client, upstream: Upstream) -> str:
    return re.sub(r"\s+", " ", client.get(f"/admin/relay/upstream/{upstream.pk}/change/").content.decode())


def test_holders_of_grants_are_listed_with_links(admin_client: Client, batch: Consumer, forecast: Grant) -> None:
    group = Group.objects.create(name="data team")
    Grant.objects.create(group=group, upstream=forecast.upstream)
    page = page_of(admin_client, forecast.upstream)
    assert f'<a class="relay-link" href="/admin/relay/consumer/{batch.pk}/change/">batch</a>' in page
    assert f'<a class="relay-link" href="/admin/auth/group/{group.pk}/change/">data team</a>' in page
    assert "GET at /v1/days" in page
    assert "anything" in page


def test_nobody_yet_leads_to_issuing_a_key_for_it(admin_client: Client, weather: Upstream) -> None:
    Upstream.objects.update(access=Access.KEY)
    page = page_of(admin_client, weather)
    assert "relay-callers" in page
    assert "Nobody yet" in page
    assert f'href="/admin/relay/apikey/add/?upstream={weather.pk}"' in page
    form = admin_client.get(f"/admin/relay/apikey/add/?upstream={weather.pk}").content.decode()
    assert f'<option value="{weather.pk}" selected' in form


def test_an_upstream_open_to_anyone_has_no_list(admin_client: Client, weather: Upstream) -> None:
    assert "relay-callers" not in page_of(admin_client, weather)


def test_only_those_are_listed_that_one_may_see(sign_in: SignIn, batch: Consumer, forecast: Grant) -> None:
    Grant.objects.create(group=Group.objects.create(name="data team"), upstream=forecast.upstream)
    page = page_of(sign_in("view_upstream"), forecast.upstream)
    assert "You may see neither consumers nor groups." in page
    assert "/admin/relay/apikey/add/" not in page
    page = page_of(sign_in("view_upstream", "view_consumer"), forecast.upstream)
    assert ">batch</a>" in page
    assert "data team" not in page


def test_many_are_counted(admin_client: Client, forecast: Grant) -> None:
    for number in range(callers.MOST_SHOWN + 2):
        consumer = Consumer.objects.create(name=f"c{number}")
        Grant.objects.create(consumer=consumer, upstream=forecast.upstream)
    assert "And 3 more." in page_of(admin_client, forecast.upstream)
