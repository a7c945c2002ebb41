"""What leaves the server: small writes of one turn of the event loop go together, in order, and none is held back."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from relay.serving.protocol import HELD_BYTES, JoiningTransport


class Wire:
    """A transport that notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done

    def get_write_buffer_size(self) -> int:
        return 7


def joining() -> tuple[JoiningTransport, list[Any]]:
    wire = Wire()
    return JoiningTransport(cast(asyncio.Transport, wire), asyncio.get_running_loop()), wire.done


async def turn() -> None:
    turned = asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    await turned.wait()


async def test_a_head_goes_out_with_its_body() -> None:
    transport, done = joining()
    transport.write(b"head")
    transport.write(b"body")
    transport.write(b"")
    assert done == [b"headbody"]
    await turn()
    assert done == [b"headbody"]


async def test_a_head_without_a_body_does_not_wait_for_one() -> None:
    transport, done = joining()
    transport.write(b"head")
    await turn()
    assert done == [b"head"]


async def test_a_large_write_is_not_copied_and_comes_after_what_is_held() -> None:
    transport, done = joining()
    large = bytes(HELD_BYTES + 1)
    transport.write(b"head")
    transport.write(large)
    assert done == [b"head", large]
    assert done[1] is large


async def test_closing_sends_what_is_held_first() -> None:
    transport, done = joining()
    transport.write(b"last words")
    assert not transport.is_closing()
    transport.close()
    assert done == [b"last words", "closed"]
    assert transport.is_closing()
    await turn()
    assert done == [b"last words", "closed"]


async def test_all_else_is_the_transports_own() -> None:
    transport, _ = joining()
    assert transport.get_write_buffer_size() == 7
