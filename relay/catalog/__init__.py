"""What admins saved, in memory. `current()` is the one thing the request path calls."""

from __future__ import annotations

from relay.catalog.snapshot import HeaderChanges, Snapshot, Target, Upstream

__all__ = ["HeaderChanges", "Snapshot", "Target", "Upstream", "current", "publish"]

_current = Snapshot()


def current() -> Snapshot:
    """The snapshot in force in this process."""
    return _current


def publish(snapshot: Snapshot) -> None:
    """Make `snapshot` the one that new requests are decided from: one assignment, seen whole or not at all."""
    global _current
    _current = snapshot
