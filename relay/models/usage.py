"""What was counted of the traffic, as far as it is kept in the database. Nothing here decides a request."""

from __future__ import annotations

from datetime import UTC, date, timedelta
from typing import ClassVar

from django.db import models, transaction
from django.db.models import F, Sum
from django.utils import timezone

from relay.models.upstreams import Upstream

KEPT_DAYS = 35
REPORTED_DAYS = 7

Counts = dict[tuple[int, str, date], int]
"""By the upstream's id, the type of the error, and the day in UTC."""


class WouldRefuse(models.Model):
    """How many requests an upstream in report-only mode let pass in one day that it would have refused for a reason."""

    upstream = models.ForeignKey(Upstream, on_delete=models.CASCADE, related_name="would_refuse")
    reason = models.CharField(max_length=40)
    """Type of the error."""
    day = models.DateField(db_index=True)
    """In UTC."""
    count = models.PositiveBigIntegerField(default=0)

    class Meta:
        verbose_name = "report-only count"
        default_permissions = ()
        constraints: ClassVar = [
            models.UniqueConstraint(fields=("upstream", "reason", "day"), name="relay_would_refuse_once")
        ]

    def __str__(self) -> str:
        return f"{self.count} {self.reason} at {self.upstream.slug} on {self.day}"


def add_counts(counts: Counts, *, today: date) -> None:
    """Add to what is there, and drop what is older than `KEPT_DAYS`. Upstreams that are gone are left out."""
    with transaction.atomic():
        live = set(Upstream.objects.filter(id__in={key[0] for key in counts}).values_list("id", flat=True))
        for (upstream_id, reason, day), count in sorted(counts.items()):
            if upstream_id in live:
                row, _ = WouldRefuse.objects.get_or_create(upstream_id=upstream_id, reason=reason, day=day)
                WouldRefuse.objects.filter(pk=row.pk).update(count=F("count") + count)
        WouldRefuse.objects.filter(day__lt=today - timedelta(days=KEPT_DAYS)).delete()


def would_refuse(upstream: Upstream, *, today: date | None = None) -> dict[str, int]:
    """Counts of the last `REPORTED_DAYS` by reason, the most frequent first."""
    today = today or timezone.now().astimezone(UTC).date()
    rows = upstream.would_refuse.filter(day__gt=today - timedelta(days=REPORTED_DAYS))
    found = rows.values_list("reason").annotate(total=Sum("count")).order_by("-total", "reason")
    return dict(found)


def report(counts: dict[str, int]) -> str:
    """What `would_refuse` gave, as a sentence."""
    total = sum(counts.values())
    if not total:
        return f"no request would have been refused in the last {REPORTED_DAYS} days"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
    requests = "1 request" if total == 1 else f"{total:,} requests"
    return f"{requests} would have been refused in the last {REPORTED_DAYS} days: {reasons}"
