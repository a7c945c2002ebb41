"""A worker that tells what it holds: the project's application, and once in a while a file with its numbers.

`bench.settings_with_witness` serves it; production does not. `/metrics` adds workers up and knows nothing of tasks and
descriptors, so each worker writes for itself, into the folder that `RELAY_WITNESS_FOLDER` names.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from config.asgi import application
from relay.serving import underway
from relay.signals import server_shutdown, server_startup
from relay.upstreams import bulkheads
from relay.upstreams import client as client_room

__all__ = ["application"]

EVERY_SECONDS = 0.5
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def witness() -> dict[str, Any]:
    """What this process holds now. On the event loop."""
    return {
        "pid": os.getpid(),
        "at": time.time(),
        "rss_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES,
        "held": {**_descriptors(), **_tasks(), **_exchanges()},
    }


def _descriptors() -> Counter[str]:
    """By kind: sockets, and all others by what they lead to. The one that lists them is not among them."""
    kinds: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a Path for each costs too much
        try:
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except FileNotFoundError:  # the listing's own
            continue
        kind = target.partition(":")[0] if ":[" in target or target.startswith("anon_inode") else "file"
        kinds[f"descriptors: {kind}"] += 1
    return kinds


def _tasks() -> Counter[str]:
    return Counter(f"tasks: {getattr(task.get_coro(), '__qualname__', '?')}" for task in asyncio.all_tasks())


def _exchanges() -> dict[str, int]:
    transport: Any = None if client_room.client is None else client_room.client.transport
    pools = [] if transport is None else list(transport.pools())
    return {
        "exchanges: slots": bulkheads.slots.total(),
        "exchanges: callers in queues": sum(bulkheads.queued().values()),
        "exchanges: admissions": underway.count(),
        "exchanges: open": sum(pool.exchanges for pool in pools),
        "exchanges: callers waiting for a connection": sum(pool.waiting for pool in pools),
        "exchanges: connections to upstreams": sum(pool.open_connections for pool in pools),
    }


async def _write() -> None:
    folder = Path(os.environ["RELAY_WITNESS_FOLDER"])
    path, unfinished = folder / f"{os.getpid()}.json", folder / f"{os.getpid()}.unfinished"
    try:
        while True:
            unfinished.write_text(json.dumps(witness()))
            unfinished.replace(path)
            await asyncio.sleep(EVERY_SECONDS)
    finally:
        path.unlink(missing_ok=True)


_writing: asyncio.Task[None] | None = None


async def _open(**_: Any) -> None:
    global _writing
    _writing = asyncio.create_task(_write())


async def _close(**_: Any) -> None:
    if _writing is not None:
        _writing.cancel()
        await asyncio.wait([_writing])


server_startup.connect(_open, dispatch_uid=__name__)
server_shutdown.connect(_close, dispatch_uid=__name__)
