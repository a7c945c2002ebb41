"""How to call an upstream through the relay with curl: lines to copy into a shell. Sends nothing."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from relay.models import Access, Upstream

KEY_HEADER = "Relay-Key: rk_…"


@dataclass(frozen=True, slots=True)
class Example:
    title: str
    command: str


def curl_examples(upstream: Upstream, url: str) -> list[Example]:
    """What the upstream's methods allow of reading, sending JSON and following a stream; at least one example."""
    key = ("-H", KEY_HEADER) if upstream.access == Access.KEY else ()
    methods = upstream.allowed_methods.split(", ") if upstream.allowed_methods else ["GET", "POST"]
    found: list[Example] = []
    if "GET" in methods:
        found.append(Example("Read", _curl(*key, url)))
    if "POST" in methods:
        json = ("-H", "Content-Type: application/json", "-d", '{"hello": "world"}')
        found.append(Example("Send JSON", _curl(*key, *json, url)))
    if "GET" in methods:
        found.append(Example("Follow an event stream", _curl("-N", *key, "-H", "Accept: text/event-stream", url)))
    if not found:
        how = ("-I",) if methods[0] == "HEAD" else ("-X", methods[0])
        found.append(Example(f"Send {methods[0]}", _curl(*how, *key, url)))
    return found


def _curl(*arguments: str) -> str:
    return shlex.join(("curl", *arguments))
