"""Who may call, in memory: live consumers, their keys by digest, their grants. Part of the snapshot, frozen like it.

A key is found by the keyed digest of its text: one dict lookup, flat from ten keys to a hundred thousand, which
compares no byte that a caller could time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from uuid import UUID

from relay.rules.grants import Grant

SHARDS = 1024


@dataclass(frozen=True, slots=True)
class Consumer:
    """One that may call: it is switched on, and so is its owner."""

    id: UUID
    name: str
    grants: dict[int, tuple[Grant, ...]] = field(default_factory=dict)
    """By the upstream's id: its own and those of its owner's groups. No entry: it may do nothing there."""
    digests: tuple[bytes, ...] = field(default=(), repr=False)
    """Of its keys. They point here; pointing back would be a cycle that nothing collects."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that is not revoked. `expires_at` in seconds since the epoch, infinity for never."""

    consumer: Consumer
    prefix: str
    expires_at: float


Entry = tuple[Consumer, tuple[ApiKey, ...]]
"""A consumer with its keys, in the order of `Consumer.digests`."""


class Roster:
    """All live consumers at one revision. Immutable: `with_changes` gives the next one, at the cost of what changed."""

    __slots__ = ("_consumers", "_keys")

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._keys: tuple[dict[bytes, ApiKey], ...] = tuple({} for _ in range(SHARDS))
        self._consumers: tuple[dict[UUID, Consumer], ...] = tuple({} for _ in range(SHARDS))
        for consumer, keys in entries:
            self._consumers[consumer.id.int % SHARDS][consumer.id] = consumer
            for digest, key in zip(consumer.digests, keys, strict=True):
                self._keys[_shard_of(digest)][digest] = key

    def find(self, digest: bytes) -> ApiKey | None:
        return self._keys[_shard_of(digest)].get(digest)

    def consumer(self, consumer_id: UUID) -> Consumer | None:
        return self._consumers[consumer_id.int % SHARDS].get(consumer_id)

    def with_changes(self, changed: Iterable[Entry], removed: Iterable[UUID]) -> Roster:
        """`changed` take the places of those with their ids, keys included."""
        keys = _Copies(self._keys)
        consumers = _Copies(self._consumers)

        def take_out(consumer_id: UUID) -> None:
            former = consumers.shard(consumer_id.int % SHARDS).pop(consumer_id, None)
            for digest in former.digests if former else ():
                keys.shard(_shard_of(digest)).pop(digest, None)

        for consumer_id in removed:
            take_out(consumer_id)
        for consumer, its_keys in changed:
            take_out(consumer.id)
            consumers.shard(consumer.id.int % SHARDS)[consumer.id] = consumer
            for digest, key in zip(consumer.digests, its_keys, strict=True):
                keys.shard(_shard_of(digest))[digest] = key
        following = object.__new__(Roster)
        following._keys = keys.shards()
        following._consumers = consumers.shards()
        return following

    def not_shared_with(self, following: Roster) -> list[Consumer | ApiKey]:
        """What is in shards that `following` replaced, changed or not."""
        found: list[Consumer | ApiKey] = []
        for mine, its in zip(self._keys, following._keys, strict=True):
            if mine is not its:
                found += mine.values()
        for held, others in zip(self._consumers, following._consumers, strict=True):
            if held is not others:
                found += held.values()
        return found

    def __iter__(self) -> Iterator[Consumer]:
        for shard in self._consumers:
            yield from shard.values()

    def __len__(self) -> int:
        return sum(map(len, self._consumers))


def _shard_of(digest: bytes) -> int:
    return (digest[0] << 8 | digest[1]) % SHARDS


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _Copies(Generic[_Key, _Value]):
    """Shards of which those that are written to are copied first, once."""

    def __init__(self, shards: tuple[dict[_Key, _Value], ...]) -> None:
        self._shards = list(shards)
        self._copied: set[int] = set()

    def shard(self, index: int) -> dict[_Key, _Value]:
        if index not in self._copied:
            self._shards[index] = dict(self._shards[index])
            self._copied.add(index)
        return self._shards[index]

    def shards(self) -> tuple[dict[_Key, _Value], ...]:
        return tuple(self._shards)
