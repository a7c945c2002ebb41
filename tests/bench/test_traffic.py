"""What callers of the soak take for lost. A scripted origin answers in the relay's place."""

from __future__ import annotations

import random
from typing import Any

import pytest
from django.core.management import call_command

from bench import traffic
from bench.edits import drawn
from bench.rough_origin import script_of
from bench.traffic import KINDS, Course, Tally, call_once
from relay.models import Upstream
from tests.origin import Exchange, Origin, hang, patterned, reply, truncate

BY_NAME = {kind.name: kind for kind in KINDS}


class Draw(random.Random):
    """Draws whether to give up as told, and every other thing from a seed; of how many, always three."""

    gives_up = False

    def random(self) -> float:
        return 0.1 if self.gives_up else 0.9

    def randint(self, a: int, b: int) -> int:
        return 3


async def called(kind: str, origin: Origin, *, gives_up: bool = False) -> Tally:
    tally = Tally()
    draw = Draw(1)
    draw.gives_up = gives_up
    await call_once(BY_NAME[kind], Course(port=origin.port, seconds=0, seed=1, key="rk_key"), draw, tally)
    return tally


@pytest.mark.parametrize(
    "kind",
    [
        *("small", "keyed", "download", "slow reader", "upload", "events", "drip"),
        *("noise", "slow head", "half upload"),
    ],
)
async def test_a_good_answer_is_right(kind: str, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "DOWNLOADS", (3000,))

    async def without_prefix(exchange: Exchange) -> None:
        await script_of(b"/" + exchange.head.path.split(b"/", 3)[3])(exchange)

    origin.otherwise(without_prefix)
    tally = await called(kind, origin)
    origin.failures.clear()  # of what is no request
    assert (tally.lost, tally.told) == (0, [])
    assert tally.ended[f"{kind}: right"] == 1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (reply(503, body=b"full"), "503"),
        (reply(200, body=b'{"body_sha256": "another"}'), "another body"),
        (truncate(1_000_000, 10), "TRUNCATED"),
        (truncate(1_000_000, 10, then="reset"), "RESET"),
    ],
    ids=["refused", "another body", "cut", "reset"],
)
@pytest.mark.parametrize("kind", ["keyed", "download", "drip", "events", "upload"])
async def test_any_other_answer_of_a_good_one_is_lost(kind: str, answer: Any, told: str, origin: Origin) -> None:
    origin.otherwise(answer)
    tally = await called(kind, origin)
    assert tally.lost == tally.ended[f"{kind}: LOST"] == 1
    assert told in tally.told[0]


async def test_a_connection_that_ends_before_its_answer_is_lost(origin: Origin) -> None:
    origin.otherwise(script_of(b"/reset"))
    assert (await called("keyed", origin)).lost == 1


async def test_what_is_no_http_is_lost(origin: Origin) -> None:
    origin.otherwise(script_of(b"/garbage"))
    assert (await called("keyed", origin)).lost == 1


async def test_what_its_own_caller_gave_up_is_not_lost(origin: Origin) -> None:
    origin.otherwise(hang())
    tally = await called("download", origin, gives_up=True)
    assert (tally.lost, tally.ended) == (0, {"download: given up by its caller": 1})


async def test_a_kept_connection_that_closes_while_idle_is_asked_anew_and_a_new_one_is_lost(origin: Origin) -> None:
    async def one_a_connection(exchange: Exchange) -> None:
        await script_of(exchange.head.path.removeprefix(b"/relay/open"))(exchange)
        await exchange.close()

    origin.otherwise(one_a_connection)
    tally = await called("small", origin)
    assert tally.lost == 0
    assert tally.ended["small: right, on a new connection"] == 3
    origin.otherwise(script_of(b"/reset"))
    assert (await called("small", origin)).lost == 1


@pytest.mark.parametrize("kind", ["cut answer", "garbage", "reset", "time-out", "nobody there", "bad key"])
async def test_a_failure_that_comes_as_a_whole_answer_is_lost(kind: str, origin: Origin) -> None:
    origin.otherwise(reply(200, body=patterned(3)))
    assert (await called(kind, origin)).lost == 1


async def test_what_was_lost_is_told_up_to_a_bound() -> None:
    tally = Tally()
    for number in range(traffic.MOST_KEPT + 5):
        tally.lose("small", str(number))
    assert (tally.lost, len(tally.told)) == (traffic.MOST_KEPT + 5, traffic.MOST_KEPT)


def test_the_same_seed_draws_the_same_edits() -> None:
    assert [drawn(random.Random(5)) for _ in range(20)] == [drawn(random.Random(5)) for _ in range(20)]
    draw, other = random.Random("5/edits"), random.Random("6/edits")
    assert [drawn(draw) for _ in range(20)] != [drawn(other) for _ in range(20)]


@pytest.mark.django_db
def test_every_edit_is_one_that_the_command_takes() -> None:
    for slug in ("open", "guarded", "switched"):
        Upstream.objects.create(slug=slug, base_url="https://api.example.com")
    before = dict(Upstream.objects.values_list("slug", "changed_at"))
    draw = random.Random(1)
    for _ in range(60):
        call_command(*drawn(draw))
    after = dict(Upstream.objects.values_list("slug", "changed_at"))
    assert all(after[slug] > before[slug] for slug in before)


def test_there_is_good_traffic_and_bad_and_each_has_its_bound() -> None:
    assert {kind.is_good for kind in KINDS} == {True, False}
    assert min(kind.callers for kind in KINDS) > 0
    assert len(BY_NAME) == len(KINDS)
