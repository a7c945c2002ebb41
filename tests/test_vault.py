"""Sealed secrets open for their purpose and row alone, with any root that is still there; digests are keyed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.vault import Keyring, SealBroken, keyring

OLD, NEW = "o" * 32, "n" * 32
WHERE = {"purpose": "credential.value", "row": "7"}


@given(st.binary(max_size=200), st.text(max_size=30), st.text(max_size=30))
def test_what_was_sealed_opens(secret: bytes, purpose: str, row: str) -> None:
    ring = Keyring([NEW])
    assert ring.open(ring.seal(secret, purpose=purpose, row=row), purpose=purpose, row=row) == secret


def test_the_same_secret_is_never_sealed_alike() -> None:
    ring = Keyring([NEW])
    assert ring.seal(b"secret", **WHERE) != ring.seal(b"secret", **WHERE)


@pytest.mark.parametrize("where", [{"purpose": "credential.value", "row": "8"}, {"purpose": "jar.value", "row": "7"}])
def test_a_sealed_value_that_moved_does_not_open(where: dict[str, str]) -> None:
    ring = Keyring([NEW])
    with pytest.raises(SealBroken, match="another row"):
        ring.open(ring.seal(b"secret", **WHERE), **where)


def test_purpose_and_row_cannot_be_cut_elsewhere() -> None:
    ring = Keyring([NEW])
    with pytest.raises(SealBroken):
        ring.open(ring.seal(b"secret", purpose="a", row="bc"), purpose="ab", row="c")


def test_a_changed_bit_anywhere_is_noticed() -> None:
    ring = Keyring([NEW])
    sealed = ring.seal(b"secret", **WHERE)
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(SealBroken):
            ring.open(bytes(changed), **WHERE)


def test_what_is_too_short_is_no_sealed_value() -> None:
    ring = Keyring([NEW])
    for length in range(33):
        with pytest.raises(SealBroken, match="enter the secret again"):
            ring.open(ring.seal(b"", **WHERE)[:length], **WHERE)


def test_a_former_root_opens_and_only_the_newest_seals() -> None:
    sealed = Keyring([OLD]).seal(b"secret", **WHERE)
    ring = Keyring([NEW, OLD])
    assert ring.open(sealed, **WHERE) == b"secret"
    assert not ring.is_newest(sealed)
    again = ring.seal(b"secret", **WHERE)
    assert ring.is_newest(again)
    assert Keyring([NEW]).open(again, **WHERE) == b"secret"


def test_a_missing_root_is_named_by_its_id() -> None:
    sealed = Keyring([OLD]).seal(b"secret", **WHERE)
    with pytest.raises(SealBroken, match=Keyring([OLD]).newest_id):
        Keyring([NEW]).open(sealed, **WHERE)


def test_digests_differ_by_root_and_the_newest_comes_first() -> None:
    ring = Keyring([NEW, OLD])
    assert ring.digests(b"rk_x") == [Keyring([NEW]).digest(b"rk_x")[1], Keyring([OLD]).digest(b"rk_x")[1]]
    assert ring.digest(b"rk_x") == (ring.newest_id, ring.digests(b"rk_x")[0])
    assert len(set(ring.digests(b"rk_x"))) == 2


def test_nothing_of_a_root_shows() -> None:
    ring = Keyring([NEW, OLD])
    for text in (repr(ring), *ring.ids):
        assert NEW not in text
        assert OLD not in text


def test_the_settings_roots_come_newest_first(settings: pytest.FixtureRequest) -> None:
    settings.RELAY_ENCRYPTION_KEYS = (NEW, OLD)
    settings.SECRET_KEY = "s" * 50
    settings.SECRET_KEY_FALLBACKS = ["f" * 50]
    assert keyring().ids == Keyring([NEW, OLD, "s" * 50, "f" * 50]).ids
