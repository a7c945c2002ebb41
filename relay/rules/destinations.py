"""Where an upstream's secrets would go, in words: what a credential is confirmed for, and stays bound to.

All of it decides who can read a secret on its way. What only shapes requests (the base path, time-outs, header rules)
is left out. Never holds a secret itself: of a proxy's URL the user and password are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from relay.rules.urls import DEFAULT_PORTS, join_address, parse_address, parse_base_url, parse_proxy_url


def destination_of(
    *,
    base_url: str,
    addresses: Iterable[str],
    outbound_proxy: str,
    verify_tls: bool,
    ca_bundle: str,
    caller_host: bool,
    target_host: bool,
    token_url: str = "",
) -> str:
    """One line for each thing that counts. `addresses` are those of the upstream's targets, switched on or off: none,
    and the base URL's counts. Raises ValueError for URLs that cannot be read."""
    base = parse_base_url(base_url)
    lines = [_origin(base.scheme, base.host, base.port)]
    lines += [f"at {place}" for place in sorted({parse_address(address).text for address in addresses})]
    if outbound_proxy:
        proxy = parse_proxy_url(outbound_proxy)
        lines.append(f"through the proxy {_origin(proxy.scheme, proxy.host, proxy.port)}")
    if not verify_tls:
        lines.append("TLS is not verified")
    elif ca_bundle.strip():
        lines.append(f"trusting the CA bundle {hashlib.sha256(ca_bundle.strip().encode()).hexdigest()[:32]}")
    if caller_host:
        lines.append("with the caller's host name")
    if target_host:
        lines.append("with each target's own host name")
    if token_url:
        lines.append(f"token from {parse_base_url(token_url).text}")
    return "\n".join(lines)


def _origin(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://{join_address(host, None if port == DEFAULT_PORTS[scheme] else port)}"
