"""The tables of both sides: what may happen where, what it leads to, and what holds on every way through them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.upstreams.states import OURS, THEIRS, UPSTREAMS_EVENTS, Event, Ours, Standing, Theirs

Pair = tuple[Ours, Theirs]
Table = Mapping[Any, Mapping[Event, IntEnum]]

START: Pair = (Ours.IDLE, Theirs.IDLE)


def standing_at(pair: Pair) -> Standing:
    standing = Standing()
    standing.ours, standing.theirs = pair
    return standing


def leads_to(pair: Pair, event: Event) -> Pair | None:
    """By the tables alone."""
    ours, theirs = OURS[pair[0]].get(event), THEIRS[pair[1]].get(event)
    return None if ours is None or theirs is None else (ours, theirs)


def reachable() -> dict[Pair, list[Event]]:
    """Every pair of states that can come about, and a way there."""
    ways: dict[Pair, list[Event]] = {START: []}
    waiting = [START]
    while waiting:
        pair = waiting.pop(0)
        for event in Event:
            after = leads_to(pair, event)
            if after is not None and after not in ways:
                ways[after] = [*ways[pair], event]
                waiting.append(after)
    return ways


WAYS = reachable()

# All that can be: (ours, theirs). What is not here cannot come about.
PAIRS = {
    START,
    (Ours.SENDING, Theirs.AWAITED),
    (Ours.SENDING, Theirs.BODY),
    (Ours.SENDING, Theirs.DONE),
    (Ours.DONE, Theirs.AWAITED),
    (Ours.DONE, Theirs.BODY),
    (Ours.DONE, Theirs.DONE),
    (Ours.CEASED, Theirs.AWAITED),
    (Ours.CEASED, Theirs.BODY),
    (Ours.CEASED, Theirs.DONE),
    (Ours.RAW, Theirs.RAW),
    (Ours.CLOSED, Theirs.CLOSED),
}

E, O, T = Event, Ours, Theirs  # noqa: E741

# A life of a connection, event by event, and where it ends.
LIVES: list[tuple[str, list[Event], Pair]] = [
    ("a request without a body", [E.WHOLE_SENT, E.HEAD_CAME, E.END_CAME], (O.DONE, T.DONE)),
    ("a request with a body", [E.HEAD_SENT, E.END_SENT, E.HEAD_CAME, E.END_CAME], (O.DONE, T.DONE)),
    ("two exchanges", [E.WHOLE_SENT, E.HEAD_CAME, E.END_CAME, E.REUSED, E.WHOLE_SENT], (O.DONE, T.AWAITED)),
    ("interim answers", [E.HEAD_SENT, E.INTERIM_CAME, E.END_SENT, E.INTERIM_CAME, E.HEAD_CAME], (O.DONE, T.BODY)),
    ("an early answer", [E.HEAD_SENT, E.HEAD_CAME, E.END_CAME, E.END_SENT], (O.DONE, T.DONE)),
    ("an early answer that stops us", [E.HEAD_SENT, E.HEAD_CAME, E.CEASED, E.END_CAME], (O.CEASED, T.DONE)),
    ("an early answer, then we stop", [E.HEAD_SENT, E.HEAD_CAME, E.END_CAME, E.CEASED], (O.CEASED, T.DONE)),
    ("we stop, the answer comes", [E.HEAD_SENT, E.CEASED, E.INTERIM_CAME, E.HEAD_CAME], (O.CEASED, T.BODY)),
    ("a switch of protocols", [E.WHOLE_SENT, E.INTERIM_CAME, E.SWITCHED], (O.RAW, T.RAW)),
    ("closed while idle", [E.CLOSED, E.CLOSED], (O.CLOSED, T.CLOSED)),
    ("closed after a switch", [E.WHOLE_SENT, E.SWITCHED, E.CLOSED], (O.CLOSED, T.CLOSED)),
]

# What must not happen, the way there first.
BREACHES: list[tuple[str, list[Event], Event]] = [
    ("an answer to nothing", [], E.HEAD_CAME),
    ("an interim answer to nothing", [], E.INTERIM_CAME),
    ("a second head", [E.WHOLE_SENT, E.HEAD_CAME], E.HEAD_CAME),
    ("an interim answer after the head", [E.WHOLE_SENT, E.HEAD_CAME], E.INTERIM_CAME),
    ("an end without a head", [E.WHOLE_SENT], E.END_CAME),
    ("a second end", [E.WHOLE_SENT, E.HEAD_CAME, E.END_CAME], E.END_CAME),
    ("a switch before the request was whole", [E.HEAD_SENT], E.SWITCHED),
    ("a switch of a request that was broken off", [E.HEAD_SENT, E.CEASED], E.SWITCHED),
    ("a switch after the head", [E.WHOLE_SENT, E.HEAD_CAME], E.SWITCHED),
    ("HTTP after a switch", [E.WHOLE_SENT, E.SWITCHED], E.HEAD_CAME),
    ("an answer after the end of the connection", [E.WHOLE_SENT, E.CLOSED], E.HEAD_CAME),
    ("a second request at once", [E.WHOLE_SENT], E.WHOLE_SENT),
    ("a second request while the first is sent", [E.HEAD_SENT], E.HEAD_SENT),
    ("an end of a request that had no body", [E.WHOLE_SENT], E.END_SENT),
    ("a second end of the request", [E.HEAD_SENT, E.END_SENT], E.END_SENT),
    ("more of a request that was broken off", [E.HEAD_SENT, E.CEASED], E.END_SENT),
    ("breaking off what is whole", [E.HEAD_SENT, E.END_SENT], E.CEASED),
    ("reuse of an idle connection", [], E.REUSED),
    ("reuse before the answer", [E.WHOLE_SENT], E.REUSED),
    ("reuse in the middle of the answer", [E.WHOLE_SENT, E.HEAD_CAME], E.REUSED),
    ("reuse while the request is still sent", [E.HEAD_SENT, E.HEAD_CAME, E.END_CAME], E.REUSED),
    ("reuse after breaking off", [E.HEAD_SENT, E.CEASED, E.HEAD_CAME, E.END_CAME], E.REUSED),
    ("reuse after a switch", [E.WHOLE_SENT, E.SWITCHED], E.REUSED),
    ("reuse after the end of the connection", [E.CLOSED], E.REUSED),
    ("a request after the end of the connection", [E.CLOSED], E.WHOLE_SENT),
    ("a request after a switch", [E.WHOLE_SENT, E.SWITCHED], E.HEAD_SENT),
]


@pytest.mark.parametrize(("table", "states"), [(OURS, Ours), (THEIRS, Theirs)], ids=["ours", "theirs"])
def test_every_state_has_a_row_and_leads_to_known_states(table: Table, states: type[IntEnum]) -> None:
    assert set(table) == set(states)
    for row in table.values():
        assert set(row) <= set(Event)
        assert all(type(after) is states for after in row.values())


@pytest.mark.parametrize(("table", "states"), [(OURS, Ours), (THEIRS, Theirs)], ids=["ours", "theirs"])
def test_every_event_is_named_and_every_state_can_end(table: Table, states: type[IntEnum]) -> None:
    assert {event for row in table.values() for event in row} == set(Event)
    assert all(row[Event.CLOSED] is states["CLOSED"] for row in table.values())


def test_nothing_leads_out_of_closed_and_nothing_but_closing_out_of_raw() -> None:
    assert OURS[Ours.CLOSED] == {Event.CLOSED: Ours.CLOSED}
    assert THEIRS[Theirs.CLOSED] == {Event.CLOSED: Theirs.CLOSED}
    assert set(OURS[Ours.RAW]) == set(THEIRS[Theirs.RAW]) == {Event.CLOSED}


def test_only_what_is_done_on_both_sides_leads_to_idle() -> None:
    for table, done, idle in [(OURS, Ours.DONE, Ours.IDLE), (THEIRS, Theirs.DONE, Theirs.IDLE)]:
        back = {(state, event) for state, row in table.items() for event, after in row.items() if after is idle}
        assert back == {(done, Event.REUSED)}


def test_these_pairs_of_states_come_about_and_no_others() -> None:
    assert set(WAYS) == PAIRS
    assert {ours for ours, _ in WAYS} == set(Ours)
    assert {theirs for _, theirs in WAYS} == set(Theirs)


@pytest.mark.parametrize("pair", sorted(PAIRS), ids=lambda pair: f"{pair[0].name}-{pair[1].name}")
@pytest.mark.parametrize("event", list(Event), ids=lambda event: event.name)
def test_an_event_moves_both_sides_or_neither(pair: Pair, event: Event) -> None:
    standing = standing_at(pair)
    after = leads_to(pair, event)
    if after is not None:
        standing.happened(event)
        assert (standing.ours, standing.theirs) == after
        return
    at_fault = httpx.RemoteProtocolError if event in UPSTREAMS_EVENTS else httpx.LocalProtocolError
    with pytest.raises(httpx.ProtocolError, match=f"{event.name} while") as refusal:
        standing.happened(event)
    assert type(refusal.value) is at_fault
    assert (standing.ours, standing.theirs, standing.keeps_alive) == (*pair, True)


@pytest.mark.parametrize(("life", "end"), [life[1:] for life in LIVES], ids=[life[0] for life in LIVES])
def test_a_life_of_a_connection(life: list[Event], end: Pair) -> None:
    standing = Standing()
    for event in life:
        standing.happened(event)
    assert (standing.ours, standing.theirs) == end


@pytest.mark.parametrize(("way", "event"), [breach[1:] for breach in BREACHES], ids=[breach[0] for breach in BREACHES])
def test_what_must_not_happen_is_whose_fault_it_is_and_changes_nothing(way: list[Event], event: Event) -> None:
    standing = Standing()
    for past in way:
        standing.happened(past)
    before = (standing.ours, standing.theirs)
    with pytest.raises(httpx.RemoteProtocolError if event in UPSTREAMS_EVENTS else httpx.LocalProtocolError):
        standing.happened(event)
    assert (standing.ours, standing.theirs) == before


@pytest.mark.parametrize("pair", sorted(PAIRS), ids=lambda pair: f"{pair[0].name}-{pair[1].name}")
@pytest.mark.parametrize("keeps_alive", [True, False])
def test_what_the_states_answer(pair: Pair, keeps_alive: bool) -> None:
    standing = standing_at(pair)
    standing.keeps_alive = keeps_alive
    assert standing.may_send == (pair[0] is Ours.SENDING)
    assert standing.is_over == (pair == (Ours.DONE, Theirs.DONE))
    assert standing.may_be_reused == (keeps_alive and pair == (Ours.DONE, Theirs.DONE))


@settings(deadline=None)
@given(walk=st.lists(st.tuples(st.sampled_from(Event), st.booleans()), max_size=60))
def test_every_walk_keeps_what_a_connection_promises(walk: list[tuple[Event, bool]]) -> None:
    """Each step: an event tried, and whether the upstream's next head would keep the connection."""
    standing = Standing()
    # What really went over the wire, told apart from the tables.
    asked = sent = ceased = answered = ended = switched = closed = False
    for event, keeps_alive in walk:
        before = (standing.ours, standing.theirs)
        was_reusable = standing.may_be_reused
        try:
            standing.happened(event)
        except httpx.ProtocolError:
            assert (standing.ours, standing.theirs) == before
            assert standing.may_be_reused == was_reusable
            continue
        if event is Event.REUSED:
            assert before == (Ours.DONE, Theirs.DONE)
            asked = sent = ceased = answered = ended = False
        elif event in {Event.HEAD_SENT, Event.WHOLE_SENT}:
            assert not asked
            asked, sent = True, event is Event.WHOLE_SENT
        elif event is Event.END_SENT:
            assert asked
            assert not sent
            assert not ceased
            sent = True
        elif event is Event.CEASED:
            assert not sent
            ceased = True
        elif event is Event.HEAD_CAME:
            assert asked
            assert not answered
            answered = True
            standing.keeps_alive = keeps_alive
        elif event is Event.END_CAME:
            assert answered
            assert not ended
            ended = True
        elif event is Event.SWITCHED:
            assert sent
            switched = True
        elif event is Event.CLOSED:
            closed = True
        assert (standing.ours, standing.theirs) in PAIRS
        assert (standing.ours is Ours.CLOSED) == (standing.theirs is Theirs.CLOSED) == closed
        if closed:
            continue
        assert standing.may_send == (asked and not sent and not ceased)
        assert standing.is_over == (sent and ended and not switched)
        assert standing.may_be_reused == (standing.is_over and standing.keeps_alive)
