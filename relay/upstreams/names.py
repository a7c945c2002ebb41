"""What names resolve to: the DNS answers of one process, kept for as long as DNS says.

Theory of operation. The system's resolver decides (`getaddrinfo`: hosts file, nsswitch, search domains), but does not
tell how long its answer holds. So DNS itself is asked beside it, afterwards and in the background, for the TTL alone:
whatever comes of that can neither delay nor fail a request, and never gives an address. A name DNS does not know is
kept for `DEFAULT_SECONDS`.

Callers of one name share one look-up. An answer that has run out is used for up to `STALE_SECONDS` more while the first
caller to meet it starts a look-up in the background; names that nobody asks for are never refreshed. A failure is told
to those who wait for it and to nobody else. Addresses are not judged here: `egress` does that, on every connection.

`Names` belongs to one event loop. It holds no timer and, between look-ups, no task.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, cast

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.resolver

from relay.upstreams.egress import AddrInfo

MIN_SECONDS = 1.0
MAX_SECONDS = 300.0
"""Bounds of what a TTL may ask for."""
DEFAULT_SECONDS = 10.0
"""How long an answer is kept when DNS does not tell, and when its addresses led nowhere."""
STALE_SECONDS = 30.0
"""How long past its end an answer is still used, while it is looked up anew."""
MAX_NAMES = 10_000
"""Answers kept; the least recently used go."""
MAX_TTL_QUERIES = 32
"""At a time. A name that finds them all taken is kept for `DEFAULT_SECONDS`."""
TTL_QUERY_SECONDS = 5.0

Found = tuple[AddrInfo, ...]
Key = tuple[str, int]
AskTtl = Callable[[str], Awaitable[float | None]]


async def ask_ttl(host: str, resolver: dns.asyncresolver.Resolver | None = None) -> float | None:
    """The smallest TTL on the way from `host` to its addresses, or None where DNS does not tell. In seconds."""
    # The search domains are those of the system's resolver: `/etc/resolv.conf` is read anew, as that does (70 us).
    seconds: list[float] = []
    try:
        resolver = resolver or dns.asyncresolver.Resolver()
        for kind in ("A", "AAAA"):
            try:
                answer = await resolver.resolve(host, kind, search=True, lifetime=TTL_QUERY_SECONDS, backend=_Sockets())
            except dns.resolver.NoAnswer:
                continue
            seconds.append(answer.chaining_result.minimum_ttl)
    except (dns.exception.DNSException, OSError):
        return None
    return min(seconds, default=None)


_AsyncioBackend: Any = type(dns.asyncbackend.get_backend("asyncio"))


class _Sockets(_AsyncioBackend):  # type: ignore[misc]
    """dnspython's, which also lets go of a socket that is being made when the question is cancelled.

    uvloop does not: the datagram socket would stay, and hang the loop when that is closed.
    """

    async def make_socket(self, af: int, socktype: int, *args: Any, **kwargs: Any) -> Any:
        making = asyncio.ensure_future(super().make_socket(af, socktype, *args, **kwargs))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            if socktype == socket.SOCK_STREAM:
                making.cancel()  # may take long, and is left without a trace
            with contextlib.suppress(OSError, asyncio.CancelledError, dns.exception.DNSException):
                await (await making).close()
            raise


@dataclass(slots=True, eq=False)
class _Answer:
    found: Found
    came: float
    runs_out: float
    retry_at: float = 0.0
    """No new look-up before: the last one failed."""


class Names:
    """Resolves host names, and keeps the answers. Close it when it is no longer needed."""

    def __init__(self, ask_ttl: AskTtl = ask_ttl) -> None:
        self._ask_ttl = ask_ttl
        self._answers: OrderedDict[Key, _Answer] = OrderedDict()
        self._look_ups: dict[Key, asyncio.Future[Found | socket.gaierror]] = {}
        """Under way. They end in a result even when they fail, so that nobody has to be there to hear of it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._ttl_queries = 0
        self._closed = False

    async def resolve(self, host: str, port: int) -> Found:
        """The addresses of `host`, in the system's order, as `getaddrinfo` gives them: one or more.

        Raises `socket.gaierror`. An IP literal is its own address, and nobody is asked.
        """
        literal = _literal(host, port)
        if literal is not None:
            return (literal,)
        key = (host, port)
        answer = self._answers.get(key)
        if answer is not None:
            now = asyncio.get_running_loop().time()
            if now < answer.runs_out + STALE_SECONDS:
                self._answers.move_to_end(key)
                if now >= max(answer.runs_out, answer.retry_at) and key not in self._look_ups:
                    self._look_up(key)
                return answer.found
        look_up = self._look_ups.get(key)
        # Whoever is cancelled leaves alone: the look-up goes on for the others, and for the next.
        outcome = await asyncio.shield(self._look_up(key) if look_up is None else look_up)
        if isinstance(outcome, socket.gaierror):
            raise socket.gaierror(*outcome.args) from outcome
        return outcome

    def known(self, host: str, port: int) -> tuple[Found | None, float]:
        """The addresses of `host` as far as they are known, and until when, by the loop's clock. Waits for nothing:
        what has run out is looked up anew in the background, and `None` stands for what is not known."""
        if _literal(host, port) is not None:
            return None, math.inf
        key = (host, port)
        now = asyncio.get_running_loop().time()
        answer = self._answers.get(key)
        if answer is not None and now < answer.runs_out:
            self._answers.move_to_end(key)
            return answer.found, answer.runs_out
        if key not in self._look_ups and not self._closed and (answer is None or now >= answer.retry_at):
            self._look_up(key)
        return None, now + MIN_SECONDS

    def forget(self, host: str, port: int) -> None:
        """Look the name up anew at the next call, even if a look-up is under way."""
        self._answers.pop((host, port), None)
        self._look_ups.pop((host, port), None)

    def doubt(self, host: str, port: int) -> None:
        """None of the addresses could be connected to: an answer older than `DEFAULT_SECONDS` is not used again.

        So a service that has moved is found before a long TTL is over, and one that is down does not make each request
        look its name up.
        """
        answer = self._answers.get((host, port))
        if answer is not None and asyncio.get_running_loop().time() >= answer.came + DEFAULT_SECONDS:
            del self._answers[host, port]

    def close(self) -> None:
        """Forget everything and end what runs in the background. Whoever still waits gets a `socket.gaierror`."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        self._look_ups.clear()
        self._answers.clear()

    def _look_up(self, key: Key) -> asyncio.Future[Found | socket.gaierror]:
        if self._closed:
            raise socket.gaierror(socket.EAI_FAIL, "closed")
        look_up: asyncio.Future[Found | socket.gaierror] = asyncio.get_running_loop().create_future()
        self._look_ups[key] = look_up
        task = self._begin(self._ask_system(key, look_up))
        task.add_done_callback(lambda _: _settle(look_up, socket.gaierror(socket.EAI_FAIL, "closed")))
        return look_up

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask_system(self, key: Key, look_up: asyncio.Future[Found | socket.gaierror]) -> None:
        outcome = await _found(*key)
        # It may have been forgotten, and even been begun anew, in the meantime.
        if self._look_ups.get(key) is look_up:
            del self._look_ups[key]
            self._keep(key, outcome)
        _settle(look_up, outcome)

    def _keep(self, key: Key, outcome: Found | socket.gaierror) -> None:
        now = asyncio.get_running_loop().time()
        if isinstance(outcome, socket.gaierror):
            stale = self._answers.get(key)
            if stale is not None:
                stale.retry_at = now + MIN_SECONDS
            return
        answer = self._answers[key] = _Answer(outcome, came=now, runs_out=now + DEFAULT_SECONDS)
        self._answers.move_to_end(key)
        if len(self._answers) > MAX_NAMES:
            self._answers.popitem(last=False)
        if self._ttl_queries < MAX_TTL_QUERIES:
            self._ttl_queries += 1
            self._begin(self._learn_ttl(key[0], answer))

    async def _learn_ttl(self, host: str, answer: _Answer) -> None:
        try:
            seconds = await self._ask_ttl(host)
        except Exception:
            return
        finally:
            self._ttl_queries -= 1
        if seconds is not None:
            answer.runs_out = answer.came + min(max(seconds, MIN_SECONDS), MAX_SECONDS)


def _settle(look_up: asyncio.Future[Found | socket.gaierror], outcome: Found | socket.gaierror) -> None:
    if not look_up.done():
        look_up.set_result(outcome)


async def _found(host: str, port: int) -> Found | socket.gaierror:
    """What the system's resolver says, failures included."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as problem:
        return problem
    except Exception as problem:
        # Such as UnicodeError, for a label that is too long.
        return socket.gaierror(socket.EAI_FAIL, type(problem).__name__)
    return tuple(dict.fromkeys(cast("list[AddrInfo]", found))) or socket.gaierror(socket.EAI_NONAME, "no address")


def _literal(host: str, port: int) -> AddrInfo | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))
    if address.scope_id:
        return None  # the number of that interface is the system's to tell
    return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0))
