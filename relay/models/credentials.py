"""The secrets that the relay shows to upstreams in its callers' place.

A secret is sealed (`relay.vault`) for its column and this row, or is a reference to an environment variable or a file
outside of the database. What is set is never changed, only set anew: a new row with a new id takes the old one's place,
so nobody who lacks the secret can lead it elsewhere by changing what stands beside it. `confirmed_for` says where it
may go (`relay.rules.destinations`); when the upstream leads elsewhere, no request is sent until somebody confirms it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar
from uuid import uuid4

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, router, transaction
from django.db.models import Q
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from relay import conf, vault
from relay.models import sealed
from relay.models.revisions import Recorded, RecordingQuerySet, Subject, record_writes_of
from relay.models.upstreams import HostHeader, Upstream, canonical_networks
from relay.rules import credentials as rules
from relay.rules.destinations import destination_of
from relay.rules.urls import parse_base_url

ENVIRONMENT_PREFIX = "RELAY_CREDENTIAL_"
NEEDS_TLS = "A client certificate is only shown in TLS: the upstream's base URL has to begin with https://."
_VARIABLE = re.compile(ENVIRONMENT_PREFIX + r"[A-Z0-9_]{1,100}")


class CredentialKind(models.TextChoices):
    BEARER = "bearer", rules.SHAPES[rules.Kind.BEARER].label
    HEADER = "header", rules.SHAPES[rules.Kind.HEADER].label
    BASIC = "basic", rules.SHAPES[rules.Kind.BASIC].label
    QUERY = "query", rules.SHAPES[rules.Kind.QUERY].label
    OAUTH = "oauth", rules.SHAPES[rules.Kind.OAUTH].label
    AWS = "aws", rules.SHAPES[rules.Kind.AWS].label
    CERTIFICATE = "certificate", rules.SHAPES[rules.Kind.CERTIFICATE].label


class AuthStyle(models.TextChoices):
    BASIC = "basic", "The Authorization header (basic)"
    BODY = "body", "The body"


class Credential(Recorded):
    """What authorises requests to an upstream, or the certificate its connections are made with. Never print it."""

    subject_lookups: ClassVar[tuple[str, ...]] = ("upstream__slug",)

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    upstream = models.ForeignKey(Upstream, on_delete=models.CASCADE, related_name="credentials")
    kind = models.CharField(max_length=12, choices=CredentialKind)
    name = models.CharField(max_length=200, blank=True, help_text="Such as X-Api-Key, or api_key for a parameter.")
    identity = models.CharField(max_length=500, blank=True, help_text="Who the upstream knows the relay as.")
    token_url = models.CharField(
        "token URL", max_length=2000, blank=True, help_text="Such as https://login.example.com/oauth2/token."
    )
    auth_style = models.CharField(
        max_length=5,
        choices=AuthStyle,
        blank=True,
        help_text="How client id and secret are shown to the token URL. Servers that follow the standard take basic.",
    )
    scope = models.CharField(max_length=1000, blank=True, help_text="Separated by blanks. Empty: none is asked for.")
    audience = models.CharField(max_length=1000, blank=True, help_text="Some servers ask for it. Empty: none.")
    token_networks = models.TextField(
        blank=True,
        help_text="Networks the token URL may be in besides public ones, one CIDR a line. Empty: the upstream's.",
    )
    region = models.CharField(max_length=64, blank=True, help_text="Such as eu-central-1.")
    service = models.CharField(max_length=64, blank=True, help_text="Such as s3, execute-api or bedrock.")
    certificates = models.TextField(
        blank=True, help_text="In PEM: the client's own certificate first, then those that lead to its authority."
    )
    secret_sealed = models.BinaryField(default=b"", blank=True, editable=False)
    secret_reference = models.CharField(max_length=1000, blank=True, editable=False)
    session_token_sealed = models.BinaryField(default=b"", blank=True, editable=False)
    session_token_reference = models.CharField(max_length=1000, blank=True, editable=False)
    confirmed_for = models.TextField(editable=False)
    confirmed_at = models.DateTimeField(default=timezone.now, editable=False)
    confirmed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )
    set_at = models.DateTimeField(default=timezone.now, editable=False)
    set_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )

    objects = RecordingQuerySet["Credential"].as_manager()

    class Meta:
        ordering = ("upstream", "kind")
        base_manager_name = "objects"
        default_permissions = ()  # who may see an upstream may see which kinds it has
        permissions = (("set_credential", "Can set, confirm and remove credentials of upstreams"),)
        constraints = (
            models.CheckConstraint(condition=Q(kind__in=CredentialKind.values), name="relay_credential_kind"),
            # Two that authorise a request would compete for one header; a certificate works a layer below.
            models.UniqueConstraint(
                fields=("upstream",),
                condition=~Q(kind="certificate"),
                name="relay_credential_one_a_request",
                violation_error_message="This upstream has a credential for its requests already.",
            ),
            models.UniqueConstraint(
                fields=("upstream",),
                condition=Q(kind="certificate"),
                name="relay_credential_one_a_connection",
                violation_error_message="This upstream has a client certificate already.",
            ),
        )

    def __str__(self) -> str:
        return self.get_kind_display()

    def subjects(self, *, using: str) -> Iterable[Subject]:
        return (self.upstream.slug,)

    @classmethod
    @sensitive_variables()
    def put(
        cls,
        upstream: Upstream,
        kind: str,
        *,
        secrets: Mapping[str, str],
        references: Mapping[str, str] | None = None,
        destination: str | None = None,
        by: Any = None,
        **values: str,
    ) -> Credential:
        """Set an upstream's credential, in place of the one of the same layer. It is confirmed for where the upstream
        leads now, which has to be `destination` where that is given. `secrets` are sealed, `references` are kept as
        they are. Raises ValidationError, without a value."""
        credential = cls(upstream=upstream, kind=kind, set_by=by, confirmed_by=by, **values)
        for field, text in secrets.items():
            try:
                text = rules.check_secret(kind, field, text)
            except ValueError as problem:
                raise ValidationError({field: ValidationError(str(problem), code="invalid")}) from None
            if text:
                credential._seal(field, text)
        for field, reference in (references or {}).items():
            setattr(credential, f"{field}_reference", reference)
        using = router.db_for_write(cls)
        with transaction.atomic(using=using):
            upstream = Upstream.objects.using(using).get(pk=upstream.pk)
            try:
                credential.confirmed_for = credential.destination(upstream)
            except ValueError as problem:
                raise ValidationError({"token_url": ValidationError(str(problem), code="invalid")}) from None
            if destination is not None and destination != upstream_destination(upstream):
                raise _moved()
            cls.objects.using(using).filter(cls.layer_of(kind), upstream=upstream).delete()
            credential.save(using=using)
        return credential

    @staticmethod
    def layer_of(kind: str) -> Q:
        """Those of an upstream that one of this kind would stand beside."""
        same = Q(kind=CredentialKind.CERTIFICATE)
        return same if kind == CredentialKind.CERTIFICATE else ~same

    def confirm(self, destination: str, *, by: Any = None) -> None:
        """It may go to `destination` from now on. Raises ValidationError when the upstream leads elsewhere by now."""
        with transaction.atomic():
            if destination != self.destination(Upstream.objects.get(pk=self.upstream_id)):
                raise _moved()
            self.confirmed_for = destination
            self.confirmed_at = timezone.now()
            self.confirmed_by = by
            self.save()

    def destination(self, upstream: Upstream | None = None) -> str:
        """Where it would go now."""
        return upstream_destination(upstream if upstream is not None else self.upstream, token_url=self.token_url)

    @property
    def is_confirmed(self) -> bool:
        return self.confirmed_for == self.destination()

    def warnings(self) -> list[str]:
        """What can be set and is not safe: each a sentence that says what to do."""
        found = []
        if self.upstream.base_url.startswith("http://"):
            found.append("The upstream is called without TLS: whoever sits on the way can read the credential.")
        elif not self.upstream.verify_tls:
            found.append("TLS is not verified: whoever sits on the way can take the credential.")
        if self.token_url.startswith("http://"):
            found.append("The token URL is called without TLS: whoever sits on the way can read the client secret.")
        return found

    @sensitive_variables()
    def _seal(self, field: str, text: str) -> None:
        value = vault.keyring().seal(text.encode(), purpose=f"credential.{field}", row=str(self.pk))
        setattr(self, f"{field}_sealed", value)

    def clean(self) -> None:
        if self.kind not in CredentialKind.values:
            return
        problems: dict[str, ValidationError] = {}
        shape = rules.SHAPES[rules.Kind(self.kind)]
        self.name = self.name.strip()
        if self.kind == CredentialKind.HEADER:
            self.name = self.name.lower()
        self.identity = self.identity.strip() if self.kind != CredentialKind.BASIC else self.identity
        self.scope = " ".join(self.scope.split())
        self.certificates = self.certificates.strip() + "\n" if self.certificates.strip() else ""
        try:
            self.token_networks = canonical_networks(self.token_networks)
        except ValueError as problem:
            problems["token_networks"] = ValidationError(str(problem), code="invalid")
        try:
            self.token_url = parse_base_url(self.token_url).text if self.token_url.strip() else ""
        except ValueError as problem:
            problems["token_url"] = ValidationError(str(problem), code="invalid")
        try:
            rules.check_settings(self.given({}))
        except rules.SettingRefused as problem:
            problems.setdefault(problem.setting, ValidationError(str(problem), code="invalid"))
        for field in rules.SECRETS:
            has_value, reference = bool(getattr(self, f"{field}_sealed")), getattr(self, f"{field}_reference")
            if field not in shape.secrets:
                if has_value or reference:
                    problems[field] = ValidationError("This kind of credential has no such secret.", code="invalid")
            elif has_value and reference:
                problems[field] = ValidationError("Enter it, or say where it is kept: not both.", code="invalid")
            elif reference:
                try:
                    check_reference(reference)
                except ValueError as problem:
                    problems[field] = ValidationError(str(problem), code="invalid")
            elif not has_value and field not in shape.optional:
                problems[field] = ValidationError("It is needed for this kind of credential.", code="required")
        if problems:
            # The columns' names would say nothing to people.
            raise ValidationError({_shown_at(self, name): problem for name, problem in problems.items()})

    def given(self, secrets: Mapping[str, str]) -> rules.Given:
        settings = {name: getattr(self, name) for name in rules.SETTINGS}
        return rules.Given(credential_id=str(self.pk), kind=self.kind, secrets=secrets, **settings)


def upstream_destination(upstream: Upstream, *, addresses: Iterable[str] | None = None, token_url: str = "") -> str:
    """Where secrets of this upstream go. It may be any object with an upstream's attributes, if it comes with the
    `addresses` of its targets."""
    return destination_of(
        base_url=upstream.base_url,
        addresses=upstream.targets.values_list("address", flat=True) if addresses is None else addresses,
        outbound_proxy=upstream.outbound_proxy,
        verify_tls=upstream.verify_tls,
        ca_bundle=upstream.ca_bundle,
        caller_host=upstream.host_header == HostHeader.CALLER.value,
        target_host=upstream.host_header == HostHeader.TARGET.value,
        token_url=token_url,
    )


def _moved() -> ValidationError:
    return ValidationError(
        "The upstream was changed meanwhile: look at where it leads now, and confirm that.", code="moved"
    )


def _shown_at(credential: Credential, name: str) -> str:
    """Django only takes errors for fields there are."""
    return name if name not in rules.SECRETS else f"{name}_reference"


def check_reference(reference: str) -> None:
    """Raises ValueError with what to do, unless it is `env:NAME` or `file:/path` of what credentials may name."""
    kind, _, name = reference.partition(":")
    if kind == "env":
        if not _VARIABLE.fullmatch(name):
            raise ValueError(
                f"Name a variable that begins with {ENVIRONMENT_PREFIX}, in capitals, digits and underscores: "
                "others are not for credentials."
            )
    elif kind == "file":
        folder = conf.current().credentials_dir
        if not folder:
            raise ValueError(
                "Files cannot be named yet: whoever runs the relay has to set RELAY_CREDENTIALS_DIR to a folder."
            )
        path = PurePosixPath(name)
        if not path.is_absolute() or ".." in path.parts or not path.is_relative_to(folder) or not name.isprintable():
            raise ValueError(f"Name a file below {folder}, by its whole path.")
    else:
        raise ValueError("Write env:NAME or file:/path.")


record_writes_of(Credential)
sealed.register(Credential, "secret_sealed", purpose="credential.secret")
sealed.register(Credential, "session_token_sealed", purpose="credential.session_token")
