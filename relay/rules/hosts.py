"""What a host name serves: the relay's mount, the admin, both on one origin, or one upstream alone.

Decided on the bytes of the Host header, from the settings: nothing is decoded or mapped but ASCII capitals, a port is
passed over, and so is one dot at the end. A name of its own gives an upstream an origin of its own: exactly one label
before the suffix, which is the slug.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from relay.errors import HostRefused

LONGEST_HOST = 261
"""A name of 254 bytes with its last dot, a colon and a port; nothing longer is a host, or worth remembering."""

UPSTREAM_LABELS = ("<slug>.", "*.")
"""How a pattern that maps hosts to upstreams begins in `RELAY_HOSTS`."""

_HOST = re.compile(rb"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]")


@dataclass(frozen=True, slots=True)
class Place:
    """What answers at a host name."""

    relay: bool = False
    """`/relay/<slug>/` is answered."""
    admin: bool = False
    """Django's own pages are answered; the application itself checks ALLOWED_HOSTS."""
    slug: bytes = b""
    """Every path belongs to the upstream of this slug."""

    @property
    def shares_origin(self) -> bool:
        """Relayed pages and the admin have one origin for browsers."""
        return self.relay and self.admin


NOWHERE = Place()


class Hosts:
    """The names of an installation. Immutable, made from the settings once.

    `allowed` and `admin` are Django's patterns: exact names, `.example.org` for a name and all below it, `*`. `relay`
    has exact names and patterns that map hosts to upstreams.
    """

    def __init__(self, *, allowed: Iterable[str], relay: Iterable[str] = (), admin: Iterable[str] = ()) -> None:
        self._given = tuple(name.lower() for name in allowed if not name.startswith((".", "*")))
        entries = [entry.lower() for entry in relay]
        self._given_to_relay = tuple(entry for entry in entries if not upstream_suffix(entry))
        self.suffixes = tuple(suffix for entry in entries if (suffix := upstream_suffix(entry)))
        self._relay = frozenset(entry.encode() for entry in self._given_to_relay)
        self._allowed, self._allowed_below, self._all_allowed = _sorted(allowed)
        self._admin, self._admin_below, self._all_admin = _sorted(admin)
        self.relay_has_its_own = bool(entries)
        self.admin_has_its_own = bool(self._admin or self._admin_below or self._all_admin)
        self._suffixes = tuple(suffix.encode() for suffix in self.suffixes)
        # Django answers 400 to a name that is not allowed.
        self._unknown = Place(admin=not self.admin_has_its_own)

    @property
    def one_origin(self) -> bool:
        """Neither has names of its own, so that browsers take pages of both for one origin."""
        return not (self.relay_has_its_own or self.admin_has_its_own)

    def place(self, host: bytes) -> Place:
        """What the value of a Host header serves. Exact names come before patterns, the relay's before the admin's."""
        parts = _HOST.fullmatch(host) if len(host) <= LONGEST_HOST else None
        name = parts["name"].lower().removesuffix(b".") if parts else b""
        if not name:
            return self._unknown
        if name in self._relay:
            return Place(relay=True)
        if name in self._admin:
            return Place(admin=True)
        for suffix in self._suffixes:
            if name.endswith(suffix):
                label = name[: -len(suffix)]
                return Place(slug=label) if label and b"." not in label else NOWHERE
        if self._all_admin or _is_below(name, self._admin_below):
            return Place(admin=True)
        if not (self._all_allowed or name in self._allowed or _is_below(name, self._allowed_below)):
            return self._unknown
        return Place(relay=not self.relay_has_its_own, admin=not self.admin_has_its_own)

    def relay_name(self) -> str:
        """A whole name where the mount is answered and the admin is not; empty where there is none to tell."""
        for name in (*self._given_to_relay, *self._given):
            place = self.place(name.encode())
            if place.relay and not place.admin:
                return name
        return ""

    def answered_by_both(self) -> list[str]:
        """The names that were given to the relay and to the admin; the relay has them."""
        both = [name for name in self._relay if name in self._admin or self._all_admin]
        both += [name for name in self._relay if name not in both and _is_below(name, self._admin_below)]
        return sorted(name.decode() for name in both)


def check_relay(place: Place) -> None:
    """Raises `HostRefused` where nothing is relayed."""
    if not (place.relay or place.slug):
        raise HostRefused


def upstream_suffix(entry: str) -> str:
    """`.relay.example.org` of `<slug>.relay.example.org`; empty for an entry that is no such pattern."""
    for label in UPSTREAM_LABELS:
        if entry.startswith(label):
            return entry[len(label) - 1 :]
    return ""


def check_entry(entry: str) -> None:
    """Raises ValueError for what `RELAY_HOSTS` cannot have."""
    suffix = upstream_suffix(entry)
    if not _NAME.fullmatch(suffix[1:] or entry) or suffix.endswith("]"):
        raise ValueError(
            f"{entry!r} is none: write a whole host name, or <slug>.relay.example.org, without scheme and port"
        )


def _sorted(patterns: Iterable[str]) -> tuple[frozenset[bytes], tuple[bytes, ...], bool]:
    """(exact names, endings with their dot, whether there is a `*`)"""
    entries = [pattern.lower() for pattern in patterns]
    exact = frozenset(entry.encode() for entry in entries if not entry.startswith((".", "*")))
    return exact, tuple(entry.encode() for entry in entries if entry.startswith(".")), "*" in entries


def _is_below(name: bytes, endings: tuple[bytes, ...]) -> bool:
    return any(name.endswith(ending) or name == ending[1:] for ending in endings)
