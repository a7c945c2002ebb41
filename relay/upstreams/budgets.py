"""How many retries each upstream has left, in this process, and how many were made.

Theory of operation. A budget that is full says no more than none: what is put into it runs over. So there is one only
from an upstream's first retry until it is full again, and an exchange at an upstream that does well pays one look-up
in a table that is nearly always empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from time import monotonic

from relay.catalog import Upstream
from relay.observing.families import Family, Sample
from relay.observing.metrics import metrics
from relay.rules.retries import Budget

RETRIES_PER_SECOND = 1.0
"""What an upstream with little traffic may retry all the same."""
MOST_RETRIES_SAVED = 100.0

RETRIES = Family(
    "relay_retries_total",
    "counter",
    "Requests sent once more, and those that were not because the budget was used up.",
    ("upstream", "outcome"),
)

_budgets: dict[str, Budget] = {}
"""By slug: of upstreams with retries lately."""
_retries: Counter[tuple[str, str]] = Counter()
"""By the labels they have in metrics, so that upstreams beyond the bound share one."""


def count(upstream: Upstream) -> None:
    """A first attempt, which pays for a share of a retry."""
    budget = _budgets.get(upstream.slug)
    if budget is not None:
        budget.deposit()


def allow_retry(upstream: Upstream) -> bool:
    """Whether there may be one more; if so, it is paid for. Without a share of the traffic there is none."""
    budget = _budgets.get(upstream.slug)
    if budget is None:
        budget = _budgets[upstream.slug] = Budget(upstream.retry_share, RETRIES_PER_SECOND, MOST_RETRIES_SAVED)
    budget.share = upstream.retry_share
    is_allowed = upstream.retry_share > 0 and budget.withdraw(monotonic())
    _retries[metrics.series_of(upstream.slug), "sent" if is_allowed else "over-budget"] += 1
    return is_allowed


def keep() -> None:
    """Forget the budgets that are full."""
    now = monotonic()
    for slug in [slug for slug, budget in _budgets.items() if budget.is_full(now)]:
        del _budgets[slug]


def forget() -> None:
    """All begin anew."""
    _budgets.clear()


def read() -> Iterator[tuple[Family, Sample]]:
    """For `/metrics`."""
    for labels, made in _retries.items():
        yield RETRIES, (labels, made)
