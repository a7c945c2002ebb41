"""The one `httpx.AsyncClient` of this process, opened by `server_startup` and closed by `server_shutdown`.

It is bare on purpose: no cookie jar, redirects, auth, event hooks or environment. One user's cookies would ride on
another's request, and a redirect would leave the registered upstream. So `send` goes straight to the transport, which
is the engine that `RELAY_TRANSPORT` names.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, runtime_checkable

import httpx
from django.utils.module_loading import import_string

from relay import catalog, conf
from relay.observing.families import Family, Sample
from relay.rules.credentials import TokenGrant
from relay.signals import server_shutdown, server_startup
from relay.upstreams import budgets, targets
from relay.upstreams.tokens import Tokens


@runtime_checkable
class KeepsPools(Protocol):
    """A transport that holds something for each upstream, and is told which upstreams are still as they were."""

    def keep(self, is_current: Callable[[catalog.Upstream], bool]) -> None: ...


@runtime_checkable
class TellsNumbers(Protocol):
    """A transport that has something to tell for `/metrics`."""

    def read(self) -> Iterator[tuple[Family, Sample]]: ...


class RelayClient(httpx.AsyncClient):
    """An `AsyncClient` that adds nothing to a request and keeps nothing of a response."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        super().__init__(transport=transport, trust_env=False, follow_redirects=False, timeout=None)
        self.transport = transport
        self.tokens = Tokens(self.send)

    def send(self, request: httpx.Request, **_: Any) -> Coroutine[Any, Any, httpx.Response]:
        """Hand `request` to the transport. The response streams; whoever sends it closes it. Raises httpx's errors.

        The transport's own coroutine: each one more between it and who waits would be gone through at each step.
        """
        return self.transport.handle_async_request(request)


client: RelayClient | None = None
"""None before start-up and after shutdown."""


async def open_client(**_: Any) -> None:
    global client
    if client is None:
        client = RelayClient(import_string(conf.current().transport)())


async def close_client(**_: Any) -> None:
    global client
    closing, client = client, None
    if closing is not None:
        await closing.tokens.aclose()
        await closing.aclose()
        targets.keep(lambda _: False)
        budgets.forget()


def retire_pools(snapshot: catalog.Snapshot) -> None:
    """Told by the catalog's watcher after each poll: what is kept for upstreams that are no longer as they were may
    go."""
    if client is None:
        return
    if isinstance(client.transport, KeepsPools):
        client.transport.keep(lambda upstream: _is_current(snapshot, upstream))
    targets.keep(lambda slug: _has_several_targets(snapshot, slug))
    budgets.keep()
    client.tokens.keep(lambda slug, grant: _grants(snapshot, slug, grant))


def _is_current(snapshot: catalog.Snapshot, upstream: catalog.Upstream) -> bool:
    return snapshot.find(upstream.slug.encode()) == upstream


def _has_several_targets(snapshot: catalog.Snapshot, slug: str) -> bool:
    upstream = snapshot.find(slug.encode())
    return upstream is not None and upstream.sole_target is None


def _grants(snapshot: catalog.Snapshot, slug: str, grant: TokenGrant) -> bool:
    upstream = snapshot.find(slug.encode())
    return upstream is not None and upstream.credential is not None and upstream.credential.grant == grant


def read() -> Iterator[tuple[Family, Sample]]:
    """For `/metrics`: what the engine tells."""
    if client is not None and isinstance(client.transport, TellsNumbers):
        yield from client.transport.read()


def connect_signals() -> None:
    server_startup.connect(open_client, dispatch_uid="relay.upstreams.client")
    server_shutdown.connect(close_client, dispatch_uid="relay.upstreams.client")
