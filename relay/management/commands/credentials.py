"""`manage.py credentials`: what upstreams are shown in the callers' place, for scripts and terminals.

No secret is ever taken from the command line, which every process of the machine can read, nor printed: one comes from
standard input (asked for at a terminal), or stays where it is kept and is named.
"""

from __future__ import annotations

import getpass
import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.db import Error, transaction
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from relay.catalog import credentials, loader
from relay.management.authored import AuthoredCommand
from relay.management.commands.upstreams import find_one
from relay.management.problems import sentences
from relay.models import AuthStyle, Credential, CredentialKind, Upstream
from relay.rules.credentials import MAX_SECRET_BYTES, SECRETS, SETTINGS

_SHOWN = tuple(name for name in SETTINGS if name != "certificates")


class Command(AuthoredCommand):
    help = "Set, show, confirm and remove the credentials of upstreams."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

        def action(name: str, act: Callable[..., None], text: str) -> ArgumentParser:
            sub: ArgumentParser = actions.add_parser(name, help=text, description=text)
            sub.set_defaults(act=act)
            sub.add_argument("slug", metavar="SLUG")
            return sub

        put = action("set", self.put, "Set a credential, in place of the one there is.")
        put.add_argument("--kind", required=True, choices=CredentialKind.values, help="what it is")
        source = put.add_mutually_exclusive_group(required=True)
        source.add_argument(
            "--value-from-stdin",
            action="store_true",
            help="the secret comes on standard input; a terminal asks for it",
        )
        source.add_argument("--env", metavar="NAME", help="it is in this variable: RELAY_CREDENTIAL_...")
        source.add_argument("--file", metavar="PATH", help="it is in this file below RELAY_CREDENTIALS_DIR")
        put.add_argument("--name", metavar="NAME", default="", help="of the header field or the query parameter")
        put.add_argument(
            "--identity", metavar="WHO", default="", help="user name, client id or access key id, as the kind has it"
        )
        put.add_argument("--token-url", metavar="URL", default="", help="oauth: where tokens come from")
        put.add_argument("--scope", metavar="SCOPE", default="", help="oauth: separated by blanks")
        put.add_argument("--audience", metavar="WHO", default="", help="oauth: for servers that ask for it")
        put.add_argument(
            "--auth-style", choices=AuthStyle.values, default="", help="oauth: how the client is shown; default: basic"
        )
        put.add_argument(
            "--token-network",
            metavar="CIDR",
            action="append",
            default=[],
            help="oauth: a network the token URL may be in; repeatable; default: those of the upstream",
        )
        put.add_argument("--region", metavar="REGION", default="", help="aws: such as eu-central-1")
        put.add_argument("--service", metavar="SERVICE", default="", help="aws: such as s3")
        token = put.add_mutually_exclusive_group()
        token.add_argument("--session-token-env", metavar="NAME", help="aws: the session token is in this variable")
        token.add_argument("--session-token-file", metavar="PATH", help="aws: the session token is in this file")
        put.add_argument("--certificates", metavar="PATH", help="certificate: a file with the chain, in PEM")
        show = action("show", self.show, "Show which credentials an upstream has, without their secrets.")
        show.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
        action("confirm", self.confirm, "Let the credentials go where the upstream leads now.")
        remove = action("remove", self.remove, "Remove credentials: requests go without them.")
        remove.add_argument("--kind", choices=CredentialKind.values, help="only that of this kind")

    def handle(self, *, act: Callable[..., None], **options: Any) -> None:
        try:
            act(**options)
        except ValidationError as problem:
            raise CommandError("\n".join(sentences(problem))) from None
        except Error as problem:
            raise CommandError(str(loader.unreadable(problem))) from None

    @sensitive_variables("secrets")
    def put(
        self,
        *,
        slug: str,
        kind: str,
        env: str | None,
        file: str | None,
        session_token_env: str | None,
        session_token_file: str | None,
        token_network: list[str],
        certificates: str | None,
        **options: Any,
    ) -> None:
        upstream = find_one(slug)
        named = {
            "secret": _reference(env, file),
            "session_token": _reference(session_token_env, session_token_file),
        }
        kept = {field: reference for field, reference in named.items() if reference}
        values = {name: options[name] for name in _SHOWN if name in options}
        values["token_networks"] = "\n".join(token_network)
        values["certificates"] = _text_of(certificates) if certificates else ""
        if kind == CredentialKind.OAUTH:
            values["auth_style"] = values["auth_style"] or AuthStyle.BASIC.value
        secrets = {} if "secret" in kept else {"secret": _from_stdin(multiline=kind == CredentialKind.CERTIFICATE)}
        with transaction.atomic():
            credential = Credential.put(upstream, kind, secrets=secrets, references=kept, **values)
            problem = credentials.problem_of(credential)
            if problem:
                raise CommandError(f"Nothing was set. {problem}")
        self.stdout.write(f"Set for {slug}: {credential}. It goes to {_in_a_line(credential.confirmed_for)}")
        self._warn(upstream)

    def show(self, *, slug: str, as_json: bool, **_: Any) -> None:
        documents = [document(row) for row in find_one(slug).credentials.select_related("upstream")]
        if as_json:
            self.stdout.write(json.dumps(documents, indent=2, ensure_ascii=False))
            return
        if not documents:
            self.stderr.write(f"{slug} has no credential. Set one with `credentials set {slug} --kind KIND`.")
        for shown in documents:
            for name, value in shown.items():
                self.stdout.write(f"{name}: {_in_a_line(str(value))}")

    def confirm(self, *, slug: str, **_: Any) -> None:
        rows = self._all_of(slug)
        for row in rows:
            row.confirm(row.destination())
            self.stdout.write(f"Confirmed for {slug}: {row}. It goes to {_in_a_line(row.confirmed_for)}")

    def remove(self, *, slug: str, kind: str | None, **_: Any) -> None:
        rows = [row for row in self._all_of(slug) if kind is None or row.kind == kind]
        if not rows:
            raise CommandError(f"{slug} has no credential of that kind. `credentials show {slug}` shows what it has.")
        Credential.objects.filter(pk__in=[row.pk for row in rows]).delete()
        self.stdout.write(f"Removed from {slug}: {', '.join(map(str, rows))}")

    def _all_of(self, slug: str) -> list[Credential]:
        rows = list(find_one(slug).credentials.select_related("upstream"))
        if not rows:
            raise CommandError(f"{slug} has no credential. Set one with `credentials set {slug} --kind KIND`.")
        return rows

    def _warn(self, upstream: Upstream) -> None:
        for credential in upstream.credentials.select_related("upstream"):
            for warning in credential.warnings():
                self.stderr.write(f"Warning: {warning}")


def document(credential: Credential) -> dict[str, Any]:
    """A credential as JSON, without its secrets."""
    shown = {name: value for name in _SHOWN if (value := getattr(credential, name))}
    kept = {
        field: getattr(credential, f"{field}_reference") or "sealed"
        for field in SECRETS
        if getattr(credential, f"{field}_reference") or getattr(credential, f"{field}_sealed")
    }
    problem = credentials.problem_of(credential)
    return {
        "kind": credential.kind,
        **shown,
        **kept,
        "state": "confirmed" if credential.is_confirmed else "unconfirmed",
        **({"problem": problem} if problem else {}),
        "confirmed_for": credential.confirmed_for,
        "leads_to": credential.destination(),
        "set_at": timezone.localtime(credential.set_at).isoformat(timespec="seconds"),
    }


def _reference(env: str | None, file: str | None) -> str:
    return f"env:{env}" if env else f"file:{file}" if file else ""


def _from_stdin(*, multiline: bool) -> str:
    if sys.stdin.isatty() and not multiline:
        return getpass.getpass("Secret: ")
    # One over the bound is refused as too long.
    return sys.stdin.read(MAX_SECRET_BYTES + 1)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as problem:
        reason = getattr(problem, "strerror", None) or "it is not text"
        raise CommandError(f"--certificates: {path} cannot be read: {reason}.") from None


def _in_a_line(text: str) -> str:
    return ", ".join(text.split("\n"))
