"""What a relay key looks like, and where a request shows one."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.models.consumers import Consumer
from relay.rules.keys import (
    CONSUMER_NAME_PATTERN,
    LENGTH,
    PREFIX_CHARACTERS,
    SECRET_BYTES,
    is_well_formed,
    make,
    of_bearer,
    prefix_of,
)

RANDOM = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


@given(RANDOM)
def test_a_key_is_well_formed_and_has_the_prefix_that_lists_show(random: bytes) -> None:
    key = make(lambda count: random[:count])
    assert is_well_formed(key.encode())
    assert len(key) == LENGTH
    assert key.startswith(prefix_of(key))
    assert len(prefix_of(key)) == PREFIX_CHARACTERS
    assert re.fullmatch(r"rk_[a-z2-9]{8}", prefix_of(key))


def test_all_the_randomness_asked_for_is_in_the_key() -> None:
    asked: list[int] = []

    def random_bytes(count: int) -> bytes:
        asked.append(count)
        return os.urandom(count)

    assert len({make(random_bytes) for _ in range(100)}) == 100
    assert set(asked) == {8, SECRET_BYTES}


@given(RANDOM, RANDOM)
def test_differing_randomness_makes_differing_keys(one: bytes, other: bytes) -> None:
    assert (make(lambda count: one[:count]) == make(lambda count: other[:count])) is (one == other)


KEY = b"rk_" + b"a" * 8 + b"B" * 43


@pytest.mark.parametrize(
    "shown",
    [b"", b"rk_", KEY[:-1], KEY + b"B", b" " + KEY, KEY + b"\n", KEY.upper(), KEY[:-1] + b"=", b"sk" + KEY[2:]]
    + [KEY[:3] + letter + KEY[4:] for letter in (b"l", b"o", b"0", b"1", b"A", b"\xc3")],
)
def test_what_no_key_can_be_is_told_without_looking_it_up(shown: bytes) -> None:
    assert is_well_formed(KEY)
    assert not is_well_formed(shown)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"Bearer rk_x", b"rk_x"),
        (b"bEaReR\t rk_x \t", b"rk_x"),
        (b"Bearer rk_", b"rk_"),
        (b"Bearer rk_x, Bearer y", b"rk_x, Bearer y"),
        (b"Bearer rk_x y", b"rk_x y"),
        (b"Bearer RK_x", b"RK_x"),
        (b"Bearer rk-x", None),
        (b"Bearer x rk_x", None),
        (b"Bearerrk_x", None),
        (b"Basic rk_x", None),
        (b"rk_x", None),
        (b"", None),
    ],
)
def test_where_authorization_shows_a_key(value: bytes, key: bytes | None) -> None:
    assert of_bearer(value) == key


@given(st.binary())
def test_no_value_with_a_relay_key_as_its_token_is_taken_for_somebody_elses(rest: bytes) -> None:
    shown = of_bearer(b"Bearer rk_" + rest)
    assert shown is not None
    assert shown == (b"rk_" + rest).strip(b" \t")


@pytest.mark.parametrize("name", ["a", "billing-batch", "mobile app", "a.b_c@d+e", "Größe 2"])
def test_names_that_consumers_can_have(name: str) -> None:
    assert re.match(CONSUMER_NAME_PATTERN, name)
    Consumer(name=name).clean_fields()


@pytest.mark.parametrize("name", ["", " a", "a ", "-a", "a\n", "a\tb", "a" * 101, "a<b", 'a"b', "\x1b[0m"])
def test_names_that_they_cannot(name: str) -> None:
    assert not re.match(CONSUMER_NAME_PATTERN, name)
