"""Credentials arrive in the snapshot with their upstream, or with the reason why nothing may be sent."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from django.db import connection
from django.test.utils import CaptureQueriesContext

from relay import catalog, errors
from relay.catalog import loader
from relay.models import Credential, HeaderRule, Target, Upstream
from relay.rules.credentials import Credential as Compiled
from tests.catalog.test_loader import follow, found, register

pytestmark = pytest.mark.usefixtures("database")
SECRET = "s3cret-value"


def bearer(upstream: Upstream, secret: str = SECRET, **given: Any) -> Credential:
    return Credential.put(upstream, "bearer", secrets={"secret": secret}, **given)


def compiled(snapshot: catalog.Snapshot, slug: str = "a") -> Compiled:
    credential = found(snapshot, slug).credential
    assert credential is not None
    return credential


@pytest.fixture
def folder(tmp_path: Path, settings: Any) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir()
    settings.RELAY_CREDENTIALS_DIR = str(folder)
    return folder


def refer(upstream: Upstream, reference: str) -> Credential:
    return Credential.put(upstream, "bearer", secrets={}, references={"secret": reference})


def test_a_sealed_secret_arrives_open() -> None:
    bearer(register("a"))
    assert compiled(loader.load_all()).appended == ((b"authorization", b"Bearer s3cret-value"),)


def test_an_upstream_without_one_has_none() -> None:
    register("a")
    assert found(loader.load_all(), "a").credential is None


def test_rules_and_credentials_of_any_number_do_not_mix() -> None:
    for index, slug in enumerate("abcd"):
        upstream = register(slug)
        for number in range(index):
            HeaderRule.objects.create(upstream=upstream, name=f"x-{number}", value=f"{slug}{number}")
        if index % 2:
            bearer(upstream, secret=f"of-{slug}")
    upstream = Upstream.objects.get(slug="d")
    Credential.objects.bulk_create([_certificate_row(upstream)])
    snapshot = loader.load_all()
    for index, slug in enumerate("abcd"):
        values = [value for _, value in found(snapshot, slug).request_changes.appended]
        assert values == [f"{slug}{number}".encode() for number in range(index)]
    assert compiled(snapshot, "b").appended == ((b"authorization", b"Bearer of-b"),)
    assert compiled(snapshot, "d").appended == ((b"authorization", b"Bearer of-d"),)
    assert compiled(snapshot, "d").fault is errors.CredentialUnusable  # the certificate's key is none


def _certificate_row(upstream: Upstream) -> Credential:
    chain = trustme.CA().cert_pem.bytes().decode()
    row = Credential(upstream=upstream, kind="certificate", certificates=chain)
    row._seal("secret", "no key")
    row.confirmed_for = row.destination(upstream)
    return row


def test_an_upstream_its_rules_and_its_credential_are_one_statement() -> None:
    bearer(register("a"))
    with CaptureQueriesContext(connection) as queries:
        list(loader._read(Upstream.objects.all()))
    assert len(queries) == 1


def test_setting_removing_and_confirming_are_followed() -> None:
    upstream = register("a")
    snapshot = loader.load_all()
    credential = bearer(upstream)
    snapshot = follow(snapshot)
    assert compiled(snapshot).appended
    Credential.put(upstream, "header", secrets={"secret": "other"}, name="X-Api-Key")
    snapshot = follow(snapshot)
    assert compiled(snapshot).appended == ((b"x-api-key", b"other"),)
    assert not Credential.objects.filter(pk=credential.pk).exists()
    Credential.objects.get().delete()
    assert found(follow(snapshot), "a").credential is None


def test_a_certificate_stands_beside_what_authorises_requests() -> None:
    upstream = register("a")
    bearer(upstream)
    Credential.objects.bulk_create([_certificate_row(upstream)])
    bearer(upstream, secret="another")
    assert sorted(Credential.objects.values_list("kind", flat=True)) == ["bearer", "certificate"]


# Bound to where it was confirmed for.


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "https://evil.example"},
        {"base_url": "http://a.example.com/v1"},
        {"base_url": "https://a.example.com:8443/v1"},
        {"outbound_proxy": "http://proxy.example:3128"},
        {"verify_tls": False},
        {"host_header": "caller"},
        {"host_header": "target"},
    ],
)
def test_a_change_of_where_it_goes_disables_it_until_it_is_confirmed(
    change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    upstream = register("a")
    credential = bearer(upstream)
    snapshot = loader.load_all()
    before = {name: getattr(upstream, name) for name in change}
    for name, value in change.items():
        setattr(upstream, name, value)
    upstream.save()
    with caplog.at_level(logging.ERROR):
        snapshot = follow(snapshot)
    assert compiled(snapshot).fault is errors.CredentialUnconfirmed
    assert compiled(snapshot).appended == ()
    assert "Upstream a answers 502" in caplog.text
    assert SECRET not in caplog.text
    assert any("confirmed for another place" in warning for warning in Upstream.objects.get().warnings())
    credential.refresh_from_db()
    credential.confirm(credential.destination())
    snapshot = follow(snapshot)
    assert compiled(snapshot).fault is None
    for name, value in before.items():
        setattr(upstream, name, value)
    upstream.save()
    assert compiled(follow(snapshot)).fault is errors.CredentialUnconfirmed


@pytest.mark.parametrize("change", [{"base_url": "https://a.example.com/v2"}, {"name": "A"}, {"max_concurrent": 3}])
def test_other_changes_leave_it_in_force(change: dict[str, Any]) -> None:
    upstream = register("a")
    bearer(upstream)
    for name, value in change.items():
        setattr(upstream, name, value)
    upstream.save()
    assert compiled(loader.load_all()).fault is None


def test_a_bulk_update_of_where_it_leads_disables_it_too() -> None:
    bearer(register("a"))
    snapshot = loader.load_all()
    Upstream.objects.update(base_url="https://evil.example")
    assert compiled(follow(snapshot)).fault is errors.CredentialUnconfirmed


def test_another_target_disables_it_and_switching_one_does_not() -> None:
    upstream = register("a")
    upstream.targets.create(address="b.example.com")
    bearer(upstream)
    snapshot = loader.load_all()
    assert compiled(snapshot).fault is None
    for fields in ({"enabled": False}, {"enabled": True, "weight": 5, "backup": True}):
        Target.objects.update(**fields)
        snapshot = follow(snapshot)
        assert compiled(snapshot).fault is None
    upstream.targets.create(address="evil.example", enabled=False)
    snapshot = follow(snapshot)
    assert compiled(snapshot).fault is errors.CredentialUnconfirmed
    upstream.targets.get(address="evil.example").delete()
    snapshot = follow(snapshot)
    assert compiled(snapshot).fault is None
    Target.objects.update(address="b.example.com:8443")
    assert compiled(follow(snapshot)).fault is errors.CredentialUnconfirmed


def test_a_token_url_that_was_changed_beside_the_secret_disables_it() -> None:
    settings = {"identity": "c", "auth_style": "basic", "token_url": "https://login.example/token"}
    Credential.put(register("a"), "oauth", secrets={"secret": SECRET}, **settings)
    assert compiled(loader.load_all()).fault is None
    Credential.objects.update(token_url="https://evil.example/token")
    assert compiled(loader.load_all()).fault is errors.CredentialUnconfirmed


# What does not open.


def _moved_to_another_row(row: Credential) -> None:
    other = Credential.put(register("b"), "bearer", secrets={"secret": "of-b"})
    Credential.objects.filter(pk=other.pk).update(secret_sealed=row.secret_sealed)
    Credential.objects.filter(pk=row.pk).update(secret_sealed=other.secret_sealed)


def _moved_to_another_column(row: Credential) -> None:
    settings = {"identity": "AKID", "region": "r", "service": "s3"}
    other = Credential.put(row.upstream, "aws", secrets={"secret": "x", "session_token": "y"}, **settings)
    Credential.objects.filter(pk=other.pk).update(secret_sealed=other.session_token_sealed)


def _cut(row: Credential) -> None:
    Credential.objects.filter(pk=row.pk).update(secret_sealed=row.secret_sealed[:-1])


@pytest.mark.parametrize("spoil", [_moved_to_another_row, _moved_to_another_column, _cut])
def test_a_ciphertext_that_was_moved_or_changed_lets_nothing_go_out(
    spoil: Callable[[Credential], None], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(bearer(register("a")))
    with caplog.at_level(logging.ERROR):
        assert compiled(loader.load_all()).fault is errors.CredentialUnusable
    assert "Upstream a answers 502: its credential" in caplog.text
    assert "enter the secret again" in caplog.text
    assert SECRET not in caplog.text


def test_a_lost_key_is_told_and_takes_no_other_upstream_along(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    bearer(register("a"))
    register("b")
    settings.SECRET_KEY = "another-key-" * 4
    with caplog.at_level(logging.ERROR):
        snapshot = loader.load_all()
    assert compiled(snapshot).fault is errors.CredentialUnusable
    assert found(snapshot, "b").credential is None
    assert "put that key back into RELAY_ENCRYPTION_KEYS" in caplog.text


# References.


def test_a_variable_is_read_when_the_snapshot_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_CREDENTIAL_A", "from-the-environment")
    refer(register("a"), "env:RELAY_CREDENTIAL_A")
    assert compiled(loader.load_all()).appended == ((b"authorization", b"Bearer from-the-environment"),)


def test_a_variable_that_is_not_set_lets_nothing_go_out(caplog: pytest.LogCaptureFixture) -> None:
    refer(register("a"), "env:RELAY_CREDENTIAL_MISSING")
    with caplog.at_level(logging.ERROR):
        assert compiled(loader.load_all()).fault is errors.CredentialUnusable
    assert "The environment has no RELAY_CREDENTIAL_MISSING" in caplog.text


def test_a_file_is_read_and_read_anew_when_it_changes(folder: Path) -> None:
    path = folder / "token"
    path.write_text("first\n")
    refer(register("a"), f"file:{path}")
    register("b")
    snapshot = loader.load_all()
    assert compiled(snapshot).appended == ((b"authorization", b"Bearer first"),)
    assert loader.load_changes(snapshot) is None
    replacement = folder / "next"
    replacement.write_text("second\n")
    replacement.rename(path)
    following = loader.load_changes(snapshot)
    assert following is not None
    assert compiled(following).appended == ((b"authorization", b"Bearer second"),)
    assert following.revision == snapshot.revision
    assert following.find(b"b") is snapshot.find(b"b")
    assert loader.load_changes(following) is None


def test_a_file_that_comes_and_goes_is_followed(folder: Path) -> None:
    path = folder / "token"
    refer(register("a"), f"file:{path}")
    snapshot = loader.load_all()
    assert compiled(snapshot).fault is errors.CredentialUnusable
    path.write_text("there")
    snapshot = follow(snapshot)
    assert compiled(snapshot).fault is None
    path.unlink()
    assert compiled(follow(snapshot)).fault is errors.CredentialUnusable


def test_links_inside_of_the_folder_are_followed(folder: Path) -> None:
    """As Kubernetes mounts secrets."""
    (folder / "..2026").mkdir()
    (folder / "..2026" / "token").write_text("linked")
    (folder / "..data").symlink_to("..2026")
    (folder / "token").symlink_to("..data/token")
    refer(register("a"), f"file:{folder}/token")
    assert compiled(loader.load_all()).appended == ((b"authorization", b"Bearer linked"),)


def _link_out(folder: Path) -> None:
    (folder.parent / "private").write_text(SECRET)
    (folder / "token").symlink_to(folder.parent / "private")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "token")


def _round(folder: Path) -> None:
    (folder / "token").symlink_to(folder / "token")


def _a_folder(folder: Path) -> None:
    (folder / "token").mkdir()


def _too_long(folder: Path) -> None:
    (folder / "token").write_text("x" * 70_000)


def _no_text(folder: Path) -> None:
    (folder / "token").write_bytes(b"\xff\xfe s3cret-value")


def _empty(folder: Path) -> None:
    (folder / "token").write_text("\n")


@pytest.mark.parametrize("make", [_link_out, _pipe, _round, _a_folder, _too_long, _no_text, _empty])
def test_a_file_that_may_not_or_cannot_be_read_lets_nothing_go_out(
    folder: Path, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    make(folder)
    refer(register("a"), f"file:{folder}/token")
    with caplog.at_level(logging.ERROR):
        credential = compiled(loader.load_all())
    assert credential.fault is errors.CredentialUnusable
    assert credential.appended == ()
    assert "Upstream a answers 502" in caplog.text
    assert SECRET not in caplog.text


def test_a_folder_that_was_narrowed_later_binds_what_was_saved_before(folder: Path, settings: Any) -> None:
    (folder / "token").write_text("there")
    refer(register("a"), f"file:{folder}/token")
    settings.RELAY_CREDENTIALS_DIR = str(folder / "deeper")
    assert compiled(loader.load_all()).fault is errors.CredentialUnusable


def test_nothing_of_it_shows_in_a_repr() -> None:
    row = bearer(register("a"))
    snapshot = loader.load_all()
    for shown in (repr(row), str(row), repr(found(snapshot, "a")), repr(compiled(snapshot))):
        assert SECRET not in shown
        assert row.secret_sealed.hex() not in shown
