"""The ASGI application: looks at the scope and hands it on. Sends the start-up and shutdown signals from the lifespan.

The relay mount, and all of an upstream's own host, goes to the lean handler, decided on raw bytes; what operators'
machines ask goes to `status`; all else goes to Django's stock handler.
"""

from __future__ import annotations

import gc
import logging

from django.core.handlers.asgi import ASGIHandler

from relay import conf
from relay.conf import MOUNT
from relay.serving import status
from relay.serving.asgi import Application, Receive, Scope, Send, quieten_aborts
from relay.serving.forms import Forms
from relay.serving.handler import RelayHandler
from relay.serving.hosts import place_of
from relay.signals import server_shutdown, server_startup

logger = logging.getLogger("relay.serving")

_STATUS_PAGES = {b"/healthz": status.tell_alive, b"/readyz": status.tell_ready, b"/metrics": status.tell_metrics}

GC_THRESHOLDS = (20_000, 20, 50)
"""Container objects made and not freed, then younger collections, before a collection."""


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
            place = place_of(scope["headers"], conf.current())
            if place.slug or raw_path.startswith(self._mount):
                await self._relay(scope, receive, send)
            elif tell := _STATUS_PAGES.get(raw_path):
                await tell(scope, send)
            elif place.admin:
                await self._django(scope, receive, send)
            else:
                await status.answer(send, 421, {"status": "this host name is for relayed requests"})
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003, "reason": "WebSockets are not relayed"})
        else:
            raise ValueError(f"the relay does not know ASGI scopes of type {kind}")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                status.begin_anew()
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
                status.begin_draining()
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
