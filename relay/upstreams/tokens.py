"""Access tokens of upstreams with OAuth 2 client credentials (RFC 6749 section 4.4): fetched, kept, renewed.

Theory of operation. A token is fetched by the same way out as requests: guard, TLS and proxy of its upstream, through a
pool that lives for that one exchange. The first request that needs a token starts a task that fetches it; all others
wait for the same task, and none of them cancels it by leaving. A minute before it ends a token is renewed by one such
task while requests go on with the one there is. After a fetch that failed nobody asks again for some seconds, so that
callers cannot have a failing server hammered. An upstream's 401 has its token dropped, but not a fresh one: a caller
who can provoke 401 would have a token fetched for each request. Nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from relay import errors
from relay.catalog import Upstream
from relay.rules.credentials import TokenGrant
from relay.upstreams import faults
from relay.upstreams.messages import SeamRequest

logger = logging.getLogger(__name__)

FETCH_SECONDS = 15.0
"""For one fetch, from the name's look-up to the answer's last byte."""
MAX_ANSWER_BYTES = 64 * 1024
MAX_TOKEN_BYTES = 16 * 1024
RENEW_EARLY_SECONDS = 60.0
"""How long before its end a token is renewed; a fifth of its life if that is less."""
DEFAULT_LIFE_SECONDS = 300.0
"""Where the answer does not tell."""
LONGEST_LIFE_SECONDS = 24 * 3600.0
RETRY_SECONDS = 5.0
"""How long after a failed fetch nobody tries again."""
DROP_AFTER_SECONDS = 10.0
"""A token younger than this is not dropped because of a 401."""

_TOKEN = re.compile(r"[\x21-\x7e]+")
_ERROR_CODES = frozenset(
    {
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "invalid_target",
    }
)
"""RFC 6749 section 5.2 and RFC 8707: what may be repeated in the log."""

Send = Callable[[httpx.Request], Awaitable[httpx.Response]]


class _Held:
    """What there is of one grant's token."""

    __slots__ = ("ends_at", "error", "fetch", "fetched_at", "problem", "renew_at", "retry_at", "slug", "token")

    def __init__(self, slug: str) -> None:
        self.slug = slug
        self.token: bytes | None = None
        self.fetched_at = 0.0
        self.renew_at = 0.0
        self.ends_at = 0.0
        self.retry_at = float("-inf")
        self.problem = ""
        self.error: type[errors.RelayError] = errors.TokenUnavailable
        self.fetch: asyncio.Task[None] | None = None


class _Unusable(Exception):
    """The answer is no token. The text is for the log and holds nothing of the answer."""


class Tokens:
    """The tokens of one process, by grant. Belongs to an event loop. Bounded by `keep`: one for each upstream."""

    def __init__(self, send: Send, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self.clock = clock
        self._held: dict[TokenGrant, _Held] = {}

    async def token(self, upstream: Upstream, grant: TokenGrant) -> bytes:
        """A token in force. Raises `TokenUnavailable`, or `ServerFull` where no connection could be made to ask."""
        held = self._held.get(grant)
        if held is None:
            held = self._held[grant] = _Held(upstream.slug)
        now = self.clock()
        if held.token is not None and now < held.renew_at:
            return held.token
        if held.fetch is None and now >= held.retry_at:
            held.fetch = asyncio.create_task(self._fetch(upstream, grant, held), name=f"relay-token-{upstream.slug}")
        if held.token is not None and now < held.ends_at:
            return held.token
        if held.fetch is not None:
            # Waiting, unlike awaiting, leaves the task alone when this caller goes.
            await asyncio.wait([held.fetch])
        if held.token is None or self.clock() >= held.ends_at:
            raise held.error(held.problem)
        return held.token

    def refused(self, grant: TokenGrant, token: bytes) -> None:
        """The upstream answered 401 to it."""
        held = self._held.get(grant)
        if held is not None and held.token == token and self.clock() >= held.fetched_at + DROP_AFTER_SECONDS:
            held.token = None

    def keep(self, is_current: Callable[[str, TokenGrant], bool]) -> None:
        """Forget the tokens of grants that are no longer any upstream's."""
        for grant, held in list(self._held.items()):
            if not is_current(held.slug, grant) and held.fetch is None:
                del self._held[grant]

    async def aclose(self) -> None:
        fetches = [held.fetch for held in self._held.values() if held.fetch is not None]
        self._held.clear()
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    async def _fetch(self, upstream: Upstream, grant: TokenGrant, held: _Held) -> None:
        began = self.clock()
        held.error = errors.TokenUnavailable
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                token, life = await self._ask(_endpoint(upstream, grant), grant)
        except TimeoutError:
            held.problem = f"the token URL took longer than {FETCH_SECONDS:.0f} s"
        except _Unusable as problem:
            held.problem = str(problem)
        except httpx.HTTPError as problem:
            # What the seam raises has words for the log, without addresses' names or secrets.
            held.problem = f"the token URL could not be asked: {type(problem).__name__} ({problem})"
            if isinstance(problem, faults.OutOfFiles):
                held.error = errors.ServerFull
        except Exception as problem:
            held.problem = f"the token URL could not be asked: {type(problem).__name__}"
        else:
            held.problem = ""
            held.token = token
            held.fetched_at = began
            held.ends_at = began + life
            held.renew_at = held.ends_at - min(RENEW_EARLY_SECONDS, life / 5)
        finally:
            held.fetch = None
        if held.problem:
            held.retry_at = self.clock() + RETRY_SECONDS
            logger.warning("Upstream %s: no access token: %s.", upstream.slug, held.problem)

    async def _ask(self, endpoint: Upstream, grant: TokenGrant) -> tuple[bytes, float]:
        """(token, seconds that it lives)"""
        pairs = [
            (b"host", grant.authority),
            (b"accept", b"application/json"),
            (b"content-type", b"application/x-www-form-urlencoded"),
            (b"content-length", b"%d" % len(grant.body)),
            (b"user-agent", b"relay"),
        ]
        if grant.authorization:
            pairs.append((b"authorization", grant.authorization))
        extensions = {"upstream": endpoint, "target": grant.target}
        body = httpx.ByteStream(grant.body)
        response = await self._send(SeamRequest("POST", pairs, stream=body, extensions=extensions))
        try:
            whole = bytearray()
            async for piece in response.stream:  # type: ignore[union-attr]  # the seam's is asynchronous
                whole += piece
                if len(whole) > MAX_ANSWER_BYTES:
                    raise _Unusable(f"the token URL's answer is longer than {MAX_ANSWER_BYTES} bytes")
        finally:
            response.stream.close()  # type: ignore[union-attr]  # and closes at once
        return _read_answer(response.status_code, bytes(whole))


def _endpoint(upstream: Upstream, grant: TokenGrant) -> Upstream:
    """The token URL as the transport knows upstreams. A slug with a blank is nobody else's."""
    return Upstream(
        slug=f"{upstream.slug} token",
        revision=upstream.revision,
        scheme=grant.scheme,
        host=grant.host,
        port=grant.port,
        authority=grant.authority,
        base_path=b"",
        connect_timeout_seconds=upstream.connect_timeout_seconds,
        head_timeout_seconds=FETCH_SECONDS,
        idle_timeout_seconds=FETCH_SECONDS,
        max_connections=1,
        keepalive_seconds=0,
        allowed_networks=upstream.allowed_networks if grant.networks is None else grant.networks,
        verify_tls=upstream.verify_tls,
        ca_bundle=upstream.ca_bundle,
        outbound_proxy=upstream.outbound_proxy,
    )


def _read_answer(status: int, body: bytes) -> tuple[bytes, float]:
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise _Unusable(f"the token URL answered {status} with what is no JSON object")
    if status != 200:
        code = answer.get("error")
        known = f" ({code})" if isinstance(code, str) and code in _ERROR_CODES else ""
        raise _Unusable(f"the token URL answered {status}{known}")
    token, kind = answer.get("access_token"), answer.get("token_type", "bearer")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token) or len(token) > MAX_TOKEN_BYTES:
        raise _Unusable("the token URL's answer has no access token that could be sent")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise _Unusable("the token URL gives tokens of another type than bearer")
    return token.encode(), _life(answer.get("expires_in"))


def _life(told: object) -> float:
    if told is None:
        return DEFAULT_LIFE_SECONDS
    try:
        seconds = float(told) if isinstance(told, str | int | float) and not isinstance(told, bool) else 0.0
    except (ValueError, OverflowError):
        seconds = 0.0
    if not seconds > 0:
        raise _Unusable("the token URL's answer has no valid expires_in")
    return min(seconds, LONGEST_LIFE_SECONDS)
