"""Which descriptors are kept, and that a shortage is told once at each end."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from relay.observing import descriptors as room
from relay.observing.descriptors import Descriptors, count_open, next_number


@pytest.mark.parametrize(
    ("most", "callers_end", "upstreams_end"), [(96, 72, 84), (1024, 896, 960), (10**6, 999_872, 999_936)]
)
def test_the_last_ones_are_kept(most: int, callers_end: int, upstreams_end: int) -> None:
    made = Descriptors(most)
    assert (made.callers_end, made.upstreams_end) == (callers_end, upstreams_end)
    assert callers_end < made.farewells_end < upstreams_end


def test_a_limit_that_was_raised_counts_from_then_on() -> None:
    made = Descriptors(16)
    made.measure()
    assert made.most == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_what_is_open_is_counted() -> None:
    before = count_open()
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    try:
        assert count_open() == before + 5
        assert next_number() not in opened
    finally:
        for descriptor in opened:
            os.close(descriptor)


def test_where_none_is_left_the_next_is_beyond_any() -> None:
    script = (
        "import resource; from relay.observing.descriptors import next_number\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (next_number(), 10_000))\n"
        "assert next_number() > 10_000"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


async def test_a_shortage_is_told_once_at_each_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "CALM_SECONDS", 0.0)
    short = Descriptors(1024)
    over = asyncio.Event()
    looks = 0

    def look() -> int:
        nonlocal looks
        looks += 1
        if looks == 3:
            over.set()
            return 10
        return short.callers_end

    monkeypatch.setattr(room, "next_number", look)
    with caplog.at_level(logging.WARNING):
        for _ in range(7):
            short.refuse()
        async with asyncio.timeout(5):
            await over.wait()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "(1024 are allowed)" in caplog.records[0].getMessage()
    assert "7 connections were refused" in caplog.records[1].getMessage()
    assert ("relay_descriptor_refusals_total", 7) in [(family.name, sample[1]) for family, sample in short.read()]
    short.refuse()
    short.close()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "ERROR"]
