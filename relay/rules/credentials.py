"""What an upstream's credential makes of a request: worked out once, when it is loaded, never per request.

`SHAPES` says which settings and secrets each kind has; forms, commands and the table all go by it. `compile_credential`
makes of them what the request path needs. Whatever cannot be sent is a ValueError with a sentence on what to do, which
never repeats a value.

Two layers: what authorises the request (one a request, for two would compete for the same header), and the certificate
that a connection is made with. An upstream may have one of each.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from types import MappingProxyType
from urllib.parse import quote_plus, urlencode

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from relay.errors import RelayError
from relay.rules import queries, sigv4
from relay.rules.addresses import parse_networks
from relay.rules.headers import check_rule_name, check_rule_value
from relay.rules.urls import BaseUrl, parse_base_url


class Kind(StrEnum):
    HEADER = "header"
    BEARER = "bearer"
    BASIC = "basic"
    QUERY = "query"
    OAUTH = "oauth"
    CERTIFICATE = "certificate"
    AWS = "aws"


@dataclass(frozen=True, slots=True)
class Shape:
    """What one kind of credential is made of: names of settings, of secrets, and those of both that may be empty."""

    label: str
    secrets: Mapping[str, str]
    """Field and what people call it."""
    settings: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()


SHAPES: Mapping[Kind, Shape] = MappingProxyType(
    {
        Kind.BEARER: Shape("Bearer token", {"secret": "Token"}),
        Kind.HEADER: Shape("Header field", {"secret": "Value"}, {"name": "Header name"}),
        Kind.BASIC: Shape("User name and password (basic)", {"secret": "Password"}, {"identity": "User name"}),
        Kind.QUERY: Shape("Query parameter", {"secret": "Value"}, {"name": "Parameter name"}),
        Kind.OAUTH: Shape(
            "OAuth 2 client credentials",
            {"secret": "Client secret"},
            {
                "token_url": "Token URL",
                "identity": "Client id",
                "auth_style": "Client is shown in",
                "scope": "Scope",
                "audience": "Audience",
                "token_networks": "Networks of the token URL",
            },
            frozenset({"scope", "audience", "token_networks"}),
        ),
        Kind.AWS: Shape(
            "AWS Signature Version 4",
            {"secret": "Secret access key", "session_token": "Session token"},
            {"identity": "Access key id", "region": "Region", "service": "Service"},
            frozenset({"session_token"}),
        ),
        Kind.CERTIFICATE: Shape(
            "Client certificate (mTLS)", {"secret": "Private key"}, {"certificates": "Certificate chain"}
        ),
    }
)
SETTINGS = (
    "name",
    "identity",
    "token_url",
    "auth_style",
    "scope",
    "audience",
    "token_networks",
    "region",
    "service",
    "certificates",
)
SECRETS = ("secret", "session_token")
MAX_SECRET_BYTES = 64 * 1024
"""Of one secret, typed in or read. Nobody takes header fields as long; a private key fits many times."""
AUTH_STYLES = ("basic", "body")

_BEARER = re.compile(r"[\x21-\x7e]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCOPE_WORD = re.compile(r"[A-Za-z0-9-]{1,64}")
_ACCESS_KEY_ID = re.compile(r"[A-Za-z0-9_]{1,128}")
_AUTHORIZATION = frozenset({b"authorization"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGrant:
    """How an access token is asked for (RFC 6749 section 4.4). Equal grants may share their token."""

    credential_id: str
    scheme: str
    host: str
    port: int
    authority: bytes
    target: bytes
    authorization: bytes = field(repr=False)
    """The Authorization to ask with, or nothing."""
    body: bytes = field(repr=False)
    networks: tuple[IPv4Network | IPv6Network, ...] | None
    """Those the token's server may be in besides the public ones. None: the upstream's."""


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """Certificates and private key in PEM, the key encrypted with `passphrase`: TLS libraries read files alone."""

    pem: bytes = field(repr=False)
    passphrase: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What requests to an upstream need of its credentials. No secret shows in its repr."""

    fault: type[RelayError] | None = None
    """Why no request may be sent. Whoever sends asks this first: a request never goes without its credential."""
    removed: frozenset[bytes] = frozenset()
    """Header names that are the relay's alone."""
    appended: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    parameter: queries.Parameter | None = None
    grant: TokenGrant | None = None
    signing_key: sigv4.SigningKey | None = None
    certificate: ClientCertificate | None = None
    files: tuple[tuple[str, tuple[int, ...] | None], ...] = ()
    """The files that secrets were read from, and by what a change of them is noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A credential as it was set. `secrets` are open."""

    credential_id: str = ""
    kind: str
    name: str = ""
    identity: str = ""
    token_url: str = ""
    auth_style: str = ""
    scope: str = ""
    audience: str = ""
    token_networks: str = ""
    region: str = ""
    service: str = ""
    certificates: str = ""
    secrets: Mapping[str, str] = field(repr=False)


def compile_credential(given: Given) -> Credential:
    """Raises ValueError."""
    kind = Kind(given.kind)
    check_settings(given)
    secrets = {name: check_secret(kind, name, given.secrets.get(name, "")) for name in SHAPES[kind].secrets}
    secret = secrets["secret"]
    if kind is Kind.BEARER:
        return _header("authorization", f"Bearer {secret}")
    if kind is Kind.HEADER:
        return _header(given.name, secret)
    if kind is Kind.BASIC:
        return _header("authorization", "Basic " + b64encode(f"{given.identity}:{secret}".encode()).decode())
    if kind is Kind.QUERY:
        return Credential(parameter=queries.parameter(given.name, secret))
    if kind is Kind.OAUTH:
        return Credential(removed=_AUTHORIZATION, grant=_grant(given, secret))
    if kind is Kind.AWS:
        key = sigv4.SigningKey(
            access_key_id=given.identity.encode(),
            secret_access_key=secret.encode(),
            session_token=secrets["session_token"].encode(),
            region=given.region.encode(),
            service=given.service.encode(),
        )
        return Credential(removed=sigv4.OWN_NAMES, signing_key=key)
    return Credential(certificate=_certificate(given.certificates, secret))


def combine(parts: Sequence[Credential]) -> Credential:
    """What the credentials of one upstream come to. A fault of one is a fault of all."""
    whole = parts[0]
    for part in parts[1:]:
        whole = replace(
            whole,
            fault=whole.fault or part.fault,
            removed=whole.removed | part.removed,
            appended=whole.appended + part.appended,
            parameter=whole.parameter or part.parameter,
            grant=whole.grant or part.grant,
            signing_key=whole.signing_key or part.signing_key,
            certificate=whole.certificate or part.certificate,
            files=whole.files + part.files,
        )
    return whole


def check_settings(given: Given) -> None:
    """Raises ValueError for the first setting that is wrong; `SettingRefused` says which."""
    shape = SHAPES[Kind(given.kind)]
    for name in SETTINGS:
        value: str = getattr(given, name)
        if name in shape.settings:
            if not value and name not in shape.optional:
                raise SettingRefused(name, "It is needed for this kind of credential.")
            if value:
                _check_setting(given.kind, name, value)
        elif value:
            raise SettingRefused(name, "This kind of credential has no such setting: leave it empty.")


class SettingRefused(ValueError):
    """`setting` is the name of what is wrong."""

    def __init__(self, setting: str, text: str) -> None:
        super().__init__(text)
        self.setting = setting


def _check_setting(kind: str, name: str, value: str) -> None:
    try:
        if name == "token_url":
            parse_base_url(value)
        elif name == "token_networks":
            parse_networks(value)
        elif name == "certificates":
            _certificates(value)
        elif name == "name" and kind == Kind.HEADER:
            check_rule_name(value)
        elif _CONTROL.search(value):
            raise ValueError("Write one line of text: take out line breaks and control characters.")
    except ValueError as problem:
        raise SettingRefused(name, str(problem)) from None
    if name == "identity" and kind == Kind.BASIC and ":" in value:
        raise SettingRefused(name, "A user name cannot hold a colon (RFC 7617).")
    if name == "identity" and kind == Kind.AWS and not _ACCESS_KEY_ID.fullmatch(value):
        raise SettingRefused(name, "Write an access key id such as AKIAIOSFODNN7EXAMPLE.")
    if name in {"region", "service"} and not _SCOPE_WORD.fullmatch(value):
        raise SettingRefused(name, "Use letters, digits and hyphens, such as eu-central-1 or s3.")
    if name == "auth_style" and value not in AUTH_STYLES:
        raise SettingRefused(name, f"Choose one of {', '.join(AUTH_STYLES)}.")


def check_secret(kind: str, name: str, text: str) -> str:
    """The secret to send, without the line end that files have. Raises ValueError, which repeats nothing of it."""
    text = text.strip() + "\n" if kind == Kind.CERTIFICATE else text.rstrip("\r\n")
    if not text.strip():
        if name in SHAPES[Kind(kind)].optional:
            return ""
        raise ValueError("It is empty.")
    if len(text.encode()) > MAX_SECRET_BYTES:
        raise ValueError(f"It is longer than {MAX_SECRET_BYTES} bytes.")
    if kind == Kind.CERTIFICATE:
        _private_key(text)
    elif kind in {Kind.BEARER, Kind.AWS}:
        if not _BEARER.fullmatch(text):
            raise ValueError("It is visible ASCII without blanks: take out what else is in it.")
    elif kind == Kind.HEADER:
        if text != text.strip(" \t"):
            raise ValueError("Take the blanks at its beginning or end away: they do not survive in a header.")
        check_rule_value(text)
    elif _CONTROL.search(text):
        raise ValueError("It is one line of text: take out line breaks and control characters.")
    return text


def _header(name: str, value: str) -> Credential:
    pair = (name.lower().encode(), value.encode())
    return Credential(removed=frozenset({pair[0]}), appended=(pair,))


def _grant(given: Given, secret: str) -> TokenGrant:
    url: BaseUrl = parse_base_url(given.token_url)
    form = {"grant_type": "client_credentials"}
    form |= {name: value for name, value in (("scope", given.scope), ("audience", given.audience)) if value}
    authorization = b""
    if given.auth_style == "body":
        form |= {"client_id": given.identity, "client_secret": secret}
    else:
        # RFC 6749 section 2.3.1: both are form-encoded before they are joined.
        pair = f"{quote_plus(given.identity)}:{quote_plus(secret)}"
        authorization = b"Basic " + b64encode(pair.encode())
    return TokenGrant(
        credential_id=given.credential_id,
        scheme=url.scheme,
        host=url.host,
        port=url.port,
        authority=url.authority,
        target=url.path or b"/",
        authorization=authorization,
        body=urlencode(form).encode(),
        networks=parse_networks(given.token_networks) if given.token_networks else None,
    )


def _certificates(pem: str) -> list[x509.Certificate]:
    advice = "Paste whole PEM certificates, the client's own first, then those that lead to its authority."
    if "PRIVATE KEY-----" in pem:
        raise ValueError("There is a private key in this: it belongs into the private key alone.")
    try:
        chain = x509.load_pem_x509_certificates(pem.encode())
        chain[0].public_key()
    except Exception:  # cryptography has a dozen reasons
        raise ValueError(f"These certificates cannot be read. {advice}") from None
    return chain


def _private_key(pem: str) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem.encode(), None)
    except TypeError:
        raise ValueError("The private key has a passphrase: take it off, the relay encrypts the key itself.") from None
    except Exception:
        # cryptography has a dozen reasons, and texts that might hold a part of it.
        raise ValueError(
            "The private key cannot be read: give one PEM key, from -----BEGIN PRIVATE KEY----- to the end."
        ) from None


def _certificate(certificates: str, private_key: str) -> ClientCertificate:
    chain = _certificates(certificates)
    key = _private_key(private_key)
    numbers = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*numbers) != chain[0].public_key().public_bytes(*numbers):
        raise ValueError("The private key belongs to another certificate than the first of the chain.")
    passphrase = os.urandom(24).hex().encode()
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))
    return ClientCertificate(encrypted + b"".join(one.public_bytes(Encoding.PEM) for one in chain), passphrase)
