"""The start page: how many upstreams there are in which state, and where to read on. Named in `UNFOLD`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from relay.admin import documentation
from relay.admin.callers import may_issue
from relay.models import Access, ApiKey, Consumer, Upstream
from relay.models.key_states import LONG_UNUSED, SOON, expiring, in_force, unused
from relay.serving.hosts import names


@dataclass(frozen=True, slots=True)
class Figure:
    """A number on the start page; `page` is the changelist that shows the same rows."""

    label: str
    count: int
    page: str
    worrying: bool = False


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """unfold's DASHBOARD_CALLBACK. Whoever may not see rows learns nothing of their number."""
    user = request.user
    groups: list[tuple[str, list[Figure]]] = []
    sees = user.has_perm("relay.view_upstream") or user.has_perm("relay.change_upstream")
    if sees:
        groups.append(("Upstreams", upstream_figures()))
    callers: list[Figure] = []
    if user.has_perm("relay.view_consumer") or user.has_perm("relay.change_consumer"):
        callers.append(Figure("Consumers", Consumer.objects.count(), reverse("admin:relay_consumer_changelist")))
    if may_issue(user):
        callers += key_figures()
    if callers:
        groups.append(("Callers", callers))
    return context | {
        "title": "Overview",
        "figure_groups": groups,
        "may_register": user.has_perms(("relay.add_upstream", "relay.point_upstream")),
        "one_origin": sees and names().one_origin,
        "may_issue": may_issue(user),
        "documentation": documentation.pages(),
    }


def upstream_figures() -> list[Figure]:
    live = Q(enabled=True)
    counts = Upstream.objects.aggregate(
        live=Count("pk", filter=live),
        off=Count("pk", filter=~live),
        open=Count("pk", filter=live & Q(access=Access.ANYONE)),
        unverified=Count("pk", filter=live & Q(verify_tls=False)),
    )
    page = reverse("admin:relay_upstream_changelist")
    return [
        Figure("Live", counts["live"], f"{page}?enabled__exact=1"),
        Figure("Switched off", counts["off"], f"{page}?enabled__exact=0"),
        Figure("Live and open to anyone", counts["open"], f"{page}?enabled__exact=1&access__exact=anyone"),
        Figure(
            "Live with TLS verification off",
            counts["unverified"],
            f"{page}?enabled__exact=1&verify_tls__exact=0",
            worrying=counts["unverified"] > 0,
        ),
    ]


def key_figures() -> list[Figure]:
    now = timezone.now()
    counts = ApiKey.objects.aggregate(
        live=Count("pk", filter=in_force(now)),
        expiring=Count("pk", filter=expiring(now)),
        unused=Count("pk", filter=unused(now)),
    )
    page = reverse("admin:relay_apikey_changelist")
    return [
        Figure("Live keys", counts["live"], f"{page}?state=live"),
        Figure(
            f"Keys that expire within {SOON.days} days",
            counts["expiring"],
            f"{page}?state=expiring",
            worrying=counts["expiring"] > 0,
        ),
        Figure(f"Keys unused for {LONG_UNUSED.days} days", counts["unused"], f"{page}?state=unused"),
    ]
