"""Who calls: what a stranger says of itself never arrives as the relay's word, and nominations take nothing away.

The lines that are sent are told in tests/behaviour/test_fidelity_headers.py and tests/rules/test_forwarding.py.
"""

from __future__ import annotations

import pytest
from pytest_django.fixtures import Settings

from relay.catalog.snapshot import HeaderChanges
from relay.rules.headers import FORWARDING, compile_changes
from tests.attacks.conftest import Logged, Relayed
from tests.caller import Caller
from tests.origin import Origin

LIES = [
    b"127.0.0.1",
    b"10.0.0.1, 127.0.0.1",
    b"unknown",
    b"_hidden",
    b'for="[::1]:80";proto=https;host=localhost',
    b'for=1.1.1.1, for="_x\\",for=2.2.2.2"',
    b"https",
    b"admin.example",
    b"/../admin",
    b"",
]


def as_servers_see(name: bytes) -> bytes:
    """CGI, WSGI and PHP tell hyphens and underscores apart no more."""
    return name.lower().replace(b"_", b"-")


@pytest.mark.parametrize("shape", ["plain", "upper", "underscores", "mixed", "twice"])
async def test_a_stranger_cannot_say_who_it_is(
    origin: Origin, relayed: Relayed, caller: Caller, logged: Logged, shape: str
) -> None:
    relayed()
    for lie in LIES:
        await caller.get(b"/relay/o/a", lies(lie, shape))
        request = await origin.next_request()
        said = {name: value for name, value in request.headers if as_servers_see(name) in FORWARDING}
        authority = f"127.0.0.1:{caller.port}".encode()
        assert said == {
            b"forwarded": b'for=127.0.0.1;host="%b";proto=http' % authority,
            b"x-forwarded-for": b"127.0.0.1",
            b"x-forwarded-proto": b"http",
            b"x-forwarded-host": authority,
            b"x-forwarded-prefix": b"/relay/o",
        }
        assert len([name for name, _ in request.headers if as_servers_see(name) in FORWARDING]) == len(said)
        line = await logged.next()
        assert line["client"] == "127.0.0.1"
        assert request.values(b"x-request-id") == [line["request_id"].encode()] != [lie]


def lies(lie: bytes, shape: str) -> list[tuple[bytes, bytes]]:
    """All the fields that tell of a caller, with `lie` in them."""
    sent = []
    for name in sorted(FORWARDING | {b"x-request-id"}):
        if shape == "upper":
            sent.append((name.upper(), lie))
        elif shape == "underscores":
            sent.append((name.replace(b"-", b"_"), lie) if b"-" in name else (b"Forwarded_", lie))
        elif shape == "mixed":
            sent.append((name.replace(b"-", b"_", 1) if b"-" in name else b"_Forwarded", lie))
        else:
            sent += [(name, lie)] * (2 if shape == "twice" else 1)
    return sent


@pytest.mark.parametrize("network", ["10.0.0.0/8", "127.0.0.2/32", "::1/128"])
async def test_other_networks_being_trusted_does_not_help(
    origin: Origin, relayed: Relayed, caller: Caller, settings: Settings, network: str
) -> None:
    settings.RELAY_TRUSTED_PROXIES = (network,)
    relayed()
    await caller.get(b"/relay/o/a", [(b"X-Forwarded-For", b"10.0.0.1"), (b"Forwarded", b"for=10.0.0.1")])
    assert origin.requests[0].values(b"x-forwarded-for") == [b"127.0.0.1"]


@pytest.mark.parametrize(
    ("line", "client"),
    [
        (b"1.1.1.1, 2.2.2.2", "2.2.2.2"),
        (b"1.1.1.1, not-an-address", "127.0.0.1"),
        (b"1.1.1.1, 2.2.2.2, 127.0.0.1", "2.2.2.2"),
        (b"1.1.1.1\x2c", "127.0.0.1"),
        (b"evil.example", "127.0.0.1"),
        (b"1.1.1.1:443", "1.1.1.1"),
        (b"<script>", "127.0.0.1"),
        (b"0x7f.1", "127.0.0.1"),
        (b"2130706433", "127.0.0.1"),
    ],
)
async def test_behind_a_trusted_proxy_the_nearest_address_counts(
    origin: Origin, relayed: Relayed, caller: Caller, settings: Settings, logged: Logged, line: bytes, client: str
) -> None:
    settings.RELAY_TRUSTED_PROXIES = ("127.0.0.1/32",)
    relayed()
    await caller.get(b"/relay/o/a", [(b"X-Forwarded-For", line)])
    assert (await logged.next())["client"] == client


# Hop by hop: `Connection` names fields away, so what the relay adds has to come after.

NOMINATIONS = [
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"via",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-request-id",
    b"authorization",
    b"x-secret",
    b"cookie",
    b"relay-key",
    b"close",
    b"connection",
    b",,, ,",
    b'"host", (via), @',
    b"Host\t,\tVIA",
]


@pytest.mark.parametrize("nomination", NOMINATIONS)
async def test_no_nomination_takes_away_what_the_relay_says_or_injects(
    origin: Origin, relayed: Relayed, caller: Caller, nomination: bytes
) -> None:
    injected = compile_changes([("set", "authorization", "Bearer ours"), ("set", "x-secret", "s3cret")])
    relayed(request_changes=HeaderChanges(*injected))
    sent = [(b"Connection", nomination)] * 2 + [
        (b"Authorization", b"Bearer theirs"),
        (b"X-Secret", b"theirs"),
        (b"Relay-Key", b"rk_theirs"),
    ]
    await caller.get(b"/relay/o/a", sent, method=b"POST", body=b"abc")
    exchange = await origin.next_exchange()
    request = exchange.head
    assert request.values(b"host") == [origin.authority.encode()]
    assert request.values(b"content-length") == [b"3"]
    assert request.values(b"authorization") == [b"Bearer ours"]
    assert request.values(b"x-secret") == [b"s3cret"]
    assert request.values(b"x-forwarded-for") == [b"127.0.0.1"]
    assert len(request.values(b"via")) == len(request.values(b"forwarded")) == 1
    assert len(request.values(b"x-request-id")) == len(request.values(b"x-forwarded-host")) == 1
    assert request.values(b"relay-key") == []


async def test_a_body_keeps_its_framing_when_that_is_nominated(
    origin: Origin, relayed: Relayed, caller: Caller
) -> None:
    relayed()
    await caller.get(
        b"/relay/o/a", [(b"Connection", b"transfer-encoding, te, trailer")], method=b"POST", body=[b"ab", b"c"]
    )
    (request,) = origin.requests
    assert request.values(b"transfer-encoding") == [b"chunked"]
    assert (request.body_length, request.body_is_whole) == (3, True)
