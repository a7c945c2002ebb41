"""What one HTTP/1.1 exchange has come to, on our side and on the upstream's: states, events, and what leads where.

Theory of operation, after h11: a side's states and transitions are a table, and an event is applied to both tables at
once. An event that a side's row does not name cannot happen there: for what we do it is our mistake, for what the
upstream does it is a breach of the protocol. Every question about a connection is asked of these states: may more of
the request be sent, has an answer begun, may the connection serve another exchange (RFC 9112 section 9.3). Nothing
here does I/O or sees bytes.
"""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import Final

import httpx


class Ours(IntEnum):
    """What we have sent."""

    IDLE = 0
    """Nothing yet."""
    SENDING = 1
    """The head; the body is on its way."""
    DONE = 2
    """The whole request."""
    CEASED = 3
    """Not the whole request, and nothing will follow."""
    RAW = 4
    """The protocol was switched: what is sent is no longer HTTP."""
    CLOSED = 5


class Theirs(IntEnum):
    """What the upstream has sent."""

    IDLE = 0
    """Nothing, and nothing was asked."""
    AWAITED = 1
    """Nothing but interim answers."""
    BODY = 2
    """The head of the final answer; the body is on its way."""
    DONE = 3
    """The whole answer."""
    RAW = 4
    """The protocol was switched: what comes is no longer HTTP."""
    CLOSED = 5


class Event(IntEnum):
    HEAD_SENT = 0
    """The request's head went out, a body follows."""
    WHOLE_SENT = 1
    """The request's head went out, and no body belongs to it."""
    END_SENT = 2
    """The last of the body went out."""
    CEASED = 3
    """We stopped in the middle of the body."""
    INTERIM_CAME = 4
    """An interim answer (1xx other than 101) was read."""
    HEAD_CAME = 5
    """The head of the final answer was read."""
    END_CAME = 6
    """The answer's last byte was read."""
    SWITCHED = 7
    """101: the connection is no longer HTTP's."""
    CLOSED = 8
    """The connection ended or was given up."""
    REUSED = 9
    """The exchange is over and the connection is free for another."""


OURS: Final = MappingProxyType(
    {
        Ours.IDLE: {Event.HEAD_SENT: Ours.SENDING, Event.WHOLE_SENT: Ours.DONE, Event.CLOSED: Ours.CLOSED},
        Ours.SENDING: {
            Event.END_SENT: Ours.DONE,
            Event.CEASED: Ours.CEASED,
            Event.INTERIM_CAME: Ours.SENDING,
            Event.HEAD_CAME: Ours.SENDING,
            Event.END_CAME: Ours.SENDING,
            Event.CLOSED: Ours.CLOSED,
        },
        Ours.DONE: {
            Event.INTERIM_CAME: Ours.DONE,
            Event.HEAD_CAME: Ours.DONE,
            Event.END_CAME: Ours.DONE,
            Event.SWITCHED: Ours.RAW,
            Event.CLOSED: Ours.CLOSED,
            Event.REUSED: Ours.IDLE,
        },
        Ours.CEASED: {
            Event.INTERIM_CAME: Ours.CEASED,
            Event.HEAD_CAME: Ours.CEASED,
            Event.END_CAME: Ours.CEASED,
            Event.CLOSED: Ours.CLOSED,
        },
        Ours.RAW: {Event.CLOSED: Ours.CLOSED},
        Ours.CLOSED: {Event.CLOSED: Ours.CLOSED},
    }
)
THEIRS: Final = MappingProxyType(
    {
        Theirs.IDLE: {
            Event.HEAD_SENT: Theirs.AWAITED,
            Event.WHOLE_SENT: Theirs.AWAITED,
            Event.CLOSED: Theirs.CLOSED,
        },
        Theirs.AWAITED: {
            Event.END_SENT: Theirs.AWAITED,
            Event.CEASED: Theirs.AWAITED,
            Event.INTERIM_CAME: Theirs.AWAITED,
            Event.HEAD_CAME: Theirs.BODY,
            Event.SWITCHED: Theirs.RAW,
            Event.CLOSED: Theirs.CLOSED,
        },
        Theirs.BODY: {
            Event.END_SENT: Theirs.BODY,
            Event.CEASED: Theirs.BODY,
            Event.END_CAME: Theirs.DONE,
            Event.CLOSED: Theirs.CLOSED,
        },
        Theirs.DONE: {
            Event.END_SENT: Theirs.DONE,
            Event.CEASED: Theirs.DONE,
            Event.CLOSED: Theirs.CLOSED,
            Event.REUSED: Theirs.IDLE,
        },
        Theirs.RAW: {Event.CLOSED: Theirs.CLOSED},
        Theirs.CLOSED: {Event.CLOSED: Theirs.CLOSED},
    }
)
UPSTREAMS_EVENTS: Final = frozenset({Event.INTERIM_CAME, Event.HEAD_CAME, Event.END_CAME, Event.SWITCHED})
"""Those that the upstream brings about. What it may not do now is a `RemoteProtocolError`, the rest is ours."""


class Standing:
    """Where both sides of one connection stand, from exchange to exchange."""

    __slots__ = ("keeps_alive", "ours", "theirs")

    def __init__(self) -> None:
        self.ours = Ours.IDLE
        self.theirs = Theirs.IDLE
        self.keeps_alive = True
        """Neither side said that the connection ends with this exchange."""

    def happened(self, event: Event) -> None:
        """Raises `httpx.RemoteProtocolError` or `LocalProtocolError` when it cannot happen; nothing changes then."""
        try:
            ours = OURS[self.ours][event]
            theirs = THEIRS[self.theirs][event]
        except KeyError:
            kind = httpx.RemoteProtocolError if event in UPSTREAMS_EVENTS else httpx.LocalProtocolError
            raise kind(f"{event.name} while we are {self.ours.name} and it is {self.theirs.name}") from None
        self.ours = ours
        self.theirs = theirs

    @property
    def may_send(self) -> bool:
        """Whether more of the request's body may go out."""
        return self.ours is Ours.SENDING

    @property
    def is_over(self) -> bool:
        """Whether request and answer are both whole."""
        return self.ours is Ours.DONE and self.theirs is Theirs.DONE

    @property
    def may_be_reused(self) -> bool:
        """Whether the connection may serve another exchange."""
        return self.keeps_alive and self.ours is Ours.DONE and self.theirs is Theirs.DONE
