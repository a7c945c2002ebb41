"""The folder in which the workers of one machine leave their numbers for each other.

A worker holds a lock on a file of its own for as long as it lives, so one that can be locked belongs to a worker that
is gone: its counts are added to `ended.json`, once, and counters never go backwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from relay.observing.episodes import Episode
from relay.observing.families import Numbers

logger = logging.getLogger(__name__)


class Shelf:
    """The folder in which workers leave their numbers. All methods but the constructor are for a thread."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError when the folder cannot be written."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._writing = Episode(logger, "Metrics cannot be written", "Metrics are written again")
        self._reading = Episode(
            logger, "Metrics of other workers cannot be read", "Metrics of other workers are read again"
        )
        self._burying = Episode(
            logger, "What ended workers counted cannot be kept", "What ended workers counted is kept again"
        )
        self._name = f"{os.getpid()}-{time.time_ns():x}"
        with self._guarded():
            self._lock = _locked(folder / f"{self._name}.lock")

    def put(self, numbers: Numbers) -> None:
        with self._writing.told():
            self._write(self._name, numbers)

    def sum_with(self, own: Numbers) -> Numbers:
        """`own` and what the others left. What cannot be read is left out."""
        total = Numbers()
        total.merge(own)
        with self._burying.told():
            self._bury_the_dead()
        with self._reading.told():
            for path in sorted(self._folder.glob("*.json")):
                if path.stem != self._name:
                    with contextlib.suppress(FileNotFoundError, ValueError):
                        total.merge(Numbers.load(path.read_bytes()))
        return total

    def end(self, numbers: Numbers) -> None:
        """Leave the counts behind, and go."""
        with self._writing.told():
            self._write(self._name, numbers)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        with self._burying.told():
            self._bury_the_dead()

    def _bury_the_dead(self) -> None:
        """Add what workers left that are gone to `ended.json`."""
        with self._guarded():
            for lock_path in self._folder.glob("*.lock"):
                if lock_path.stem == self._name and self._lock is not None:
                    continue
                held = _locked(lock_path)
                if held is None:
                    continue
                try:
                    self._bury(lock_path)
                finally:
                    os.close(held)

    def _bury(self, lock_path: Path) -> None:
        left = self._folder / f"{lock_path.stem}.json"
        with contextlib.suppress(FileNotFoundError, ValueError):
            ended = Numbers()
            with contextlib.suppress(FileNotFoundError, ValueError):
                ended.merge(Numbers.load((self._folder / "ended.json").read_bytes()))
            ended.merge(Numbers.load(left.read_bytes()), lasting_only=True)
            self._write("ended", ended)
        left.unlink(missing_ok=True)
        lock_path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """One process at a time: two must not bury the same worker, nor one that is just being born."""
        guard = os.open(self._folder / "guard", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield
        finally:
            os.close(guard)

    def _write(self, name: str, numbers: Numbers) -> None:
        """Whole or not at all."""
        unfinished = self._folder / f".{name}.{self._name}"
        try:
            unfinished.write_bytes(numbers.dump())
            unfinished.replace(self._folder / f"{name}.json")
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock of this file, made if need be; None when another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
