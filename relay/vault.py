"""The installation's keys, and what is done with them: sealing secrets for the database, digesting callers' keys.

Theory of operation. `RELAY_ENCRYPTION_KEYS` and, after them, Django's secret key and its fallbacks are the roots,
newest first. Of each root and purpose a key of its own is derived (HKDF), so that nothing made for one purpose opens
for another. The first root seals and digests; each of them opens, so a root is replaced by putting a new one before it,
running `manage.py secrets rotate`, and taking the old one out. What is sealed says which root it needs.

Sealing is AES-256-GCM (RFC 5116) with a random nonce, bound to purpose and row: a sealed value that was moved to
another row, or another column, does not open.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from relay import conf

_VERSION = b"\x01"
_ID_BYTES = 4
_DIGEST_BYTES = 32
_NONCE_BYTES = 12
_HEAD_BYTES = len(_VERSION) + _ID_BYTES + _NONCE_BYTES
_TAG_BYTES = 16
_DIGESTS = "caller's key"


class SealBroken(ValueError):
    """A sealed value that does not open. The text says what to do and holds nothing of the value."""


class Keyring:
    """Derived keys of all roots, newest first. Immutable. Nothing of it shows in its repr."""

    def __init__(self, roots: Sequence[str]) -> None:
        if not roots:
            raise ValueError("a keyring needs a root")
        self._roots = {_derived(root, "id")[:_ID_BYTES]: root for root in dict.fromkeys(roots)}
        self._ciphers: dict[tuple[bytes, str], AESGCM] = {}
        # Each has its key worked in already: a copy of it digests in a third of the time.
        self._digesters = [
            hashlib.blake2b(key=_derived(root, _DIGESTS), digest_size=_DIGEST_BYTES) for root in self._roots.values()
        ]

    @property
    def newest_id(self) -> str:
        """Of the root that seals and digests now: 8 hexadecimal digits, which tell nothing of it."""
        return next(iter(self._roots)).hex()

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(name.hex() for name in self._roots)

    def seal(self, secret: bytes, *, purpose: str, row: str) -> bytes:
        """`secret` for the database. `purpose` names table and column, `row` the row, by what never changes of it."""
        name = next(iter(self._roots))
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher(name, purpose).encrypt(nonce, secret, _bound_to(purpose, row))
        return _VERSION + name + nonce + sealed

    def open(self, sealed: bytes, *, purpose: str, row: str) -> bytes:
        """What was sealed for this purpose and row. Raises SealBroken."""
        sealed = bytes(sealed)
        if len(sealed) < _HEAD_BYTES + _TAG_BYTES or not sealed.startswith(_VERSION):
            raise SealBroken("It is no sealed value: enter the secret again.")
        name = sealed[len(_VERSION) : len(_VERSION) + _ID_BYTES]
        if name not in self._roots:
            raise SealBroken(
                f"It was sealed with a key ({name.hex()}) that this installation no longer has: put that key back into "
                "RELAY_ENCRYPTION_KEYS, or enter the secret again."
            )
        nonce = sealed[len(_VERSION) + _ID_BYTES : _HEAD_BYTES]
        try:
            return self._cipher(name, purpose).decrypt(nonce, sealed[_HEAD_BYTES:], _bound_to(purpose, row))
        except InvalidTag:
            raise SealBroken("It was changed, or belongs to another row: enter the secret again.") from None

    def is_newest(self, sealed: bytes) -> bool:
        """Whether rotating would seal it with the same root again."""
        return bytes(sealed[len(_VERSION) : len(_VERSION) + _ID_BYTES]).hex() == self.newest_id

    def digest(self, text: bytes) -> tuple[str, bytes]:
        """(root's id, keyed digest of 32 bytes) of a caller's key, by the newest root."""
        return self.newest_id, self.digests(text)[0]

    def digests(self, text: bytes) -> list[bytes]:
        """Its digests by every root, newest first: one of them is what the database has. Half a microsecond each."""
        digests = []
        for digester in self._digesters:
            digester = digester.copy()
            digester.update(text)
            digests.append(digester.digest())
        return digests

    def _cipher(self, name: bytes, purpose: str) -> AESGCM:
        cipher = self._ciphers.get((name, purpose))
        if cipher is None:
            cipher = self._ciphers[name, purpose] = AESGCM(_derived(self._roots[name], f"seal {purpose}"))
        return cipher


def _derived(root: str, purpose: str) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=f"relay {purpose}".encode()).derive(root.encode())


def _bound_to(purpose: str, row: str) -> bytes:
    return f"{len(purpose)}:{purpose}{row}".encode()


def keyring() -> Keyring:
    """The one of the settings in force."""
    return _keyring.of(conf.current())


_keyring = conf.Derived(lambda settings: Keyring(settings.encryption_keys))
