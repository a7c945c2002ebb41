"""Every error of the seam tells how far its exchange had come: what must be known to send the request again."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from relay.upstreams.faults import Progress, progress_of
from tests.origin import Origin, hang, head_bytes, raw, refusing_port, reply, truncate
from tests.upstreams.conftest import Seam, counted_body, whole

SHORT = 0.2


async def failing(seam: Seam, **given: Any) -> Progress | None:
    with pytest.raises(httpx.TransportError) as failure:
        await whole(await seam.ask(b"/x", **given))
    return progress_of(failure.value)


async def test_a_connection_that_was_refused_has_sent_nothing(seam: Seam) -> None:
    with refusing_port() as port:
        seam.rules(port=port)
        assert await failing(seam) == Progress("connect")


async def test_an_address_that_was_refused_has_sent_nothing(seam: Seam) -> None:
    seam.rules(allowed_networks=())
    assert await failing(seam) == Progress("egress")


async def test_who_got_no_connection_has_sent_nothing(origin: Origin, seam: Seam) -> None:
    origin.on(b"/held", raw(head_bytes(200, [(b"Content-Length", b"5")]) + b"a", then="keep"))
    seam.rules(max_connections=1, connect_timeout_seconds=SHORT)
    holding = await seam.ask(b"/held")
    assert await failing(seam) == Progress("pool")
    await holding.stream.aclose()  # type: ignore[union-attr]


async def test_a_head_with_a_line_break_has_sent_nothing(seam: Seam) -> None:
    assert await failing(seam, pairs=[(b"a", b"b\r\nc: d")]) == Progress("request")


async def test_without_an_answer_the_request_has_left(origin: Origin, seam: Seam) -> None:
    origin.on(b"/x", hang())
    seam.rules(head_timeout_seconds=SHORT)
    assert await failing(seam) == Progress("head", request_sent=True)


async def test_part_of_a_head_is_an_answer_begun(origin: Origin, seam: Seam) -> None:
    origin.on(b"/x", raw(b"HTTP/1.1 200 O"))
    assert await failing(seam) == Progress("head", request_sent=True, response_begun=True)


async def test_a_body_that_failed_had_an_answer(origin: Origin, seam: Seam) -> None:
    origin.on(b"/x", truncate(1000, 10))
    assert await failing(seam) == Progress("body", request_sent=True, response_begun=True)


async def test_a_request_that_broke_off_has_left_in_part(origin: Origin, seam: Seam) -> None:
    origin.on(b"/x", reply())
    assert await failing(seam, **counted_body(b"too much", length=3)) == Progress("request", request_sent=True)
