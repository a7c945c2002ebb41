"""uvicorn's HTTP protocol, which also tells the application what the request line really said.

ASGI gives path and query apart: a lone `?` at the end of a target and a `#` with what follows are gone by then. The
relay passes targets byte for byte or refuses them, so it needs to know. Under another protocol it does without.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from relay.serving.asgi import SENT_TARGET


class RelayProtocol(HttpToolsProtocol):
    def on_headers_complete(self) -> None:
        # Before the application's task is made: an application that is started at once would miss it.
        self.scope["extensions"] = {SENT_TARGET: {"target": self.url}}
        super().on_headers_complete()
