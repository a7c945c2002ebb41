"""Whether a request may pass at all: key, method, grant, loop. Each refusal is the `RelayError` the caller gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from relay.errors import KeyRefused, KeyRequired, LoopDetected, MethodRefused, NotGranted, WorkerRefused
from relay.rules import grants

NEVER_RELAYED = frozenset({"CONNECT", "TRACE"})
CHALLENGE = ((b"www-authenticate", b'Bearer realm="relay"'),)
INVALID_TOKEN = ((b"www-authenticate", b'Bearer realm="relay", error="invalid_token"'),)
INSUFFICIENT_SCOPE = ((b"www-authenticate", b'Bearer realm="relay", error="insufficient_scope"'),)
"""RFC 6750 section 3: who showed nothing is told nothing of an error."""
ORDINARY_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def check_method(method: str, allowed: frozenset[str]) -> None:
    """Raises `MethodRefused`, with Allow, unless `allowed` has `method`; empty, it has all but CONNECT and TRACE.

    Methods differ by case (RFC 9110 section 9.1), but not for all on the way up: no spelling of those two passes.
    """
    if is_never_relayed(method) or (allowed and method not in allowed):
        names: Iterable[str] = sorted(allowed - NEVER_RELAYED) if allowed else ORDINARY_METHODS
        raise MethodRefused(headers=((b"allow", ", ".join(names).encode()),))


def is_never_relayed(method: str) -> bool:
    return method.upper() in NEVER_RELAYED


def check_key(*, shown: bool, expires_at: float | None, now: float) -> None:
    """Raises `KeyRequired`, or `KeyRefused` unless the key is in force.

    `expires_at` is that of the key found, None when there is none of that text: unknown, revoked, its consumer off.
    """
    if not shown:
        raise KeyRequired(headers=CHALLENGE)
    if expires_at is None:
        raise KeyRefused("unknown or revoked key", headers=INVALID_TOKEN)
    if now >= expires_at:
        raise KeyRefused("expired key", headers=INVALID_TOKEN)


def check_grants(held: Sequence[grants.Grant], method: str, path: bytes) -> None:
    """Raises `NotGranted` unless one of the grants held at this upstream has method and path."""
    if not grants.allow(held, method, path):
        raise NotGranted("no grant here" if not held else "outside of its grants", headers=INSUFFICIENT_SCOPE)


def check_worker(*, registers_worker: bool, own_host: bool) -> None:
    """Raises `WorkerRefused` for a service worker's script, but at a host name of the upstream's own.

    Such a worker would answer in the place of all upstreams, and of the admin, that share its origin.
    """
    if registers_worker and not own_host:
        raise WorkerRefused


def check_loop(via: Sequence[bytes], own_name: bytes) -> None:
    """Raises `LoopDetected` when this installation's name is among the proxies in `Via` (RFC 9110 section 7.6.3)."""
    for line in via:
        if own_name in line:
            for hop in line.split(b","):
                words = hop.split()
                if len(words) > 1 and words[1] == own_name:
                    raise LoopDetected
