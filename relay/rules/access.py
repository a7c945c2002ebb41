"""Whether a request may pass at all: host, method, access, loop. Each refusal is the `RelayError` the caller gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from relay.errors import KeyRequired, LoopDetected, MethodRefused, WorkerRefused

NEVER_RELAYED = frozenset({"CONNECT", "TRACE"})
ORDINARY_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def check_method(method: str, allowed: frozenset[str]) -> None:
    """Raises `MethodRefused`, with Allow, unless `allowed` has `method`; empty, it has all but CONNECT and TRACE.

    Methods differ by case (RFC 9110 section 9.1), but not for all on the way up: no spelling of those two passes.
    """
    if method.upper() in NEVER_RELAYED or (allowed and method not in allowed):
        names: Iterable[str] = sorted(allowed - NEVER_RELAYED) if allowed else ORDINARY_METHODS
        raise MethodRefused(headers=((b"allow", ", ".join(names).encode()),))


def check_access(*, open_to_anyone: bool) -> None:
    """Raises `KeyRequired` unless the upstream is open to anyone."""
    if not open_to_anyone:
        raise KeyRequired(headers=((b"www-authenticate", b'Bearer realm="relay"'),))


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
