"""From the raw path a caller sent to the target the upstream gets: byte for byte, or refused.

Nothing is decoded, merged or re-encoded. Decoding happens only to look: a path that a server behind us could resolve
to somewhere else than its bytes say is `PathRefused`.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from relay.errors import PathRefused

_PLAIN = re.compile(rb"(?:/[A-Za-z0-9_~!$&'()*+,:=@-][A-Za-z0-9_~!$&'()*+,:=@.-]*)*/?")
"""Segments that need no second look: no escapes, no backslashes, no parameters, none that begins with a dot."""
_OUTSIDE_URI = re.compile(rb"[\x00-\x20\x7f-\xff]|%(?:[01][0-9A-Fa-f]|7[Ff])")
"""Raw bytes no request target has, and control bytes in their escaped spelling."""
_DOT_LOOKALIKE = re.compile(rb"%u(?:002e|ff0e)|\xef\xbc\x8e|(?:\xc0|\xe0\x80|\xf0\x80\x80)\xae", re.IGNORECASE)
_SEPARATOR_LOOKALIKE = re.compile(
    rb"%u(?:002f|ff0f|005c|ff3c)|\xef\xbc[\x8f\xbc]|(?:\xc0|\xe0\x80|\xf0\x80\x80)\xaf|(?:\xc1|\xe0\x81|\xf0\x80\x81)\x9c",
    re.IGNORECASE,
)
"""What some servers take for these: their full-width forms, UTF-8 longer than it may be, and `%u` escapes."""
_SEPARATOR = re.compile(rb"[/\\]")
_DECODINGS = 8
"""Bound of the looks at one path: each costs its length, and nobody honest encodes that often."""


def split_relay_path(raw_path: bytes, *, mount_length: int) -> tuple[bytes, bytes]:
    """(slug, rest) of a path under the mount, e.g. `/relay/a/x//y` -> (`a`, `/x//y`). rest is empty or begins with `/`.

    `mount_length` counts the bytes up to and with the slash before the slug.
    """
    end = raw_path.find(b"/", mount_length)
    if end < 0:
        return raw_path[mount_length:], b""
    return raw_path[mount_length:end], raw_path[end:]


def check_path(path: bytes) -> None:
    """Raises `PathRefused` for dot segments in any spelling, control bytes and bytes outside of URIs.

    Spellings: `..`, `%2e%2e`, `.%2E`; separated by `/`, `\\`, `%2f`, `%5c`; followed by `;parameters`; each of them in
    characters that some take for them, and percent-encoded, as a whole or in parts, any number of times more.
    """
    if _PLAIN.fullmatch(path):
        return
    if _OUTSIDE_URI.search(path):
        raise PathRefused("control byte or byte outside of URIs")
    for _ in range(_DECODINGS):
        for segment in _SEPARATOR.split(_SEPARATOR_LOOKALIKE.sub(b"/", _DOT_LOOKALIKE.sub(b".", path))):
            if segment.partition(b";")[0] in (b".", b".."):
                raise PathRefused("dot segment")
        decoded = unquote_to_bytes(path)
        if decoded == path:
            return
        path = decoded
    raise PathRefused("percent-encoded over and over")


def check_own_host(path: bytes, *, sent_target: bytes | None) -> None:
    """Raises `PathRefused` for a target at an upstream's own host name that is no path: `*`, or one with a host of its
    own, which servers in front might have gone by.
    """
    if not path.startswith(b"/") or not (sent_target is None or sent_target.startswith(b"/")):
        raise PathRefused("no path")


def query_of(query: bytes, *, sent_target: bytes | None) -> bytes | None:
    """The query to send on: None for none at all, empty for a lone `?`. Raises `PathRefused` for a fragment.

    `sent_target` is the target as the caller wrote it, where the server tells.
    """
    if sent_target is None:
        return query or None
    if b"#" in sent_target:
        raise PathRefused("fragment")
    return query if b"?" in sent_target else None


def join_target(path: bytes, query: bytes | None) -> bytes:
    """The request target of a path and what `query_of` gave."""
    return path if query is None else b"%b?%b" % (path, query)
