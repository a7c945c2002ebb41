"""Who may call an upstream, and what a consumer may call: the grants as pages show them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from operator import or_
from typing import Any

from django.contrib.auth.models import User
from django.db.models import Q, QuerySet
from django.urls import reverse

from relay.models import Access, Consumer, Grant, Upstream

MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Holder:
    """A consumer or group that has a grant."""

    name: str
    kind: str
    page: str
    may: str
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Callers:
    """`holders` is None when whoever looks may see neither consumers nor groups."""

    holders: list[Holder] | None
    more: int
    issue_page: str | None


def of(upstream: Upstream, user: User) -> Callers | None:
    """None where anyone may call."""
    if upstream.access != Access.KEY:
        return None
    issue_page = f"{reverse('admin:relay_apikey_add')}?upstream={upstream.pk}" if may_issue(user) else None
    kinds = [name for app, name in (("relay", "consumer"), ("auth", "group")) if may_see(user, app, name)]
    if not kinds:
        return Callers(None, 0, issue_page)
    seen = reduce(or_, (Q(**{f"{kind}__isnull": False}) for kind in kinds))
    grants = upstream.grants.filter(seen).select_related("consumer", "group").order_by("group__name", "consumer__name")
    shown = [_holder(grant) for grant in grants[:MOST_SHOWN]]
    return Callers(shown, max(0, grants.count() - MOST_SHOWN), issue_page)


def may_issue(user: Any) -> bool:
    return bool(user.has_perm("relay.issue_apikey"))


def may_see(user: User, app: str, model: str) -> bool:
    return user.has_perm(f"{app}.view_{model}") or user.has_perm(f"{app}.change_{model}")


def _holder(grant: Grant) -> Holder:
    if grant.consumer is not None:
        page = reverse("admin:relay_consumer_change", args=(grant.consumer.pk,))
        return Holder(grant.consumer.name, "consumer", page, in_words([grant]), grant.consumer.enabled)
    page = reverse("admin:auth_group_change", args=(grant.group_id,))
    return Holder(str(grant.group), "group", page, in_words([grant]))


def in_words(grants: Iterable[Grant]) -> str:
    """Such as “GET, POST at /v1/chat”, or “anything”."""
    return "; ".join(
        f"{grant.methods or 'any method'} at {', '.join(grant.path_prefixes.split())}"
        if grant.path_prefixes
        else grant.methods or "anything"
        for grant in grants
    )


def grants_of(consumer: Consumer) -> list[tuple[Upstream, list[Grant]]]:
    """Its own and those of its owner's groups, by upstream."""
    found: QuerySet[Grant] = (
        Grant.objects.filter(Q(consumer=consumer) | Q(group__in=_groups_of(consumer)))
        .select_related("upstream", "group")
        .order_by("upstream__slug", "id")
    )
    return [(upstream, list(grants)) for upstream, grants in groupby(found, key=lambda grant: grant.upstream)]


def _groups_of(consumer: Consumer) -> Any:
    return consumer.owner.groups.values("pk") if consumer.owner is not None else []
