"""`httpx.Headers` over pairs as the wire has them: nothing to normalise, most of the cost of a message saved."""

from __future__ import annotations

from collections.abc import Iterable

import httpx


class RawHeaders(httpx.Headers):
    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._list = [(name, name.lower(), value) for name, value in pairs]
        self._encoding = None
