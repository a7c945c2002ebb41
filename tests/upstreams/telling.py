"""What an `AnswerReader` tells, written down and held to the protocol of its calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import httpx

from relay.rules.headers import Pairs
from relay.upstreams.answers import AnswerReader, Framing


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a request to whoever reads its answer."""

    to_head: bool = False
    may_switch: bool = False


@dataclass(slots=True)
class Answer:
    """What was told of one answer. A sink that objects to calls out of turn."""

    asked: Asked = field(default_factory=Asked)
    interim: list[tuple[int, Pairs]] = field(default_factory=list)
    status: int | None = None
    pairs: Pairs = field(default_factory=list)
    keeps_alive: bool = False
    body: bytes = b""
    trailers: Pairs = field(default_factory=list)
    ended: bool = False
    refused: bool = False

    def on_interim(self, status: int, pairs: Pairs) -> None:
        assert self.status is None, "an interim answer after the head"
        assert not self.refused, "told after a refusal"
        assert 100 <= status < 200
        assert status != 101
        self.interim.append((status, pairs))

    def on_head(self, status: int, pairs: Pairs, *, keeps_alive: bool) -> None:
        assert self.status is None, "a second head"
        assert not self.refused, "told after a refusal"
        assert 200 <= status < 600 or (status == 101 and self.asked.may_switch)
        self.status, self.pairs, self.keeps_alive = status, pairs, keeps_alive

    def on_piece(self, piece: bytes) -> None:
        assert self.status is not None, "a piece before the head"
        assert not self.ended, "a piece after the end"
        assert not self.refused, "told after a refusal"
        assert piece, "an empty piece"
        assert not self.asked.to_head or self.status == 101, "a body in answer to HEAD"
        assert self.status not in {204, 304}, "a body where none can be"
        self.body += piece
        announced = self.announced
        assert announced is None or len(self.body) <= announced, "more than was announced"

    def on_end(self, trailers: Pairs) -> None:
        assert self.status is not None, "an end before the head"
        assert not self.ended, "a second end"
        assert not self.refused, "told after a refusal"
        self.trailers, self.ended = trailers, True
        if not self.asked.to_head and self.status not in {204, 304}:
            assert self.announced in {None, len(self.body)}, "less than was announced"

    @property
    def announced(self) -> int | None:
        """Content-Length, where it says how long the body is."""
        if self.status == 101:
            return None
        for name, value in self.pairs:
            if name.lower() == b"content-length":
                return int(value)
        return None

    def begins(self, other: Answer) -> bool:
        """Whether this is all that was told of `other`, or the beginning of it."""
        if self.ended:
            return self.told == other.told
        if self.status is not None:
            mine, its = (self.interim, self.head), (other.interim, other.head)
            return mine == its and other.body.startswith(self.body)
        return self.interim == other.interim[: len(self.interim)]

    @property
    def head(self) -> tuple[int | None, Pairs, bool]:
        return self.status, self.pairs, self.keeps_alive

    @property
    def told(self) -> tuple[object, ...]:
        return self.interim, self.head, self.body, self.trailers, self.ended


@dataclass(slots=True)
class Outcome:
    """Of the answers on one connection."""

    answers: list[Answer]
    refusal: str | None = None
    """Why reading was refused."""
    cut: bool = False
    """The end of the connection came too early."""
    pieces: list[list[bytes]] = field(default_factory=list)
    """What was read, answer by answer; what nobody waited for comes last."""

    @property
    def told(self) -> tuple[object, ...]:
        return [answer.told for answer in self.answers], self.refusal, self.cut

    def begins(self, other: Outcome) -> bool:
        """Whether what was told is the beginning of what `other` tells."""
        mine, its = self.answers, other.answers
        if not mine:
            return True
        return (
            len(mine) <= len(its)
            and all(one.told == another.told for one, another in zip(mine[:-1], its, strict=False))
            and mine[-1].begins(its[len(mine) - 1])
        )


def read(pieces: Iterable[bytes], asked: Sequence[Asked] = (Asked(),)) -> Outcome:
    """What is told of `pieces`, none empty, and the end of the connection behind them.

    Each answer that is whole and keeps the connection is followed by the next request of `asked`: what belongs to its
    answer begins with the next piece.
    """
    reader = AnswerReader()
    outcome = Outcome([])
    requests = iter(asked)

    def ask() -> None:
        request = next(requests, None)
        if request is not None:
            outcome.answers.append(Answer(request))
            outcome.pieces.append([])
            reader.expect(outcome.answers[-1], to_head=request.to_head, may_switch=request.may_switch)

    ask()
    try:
        for piece in pieces:
            last = outcome.answers[-1]
            if last.ended and last.keeps_alive:
                ask()
            if outcome.answers[-1].ended and len(outcome.pieces) == len(outcome.answers):
                outcome.pieces.append([])
            outcome.pieces[-1].append(piece)
            reader.feed(piece)
    except httpx.RemoteProtocolError as refusal:
        outcome.refusal = str(refusal)
    if outcome.refusal is not None:
        assert outcome.refusal, "refused without a reason"
        for answer in outcome.answers:
            answer.refused = True
        assert reader.framing is Framing.NOTHING
        _assert_dead(reader)
        return outcome
    outcome.cut = not reader.feed_end()
    return outcome


def _assert_dead(reader: AnswerReader) -> None:
    for more in (b"HTTP/1.1 200 OK\r\n\r\n", b"0\r\n\r\n"):
        try:
            reader.feed(more)
        except httpx.RemoteProtocolError:
            continue
        raise AssertionError("read on after a refusal")


def one_by_one(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def halves(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    """Every way to cut `data` in two."""
    return ((data[:at], data[at:]) for at in range(1, len(data)))
