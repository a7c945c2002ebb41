"""`manage.py signing`: signing keys, and the URLs they sign, for scripts and terminals. No secret is ever shown."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.db import Error
from django.utils import timezone

from relay import signing
from relay.catalog import loader
from relay.management.authored import AuthoredCommand
from relay.management.commands.upstreams import print_table
from relay.models import Consumer, SigningKey

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class Command(AuthoredCommand):
    help = "Make, list and revoke signing keys, and sign URLs with them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

        def action(name: str, act: Callable[..., None], text: str) -> ArgumentParser:
            sub: ArgumentParser = actions.add_parser(name, help=text, description=text)
            sub.set_defaults(act=act)
            return sub

        add = action("add", self.add, "Make a signing key for a consumer; its id is the last line.")
        add.add_argument("consumer", metavar="CONSUMER", help="whose grants its URLs have")
        add.add_argument("--label", metavar="TEXT", default="", help="what it signs for, such as newsletter")
        listing = action("list", self.list_all, "List all signing keys.")
        for sub in (add, listing):
            sub.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
        revoke = action("revoke", self.revoke, "Revoke signing keys: what they signed opens nothing any more.")
        revoke.add_argument("ids", metavar="ID", nargs="+")
        sign = action("sign", self.sign, "Print the signed URL.")
        sign.add_argument("url", metavar="URL", help="such as /relay/images/logo.png?size=2, with or without a host")
        sign.add_argument(
            "--key", metavar="KEY", required=True, help="a signing key's id or label, or a consumer with one such key"
        )
        sign.add_argument("--method", metavar="METHOD", default="GET", help="default: GET, which opens HEAD, too")
        sign.add_argument(
            "--expires-in", metavar="TIME", default="7d", help="such as 90s, 15m, 12h or 30d; default: 7d"
        )

    def handle(self, *, act: Callable[..., None], **options: Any) -> None:
        try:
            act(**options)
        except ValidationError as problem:
            raise CommandError("\n".join(problem.messages)) from None
        except signing.CannotSign as problem:
            raise CommandError(str(problem)) from None
        except Error as problem:
            raise CommandError(str(loader.unreadable(problem))) from None

    def add(self, *, consumer: str, label: str, as_json: bool, **_: Any) -> None:
        row = Consumer.objects.filter(name=consumer).first()
        if row is None:
            raise CommandError(f"There is no consumer {consumer}: register it in the admin first.")
        key = SigningKey.make(row, label=label)
        self.stdout.write(json.dumps(document(key), indent=2, ensure_ascii=False) if as_json else key.public_id)

    def list_all(self, *, as_json: bool, **_: Any) -> None:
        keys = SigningKey.objects.select_related("consumer")
        if as_json:
            self.stdout.write(json.dumps([document(key) for key in keys], indent=2, ensure_ascii=False))
            return
        lines = [("ID", "LABEL", "CONSUMER", "STATE", "MADE")]
        lines += [
            (
                key.public_id,
                key.label,
                key.consumer.name,
                "live" if key.revoked_at is None else f"revoked {_local(key.revoked_at)}",
                _local(key.created_at),
            )
            for key in keys
        ]
        if len(lines) == 1:
            self.stderr.write("There are no signing keys. Make one with `signing add CONSUMER`.")
        else:
            print_table(self.stdout, lines)

    def revoke(self, *, ids: Sequence[str], **_: Any) -> None:
        found = {key.public_id: key for key in SigningKey.objects.filter(public_id__in=ids)}
        missing = [public_id for public_id in ids if public_id not in found]
        if missing:
            raise CommandError(f"There is no signing key {', '.join(missing)}. `signing list` shows those there are.")
        for key in found.values():
            key.revoke()
        self.stdout.write(f"Revoked {', '.join(found)}")

    def sign(self, *, url: str, key: str, method: str, expires_in: str, **_: Any) -> None:
        lifetime = signing.lifetime(expires_in)
        self.stdout.write(signing.sign(url, key=key, method=method.upper(), expires_in=lifetime))


def document(key: SigningKey) -> dict[str, Any]:
    """A signing key as JSON, without its secret."""
    return {
        "id": key.public_id,
        "label": key.label,
        "consumer": key.consumer.name,
        "created_at": key.created_at.isoformat(),
        "revoked_at": None if key.revoked_at is None else key.revoked_at.isoformat(),
    }


def _local(moment: Any) -> str:
    return f"{timezone.localtime(moment):%Y-%m-%d %H:%M}"
