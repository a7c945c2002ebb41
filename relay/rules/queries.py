"""A query parameter that the relay adds, and the queries that it cannot be added to.

The caller's query reaches the upstream byte for byte with the relay's parameter behind it, or the request is refused:
where a caller names that parameter itself, some servers would take the first of the two and some the last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import quote_from_bytes, unquote_to_bytes

from relay.errors import ParameterRefused

_SEPARATOR = re.compile(rb"[&;]")
_DECODINGS = 8
"""Bound of the looks at one name: nobody honest encodes that often."""
_WIDE_ESCAPE = re.compile(rb"%u00([0-9A-Fa-f]{2})", re.IGNORECASE)
_LIKE_UNDERSCORE = re.compile(rb"[. +]")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter with a secret value. `added` is what goes behind the caller's query."""

    folded_name: bytes
    added: bytes = field(repr=False)


def parameter(name: str, value: str) -> Parameter:
    raw = name.encode()
    encoded = quote_from_bytes(raw, safe="-._~") + "=" + quote_from_bytes(value.encode(), safe="-._~")
    return Parameter(_folded(raw), encoded.encode())


def with_parameter(query: bytes | None, own: Parameter) -> bytes:
    """The query to send. Raises `ParameterRefused` when the caller names the parameter, in whatever spelling."""
    if not query:
        return own.added
    for pair in _SEPARATOR.split(query):
        if own.folded_name in _spellings(pair.partition(b"=")[0]):
            raise ParameterRefused
    return query + b"&" + own.added


def _spellings(name: bytes) -> set[bytes]:
    """What readers may take a name for: decoded as often as it can be, or less."""
    found = {_folded(name)}
    for _ in range(_DECODINGS):
        decoded = unquote_to_bytes(_WIDE_ESCAPE.sub(rb"%\1", name))
        if decoded == name:
            return found
        name = decoded
        # What a separator or an equals sign was hidden in is read as one after the next decoding.
        for piece in _SEPARATOR.split(name):
            found |= {_folded(piece), _folded(piece.partition(b"=")[0])}
    raise ParameterRefused("percent-encoded over and over")


def _folded(name: bytes) -> bytes:
    """As the most eager reader has it: without case, up to a bracket (PHP's and Rails' lists) or NUL, with dots and
    blanks for underscores (PHP)."""
    return _LIKE_UNDERSCORE.sub(b"_", re.split(rb"[\[\x00]", name.lower().strip(b" +\t\r\n"), maxsplit=1)[0])
