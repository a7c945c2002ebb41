"""Who signs in, and what is registered already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client

from relay.models import Access, Action, ApiKey, Consumer, Grant, HeaderRule, Upstream

SignIn = Callable[..., Client]


def warnings_of(response: Any) -> list[str]:
    """What a page warned of."""
    return [str(message) for message in get_messages(response.wsgi_request) if message.level_tag == "warning"]


@pytest.fixture
def sign_in(db: None) -> SignIn:
    """`sign_in("view_upstream", ...)` is the client of a member of staff with these permissions alone."""

    def signed_in(*rights: str) -> Client:
        user = User.objects.create_user("-".join(rights) or "nobody", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=rights))
        client = Client()
        client.force_login(user)
        return client

    return signed_in


@pytest.fixture
def weather(db: None) -> Upstream:
    """An upstream with two secrets: its proxy's password and a header's value."""
    weather = Upstream.objects.create(
        slug="weather",
        name="Weather service",
        base_url="https://api.weather.example/v1",
        access=Access.ANYONE,
        outbound_proxy="http://proxy-user:proxy-pass@proxy.example:3128",
        allowed_networks="10.0.0.0/8\n192.168.0.0/16",
    )
    HeaderRule.objects.create(upstream=weather, name="authorization", value="Bearer rule-secret")
    HeaderRule.objects.create(upstream=weather, side="response", action=Action.REMOVE, name="x-powered-by")
    return weather


@pytest.fixture
def billing(db: None) -> Upstream:
    return Upstream.objects.create(slug="billing", base_url="https://billing.example", enabled=False, verify_tls=False)


@pytest.fixture
def batch(db: None) -> Consumer:
    """A consumer of ann's, without keys and grants."""
    return Consumer.objects.create(name="batch", owner=User.objects.create_user("ann"))


@pytest.fixture
def forecast(batch: Consumer) -> Grant:
    """What `batch` may do: GET below one path of an upstream that asks for a key."""
    upstream = Upstream.objects.create(slug="forecast", name="Forecasts", base_url="https://forecast.example/v1")
    return Grant.objects.create(consumer=batch, upstream=upstream, methods="GET", path_prefixes="/v1/days")


@pytest.fixture
def key(batch: Consumer) -> ApiKey:
    """A live key of `batch`, labelled “laptop”."""
    return ApiKey.issue(batch, label="laptop")[0]
