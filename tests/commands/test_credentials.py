"""`manage.py credentials` and `manage.py secrets`: secrets go in by standard input or by name, and never come out."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import trustme
from django.core import serializers
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connections, transaction

from relay import vault
from relay.checks import check_settings
from relay.models import ApiKey, AuditEntry, Change, Consumer, Credential, Upstream, sealed
from relay.models.sealed import rotate
from tests.origin import Origin, reply, serving_context

pytestmark = pytest.mark.django_db
SECRET = "s3cret-value"


def run(*arguments: str) -> tuple[str, str]:
    """(standard output, standard error)"""
    out, err = io.StringIO(), io.StringIO()
    call_command(*arguments, stdout=out, stderr=err)
    assert SECRET not in out.getvalue() + err.getvalue()
    return out.getvalue(), err.getvalue()


def refusal(*arguments: str) -> str:
    with pytest.raises(CommandError) as problem:
        run(*arguments)
    assert SECRET not in str(problem.value)
    return str(problem.value)


@pytest.fixture
def upstream() -> Upstream:
    return Upstream.objects.create(slug="a", base_url="https://a.example.com/v1")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def opened(field: str = "secret") -> str:
    row = Credential.objects.get()
    ring = vault.keyring()
    return ring.open(getattr(row, f"{field}_sealed"), purpose=f"credential.{field}", row=str(row.pk)).decode()


def test_a_secret_comes_on_standard_input(upstream: Upstream, typed: Any) -> None:
    typed(SECRET + "\n")
    out, err = run("credentials", "set", "a", "--kind", "bearer", "--value-from-stdin")
    assert out == "Set for a: Bearer token. It goes to https://a.example.com\n"
    assert err == ""
    assert opened() == SECRET
    assert Change.objects.filter(slug="a").exists()


def test_a_terminal_asks_for_it_without_showing_it(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda prompt: SECRET)
    run("credentials", "set", "a", "--kind", "bearer", "--value-from-stdin")
    assert opened() == SECRET


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("header", ["--name", "X-Api-Key"]),
        ("basic", ["--identity", "user"]),
        ("query", ["--name", "api_key"]),
        ("oauth", ["--identity", "c", "--token-url", "https://login.example/t", "--scope", "a b"]),
        ("aws", ["--identity", "AKIDEXAMPLE", "--region", "eu-central-1", "--service", "s3"]),
    ],
)
def test_every_kind_can_be_set_and_shown(upstream: Upstream, typed: Any, kind: str, arguments: list[str]) -> None:
    typed(SECRET)
    run("credentials", "set", "a", "--kind", kind, "--value-from-stdin", *arguments)
    [shown] = json.loads(run("credentials", "show", "a", "--json")[0])
    assert shown["kind"] == kind
    assert shown["secret"] == "sealed"
    assert shown["state"] == "confirmed"
    assert run("credentials", "show", "a")[0].startswith(f"kind: {kind}\n")


def test_a_client_certificate_is_set_from_its_files(upstream: Upstream, typed: Any, tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("client.example")
    (tmp_path / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    arguments = ["credentials", "set", "a", "--kind", "certificate", "--value-from-stdin"]
    typed(issued.private_key_pem.bytes().decode())
    run(*arguments, "--certificates", str(tmp_path / "chain.pem"))
    assert opened().strip() == issued.private_key_pem.bytes().decode().strip()
    other = trustme.CA().issue_cert("other.example").private_key_pem.bytes().decode()
    typed(other)
    assert "another certificate" in refusal(*arguments, "--certificates", str(tmp_path / "chain.pem"))
    assert opened().strip() != other.strip()


def test_a_certificate_needs_tls(typed: Any, tmp_path: Path) -> None:
    Upstream.objects.create(slug="a", base_url="http://a.example.com")
    issued = trustme.CA().issue_cert("client.example")
    (tmp_path / "chain.pem").write_bytes(issued.cert_chain_pems[0].bytes())
    typed(issued.private_key_pem.bytes().decode())
    arguments = ["--kind", "certificate", "--value-from-stdin", "--certificates", str(tmp_path / "chain.pem")]
    assert "https://" in refusal("credentials", "set", "a", *arguments)
    assert not Credential.objects.exists()


def test_without_tls_it_is_set_with_a_warning(typed: Any) -> None:
    Upstream.objects.create(slug="a", base_url="http://a.example.com")
    typed(SECRET)
    assert "without TLS" in run("credentials", "set", "a", "--kind", "bearer", "--value-from-stdin")[1]


def test_a_variable_and_a_file_are_named(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Any
) -> None:
    monkeypatch.setenv("RELAY_CREDENTIAL_A", SECRET)
    run("credentials", "set", "a", "--kind", "bearer", "--env", "RELAY_CREDENTIAL_A")
    assert json.loads(run("credentials", "show", "a", "--json")[0])[0]["secret"] == "env:RELAY_CREDENTIAL_A"
    monkeypatch.delenv("RELAY_CREDENTIAL_A")
    assert "The environment has no" in json.loads(run("credentials", "show", "a", "--json")[0])[0]["problem"]
    settings.RELAY_CREDENTIALS_DIR = str(tmp_path)
    (tmp_path / "token").write_text(SECRET)
    run("credentials", "set", "a", "--kind", "bearer", "--file", str(tmp_path / "token"))
    row = Credential.objects.get()
    assert (row.secret_reference, bytes(row.secret_sealed)) == (f"file:{tmp_path}/token", b"")


@pytest.mark.parametrize(
    "name",
    ["SECRET_KEY", "DATABASE_URL", "PATH", "relay_credential_a", "RELAY_CREDENTIALS_DIR", "RELAY_CREDENTIAL_", ""],
)
def test_variables_that_are_not_for_credentials_are_refused(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name:
        monkeypatch.setenv(name, SECRET)
    with pytest.raises(ValidationError, match="RELAY_CREDENTIAL_"):
        Credential.put(upstream, "bearer", secrets={}, references={"secret": f"env:{name}"})
    assert not Credential.objects.exists()


@pytest.mark.parametrize(
    "path",
    ["/etc/shadow", "token", "{folder}/../private", "{folder}", "{folder}-beside/token", "{folder}/a\0b", ""],
)
def test_files_outside_of_the_folder_are_refused(upstream: Upstream, tmp_path: Path, settings: Any, path: str) -> None:
    folder = tmp_path / "credentials"
    settings.RELAY_CREDENTIALS_DIR = str(folder)
    reference = "file:" + path.format(folder=folder)
    if path == "{folder}":
        folder.mkdir()
        assert "Nothing was set" in refusal("credentials", "set", "a", "--kind", "bearer", "--file", str(folder))
    else:
        with pytest.raises(ValidationError, match=r"below|characters"):
            Credential.put(upstream, "bearer", secrets={}, references={"secret": reference})
    assert not Credential.objects.exists()


@pytest.mark.parametrize("folder", ["credentials", "/", "{data}", "{data}/.."])
def test_a_folder_that_holds_the_relays_own_data_is_an_error(settings: Any, folder: str) -> None:
    settings.RELAY_CREDENTIALS_DIR = folder.format(data=settings.RELAY_DATA_DIR)
    [message] = check_settings(None)
    assert message.id == "relay.E007"


def test_a_folder_of_its_own_is_none(settings: Any, tmp_path: Path) -> None:
    settings.RELAY_CREDENTIALS_DIR = str(tmp_path / "not-there-yet")
    assert check_settings(None) == []


def test_without_a_folder_no_file_can_be_named(upstream: Upstream) -> None:
    told = refusal("credentials", "set", "a", "--kind", "bearer", "--file", "/etc/passwd")
    assert "RELAY_CREDENTIALS_DIR" in told


@pytest.mark.parametrize("reference", ["vault:a", "RELAY_CREDENTIAL_A", "ENV:RELAY_CREDENTIAL_A", "FILE:/a"])
def test_other_references_are_none(upstream: Upstream, reference: str) -> None:
    with pytest.raises(ValidationError, match="env:NAME or file:/path"):
        Credential.put(upstream, "bearer", secrets={}, references={"secret": reference})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--kind", "header"], "name: It is needed"),
        (["--kind", "header", "--name", "Host"], "name: "),
        (["--kind", "bearer", "--name", "x"], "name: This kind of credential has no such setting"),
        (["--kind", "oauth", "--identity", "c", "--token-url", "ftp://x"], "token_url: Begin the URL with"),
        (["--kind", "aws", "--identity", "AKID", "--region", "r", "--service", "s 3"], "service: "),
        (["--kind", "bearer", "--session-token-env", "RELAY_CREDENTIAL_A"], "session_token_reference: "),
    ],
)
def test_what_is_wrong_is_told_by_its_field(upstream: Upstream, typed: Any, arguments: list[str], told: str) -> None:
    typed(SECRET)
    assert told in refusal("credentials", "set", "a", "--value-from-stdin", *arguments)
    assert not Credential.objects.exists()


def test_setting_takes_the_place_of_what_there_was(upstream: Upstream, typed: Any) -> None:
    for kind, more in (("bearer", []), ("header", ["--name", "x-api-key"]), ("bearer", [])):
        typed(SECRET)
        run("credentials", "set", "a", "--kind", kind, "--value-from-stdin", *more)
    assert [row.kind for row in Credential.objects.all()] == ["bearer"]


def test_the_database_keeps_one_a_layer(upstream: Upstream) -> None:
    row = Credential.put(upstream, "bearer", secrets={"secret": SECRET})
    twin = Credential(upstream=upstream, kind="header", name="x", confirmed_for="x", secret_sealed=row.secret_sealed)
    with pytest.raises(ValidationError, match="already"):
        twin.save()
    with pytest.raises(IntegrityError), transaction.atomic():
        Credential.objects.bulk_create([twin])


def test_confirm_lets_it_go_where_the_upstream_leads_now(upstream: Upstream) -> None:
    Credential.put(upstream, "bearer", secrets={"secret": SECRET})
    assert "until somebody" in run("upstreams", "set", "a", "--set", "base_url=https://b.example.com")[1]
    [shown] = json.loads(run("credentials", "show", "a", "--json")[0])
    assert (shown["state"], shown["confirmed_for"], shown["leads_to"]) == (
        "unconfirmed",
        "https://a.example.com",
        "https://b.example.com",
    )
    assert run("credentials", "confirm", "a")[0].endswith("It goes to https://b.example.com\n")
    assert Credential.objects.get().is_confirmed


def test_confirm_is_for_the_place_that_was_seen(upstream: Upstream) -> None:
    row = Credential.put(upstream, "bearer", secrets={"secret": SECRET})
    seen = row.destination()
    Upstream.objects.update(base_url="https://evil.example")
    with pytest.raises(ValidationError, match="changed meanwhile"):
        row.confirm(seen)
    with pytest.raises(ValidationError, match="changed meanwhile"):
        Credential.put(upstream, "bearer", secrets={"secret": SECRET}, destination=seen)


def test_remove_removes_and_says_what(upstream: Upstream) -> None:
    Credential.put(upstream, "bearer", secrets={"secret": SECRET})
    assert "no credential of that kind" in refusal("credentials", "remove", "a", "--kind", "aws")
    assert run("credentials", "remove", "a")[0] == "Removed from a: Bearer token\n"
    assert "a has no credential" in run("credentials", "show", "a")[1]
    for action in ("confirm", "remove"):
        assert "has no credential" in refusal("credentials", action, "a")
    assert "no upstream b" in refusal("credentials", "show", "b")


def test_exports_and_dumps_hold_no_secret(upstream: Upstream) -> None:
    row = Credential.put(upstream, "bearer", secrets={"secret": SECRET})
    assert SECRET not in json.dumps(json.loads(run("upstreams", "show", "a", "--json")[0]))
    dumped = serializers.serialize("json", [row])
    assert SECRET not in dumped
    row.delete()
    next(iter(serializers.deserialize("json", dumped))).save()
    assert opened() == SECRET


def test_the_audit_trail_has_each_step_by_its_command_and_no_secret(upstream: Upstream, typed: Any) -> None:
    typed(SECRET)
    run("credentials", "set", "a", "--kind", "bearer", "--value-from-stdin")
    row = Credential.objects.get()
    Upstream.objects.update(base_url="https://b.example.com")
    run("credentials", "confirm", "a")
    run("credentials", "remove", "a")
    entries = AuditEntry.objects.filter(object_type="relay.credential").order_by("id")
    assert [(entry.action, entry.source_name) for entry in entries] == [
        ("added", "credentials set"),
        ("changed", "credentials confirm"),
        ("removed", "credentials remove"),
    ]
    assert entries[1].changes["confirmed_for"] == ["https://a.example.com", "https://b.example.com"]
    kept = json.dumps([entry.changes for entry in entries])
    assert SECRET not in kept
    assert bytes(row.secret_sealed).hex() not in kept
    assert base64.b64encode(row.secret_sealed).decode() not in kept


@pytest_asyncio.fixture
async def strict(authority: trustme.CA) -> AsyncIterator[tuple[Origin, trustme.CA]]:
    """An origin that talks to nobody without a client certificate, and whose it takes."""
    clients = trustme.CA()
    context = serving_context(authority, "127.0.0.1")
    clients.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    async with Origin(tls=context) as origin:
        origin.otherwise(reply(200))
        yield origin, clients


@pytest.mark.django_db(transaction=True)
async def test_upstreams_check_shows_a_client_certificate_and_nothing_else(
    strict: tuple[Origin, trustme.CA], authority: trustme.CA
) -> None:
    origin, clients = strict
    issued = clients.issue_cert("client.example")
    key, chain = issued.private_key_pem.bytes().decode(), issued.cert_chain_pems[0].bytes().decode()

    def in_thread() -> tuple[str, str]:
        try:
            upstream = Upstream.objects.create(
                slug="a",
                base_url=origin.url,
                allowed_networks="127.0.0.0/8",
                ca_bundle=authority.cert_pem.bytes().decode(),
            )
            Credential.put(upstream, "bearer", secrets={"secret": SECRET})
            without = refusal("upstreams", "check", "a")
            Credential.put(upstream, "certificate", secrets={"secret": key}, certificates=chain)
            return without, run("upstreams", "check", "a")[0]
        finally:
            connections.close_all()

    without, shown = await asyncio.to_thread(in_thread)
    assert without.startswith("a does not work")
    assert "was answered with 200" in shown
    [seen] = origin.requests
    assert seen.values(b"authorization") == []


# `secrets`.


@pytest.fixture
def rotated(settings: Any) -> Any:
    """A new key before the one there is."""

    def rotate() -> None:
        settings.RELAY_ENCRYPTION_KEYS = ("n" * 40, *getattr(settings, "RELAY_ENCRYPTION_KEYS", ()))

    return rotate


def test_rotate_seals_everything_with_the_newest_key(upstream: Upstream, rotated: Any, settings: Any) -> None:
    fields = {"identity": "AKID", "region": "r", "service": "s3"}
    Credential.put(upstream, "aws", secrets={"secret": SECRET, "session_token": "t0ken"}, **fields)
    before = Change.objects.get(slug="a").revision
    rotated()
    assert "1 sealed with an older key" in run("secrets", "check")[0]
    out, _ = run("secrets", "rotate")
    assert "credential.secret_sealed: 1 sealed anew, 0 were already, 0 do not open" in out
    assert "credential.session_token_sealed: 1 sealed anew" in out
    assert Change.objects.get(slug="a").revision == before
    settings.SECRET_KEY = "gone-" * 10
    assert (opened(), opened("session_token")) == (SECRET, "t0ken")
    out, _ = run("secrets", "rotate")
    assert "credential.secret_sealed: 0 sealed anew, 1 were already" in out
    assert run("secrets", "check")[0] == "Every secret opens.\n"


def test_rotate_works_in_batches(rotated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "BATCH", 3)
    for number in range(8):
        row = Upstream.objects.create(slug=f"u{number}", base_url="https://a.example.com")
        Credential.put(row, "bearer", secrets={"secret": f"secret-{number}"})
    rotated()
    assert "8 sealed anew" in run("secrets", "rotate")[0]
    ring = vault.keyring()
    assert all(ring.is_newest(row.secret_sealed) for row in Credential.objects.all())


def test_rotate_does_not_overwrite_what_was_set_meanwhile(
    upstream: Upstream, rotated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Credential.put(upstream, "bearer", secrets={"secret": SECRET})
    rotated()
    theirs = vault.keyring().seal(b"theirs", purpose="credential.secret", row=str(row.pk))
    opens = vault.Keyring.open

    def written_meanwhile(ring: vault.Keyring, value: bytes, **where: str) -> bytes:
        Credential.objects.filter(pk=row.pk).update(secret_sealed=theirs)
        return opens(ring, value, **where)

    monkeypatch.setattr(vault.Keyring, "open", written_meanwhile)
    [column] = [column for column in sealed.columns() if column.label == "credential.secret_sealed"]
    assert rotate(column, using="default").sealed_anew == 0
    monkeypatch.undo()
    assert bytes(Credential.objects.get().secret_sealed) == theirs


def test_check_names_what_does_not_open(upstream: Upstream, settings: Any) -> None:
    row = Credential.put(upstream, "bearer", secrets={"secret": SECRET})
    settings.SECRET_KEY = "gone-" * 10
    out = io.StringIO()
    with pytest.raises(CommandError, match="Secrets that do not open: 1") as problem:
        call_command("secrets", "check", stdout=out)
    assert problem.value.returncode == 1
    assert f"credential.secret_sealed {row.pk} (upstream a): It was sealed with a key" in out.getvalue()
    kept = bytes(Credential.objects.get().secret_sealed)
    assert "Secrets that do not open: 1" in refusal("secrets", "rotate")
    assert bytes(Credential.objects.get().secret_sealed) == kept


def test_callers_keys_of_older_roots_are_counted(rotated: Any) -> None:
    ApiKey.issue(Consumer.objects.create(name="c"))
    assert "Callers' keys" not in run("secrets", "check")[0]
    rotated()
    for action in ("check", "rotate"):
        assert "Callers' keys that hang on older keys: 1." in run("secrets", action)[0]
