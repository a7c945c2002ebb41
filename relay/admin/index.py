"""The start page: how many upstreams there are in which state, and where to read on. Named in `UNFOLD`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q
from django.http import HttpRequest

from relay.admin import documentation
from relay.models import Access, Upstream
from relay.serving.hosts import names


@dataclass(frozen=True, slots=True)
class Figure:
    """A number on the start page; `query` is the changelist's that shows the same upstreams."""

    label: str
    count: int
    query: str
    worrying: bool = False


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """unfold's DASHBOARD_CALLBACK. Whoever may not see upstreams learns nothing of their number."""
    user = request.user
    sees = user.has_perm("relay.view_upstream") or user.has_perm("relay.change_upstream")
    return context | {
        "title": "Overview",
        "figures": figures() if sees else [],
        "may_register": user.has_perms(("relay.add_upstream", "relay.point_upstream")),
        "one_origin": sees and names().one_origin,
        "documentation": documentation.pages(),
    }


def figures() -> list[Figure]:
    live = Q(enabled=True)
    counts = Upstream.objects.aggregate(
        live=Count("pk", filter=live),
        off=Count("pk", filter=~live),
        open=Count("pk", filter=live & Q(access=Access.ANYONE)),
        unverified=Count("pk", filter=live & Q(verify_tls=False)),
    )
    return [
        Figure("Live", counts["live"], "enabled__exact=1"),
        Figure("Switched off", counts["off"], "enabled__exact=0"),
        Figure("Live and open to anyone", counts["open"], "enabled__exact=1&access__exact=anyone"),
        Figure(
            "Live with TLS verification off",
            counts["unverified"],
            "enabled__exact=1&verify_tls__exact=0",
            worrying=counts["unverified"] > 0,
        ),
    ]
