"""The clock of an upload, on an event loop whose time the test turns: who is too late, and when exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from relay.upstreams import faults
from relay.upstreams.pace import GRACE_SECONDS, UploadPace
from tests.behaviour.conftest import upstream_at
from tests.origin import Origin

RATE = 100
IDLE = 300.0


class TurnedLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, whose clock stands still but for `turn`."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds
        # One round to see which timers are due, one for those that they set anew.
        for _ in range(2):
            self.call_soon(self.stop)
            self.run_forever()


@pytest.fixture
def loop() -> Iterator[TurnedLoop]:
    loop = TurnedLoop()
    yield loop
    loop.close()


class Upload:
    """A body's clock, and what became of it."""

    def __init__(self, loop: TurnedLoop, *, rate: int = RATE, idle: float = IDLE) -> None:
        self.late: list[Exception] = []
        self._loop = loop
        upstream = upstream_at(Origin(), idle_timeout_seconds=idle, min_upload_bytes_per_second=rate)
        self.pace = UploadPace(loop, upstream, self.late.append)

    def caller(self, seconds: float, piece_bytes: int) -> None:
        """The caller takes `seconds` for its next piece."""
        self.pace.await_caller()
        self._loop.turn(seconds)
        self.pace.await_upstream(piece_bytes)

    def silence(self, seconds: float) -> list[Exception]:
        """Who is too late when the caller says nothing for so long."""
        self.pace.await_caller()
        self._loop.turn(seconds)
        self.pace.stop()
        return self.late


def kinds(late: list[Exception]) -> list[type[Exception]]:
    return [type(problem) for problem in late]


def test_the_grace_is_for_who_sends_nothing(loop: TurnedLoop) -> None:
    assert Upload(loop).silence(GRACE_SECONDS - 1) == []
    (problem,) = Upload(loop).silence(GRACE_SECONDS)
    assert type(problem) is faults.UploadTooSlow
    assert str(problem) == f"under {RATE} bytes a second"


def test_who_is_as_fast_as_the_rate_may_go_on_for_ever(loop: TurnedLoop) -> None:
    upload = Upload(loop)
    for _ in range(1000):
        upload.caller(1.0, RATE)
    assert upload.late == []


def test_who_is_slower_is_cut_when_the_grace_is_used_up(loop: TurnedLoop) -> None:
    upload = Upload(loop)
    seconds = 0
    while not upload.late:
        upload.caller(1.0, RATE // 2)
        seconds += 1
    assert kinds(upload.late) == [faults.UploadTooSlow]
    assert seconds == 2 * GRACE_SECONDS - 1


def test_what_was_sent_before_counts(loop: TurnedLoop) -> None:
    upload = Upload(loop)
    upload.caller(0.0, 50 * RATE)
    assert upload.silence(GRACE_SECONDS + 49) == []
    upload = Upload(loop)
    upload.caller(0.0, 50 * RATE)
    assert kinds(upload.silence(GRACE_SECONDS + 50)) == [faults.UploadTooSlow]


def test_who_sent_much_at_once_cannot_drip_on_the_strength_of_it(loop: TurnedLoop) -> None:
    upload = Upload(loop)
    upload.caller(0.0, 1_000_000 * RATE)
    seconds = 0
    while not upload.late:
        upload.caller(10.0, 1)
        seconds += 10
    assert kinds(upload.late) == [faults.UploadTooSlow]
    assert seconds == IDLE + 10


def test_the_upstreams_turns_cost_the_caller_nothing(loop: TurnedLoop) -> None:
    upload = Upload(loop)
    for _ in range(100):
        upload.caller(0.0, 1)
        loop.turn(IDLE - 1)
    assert upload.silence(GRACE_SECONDS) == []


def test_an_upstream_that_takes_nothing_is_late_itself(loop: TurnedLoop) -> None:
    upload = Upload(loop)
    upload.caller(0.0, 1)
    loop.turn(IDLE)
    (problem,) = upload.late
    assert not isinstance(problem, faults.CallerStalled)


@pytest.mark.parametrize("rate", [0, RATE])
def test_a_silence_as_long_as_the_idle_time_out_is_called_so(loop: TurnedLoop, rate: int) -> None:
    upload = Upload(loop, rate=rate, idle=GRACE_SECONDS / 2)
    assert kinds(upload.silence(GRACE_SECONDS / 2)) == [faults.CallerStalled]


def test_a_short_idle_time_out_takes_nothing_of_the_grace(loop: TurnedLoop) -> None:
    upload = Upload(loop, idle=2.0)
    for _ in range(int(GRACE_SECONDS) - 1):
        upload.caller(1.0, 1)
    assert upload.late == []
    upload.caller(1.5, 1)
    assert kinds(upload.late) == [faults.UploadTooSlow]


def test_without_a_rate_one_byte_in_time_is_enough(loop: TurnedLoop) -> None:
    upload = Upload(loop, rate=0)
    for _ in range(100):
        upload.caller(IDLE - 1, 1)
    assert upload.late == []
    assert kinds(upload.silence(IDLE)) == [faults.CallerStalled]


def test_a_moving_answer_breaks_the_silence_of_an_upload_without_a_rate(loop: TurnedLoop) -> None:
    upload = Upload(loop, rate=0)
    upload.pace.await_caller()
    for _ in range(10):
        loop.turn(IDLE - 1)
        upload.pace.answer_moved()
    assert upload.late == []
    loop.turn(IDLE)
    assert kinds(upload.late) == [faults.CallerStalled]


def test_a_moving_answer_is_no_upload(loop: TurnedLoop) -> None:
    upload = Upload(loop)
    upload.pace.await_caller()
    for _ in range(int(GRACE_SECONDS) - 1):
        loop.turn(1.0)
        upload.pace.answer_moved()
    assert upload.late == []
    loop.turn(1.0)
    assert kinds(upload.late) == [faults.UploadTooSlow]


def test_a_moving_answer_breaks_the_upstreams_silence(loop: TurnedLoop) -> None:
    upload = Upload(loop)
    upload.caller(0.0, 1)
    for _ in range(10):
        loop.turn(IDLE - 1)
        upload.pace.answer_moved()
    assert upload.late == []


def test_nobody_is_late_for_what_has_stopped(loop: TurnedLoop) -> None:
    upload = Upload(loop)
    upload.pace.await_caller()
    upload.pace.stop()
    upload.pace.answer_moved()
    loop.turn(10 * IDLE)
    assert upload.late == []
