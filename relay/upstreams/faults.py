"""What going out can raise beyond httpx's own errors: finer kinds of `httpx.ConnectError` and `httpx.ProxyError`.

Callers of the seam may catch httpx's classes alone; `relay.upstreams.exchange` tells these apart. Texts name verdicts
and reasons for the log. None holds a secret.

Each carries a `Progress`: how far the exchange had come, which decides whether the request may be sent anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import httpx

Phase = Literal["pool", "dns", "egress", "connect", "proxy", "tls", "request", "head", "body"]
Phases = dict[str, float]
"""How many seconds an exchange spent in each phase that it came through."""
Problem = TypeVar("Problem", bound=httpx.TransportError)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an exchange was when it failed."""

    phase: Phase
    request_sent: bool = False
    """Any byte of the request had left: the upstream may have acted on it."""
    response_begun: bool = False
    """Any byte of an answer had come."""


def placed(problem: Problem, progress: Progress) -> Problem:
    """`problem`, which now says how far the exchange had come."""
    problem.progress = progress  # type: ignore[attr-defined]
    return problem


def progress_of(problem: BaseException) -> Progress | None:
    """What `placed` noted."""
    progress: Progress | None = getattr(problem, "progress", None)
    return progress


class AddressRefused(httpx.ConnectError):
    """The egress guard refused an address the name resolved to, or the literal itself."""


class LedBack(httpx.ConnectError):
    """The address is one that the relay itself listens on."""


class NameUnresolved(httpx.ConnectError):
    """DNS gave no address."""


class PortClosed(httpx.ConnectError):
    """The host answered that nothing listens there (ECONNREFUSED)."""


class OutOfFiles(httpx.ConnectError):
    """The relay has no file descriptor left for another connection. Never the upstream's fault."""


class HandshakeFailed(httpx.ConnectError):
    """TLS could not be agreed on."""


class CertificateUntrusted(HandshakeFailed):
    """The certificate does not verify, or is another host's."""


class HungUp(httpx.RemoteProtocolError):
    """The upstream closed or reset the connection before its message was whole."""


class ConnectionsClosed(HungUp):
    """The relay closed it itself: it stops."""


class HeadTimeout(httpx.ReadTimeout):
    """The answer's head did not come in time."""


class CallerStalled(httpx.WriteTimeout):
    """The caller stopped sending its request body."""


class UploadTooSlow(CallerStalled):
    """The caller sends its request body below the rate that the upstream asks for."""


SAYS_NOTHING = (CallerStalled, ConnectionsClosed, OutOfFiles, httpx.PoolTimeout, httpx.LocalProtocolError)
"""What says nothing about the target: its cause is the caller, or the relay."""
