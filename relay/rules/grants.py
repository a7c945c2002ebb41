"""What a consumer may do at an upstream: methods and paths, decided on raw bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from relay.rules.paths import check_path


@dataclass(frozen=True, slots=True)
class Grant:
    """Empty `methods` or `prefixes`: all of them."""

    methods: frozenset[str] = frozenset()
    prefixes: tuple[bytes, ...] = ()
    """Each as callers write it after the slug, beginning with `/`."""
    _beginnings: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    """What a path below one of them begins with."""

    def __post_init__(self) -> None:
        beginnings = tuple(map(_beginning_of, self.prefixes))
        object.__setattr__(self, "_beginnings", self.prefixes if beginnings == self.prefixes else beginnings)

    def allows(self, method: str, path: bytes) -> bool:
        """`path` is what follows the slug, checked to be unambiguous; empty for the mount itself.

        A grant of GET has HEAD in it, as in RFC 9110 section 9.3.2: the same without a body.
        """
        methods = self.methods
        if methods and method not in methods and not (method == "HEAD" and "GET" in methods):
            return False
        return not self.prefixes or path.startswith(self._beginnings) or path in self.prefixes

    def covers(self, other: Grant) -> bool:
        """Whether it allows all that `other` does."""
        if (self.methods and not other.methods) or (self.prefixes and not other.prefixes):
            return False
        return all(self.allows(method, path) for method in other.methods or ("",) for path in other.prefixes or (b"",))


def _beginning_of(prefix: bytes) -> bytes:
    """`/v1/chat` has itself and `/v1/chat/...` below it, not `/v1/chatter`; `/v1/` only what follows the slash.

    Compared byte for byte: another spelling of the same path is not below it, which refuses and never opens.
    """
    return prefix if prefix.endswith(b"/") else prefix + b"/"


def allow(grants: Iterable[Grant], method: str, path: bytes) -> bool:
    for grant in grants:  # noqa: SIM110 - a generator would cost more than most grants do
        if grant.allows(method, path):
            return True
    return False


def check_prefix(text: str) -> None:
    """Raises ValueError, saying what to do, for a prefix that no path can have."""
    if not text.startswith("/"):
        raise ValueError(f"“{text}” does not begin with a slash: write /{text.lstrip('/')}.")
    if "?" in text or "#" in text:
        raise ValueError(f"“{text}” has a query or fragment: write the path alone.")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"“{text}” is not as it travels: percent-encode spaces and letters beyond ASCII.")
    try:
        check_path(text.encode())
    except Exception as problem:
        raise ValueError(f"“{text}” could be read in more than one way: leave out dot segments.") from problem
