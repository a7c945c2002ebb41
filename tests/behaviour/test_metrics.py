"""`/metrics` tells what went through, of all workers together, to the networks it is for."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.observing import metrics as metrics_room
from relay.observing.access_log import Entry
from tests.behaviour.conftest import Relayed
from tests.caller import Caller
from tests.origin import Gate, Origin, drip, hang, reply
from tests.serving_ground import Ground, ServedProcess

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def told(caller: Caller, headers: list[tuple[bytes, bytes]] | None = None) -> Samples:
    answer = await caller.get(b"/metrics", headers or [])
    assert answer.status == 200
    assert answer.values(b"content-type") == [b"text/plain; version=0.0.4; charset=utf-8"]
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.data.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture(autouse=True)
def without_a_folder(settings: Any) -> None:
    settings.RELAY_METRICS_FOLDER = None


async def test_each_end_of_an_exchange_is_counted_by_its_outcome(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    origin.on(b"/x", reply(body=b"12345"))
    relayed()
    relayed("slow", head_timeout_seconds=0.05)
    origin.on(b"/hang", hang())
    for _ in range(3):
        assert (await caller.get(b"/relay/o/x")).status == 200
    assert (await caller.get(b"/relay/o/x", method=b"POST", body=b"abc")).status == 200
    assert (await caller.get(b"/relay/slow/hang")).status == 504
    assert (await caller.get(b"/relay/nobody/x")).status == 404
    samples = await told(caller)
    ended = "relay_exchanges_total"
    assert value(samples, ended, upstream="o", outcome="ok", status_class="2xx") == 4
    assert value(samples, ended, upstream="slow", outcome="head-timeout", status_class="5xx") == 1
    assert value(samples, ended, upstream="", outcome="upstream-unknown", status_class="4xx") == 1
    assert value(samples, "relay_response_body_bytes_total", upstream="o") == 20
    assert value(samples, "relay_request_body_bytes_total", upstream="o") == 3
    assert value(samples, "relay_exchange_seconds_count", upstream="o") == 4
    assert value(samples, "relay_response_head_seconds_count", upstream="o") == 4
    assert value(samples, "relay_response_head_seconds_count", upstream="slow") == 0


async def test_what_was_counted_before_a_worker_began_is_not_told() -> None:
    metrics = metrics_room.Metrics()
    metrics.ended(Entry("GET", b"1", 1.0, slug="o", status=200), 2.0)
    metrics.open(None)
    try:
        assert "relay_exchanges_total{" not in await metrics.text()
    finally:
        await metrics.close()


async def test_what_is_under_way_and_connected_shows(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller
) -> None:
    gate = Gate()
    origin.on(b"/x", drip([b"one"], gate))
    relayed()
    async with Caller(ground.port) as streaming:
        await streaming.send(b"GET /relay/o/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await streaming.read_head()
        samples = await told(caller)
        assert value(samples, "relay_exchanges_in_flight", upstream="o") == 1
        assert value(samples, "relay_upstream_connections", upstream="o", state="busy") == 1
        gate.open(2)
        await streaming.read_body()
    samples = await told(caller)
    assert value(samples, "relay_exchanges_in_flight", upstream="o") == 0
    assert value(samples, "relay_upstream_connections", upstream="o", state="idle") == 1
    assert value(samples, "relay_workers") == 1


async def test_series_of_upstreams_are_bounded(
    origin: Origin, relayed: Relayed, ground: Ground, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_room, "MAX_UPSTREAMS", 2)
    origin.on(b"/x", reply())
    for slug in ("a", "b", "c", "d"):
        relayed(slug)
        assert (await caller.get(b"/relay/%b/x" % slug.encode())).status == 200
    samples = await told(caller)
    labels = {dict(key[1])["upstream"] for key in samples if key[0] == "relay_exchanges_total"}
    assert labels == {"a", "b", metrics_room.OTHERS}
    assert value(samples, "relay_exchanges_total", upstream=metrics_room.OTHERS, outcome="ok", status_class="2xx") == 2


@pytest.mark.parametrize(
    ("trusted", "forwarded", "status"),
    [
        ((), None, 200),
        ((), b"203.0.113.9", 200),
        (("127.0.0.1/32",), b"203.0.113.9", 403),
        (("127.0.0.1/32",), b"203.0.113.9, 127.0.0.1", 403),
    ],
    ids=["direct", "a header nobody vouches for", "through the proxy", "through two"],
)
async def test_a_proxy_in_front_opens_nothing_to_the_world(
    settings: Any, ground: Ground, caller: Caller, trusted: tuple[str, ...], forwarded: bytes | None, status: int
) -> None:
    settings.RELAY_TRUSTED_PROXIES = trusted
    headers = [(b"X-Forwarded-For", forwarded)] if forwarded else []
    assert (await caller.get(b"/metrics", headers)).status == status
    ready = await caller.get(b"/readyz", headers)
    assert ready.status == 200
    assert (b"catalog" in ready.data) == (status == 200)


async def test_others_networks_get_neither_metrics_nor_details(settings: Any, ground: Ground, caller: Caller) -> None:
    settings.RELAY_METRICS_NETWORKS = ("192.0.2.0/24",)
    assert (await caller.get(b"/metrics")).status == 403
    assert (await caller.get(b"/readyz")).data == b'{"status": "ready"}'


@pytest.mark.timeout(120)
async def test_workers_add_up_and_a_killed_one_takes_nothing_back(origin: Origin) -> None:
    origin.on(b"/x", reply())
    async with ServedProcess(workers=2) as served:
        url = f"http://{origin.host}:{origin.port}"
        await served.register("o", url, "--access", "anyone", "--allow-network", "127.0.0.0/8")

        async def until_told(count: float, workers: int) -> None:
            async with asyncio.timeout(20):
                while True:
                    async with Caller(served.port) as caller:
                        samples = await told(caller)
                    ok = value(samples, "relay_exchanges_total", upstream="o", outcome="ok", status_class="2xx")
                    assert ok <= count
                    if (ok, value(samples, "relay_workers")) == (count, workers):
                        return

        for _ in range(20):
            async with Caller(served.port) as caller:
                assert (await caller.get(b"/relay/o/x")).status == 200
        await until_told(20, 2)
        [victim, *_] = [int(path.stem.partition("-")[0]) for path in (served.data_dir / "metrics").glob("*-*.lock")]
        os.kill(victim, signal.SIGKILL)
        await until_told(20, 2)
