"""The roster: found by digest, in one look-up; a following one is what a new one would be, and shares what it can."""

from __future__ import annotations

import math
import os
import tracemalloc
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import vault
from relay.catalog.roster import ApiKey, Consumer, Entry, Roster
from relay.rules import keys
from relay.rules.grants import Grant

MIB = 1 << 20


def digest_of(number: int) -> bytes:
    # The first two bytes choose the shard: some share one.
    return bytes([number % 3, number % 2]) + number.to_bytes(30, "big")


def entry(consumer_number: int, key_numbers: Iterable[int], *, name: str = "c") -> Entry:
    numbers = tuple(dict.fromkeys(key_numbers))
    consumer = Consumer(
        UUID(int=consumer_number), name, {1: (Grant(),)}, tuple(digest_of(number) for number in numbers)
    )
    return consumer, tuple(ApiKey(consumer, f"rk_{number}", math.inf) for number in numbers)


# Consumers 1 and 1025 share a shard; each has keys of its own.
CONSUMERS = st.sampled_from([1, 2, 3, 1025])
OWN_KEYS = st.sets(st.integers(min_value=0, max_value=4))


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    numbers = draw(st.sets(CONSUMERS))
    name = draw(st.sampled_from(["one name", "another"]))
    return [entry(number, [number * 10 + key for key in draw(OWN_KEYS)], name=name) for number in sorted(numbers)]


def contents(roster: Roster) -> tuple[dict[UUID, Consumer], dict[bytes, ApiKey | None]]:
    digests = [digest_of(number * 10 + key) for number in (1, 2, 3, 1025) for key in range(5)]
    return {consumer.id: consumer for consumer in roster}, {digest: roster.find(digest) for digest in digests}


@given(entries(), st.lists(st.tuples(entries(), st.sets(CONSUMERS)), max_size=4))
def test_what_follows_changes_is_what_would_be_made_anew(
    first: list[Entry], steps: list[tuple[list[Entry], set[int]]]
) -> None:
    roster = Roster(first)
    live = {consumer.id: (consumer, its_keys) for consumer, its_keys in first}
    for changed, gone in steps:
        before = contents(roster)
        removed = {UUID(int=number) for number in gone} - {consumer.id for consumer, _ in changed}
        following = roster.with_changes(changed, removed)
        assert contents(roster) == before, "a roster never changes"
        live = {key: value for key, value in live.items() if key not in removed}
        live |= {consumer.id: (consumer, its_keys) for consumer, its_keys in changed}
        assert contents(following) == contents(Roster(live.values()))
        assert len(following) == len(live)
        roster = following


@given(entries(), entries())
def test_what_is_not_shared_is_all_that_went(first: list[Entry], changed: list[Entry]) -> None:
    roster = Roster(first)
    following = roster.with_changes(changed, [])
    left = {id(each) for each in roster.not_shared_with(following)}
    for consumer, its_keys in first:
        for each in (consumer, *its_keys):
            replaced = any(consumer.id == other.id for other, _ in changed)
            assert not replaced or id(each) in left


def test_a_key_is_found_by_its_exact_digest() -> None:
    consumer, (key,) = entry(1, [5])
    roster = Roster([(consumer, (key,))])
    assert roster.find(digest_of(5)) is key
    assert roster.consumer(consumer.id) is consumer
    assert roster.find(digest_of(6)) is None
    assert roster.find(digest_of(5)[:-1] + b"x") is None
    assert roster.consumer(UUID(int=2)) is None


def test_nothing_in_a_roster_shows_a_digest() -> None:
    consumer, (key,) = entry(1, [5])
    assert repr(digest_of(5)) not in repr(consumer) + repr(key)


class Counting(dict[Any, Any]):
    """A dict that counts its look-ups."""

    lookups = 0

    def get(self, key: Any, default: Any = None) -> Any:
        Counting.lookups += 1
        return super().get(key, default)


@pytest.mark.parametrize("count", [10, 100_000])
def test_finding_a_key_is_one_look_up_in_one_dict_however_many_there_are(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster = Roster(
        (consumer, (ApiKey(consumer, "rk_p", math.inf),))
        for consumer in (Consumer(UUID(int=n), "c", {}, (os.urandom(32),)) for n in range(count))
    )
    some = next(iter(roster))
    roster._keys = tuple(map(Counting, roster._keys))
    monkeypatch.setattr(Counting, "lookups", 0)
    found = roster.find(some.digests[0])
    assert found is not None
    assert found.consumer is some
    assert roster.find(os.urandom(32)) is None
    assert Counting.lookups == 2
    assert max(map(len, roster._keys)) < 10 + 3 * count // len(roster._keys), "no shard has more than its share"


def test_ten_thousand_keys_take_less_than_15_mb() -> None:
    texts = [keys.make(os.urandom) for _ in range(10_000)]
    tracemalloc.start()
    try:
        made = []
        for number, text in enumerate(texts):
            _, digest = vault.keyring().digest(text.encode())
            consumer = Consumer(UUID(int=number), f"consumer {number}", {1: (Grant(frozenset({"GET"})),)}, (digest,))
            made.append((consumer, (ApiKey(consumer, keys.prefix_of(text), 2e9 + number),)))
        roster = Roster(made)
        del made, consumer, digest
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(roster) == 10_000
    assert held < 15 * MIB
