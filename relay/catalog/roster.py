"""Who may call, in memory: live consumers, their keys by digest, their signing keys by id, their grants. Part of the
snapshot, frozen like it.

A key is found by the keyed digest of its text: one dict lookup, flat from ten keys to a hundred thousand, which
compares no byte that a caller could time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from uuid import UUID
from zlib import crc32

from relay.rules.grants import Grant

SHARDS = 1024


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One that is not revoked. Its consumer's rights are those of the URLs it signs."""

    id: str
    """Public: it stands in the URLs."""
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Consumer:
    """One that may call: it is switched on, and so is its owner."""

    id: UUID
    name: str
    grants: dict[int, tuple[Grant, ...]] = field(default_factory=dict)
    """By the upstream's id: its own and those of its owner's groups. No entry: it may do nothing there."""
    digests: tuple[bytes, ...] = field(default=(), repr=False)
    """Of its keys. They point here; pointing back would be a cycle that nothing collects."""
    signing_keys: tuple[SigningKey, ...] = ()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that is not revoked. `expires_at` in seconds since the epoch, infinity for never."""

    consumer: Consumer
    prefix: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class Signer:
    """A signing key with the consumer it signs for."""

    consumer: Consumer
    key: SigningKey


Entry = tuple[Consumer, tuple[ApiKey, ...]]
"""A consumer with its keys, in the order of `Consumer.digests`."""


class Roster:
    """All live consumers at one revision. Immutable: `with_changes` gives the next one, at the cost of what changed."""

    __slots__ = ("_consumers", "_keys", "_signers")

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._keys: tuple[dict[bytes, ApiKey], ...] = tuple({} for _ in range(SHARDS))
        self._consumers: tuple[dict[UUID, Consumer], ...] = tuple({} for _ in range(SHARDS))
        self._signers: tuple[dict[str, Signer], ...] = tuple({} for _ in range(SHARDS))
        for consumer, keys in entries:
            self._consumers[consumer.id.int % SHARDS][consumer.id] = consumer
            for signing_key in consumer.signing_keys:
                self._signers[_shard_of_id(signing_key.id)][signing_key.id] = Signer(consumer, signing_key)
            for digest, key in zip(consumer.digests, keys, strict=True):
                self._keys[_shard_of(digest)][digest] = key

    def find(self, digest: bytes) -> ApiKey | None:
        return self._keys[_shard_of(digest)].get(digest)

    def find_signer(self, key_id: str) -> Signer | None:
        """By a signing key's public id. None: there is no such key, or it was revoked, or its consumer is off."""
        return self._signers[_shard_of_id(key_id)].get(key_id)

    def consumer(self, consumer_id: UUID) -> Consumer | None:
        return self._consumers[consumer_id.int % SHARDS].get(consumer_id)

    def with_changes(self, changed: Iterable[Entry], removed: Iterable[UUID]) -> Roster:
        """`changed` take the places of those with their ids, keys included."""
        keys = _Copies(self._keys)
        consumers = _Copies(self._consumers)
        signers = _Copies(self._signers)

        def take_out(consumer_id: UUID) -> None:
            former = consumers.shard(consumer_id.int % SHARDS).pop(consumer_id, None)
            for digest in former.digests if former else ():
                keys.shard(_shard_of(digest)).pop(digest, None)
            for signing_key in former.signing_keys if former else ():
                signers.shard(_shard_of_id(signing_key.id)).pop(signing_key.id, None)

        entries = list(changed)
        # All of them first: a key may have moved from one to another.
        for consumer_id in [*removed, *(consumer.id for consumer, _ in entries)]:
            take_out(consumer_id)
        for consumer, its_keys in entries:
            consumers.shard(consumer.id.int % SHARDS)[consumer.id] = consumer
            for digest, key in zip(consumer.digests, its_keys, strict=True):
                keys.shard(_shard_of(digest))[digest] = key
            for signing_key in consumer.signing_keys:
                signers.shard(_shard_of_id(signing_key.id))[signing_key.id] = Signer(consumer, signing_key)
        following = object.__new__(Roster)
        following._keys = keys.shards()
        following._consumers = consumers.shards()
        following._signers = signers.shards()
        return following

    def not_shared_with(self, following: Roster) -> list[Consumer | ApiKey | Signer]:
        """What is in shards that `following` replaced, changed or not."""
        found: list[Consumer | ApiKey | Signer] = []
        for mine, its in zip(self._keys, following._keys, strict=True):
            if mine is not its:
                found += mine.values()
        for held, others in zip(self._consumers, following._consumers, strict=True):
            if held is not others:
                found += held.values()
        for signers, followers in zip(self._signers, following._signers, strict=True):
            if signers is not followers:
                found += signers.values()
        return found

    def __iter__(self) -> Iterator[Consumer]:
        for shard in self._consumers:
            yield from shard.values()

    def __len__(self) -> int:
        return sum(map(len, self._consumers))


def _shard_of(digest: bytes) -> int:
    return (digest[0] << 8 | digest[1]) % SHARDS


def _shard_of_id(key_id: str) -> int:
    return crc32(key_id.encode()) % SHARDS


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
