"""Fuzzes the reading of answers, guided by coverage: `python -m tests.fuzz.fuzz_answers -max_total_time=60 [corpus]`.

Options are libFuzzer's. What an input is made of: a byte that says what up to three requests were, a byte that says how
many reads follow, a byte for the size of each, and what the upstream sends. It is read in these pieces, then with all
pieces of an answer joined, then byte by byte. Held to: the protocol of calls (see `telling`), the same outcome each
time, and no exception but `httpx.RemoteProtocolError`. Limits are small for that, so that they are reached. Then it is
compared with what h11 reads (see test_answers_against_h11).

The corpus begins with the tables of test_answers. llhttp is C and not instrumented: h11, which is, shows the way.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import atheris
import pytest

with atheris.instrument_imports(include=["h11", "relay.upstreams.answers"]):
    import h11  # noqa: F401

    from relay.upstreams import answers

from tests.upstreams.telling import Asked, one_by_one, read
from tests.upstreams.test_answers import COMBINED, REFUSED, SECOND, VALID
from tests.upstreams.test_answers_against_h11 import assert_read_alike

DEFAULT_CORPUS = Path(__file__).resolve().parents[2] / ".fuzz" / "answers"
DICTIONARY = Path(__file__).with_suffix(".dict")
MAX_INPUT_BYTES = 1024
LIMITS = {
    "MAX_HEAD_BYTES": 300,
    "MAX_FIELDS": 6,
    "MAX_INTERIM_ANSWERS": 3,
    "MAX_CHUNK_OVERHEAD_BYTES": 64,
}
MOST_REQUESTS = 3
MOST_CUTS = 16


def try_input(data: bytes) -> None:
    if len(data) < 2:
        return
    flags, cuts = data[0], data[1] % MOST_CUTS
    asked = [
        Asked(bool(flags >> 2 * nth & 1), bool(flags >> 2 * nth & 2)) for nth in range(1 + flags // 64 % MOST_REQUESTS)
    ]
    wire = data[2 + cuts :]
    if not wire:
        return
    with pytest.MonkeyPatch.context() as patched:
        for name, limit in LIMITS.items():
            patched.setattr(answers, name, limit)
        try_pieces(list(cut(wire, data[2 : 2 + cuts])), asked)
    if wire.count(b"\r\n\r\n") <= answers.MAX_INTERIM_ANSWERS:
        assert_read_alike(wire, asked[0])


def try_pieces(pieces: list[bytes], asked: list[Asked]) -> None:
    outcome = read(pieces, asked)
    joined = read([b"".join(pieces) for pieces in outcome.pieces if pieces], asked)
    by_byte = read(one_by_one(b"".join(pieces)), asked)
    if outcome.refusal is None:
        assert joined.told == outcome.told
        assert by_byte.told == outcome.told
    else:
        assert joined.refusal is not None
        assert joined.begins(outcome)
        assert outcome.begins(by_byte)


def cut(wire: bytes, sizes: bytes) -> Iterable[bytes]:
    at = 0
    for size in sizes:
        if piece := wire[at : at + size]:
            yield piece
        at += size
    if rest := wire[at:]:
        yield rest


def seeds() -> Iterable[bytes]:
    for message in [*VALID, *REFUSED]:
        if len(message.data) < MAX_INPUT_BYTES:
            flags = message.asked.to_head | message.asked.may_switch << 1
            half = min(len(message.data) // 2, 255)
            yield bytes([flags, 0]) + message.data
            yield bytes([flags | 64, 1, half]) + message.data
            if len(message.data) < 256:
                yield bytes([flags | 64, 1, len(message.data)]) + message.data + SECOND
    for combination in COMBINED:
        yield bytes([combination.asked.to_head, 2, 20, 20]) + combination.data


def make_corpus(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds():
        (folder / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


def main() -> None:
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")] or [DEFAULT_CORPUS]
    if not any(folder.is_file() for folder in folders):  # files are inputs to try again
        make_corpus(folders[0])
    atheris.Setup(
        [
            sys.argv[0],
            f"-dict={DICTIONARY}",
            f"-max_len={MAX_INPUT_BYTES}",
            "-timeout=10",
            "-rss_limit_mb=1024",
            f"-artifact_prefix={folders[0].parent}/",
            *options,
            *map(str, folders),
        ],
        try_input,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
