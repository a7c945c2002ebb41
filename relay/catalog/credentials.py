"""Reads an upstream's credentials into what requests need: opened, fetched from where they are kept, compiled.

A credential that cannot be used, or may not be, comes out with its fault: requests are then refused, and never sent
without it. The log says which upstream and what to do; no text holds a value. The rows are the loader's; only
`rows_of`, for commands, asks the database.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from relay import errors, models, vault
from relay.catalog import references
from relay.models.credentials import NEEDS_TLS, upstream_destination
from relay.rules.credentials import SECRETS, SETTINGS, SHAPES, Credential, Given, Kind, combine, compile_credential

logger = logging.getLogger(__name__)

Files = tuple[tuple[str, references.Stamp | None], ...]


class Row(NamedTuple):
    """A row of the table, as one statement reads it together with its upstream."""

    id: object
    kind: str
    name: str
    identity: str
    token_url: str
    auth_style: str
    scope: str
    audience: str
    token_networks: str
    region: str
    service: str
    certificates: str
    secret_sealed: bytes
    secret_reference: str
    session_token_sealed: bytes
    session_token_reference: str
    confirmed_for: str

    def __repr__(self) -> str:
        return f"<Row {self.kind}>"


class _Unusable(Exception):
    """The text says what to do and holds no value."""


def read(upstream: models.Upstream, rows: Sequence[Row], *, addresses: Sequence[str]) -> Credential:
    """All of an upstream's credentials in one. `addresses` are those of its targets. Never raises."""
    return combine([_read(upstream, row, addresses) for row in rows])


def problem_of(saved: models.Credential) -> str:
    """What keeps a credential from being used, or nothing: for whoever sets it, who can still correct it."""
    try:
        _opened(saved.upstream, _row(saved), ())
    except _Unusable as problem:
        return str(problem)
    return ""


def rows_of(upstream: models.Upstream, *, kind: str) -> list[Row]:
    """Those of one kind, for commands."""
    return [_row(saved) for saved in upstream.credentials.filter(kind=kind)]


def _row(saved: models.Credential) -> Row:
    return Row(*(getattr(saved, name) for name in Row._fields))


def _read(upstream: models.Upstream, row: Row, addresses: Sequence[str]) -> Credential:
    # Before the secrets: what changes while they are read is noticed at the next poll.
    named = [getattr(row, f"{field}_reference") for field in SECRETS]
    files: Files = tuple(stamp for reference in named if (stamp := references.stamp_of(reference)) is not None)
    try:
        if _has_moved(upstream, row, addresses):
            logger.error(
                "Upstream %s answers 502: its credential (%s) was confirmed for another place than it leads to now. "
                "Confirm it in the admin, or with `manage.py credentials confirm %s`.",
                upstream.slug,
                row.kind,
                upstream.slug,
            )
            return Credential(fault=errors.CredentialUnconfirmed, files=files)
        return _opened(upstream, row, files)
    except _Unusable as problem:
        logger.error(
            "Upstream %s answers 502: its credential (%s) cannot be used. %s", upstream.slug, row.kind, problem
        )
        return Credential(fault=errors.CredentialUnusable, files=files)


def _has_moved(upstream: models.Upstream, row: Row, addresses: Sequence[str]) -> bool:
    try:
        return row.confirmed_for != upstream_destination(upstream, addresses=addresses, token_url=row.token_url)
    except ValueError as problem:
        raise _Unusable(f"Where it leads cannot be read. {problem}") from None


def _opened(upstream: models.Upstream, row: Row, files: Files) -> Credential:
    try:
        if row.kind == Kind.CERTIFICATE and not upstream.base_url.lower().startswith("https://"):
            raise ValueError(NEEDS_TLS)
        return _compiled(row, {field: _secret(row, field) for field in SHAPES[Kind(row.kind)].secrets}, files)
    except UnicodeError:
        raise _Unusable("It is not text in UTF-8: set it again.") from None
    except ValueError as problem:
        raise _Unusable(str(problem)) from None
    except Exception as problem:
        # A row that no admin or command could have saved. What its driver or parser says may hold a value.
        raise _Unusable(f"It cannot be read ({type(problem).__name__}): set it again.") from None


def _compiled(row: Row, secrets: Mapping[str, str], files: Files) -> Credential:
    settings = {name: getattr(row, name) for name in SETTINGS}
    given = Given(credential_id=str(row.id), kind=row.kind, secrets=secrets, **settings)
    whole = compile_credential(given)
    if files:
        whole = replace(whole, files=files)
    return whole


def _secret(row: Row, field: str) -> str:
    """Raises ValueError with what to do."""
    reference: str = getattr(row, f"{field}_reference")
    if reference:
        return references.read(reference)
    sealed = bytes(getattr(row, f"{field}_sealed"))
    if not sealed:
        return ""
    return vault.keyring().open(sealed, purpose=f"credential.{field}", row=str(row.id)).decode()
