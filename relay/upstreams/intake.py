"""Reads in pieces whose size is what bodies leave room for, in place of the event loop's own.

It costs a copy of each piece, so it is put in only where bodies hold much.
"""

from __future__ import annotations

import asyncio

from relay.upstreams import backlog


class Intake(asyncio.BufferedProtocol):
    """Stands between a transport and the protocol that it stood for; tells that all it hears."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self.data_received = protocol.data_received
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]  # as the others, without a step between
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        return backlog.read_buffer.room()

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(backlog.read_buffer.large[:nbytes]))
