"""URLs that open by themselves, for places where no header can be set: `<img>`, `<video>`, e-mail.

    from relay.signing import sign
    sign("/relay/images/logo.png?size=2", key="newsletter", expires_in=timedelta(days=30))

A signed URL does what its key's consumer is granted, with this method, path and query alone, as often as it is asked
until it expires. `relay.rules.signing` has what is signed. This is for Django views, templates and commands; it reads
the database, which the request path never does. What it read it keeps for `KEPT_SECONDS`, so that a page with a
hundred pictures asks once; a key saved or removed in this process is read anew at once.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from asgiref.sync import sync_to_async
from django.db.models import Q, QuerySet
from django.db.models.signals import post_delete, post_save
from django.urls import get_script_prefix

from relay import conf, vault
from relay.errors import RelayError
from relay.models import Consumer, SigningKey
from relay.rules import paths, signing

DEFAULT_LIFETIME = timedelta(days=7)
LONGEST_LIFETIME = timedelta(seconds=signing.LONGEST_SECONDS)
KEPT_SECONDS = 5.0
"""How long a key that was revoked elsewhere may go on signing, to no avail: the relay refuses what it signs."""
MOST_KEPT = 1000

_PARTS = re.compile(r"((?:https?://[^/?#\\]+)?)(/[^?#]*)(?:\?([^#]*))?((?:#.*)?)", re.IGNORECASE | re.DOTALL)
_REWRITTEN = re.compile(r"[^!-~]|[\"<>\\^`{|}]")
"""What no URI has. Browsers percent-encode it, and then ask for another URL than was signed."""
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_LIFETIME = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class CannotSign(ValueError):
    """What was asked cannot be signed. The text says what to do, and is fit for admins and logs."""


@dataclass(frozen=True, slots=True)
class _Signer:
    public_id: str
    secret: bytes = field(repr=False)
    read_at: float


_kept: dict[str, _Signer] = {}


def sign(
    url: str,
    *,
    key: str | SigningKey,
    method: str = "GET",
    expires_in: timedelta = DEFAULT_LIFETIME,
    now: datetime | None = None,
) -> str:
    """`url` with its signature: a path such as `/relay/images/logo.png?size=2`, or an absolute URL with such a path.

    `key` is a signing key's id or label, or the name of a consumer with one key in force. A URL for GET opens HEAD,
    too. `now` is for those who want the same URL for a while, which browsers then keep: give the hour that has begun.
    Raises CannotSign.
    """
    place, slug, rest, query, fragment = _taken_apart(url)
    if not _METHOD.fullmatch(method):
        raise CannotSign(f"“{method}” is no method: write one such as GET.")
    if not timedelta() < expires_in <= LONGEST_LIFETIME:
        raise CannotSign(f"A signed URL lives for more than nothing and at most {LONGEST_LIFETIME.days} days.")
    begin = time.time() if now is None else now.timestamp()
    signer = _signer(key)
    value = signing.sign(
        signer.secret,
        key_id=signer.public_id,
        method=method,
        slug=slug,
        path=rest,
        query=query,
        expires_at=int(begin + expires_in.total_seconds()),
    )
    return f"{place}?{signing.join(query, value).decode('ascii')}{fragment}"


async def asign(
    url: str,
    *,
    key: str | SigningKey,
    method: str = "GET",
    expires_in: timedelta = DEFAULT_LIFETIME,
    now: datetime | None = None,
) -> str:
    """As `sign`, from async code. It goes to a thread only when it has to ask the database."""
    if isinstance(key, SigningKey) or _in_memory(key) is not None:
        return sign(url, key=key, method=method, expires_in=expires_in, now=now)
    return await sync_to_async(sign)(url, key=key, method=method, expires_in=expires_in, now=now)


def lifetime(text: str) -> timedelta:
    """Of `90s`, `15m`, `12h` or `30d`. Raises CannotSign."""
    found = _LIFETIME.fullmatch(text)
    if found is None:
        raise CannotSign(f"“{text}” is no time: write a whole number and s, m, h or d, such as 12h or 30d.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def relay_path(slug: str, path: str = "") -> str:
    """What `sign` takes, from an upstream's slug and what follows it."""
    return f"{get_script_prefix().rstrip('/')}{conf.MOUNT}{slug}{path}"


def live_keys() -> QuerySet[SigningKey]:
    """Those that may sign, the newest first. Whether a consumer is switched on is asked when a URL is used."""
    return SigningKey.objects.filter(revoked_at__isnull=True).select_related("consumer").order_by("-created_at", "-id")


def _taken_apart(url: str) -> tuple[str, bytes, bytes, bytes | None, str]:
    """(up to the query, slug, what follows the slug, query, fragment with its `#`)"""
    bad = _REWRITTEN.search(url)
    if bad:
        raise CannotSign(
            f"The URL has {bad[0]!r} in it, which browsers send in another spelling: percent-encode it as "
            f"{quote(bad[0], errors='replace')}."
        )
    found = _PARTS.fullmatch(url)
    mount = get_script_prefix().rstrip("/") + conf.MOUNT
    if found is None or not found[2].startswith(mount):
        raise CannotSign(f"“{url}” is no URL of the relay: begin the path with {mount} and an upstream's slug.")
    origin, path, query, fragment = found.groups()
    if query and "'" in query:
        raise CannotSign("The query has ' in it, which browsers send as %27: write it so.")
    if query is not None and signing.is_in(b"?" + query.encode()):
        raise CannotSign("The URL has a signature already: sign it as it was before.")
    slug, rest = paths.split_relay_path(path.encode(), mount_length=len(mount))
    if not slug:
        raise CannotSign(f"“{url}” names no upstream: its slug follows {mount}.")
    try:
        paths.check_path(rest)
    except RelayError:
        raise CannotSign(
            f"The path of “{url}” could be read in more than one way: leave out dot segments and control characters, "
            "in any spelling."
        ) from None
    return origin + path, slug, rest, None if query is None else query.encode(), fragment


def _in_memory(name: str) -> _Signer | None:
    kept = _kept.get(name)
    return kept if kept is not None and time.monotonic() - kept.read_at < KEPT_SECONDS else None


def _signer(key: str | SigningKey) -> _Signer:
    if isinstance(key, SigningKey):
        return _opened(key)
    signer = _in_memory(key)
    if signer is None:
        signer = _opened(_find(key))
        if len(_kept) >= MOST_KEPT:
            _kept.clear()
        _kept[key] = signer
    return signer


def _find(name: str) -> SigningKey:
    """By id, else by label, else by consumer."""
    found = list(live_keys().filter(Q(public_id=name) | Q(label=name) | Q(consumer__name=name)) if name else ())
    by_id = [key for key in found if key.public_id == name]
    labelled = [key for key in found if key.label == name]
    if by_id:
        return by_id[0]
    if len({key.consumer_id for key in labelled}) > 1:
        raise CannotSign(
            f"Several consumers have a signing key labelled “{name}”: name it by its id, {_ids(labelled)}."
        )
    if labelled:
        return labelled[0]
    if len(found) > 1:
        raise CannotSign(f"Consumer {name} has several signing keys: name one by its label or id, {_ids(found)}.")
    if not found:
        raise CannotSign(
            f"No signing key in force has the id, label or consumer “{name}”. `manage.py signing list` shows all."
        )
    return found[0]


def _ids(found: list[SigningKey]) -> str:
    return " or ".join(key.public_id for key in found[:5])


def _opened(key: SigningKey) -> _Signer:
    if key.revoked_at is not None:
        raise CannotSign(f"Signing key {key} was revoked: make another.")
    try:
        return _Signer(key.public_id, key.secret(), time.monotonic())
    except vault.SealBroken:
        raise CannotSign(
            f"Signing key {key} does not open: put the encryption key it was sealed with back into "
            "RELAY_ENCRYPTION_KEYS, or make another."
        ) from None


def _forget(**_: Any) -> None:
    _kept.clear()


for _model in (SigningKey, Consumer):
    post_save.connect(_forget, sender=_model, dispatch_uid="relay.signing")
    post_delete.connect(_forget, sender=_model, dispatch_uid="relay.signing")
