"""What a credential makes of a request is worked out from what was set; what could not be sent is refused."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from relay import errors
from relay.rules.credentials import (
    MAX_SECRET_BYTES,
    SETTINGS,
    SHAPES,
    Credential,
    Given,
    Kind,
    SettingRefused,
    check_secret,
    check_settings,
    combine,
    compile_credential,
)
from relay.rules.destinations import destination_of

SECRET = "s3cret-value"
SETTINGS_OF: Mapping[str, dict[str, str]] = {
    "bearer": {},
    "header": {"name": "x-api-key"},
    "basic": {"identity": "user"},
    "query": {"name": "api_key"},
    "oauth": {"identity": "client", "token_url": "https://login.example/token", "auth_style": "basic"},
    "aws": {"identity": "AKIDEXAMPLE", "region": "eu-central-1", "service": "s3"},
}


def compiled(kind: str, secret: str = SECRET, session_token: str = "", **settings: str) -> Credential:
    secrets = {"secret": secret, "session_token": session_token}
    return compile_credential(Given(kind=kind, secrets=secrets, **(SETTINGS_OF[kind] | settings)))


@pytest.mark.parametrize(
    ("kind", "pair"),
    [
        ("bearer", (b"authorization", b"Bearer s3cret-value")),
        ("header", (b"x-api-key", b"s3cret-value")),
        ("basic", (b"authorization", b"Basic dXNlcjpzM2NyZXQtdmFsdWU=")),
    ],
)
def test_a_fixed_pair_is_made_once_and_its_name_is_the_relays(kind: str, pair: tuple[bytes, bytes]) -> None:
    made = compiled(kind)
    assert made.appended == (pair,)
    assert made.removed == {pair[0]}


def test_aws_and_oauth_own_the_names_they_add() -> None:
    assert compiled("oauth").removed == {b"authorization"}
    assert compiled("aws").removed == {
        b"authorization",
        b"x-amz-content-sha256",
        b"x-amz-date",
        b"x-amz-security-token",
    }


def test_a_client_is_shown_in_the_header_form_encoded() -> None:
    """RFC 6749 section 2.3.1"""
    grant = compiled("oauth", secret="a:b c", identity="me&you", scope="read write").grant
    assert grant is not None
    assert grant.authorization == b"Basic bWUlMjZ5b3U6YSUzQWIrYw=="  # me%26you:a%3Ab+c
    assert grant.body == b"grant_type=client_credentials&scope=read+write"
    assert (grant.scheme, grant.host, grant.port, grant.target) == ("https", "login.example", 443, b"/token")


def test_a_client_is_shown_in_the_body() -> None:
    grant = compiled("oauth", secret="a&b", auth_style="body", audience="api").grant
    assert grant is not None
    assert grant.authorization == b""
    assert grant.body == b"grant_type=client_credentials&audience=api&client_id=client&client_secret=a%26b"


@pytest.mark.parametrize("kind", sorted(SETTINGS_OF))
def test_no_secret_shows_in_a_repr(kind: str) -> None:
    made = compiled(kind, session_token="t0ken" if kind == "aws" else "")
    given_ = Given(kind=kind, secrets={"secret": SECRET}, **SETTINGS_OF[kind])
    for text in (repr(made), repr(given_)):
        assert SECRET not in text
        assert "t0ken" not in text
        assert "dXNlcjpzM2NyZXQ" not in text


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        ("bearer", "two words"),
        ("bearer", "line\nbreak"),
        ("bearer", "ümlaut"),
        ("header", "line\r\nbreak: x"),
        ("header", " padded"),
        ("header", "nul\x00"),
        ("basic", "line\nbreak"),
        ("query", "control\x7f"),
        ("aws", "blank in it"),
        ("bearer", ""),
        ("bearer", "\n"),
        ("header", "   "),
        ("bearer", "x" * (MAX_SECRET_BYTES + 1)),
        ("certificate", "no key"),
    ],
)
def test_a_secret_that_cannot_be_sent_is_refused_without_repeating_it(kind: str, secret: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        check_secret(kind, "secret", secret)
    assert not secret.strip() or secret.strip() not in str(refusal.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_the_line_end_of_a_file_is_not_part_of_a_secret(end: str) -> None:
    assert check_secret("bearer", "secret", SECRET + end) == SECRET


@given(st.sampled_from(["header", "bearer", "basic"]), st.text(max_size=40))
def test_whatever_is_taken_cannot_break_out_of_its_line(kind: str, secret: str) -> None:
    try:
        made = compiled(kind, secret=secret)
    except ValueError:
        return
    assert not {b"\r", b"\n", b"\0"} & {bytes([byte]) for _, value in made.appended for byte in value}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("header", {"name": ""}),
        ("header", {"name": "content-length"}),
        ("header", {"name": "host"}),
        ("header", {"name": "relay-key"}),
        ("header", {"name": "a:b"}),
        ("query", {"name": "a\nb"}),
        ("basic", {"identity": "a:b"}),
        ("oauth", {"token_url": "ftp://x"}),
        ("oauth", {"token_url": "https://user:pw@login.example/"}),
        ("oauth", {"auth_style": "query"}),
        ("oauth", {"token_networks": "10.0.0.0/33"}),
        ("aws", {"identity": "a b"}),
        ("aws", {"region": "eu/central"}),
        ("aws", {"service": "s3\n"}),
        ("bearer", {"scope": "none of its settings"}),
    ],
)
def test_a_setting_that_is_wrong_is_named(kind: str, wrong: dict[str, str]) -> None:
    settings: dict[str, Any] = SETTINGS_OF[kind] | wrong
    with pytest.raises(SettingRefused) as refusal:
        check_settings(Given(kind=kind, secrets={}, **settings))
    assert refusal.value.setting == next(iter(wrong))


def test_every_kind_has_a_shape_of_known_settings() -> None:
    assert set(SHAPES) == set(Kind)
    for shape in SHAPES.values():
        assert set(shape.settings) <= set(SETTINGS)
        assert shape.optional <= set(shape.settings) | set(shape.secrets)


# Client certificates.


def pem_pair(authority: trustme.CA) -> tuple[str, str]:
    issued = authority.issue_cert("client.example")
    chain = "".join(blob.bytes().decode() for blob in issued.cert_chain_pems)
    return chain, issued.private_key_pem.bytes().decode()


def certificate(chain: str, key: str) -> Credential:
    return compile_credential(Given(kind="certificate", certificates=chain, secrets={"secret": key}))


def test_a_certificates_key_is_kept_encrypted(authority: trustme.CA) -> None:
    chain, key = pem_pair(authority)
    made = certificate(chain, key).certificate
    assert made is not None
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in made.pem
    assert b"BEGIN PRIVATE KEY" not in made.pem
    assert load_pem_private_key(made.pem, made.passphrase)
    assert made.pem.count(b"BEGIN CERTIFICATE") == chain.count("BEGIN CERTIFICATE")
    assert "PRIVATE" not in repr(made)


def test_a_key_of_another_certificate_is_refused(authority: trustme.CA) -> None:
    with pytest.raises(ValueError, match="another certificate"):
        certificate(pem_pair(authority)[0], pem_pair(authority)[1])


def test_a_key_among_the_certificates_is_refused(authority: trustme.CA) -> None:
    chain, key = pem_pair(authority)
    with pytest.raises(SettingRefused, match="private key"):
        certificate(chain + key, key)


OTHER_VERSION = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09"
OTHER_KIND_OF_KEY = b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x09"


@pytest.mark.parametrize(("one", "other"), [OTHER_VERSION, OTHER_KIND_OF_KEY])
def test_certificates_that_make_no_sense_are_refused_with_what_to_do(
    authority: trustme.CA, one: bytes, other: bytes
) -> None:
    chain, key = pem_pair(authority)
    der = ssl.PEM_cert_to_DER_cert(chain)
    assert one in der
    with pytest.raises(SettingRefused, match="Paste whole PEM certificates"):
        certificate(ssl.DER_cert_to_PEM_cert(der.replace(one, other)), key)


@pytest.mark.parametrize("text", ["nonsense", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"])
def test_text_that_is_no_certificate_is_refused_with_what_to_do(authority: trustme.CA, text: str) -> None:
    with pytest.raises(SettingRefused, match="Paste whole PEM certificates"):
        certificate(text, pem_pair(authority)[1])


def test_a_key_with_a_passphrase_is_refused(authority: trustme.CA) -> None:
    chain, key = pem_pair(authority)
    locked = load_pem_private_key(key.encode(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")
    )
    with pytest.raises(ValueError, match="passphrase"):
        certificate(chain, locked.decode())


@pytest.mark.parametrize("key_type", list(trustme.KeyType))
def test_keys_of_every_usual_type_serve(key_type: trustme.KeyType) -> None:
    issued = trustme.CA(key_type=key_type).issue_cert("client.example", key_type=key_type)
    chain = "".join(blob.bytes().decode() for blob in issued.cert_chain_pems)
    assert certificate(chain, issued.private_key_pem.bytes().decode()).certificate is not None


# Several, and where they go.


def test_a_certificate_and_a_token_work_together(authority: trustme.CA) -> None:
    whole = combine([certificate(*pem_pair(authority)), compiled("bearer")])
    assert whole.certificate is not None
    assert whole.appended == compiled("bearer").appended
    assert whole.removed == {b"authorization"}


def test_a_fault_of_one_is_a_fault_of_all() -> None:
    broken = Credential(fault=errors.CredentialUnusable)
    assert combine([compiled("bearer"), broken]).fault is errors.CredentialUnusable
    assert combine([broken, compiled("bearer")]).fault is errors.CredentialUnusable


def destination(**changes: Any) -> str:
    plain: dict[str, Any] = {
        "base_url": "https://api.example/v1",
        "addresses": (),
        "outbound_proxy": "",
        "verify_tls": True,
        "ca_bundle": "",
        "caller_host": False,
        "target_host": False,
    }
    return destination_of(**(plain | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "http://api.example/v1"},
        {"base_url": "https://api.example.evil/v1"},
        {"base_url": "https://api.example:8443/v1"},
        {"outbound_proxy": "http://proxy.example:3128"},
        {"verify_tls": False},
        {"ca_bundle": "-----BEGIN CERTIFICATE-----"},
        {"caller_host": True},
        {"target_host": True},
        {"addresses": ("10.0.0.7",)},
        {"token_url": "https://login.example/token"},
    ],
)
def test_whatever_decides_who_can_read_a_secret_is_part_of_where_it_goes(change: dict[str, Any]) -> None:
    assert destination(**change) != destination()


@pytest.mark.parametrize("base_url", ["https://api.example", "https://api.example:443/v2/", "HTTPS://API.example/v1"])
def test_what_only_shapes_requests_is_not(base_url: str) -> None:
    assert destination(base_url=base_url) == destination()


def test_the_order_and_spelling_of_targets_is_not() -> None:
    assert destination(addresses=("B.example:80", "a.example")) == destination(addresses=("a.example", "b.example:80"))


def test_a_proxys_password_is_no_part_of_where_a_secret_goes() -> None:
    with_password = destination(outbound_proxy="http://user:pass-word@proxy.example:3128")
    assert with_password == destination(outbound_proxy="http://proxy.example:3128")
    assert "pass-word" not in with_password
