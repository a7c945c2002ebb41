"""The ASGI application: looks at the scope and hands it on. Sends the start-up and shutdown signals from the lifespan.

The relay mount goes to the lean handler, decided on raw path bytes; `/healthz` and `/readyz` are answered here, without
Django, so that they tell the truth when nothing else works; all else goes to Django's stock handler.
"""

from __future__ import annotations

import gc
import json
import logging
from typing import Any

from django.core.handlers.asgi import ASGIHandler

from relay import conf
from relay.catalog import watcher
from relay.conf import MOUNT
from relay.serving.asgi import Application, Receive, Scope, Send, quieten_aborts
from relay.serving.forms import Forms
from relay.serving.handler import RelayHandler
from relay.serving.hosts import is_admin_host
from relay.signals import server_shutdown, server_startup

logger = logging.getLogger("relay.serving")

GC_THRESHOLDS = (20_000, 20, 50)
"""Container objects made and not freed, then younger collections, before a collection."""

_draining = False


def begin_draining() -> None:
    """The worker is about to stop: `/readyz` says so from now on. Called by the server on its first signal."""
    global _draining
    _draining = True


def get_application() -> Application:
    """The application `config.asgi` serves. Django must be set up."""
    return RelayApplication()


class RelayApplication:
    def __init__(self) -> None:
        self._relay = RelayHandler()
        self._django = Forms(ASGIHandler())
        self._mount = MOUNT.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            raw_path: bytes = scope["raw_path"]
            if root := scope.get("root_path"):
                raw_path = raw_path.removeprefix(root.encode())
            if raw_path.startswith(self._mount):
                await self._relay(scope, receive, send)
            elif raw_path == b"/healthz":
                await _answer(send, 200, {"status": "alive"})
            elif raw_path == b"/readyz":
                await _answer(send, 503 if _draining else 200, readiness())
            elif is_admin_host(dict(scope["headers"]).get(b"host", b""), conf.current()):
                await self._django(scope, receive, send)
            else:
                await _answer(send, 421, {"status": "this host name is for relayed requests"})
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003, "reason": "WebSockets are not relayed"})
        else:
            raise ValueError(f"the relay does not know ASGI scopes of type {kind}")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        global _draining
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                _draining = False
                self._django.open()
                quieten_aborts()
                try:
                    await server_startup.asend(sender=type(self))
                except Exception as problem:
                    logger.error("The relay cannot start: %s", problem)
                    await server_shutdown.asend_robust(sender=type(self))
                    await send({"type": "lifespan.startup.failed", "message": str(problem)})
                    return
                _spare_the_collector()
                await send({"type": "lifespan.startup.complete"})
            else:
                begin_draining()
                for receiver, outcome in await server_shutdown.asend_robust(sender=type(self)):
                    if isinstance(outcome, Exception):
                        logger.error("Shutting down, %s failed: %r", receiver, outcome)
                await send({"type": "lifespan.shutdown.complete"})
                return


def _spare_the_collector() -> None:
    """Keep garbage collections from what they would look at in vain.

    What start-up made stays for good. Exchanges leave no cycles, so counting references frees them; with hundreds at
    the same time, young collections would go through all that is alive again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def readiness() -> dict[str, Any]:
    """What `/readyz` says. A database that is away does not make the relay unready: it serves the last snapshot."""
    state = watcher.state()
    return {
        "status": "draining" if _draining else "ready",
        "catalog": {
            "revision": state.revision,
            "database": "ok" if state.healthy else "unreachable",
            "failing_since": state.failing_since,
            "error": state.error,
        },
    }


async def _answer(send: Send, status: int, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"cache-control", b"no-store"),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
