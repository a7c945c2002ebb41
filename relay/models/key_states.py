"""What lists say of a key at a moment: its state, in words, and the keys that are in it.

Nothing is decided from this: requests go by the roster, which has the keys that open something.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import Q, TextChoices
from django.utils import timezone
from django.utils.timesince import timeuntil

from relay.models.consumers import ApiKey

SOON = timedelta(days=7)
LONG_UNUSED = timedelta(days=90)


class KeyState(TextChoices):
    LIVE = "live", "Live"
    EXPIRING = "expiring", f"Expires within {SOON.days} days"
    REPLACED = "replaced", "Replaced, still works"
    OFF = "off", "Off with its consumer"
    EXPIRED = "expired", "Expired"
    REVOKED = "revoked", "Revoked"


def state_of(key: ApiKey, moment: datetime) -> KeyState:
    """The one that says most. Looks at the key's consumer and at that one's owner."""
    if key.revoked_at is not None:
        return KeyState.REVOKED
    if not key.is_live(moment):
        return KeyState.EXPIRED
    owner = key.consumer.owner
    if not key.consumer.enabled or (owner is not None and not owner.is_active):
        return KeyState.OFF
    if key.rotated_to_id is not None:
        return KeyState.REPLACED
    if key.expires_at is not None and key.expires_at <= moment + SOON:
        return KeyState.EXPIRING
    return KeyState.LIVE


def words_for(key: ApiKey, moment: datetime) -> tuple[str, str]:
    """Such as (“Expires in 3 days”, “”), or (“Replaced”, “by rk_abcd2345…, works until 2026-05-04 10:00”)."""
    state = state_of(key, moment)
    if state is KeyState.REPLACED:
        return "Replaced", f"by {key.rotated_to}, works until {local(key.expires_at)}"
    if state is KeyState.EXPIRING and key.expires_at is not None:
        return f"Expires in {timeuntil(key.expires_at, moment, depth=1)}".replace("\xa0", " "), ""
    return str(state.label), ""


def local(moment: datetime | None) -> str:
    return "" if moment is None else f"{timezone.localtime(moment):%Y-%m-%d %H:%M}"


def in_force(moment: datetime) -> Q:
    """Keys that open something, going by themselves, their consumer and its owner."""
    return (
        not_over(moment)
        & Q(consumer__enabled=True)
        & (Q(consumer__owner__isnull=True) | Q(consumer__owner__is_active=True))
    )


def not_over(moment: datetime) -> Q:
    """Keys neither revoked nor expired."""
    return Q(revoked_at__isnull=True) & (Q(expires_at__isnull=True) | Q(expires_at__gt=moment))


def expiring(moment: datetime) -> Q:
    """Keys in force that nobody has replaced, and that will soon open nothing."""
    return in_force(moment) & Q(rotated_to__isnull=True, expires_at__lte=moment + SOON)


def unused(moment: datetime) -> Q:
    """Keys in force that are old enough to have been used of late, and were not."""
    since = moment - LONG_UNUSED
    return in_force(moment) & Q(created_at__lt=since) & (Q(last_used_at__isnull=True) | Q(last_used_at__lt=since))
