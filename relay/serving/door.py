"""The server's door: how many connections a worker has, and how one is shown out before any upstream is known.

Each server of a process has one `Door`, which reads the settings when the first connection is made. `protocol` asks it
whether a connection may come in, and measures the heads of requests as they arrive, from the first byte on: none is
kept for as long or as large as a stranger likes. Whoever goes too far gets a problem document with
`Connection: close` and a line in the access log; `forms` does the same for the bodies that Django reads.
"""

from __future__ import annotations

import os
import time
from http import HTTPStatus
from weakref import WeakKeyDictionary

from uvicorn.server import ServerState

from relay import conf, errors
from relay.observing import access_log
from relay.observing.descriptors import descriptors
from relay.observing.metrics import metrics
from relay.rules.addresses import peer_block
from relay.rules.forwarding import TrustedProxies
from relay.serving.problems import problem_response
from relay.serving.turns import Turns

LOOPBACK = ("127.0.0.0/8", "::1/128")
"""What runs on the machine itself may have as many connections as there are."""
LINGER_SECONDS = 1.0
"""How long what a refused caller still sends is thrown away: closing on bytes unread would take the answer back."""
MOST_LINGERING = 256
"""Connections of a worker that may do so at the same time; further ones are closed at once."""


class Door:
    """The connections of one server. Belongs to one event loop."""

    def __init__(self, settings: conf.Conf) -> None:
        self.settings = settings
        self.lingering = 0
        self.seen = 0
        """Connections that came, let in or not."""
        self._most = settings.max_connections or half_of_the_files()
        self._exempt = TrustedProxies((*settings.trusted_proxies, *LOOPBACK))
        self.turns = Turns()
        """In which requests begin."""
        self._of_peer: dict[str, int] = {}

    def enter(self, peer: str | None, *, connections: int, descriptor: int) -> errors.RelayError | None:
        """Why a connection from `peer` may not come in, None if it may; `connections` are open, with this one, whose
        number `descriptor` is."""
        self.seen += 1
        if descriptor >= descriptors.callers_end:
            descriptors.refuse()
            return errors.ServerFull("out of file descriptors")
        if connections - self.lingering > self._most:
            return errors.ServerFull(f"over {self._most} connections")
        if peer is not None and not self._exempt.trusts(peer):
            block = peer_block(peer)
            count = self._of_peer.get(block, 0)
            if count >= self.settings.max_connections_per_peer:
                return errors.TooManyConnections(f"{count} connections from {block}")
            self._of_peer[block] = count + 1
        return None

    def has_room_to_linger(self, descriptor: int) -> bool:
        """Whether a caller with this socket, who is shown out, may be listened to for a moment."""
        return self.lingering < MOST_LINGERING and descriptor < descriptors.farewells_end

    def leave(self, peer: str | None) -> None:
        """A connection that was let in is over."""
        if peer is not None and not self._exempt.trusts(peer):
            block = peer_block(peer)
            count = self._of_peer[block] - 1
            if count:
                self._of_peer[block] = count
            else:
                del self._of_peer[block]


_doors: WeakKeyDictionary[ServerState, Door] = WeakKeyDictionary()


def door_of(server: ServerState) -> Door:
    door = _doors.get(server)
    if door is None:
        door = _doors[server] = Door(conf.current())
    return door


def half_of_the_files() -> int:
    """Every exchange has two connections, the caller's and the upstream's."""
    return max(descriptors.most // 2, 16)


def note(error: errors.RelayError, *, client: str, method: str = "", status: int = 0) -> bytes:
    """A line in the access log, and one more in the metrics; the request id in the line."""
    entry = access_log.Entry(method, os.urandom(16).hex().encode(), time.perf_counter(), client)
    entry.status = status
    entry.failed(error)
    metrics.ended(entry, time.perf_counter())
    access_log.log.add(entry)
    return entry.request_id


def refusal(error: errors.RelayError, *, client: str, method: str = "") -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The header pairs and the body that tell of `error`; the access log gets its line."""
    request_id = note(error, client=client, method=method, status=error.status)
    response = problem_response(error, request_id=request_id, accept=b"")
    return [*response.all_pairs(), (b"connection", b"close")], response.whole


def refusal_bytes(error: errors.RelayError, *, client: str) -> bytes:
    """The same as it goes over the wire."""
    pairs, body = refusal(error, client=client)
    lines = [b"HTTP/1.1 %d %b" % (error.status, HTTPStatus(error.status).phrase.encode())]
    lines += [name + b": " + value for name, value in pairs]
    return b"\r\n".join((*lines, b"", body))
