"""A trouble that shows again and again, told in the log once when it begins and once when it is over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

CALM_SECONDS = 5.0
"""Without trouble, before it is over: a disk at its very end is full and not full by turns."""


class Episode:
    """One kind of trouble in one process. For one thread at a time."""

    def __init__(self, logger: logging.Logger, begins: str, ends: str) -> None:
        self._logger = logger
        self._begins = begins
        self._ends = ends
        self._began_at: float | None = None
        self._showed_at = 0.0

    @contextmanager
    def told(self) -> Iterator[None]:
        """What is done here may fail with an OSError, and that is all that becomes of it."""
        try:
            yield
        except OSError as problem:
            self.show(problem)
        else:
            self.pass_by()

    def show(self, problem: OSError) -> None:
        self._showed_at = monotonic()
        if self._began_at is None:
            self._began_at = self._showed_at
            self._logger.error("%s: %s.", self._begins, problem.strerror)

    def pass_by(self) -> None:
        """It did not show."""
        if self._began_at is not None and (now := monotonic()) >= self._showed_at + CALM_SECONDS:
            self._logger.warning("%s, after %.0f s.", self._ends, now - self._began_at)
            self._began_at = None
