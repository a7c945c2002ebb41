"""What the measurement makes of figures: read from wrk, judged against the goals, printed. Nothing is measured here."""

from __future__ import annotations

import json

import pytest

from bench import figures as keys
from bench.figures import Figures
from bench.goals import GOALS, Verdict, judge
from bench.load import parse_phases, parse_wrk
from bench.processes import Failed
from bench.report import as_data, as_text, significant

FACTS = {"processor": "one"}
SMALL_AT_32 = keys.rate_key("13 B", 32)
GROWTH = "memory growth over 2 GB down to a slow reader"


def wrk_output(**changes: int) -> str:
    counts = {"connect": 0, "read": 0, "write": 0, "status": 0, "timeout": 0}
    figures = {"requests": 1000, "duration": 2_000_000, "p50": 1500, "p99": 9000, **counts, **changes}
    return f"Running 2s test\n  1000 requests in 2.00s\nFIGURES {json.dumps(figures)}\n"


def full(peer: str, **changes: float) -> Figures:
    every = {
        key: 100.0 for cell in keys.CELLS for key in (keys.rate_key(*cell), keys.p50_key(*cell), keys.p99_key(*cell))
    }
    rest = dict.fromkeys((keys.DOWNLOAD, keys.UPLOAD, keys.FIRST_EVENT, keys.IDLE_MEMORY, keys.PEAK_MEMORY), 100.0)
    rest |= {keys.MEDIAN_AT_1: 100.0, keys.ADDED_AT_1: 99.0}
    memory = {keys.GROWTH_DOWN: 1.0, keys.GROWTH_UP: 1.0, keys.PER_STREAM: 20.0, keys.STREAMS_OPEN: 1000.0}
    return Figures(peer, "1.0", "a note", values=every | rest | memory | changes)


def verdict_on(text: str, verdicts: list[Verdict]) -> Verdict:
    return next(verdict for verdict in verdicts if verdict.goal.text.startswith(text))


def test_rate_counts_requests_by_the_time_they_took() -> None:
    rate = parse_wrk(wrk_output())
    assert (rate.per_second, rate.p50_ms, rate.p99_ms, rate.errors) == (500, 1.5, 9, 0)


def test_error_answers_count_as_errors_and_not_as_rate() -> None:
    rate = parse_wrk(wrk_output(status=400, timeout=3))
    assert (rate.per_second, rate.errors) == (300, 403)


def test_phases_are_rates_by_the_time_of_each_kind() -> None:
    phases = parse_phases('PHASES {"requests":[1000,500],"micros":[500000,500000],"status":0,"errors":2}\n')
    assert (phases.first, phases.second, phases.errors) == (2000, 1000, 2)


@pytest.mark.parametrize(
    ("second", "status", "reason"),
    [(0, 0, "no whole phase of each kind in the time of the cell"), (500, 1200, "1,200 answers were errors")],
)
def test_phases_that_were_not_whole_or_not_well_are_no_figure(second: int, status: int, reason: str) -> None:
    with pytest.raises(Failed, match=f"^{reason}$"):
        parse_phases(f'PHASES {{"requests":[900,{second}],"micros":[900,{second}],"status":{status},"errors":0}}\n')


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (wrk_output(requests=10, status=10), "no good answer, 10 errors"),
        (wrk_output(requests=0), "no answer in the time of the cell"),
        ("unable to connect", "wrk printed no figures"),
    ],
)
def test_load_without_a_good_answer_has_a_reason_and_no_rate(output: str, reason: str) -> None:
    with pytest.raises(Failed, match=f"^{reason}$"):
        parse_wrk(output)


def at_the_bounds() -> dict[str, Figures]:
    """A run in which every goal is met, and none by more than it must be."""
    figures = {
        SMALL_AT_32: 1400.0,
        keys.rate_key("64 KiB", 32): 900.0,
        keys.SHARE_AT_256: 0.95,
        keys.SHARE_AT_1000: 0.9,
        keys.DOWNLOAD: 300.0,
        keys.UPLOAD_SHARE: 0.7,
        keys.RATE_BESIDE: 1.0,
        keys.ADDED_BESIDE: 1.0,
        keys.GROWTH_DOWN: 23.9,
        keys.GROWTH_UP: 23.9,
        keys.PER_STREAM: 24.9,
        keys.AUTHORISED_SHARE: 0.909,
    }
    return {
        "relay": full("relay", **figures),
        "example": full("example"),
        "asgiproxy": full("asgiproxy"),
        "nginx": full("nginx", **{keys.DOWNLOAD: 250.0}),
    }


def test_every_goal_is_met_at_its_bound() -> None:
    assert [verdict.met for verdict in judge(at_the_bounds())] == [True] * len(GOALS)


@pytest.mark.parametrize(
    ("peer", "key", "value", "failing"),
    [
        ("example", SMALL_AT_32, 100.1, "13 B at 32 connections: the example's rate"),
        ("relay", keys.RATE_BESIDE, 0.99, "13 B at 32 connections: asgiproxy's rate"),
        ("relay", keys.rate_key("64 KiB", 32), 899.0, "64 KiB at 32 connections: the example's rate"),
        ("relay", keys.SHARE_AT_256, 0.94, "13 B at 256 connections: own rate at 32"),
        ("relay", keys.SHARE_AT_1000, 0.89, "13 B at 1,000 connections: own rate at 32"),
        (
            "relay",
            keys.AUTHORISED_SHARE,
            0.89,
            "13 B at 32 connections with a key and an injected header: own rate without",
        ),
        ("example", keys.DOWNLOAD, 100.1, "200 MB down: the example's speed"),
        ("nginx", keys.DOWNLOAD, 250.1, "200 MB down: nginx's speed with default settings"),
        ("relay", keys.UPLOAD_SHARE, 0.69, "200 MB up: own speed down"),
        ("relay", keys.ADDED_BESIDE, 0.99, "median latency added at 1 connection: asgiproxy's divided by ours"),
        ("relay", keys.GROWTH_DOWN, 24.0, "memory growth over 2 GB down to a slow reader"),
        ("relay", keys.GROWTH_UP, 24.0, "memory growth over 2 GB up from a fast writer"),
        ("relay", keys.PER_STREAM, 25.0, "each of 1,000 idle event streams"),
    ],
)
def test_each_goal_is_missed_by_its_own_figure_alone(peer: str, key: str, value: float, failing: str) -> None:
    run = at_the_bounds()
    run[peer].values[key] = value
    assert [verdict.goal.text for verdict in judge(run) if not verdict.met] == [failing]


def test_what_the_relay_failed_at_is_not_met_and_what_was_left_out_is_not_told() -> None:
    relay = full("relay")
    del relay.values[keys.GROWTH_DOWN]
    relay.remarks[keys.GROWTH_DOWN] = "stopped at 9.0 GiB of memory"
    verdict = verdict_on(GROWTH, judge({"relay": relay}))
    assert (verdict.met, verdict.reason) == (False, "relay: stopped at 9.0 GiB of memory")
    relay.remarks[keys.GROWTH_DOWN] = keys.LEFT_OUT
    assert verdict_on(GROWTH, judge({"relay": relay})).met is None
    assert verdict_on("200 MB down: nginx", judge({"relay": relay})).reason == "nginx: left out of this run"


def test_cheap_idle_streams_do_not_count_when_not_all_were_open() -> None:
    verdict = verdict_on("each of 1,000", judge({"relay": full("relay", **{keys.STREAMS_OPEN: 999.0})}))
    assert (verdict.met, verdict.reason) == (False, "relay: only 999 of 1,000 were open at once")


def test_report_leads_from_every_missing_figure_to_its_reason() -> None:
    relay, nginx = full("relay"), full("nginx")
    del nginx.values[keys.PER_STREAM]
    for figures in (relay, nginx):
        figures.remarks[keys.PER_STREAM] = "no event stream was open"
    text = as_text([relay, nginx], judge({"relay": relay, "nginx": nginx}), FACTS)
    row = next(line for line in text.splitlines() if line.startswith(f"| {keys.PER_STREAM} "))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [keys.PER_STREAM, "20 [1]", "- [1]"]
    assert "- [1] relay, nginx: no event stream was open" in text


def test_report_says_goals_that_are_not_met() -> None:
    relay = full("relay", **{keys.GROWTH_DOWN: 30.0})
    text = as_text([relay], judge({"relay": relay}), FACTS)
    assert f"- NOT met: {GROWTH}, below 24 MiB: 30 MiB" in text
    assert (
        "- not told: 13 B at 32 connections: the example's rate, at least 14x: (example: left out of this run)" in text
    )


def test_ratios_are_against_the_yardstick_of_the_same_run() -> None:
    relay, example = full("relay", **{SMALL_AT_32: 250.0}), full("example")
    text = as_text([relay, example], judge({"relay": relay, "example": example}), FACTS)
    ratios = text.split("## Times example")[1]
    assert (
        next(line for line in ratios.splitlines() if line.startswith(f"| {SMALL_AT_32} ")).split("|")[2].strip()
        == "2.5"
    )
    assert "## Times nginx" not in text


def test_report_shows_the_latency_at_one_connection_and_what_a_peer_adds_to_it() -> None:
    relay = full("relay", **{keys.MEDIAN_AT_1: 0.28, keys.ADDED_AT_1: 0.251})
    lines = as_text([relay], [], FACTS).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert ["median at 1 connection, ms", "0.28"] in rows
    assert ["added at 1 connection, ms", "0.251"] in rows


def test_1000_connections_are_for_the_smallest_body_alone_and_shown_with_it() -> None:
    assert [cell for cell in keys.CELLS if cell[1] == 1000] == [("13 B", 1000)]
    assert sorted(keys.CELLS) == sorted(keys.SMALL_CELLS + keys.LARGE_CELLS)
    text = as_text([full("relay")], [], FACTS)
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| 13 B")]
    assert rows[:4] == [f"13 B at {connections}, requests/s" for connections in ("1", "32", "256", "1,000")]
    assert "13 B at 1,000" in rows[4:]  # the table of latencies


def test_json_holds_every_figure_round_remark_and_verdict() -> None:
    relay = full("relay")
    relay.remarks[keys.DOWNLOAD] = "rough"
    relay.rounds[keys.DOWNLOAD] = [90.0, None, 110.0]
    data = json.loads(json.dumps(as_data([relay], judge({"relay": relay}), FACTS)))
    assert data["peers"][0]["values"] == relay.values
    assert data["peers"][0]["remarks"] == relay.remarks
    assert data["peers"][0]["rounds"] == {keys.DOWNLOAD: [90.0, None, 110.0]}
    assert [goal["goal"] for goal in data["goals"]] == [goal.text for goal in GOALS]
    assert data["machine"] == FACTS


@pytest.mark.parametrize(("value", "text"), [(12345.6, "12,346"), (100.4, "100"), (12.345, "12.3"), (0.0073, "0.0073")])
def test_numbers_show_the_digits_that_mean_something(value: float, text: str) -> None:
    assert significant(value) == text
