"""How long what a name resolved to is kept, who waits for a look-up and who does not, and what is left at the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import dns.asyncresolver
import dns.message
import dns.rcode
import dns.rrset
import pytest
import pytest_asyncio

from relay.upstreams import names as names_room
from relay.upstreams.names import (
    DEFAULT_SECONDS,
    MAX_SECONDS,
    MAX_TTL_QUERIES,
    MIN_SECONDS,
    STALE_SECONDS,
    Names,
    ask_ttl,
)
from tests.behaviour.conftest import until

NAME = "api.example"
NOWHERE = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.fixture(autouse=True, scope="module")
def no_warning_is_lost() -> Iterator[None]:
    """Sockets that nobody closed say so when they are collected: here, not in somebody else's tests."""
    yield
    gc.collect()


class System:
    """The system's resolver and clock as a test scripts them."""

    def __init__(self) -> None:
        self.answer: list[str] | Exception = ["127.0.0.1"]
        self.asked: list[tuple[str, int]] = []
        self.open = asyncio.Event()
        """Look-ups wait for it."""
        self.open.set()
        self.passed = 0.0
        self._time = asyncio.get_running_loop().time

    def time(self) -> float:
        return self._time() + self.passed

    async def getaddrinfo(self, host: str, port: int, **hints: Any) -> list[Any]:
        assert hints == {"type": socket.SOCK_STREAM}
        self.asked.append((host, port))
        answer = self.answer
        await self.open.wait()
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer]


class Dns:
    """DNS as a test scripts it."""

    def __init__(self) -> None:
        self.ttl: float | Exception | None = 60.0
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.open.set()

    async def ask_ttl(self, host: str) -> float | None:
        self.asked.append(host)
        await self.open.wait()
        if isinstance(self.ttl, Exception):
            raise self.ttl
        return self.ttl


@pytest_asyncio.fixture
async def system(monkeypatch: pytest.MonkeyPatch) -> System:
    system = System()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", system.getaddrinfo)
    monkeypatch.setattr(loop, "time", system.time)
    return system


@pytest_asyncio.fixture
async def nameserver() -> Dns:
    return Dns()


@pytest_asyncio.fixture
async def names(nameserver: Dns) -> AsyncIterator[Names]:
    """Closed at the end, and nothing may be left of it then."""
    before = asyncio.all_tasks()
    names = Names(nameserver.ask_ttl)
    yield names
    names.close()
    await settled()
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}


async def settled() -> None:
    """Everything that can happen without waiting has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


async def addresses(names: Names, host: str = NAME, port: int = 443) -> list[str]:
    found = await names.resolve(host, port)
    await settled()
    return [str(info[4][0]) for info in found]


# The answer.


async def test_the_systems_resolver_decides(names: Names, system: System) -> None:
    system.answer = ["127.0.0.2", "127.0.0.1", "127.0.0.2"]
    found = await names.resolve(NAME, 443)
    assert [info[4] for info in found] == [("127.0.0.2", 443), ("127.0.0.1", 443)]
    assert system.asked == [(NAME, 443)]


@pytest.mark.parametrize(
    ("literal", "family", "where"),
    [
        ("192.0.2.1", socket.AF_INET, ("192.0.2.1", 443)),
        ("2001:db8::1", socket.AF_INET6, ("2001:db8::1", 443, 0, 0)),
    ],
)
async def test_an_address_is_asked_of_nobody(
    names: Names, system: System, nameserver: Dns, literal: str, family: int, where: tuple[Any, ...]
) -> None:
    assert await names.resolve(literal, 443) == ((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where),)
    await settled()
    assert (system.asked, nameserver.asked) == ([], [])


async def test_an_interface_is_the_systems_to_tell(names: Names, system: System) -> None:
    await names.resolve("fe80::1%eth0", 443)
    assert system.asked == [("fe80::1%eth0", 443)]


@pytest.mark.parametrize("answer", [NOWHERE, [], UnicodeError("label too long"), RuntimeError("shut down")])
async def test_without_addresses_a_look_up_fails(names: Names, system: System, answer: Any) -> None:
    system.answer = answer
    with pytest.raises(socket.gaierror):
        await names.resolve(NAME, 443)


async def test_a_failure_is_not_kept(names: Names, system: System, nameserver: Dns) -> None:
    system.answer = NOWHERE
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            await names.resolve(NAME, 443)
    system.answer = ["127.0.0.1"]
    assert await addresses(names) == ["127.0.0.1"]
    assert len(system.asked) == 3
    assert nameserver.asked == [NAME]


# How long it is kept.


@pytest.mark.parametrize(
    ("ttl", "kept"),
    [
        (60.0, 60.0),
        (0.0, MIN_SECONDS),
        (86_400.0, MAX_SECONDS),
        (None, DEFAULT_SECONDS),
        (RuntimeError("whatever"), DEFAULT_SECONDS),
    ],
)
async def test_an_answer_is_kept_for_its_ttl_within_bounds(
    names: Names, system: System, nameserver: Dns, ttl: float | Exception | None, kept: float
) -> None:
    nameserver.ttl = ttl
    await addresses(names)
    system.passed += kept - 0.5
    await addresses(names)
    assert len(system.asked) == 1
    system.passed += 0.5
    await addresses(names)
    assert len(system.asked) == 2


async def test_the_question_for_the_ttl_holds_nobody_up(names: Names, system: System, nameserver: Dns) -> None:
    nameserver.open.clear()
    assert await addresses(names) == ["127.0.0.1"]
    assert nameserver.asked == [NAME]
    system.passed += DEFAULT_SECONDS - 1
    nameserver.open.set()
    await settled()
    # It counts from the look-up on.
    system.passed += 60 - DEFAULT_SECONDS
    await addresses(names)
    assert len(system.asked) == 1
    system.passed += 2
    await addresses(names)
    assert len(system.asked) == 2


async def test_few_questions_for_ttls_are_open_at_a_time(names: Names, system: System, nameserver: Dns) -> None:
    nameserver.open.clear()
    for number in range(MAX_TTL_QUERIES + 5):
        assert await addresses(names, f"{number}.example") == ["127.0.0.1"]
    assert len(nameserver.asked) == MAX_TTL_QUERIES
    nameserver.open.set()
    await settled()
    await addresses(names, "one-more.example")
    assert len(nameserver.asked) == MAX_TTL_QUERIES + 1


async def test_an_answer_that_has_run_out_is_used_while_it_is_looked_up_anew(names: Names, system: System) -> None:
    await addresses(names)
    system.passed += 60 + STALE_SECONDS - 1
    system.answer = ["127.0.0.2"]
    system.open.clear()
    for _ in range(3):
        assert await addresses(names) == ["127.0.0.1"]
    assert len(system.asked) == 2
    system.open.set()
    await settled()
    assert await addresses(names) == ["127.0.0.2"]
    assert len(system.asked) == 2


async def test_an_answer_that_ran_out_long_ago_is_waited_for(names: Names, system: System) -> None:
    await addresses(names)
    system.passed += 60 + STALE_SECONDS + 1
    system.answer = ["127.0.0.2"]
    assert await addresses(names) == ["127.0.0.2"]


async def test_a_look_up_that_fails_leaves_the_old_answer_until_it_is_stale(names: Names, system: System) -> None:
    await addresses(names)
    system.passed += 61
    system.answer = NOWHERE
    assert await addresses(names) == ["127.0.0.1"]
    assert len(system.asked) == 2
    # It is not tried again at each request.
    assert await addresses(names) == ["127.0.0.1"]
    assert len(system.asked) == 2
    system.passed += MIN_SECONDS
    assert await addresses(names) == ["127.0.0.1"]
    assert len(system.asked) == 3
    system.passed += STALE_SECONDS
    with pytest.raises(socket.gaierror):
        await names.resolve(NAME, 443)


async def test_names_nobody_asks_for_are_left_alone(names: Names, system: System, nameserver: Dns) -> None:
    await addresses(names)
    system.passed += 10 * MAX_SECONDS
    await settled()
    assert system.asked == [(NAME, 443)]
    assert nameserver.asked == [NAME]
    assert names._tasks == set()


async def test_the_least_recently_used_name_goes_first(
    names: Names, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_room, "MAX_NAMES", 3)
    for host in ("a.example", "b.example", "c.example", "a.example", "d.example"):
        await addresses(names, host)
    assert len(system.asked) == 4
    for host in ("a.example", "c.example", "d.example"):
        await addresses(names, host)
    assert len(system.asked) == 4
    await addresses(names, "b.example")
    assert len(system.asked) == 5


async def test_a_forgotten_name_is_looked_up_anew(names: Names, system: System) -> None:
    await addresses(names)
    names.forget(NAME, 443)
    names.forget("never.example", 443)
    system.answer = ["127.0.0.2"]
    assert await addresses(names) == ["127.0.0.2"]


async def test_a_look_up_from_before_a_name_was_forgotten_is_for_those_who_wait_for_it(
    names: Names, system: System
) -> None:
    system.open.clear()
    early = asyncio.ensure_future(names.resolve(NAME, 443))
    await settled()
    names.forget(NAME, 443)
    system.answer = ["127.0.0.2"]
    late = asyncio.ensure_future(names.resolve(NAME, 443))
    await settled()
    system.open.set()
    assert [(await waiting)[0][4][0] for waiting in (early, late)] == ["127.0.0.1", "127.0.0.2"]
    assert await addresses(names) == ["127.0.0.2"]
    assert len(system.asked) == 2


async def test_an_answer_that_led_nowhere_is_not_kept_for_long(names: Names, system: System) -> None:
    await addresses(names)
    names.doubt(NAME, 443)
    names.doubt("never.example", 443)
    await addresses(names)
    assert len(system.asked) == 1
    system.passed += DEFAULT_SECONDS
    system.answer = ["127.0.0.2"]
    names.doubt(NAME, 443)
    assert await addresses(names) == ["127.0.0.2"]


# Who waits.


async def test_callers_of_one_name_share_a_look_up(names: Names, system: System) -> None:
    system.open.clear()
    callers = [asyncio.ensure_future(names.resolve(NAME, 443)) for _ in range(10)]
    await settled()
    assert system.asked == [(NAME, 443)]
    system.open.set()
    assert len(set(await asyncio.gather(*callers))) == 1


async def test_callers_who_share_a_failure_get_one_each(names: Names, system: System) -> None:
    system.answer = NOWHERE
    problems = await asyncio.gather(*(names.resolve(NAME, 443) for _ in range(3)), return_exceptions=True)
    assert [type(problem) for problem in problems] == [socket.gaierror] * 3
    assert [str(problem) for problem in problems] == [str(NOWHERE)] * 3
    assert len({id(problem) for problem in problems}) == 3
    assert len(system.asked) == 1


@pytest.mark.parametrize("outcome", [["127.0.0.1"], NOWHERE])
async def test_a_caller_who_leaves_leaves_alone(names: Names, system: System, outcome: Any) -> None:
    system.answer = outcome
    system.open.clear()
    leaving, staying = (asyncio.ensure_future(names.resolve(NAME, 443)) for _ in range(2))
    await settled()
    leaving.cancel()
    await settled()
    assert leaving.cancelled()
    assert not staying.done()
    system.open.set()
    await asyncio.wait([staying])
    assert (staying.exception() is None) == (outcome is not NOWHERE)


async def test_a_look_up_that_everybody_left_is_for_the_next_one(names: Names, system: System) -> None:
    system.open.clear()
    leaving = asyncio.ensure_future(names.resolve(NAME, 443))
    await settled()
    leaving.cancel()
    system.open.set()
    await settled()
    assert await addresses(names) == ["127.0.0.1"]
    assert len(system.asked) == 1


@pytest.mark.filterwarnings("error")
async def test_a_failure_nobody_waited_for_is_not_complained_about(
    names: Names, system: System, caplog: pytest.LogCaptureFixture
) -> None:
    system.answer = NOWHERE
    system.open.clear()
    leaving = asyncio.ensure_future(names.resolve(NAME, 443))
    await settled()
    leaving.cancel()
    system.open.set()
    await settled()
    del leaving
    gc.collect()
    assert caplog.records == []


# The end.


async def test_closing_ends_what_is_under_way(names: Names, system: System, nameserver: Dns) -> None:
    nameserver.open.clear()
    await addresses(names, "known.example")
    system.open.clear()
    waiting = asyncio.ensure_future(names.resolve(NAME, 443))
    forgotten = asyncio.ensure_future(names.resolve("forgotten.example", 443))
    await settled()
    names.forget("forgotten.example", 443)
    names.close()
    await settled()
    assert names._tasks == set()
    for caller in (waiting, forgotten):
        with pytest.raises(socket.gaierror):
            await caller


async def test_closing_at_once_leaves_no_caller_waiting(names: Names, system: System) -> None:
    waiting = asyncio.ensure_future(names.resolve(NAME, 443))
    await asyncio.sleep(0)
    names.close()
    with pytest.raises(socket.gaierror):
        await waiting


async def test_nothing_is_looked_up_after_the_end(names: Names, system: System) -> None:
    await addresses(names)
    names.close()
    names.close()
    with pytest.raises(socket.gaierror):
        await names.resolve(NAME, 443)
    assert len(system.asked) == 1


# DNS itself.


class Nameserver(asyncio.DatagramProtocol):
    """A DNS server for the records of a test. Without any for a name, there is no such name; with none, it is mute."""

    def __init__(self, *records: str) -> None:
        fields = (record.split() for record in records)
        self.records = [dns.rrset.from_text(name, ttl, "IN", kind, data) for name, ttl, kind, data in fields]
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, peer: Any) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        self.asked.append(f"{question.name} {dns.rdatatype.to_text(question.rdtype)}")
        if not self.records:
            return
        answer = dns.message.make_response(query)
        name, found = question.name, True
        while found:
            found = False
            for record in self.records:
                if record.name == name and record.rdtype in (question.rdtype, dns.rdatatype.CNAME):
                    answer.answer.append(record)
                    if record.rdtype == dns.rdatatype.CNAME:
                        name, found = record[0].target, True
        if not any(record.name == question.name for record in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(answer.to_wire(), peer)


@contextlib.asynccontextmanager
async def resolving(*records: str, search: str = "corp.example") -> AsyncIterator[tuple[Nameserver, Any]]:
    """A server, and `ask_ttl` with a resolver that asks it."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: Nameserver(*records), ("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = transport.get_extra_info("sockname")[1]
    resolver.search = [dns.name.from_text(search)]
    try:
        yield server, partial(ask_ttl, resolver=resolver)
    finally:
        transport.close()
        await asyncio.sleep(0)


ADDRESS = "api.example. 60 A 192.0.2.1"


@pytest.mark.parametrize(
    ("records", "ttl"),
    [
        ([ADDRESS], 60),
        ([ADDRESS, "api.example. 30 AAAA 2001:db8::1"], 30),
        (["api.example. 20 AAAA 2001:db8::1"], 20),
        (["api.example. 300 CNAME edge.example.", "edge.example. 7 CNAME x.example.", "x.example. 60 A 192.0.2.1"], 7),
        (["api.example. 5 CNAME edge.example.", "edge.example. 60 A 192.0.2.1"], 5),
        (["api.example.corp.example. 40 A 192.0.2.1"], 40),
        (["api.example. 60 TXT nothing"], None),
        (["other.example. 60 A 192.0.2.1"], None),
        (["api.example. 60 CNAME nowhere.example."], None),
    ],
)
async def test_the_smallest_ttl_on_the_way_counts(records: list[str], ttl: float | None) -> None:
    async with resolving(*records) as (_, ask):
        assert await ask(NAME) == ttl


async def test_a_name_of_one_label_is_looked_for_in_the_search_domains() -> None:
    async with resolving("backend.corp.example. 15 A 192.0.2.1") as (server, ask):
        assert await ask("backend") == 15
    assert server.asked[0] == "backend.corp.example. A"


@pytest.mark.parametrize("host", ["a..b", "x" * 64, ".", ""])
async def test_a_name_dns_cannot_have_has_no_ttl(host: str) -> None:
    async with resolving(ADDRESS) as (_, ask):
        assert await ask(host) is None


async def test_a_server_that_does_not_answer_tells_no_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_room, "TTL_QUERY_SECONDS", 0.05)
    async with resolving() as (server, ask):
        assert await ask(NAME) is None
    assert server.asked
    resolver = dns.asyncresolver.Resolver(configure=False)
    assert await ask_ttl(NAME, resolver) is None
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = 1
    assert await ask_ttl(NAME, resolver) is None


async def test_a_system_without_nameservers_tells_no_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", no_configuration)
    assert await ask_ttl(NAME) is None


def no_configuration(*_: object) -> None:
    raise dns.resolver.NoResolverConfiguration


async def test_names_keep_what_dns_says(system: System) -> None:
    async with resolving("api.example. 120 A 192.0.2.99") as (server, ask):
        names = Names(ask)
        # The address is the system's: DNS is asked for the time alone.
        assert await addresses(names) == ["127.0.0.1"]
        await until(lambda: not names._tasks)
        system.passed += 119
        assert await addresses(names) == ["127.0.0.1"]
        assert len(system.asked) == 1
        system.passed += 2
        await addresses(names)
        assert len(system.asked) == 2
        assert server.asked[:2] == ["api.example. A", "api.example. AAAA"]
        names.close()
        await settled()


@pytest.fixture
def descriptors() -> Callable[[], int]:
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        pytest.skip("descriptors are counted in /proc")
    return lambda: len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.parametrize("mute", [False, True])
async def test_closing_at_any_moment_leaves_no_socket_of_a_question(
    system: System, descriptors: Callable[[], int], mute: bool
) -> None:
    async with resolving(*([] if mute else [ADDRESS])) as (_, ask):
        before = descriptors()
        opened: set[int] = set()
        for turns in range(40):
            names = Names(ask)
            await names.resolve(NAME, 443)
            for _ in range(turns):
                await asyncio.sleep(0)
            opened.add(descriptors())
            names.close()
            await settled()
            assert names._tasks == set()
            assert descriptors() == before
    assert max(opened) > before


# What is known without waiting.


async def test_what_is_known_is_told_until_it_runs_out(names: Names, system: System, nameserver: Dns) -> None:
    now = system.time()
    assert (await addresses(names), len(system.asked)) == (["127.0.0.1"], 1)
    found, runs_out = names.known(NAME, 443)
    assert found is not None
    assert [info[4] for info in found] == [("127.0.0.1", 443)]
    assert now + 60.0 <= runs_out <= system.time() + 60.0


async def test_what_has_run_out_is_looked_up_beside_it(names: Names, system: System) -> None:
    await addresses(names)
    system.passed += 61.0
    system.answer = ["127.0.0.2"]
    found, again = names.known(NAME, 443)
    assert found is None
    assert again == pytest.approx(system.time() + MIN_SECONDS, abs=0.1)
    names.known(NAME, 443)
    await settled()
    assert len(system.asked) == 2, "both asked for the same"
    found, _ = names.known(NAME, 443)
    assert found is not None
    assert [info[4][0] for info in found] == ["127.0.0.2"]


async def test_a_look_up_that_fails_is_not_begun_again_at_once(names: Names, system: System) -> None:
    await addresses(names)
    system.passed += 61.0
    system.answer = NOWHERE
    for _ in range(3):
        assert names.known(NAME, 443)[0] is None
        await settled()
    assert len(system.asked) == 2


async def test_nobody_is_asked_about_an_address(names: Names, system: System) -> None:
    assert names.known("127.0.0.1", 443) == (None, math.inf)
    assert system.asked == []


async def test_of_what_was_closed_nothing_is_known(names: Names, system: System) -> None:
    names.close()
    assert names.known(NAME, 443)[0] is None
    assert system.asked == []
