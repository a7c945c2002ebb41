"""`httpx.Headers` over pairs as the wire has them: nothing is normalised, and nothing made until somebody asks."""

from __future__ import annotations

from functools import cached_property

import httpx


class RawHeaders(httpx.Headers):
    """`raw` is the very list that was given; all else of the interface works as httpx's."""

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs
        self._encoding = None

    @cached_property
    def _list(self) -> list[tuple[bytes, bytes, bytes]]:  # type: ignore[override]  # httpx's own, made late
        return [(name, name.lower(), value) for name, value in self._pairs]

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        if "_list" in self.__dict__:
            return [(name, value) for name, _, value in self._list]
        return self._pairs
