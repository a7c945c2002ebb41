"""A snapshot never changes: the next one shares what an edit did not touch."""

from __future__ import annotations

from typing import Any

from relay.catalog import Snapshot, Upstream
from relay.catalog.snapshot import HeaderChanges, free_in_slices
from relay.rules.health import Check


def upstream(slug: str, **fields: Any) -> Upstream:
    known = {"revision": 1, "scheme": "https", "host": "a.example.com", "port": 443}
    return Upstream(slug=slug, **(known | {"authority": b"a.example.com", "base_path": b""} | fields))


def test_the_next_snapshot_has_the_changes_and_the_last_one_has_not() -> None:
    before = Snapshot([upstream("a"), upstream("b")], revision=1)
    after = before.with_changes([upstream("a", revision=2), upstream("c")], ["b", "unknown"], revision=2)
    assert {item.slug for item in before} == {"a", "b"}
    assert {item.slug: item.revision for item in after} == {"a": 2, "c": 1}
    assert (len(before), len(after), before.revision, after.revision) == (2, 2, 1, 2)


def test_find_takes_the_exact_segment_only() -> None:
    snapshot = Snapshot([upstream("a")])
    assert snapshot.find(b"a") is not None
    assert snapshot.find(b"A") is None
    assert snapshot.find(b"%61") is None
    assert snapshot.find(b"") is None


def test_only_replaced_shards_are_taken_apart() -> None:
    before = Snapshot([upstream(f"n{number}") for number in range(3000)])
    after = before.with_changes([upstream("n7", revision=2)], [], revision=2)
    assert "n7" in {item.slug for item in before.not_shared_with(after)}
    assert len(before.not_shared_with(after)) < 30
    retired = [before]
    free_in_slices(retired, after)
    assert not retired


def test_what_is_worked_out_ahead_follows_from_slug_and_base_path() -> None:
    item = upstream("a", base_path=b"/v1/")
    assert (item.mount, item.cookie_prefix, item.base_prefix, item.bare_target) == (
        b"/relay/a",
        b"relay.a.",
        b"/v1",
        b"/v1/",
    )
    assert upstream("a").bare_target == b"/"


def test_secrets_are_not_in_the_repr() -> None:
    changes = HeaderChanges(frozenset({b"authorization"}), ((b"authorization", b"s3cret"),))
    shown = repr(upstream("a", request_changes=changes, outbound_proxy="http://u:s3cret@p"))
    assert "s3cret" not in shown
    assert changes
    assert not HeaderChanges()


def test_a_snapshot_knows_whose_targets_are_checked() -> None:
    check = Check(
        target=b"/healthz",
        method="GET",
        statuses=frozenset({200}),
        body=b"",
        interval_seconds=10.0,
        timeout_seconds=5.0,
        failures=3,
        successes=2,
    )
    first = Snapshot([upstream("a", check=check), upstream("b")], revision=1)
    assert [one.slug for one in first.checked()] == ["a"]
    second = first.with_changes([upstream("a"), upstream("b", check=check)], [], revision=2)
    assert [one.slug for one in second.checked()] == ["b"]
    third = second.with_changes([], ["b"], revision=3)
    assert (list(third.checked()), third.has_checks, first.has_checks) == ([], False, True)
