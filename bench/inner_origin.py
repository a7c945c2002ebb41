"""What nginx cannot be as an origin: event streams, and a reader of uploads that counts what it got.

Started by `bench.origin` as `python -m bench.inner_origin PORT`, behind nginx without buffering; one request a
connection. `/events` sends a second event EVENT_GAP_SECONDS after the first and ends; `/idle` sends one and holds;
`/beats` goes on with one at least every BEAT_SECONDS; `/sink` reads a body and answers with the count of its bytes;
`/stalling-sink` does so with a stop of STALL_SECONDS after every STALL_EVERY_BYTES.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
import time

import httptools

from bench.processes import raise_open_files_limit
from bench.transfers import (
    BEAT_SECONDS,
    DROPS_IN_KERNEL,
    EVENT_GAP_SECONDS,
    PIECE_BYTES,
    STALL_EVERY_BYTES,
    STALL_SECONDS,
)

EVENT_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
)


class Request:
    """What httptools tells of one request."""

    def __init__(self) -> None:
        self.target = b""
        self.body_bytes = 0
        self.announced_bytes: int | None = None
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-length":
            self.announced_bytes = int(value)

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)

    def on_message_complete(self) -> None:
        self.complete = True


async def serve(port: int) -> None:
    raise_open_files_limit()
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    async with asyncio.TaskGroup() as connections:
        while True:
            connection, _ = await loop.sock_accept(listener)
            connections.create_task(answer(connection))


async def answer(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    request = Request()
    parser = httptools.HttpRequestParser(request)
    piece = memoryview(bytearray(PIECE_BYTES))
    next_stall = STALL_EVERY_BYTES
    with connection, contextlib.suppress(ConnectionError):
        while not request.complete:
            if request.announced_bytes is not None and request.body_bytes and DROPS_IN_KERNEL:
                stalls = request.target == b"/stalling-sink"
                request.body_bytes += await asyncio.to_thread(
                    drop, connection, request.announced_bytes - request.body_bytes, stalls=stalls
                )
                if request.body_bytes < request.announced_bytes:
                    return
                break
            got = await loop.sock_recv_into(connection, piece)
            if not got:
                return
            parser.feed_data(piece[:got])
            if request.target == b"/stalling-sink" and request.body_bytes >= next_stall:
                next_stall += STALL_EVERY_BYTES
                await asyncio.sleep(STALL_SECONDS)
        if request.target in (b"/events", b"/idle", b"/beats"):
            await loop.sock_sendall(connection, EVENT_HEAD + b"data: 1\n\n")
            while request.target == b"/beats":
                await asyncio.sleep(random.uniform(BEAT_SECONDS / 2, BEAT_SECONDS))
                await loop.sock_sendall(connection, b"data: 1\n\n")
            if request.target == b"/idle":
                await loop.sock_recv_into(connection, piece)  # until it is closed
            else:
                await asyncio.sleep(EVENT_GAP_SECONDS)
                await loop.sock_sendall(connection, b"data: 2\n\n")
            return
        count = str(request.body_bytes).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        await loop.sock_sendall(connection, head % len(count) + count)


def drop(connection: socket.socket, left: int, *, stalls: bool) -> int:
    """Have the kernel drop `left` bytes of a body, and count them. Runs in a thread."""
    piece = bytearray(PIECE_BYTES)
    connection.setblocking(True)
    got, next_stall = 0, STALL_EVERY_BYTES
    while got < left:
        size = connection.recv_into(piece, min(left - got, PIECE_BYTES), socket.MSG_TRUNC)
        if not size:
            break
        got += size
        if stalls and got >= next_stall:
            next_stall += STALL_EVERY_BYTES
            time.sleep(STALL_SECONDS)
    connection.setblocking(False)
    return got


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
