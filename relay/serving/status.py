"""What operators' machines ask: `/healthz`, `/readyz`, `/metrics`. Answered without Django, so that they tell the truth
when nothing else works.

Whether the relay lives and is ready may be told to anyone. Details and metrics go to `RELAY_METRICS_NETWORKS` alone:
they tell upstreams' names and how busy they are.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from relay import conf
from relay.catalog import watcher
from relay.observing.metrics import metrics
from relay.rules.forwarding import TrustedProxies, client_address
from relay.serving.asgi import Scope, Send

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_draining = False
_refusing = False
_handing_over = False


def begin_draining() -> None:
    """The relay is about to stop: `/readyz` says so from now on. Called by the server on its first signal."""
    global _draining
    _draining = True


def begin_refusing() -> None:
    """The balancer had its time: requests on connections that are still open get 503."""
    global _draining, _refusing
    _draining = _refusing = True


def begin_handing_over() -> None:
    """Another worker has this one's place: open connections are served a last time, and none is cut off."""
    global _handing_over
    _handing_over = True


def begin_anew() -> None:
    global _draining, _refusing, _handing_over
    _draining = _refusing = _handing_over = False


def is_refusing() -> bool:
    return _refusing


def is_handing_over() -> bool:
    return _handing_over


async def tell_alive(scope: Scope, send: Send) -> None:
    await answer(send, 200, {"status": "alive"})


async def tell_ready(scope: Scope, send: Send) -> None:
    """503 while draining. A database that is away does not make the relay unready: it serves the last snapshot."""
    document: dict[str, Any] = {"status": "draining" if _draining else "ready"}
    if _may_know_more(scope):
        state = watcher.state()
        document["catalog"] = {
            "revision": state.revision,
            "source": state.source,
            "database": "ok" if state.healthy else "unreachable",
            "failing_since": state.failing_since,
            "error": state.error,
            "age_seconds": round(state.age_seconds, 1),
        }
    await answer(send, 503 if _draining else 200, document)


async def tell_metrics(scope: Scope, send: Send) -> None:
    """Prometheus' text format, of all workers of this machine."""
    if _may_know_more(scope):
        await _send(send, 200, (await metrics.text()).encode(), METRICS_TYPE)
    else:
        await answer(send, 403, {"status": "metrics are for the networks in RELAY_METRICS_NETWORKS"})


async def answer(send: Send, status: int, document: dict[str, Any]) -> None:
    await _send(send, status, json.dumps(document).encode(), b"application/json")


async def _send(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _may_know_more(scope: Scope) -> bool:
    """Judged by the caller's own address, so that a proxy in front on the same machine opens nothing to the world."""
    settings = conf.current()
    peer = scope["client"][0] if scope.get("client") else None
    forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    caller = client_address(peer, _networks(settings.trusted_proxies), forwarded)
    return _networks(settings.metrics_networks).trusts(caller)


@lru_cache(maxsize=4)
def _networks(cidrs: tuple[str, ...]) -> TrustedProxies:
    return TrustedProxies(cidrs)
