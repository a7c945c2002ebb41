"""Who calls, and may they: from what a request shows to its admission, or the `RelayError` that refuses it.

The rules are in `relay.rules.access`; here they are put in their order, to the snapshot's roster, without I/O: a key is
found by its digest in memory, so an unknown one costs no query. A request that may pass by a key alone is entered among
those `underway`, which are judged again by the same rules whenever the roster changes.
"""

from __future__ import annotations

import math

from relay import vault
from relay.catalog import Upstream, usage
from relay.catalog.roster import ApiKey, Roster
from relay.errors import (
    KeyRefused,
    KeyRequired,
    MethodRefused,
    NotGranted,
    SignatureExpired,
    SignatureRefused,
    TooManyUnknownKeys,
)
from relay.observing.access_log import Entry
from relay.rules import access, keys, paths, signing
from relay.rules.headers import RequestFields
from relay.rules.throttle import Throttle
from relay.serving import underway
from relay.serving.request import RelayRequest

UNKNOWN_KEYS_AT_ONCE = 20
UNKNOWN_KEYS_PER_SECOND = 1.0
MAX_THROTTLED_ADDRESSES = 10_000
"""About 3 MB in each worker."""

_REPORTED = (
    KeyRequired,
    KeyRefused,
    TooManyUnknownKeys,
    SignatureRefused,
    SignatureExpired,
    MethodRefused,
    NotGranted,
)
"""What an upstream in report-only mode lets pass."""

unknown_keys = Throttle(
    burst=UNKNOWN_KEYS_AT_ONCE, per_second=UNKNOWN_KEYS_PER_SECOND, max_addresses=MAX_THROTTLED_ADDRESSES
)
"""Of this process. Each worker counts for itself."""


def admit(
    request: RelayRequest,
    upstream: Upstream,
    fields: RequestFields,
    *,
    path: bytes,
    query: bytes | None,
    signature: bytes | None,
    roster: Roster,
) -> None:
    """Let the request in, or raise the `RelayError` that says why not.

    `path` is what follows the slug; `query` and `signature` are what `signing.split` gave. Of a signature and a key,
    the signature decides.
    """
    entry = request.entry
    try:
        if signature is None or upstream.open_to_anyone:
            admission = _judge(entry, upstream, fields.key, path, roster)
        else:
            admission = _judge_signed(entry, upstream, signature, path, query, roster)
    except _REPORTED as refusal:
        if not upstream.report_only or access.is_never_relayed(entry.method):
            raise
        paths.check_path(path)
        entry.would_refuse = refusal.type
        usage.note_would_refuse(upstream.id, refusal.type, entry.wall)
    else:
        if admission is not None and not upstream.report_only:
            underway.enter(request, admission)


def _judge(
    entry: Entry, upstream: Upstream, shown: bytes | None, path: bytes, roster: Roster
) -> underway.Admission | None:
    """What lets the request in; None where it needs nothing to."""
    digest, key = _who_calls(entry, shown, roster)
    if not upstream.open_to_anyone:
        if shown and key is None:
            _count_unknown(entry)
        access.check_key(shown=bool(shown), expires_at=key.expires_at if key else None, now=entry.wall)
    access.check_method(entry.method, upstream.methods)
    paths.check_path(path)
    if upstream.open_to_anyone or key is None:
        return None
    access.check_grants(key.consumer.grants.get(upstream.id, ()), entry.method, path)
    return underway.Admission(digest, key.expires_at, upstream.id, entry.method, path)


def _judge_signed(
    entry: Entry, upstream: Upstream, value: bytes, path: bytes, query: bytes | None, roster: Roster
) -> underway.Admission:
    """By the signing key that is named, and its consumer's grants. Only who holds a URL that was once signed learns
    more than that it is not valid."""
    access.check_method(entry.method, upstream.methods)
    paths.check_path(path)
    signature = signing.read(value)
    signer = roster.find_signer(signature.key_id)
    if signer is None:
        raise SignatureRefused("no live signing key has this id")
    signing.check(
        signature,
        signer.key.secret,
        method=entry.method,
        slug=upstream.slug.encode(),
        path=path,
        query=query,
        now=entry.wall,
    )
    entry.consumer, entry.key = signer.consumer.name, signer.key.id
    access.check_grants(signer.consumer.grants.get(upstream.id, ()), entry.method, path)
    # A download that began in time may end after it.
    return underway.Admission(b"", math.inf, upstream.id, entry.method, path, signer.key.id)


def _who_calls(entry: Entry, shown: bytes | None, roster: Roster) -> tuple[bytes, ApiKey | None]:
    """(digest, key) of what was shown, the key in force or not; without one, the caller is nobody."""
    if shown and len(shown) == keys.LENGTH:
        for digest in vault.keyring().digests(shown):
            key = roster.find(digest)
            if key is not None:
                entry.key = key.prefix
                if entry.wall < key.expires_at:
                    entry.consumer = key.consumer.name
                    usage.note_key(key.prefix, entry.wall)
                return digest, key
        if keys.is_well_formed(shown):
            entry.key = shown[: keys.PREFIX_CHARACTERS].decode()
    return b"", None


def _count_unknown(entry: Entry) -> None:
    """Raises `TooManyUnknownKeys` when the caller's address has shown too many."""
    if unknown_keys.wait_seconds(entry.client, entry.started):
        # A second at most, at UNKNOWN_KEYS_PER_SECOND: as long as the error says.
        raise TooManyUnknownKeys
