"""SSRF: what an admin can write, what a caller can send, and what an upstream can answer, to make the relay connect.

`inside` stands for what nobody may reach through the relay. The law is the same everywhere: it never sees a connection.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from relay.rules.urls import parse_base_url
from tests.attacks.conftest import Relayed, answer_to, error_type
from tests.caller import Caller
from tests.origin import Origin, reply
from tests.serving_ground import Ground


@pytest_asyncio.fixture
async def inside() -> AsyncIterator[Origin]:
    async with Origin() as inside:
        yield inside
        assert inside.connections_made == 0


# Base URLs. Each either cannot be saved, or leads nowhere.

LOOPBACK_SPELLINGS = [
    "http://127.0.0.1:{port}",
    "http://127.1:{port}",
    "http://127.0.1:{port}",
    "http://0:{port}",
    "http://0.0.0.0:{port}",
    "http://2130706433:{port}",
    "http://017700000001:{port}",
    "http://0177.0.0.1:{port}",
    "http://0x7f000001:{port}",
    "http://0x7f.0.0.1:{port}",
    "http://0X7F.1:{port}",
    "http://127.0.0.1.:{port}",
    "http://127.000.000.001:{port}",
    "http://%31%32%37.0.0.1:{port}",
    "http://127\u30020\u30020\u30021:{port}",
    "http://\uff11\uff12\uff17.0.0.1:{port}",
    "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460:{port}",
    "http://localhost:{port}",
    "http://LOCALHOST:{port}",
    "http://localhost.:{port}",
    "http://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3:{port}",
    "http://loc\u00adalhost:{port}",
    "http://localhost\u200b:{port}",
    "http://[::1]:{port}",
    "http://[0:0:0:0:0:0:0:1]:{port}",
    "http://[::]:{port}",
    "http://[::ffff:127.0.0.1]:{port}",
    "http://[::ffff:7f00:1]:{port}",
    "http://[::127.0.0.1]:{port}",
    "http://[::1%25lo]:{port}",
    "http://[::1%lo]:{port}",
    "http://[fe80::1%25eth0]:{port}",
    "http://[64:ff9b::127.0.0.1]:{port}",
    "http://[64:ff9b:1::127.0.0.1]:{port}",
    "http://[2002:7f00:1::]:{port}",
    "http://[2001:0:7f00:1::80ff:fffe]:{port}",
    "http://[2606:4700::5efe:127.0.0.1]:{port}",
    "http://public.example@127.0.0.1:{port}",
    "http://public.example:80@127.0.0.1:{port}",
    "http://127.0.0.1:{port}@public.example",
    "http://public.example\\@127.0.0.1:{port}",
    "http://public.example#@127.0.0.1:{port}",
    "http://public.example?@127.0.0.1:{port}",
    "http:///127.0.0.1:{port}",
    "http:127.0.0.1:{port}",
    "http:\\\\127.0.0.1:{port}",
    "//127.0.0.1:{port}",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/_GET",
    "unix:///run/docker.sock",
    "http+unix://%2frun%2fdocker.sock",
    "http://127.0.0.1:{port}/\r\nHost: other",
    "http://127.0.0.1\t:{port}",
]


@pytest.mark.parametrize("text", LOOPBACK_SPELLINGS)
async def test_no_spelling_of_a_base_url_leads_inside(
    relayed: Relayed, caller: Caller, inside: Origin, text: str
) -> None:
    try:
        base = parse_base_url(text.format(port=inside.port))
    except ValueError:
        return
    relayed(host=base.host, port=base.port, allowed_networks=())
    answer = await caller.get(b"/relay/o/a")
    assert (answer.status, error_type(answer)) in [(502, "egress-refused"), (502, "dns")]


METADATA = [
    "169.254.169.254",
    "169.254.170.2",
    "168.63.129.16",
    "192.0.0.192",
    "100.100.100.200",
    "fd00:ec2::254",
    "fd20:ce::254",
    "::ffff:169.254.169.254",
    "::169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::169.254.169.254",
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:5601:5601",
    "2606:4700::200:5efe:a9fe:a9fe",
    "fe80::a9fe:a9fe",
]


@pytest.mark.parametrize("address", METADATA)
async def test_metadata_services_of_clouds_are_refused_until_they_are_opened(
    relayed: Relayed, caller: Caller, address: str
) -> None:
    relayed(host=address, port=80, allowed_networks=())
    answer = await caller.get(b"/relay/o/latest/meta-data/")
    assert (answer.status, error_type(answer)) == (502, "egress-refused")


# What callers can send.

TARGETS = [
    b"http://{inside}/a",
    b"//{inside}/a",
    b"/\\{inside}/a",
    b"@{inside}/a",
    b"{inside}/a",
    b"/relay/http://{inside}/a",
    b"/relay/{inside}/a",
    b"/relay/o@{inside}/a",
    b"/relay/o:80@{inside}/a",
    b"/relay/o%40{inside}/a",
    b"/relay/o.{inside}/a",
    b"/relay/o#@{inside}/a",
    b"/relay//{inside}/a",
    b"/relay/o/%0e@{inside}/a",
]
LED_TO_THE_UPSTREAM = [
    (b"/relay/o/http://{inside}/a", b"/http://{inside}/a"),
    (b"/relay/o//{inside}/a", b"//{inside}/a"),
    (b"/relay/o/@{inside}/a", b"/@{inside}/a"),
    (b"/relay/o/:80@{inside}/a", b"/:80@{inside}/a"),
    (b"/relay/o?url=http://{inside}/a", b"/?url=http://{inside}/a"),
    (b"http://localhost/relay/o/a@{inside}", b"/a@{inside}"),
]
FIELDS = [
    (b"Host", b"{inside}"),
    (b"X-Forwarded-Host", b"{inside}"),
    (b"X-Forwarded-Server", b"{inside}"),
    (b"X-Host", b"{inside}"),
    (b"X-HTTP-Host-Override", b"{inside}"),
    (b"Forwarded", b"host={inside}"),
    (b"X-Original-URL", b"http://{inside}/a"),
    (b"X-Rewrite-URL", b"http://{inside}/a"),
    (b"X-Forwarded-Prefix", b"http://{inside}"),
    (b"Destination", b"http://{inside}/a"),
    (b"Referer", b"http://{inside}/a"),
    (b"Content-Location", b"http://{inside}/a"),
]


def request_for(target: bytes, inside: Origin) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % target.replace(b"{inside}", inside.authority.encode())


@pytest.mark.parametrize("target", TARGETS)
async def test_no_target_names_a_place_to_go(
    origin: Origin, relayed: Relayed, ground: Ground, inside: Origin, target: bytes
) -> None:
    relayed(caller_host=True)
    assert (await answer_to(ground, request_for(target, inside))).status in (400, 404)
    assert origin.connections_made == 0


@pytest.mark.parametrize(("target", "arrived"), LED_TO_THE_UPSTREAM)
async def test_an_address_within_a_target_is_the_upstreams_to_read(
    origin: Origin, relayed: Relayed, ground: Ground, inside: Origin, target: bytes, arrived: bytes
) -> None:
    relayed(caller_host=True)
    await answer_to(ground, request_for(target, inside))
    (request,) = origin.requests
    assert request.target == arrived.replace(b"{inside}", inside.authority.encode())


@pytest.mark.parametrize(("name", "value"), FIELDS, ids=lambda piece: piece.decode())
@pytest.mark.parametrize("caller_host", [False, True])
async def test_no_field_leads_past_the_upstream(
    origin: Origin, relayed: Relayed, caller: Caller, inside: Origin, name: bytes, value: bytes, caller_host: bool
) -> None:
    relayed(caller_host=caller_host)
    await caller.get(b"/relay/o/a", [(name, value.replace(b"{inside}", inside.authority.encode()))])


@pytest.mark.parametrize("method", [b"CONNECT", b"TRACE", b"connect"])
async def test_no_tunnel_is_opened(
    origin: Origin, relayed: Relayed, ground: Ground, inside: Origin, method: bytes
) -> None:
    relayed()
    to = inside.authority.encode()
    for target in (to, b"/relay/o/a", b"http://" + to):
        answer = await answer_to(ground, b"%b %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (method, target, to), to=method)
        assert 400 <= answer.status < 500


# What upstreams can answer.


@pytest.mark.parametrize("status", [201, 300, 301, 302, 303, 305, 307, 308, 401, 503])
async def test_no_answer_leads_anywhere(
    origin: Origin, relayed: Relayed, caller: Caller, inside: Origin, status: int
) -> None:
    there = inside.url.encode()
    relayed()
    fields = [
        (b"Location", there + b"/latest/meta-data/"),
        (b"Content-Location", there + b"/"),
        (b"Refresh", b"0; url=" + there),
        (b"Link", b"<%b>; rel=preload" % there),
        (b"Alt-Svc", b'h2="%b"' % inside.authority.encode()),
        (b"Retry-After", b"0"),
    ]
    origin.on(b"/a", reply(status, fields))
    answer = await caller.get(b"/relay/o/a")
    assert (answer.status, answer.values(b"location")) == (status, [there + b"/latest/meta-data/"])
    assert len(origin.requests) == 1


# Rebinding. That one answer of DNS is judged and used is told in tests/behaviour/test_egress.py.


@pytest.fixture
def flipping(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The system's resolver, as an attacker's DNS has it: another answer at each look-up."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *rest: int, **named: int) -> object:
        if host != "rebind.example":
            return real(host, port, *rest, **named)
        asked.append(host)
        address = "10.255.255.1" if len(asked) % 2 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked
    assert asked


async def test_a_name_that_flips_never_leads_inside(
    relayed: Relayed, caller: Caller, inside: Origin, flipping: list[str]
) -> None:
    for revision in range(1, 7):
        # Another revision has a pool and DNS answers of its own.
        relayed(host="rebind.example", port=inside.port, allowed_networks=(), revision=revision)
        answer = await caller.get(b"/relay/o/a")
        assert (answer.status, error_type(answer)) == (502, "egress-refused")
