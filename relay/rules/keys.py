"""What a relay key looks like, and where a request shows one.

A key is `rk_`, eight characters by which lists name it, and 43 characters of a 256-bit secret (base64url). Whoever has
the text has the key; the relay keeps a keyed digest alone, so looking one up compares nothing that a caller could time.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable

CONSUMER_NAME_PATTERN = r"^[^\W_]([\w .@+-]{0,98}[^\W_])?\Z"
NAME_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
"""Of prefixes: 32, none easily taken for another."""
PREFIX_CHARACTERS = len("rk_") + 8
LENGTH = PREFIX_CHARACTERS + 43
SECRET_BYTES = 32

_KEY = re.compile(rb"rk_[a-km-np-z2-9]{8}[A-Za-z0-9_-]{43}")
_BEARER = re.compile(rb"bearer[ \t]+rk_", re.IGNORECASE)


def make(random_bytes: Callable[[int], bytes]) -> str:
    """A new key. `random_bytes` gives as many as asked for, and has to be fit for secrets."""
    name = "".join(NAME_LETTERS[byte % 32] for byte in random_bytes(8))
    return f"rk_{name}{urlsafe_b64encode(random_bytes(SECRET_BYTES)).rstrip(b'=').decode()}"


def prefix_of(key: str) -> str:
    """The part that lists show."""
    return key[:PREFIX_CHARACTERS]


def is_well_formed(shown: bytes) -> bool:
    return len(shown) == LENGTH and _KEY.fullmatch(shown) is not None


def of_bearer(value: bytes) -> bytes | None:
    """The relay key in a value of Authorization; None when the value is somebody else's (RFC 6750 section 2.1).

    Whatever begins as ours is ours, to its end: a key with something behind it must not go on to an upstream.
    """
    return value[7:].strip(b" \t") if _BEARER.match(value) else None
