"""How many unknown keys one address may show: a token bucket for each, in a table with a bound. The clock is passed in.

Guessing a key is hopeless whatever the rate. This keeps those who try, or whose deployment has an old key, from filling
the log with refusals and the process with work. It only ever counts what was refused anyway, so neighbours behind one
address lose nothing by it.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address

IPV6_PREFIX_BITS = 64
"""What one customer is given at least: addresses in it are one caller's to choose from."""


class Throttle:
    """`burst` at once from each address, and `per_second` more as time passes.

    The addresses last seen are remembered, `max_addresses` of them; one that is forgotten begins anew.
    """

    def __init__(self, *, burst: int, per_second: float, max_addresses: int) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._max_addresses = max_addresses
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Tokens that were left, and when; the address longest unseen comes first."""

    def wait_seconds(self, address: str, now: float) -> float:
        """Count one more from this address. 0 while it may; else how long until it may again.

        `now` in seconds of any clock that never goes back.
        """
        bucket = bucket_of(address)
        tokens, then = self._buckets.pop(bucket, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._per_second)
        wait = 0.0
        if tokens >= 1:
            tokens -= 1
        else:
            wait = (1 - tokens) / self._per_second
        self._buckets[bucket] = (tokens, now)
        if len(self._buckets) > self._max_addresses:
            self._buckets.popitem(last=False)
        return wait

    def __len__(self) -> int:
        return len(self._buckets)


def bucket_of(address: str) -> str:
    """Whose address this is, as far as one can tell: IPv6 counts by its network, mapped IPv4 as IPv4."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address  # a peer without one, behind a Unix socket
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{int(parsed) >> (128 - IPV6_PREFIX_BITS):x}/{IPV6_PREFIX_BITS}"
