"""One request carried to an upstream and its answer carried back.

Theory of operation. `Exchange.open` takes a slot or waits for one (`bulkheads`), chooses a target (`targets`), builds
the `httpx.Request`, sends it through the client and returns when the answer's head is there. A request that failed goes
out again where `relay.rules.retries` and the upstream's budget allow it, to another target if there is one. The body is
then an async iterator of bytes that bounds what it passes on. `close` gives the slot and the connection back:
synchronous, idempotent, called in the handler's one `finally`. Whatever goes wrong comes out as a `RelayError`; httpx
shows no further than here.

An upstream's credential is completed here where that has to wait (an access token) or has to come last (a signature).
One that is at fault lets nothing go out.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, NoReturn, cast

import httpx

from relay import errors
from relay.catalog import Target, Upstream
from relay.rules import retries, sigv4
from relay.rules.headers import Pairs
from relay.upstreams import budgets, bulkheads, faults, targets
from relay.upstreams import client as client_room
from relay.upstreams.client import RelayClient
from relay.upstreams.messages import SeamRequest
from relay.upstreams.targets import Seat

MOST_HELD_BYTES = 256 * 1024 * 1024
"""Of all buffered answers in this process together: callers of HTTP/1.0 decide that theirs are. One alone may have
more, as far as its own bound goes."""
_held_bytes = 0


def held_bytes() -> int:
    """What buffered answers hold at this moment."""
    return _held_bytes


class RequestBody(httpx.AsyncByteStream):
    """The caller's body on its way up: counted against the bound, never held."""

    def __init__(self, chunks: AsyncIterator[bytes], *, limit: int | None) -> None:
        self.passed = 0
        self.has_begun = False
        self.has_ended = False
        self._chunks = chunks
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.has_begun = True
        async for chunk in self._chunks:
            self.passed += len(chunk)
            if self._limit is not None and self.passed > self._limit:
                raise errors.RequestTooLarge(f"over {self._limit} bytes")
            yield chunk
        self.has_ended = True


class Exchange:
    """A slot at an upstream and what is carried through it."""

    __slots__ = (
        "_affinity",
        "_held_bytes",
        "_holds_slot",
        "_response",
        "_seat",
        "_tried",
        "attempts",
        "body_bytes",
        "method",
        "phases",
        "queued_seconds",
        "request_body",
        "target",
        "upstream",
    )

    def __init__(self, upstream: Upstream, *, method: str, affinity: bytes | None = None) -> None:
        """`affinity`: what the same value of goes to the same target, where the upstream balances by such."""
        self.upstream = upstream
        self.method = method
        self.target: Target | None = None
        """Where it went last."""
        self.attempts = 0
        """How often it was sent, or tried to be."""
        self.request_body: RequestBody | None = None
        self.body_bytes = 0
        """Bytes of the answer's body passed on so far."""
        self.phases: faults.Phases = {}
        """What waiting for a connection and making it took, all attempts together."""
        self.queued_seconds = 0.0
        """How long it waited for a slot."""
        self._affinity = affinity
        self._seat: Seat | None = None
        self._tried: tuple[int, ...] = ()
        """Targets where it failed, by their number."""
        self._response: httpx.Response | None = None
        self._held_bytes = 0
        self._holds_slot = False

    async def open(
        self,
        *,
        target: bytes,
        pairs: Pairs,
        body: AsyncIterator[bytes] | None,
        on_interim: Callable[[int, Pairs], None] | None = None,
    ) -> tuple[int, Pairs]:
        """Send the request; (status, raw header pairs) of the answer. Raises `RelayError`.

        `on_interim` is told status and header pairs of each interim answer but 100.
        """
        upstream = self.upstream
        credential = upstream.credential
        if credential is not None and credential.fault is not None:
            raise credential.fault
        client = client_room.client
        if client is None:
            raise errors.Draining("the client is closed")
        if not bulkheads.take(upstream):
            began = perf_counter()
            try:
                await bulkheads.wait(upstream)
            finally:
                self.queued_seconds = perf_counter() - began
        self._holds_slot = True
        if body is not None:
            self.request_body = RequestBody(body, limit=upstream.max_request_bytes)
        grant = credential.grant if credential is not None else None
        token = b""
        if grant is not None:
            token = await client.tokens.token(upstream, grant)
            pairs.append((b"authorization", b"Bearer " + token))
        extensions: dict[str, Any] = {"upstream": upstream, "target": target, "phases": self.phases}
        if on_interim is not None:
            extensions["interim"] = on_interim
        self._response = response = await self._send(client, pairs, extensions)
        if grant is not None and response.status_code == 401:
            client.tokens.refused(grant, token)
        pairs = response.headers.raw
        if upstream.max_response_bytes is not None and self.method != "HEAD" and response.status_code != 304:
            announced = _announced_bytes(pairs)
            if announced > upstream.max_response_bytes:
                raise errors.ResponseTooLarge(f"{announced} bytes announced")
        return response.status_code, pairs

    async def _send(self, client: RelayClient, pairs: Pairs, extensions: dict[str, Any]) -> httpx.Response:
        """The answer to the first attempt that has one."""
        upstream = self.upstream
        budgets.count(upstream)
        if upstream.sole_target is None:
            self._take_seat()
        while True:
            self.attempts += 1
            self.target = extensions["place"] = self._seat.target if self._seat is not None else upstream.sole_target
            try:
                response = await client.send(self._request(pairs, extensions))
            except httpx.HTTPError as problem:
                self._leave(problem)
                if not (
                    self._may_go_out_again(problem) and self._has_where_to_go(problem) and budgets.allow_retry(upstream)
                ):
                    _raise_relay_error(problem)
                await asyncio.sleep(retries.pause_seconds(self.attempts - 1, random.random))
            else:
                if self._seat is not None:
                    self._seat.settle(succeeded=response.status_code not in _UNAVAILABLE)
                return response

    def _take_seat(self) -> None:
        crew = targets.crew_of(self.upstream)
        self._seat = crew.seat(self._affinity)
        if self._seat is None:
            raise crew.unavailable()

    def _has_where_to_go(self, problem: httpx.HTTPError) -> bool:
        """Whether there is a target for the next attempt; of several, it has its seat. One that was tried already comes
        last, and only after what may be over a moment later."""
        upstream = self.upstream
        may_stay = isinstance(problem, _PASSING)
        if upstream.sole_target is not None:
            return may_stay
        crew = targets.crew_of(upstream)
        self._seat = crew.seat(self._affinity, tried=self._tried)
        if self._seat is None and may_stay:
            self._seat = crew.seat(self._affinity)
        return self._seat is not None

    def _request(self, pairs: Pairs, extensions: dict[str, Any]) -> SeamRequest:
        """What goes to the target that was chosen."""
        upstream, target = self.upstream, cast(Target, self.target)
        if upstream.target_host:
            pairs = [(b"host", target.authority), *pairs[1:]]
        credential = upstream.credential
        if credential is not None and credential.signing_key is not None:
            # Last of all: it speaks of the head that goes out.
            pairs = pairs + sigv4.sign(
                credential.signing_key,
                method=self.method.encode("ascii"),
                target=extensions["target"],
                pairs=pairs,
                now=datetime.now(UTC),
            )
        return SeamRequest(self.method, pairs, stream=self.request_body, extensions=extensions)

    def _may_go_out_again(self, problem: httpx.HTTPError) -> bool:
        progress = faults.progress_of(problem)
        body = self.request_body
        return (
            progress is not None
            and self.attempts <= self.upstream.max_retries
            and not isinstance(problem, _FINAL)
            and retries.may_repeat(
                method=self.method,
                has_body=body is not None,
                is_replayable=False,
                body_begun=body is not None and body.has_begun,
                request_sent=progress.request_sent,
                response_begun=progress.response_begun,
            )
        )

    def _leave(self, problem: httpx.HTTPError) -> None:
        """Give up the seat, because of `problem`."""
        seat = self._seat
        if seat is not None:
            self._tried += (seat.index,)
            if not isinstance(problem, faults.SAYS_NOTHING):
                seat.settle(succeeded=False)
            self._give_up_seat()

    def _give_up_seat(self) -> None:
        seat, self._seat = self._seat, None
        if seat is not None:
            seat.leave()

    async def body(self) -> AsyncIterator[bytes]:
        """The answer's body as it arrives. Raises `RelayError` when it ends before its end, or is over the bound."""
        response = cast(httpx.Response, self._response)
        limit = self.upstream.max_response_bytes
        try:
            async for chunk in cast(httpx.AsyncByteStream, response.stream):
                self.body_bytes += len(chunk)
                if limit is not None and self.body_bytes > limit:
                    raise errors.ResponseTooLarge(f"over {limit} bytes")
                yield chunk
        except httpx.HTTPError as problem:
            self._leave(problem)
            _raise_relay_error(problem)

    async def whole_body(self, limit: int) -> bytes:
        """The answer's body held in memory, for buffered delivery. Raises `BufferExceeded` over `limit` bytes, and
        `BuffersFull` when all that are held have no room for it. What it holds is counted until `close`."""
        global _held_bytes
        held = bytearray()
        async for chunk in self.body():
            held += chunk
            self._held_bytes += len(chunk)
            _held_bytes += len(chunk)
            if len(held) > limit:
                raise errors.BufferExceeded(f"over {limit} bytes")
            if self._held_bytes < _held_bytes > MOST_HELD_BYTES:
                raise errors.BuffersFull(f"over {MOST_HELD_BYTES} bytes in all")
        return bytes(held)

    @property
    def trailers(self) -> Pairs:
        """What the upstream sent behind the body, once that has been read."""
        trailers: Pairs = cast(httpx.Response, self._response).extensions.get("trailers", [])
        return trailers

    def out_of_time(self) -> None:
        """The total time is over. Whoever had the whole request and has not answered is too slow."""
        body = self.request_body
        if self._seat is not None and not self._seat.is_settled and (body is None or body.has_ended):
            self._seat.settle(succeeded=False)

    def close(self) -> None:
        """Give back slot and connection. At any moment, any number of times."""
        global _held_bytes
        _held_bytes -= self._held_bytes
        self._held_bytes = 0
        response, self._response = self._response, None
        if response is not None:
            # Every stream of the seam closes at once; an `aclose()` could be cancelled half-way.
            cast(httpx.SyncByteStream, response.stream).close()
        self._give_up_seat()
        if self._holds_slot:
            self._holds_slot = False
            bulkheads.give_back(self.upstream.slug)


def _announced_bytes(pairs: list[tuple[bytes, bytes]]) -> int:
    """What Content-Length tells; 0 without one. The transport lets no other than a number pass."""
    return max((int(value) for name, value in pairs if name.lower() == b"content-length"), default=0)


_UNAVAILABLE = frozenset({502, 503, 504})
"""Statuses with which a target says that it cannot answer."""
_FINAL = (faults.HeadTimeout, *faults.SAYS_NOTHING)
"""What is not tried again: a target that is slow may be at work on it."""
_PASSING = (faults.PortClosed, faults.HungUp)
"""What may be over a moment later at the same target: it starts anew."""

_ERRORS: tuple[tuple[type[httpx.HTTPError], type[errors.RelayError]], ...] = (
    (faults.AddressRefused, errors.EgressRefused),
    (faults.LedBack, errors.LoopDetected),
    (faults.NameUnresolved, errors.NameUnresolved),
    (faults.PortClosed, errors.ConnectionRefused),
    (faults.OutOfFiles, errors.ServerFull),
    (faults.CertificateUntrusted, errors.CertificateRefused),
    (faults.HandshakeFailed, errors.TLSFailed),
    (faults.HeadTimeout, errors.HeadTimedOut),
    (faults.UploadTooSlow, errors.UploadTooSlow),
    (faults.CallerStalled, errors.CallerTimedOut),
    (faults.HungUp, errors.UpstreamHungUp),
    (httpx.ConnectTimeout, errors.ConnectTimedOut),
    (httpx.PoolTimeout, errors.UpstreamFull),
    (httpx.ReadTimeout, errors.IdleTimedOut),
    (httpx.WriteTimeout, errors.UploadTimedOut),
    (httpx.ProxyError, errors.OutboundProxyFailed),
    (httpx.ConnectError, errors.ConnectionFailed),
    (httpx.LocalProtocolError, errors.RequestRefused),
    (httpx.RemoteProtocolError, errors.UpstreamProtocolFailed),
    (httpx.NetworkError, errors.UpstreamHungUp),
    (httpx.HTTPError, errors.UpstreamFailed),
)
"""The first that fits counts: finer kinds come before their parents."""


def _raise_relay_error(problem: httpx.HTTPError) -> NoReturn:
    for kind, error in _ERRORS:
        if isinstance(problem, kind):
            raise error(str(problem)) from problem
    raise AssertionError("the last row fits every httpx.HTTPError")
