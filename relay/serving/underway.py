"""The exchanges under way that a key let in, judged again while they last: a revoked key's streams end, too.

Theory of operation. A request enters when it is admitted and leaves when its exchange ends, both at the price of a set
operation. After each poll the watcher calls `judge_again`. When the roster is another one, or a key has run out, all
that are under way are judged anew, by the rules they were admitted by, and those that no longer may pass are cut:
before the head with a 401, after it in the middle. That is done in slices with the event loop free in between, because
each cut makes work of its own: a task that wakes up and closes two connections.

What counts is the caller: key, consumer, grants. How the upstream is set up an exchange keeps from its beginning, so
one that began on an upstream open to anyone, or that is switched off meanwhile, finishes.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING

from relay.catalog.roster import Roster
from relay.catalog.snapshot import Snapshot
from relay.errors import KeyRevoked, RelayError, SignatureRefused
from relay.rules import access

if TYPE_CHECKING:
    from relay.serving.request import RelayRequest

JUDGED_AT_ONCE = 500
"""Requests in one slice: about a millisecond."""
CUT_AT_ONCE = 15
"""Cuts in one slice; each takes the loop a quarter of a millisecond when its task wakes up."""


@dataclass(slots=True)
class Admission:
    """The key that let a request in, by its digest, or the signing key, by its id; and what for."""

    digest: bytes
    expires_at: float
    upstream_id: int
    method: str
    path: bytes
    signing_key_id: str = ""


class Underway:
    """The requests of one event loop. The module's functions are those of the process's one."""

    def __init__(self) -> None:
        self._requests: set[RelayRequest] = set()
        self._next_expiry = math.inf
        """No key of a request in the set expires before."""
        self._judged_by = self._newest = Roster()
        """The roster of the last sweep, or of the one going on; and the one in force."""
        self._waiting: list[RelayRequest] = []
        """What the sweep going on has not come to."""

    def enter(self, request: RelayRequest, admission: Admission) -> None:
        request.admission = admission
        self._requests.add(request)
        if admission.expires_at < self._next_expiry:
            self._next_expiry = admission.expires_at

    def leave(self, request: RelayRequest) -> None:
        request.admission = None
        self._requests.discard(request)

    def judge_again(self, snapshot: Snapshot) -> None:
        """Cut those that may no longer pass. Returns at once; the work is done in slices."""
        self._newest = snapshot.roster
        if not self._waiting:
            self._begin_sweep()

    def _begin_sweep(self) -> None:
        if self._newest is not self._judged_by or time() >= self._next_expiry:
            self._judged_by = self._newest
            self._next_expiry = math.inf
            self._waiting = list(self._requests)
            self._sweep()

    def _sweep(self) -> None:
        now = time()
        cut = 0
        for _ in range(min(JUDGED_AT_ONCE, len(self._waiting))):
            request = self._waiting.pop()
            if request.admission is None:  # it has left meanwhile
                continue
            try:
                expires_at = check_still(request.admission, self._judged_by, now=now)
            except RelayError as refusal:
                self.leave(request)
                request.cut(KeyRevoked(refusal.detail, headers=access.INVALID_TOKEN))
                cut += 1
                if cut == CUT_AT_ONCE:
                    break
            else:
                if expires_at < self._next_expiry:
                    self._next_expiry = expires_at
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._sweep)
        elif self._newest is not self._judged_by:
            asyncio.get_running_loop().call_soon(self._begin_sweep)

    def __len__(self) -> int:
        return len(self._requests)


def check_still(admission: Admission, roster: Roster, *, now: float) -> float:
    """Raises the `RelayError` with which it would be refused now. When its key expires, which may have changed."""
    if admission.signing_key_id:
        signer = roster.find_signer(admission.signing_key_id)
        if signer is None:
            raise SignatureRefused("revoked signing key")
        held = signer.consumer.grants.get(admission.upstream_id, ())
        access.check_grants(held, admission.method, admission.path)
        return math.inf
    key = roster.find(admission.digest)
    access.check_key(shown=True, expires_at=key.expires_at if key else None, now=now)
    grants = key.consumer.grants if key else {}
    access.check_grants(grants.get(admission.upstream_id, ()), admission.method, admission.path)
    return key.expires_at if key else now


_underway = Underway()

count = _underway.__len__
enter = _underway.enter
leave = _underway.leave
judge_again = _underway.judge_again
