"""Rewrites references in response headers that lead back to the same upstream, so that callers return to the relay.

`Location`, `Content-Location`, `Refresh` and `Link` go through here; `cookies` does the same for Set-Cookie. Nothing is
decoded, normalised or resolved: a reference that is surely below the upstream's base path has its front replaced by the
mount, any other is left byte for byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_DEFAULT_PORTS = {b"http": 80, b"https": 443}

_ABSOLUTE = re.compile(
    rb"(?:(?P<scheme>https?):)?//(?:\[(?P<literal>[0-9a-f:.]+)\]|(?P<name>[^\[\]:@/?#\\]+))(?::(?P<port>[0-9]{0,5}))?"
    rb"(?P<tail>[/?#].*)?",
    re.IGNORECASE | re.DOTALL,
)
_CONTROLS = re.compile(rb"[\x00-\x1f\x7f]")
_PATH_END = re.compile(rb"[?#]")
# As browsers resolve them (WHATWG URL section 4.4): %2e is a dot and a backslash a slash.
_DOT_SEGMENT = re.compile(rb"[/\\](?:\.|%2e){1,2}(?:[/\\]|\Z)", re.IGNORECASE)

_REFRESH = re.compile(
    rb"(?P<front>[ \t]*[0-9.]+[ \t]*[;,][ \t]*(?:url[ \t]*=[ \t]*)?)(?P<quote>[\"']?)(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
# A quoted string to step over, or the target that opens a list element (RFC 8288 section 3). Linear in its input.
_LINK_PIECE = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|(?P<front>(?:\A|,)[ \t]*<)(?P<target>[^<>]*)(?=>)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class UpstreamPlace:
    """An upstream and where callers find it. `host` is lower case, an IPv6 literal without brackets.

    `base_path` (b"/v1") and `mount` (b"/relay/a") have no trailing slash. `base_path` may be empty; so is `mount` at a
    host name of the upstream's own.
    """

    scheme: bytes
    host: bytes
    port: int
    base_path: bytes
    mount: bytes


def relayed_location(value: bytes, place: UpstreamPlace) -> bytes:
    """The value of Location or Content-Location as the caller gets it.

    Absolute, scheme-relative and path-absolute references below the base path become path-absolute ones below the
    mount. Left as they are: relative references, other schemes (an upgrade from http to https is another place), hosts,
    ports and paths, userinfo, dot segments and backslashes that browsers would resolve to somewhere else, and whatever
    does not parse.
    """
    if _CONTROLS.search(value):  # browsers drop tabs and line ends before they parse
        return value
    if value.startswith(b"/") and value[1:2] not in (b"/", b"\\"):
        return _below_mount(value, place, otherwise=value)
    parts = _ABSOLUTE.fullmatch(value)
    if parts is None:
        return value
    scheme = (parts["scheme"] or place.scheme).lower()
    host = (parts["literal"] or parts["name"]).lower()
    port = int(parts["port"]) if parts["port"] else _DEFAULT_PORTS[scheme]
    if (scheme, host, port) != (place.scheme, place.host, place.port):
        return value
    return _below_mount(parts["tail"] or b"", place, otherwise=value)


def relayed_refresh(value: bytes, place: UpstreamPlace) -> bytes:
    """The value of Refresh (WHATWG HTML section 4.2.5.3): seconds, then a reference, `url=` and quotes optional."""
    parts = _REFRESH.fullmatch(value)
    if parts is None:
        return value
    front, quote, rest = parts["front"], parts["quote"], parts["rest"]
    target, closing, after = rest.partition(quote) if quote else (rest, b"", b"")
    return front + quote + relayed_location(target, place) + closing + after


def relayed_link(value: bytes, place: UpstreamPlace) -> bytes:
    """The value of one Link line: each list element's target is rewritten, its parameters are not."""

    def rewritten(piece: re.Match[bytes]) -> bytes:
        if piece["front"] is None:
            return piece[0]
        return piece["front"] + relayed_location(piece["target"], place)

    return _LINK_PIECE.sub(rewritten, value)


def _below_mount(tail: bytes, place: UpstreamPlace, *, otherwise: bytes) -> bytes:
    """`tail` is path, query and fragment; the path may be empty."""
    path = _PATH_END.split(tail, maxsplit=1)[0]
    is_below = path == place.base_path or path.startswith(place.base_path + b"/")
    if not is_below or _DOT_SEGMENT.search(path):
        return otherwise
    rest = tail[len(place.base_path) :]
    if not place.mount:
        if not rest.startswith(b"/"):
            return b"/" + rest
        if rest[1:2] in (b"/", b"\\"):
            # By itself it would be read as a host; so guarded, it is a path (WHATWG URL section 4.5).
            return b"/." + rest
    return place.mount + rest
