"""Whether a caller has hung up while nobody reads from it.

A server that holds a caller back reads nothing, so it sees no end of the connection either: behind a stalled upstream,
a caller that left would keep its exchange until a time-out. The kernel knows, once all that was sent has arrived. ASGI
has no way to ask, so this goes through the one server the project ships with; elsewhere the answer is False, and the
time-outs do the work.
"""

from __future__ import annotations

import select

from relay.serving.asgi import Receive

LOOK_SECONDS = 0.5
"""How often to ask while a caller is held back."""


def has_hung_up(receive: Receive) -> bool:
    """Whether the peer of this request's connection closed it, or its sending half. Linux only: others say False."""
    # uvicorn's `receive` is a method of the request's cycle, which has the transport.
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is None or not hasattr(select, "POLLRDHUP"):
        return False
    connection = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))
