"""Numbers add up whichever worker counted them, survive being written down, and render as Prometheus reads them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from relay.observing.families import BUCKETS, Family, Histogram, Numbers, render

COUNTER = Family("relay_things_total", "counter", "Things.", ("upstream",))
WORST = Family("relay_worst_seconds", "gauge", "The worst.", merge="max")
LEAST = Family("relay_least", "gauge", "The least.", merge="min")
TIMES = Family("relay_times_seconds", "histogram", "Times.", ("upstream",))

counts = st.lists(st.integers(0, 1000), min_size=len(BUCKETS) + 1, max_size=len(BUCKETS) + 1)


def counted(value: float, label: str = "a") -> Numbers:
    numbers = Numbers()
    numbers.add(COUNTER, ((label,), value))
    numbers.add(WORST, ((), value))
    numbers.add(LEAST, ((), value))
    return numbers


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 10**12)), min_size=1, max_size=8))
def test_counters_are_summed_and_gauges_merged_as_they_say(told: list[tuple[str, int]]) -> None:
    total = Numbers()
    for label, value in told:
        total.merge(Numbers.load(counted(value, label).dump()))
    assert sum(total.samples[COUNTER.name].values()) == sum(value for _, value in told)
    assert total.samples[WORST.name] == {(): max(value for _, value in told)}
    assert total.samples[LEAST.name] == {(): min(value for _, value in told)}


def test_of_a_worker_that_is_gone_only_counts_last() -> None:
    total = Numbers()
    total.merge(counted(3), lasting_only=True)
    assert set(total.families) == {COUNTER.name}


def histogram(buckets: list[int]) -> Histogram:
    told = Histogram()
    told.buckets, told.seconds = buckets, float(sum(buckets))
    return told


@given(counts, counts)
def test_histograms_add_up_and_render_cumulatively(one: list[int], other: list[int]) -> None:
    total = Numbers()
    for buckets in (one, other):
        part = Numbers()
        part.add_histogram(TIMES, ("a",), histogram(buckets))
        total.merge(Numbers.load(part.dump()))
    [family] = text_string_to_metric_families(render(total))
    told = {sample.labels.get("le"): sample.value for sample in family.samples if sample.name.endswith("_bucket")}
    running = 0
    for bound, first, second in zip((*map(str, BUCKETS), "+Inf"), one, other, strict=True):
        running += first + second
        assert told[bound] == running
    assert {sample.value for sample in family.samples if sample.name.endswith("_count")} == {running}
    assert {sample.value for sample in family.samples if sample.name.endswith("_sum")} == {running}


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20))
def test_a_label_never_breaks_out_of_its_quotes(label: str) -> None:
    label += '"\\\n'
    numbers = Numbers()
    numbers.add(COUNTER, ((label,), 1))
    [family] = text_string_to_metric_families(render(numbers))
    assert [sample.labels for sample in family.samples] == [{"upstream": label}]


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {}}', b'{"a":{"kind":"gauge","help":"","labels":[],"merge":"sum"}}']
)
def test_what_no_worker_wrote_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"worker's file|JSON|Expecting|column"):
        Numbers.load(text)


def test_whole_numbers_are_written_whole() -> None:
    assert "relay_worst_seconds 12345678901234\n" in render(counted(12345678901234.0))
    assert math.isclose(0.25, float(render(counted(0.25)).split("relay_worst_seconds ")[-1].split()[0]))
