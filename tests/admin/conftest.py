"""Who signs in, and what is registered already."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from relay.models import Access, Action, HeaderRule, Upstream

SignIn = Callable[..., Client]


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
