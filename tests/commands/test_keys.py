"""`manage.py keys` as scripts use it: the key alone on the last line, what is made, what is refused in which words."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import CommandError, call_command
from django.utils import timezone

from relay import vault
from relay.catalog import consumers
from relay.catalog.roster import Roster
from relay.models import ApiKey, Consumer, ConsumerChange, Grant, Upstream
from relay.rules.keys import is_well_formed

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def upstreams() -> None:
    Upstream.objects.create(slug="a", base_url="https://a.example.com")
    Upstream.objects.create(slug="b", base_url="https://b.example.com", access="anyone")


def run(*arguments: str) -> tuple[str, str]:
    """(standard output, standard error)"""
    out, err = io.StringIO(), io.StringIO()
    call_command("keys", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def issue(*arguments: str) -> str:
    """The key."""
    return run("issue", *arguments)[0].splitlines()[-1]


def refusal(*arguments: str) -> str:
    with pytest.raises(CommandError) as problem:
        run(*arguments)
    assert problem.value.returncode == 1
    return str(problem.value)


def opens(text: str) -> bool:
    """Whether a worker that loads now would take it for a key."""
    roster = Roster(consumers.read(consumers.rows()))
    return any(roster.find(digest) for digest in vault.keyring().digests(text.encode()))


# Issuing.


def test_issue_makes_consumer_grant_and_key_and_prints_the_key_alone() -> None:
    out, err = run("issue", "billing", "--upstream", "a", "--label", "night")
    text = out.removesuffix("\n")
    assert is_well_formed(text.encode())
    assert text not in err
    assert err.splitlines() == [
        "Made the consumer billing.",
        "Granted billing any method at a.",
        "The key of billing, shown this once:",
    ]
    key = ApiKey.objects.get()
    assert (key.consumer.name, key.label, key.expires_at) == ("billing", "night", None)
    assert Grant.objects.get().upstream.slug == "a"
    assert opens(text)


def test_a_second_key_leaves_consumer_and_grants_as_they_are() -> None:
    issue("billing", "--upstream", "a", "--method", "get", "--path-prefix", "/v1")
    err = run("issue", "billing", "--upstream", "a")[1]
    assert "billing has a grant at a already, which stays as it is." in err
    assert run("issue", "billing", "--upstream", "a", "--method", "GET", "--path-prefix", "/v1/days")
    grant = Grant.objects.get()
    assert (grant.methods, grant.path_prefixes) == ("GET", "/v1")
    assert (Consumer.objects.count(), ApiKey.objects.count()) == (1, 3)


def test_what_is_asked_for_and_not_there_yet_is_granted_besides() -> None:
    issue("billing", "--upstream", "a", "--method", "GET", "--method", "head", "--path-prefix", "/v1")
    err = run(
        "issue", "billing", "--upstream", "a", "--method", "POST", "--path-prefix", "/v1", "--path-prefix", "/v2"
    )[1]
    assert "Granted billing POST at a below /v1, /v2." in err
    assert [(grant.methods, grant.path_prefixes) for grant in Grant.objects.order_by("id")] == [
        ("GET, HEAD", "/v1"),
        ("POST", "/v1\n/v2"),
    ]


def test_several_upstreams_are_granted_each() -> None:
    err = run("issue", "billing", "--upstream", "a", "--upstream", "b", "--upstream", "a")[1]
    assert [grant.upstream.slug for grant in Grant.objects.all()] == ["a", "b"]
    assert "b is open to anyone: it asks for no key." in err


def test_a_new_consumer_can_have_an_owner() -> None:
    ann = User.objects.create_user("ann")
    issue("laptop", "--upstream", "a", "--owner", "ann")
    assert Consumer.objects.get().owner == ann
    assert opens(issue("laptop", "--owner", "ann"))
    User.objects.create_user("bob")
    assert "laptop is there already and belongs to ann" in refusal("issue", "laptop", "--owner", "bob")


@pytest.mark.parametrize(
    ("text", "length"), [("90d", 90 * 86400), ("12h", 43200), ("30m", 1800), ("2w", 1209600), ("60", 60)]
)
def test_a_key_can_expire_in_a_time(text: str, length: int) -> None:
    before = timezone.now()
    err = run("issue", "billing", "--upstream", "a", "--expires-in", text)[1]
    end = ApiKey.objects.get().expires_at
    assert end is not None
    assert before <= end - timedelta(seconds=length) <= timezone.now()
    assert f"The key of billing, until {timezone.localtime(end):%Y-%m-%d %H:%M}, shown this once:" in err


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2099-01-31T12:00:00Z", datetime(2099, 1, 31, 12, tzinfo=UTC)),
        ("2099-01-31T12:00+02:00", datetime(2099, 1, 31, 10, tzinfo=UTC)),
        ("2099-01-31", datetime(2099, 1, 31)),
    ],
)
def test_a_key_can_expire_at_a_moment(text: str, moment: datetime) -> None:
    issue("billing", "--upstream", "a", "--expires-at", text)
    expected = timezone.make_aware(moment) if moment.tzinfo is None else moment
    assert ApiKey.objects.get().expires_at == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["!", "--upstream", "a"], "CONSUMER name: Use letters, digits"),
        (["billing", "--upstream", "none"], "There is no upstream none. `upstreams list` shows those there are."),
        (["billing", "--upstream", "a", "--method", "CONNECT"], "--method: CONNECT is never relayed: leave it out."),
        (["billing", "--upstream", "a", "--path-prefix", "v1"], "--path-prefix: “v1” does not begin with a slash"),
        (["billing", "--method", "GET"], "Say where the methods and paths are granted: --upstream SLUG."),
        (["billing", "--upstream", "a", "--owner", "nobody"], "--owner: there is no user nobody."),
        (["billing", "--upstream", "a", "--expires-in", "soon"], "--expires-in: write seconds, or a number with"),
        (["billing", "--upstream", "a", "--expires-in", "0"], "--expires-in: it would never work."),
        (["billing", "--upstream", "a", "--expires-in", "999999999999w"], "100 years at most"),
        (["billing", "--upstream", "a", "--expires-at", "2020-01-01"], "--expires-at: this moment is over."),
        (["billing", "--upstream", "a", "--expires-at", "2020-13-01"], "--expires-at: write a moment such as"),
        (["billing", "--upstream", "a", "--expires-at", "tomorrow"], "--expires-at: write a moment such as"),
        (["billing", "--upstream", "a", "--label", "x" * 101], "label: "),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_made(arguments: list[str], words: str) -> None:
    assert words in refusal("issue", *arguments)
    assert not Consumer.objects.exists()
    assert not Grant.objects.exists()
    assert not ApiKey.objects.exists()


def test_ends_exclude_each_other() -> None:
    text = refusal("issue", "billing", "--upstream", "a", "--expires-in", "1d", "--expires-at", "2099-01-01")
    assert "not allowed with argument" in text


def test_why_a_key_opens_nothing_yet_is_warned_of() -> None:
    assert "Warning: alone has no grant" in run("issue", "alone")[1]
    Consumer.objects.create(name="off", enabled=False)
    assert "Warning: off is switched off" in run("issue", "off", "--upstream", "a")[1]
    ann = User.objects.create_user("ann", is_active=False)
    assert "Warning: its owner ann is not active" in run("issue", "laptop", "--upstream", "a", "--owner", "ann")[1]
    group = Group.objects.create(name="data")
    Grant.objects.create(group=group, upstream=Upstream.objects.get(slug="a"))
    ann.groups.add(group)
    Consumer.objects.create(name="lent", owner=ann)
    assert "has no grant" not in run("issue", "lent")[1]


# Listing.


def test_list_shows_keys_in_force_and_all_on_demand() -> None:
    live = issue("billing", "--upstream", "a", "--label", "night")
    dead = issue("billing")
    run("revoke", dead[:11])
    out, err = run("list")
    assert err == ""
    assert [line.split()[0] for line in out.splitlines()] == ["KEY", f"{live[:11]}…"]
    for words in ("billing", "night", "never", "Live"):
        assert words in out
    out = run("list", "--all")[0]
    assert f"{dead[:11]}…" in out
    assert "Revoked" in out
    for text in (live, dead):
        assert text not in out


def test_list_can_be_narrowed_to_a_consumer() -> None:
    mine, other = issue("billing"), issue("other")
    out = run("list", "--consumer", "billing")[0]
    assert mine[:11] in out
    assert other[:11] not in out
    assert "There is no such consumer." in refusal("list", "--consumer", "nobody")


def test_list_as_json() -> None:
    old = issue("billing", "--label", "night")
    new = run("rotate", old[:11], "--grace", "1h")[0].strip()
    shown = {key["prefix"]: key for key in json.loads(run("list", "--json")[0])}
    assert shown.keys() == {old[:11], new[:11]}
    assert shown[old[:11]]["state"] == "replaced"
    assert shown[old[:11]]["replaced_by"] == new[:11]
    assert shown[new[:11]] == {
        "prefix": new[:11],
        "consumer": "billing",
        "label": "night",
        "state": "live",
        "created_at": shown[new[:11]]["created_at"],
        "expires_at": None,
        "last_used_at": None,
        "revoked_at": None,
        "replaced_by": None,
    }
    assert datetime.fromisoformat(str(shown[old[:11]]["expires_at"])) > timezone.now()


def test_an_empty_list_says_what_to_do() -> None:
    out, err = run("list")
    assert out == ""
    assert "Issue one with `keys issue CONSUMER --upstream SLUG`." in err
    assert json.loads(run("list", "--json")[0]) == []


# Revoking.


@pytest.mark.parametrize("shown", ["{}", "{}…", "{}..."])
def test_revoke_takes_the_prefix_as_lists_show_it(shown: str) -> None:
    text = issue("billing", "--upstream", "a")
    revision = ConsumerChange.objects.get().revision
    assert run("revoke", shown.format(text[:11]))[0] == f"Revoked {text[:11]}… of billing\n"
    assert not opens(text)
    assert ConsumerChange.objects.get().revision > revision
    out, err = run("revoke", text[:11])
    assert out == ""
    assert "was revoked already" in err


@pytest.mark.parametrize("action", ["revoke", "rotate"])
def test_a_whole_key_is_refused_and_not_repeated(action: str) -> None:
    text = issue("billing", "--upstream", "a")
    for shown in (text, text[:30], f"{text}…"):
        problem = refusal(action, shown)
        assert "That is a whole key, which is a secret: give its first 11 characters" in problem
        assert text[:12] not in problem
    assert opens(text)


@pytest.mark.parametrize("shown", ["", "rk_", "secret-of-somebody", "rk_short"])
def test_what_is_no_prefix_is_refused_and_not_repeated(shown: str) -> None:
    problem = refusal("revoke", shown)
    assert problem == "That is no key's prefix: write rk_ and eight characters, as `keys list` shows them."


def test_a_key_that_is_not_there_points_to_the_list() -> None:
    assert "There is no key rk_aaaaaaaa…. `keys list --all`" in refusal("revoke", "rk_aaaaaaaa")


# Rotating.


def test_rotate_prints_the_new_key_alone_and_the_old_one_works_on() -> None:
    old = issue("billing", "--upstream", "a", "--label", "night")
    before = timezone.now()
    out, err = run("rotate", f"{old[:11]}…")
    new = out.removesuffix("\n")
    assert is_well_formed(new.encode())
    assert new not in err
    assert opens(old)
    assert opens(new)
    row = ApiKey.objects.get(prefix=old[:11])
    assert row.expires_at is not None
    assert before <= row.expires_at - timedelta(hours=24) <= timezone.now()
    assert f"{old[:11]}… works until {timezone.localtime(row.expires_at):%Y-%m-%d %H:%M}." in err


@pytest.mark.parametrize(("grace", "seconds"), [("60", 60), ("24h", 86400), ("7d", 604800)])
def test_grace_is_given_in_seconds_or_units(grace: str, seconds: int) -> None:
    old = issue("billing")
    before = timezone.now()
    run("rotate", old[:11], "--grace", grace)
    end = ApiKey.objects.get(prefix=old[:11]).expires_at
    assert end is not None
    assert before <= end - timedelta(seconds=seconds) <= timezone.now()


def test_without_grace_the_old_key_stops() -> None:
    old = issue("billing")
    assert "opens nothing any more." in run("rotate", old[:11], "--grace", "0")[1]
    assert not ApiKey.objects.get(prefix=old[:11]).is_live(timezone.now())


def test_the_new_key_keeps_the_end_of_the_old_one_unless_given_another() -> None:
    for arguments, days in (([], 5), (["--expires-in", "90d"], 90)):
        old = issue("billing", "--expires-in", "5d")
        new = run("rotate", old[:11], "--grace", "0", *arguments)[0]
        end = ApiKey.objects.get(prefix=new[:11]).expires_at
        assert end is not None
        assert abs(end - timezone.now() - timedelta(days=days)) < timedelta(minutes=5)


def test_what_is_over_or_rotated_is_not_rotated() -> None:
    old = issue("billing")
    new = run("rotate", old[:11])[0]
    assert f"rotated already, to {new[:11]}…" in refusal("rotate", old[:11])
    run("revoke", new[:11])
    assert "issue a new one instead" in refusal("rotate", new[:11])
    assert "--grace: write seconds" in refusal("rotate", issue("other")[:11], "--grace", "a day")
    assert ApiKey.objects.count() == 3


def test_a_database_without_tables_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        from django.db import OperationalError

        raise OperationalError("no such table: relay_apikey at /secret/place")

    monkeypatch.setattr(ApiKey.objects, "filter", fail)
    assert "lacks the relay's tables" in refusal("list")
