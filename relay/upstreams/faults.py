"""What going out can raise beyond httpx's own errors: finer kinds of `httpx.ConnectError` and `httpx.ProxyError`.

Callers of the seam may catch httpx's classes alone; `relay.upstreams.exchange` tells these apart. Texts name verdicts
and reasons for the log. None holds a secret.
"""

from __future__ import annotations

import httpx


class AddressRefused(httpx.ConnectError):
    """The egress guard refused an address the name resolved to, or the literal itself."""


class NameUnresolved(httpx.ConnectError):
    """DNS gave no address."""


class PortClosed(httpx.ConnectError):
    """The host answered that nothing listens there (ECONNREFUSED)."""


class HandshakeFailed(httpx.ConnectError):
    """TLS could not be agreed on."""


class CertificateUntrusted(HandshakeFailed):
    """The certificate does not verify, or is another host's."""


class HungUp(httpx.RemoteProtocolError):
    """The upstream closed or reset the connection before its message was whole."""


class HeadTimeout(httpx.ReadTimeout):
    """The answer's head did not come in time."""


class CallerStalled(httpx.WriteTimeout):
    """The caller stopped sending its request body."""
