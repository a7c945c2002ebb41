"""The cookies of an upstream that the relay keeps itself: read from its answers, chosen for requests to it (RFC 6265).

A jar is a dict of `Cookie`s by key, oldest first. It belongs to one upstream and is only ever asked about that one, so
no list of public suffixes is needed: a cookie for a whole top-level domain still goes nowhere else. Bounds:
`MOST_COOKIES` and `MOST_BYTES` a jar, `LARGEST_COOKIE` for one. The wall clock is passed in, in seconds.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date

from relay.rules.cookies import domain_matches

MOST_COOKIES = 64
MOST_BYTES = 32 * 1024
"""Of all names and values of a jar; what is sent up is part of a request's head."""
LARGEST_COOKIE = 4096
LONGEST_NAME = 256
LONGEST_PATH = 512
LONGEST_LIFE_SECONDS = 400 * 24 * 3600
"""As browsers bound it (RFC 6265bis section 5.5)."""
NEWS_SECONDS = 60.0
"""An expiry that moved by less is not worth telling anyone."""

Key = tuple[bytes, bytes, bytes]
"""(domain, path, name)"""

_BLANKS = b" \t"
_DELIMITERS = re.compile(rb"[\x09\x20-\x2f\x3b-\x40\x5b-\x60\x7b-\x7e]+")
_TIME = re.compile(rb"(\d{1,2}):(\d{1,2}):(\d{1,2})(?:\D.*)?", re.DOTALL)
_DAY = re.compile(rb"(\d{1,2})(?:\D.*)?", re.DOTALL)
_YEAR = re.compile(rb"(\d{2,4})(?:\D.*)?", re.DOTALL)
_MONTHS = (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec")


@dataclass(frozen=True, slots=True)
class Cookie:
    """One cookie. `domain` is lower-case; without `host_only` it is sent to the names below that as well."""

    name: bytes
    value: bytes = field(repr=False)
    domain: bytes
    path: bytes
    host_only: bool = True
    secure: bool = False
    expires_at: float | None = None
    """None: never, as nobody closes a relay as one does a browser."""

    @property
    def key(self) -> Key:
        return (self.domain, self.path, self.name)

    @property
    def size(self) -> int:
        return len(self.name) + len(self.value)

    def has_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def is_for(self, *, host: bytes, path: bytes, secure: bool, now: float) -> bool:
        """RFC 6265 section 5.4."""
        return (
            (host == self.domain if self.host_only else domain_matches(host, self.domain))
            and path_matches(path, self.path)
            and (secure or not self.secure)
            and not self.has_expired(now)
        )


def cookie_header(cookies: Iterable[Cookie], *, host: bytes, path: bytes, secure: bool, now: float) -> bytes | None:
    """The Cookie value for a request, longer paths first, older cookies first; None when no cookie is for it."""
    chosen = [cookie for cookie in cookies if cookie.is_for(host=host, path=path, secure=secure, now=now)]
    chosen.sort(key=lambda cookie: -len(cookie.path))
    return b"; ".join([cookie.name + b"=" + cookie.value for cookie in chosen]) or None


def read_set_cookie(value: bytes, *, host: bytes, path: bytes, now: float) -> Cookie | None:
    """The cookie of one Set-Cookie value in an answer for `path` at `host`; None for one that is not to be kept.

    RFC 6265 sections 5.2 and 5.3. One that has expired already takes the stored one away.
    """
    pair, *attributes = value.split(b";")
    name, equals, content = pair.partition(b"=")
    name, content = name.strip(_BLANKS), content.strip(_BLANKS)
    if not equals or not name or len(name) > LONGEST_NAME or len(name) + len(content) > LARGEST_COOKIE:
        return None
    domain = b""
    cookie_path = b""
    secure = False
    expires_at: float | None = None
    max_age: float | None = None
    for attribute in attributes:
        key, _, setting = attribute.partition(b"=")
        setting = setting.strip(_BLANKS)
        match key.strip(_BLANKS).lower():
            case b"domain":
                domain = setting.removeprefix(b".").lower() or domain
            case b"path":
                cookie_path = setting if setting.startswith(b"/") else b""
            case b"secure":
                secure = True
            case b"expires":
                moment = parse_date(setting)
                expires_at = expires_at if moment is None else moment
            case b"max-age":
                seconds = _seconds(setting)
                max_age = max_age if seconds is None else seconds
    if domain and not domain_matches(host, domain):
        return None
    cookie_path = cookie_path or default_path(path)
    if len(cookie_path) > LONGEST_PATH:
        return None
    if max_age is not None:
        expires_at = now + max_age
    if expires_at is not None:
        expires_at = min(expires_at, now + LONGEST_LIFE_SECONDS)
    return Cookie(
        name=name,
        value=content,
        domain=domain or host,
        path=cookie_path,
        host_only=not domain,
        secure=secure,
        expires_at=expires_at,
    )


def overflow(jar: Mapping[Key, Cookie], now: float) -> list[Key]:
    """The keys that have to go: what has expired, then the oldest until the jar keeps its bounds."""
    gone = [key for key, cookie in jar.items() if cookie.has_expired(now)]
    kept = [cookie for cookie in jar.values() if not cookie.has_expired(now)]
    size = sum(cookie.size for cookie in kept)
    for place, cookie in enumerate(kept):
        if len(kept) - place <= MOST_COOKIES and size <= MOST_BYTES:
            break
        gone.append(cookie.key)
        size -= cookie.size
    return gone


def is_news(cookie: Cookie, stored: Cookie | None) -> bool:
    """Whether others have to be told of `cookie` in the place of `stored`."""
    if stored is None:
        return True
    if (cookie.expires_at is None) != (stored.expires_at is None):
        return True
    if abs((cookie.expires_at or 0) - (stored.expires_at or 0)) >= NEWS_SECONDS:
        return True
    return (cookie.value, cookie.secure, cookie.host_only) != (stored.value, stored.secure, stored.host_only)


def path_matches(path: bytes, cookie_path: bytes) -> bool:
    """RFC 6265 section 5.1.4."""
    if not path.startswith(cookie_path):
        return False
    return len(path) == len(cookie_path) or cookie_path.endswith(b"/") or path[len(cookie_path) :].startswith(b"/")


def default_path(path: bytes) -> bytes:
    """RFC 6265 section 5.1.4: the folder of the request's path."""
    return path[: path.rfind(b"/")] or b"/" if path.startswith(b"/") else b"/"


def parse_date(text: bytes) -> float | None:
    """RFC 6265 section 5.1.1: whatever servers have been seen to write, in any order; None for what is no date."""
    time: tuple[int, int, int] | None = None
    day: int | None = None
    month: int | None = None
    year: int | None = None
    for token in _DELIMITERS.split(text):
        if time is None and (found := _TIME.fullmatch(token)):
            time = (int(found[1]), int(found[2]), int(found[3]))
        elif day is None and (found := _DAY.fullmatch(token)):
            day = int(found[1])
        elif month is None and token[:3].lower() in _MONTHS:
            month = _MONTHS.index(token[:3].lower()) + 1
        elif year is None and (found := _YEAR.fullmatch(token)):
            year = int(found[1])
    if time is None or day is None or month is None or year is None:
        return None
    if year < 100:
        year += 1900 if year >= 70 else 2000
    if year < 1601 or time[0] > 23 or time[1] > 59 or time[2] > 59:
        return None
    try:
        date(year, month, day)
    except ValueError:
        return None
    return float(timegm((year, month, day, *time)))


def _seconds(text: bytes) -> float | None:
    if not re.fullmatch(rb"-?[0-9]+", text):
        return None
    if text.startswith(b"-"):
        return 0.0
    return float(min(int(text[:12]), LONGEST_LIFE_SECONDS)) if len(text) <= 12 else float(LONGEST_LIFE_SECONDS)
