"""The httpx transport: a pool of connections for each target, in which this process speaks HTTP/1.1 itself.

Theory of operation. `handle_async_request` finds the pool of the request's upstream and place, and the pool carries the
request: `dialing` makes connections, `connection` and `wire` carry exchanges on them, `answers` reads what comes back.
A pool lives as long as the saved upstream it was made for: a newer revision gets a new pool, the older one is closed
when its last exchange ends. A connection opened under one upstream's rules never serves another.

The seam is httpx's interface. Request extensions read: `upstream` (`relay.catalog.Upstream`), `place` (the one of its
`relay.catalog.Target`s to go to; without it, the first), `target` (the exact request target, bytes), `interim` (called
with status and header pairs of each interim answer but 100), `upgrade` (present: 101 is welcome), `phases` (a
`faults.Phases` that is added to where a connection is waited for or made). Response extensions given: `trailers`
(header pairs; complete when the body has ended), `network_stream` (after 101: `relay.upstreams.duplex.DuplexStream`).
Raises what `httpx` and `relay.upstreams.faults` define, each with its `faults.Progress`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx

from relay import catalog
from relay.catalog import Target, Upstream
from relay.observing.families import Family, Sample
from relay.observing.metrics import metrics
from relay.upstreams.names import Names
from relay.upstreams.pool import Pool

CONNECTIONS = Family("relay_upstream_connections", "gauge", "Connections to upstreams.", ("upstream", "state"))
WAITING = Family("relay_connection_waiters", "gauge", "Exchanges that wait for a connection.", ("upstream",))


_Key = tuple[str, str]
"""Slug and target's name."""


class PooledTransport(httpx.AsyncBaseTransport):
    """An `httpx.AsyncBaseTransport` with a pool per target. Belongs to one event loop."""

    def __init__(self) -> None:
        self._names = Names()
        self._pools: dict[_Key, Pool] = {}
        self._retired: set[Pool] = set()

    def handle_async_request(self, request: httpx.Request) -> Coroutine[Any, Any, httpx.Response]:
        """The pool's own coroutine, to be awaited at once: the pool has been entered."""
        upstream: Upstream = request.extensions["upstream"]
        target: Target = request.extensions.get("place") or upstream.targets[0]
        key = (upstream.slug, target.name)
        pool = self._pools.get(key)
        if pool is None or pool.upstream is not upstream:
            pool = self._pool_for(upstream, target, pool)
        pool.enter()
        if self._pools.get(key) is not pool:
            self._retire(pool)
        return pool.send(request)

    def _pool_for(self, upstream: Upstream, target: Target, pool: Pool | None) -> Pool:
        if pool is not None and pool.upstream == upstream:
            return pool
        fresh = Pool(upstream, target, self._names)
        # A request decided from an older snapshot gets a pool of its own, which is gone with it.
        if pool is None or catalog.current().find(upstream.slug.encode()) == upstream:
            self._pools[upstream.slug, target.name] = fresh
            if pool is not None:
                self._retire(pool)
        return fresh

    def _retire(self, pool: Pool) -> None:
        self._retired.add(pool)
        pool.retire(self._retired.discard)

    def keep(self, is_current: Callable[[Upstream], bool]) -> None:
        """Retire the pools of changed or removed upstreams, and those that served nobody for their keep-alive time."""
        for key, pool in list(self._pools.items()):
            if pool.is_idle or not is_current(pool.upstream):
                del self._pools[key]
                self._retire(pool)

    def read(self) -> Iterator[tuple[Family, Sample]]:
        """For `/metrics`."""
        for pool in self.pools():
            slug = metrics.series_of(pool.upstream.slug)
            yield CONNECTIONS, ((slug, "idle"), pool.idle_connections)
            yield CONNECTIONS, ((slug, "busy"), pool.open_connections - pool.idle_connections)
            yield WAITING, ((slug,), pool.waiting)

    @property
    def open_exchanges(self) -> int:
        return sum(pool.exchanges for pool in self.pools())

    def pools(self) -> Iterator[Pool]:
        """Those in use and those that wait for their last exchange."""
        yield from self._pools.values()
        yield from self._retired

    @property
    def open_pools(self) -> int:
        return len(self._pools) + len(self._retired)

    async def aclose(self) -> None:
        pools = list(self.pools())
        self._pools.clear()
        self._retired.clear()
        for pool in pools:
            pool.abort()
        self._names.close()
