"""What attacks share: the ground, origin and upstreams of the behaviour tests, and what an attacker can be seen to get.

Every attack ends with the law of `ground`: whatever was tried, no slot, pooled exchange or task is held any more.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.behaviour.conftest import (
    Logged,
    Relayed,
    catalog_without_database,
    ground,
    logged,
    relayed,
    seconds,
    until,
    until_at_rest,
    upstream_at,
)
from tests.caller import Answer, Caller, Ended
from tests.serving_ground import Ground

__all__ = [
    "Logged",
    "Relayed",
    "answer_to",
    "catalog_without_database",
    "error_type",
    "ground",
    "logged",
    "refused_with",
    "relayed",
    "seconds",
    "until",
    "until_at_rest",
    "upstream_at",
]


async def answer_to(ground: Ground, request: bytes, *, to: bytes = b"GET") -> Answer:
    """The answer to these very bytes, on a connection of their own."""
    async with Caller(ground.port) as caller:
        await caller.send(request)
        head = await caller.read_head(to=to)
        return Answer(head, await caller.read_body())


def error_type(answer: Answer) -> str:
    """The relay's own word for what went wrong."""
    document: dict[str, Any] = json.loads(answer.data)
    return str(document["type"]).removeprefix("urn:relay:error:")


async def refused_with(caller: Caller) -> tuple[int, str]:
    """The status and the error of a refusal, after which the connection has to end."""
    head = await caller.read_head()
    answer = Answer(head, await caller.read_body())
    assert answer.body.ended is Ended.COUNTED
    assert answer.values(b"connection") == [b"close"]
    assert await caller.read_rest() == (b"", Ended.CLOSED)
    await asyncio.sleep(0)
    return answer.status, error_type(answer)
