"""Responses that carry raw pairs."""

from __future__ import annotations

from collections.abc import AsyncIterator

from relay.serving.responses import RelayResponse


async def pieces() -> AsyncIterator[bytes]:
    yield b"a"
    yield b"b"


def test_pairs_are_sent_as_they_are_and_what_is_added_after_them() -> None:
    response = RelayResponse(200, [(b"x-a", b"1"), (b"x-a", b"\xff")])
    assert response.all_pairs() is response.pairs
    response.headers["X-B"] = "é"
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", httponly=True)
    assert response.all_pairs() == [
        (b"x-a", b"1"),
        (b"x-a", b"\xff"),
        (b"x-b", b"\xe9"),
        (b"set-cookie", b"a=1; Path=/"),
        (b"set-cookie", b"b=2; HttpOnly; Path=/"),
    ]


async def test_the_body_is_a_stream_whatever_it_is_made_of() -> None:
    assert [piece async for piece in RelayResponse(200, [], pieces()).streaming_content] == [b"a", b"b"]
    assert [piece async for piece in RelayResponse(200, [], whole=b"ab").streaming_content] == [b"ab"]
    response = RelayResponse(200, [], whole=b"ab")
    response.streaming_content = pieces()
    assert response.body is not None
    assert [piece async for piece in response.body] == [b"a", b"b"]


def test_closing_closes_once() -> None:
    closed: list[str] = []
    response = RelayResponse(200, [], on_close=lambda: closed.append("own"))
    response._resource_closers.append(lambda: closed.append("Django's"))
    response.close()
    response.close()
    assert closed == ["own", "Django's"]
    RelayResponse(200, []).close()


def test_it_is_shown_without_what_it_carries() -> None:
    assert repr(RelayResponse(200, [(b"authorization", b"secret")], whole=b"secret")) == "<RelayResponse 200>"
