"""Which other origins' scripts may call an upstream, and what browsers are told about it (WHATWG Fetch, section 3.2).

A policy is compiled when it is saved. Where there is one, the relay answers preflights itself and its fields take the
place of the upstream's own; where there is none, nothing here is asked and the upstream's own fields pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from relay.rules.urls import parse_base_url

Lines = tuple[tuple[bytes, bytes], ...]

ORDINARY_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
DEFAULT_HEADERS = "Authorization, Content-Type, Relay-Key"
"""What an SDK needs to show its key and send JSON."""
ANY = "*"

_VARY_PREFLIGHT = (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers")
_VARY = (b"vary", b"Origin")
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_NAME = re.compile(_WORD)
_NAMES = re.compile(rf"[ \t]*{_WORD}(?:[ \t]*,[ \t]*{_WORD})*[ \t]*".encode())
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class CorsPolicy:
    """What `compile_policy` makes. `origins` are compared byte for byte; empty, any origin may call."""

    origins: frozenset[bytes]
    granted: Lines
    """What an answer says besides the origin."""
    preflight_granted: Lines
    """What the answer to a preflight says besides the origin."""
    echoes_headers: bool
    """Whatever header names a script asks for may be sent."""

    def answer(self, origin: bytes | None) -> Lines:
        """The fields of an answer to a request with this Origin."""
        if not self.origins:
            return ((b"access-control-allow-origin", b"*"), *self.granted)
        if origin not in self.origins:
            return (_VARY,)
        return (_VARY, (b"access-control-allow-origin", origin or b""), *self.granted)

    def preflight(self, origin: bytes, asked_headers: Sequence[bytes]) -> Lines:
        """The fields of the answer to a preflight. An origin that may not call is told nothing, which refuses it."""
        if self.origins and origin not in self.origins:
            return (_VARY_PREFLIGHT,)
        lines = (
            _VARY_PREFLIGHT,
            (b"access-control-allow-origin", origin if self.origins else b"*"),
            *self.preflight_granted,
        )
        asked = b", ".join(asked_headers)
        if self.echoes_headers and _NAMES.fullmatch(asked):
            lines += ((b"access-control-allow-headers", asked.strip(b" \t")),)
        return lines


def compile_policy(
    *,
    origins: str,
    methods: str,
    headers: str,
    exposed: str,
    allow_credentials: bool,
    max_age_seconds: int | None,
    upstream_methods: frozenset[str] = frozenset(),
) -> CorsPolicy | None:
    """The policy of an upstream's fields in their canonical form; None without origins, which is no policy at all.

    No method is announced that the upstream refuses anyway: `upstream_methods`, empty for all.
    """
    named = origins.split()
    if not named:
        return None
    if ANY in named and allow_credentials:
        raise ValueError("any origin, with credentials")
    headers, exposed = canonical_names(headers), canonical_names(exposed)
    wanted = _listed(methods) or sorted(upstream_methods) or ORDINARY_METHODS
    announced = [method for method in wanted if not upstream_methods or method in upstream_methods]
    preflight: list[tuple[bytes, bytes]] = [(b"access-control-allow-methods", ", ".join(announced).encode())]
    if headers and headers != ANY:
        preflight.append((b"access-control-allow-headers", headers.encode()))
    if max_age_seconds is not None:
        preflight.append((b"access-control-max-age", b"%d" % max_age_seconds))
    credentials: Lines = ((b"access-control-allow-credentials", b"true"),) if allow_credentials else ()
    exposing: Lines = ((b"access-control-expose-headers", exposed.encode()),) if exposed else ()
    return CorsPolicy(
        origins=frozenset() if ANY in named else frozenset(origin.encode() for origin in named),
        granted=(*credentials, *exposing),
        preflight_granted=(*preflight, *credentials),
        echoes_headers=headers == ANY,
    )


def without_own_fields(pairs: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """An upstream's answer without what it says about other origins itself; names are lower-case."""
    return [pair for pair in pairs if not pair[0].startswith(b"access-control-")]


def canonical_origins(text: str) -> str:
    """One origin a line, each once and as browsers write it (RFC 6454 section 6.2). ValueError says what to write."""
    found = list(dict.fromkeys(map(_canonical_origin, text.replace(",", " ").split())))
    if ANY in found and len(found) > 1:
        raise ValueError("“*” is every origin: leave out the others, or leave out “*”.")
    return "\n".join(found)


def _canonical_origin(text: str) -> str:
    if text == ANY:
        return text
    if text.lower() == "null":
        raise ValueError("“null” is the origin of any sandboxed page, whoever made it: name origins, or write “*”.")
    if text.lower().startswith(("http://", "https://")):
        url = parse_base_url(text)
        if url.path or text.endswith("/"):
            raise ValueError(f"“{text}” has a path: write {url.scheme}://{url.authority.decode()} alone.")
        return f"{url.scheme}://{url.authority.decode()}"
    if not _ORIGIN.fullmatch(text.lower()):
        raise ValueError(
            f"“{text}” is no origin: write scheme, host and perhaps a port, as in https://app.example.com."
        )
    return text.lower()


def canonical_names(text: str) -> str:
    """Header names separated by commas, each once; “*” alone is all of them. ValueError says what to write."""
    names = list({name.lower(): name for name in _listed(text)}.values())
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"“{name}” is no header name: write names such as Content-Type, without values.")
    if ANY in names and len(names) > 1:
        raise ValueError("“*” is every header: leave out the others, or leave out “*”.")
    return ", ".join(names)


def _listed(text: str) -> list[str]:
    return text.replace(",", " ").split()
