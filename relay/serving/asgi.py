"""The ASGI types used by `serving`, and how to stop in the middle of an answer without a log full of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

Scope = dict[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

SENT_TARGET = "relay.target"
"""In `scope["extensions"]`, where the server tells: `{"target": bytes}`, the request target as it was sent."""

DISCONNECT = "relay.disconnect"
"""In `scope["extensions"]`, where the server offers it: `{"watch": function}`. It takes a function that is called once,
without arguments, when the caller leaves before the answer is whole; None takes it back."""

EARLY_HINT = "http.response.early_hint"
TRAILERS = "http.response.trailers"
"""ASGI extensions, and the messages that go with them."""

_aborted: ContextVar[bool] = ContextVar("relay_aborted", default=False)


def mark_aborted() -> None:
    """This request's answer ends in the middle, on purpose: the server closes the connection when the app returns."""
    _aborted.set(True)


class AbortFilter(logging.Filter):
    """Drops uvicorn's complaints about answers that `mark_aborted` ended. The access log has told of them."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not _aborted.get():
            return True
        if record.exc_info and record.exc_info[0] is not None:
            return not issubclass(record.exc_info[0], asyncio.CancelledError)
        return record.msg not in _COMPLAINTS


_COMPLAINTS = frozenset(
    {
        "ASGI callable returned without starting response.",
        "ASGI callable returned without completing response.",
    }
)


def quieten_aborts() -> None:
    """Put the filter on uvicorn's logger, once."""
    logger = logging.getLogger("uvicorn.error")
    if not any(isinstance(found, AbortFilter) for found in logger.filters):
        logger.addFilter(AbortFilter())
