"""`manage.py keys`: consumers' keys for scripts and terminals.

A new key is alone on the last line of standard output, once; every other word goes to standard error. Keys are named by
the part that lists show. A whole key that is given in its place is refused, and never repeated.
"""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.db import Error, transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from relay.catalog import loader
from relay.management.authored import AuthoredCommand
from relay.management.commands.upstreams import find_all, print_table
from relay.management.problems import sentences
from relay.models import Access, ApiKey, Consumer, Grant, Upstream
from relay.models.key_states import local, not_over, state_of, words_for
from relay.rules.keys import PREFIX_CHARACTERS

DEFAULT_GRACE = "24h"
LONGEST = timedelta(days=100 * 365)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d{1,12})([smhdw]?)")
_PREFIX = re.compile(r"rk_[a-z0-9]{8}")


class Command(AuthoredCommand):
    help = "Issue, list, rotate and revoke the keys of consumers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

        def action(name: str, act: Callable[..., None], text: str) -> ArgumentParser:
            sub: ArgumentParser = actions.add_parser(name, help=text, description=text)
            sub.set_defaults(act=act)
            return sub

        issue = action(
            "issue",
            self.issue,
            "Issue a key. Makes the consumer and the grants it needs; prints the key alone on the last line, once.",
        )
        issue.add_argument("consumer", metavar="CONSUMER", help="who is to have it, such as billing-batch")
        issue.add_argument(
            "--upstream",
            metavar="SLUG",
            dest="upstreams",
            action="append",
            default=[],
            help="what it may call; repeatable. Grants that are there stay as they are",
        )
        issue.add_argument(
            "--method",
            metavar="METHOD",
            dest="methods",
            action="append",
            default=[],
            help="grant this method alone; repeatable. Default: all that the upstream allows",
        )
        issue.add_argument(
            "--path-prefix",
            metavar="PATH",
            dest="prefixes",
            action="append",
            default=[],
            help="grant what is below this path alone, such as /v1/chat; repeatable. Default: any path",
        )
        issue.add_argument("--label", metavar="TEXT", default="", help="what it is for, such as production")
        issue.add_argument("--owner", metavar="USER", help="the user a new consumer belongs to")
        listing = action("list", self.list_all, "List keys that are neither revoked nor expired.")
        listing.add_argument("--consumer", metavar="CONSUMER", help="those of this consumer alone")
        listing.add_argument("--all", action="store_true", dest="with_dead", help="revoked and expired ones, too")
        listing.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
        rotate = action(
            "rotate", self.rotate, "Put a new key in the place of one; prints it alone on the last line, once."
        )
        revoke = action("revoke", self.revoke, "Revoke a key: within 2 seconds it opens nothing, in any worker.")
        for sub in (rotate, revoke):
            sub.add_argument(
                "prefix", metavar="PREFIX", help="the part of the key that lists show, such as rk_abcd2345"
            )
        rotate.add_argument(
            "--grace",
            metavar="TIME",
            default=DEFAULT_GRACE,
            help=f"how long the old key goes on working, in seconds or such as 30m, 12h, 7d; default: {DEFAULT_GRACE}",
        )
        for sub, otherwise in ((issue, "never"), (rotate, "when the old one would have")):
            end = sub.add_mutually_exclusive_group()
            end.add_argument(
                "--expires-in", metavar="TIME", help=f"when it expires, such as 90d or 12h; default: {otherwise}"
            )
            end.add_argument(
                "--expires-at", metavar="MOMENT", help="when it expires, such as 2030-01-31 or 2030-01-31T12:00:00Z"
            )

    def handle(self, *, act: Callable[..., None], **options: Any) -> None:
        try:
            act(**options)
        except ValidationError as problem:
            raise CommandError("\n".join(sentences(problem))) from None
        except Error as problem:
            raise CommandError(str(loader.unreadable(problem))) from None

    def issue(
        self,
        *,
        consumer: str,
        upstreams: Sequence[str],
        methods: Sequence[str],
        prefixes: Sequence[str],
        label: str,
        owner: str | None,
        expires_in: str | None,
        expires_at: str | None,
        **_: Any,
    ) -> None:
        if (methods or prefixes) and not upstreams:
            raise CommandError("Say where the methods and paths are granted: --upstream SLUG.")
        end = _end(expires_in, expires_at)
        said: list[str] = []
        with transaction.atomic():
            holder = self._consumer(consumer, owner, said)
            for upstream in find_all(dict.fromkeys(upstreams)):
                self._grant(holder, upstream, methods, prefixes, said)
            key, text = ApiKey.issue(holder, label=label, expires_at=end)
        self._say(*said, *_warnings(holder))
        self._print_key(key, text)

    def _consumer(self, name: str, owner_name: str | None, said: list[str]) -> Consumer:
        name = " ".join(name.split())
        owner = None if owner_name is None else _user(owner_name)
        found = Consumer.objects.select_related("owner").filter(name=name).first()
        if found is None:
            found = Consumer(name=name, owner=owner)
            try:
                found.save()
            except ValidationError as problem:
                raise CommandError("\n".join(f"CONSUMER {line}" for line in sentences(problem))) from None
            said.append(f"Made the consumer {name}.")
        elif owner is not None and found.owner != owner:
            raise CommandError(
                f"{name} is there already and belongs to {found.owner or 'nobody'}: leave --owner out, or change its "
                "owner in the admin."
            )
        return found

    def _grant(
        self, holder: Consumer, upstream: Upstream, methods: Sequence[str], prefixes: Sequence[str], said: list[str]
    ) -> None:
        try:
            grant = Grant.add_lacking(holder, upstream, methods=" ".join(methods), prefixes="\n".join(prefixes))
        except ValidationError as problem:
            lines = sentences(problem)
            raise CommandError(
                "\n".join(
                    line.replace("methods:", "--method:").replace("path_prefixes:", "--path-prefix:") for line in lines
                )
            ) from None
        if grant is not None:
            below = f" below {', '.join(grant.path_prefixes.split())}" if grant.path_prefixes else ""
            said.append(f"Granted {holder} {grant}{below}.")
        else:
            said.append(f"{holder} has a grant at {upstream.slug} already, which stays as it is.")
        if upstream.access == Access.ANYONE:
            said.append(f"{upstream.slug} is open to anyone: it asks for no key.")

    def _print_key(self, key: ApiKey, text: str) -> None:
        until = f", until {local(key.expires_at)}" if key.expires_at else ""
        self._say(f"The key of {key.consumer}{until}, shown this once:")
        self.stdout.write(text)

    def _say(self, *lines: str) -> None:
        for line in lines:
            self.stderr.write(line, str)

    def list_all(self, *, consumer: str | None, with_dead: bool, as_json: bool, **_: Any) -> None:
        now = timezone.now()
        which = Q() if with_dead else not_over(now)
        if consumer is not None:
            which &= Q(consumer=_find_consumer(consumer))
        rows = (
            ApiKey.objects.filter(which)
            .select_related("consumer__owner", "rotated_to")
            .order_by("consumer__name", "-created_at", "-id")
            .iterator(chunk_size=1000)
        )
        if as_json:
            self.stdout.write(json.dumps([_document(key, now) for key in rows], indent=2, ensure_ascii=False))
            return
        lines = [("KEY", "CONSUMER", "LABEL", "CREATED", "EXPIRES", "LAST USED", "STATE")]
        lines += [
            (
                str(key),
                key.consumer.name,
                key.label,
                local(key.created_at),
                local(key.expires_at) or "never",
                local(key.last_used_at) or "never",
                " ".join(words_for(key, now)).strip(),
            )
            for key in rows
        ]
        if len(lines) > 1:
            print_table(self.stdout, lines)
        else:
            self._say("There are no such keys. Issue one with `keys issue CONSUMER --upstream SLUG`.")

    def revoke(self, *, prefix: str, **_: Any) -> None:
        key = _find(prefix)
        if key.revoked_at is not None:
            self._say(f"{key} of {key.consumer} was revoked already, at {local(key.revoked_at)}.")
            return
        key.revoke()
        self.stdout.write(f"Revoked {key} of {key.consumer}")

    def rotate(self, *, prefix: str, grace: str, expires_in: str | None, expires_at: str | None, **_: Any) -> None:
        key = _find(prefix)
        end = _end(expires_in, expires_at)
        fields = {} if end is None else {"expires_at": end}
        following, text = key.rotate(grace=_duration(grace, "--grace"), **fields)
        if key.is_live(timezone.now()):
            self._say(f"{key} works until {local(key.expires_at)}.")
        else:
            self._say(f"{key} opens nothing any more.")
        self._print_key(following, text)


def _find(shown: str) -> ApiKey:
    """The key that lists show so. Nothing that may be a secret is repeated."""
    prefix = shown.strip().rstrip("….")
    if len(prefix) > PREFIX_CHARACTERS and prefix.startswith("rk_"):
        raise CommandError(
            f"That is a whole key, which is a secret: give its first {PREFIX_CHARACTERS} characters, as `keys list` "
            "shows them. Revoke it if others can read this shell's history."
        )
    if not _PREFIX.fullmatch(prefix):
        raise CommandError("That is no key's prefix: write rk_ and eight characters, as `keys list` shows them.")
    key = ApiKey.objects.select_related("consumer__owner", "rotated_to").filter(prefix=prefix).first()
    if key is None:
        raise CommandError(f"There is no key {prefix}…. `keys list --all` shows those there are.")
    return key


def _find_consumer(name: str) -> Consumer:
    consumer = Consumer.objects.filter(name=" ".join(name.split())).first()
    if consumer is None:
        raise CommandError("There is no such consumer. `keys list` shows those that have keys.")
    return consumer


def _user(name: str) -> Any:
    users = get_user_model()
    user = users._default_manager.filter(**{users.USERNAME_FIELD: name}).first()
    if user is None:
        raise CommandError(f"--owner: there is no user {name}. Add one in the admin, or leave it out.")
    return user


def _end(expires_in: str | None, expires_at: str | None) -> datetime | None:
    if expires_in is not None:
        length = _duration(expires_in, "--expires-in")
        if not length:
            raise CommandError("--expires-in: it would never work. Write such as 90d or 12h.")
        return timezone.now() + length
    if expires_at is None:
        return None
    try:
        moment = parse_datetime(expires_at if "T" in expires_at or " " in expires_at else f"{expires_at}T00:00")
    except ValueError:
        moment = None
    if moment is None:
        raise CommandError("--expires-at: write a moment such as 2030-01-31 or 2030-01-31T12:00:00Z.")
    if timezone.is_naive(moment):
        moment = timezone.make_aware(moment)
    if moment <= timezone.now():
        raise CommandError("--expires-at: this moment is over. Write a later one.")
    return moment


def _duration(text: str, option: str) -> timedelta:
    found = _DURATION.fullmatch(text.strip())
    length = found and int(found[1]) * _UNITS[found[2]]
    if length is None or length > LONGEST.total_seconds():
        raise CommandError(
            f"{option}: write seconds, or a number with s, m, h, d or w, such as 24h; 100 years at most."
        )
    return timedelta(seconds=length)


def _warnings(consumer: Consumer) -> list[str]:
    """Why the new key may open nothing yet."""
    found = []
    if not consumer.enabled:
        found.append(
            f"Warning: {consumer} is switched off: its keys open nothing until it is switched on in the admin."
        )
    if consumer.owner is not None and not consumer.owner.is_active:
        found.append(f"Warning: its owner {consumer.owner} is not active: its keys open nothing until that changes.")
    groups = consumer.owner.groups.values("pk") if consumer.owner is not None else []
    if not Grant.objects.filter(Q(consumer=consumer) | Q(group__in=groups)).exists():
        found.append(f"Warning: {consumer} has no grant: its keys open nothing. Name what it may call with --upstream.")
    return found


def _document(key: ApiKey, moment: datetime) -> dict[str, Any]:
    return {
        "prefix": key.prefix,
        "consumer": key.consumer.name,
        "label": key.label,
        "state": str(state_of(key, moment)),
        "created_at": key.created_at.isoformat(),
        "expires_at": _iso(key.expires_at),
        "last_used_at": _iso(key.last_used_at),
        "revoked_at": _iso(key.revoked_at),
        "replaced_by": key.rotated_to.prefix if key.rotated_to else None,
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
