"""`manage.py upstreams`: the table of upstreams for scripts and terminals, with the same verdicts as the admin.

What is written goes through the models, so it is validated and seen by every running worker. Values of header rules and
the user and password of an outbound proxy are taken, never shown.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, OutputWrapper
from django.db import Error, models, transaction
from django.utils import timezone

from relay import conf
from relay.catalog import credentials, loader
from relay.errors import PathRefused
from relay.management import targets
from relay.management.authored import AuthoredCommand
from relay.management.problems import sentences
from relay.models import Access, CredentialKind, HeaderRule, Upstream, usage
from relay.rules.paths import check_path, join_target
from relay.rules.urls import parse_proxy_url
from relay.upstreams import health
from relay.upstreams.probe import Step, probe_all

FIELDS = (
    "name",
    "description",
    "base_url",
    "enabled",
    "access",
    "allowed_methods",
    "report_only",
    "connect_timeout_seconds",
    "head_timeout_seconds",
    "idle_timeout_seconds",
    "min_upload_bytes_per_second",
    "total_timeout_seconds",
    "balancing",
    "balancing_header",
    "max_retries",
    "retry_percent",
    "breaker_failures",
    "breaker_percent",
    "breaker_seconds",
    "check_path",
    "check_method",
    "check_statuses",
    "check_body",
    "check_interval_seconds",
    "check_timeout_seconds",
    "check_failures",
    "check_successes",
    "max_request_bytes",
    "max_response_bytes",
    "max_concurrent",
    "max_queued",
    "queue_timeout_seconds",
    "max_connections",
    "keepalive_seconds",
    "delivery",
    "max_buffered_bytes",
    "host_header",
    "cookie_mode",
    "cors_allowed_origins",
    "cors_allowed_methods",
    "cors_allowed_headers",
    "cors_exposed_headers",
    "cors_allow_credentials",
    "cors_max_age_seconds",
    "allowed_networks",
    "verify_tls",
    "ca_bundle",
    "outbound_proxy",
)
"""What `--set` takes and exports hold."""

LISTS = (
    "allowed_methods",
    "allowed_networks",
    "cors_allowed_origins",
    "cors_allowed_methods",
    "cors_allowed_headers",
    "cors_exposed_headers",
)
"""Those that are lists in JSON."""

HIDDEN = "(hidden)"
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_HEADER_FORM = "write SIDE:ACTION:NAME=VALUE, such as request:set:User-Agent=relay, or response:remove:Server"


class Command(AuthoredCommand):
    help = "Register, show, change, try and remove upstreams."
    requires_system_checks = ()  # `serve` and `check` tell of the settings

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

        def action(name: str, act: Callable[..., None], text: str) -> ArgumentParser:
            sub: ArgumentParser = actions.add_parser(name, help=text, description=text)
            sub.set_defaults(act=act)
            return sub

        add = action("add", self.add, "Register an upstream.")
        add.add_argument("slug", metavar="SLUG", help="its name in relay URLs: /relay/SLUG/")
        add.add_argument("url", metavar="URL", help="its base URL, such as https://api.example.com/v1")
        add.add_argument("--access", choices=Access.values, help="who may call it; default: key")
        add.add_argument(
            "--allow-network", metavar="CIDR", action="append", default=[], help="a network it may be in; repeatable"
        )
        change = action("set", self.change, "Change an upstream.")
        change.add_argument("slug", metavar="SLUG")
        change.add_argument("--no-headers", action="store_true", help="first remove all of its header rules")
        change.add_argument("--no-targets", action="store_true", help="first remove all of its targets")
        change.add_argument(
            "--remove-target",
            metavar="ADDRESS",
            dest="removed_targets",
            action="append",
            default=[],
            help="remove the target with this address; repeatable",
        )
        for sub in (add, change):
            sub.add_argument(
                "--set",
                metavar="FIELD=VALUE",
                dest="assignments",
                action="append",
                default=[],
                help=f"repeatable; ca_bundle=@FILE reads a file. Fields: {', '.join(FIELDS)}",
            )
            sub.add_argument(
                "--header",
                metavar="SIDE:ACTION:NAME[=VALUE]",
                dest="headers",
                action="append",
                default=[],
                help="a header rule; repeatable. In `set` it takes the place of the rules for that side and name",
            )
            sub.add_argument(
                "--target",
                metavar="ADDRESS[,weight=N][,backup|,ordinary][,on|,off]",
                dest="target_texts",
                action="append",
                default=[],
                help="a target; repeatable. In `set` it adds one, or changes what it says of the one with that address",
            )
        show = action("show", self.show, "Show one upstream with all of its fields.")
        show.add_argument("slug", metavar="SLUG")
        listing = action("list", self.list_all, "List all upstreams.")
        check = action(
            "check", self.check_upstream, "Try each target of an upstream step by step; exit code 1 when a step fails."
        )
        check.add_argument("slug", metavar="SLUG")
        check.add_argument(
            "--path", metavar="PATH", default="", help="what to ask for under the base URL, such as /status?full=1"
        )
        for sub in (add, change, show, listing, check):
            sub.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
        for name, act, text in (
            ("enable", self.enable, "Switch upstreams on."),
            ("disable", self.disable, "Switch upstreams off: callers get 404."),
            ("remove", self.remove, "Remove upstreams, their targets and their header rules."),
        ):
            sub = action(name, act, text)
            sub.add_argument("slugs", metavar="SLUG", nargs="+")
        sub.add_argument("--yes", action="store_true", help="do not ask; it is only asked at a terminal")

    def handle(self, *, act: Callable[..., None], **options: Any) -> None:
        try:
            act(**options)
        except ValidationError as problem:
            raise CommandError("\n".join(sentences(problem))) from None
        except Error as problem:
            raise CommandError(str(loader.unreadable(problem))) from None

    def add(
        self,
        *,
        slug: str,
        url: str,
        access: str | None,
        allow_network: list[str],
        assignments: list[str],
        headers: list[str],
        target_texts: list[str],
        as_json: bool,
        **_: Any,
    ) -> None:
        row = Upstream(slug=slug, base_url=url)
        _assign(row, assignments)
        if access is not None:
            row.access = access
        row.allowed_networks = "\n".join([row.allowed_networks, *allow_network]).strip()
        if Upstream.objects.filter(slug=slug).exists():
            raise CommandError(f"There is an upstream {slug} already: change it with `upstreams set {slug}`.")
        rules, places = _header_rules(headers), targets.read(target_texts)
        with transaction.atomic():
            row.save()
            _save_rules(row, rules)
            targets.save(row, places)
        self._written(row, "Registered", as_json=as_json)
        if row.access == Access.KEY:
            self.stderr.write(f"Callers need a key: issue one with `keys issue CONSUMER --upstream {row.slug}`.", str)

    def change(
        self,
        *,
        slug: str,
        assignments: list[str],
        headers: list[str],
        no_headers: bool,
        target_texts: list[str],
        removed_targets: list[str],
        no_targets: bool,
        as_json: bool,
        **_: Any,
    ) -> None:
        if not (assignments or headers or no_headers or target_texts or removed_targets or no_targets):
            raise CommandError(
                "Say what to change: --set FIELD=VALUE, --header, --no-headers, --target, --remove-target or "
                "--no-targets."
            )
        rules, places = _header_rules(headers), targets.read(target_texts)
        with transaction.atomic():
            row = find_one(slug)
            _assign(row, assignments)
            row.save()
            replaced = row.header_rules.all()
            if not no_headers:
                same = models.Q(pk__in=[])
                for rule in rules:
                    same |= models.Q(side=rule.side, name=rule.name.strip().lower())
                replaced = replaced.filter(same)
            replaced.delete()
            _save_rules(row, rules)
            if no_targets:
                row.targets.all().delete()
            targets.remove(row, removed_targets)
            targets.save(row, places)
        self._written(row, "Changed", as_json=as_json)

    def _written(self, row: Upstream, verb: str, *, as_json: bool) -> None:
        if as_json:
            self._print_json(document(row))
        else:
            count = row.targets.count()
            at = f" at {count} target{'' if count == 1 else 's'}" if count else ""
            self.stdout.write(f"{verb} {row.slug}: {row.relay_path} leads to {row.base_url}{at}")
        self._warn(row)

    def _warn(self, row: Upstream) -> None:
        for warning in row.warnings():
            self.stderr.write(f"Warning: {warning}")

    def list_all(self, *, as_json: bool, **_: Any) -> None:
        rows = Upstream.objects.prefetch_related("header_rules", "targets").iterator(chunk_size=1000)
        if as_json:
            self._print_json([document(row) for row in rows])
            return
        lines = [("SLUG", "BASE URL", "ACCESS", "STATE", "TARGETS", "LAST CHANGE")]
        lines += [
            (
                row.slug,
                row.base_url,
                row.access,
                "live" if row.enabled else "off",
                targets.count(row),
                _local(row.changed_at),
            )
            for row in rows
        ]
        if len(lines) == 1:
            self.stderr.write("There are no upstreams. Register one with `upstreams add SLUG URL`.")
        else:
            print_table(self.stdout, lines)

    def show(self, *, slug: str, as_json: bool, **_: Any) -> None:
        row = find_one(slug)
        counts = usage.would_refuse(row)
        unhealthy = _unhealthy_targets(row)
        if as_json:
            self._print_json(document(row) | {"would_refuse": counts, "unhealthy": unhealthy})
            return
        lines = [("slug", row.slug), ("relay_path", row.relay_path)]
        lines += [(field, _in_words(field, value)) for field, value in _values(row).items()]
        lines += [("target", line) for line in targets.lines(row)]
        if row.check_path:
            lines.append(("health", _health_in_words(unhealthy)))
        for rule in row.header_rules.all():
            value = "" if rule.action == "remove" else f": {HIDDEN}"
            lines.append(("header rule", f"{rule.side} {rule.action} {rule.name}{value}"))
        if row.report_only or counts:
            lines.append(("report", usage.report(counts)))
        lines += [("created_at", _local(row.created_at)), ("changed_at", _local(row.changed_at))]
        print_table(self.stdout, lines)
        self._warn(row)

    def enable(self, *, slugs: Sequence[str], **_: Any) -> None:
        self._switch(slugs, on=True)

    def disable(self, *, slugs: Sequence[str], **_: Any) -> None:
        self._switch(slugs, on=False)

    def _switch(self, slugs: Sequence[str], *, on: bool) -> None:
        Upstream.objects.filter(pk__in=[row.pk for row in find_all(slugs)]).update(enabled=on)
        self.stdout.write(f"{'Enabled' if on else 'Disabled'} {', '.join(slugs)}")

    def remove(self, *, slugs: Sequence[str], yes: bool, **_: Any) -> None:
        rows = find_all(slugs)
        if not yes and sys.stdin.isatty():
            paths = ", ".join(row.relay_path for row in rows)
            self.stdout.write(f"Callers of {paths} will get 404, and the header rules are lost.")
            if input("Remove? Type yes: ").strip().lower() not in {"y", "yes"}:
                raise CommandError("Nothing was removed.")
        Upstream.objects.filter(pk__in=[row.pk for row in rows]).delete()
        self.stdout.write(f"Removed {', '.join(slugs)}")

    def check_upstream(self, *, slug: str, path: str, as_json: bool, **_: Any) -> None:
        row = find_one(slug)
        places = [loader.TargetRow(*values) for values in row.targets.values_list(*loader.TargetRow._fields)]
        shown = credentials.rows_of(row, kind=CredentialKind.CERTIFICATE)
        try:
            upstream = loader.snapshot_of(row, shown=shown, targets=places)
        except loader.RowUnreadable as problem:
            raise CommandError(f"{slug} cannot be used: {problem}. Save it anew.") from None
        if not upstream.targets:
            raise CommandError(f"{slug} does not work: all of its targets are switched off.")
        asked = _request_target(path, upstream.base_prefix) if path else upstream.bare_target
        probed = {target.name: steps for target, steps in asyncio.run(probe_all(upstream, path=asked))}
        if as_json:
            self._print_json(_report(slug, probed))
        else:
            print_table(
                self.stdout,
                [
                    (
                        *([name] if len(probed) > 1 else []),
                        step.name,
                        "ok" if step.succeeded else "FAILED",
                        f"{step.milliseconds:.1f} ms",
                        step.detail,
                    )
                    for name, steps in probed.items()
                    for step in steps
                ],
            )
        failed = [
            f"{steps[-1].name} failed{f' at {name}' if len(probed) > 1 else ''}"
            for name, steps in probed.items()
            if not steps[-1].succeeded
        ]
        if failed:
            raise CommandError(f"{slug} does not work: {', '.join(failed)}.")

    def _print_json(self, value: Any) -> None:
        self.stdout.write(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(stdout: OutputWrapper, rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the last runs free. Nothing in a cell can steer a terminal."""
    cells = [[_CONTROL.sub(" ", cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        stdout.write("  ".join(padded).rstrip())


def document(row: Upstream) -> dict[str, Any]:
    """An upstream as JSON, without its secrets."""
    return {
        "slug": row.slug,
        "relay_path": row.relay_path,
        **_values(row),
        "targets": targets.documents(row),
        "header_rules": [
            {"side": rule.side, "action": rule.action, "name": rule.name} for rule in row.header_rules.all()
        ],
        "created_at": row.created_at.isoformat(),
        "changed_at": row.changed_at.isoformat(),
    }


def _values(row: Upstream) -> dict[str, Any]:
    values: dict[str, Any] = {field: getattr(row, field) for field in FIELDS}
    for field in LISTS:
        values[field] = getattr(row, field).replace(",", " ").split()
    values["outbound_proxy"] = _without_userinfo(row.outbound_proxy)
    return values


def _without_userinfo(proxy: str) -> str:
    if "@" not in proxy:
        return proxy
    try:
        scheme = parse_proxy_url(proxy).scheme
    except ValueError:
        return HIDDEN
    return f"{scheme}://{HIDDEN}@{proxy.rpartition('@')[2]}"


def _in_words(field: str, value: Any) -> str:
    if field == "ca_bundle" and value:
        return f"{value.count('-----BEGIN CERTIFICATE-----')} certificates"
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _report(slug: str, probed: Mapping[str, list[Step]]) -> dict[str, Any]:
    """`steps` where there is one target, and `targets` with the steps of each where there are several."""
    reports = [
        {"target": name, "ok": steps[-1].succeeded, "steps": [_step_document(step) for step in steps]}
        for name, steps in probed.items()
    ]
    found = {"steps": reports[0]["steps"]} if len(reports) == 1 else {"targets": reports}
    return {"slug": slug, "ok": all(report["ok"] for report in reports), **found}


def _step_document(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "outcome": "ok" if step.succeeded else "failed",
        "milliseconds": step.milliseconds,
        "detail": step.detail,
        **step.facts,
    }


def _unhealthy_targets(row: Upstream) -> list[dict[str, Any]] | None:
    """As the checks of this machine say; None where nobody checks."""
    folder = conf.current().store_folder
    found = health.report(folder) if folder is not None and row.check_path else None
    if found is None:
        return None
    return [
        {
            "target": name,
            "reason": finding.reason,
            "since": datetime.fromtimestamp(finding.since, UTC).isoformat(timespec="seconds"),
        }
        for (slug, name), finding in sorted(found.items())
        if slug == row.slug
    ]


def _health_in_words(unhealthy: list[dict[str, Any]] | None) -> str:
    if unhealthy is None:
        return "not known: no relay of this machine is checking"
    told = [f"{one['target']} is unhealthy since {one['since']} ({one['reason']})" for one in unhealthy]
    return "; ".join(told) or "all targets are healthy"


def find_one(slug: str) -> Upstream:
    return find_all([slug])[0]


def find_all(slugs: Iterable[str]) -> list[Upstream]:
    slugs = list(slugs)
    found = {row.slug: row for row in Upstream.objects.filter(slug__in=slugs)}
    missing = [slug for slug in slugs if slug not in found]
    if missing:
        raise CommandError(f"There is no upstream {', '.join(missing)}. `upstreams list` shows those there are.")
    return list(found.values())


def _assign(row: Upstream, assignments: Iterable[str]) -> None:
    """Sets what `FIELD=VALUE` texts say; all that are wrong are named together."""
    problems: dict[str, list[str]] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if name not in FIELDS:
            problems.setdefault(name or "--set", []).append(f"There is no such field. There are: {', '.join(FIELDS)}.")
        elif not equals:
            problems.setdefault(name, []).append(f"Write {name}=VALUE; {name}= empties it.")
        else:
            try:
                setattr(row, name, _value(name, text))
            except ValueError as problem:
                problems.setdefault(name, []).append(str(problem))
    if problems:
        raise ValidationError(problems)


def _value(name: str, text: str) -> Any:
    """The value of a field for what was written on the command line. ValueError says what to write."""
    field = Upstream._meta.get_field(name)
    if isinstance(field, models.BooleanField):
        if text.lower() not in _TRUE | _FALSE:
            raise ValueError("Write true or false.")
        return text.lower() in _TRUE
    if isinstance(field, models.FloatField | models.IntegerField):
        kind, words = (float, "number") if isinstance(field, models.FloatField) else (int, "whole number")
        if not text:
            if field.null:
                return None
            raise ValueError(f"It cannot be empty: write a {words}.")
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"Write a {words}.") from None
    if name == "ca_bundle" and text.startswith("@"):
        try:
            return Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as problem:
            reason = getattr(problem, "strerror", None) or "it is not text"
            raise ValueError(f"The file {text[1:]} cannot be read: {reason}.") from None
    return text


def _header_rules(texts: Iterable[str]) -> list[HeaderRule]:
    """Rules not yet saved. A text that has not the form is not repeated: it may hold a secret."""
    rules = []
    for text in texts:
        head, equals, value = text.partition("=")
        parts = head.split(":")
        if len(parts) != 3 or (parts[1] == "remove") == bool(equals):
            raise CommandError(f"--header: {_HEADER_FORM}.")
        rules.append(HeaderRule(side=parts[0], action=parts[1], name=parts[2], value=value))
    return rules


def _save_rules(row: Upstream, rules: Iterable[HeaderRule]) -> None:
    for rule in rules:
        rule.upstream = row
        try:
            rule.save()
        except ValidationError as problem:
            raise CommandError("\n".join(f"--header {line}" for line in sentences(problem))) from None


def _request_target(path: str, base_prefix: bytes) -> bytes:
    before, _, query = path.partition("?")
    try:
        raw = before.encode("ascii")
        raw_query = query.encode("ascii")
        check_path(raw)
        if not raw.startswith(b"/") or re.search(rb"[\x00-\x20\x7f#]", raw + raw_query):
            raise ValueError
    except (PathRefused, ValueError):
        raise CommandError(
            "--path: begin it with /, percent-encode what is not ASCII, and leave out dot segments and fragments."
        ) from None
    return join_target(base_prefix + raw, raw_query or None)


def _local(moment: Any) -> str:
    return f"{timezone.localtime(moment):%Y-%m-%d %H:%M}"
