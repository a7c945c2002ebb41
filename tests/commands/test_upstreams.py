"""`manage.py upstreams` as scripts use it: what it writes, what it prints, what it never prints, and its exit codes."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
import trustme
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings
from django.utils import timezone

from relay.management.commands.upstreams import FIELDS
from relay.models import Change, Credential, HeaderRule, Target, Upstream
from relay.models.usage import add_counts
from relay.upstreams import health
from tests.origin import Origin, refusing_port, reply

pytestmark = pytest.mark.django_db


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(*arguments: str) -> tuple[str, str]:
    """(standard output, standard error)"""
    out, err = io.StringIO(), io.StringIO()
    call_command("upstreams", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def run_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json")[0])


def refusal(*arguments: str) -> str:
    with pytest.raises(CommandError) as problem:
        run(*arguments)
    assert problem.value.returncode == 1
    return str(problem.value)


def test_add_registers_with_the_careful_defaults() -> None:
    out, err = run("add", "a", "https://a.example.com/v1")
    assert out == "Registered a: /relay/a/ leads to https://a.example.com/v1\n"
    assert err == "Callers need a key: issue one with `keys issue CONSUMER --upstream a`.\n"
    row = Upstream.objects.get()
    assert (row.slug, row.access, row.enabled) == ("a", "key", True)
    assert Change.objects.filter(slug="a").exists()


def test_add_takes_everything_at_once(tmp_path: Path) -> None:
    pem = trustme.CA().cert_pem.bytes().decode()
    (tmp_path / "ca.pem").write_text(pem)
    shown = run_json(
        *("add", "a", "http://10.0.0.5:8080", "--access", "anyone"),
        *("--allow-network", "10.0.0.0/8", "--allow-network", "fd00::/8"),
        *("--set", "name=My = name", "--set", "total_timeout_seconds=", "--set", "max_request_bytes=1024"),
        *("--set", "verify_tls=no", "--set", f"ca_bundle=@{tmp_path / 'ca.pem'}", "--set", "allowed_methods=get,post"),
        *("--set", "outbound_proxy=http://user:s3cret@10.0.0.9:3128", "--set", "idle_timeout_seconds=1.5"),
        *("--set", "cors_allowed_origins=https://a.example http://b.example:80", "--set", "cookie_mode=drop"),
        *("--set", "cors_max_age_seconds=", "--set", "cors_exposed_headers=X-A,X-B"),
        *("--header", "request:set:Authorization=Bearer s3cret=:x", "--header", "response:remove:Server"),
    )
    row = Upstream.objects.get()
    assert row.outbound_proxy == "http://user:s3cret@10.0.0.9:3128"
    assert row.header_rules.get(side="request").value == "Bearer s3cret=:x"
    assert row.ca_bundle == pem.strip() + "\n"
    assert shown["allowed_networks"] == ["10.0.0.0/8", "fd00::/8"]
    assert shown["allowed_methods"] == ["GET", "POST"]
    assert shown["cors_allowed_origins"] == ["https://a.example", "http://b.example"]
    assert shown["cors_allowed_headers"] == ["Authorization", "Content-Type", "Relay-Key"]
    assert (shown["cors_exposed_headers"], shown["cors_max_age_seconds"]) == (["X-A", "X-B"], None)
    assert shown["cookie_mode"] == "drop"
    assert shown["name"] == "My = name"
    assert shown["max_request_bytes"] == 1024
    assert shown["total_timeout_seconds"] is None
    assert shown["verify_tls"] is False
    assert shown["outbound_proxy"] == "http://(hidden)@10.0.0.9:3128"
    assert shown["header_rules"] == [
        {"side": "request", "action": "set", "name": "authorization"},
        {"side": "response", "action": "remove", "name": "server"},
    ]
    assert shown["relay_path"] == "/relay/a/"
    assert set(FIELDS) <= set(shown)


def test_add_says_nothing_of_keys_where_none_is_needed() -> None:
    assert run("add", "a", "https://a.example.com", "--access", "anyone")[1] == ""


def test_what_will_not_work_is_warned_of_on_standard_error() -> None:
    _, err = run("add", "a", "http://127.0.0.1:9000")
    assert err.startswith("Warning: 127.0.0.1 is not a public address")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["https://user:s3cret@a.example.com"], "base_url: Take the user name and password out"),
        (["ftp://a.example.com"], "base_url: Begin the URL with http:// or https://"),
        (["https://a.example.com", "--allow-network", "ten"], "allowed_networks: ten is not a network"),
        (["https://a.example.com", "--set", "colour=red"], "colour: There is no such field. There are: name, "),
        (["https://a.example.com", "--set", "slug=b"], "slug: There is no such field."),
        (["https://a.example.com", "--set", "name"], "name: Write name=VALUE"),
        (["https://a.example.com", "--set", "verify_tls=perhaps"], "verify_tls: Write true or false."),
        (["https://a.example.com", "--set", "max_concurrent=many"], "max_concurrent: Write a whole number."),
        (["https://a.example.com", "--set", "max_concurrent="], "max_concurrent: It cannot be empty"),
        (["https://a.example.com", "--set", "head_timeout_seconds=soon"], "head_timeout_seconds: Write a number."),
        (["https://a.example.com", "--set", "head_timeout_seconds=nan"], "head_timeout_seconds: "),
        (["https://a.example.com", "--set", "ca_bundle=@/nowhere/ca.pem"], "ca_bundle: The file /nowhere/ca.pem"),
        (["https://a.example.com", "--set", "ca_bundle=nonsense"], "ca_bundle: There is no certificate"),
        (["https://a.example.com", "--header", "authorization=s3cret"], "--header: write SIDE:ACTION:NAME=VALUE"),
        (["https://a.example.com", "--header", "request:remove:x-a=s3cret"], "--header: write SIDE:ACTION:NAME=VALUE"),
        (["https://a.example.com", "--header", "request:set:host=s3cret"], "--header name: "),
        (["https://a.example.com", "--header", "both:set:x-a=s3cret"], "--header side: "),
    ],
)
def test_what_is_wrong_is_said_by_field_and_nothing_is_written(arguments: list[str], words: str) -> None:
    text = refusal("add", "a", *arguments)
    assert words in text
    assert "s3cret" not in text
    assert not Upstream.objects.exists()
    assert not HeaderRule.objects.exists()


def test_all_wrong_fields_are_named_together() -> None:
    text = refusal("add", "a", "https://a.example.com", "--set", "max_concurrent=0", "--set", "delivery=slowly")
    assert {line.partition(":")[0] for line in text.splitlines()} == {"max_concurrent", "delivery"}


def test_a_taken_slug_points_to_set() -> None:
    run("add", "a", "https://a.example.com")
    assert "upstreams set a" in refusal("add", "a", "https://b.example.com")


def test_set_changes_only_what_is_named() -> None:
    run("add", "a", "https://a.example.com", "--set", "name=A", "--header", "request:set:x-a=1")
    run("set", "a", "--set", "base_url=https://b.example.com", "--set", "enabled=false")
    row = Upstream.objects.get()
    assert (row.base_url, row.enabled, row.name, row.header_rules.count()) == ("https://b.example.com", False, "A", 1)


def test_set_replaces_the_rules_of_the_same_side_and_name() -> None:
    run("add", "a", "https://a.example.com", "--header", "request:set:x-a=1", "--header", "request:set:x-b=2")
    run("set", "a", "--header", "request:set:X-A=3", "--header", "response:set:x-b=4")
    rules = set(HeaderRule.objects.values_list("side", "name", "value"))
    assert rules == {("request", "x-a", "3"), ("request", "x-b", "2"), ("response", "x-b", "4")}
    run("set", "a", "--no-headers")
    assert not HeaderRule.objects.exists()


def test_a_set_that_fails_leaves_all_as_it_was() -> None:
    run("add", "a", "https://a.example.com", "--header", "request:set:x-a=1")
    refusal("set", "a", "--set", "name=new", "--header", "request:set:x-a=2", "--header", "request:set:host=3")
    row = Upstream.objects.get()
    assert (row.name, row.header_rules.get().value) == ("", "1")
    assert "Say what to change" in refusal("set", "a")


def test_list_is_a_table_or_json() -> None:
    assert "There are no upstreams" in run("list")[1]
    assert run_json("list") == []
    run("add", "a", "https://a.example.com")
    run("add", "longer", "https://b.example.com", "--set", "enabled=off", "--access", "anyone")
    head, *lines = run("list")[0].splitlines()
    assert head.split("  ")[0] == "SLUG"
    assert [line.split()[:4] for line in lines] == [
        ["a", "https://a.example.com", "key", "live"],
        ["longer", "https://b.example.com", "anyone", "off"],
    ]
    assert [line.index("https") for line in lines] == [head.index("BASE URL")] * 2
    assert [row["slug"] for row in run_json("list")] == ["a", "longer"]


def test_show_hides_secrets_and_cannot_steer_a_terminal() -> None:
    run(
        *("add", "a", "https://a.example.com", "--set", "description=x\x1b[31m\ny"),
        *("--set", "outbound_proxy=http://user:s3cret@proxy.example.com:3128"),
        *("--header", "request:set:authorization=s3cret", "--header", "request:remove:cookie"),
        *("--set", f"ca_bundle={trustme.CA().cert_pem.bytes().decode()}"),
    )
    for text in (run("show", "a")[0], run("show", "a", "--json")[0]):
        assert "s3cret" not in text
        assert "(hidden)" in text
        assert "\x1b" not in text
    text = run("show", "a")[0]
    assert "request set authorization: (hidden)" in text
    assert "request remove cookie\n" in text
    assert "1 certificates" in text
    assert "http://(hidden)@proxy.example.com:3128" in text


def test_enable_and_disable_take_several_and_refuse_all_when_one_is_unknown() -> None:
    run("add", "a", "https://a.example.com")
    run("add", "b", "https://b.example.com")
    assert run("disable", "a", "b")[0] == "Disabled a, b\n"
    assert not Upstream.objects.filter(enabled=True).exists()
    assert "There is no upstream c." in refusal("enable", "a", "c")
    assert not Upstream.objects.filter(enabled=True).exists()
    run("enable", "a")
    assert Upstream.objects.get(enabled=True).slug == "a"


def test_remove_does_not_ask_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    run("add", "a", "https://a.example.com")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert run("remove", "a")[0] == "Removed a\n"
    assert not Upstream.objects.exists()
    assert "There is no upstream a." in refusal("remove", "a")


@pytest.mark.parametrize(("answer", "is_removed"), [("yes\n", True), ("no\n", False), ("\n", False)])
def test_remove_asks_at_a_terminal(monkeypatch: pytest.MonkeyPatch, answer: str, is_removed: bool) -> None:
    run("add", "a", "https://a.example.com")
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    if is_removed:
        assert "Callers of /relay/a/ will get 404" in run("remove", "a")[0]
    else:
        assert refusal("remove", "a") == "Nothing was removed."
    assert Upstream.objects.exists() is not is_removed


def test_remove_with_yes_never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    run("add", "a", "https://a.example.com")
    monkeypatch.setattr("sys.stdin", Terminal())
    run("remove", "a", "--yes")
    assert not Upstream.objects.exists()


@pytest.mark.parametrize("action", ["show", "set", "check"])
def test_an_unknown_slug_points_to_list(action: str) -> None:
    assert "`upstreams list` shows" in refusal(action, "a", *(["--set", "name=x"] if action == "set" else []))


def test_check_stops_at_the_egress_guard_and_says_which_network() -> None:
    run("add", "a", "http://127.0.0.1:9")
    out = io.StringIO()
    with pytest.raises(CommandError) as problem:
        call_command("upstreams", "check", "a", stdout=out)
    assert problem.value.returncode == 1
    assert str(problem.value) == "a does not work: egress failed."
    dns, egress = out.getvalue().splitlines()
    assert dns.split()[:2] == ["dns", "ok"]
    assert egress.split()[:2] == ["egress", "FAILED"]
    assert "127.0.0.1 is loopback (127.0.0.0/8)" in egress


def test_check_refuses_a_path_that_could_not_be_relayed() -> None:
    run("add", "a", "http://127.0.0.1:9")
    for path in ("x", "/../x", "/é", "/a b", "/a#b", "/a?b\r\nc"):
        assert refusal("check", "a", "--path", path).startswith("--path: ")


@pytest.mark.django_db(transaction=True)
async def test_check_asks_the_upstream_and_tells_each_step(origin: Origin) -> None:
    origin.otherwise(reply(204))

    def in_thread() -> Any:
        try:
            run(
                *("add", "a", f"http://127.0.0.1:{origin.port}/v1/", "--allow-network", "127.0.0.0/8"),
                *("--header", "request:set:authorization=s3cret"),
            )
            return run_json("check", "a"), run("check", "a", "--path", "/x?y=1")[0]
        finally:
            connections.close_all()

    document, text = await asyncio.to_thread(in_thread)
    assert document["ok"] is True
    assert [(step["name"], step["outcome"]) for step in document["steps"]] == [
        ("dns", "ok"),
        ("egress", "ok"),
        ("tcp", "ok"),
        ("http", "ok"),
    ]
    assert document["steps"][-1]["status"] == 204
    assert "204" in text
    assert [request.target for request in origin.requests] == [b"/v1/", b"/v1/x?y=1"]
    assert not any(request.values(b"authorization") for request in origin.requests)


def test_show_tells_what_report_only_let_pass() -> None:
    _, err = run("add", "a", "https://a.example.com", "--set", "report_only=true")
    assert err.startswith("Warning: Report only is on: everybody may call")
    assert "no request would have been refused in the last 7 days" in run("show", "a")[0]
    today = timezone.now().astimezone(UTC).date()
    add_counts({(Upstream.objects.get().pk, "key-required", today): 132}, today=today)
    assert "132 requests would have been refused in the last 7 days: key-required 132" in run("show", "a")[0]
    shown = run_json("show", "a")
    assert (shown["report_only"], shown["would_refuse"]) == (True, {"key-required": 132})
    run("set", "a", "--set", "report_only=false")
    assert "132 requests" in run("show", "a")[0], "what was counted is told after it is switched off, too"


def test_show_tells_what_active_checks_found(tmp_path: Path) -> None:
    run("add", "a", "https://a.example.com")
    assert "health  " not in run("show", "a")[0], "nothing is checked"
    assert run_json("show", "a")["unhealthy"] is None
    run("set", "a", "--set", "check_path=/healthz")
    with override_settings(RELAY_STORE_FOLDER=tmp_path):
        (tmp_path / "health").touch()
        assert "not known: no relay of this machine is checking" in run("show", "a")[0]
        (tmp_path / "health-lock").touch()  # as whoever checks does
        found: list[list[object]] = [["b", "b.example.com:443", "status 500", 0]]
        for line in (None, ["a", "a.example.com:443", "status 503", 1_700_000_000]):
            found += [line] if line else []
            (tmp_path / "health").write_text(json.dumps({"format": health.FORMAT, "unhealthy": found}))
            told = run("show", "a")[0]
            assert ("all targets are healthy" in told) is (line is None)
            assert "b.example.com" not in told
        assert "a.example.com:443 is unhealthy since 2023-11-14T22:13:20+00:00 (status 503)" in told
        assert run_json("show", "a")["unhealthy"] == [
            {"target": "a.example.com:443", "reason": "status 503", "since": "2023-11-14T22:13:20+00:00"}
        ]


# Targets


def places() -> list[tuple[str, int, bool, bool]]:
    return list(Target.objects.order_by("id").values_list("address", "weight", "enabled", "backup"))


def test_add_takes_targets_and_says_how_many() -> None:
    out, err = run(
        *("add", "a", "https://a.example.com", "--access", "anyone", "--set", "balancing=round-robin"),
        *("--target", "B.example.com:8443,weight=3", "--target", "c.example.com, backup, off", "--target", "[2620::1]"),
        *("--set", "check_path=/healthz", "--set", "host_header=target", "--set", "max_retries=2"),
    )
    assert out == "Registered a: /relay/a/ leads to https://a.example.com at 3 targets\n"
    assert err == ""
    assert places() == [
        ("b.example.com:8443", 3, True, False),
        ("c.example.com", 1, False, True),
        ("[2620::1]", 1, True, False),
    ]
    row = Upstream.objects.get()
    assert (row.balancing, row.check_path, row.host_header, row.max_retries) == ("round-robin", "/healthz", "target", 2)


def test_set_adds_targets_and_changes_what_it_says_of_those_there_are() -> None:
    run("add", "a", "https://a.example.com", "--target", "b.example.com,weight=3,backup", "--target", "c.example.com")
    before = Upstream.objects.get().changed_at
    out, _ = run("set", "a", "--target", "B.example.com,off", "--target", "d.example.com,weight=2")
    assert out == "Changed a: /relay/a/ leads to https://a.example.com at 3 targets\n"
    assert places() == [
        ("b.example.com", 3, False, True),
        ("c.example.com", 1, True, False),
        ("d.example.com", 2, True, False),
    ]
    assert Upstream.objects.get().changed_at > before
    run("set", "a", "--target", "b.example.com,on,ordinary,weight=100")
    assert places()[0] == ("b.example.com", 100, True, False)


def test_set_removes_targets_first() -> None:
    run("add", "a", "https://a.example.com", "--target", "b.example.com", "--target", "c.example.com:81")
    run("set", "a", "--remove-target", "C.example.com:081", "--target", "d.example.com")
    assert [address for address, *_ in places()] == ["b.example.com", "d.example.com"]
    out, _ = run("set", "a", "--no-targets", "--target", "e.example.com")
    assert out == "Changed a: /relay/a/ leads to https://a.example.com at 1 target\n"
    assert [address for address, *_ in places()] == ["e.example.com"]
    assert run("set", "a", "--no-targets")[0] == "Changed a: /relay/a/ leads to https://a.example.com\n"
    assert places() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "http://b.example.com"], "--target: Write host and port alone"),
        (["--target", ""], "--target: Give a host"),
        (["--target", "d.example.com,weight=heavy"], "--target: write ADDRESS"),
        (["--target", "d.example.com,weight"], "--target: write ADDRESS"),
        (["--target", "d.example.com,off=1"], "--target: write ADDRESS"),
        (["--target", "d.example.com,standby"], "--target: write ADDRESS"),
        (["--target", "d.example.com,weight=0"], "--target weight: "),
        (["--target", "d.example.com,weight=101"], "--target weight: "),
        (["--remove-target", "c.example.com"], "--remove-target: a has no target c.example.com. It has b.example.com."),
        (["--remove-target", "b.example.com/x"], "--remove-target: Write host and port alone"),
    ],
)
def test_what_is_wrong_with_targets_is_said_and_nothing_is_written(arguments: list[str], words: str) -> None:
    run("add", "a", "https://a.example.com", "--target", "b.example.com")
    assert words in refusal("set", "a", "--set", "name=new", "--target", "n.example.com", *arguments)
    assert places() == [("b.example.com", 1, True, False)]
    assert Upstream.objects.get().name == ""


def test_lists_and_documents_hold_targets() -> None:
    run(
        *("add", "a", "https://a.example.com"),
        *("--target", "b.example.com,weight=3", "--target", "c.example.com,off,backup"),
    )
    run("add", "plain", "https://a.example.com")
    run("add", "two", "https://a.example.com", "--target", "b.example.com", "--target", "c.example.com")
    head, *lines = run("list")[0].splitlines()
    assert [line[head.index("TARGETS") :].split()[0] for line in lines] == ["1/2", "-", "2"]
    shown = [" ".join(line.split()) for line in run("show", "a")[0].splitlines()]
    assert "target b.example.com, weight 3" in shown
    assert "target c.example.com, weight 1, backup, off" in shown
    document = run_json("show", "a")
    assert document["targets"] == [
        {"address": "b.example.com", "weight": 3, "enabled": True, "backup": False},
        {"address": "c.example.com", "weight": 1, "enabled": False, "backup": True},
    ]
    assert [row["targets"] for row in run_json("list")][:2] == [document["targets"], []]


def test_another_place_warns_that_the_credential_needs_to_be_confirmed() -> None:
    run("add", "a", "https://a.example.com", "--target", "b.example.com")
    Credential.put(Upstream.objects.get(), "bearer", secrets={"secret": "s3cret"})
    assert run("set", "a", "--target", "b.example.com,weight=2")[1] == ""
    assert "was confirmed for another place" in run("set", "a", "--target", "c.example.com")[1]
    assert run("set", "a", "--remove-target", "c.example.com")[1] == ""
    assert "was confirmed for another place" in run("set", "a", "--no-targets")[1]


@pytest.mark.django_db(transaction=True)
async def test_check_tries_every_target_that_is_on(origin: Origin) -> None:
    origin.otherwise(reply(204))

    def in_thread(dead: int) -> Any:
        live = f"127.0.0.1:{origin.port}"
        try:
            run(
                *("add", "a", "http://a.invalid/v1", "--allow-network", "127.0.0.0/8", "--target", live),
                *("--target", f"127.0.0.2:{dead}", "--target", "b.invalid,off"),
            )
            out = io.StringIO()
            with pytest.raises(CommandError) as problem:
                call_command("upstreams", "check", "a", "--json", stdout=out)
            document = json.loads(out.getvalue())
            out = io.StringIO()
            with pytest.raises(CommandError):
                call_command("upstreams", "check", "a", stdout=out)
            run("set", "a", "--target", f"127.0.0.2:{dead},off")
            return str(problem.value), document, out.getvalue(), run_json("check", "a")
        finally:
            connections.close_all()

    with refusing_port() as dead:
        problem, document, text, alone = await asyncio.to_thread(in_thread, dead)
    assert problem == f"a does not work: tcp failed at 127.0.0.2:{dead}."
    assert (document["slug"], document["ok"]) == ("a", False)
    assert [(each["target"], each["ok"], each["steps"][-1]["name"]) for each in document["targets"]] == [
        (f"127.0.0.1:{origin.port}", True, "http"),
        (f"127.0.0.2:{dead}", False, "tcp"),
    ]
    assert [line.split()[:3] for line in text.splitlines()] == [
        *([f"127.0.0.1:{origin.port}", step, "ok"] for step in ("dns", "egress", "tcp", "http")),
        *([f"127.0.0.2:{dead}", step, "ok"] for step in ("dns", "egress")),
        [f"127.0.0.2:{dead}", "tcp", "FAILED"],
    ]
    assert (alone["ok"], alone["steps"][-1]["status"], "targets" in alone) == (True, 204, False)
    assert {request.values(b"host")[0] for request in origin.requests} == {b"a.invalid"}


def test_check_of_an_upstream_whose_targets_are_off_says_so() -> None:
    run("add", "a", "http://127.0.0.1:9", "--target", "127.0.0.1:9,off")
    assert refusal("check", "a") == "a does not work: all of its targets are switched off."
