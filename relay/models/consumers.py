"""Who may call: consumers, their keys, and what they are granted.

A key's secret is never stored: only a keyed digest of it (`relay.vault`), and the prefix by which lists name it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, ClassVar
from uuid import uuid4

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import DEFAULT_DB_ALIAS, models, transaction
from django.db.models import Q
from django.db.models.signals import m2m_changed, post_save, pre_delete
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from relay import vault
from relay.models.revisions import (
    ConsumerChange,
    Recorded,
    RecordingQuerySet,
    Subject,
    record_changes,
    record_writes_of,
)
from relay.models.upstreams import Upstream, canonical_methods
from relay.rules import grants, keys

MOST_PREFIXES = 100


class Consumer(Recorded):
    """Who calls: a program or a person, known by its keys. It may do what its grants say, and its owner's groups'."""

    change_kind = ConsumerChange
    subject_lookups: ClassVar[tuple[str, ...]] = ("id",)
    touched_by_updates: ClassVar[tuple[str, ...]] = ("changed_at",)
    free_of_checks: ClassVar[frozenset[str]] = frozenset({"changed_at", "changed_by", "enabled"})
    unaudited_fields: ClassVar[frozenset[str]] = frozenset({"changed_at", "changed_by"})

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField(
        max_length=100,
        unique=True,
        validators=[
            RegexValidator(
                keys.CONSUMER_NAME_PATTERN,
                "Use letters, digits, spaces and . _ @ + - and begin and end with a letter or digit.",
            )
        ],
        help_text="What logs and lists call it, such as billing-batch or mobile app.",
    )
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="relay_consumers",
        help_text=(
            "The person it belongs to. It then has the grants of this person's groups as well, and may call for as "
            "long as this person is active."
        ),
    )
    enabled = models.BooleanField(
        default=True, help_text="Switched off, none of its keys lets anybody through; running exchanges are cut."
    )
    notes = models.TextField(blank=True, help_text="For whoever runs the relay next: what it is, whom to ask.")
    created_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField("last change", auto_now=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )
    changed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )

    objects = RecordingQuerySet["Consumer"].as_manager()

    class Meta:
        ordering = ("name",)
        base_manager_name = "objects"

    def __str__(self) -> str:
        return self.name

    def subjects(self, *, using: str) -> Iterable[Subject]:
        return (self.id,)

    def clean(self) -> None:
        self.name = " ".join(self.name.split())


class ApiKey(Recorded):
    """A key of a consumer. Lists name it by its prefix; the secret was shown once, when it was issued."""

    change_kind = ConsumerChange
    subject_lookups: ClassVar[tuple[str, ...]] = ("consumer_id",)
    unrecorded_fields: ClassVar[frozenset[str]] = frozenset({"last_used_at"})
    unaudited_fields: ClassVar[frozenset[str]] = frozenset({"last_used_at"})
    secret_fields: ClassVar[frozenset[str]] = frozenset({"digest"})

    consumer = models.ForeignKey(Consumer, on_delete=models.CASCADE, related_name="keys")
    prefix = models.CharField(max_length=20, unique=True, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    """Keyed digest of the whole key, in hexadecimal."""
    hash_key_id = models.CharField(max_length=8, editable=False)
    """Which of the installation's keys the digest was made with (`vault.Keyring`)."""
    label = models.CharField(max_length=100, blank=True, help_text="What it is for, such as “laptop” or “production”.")
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )
    expires_at = models.DateTimeField(null=True, blank=True, help_text="From then on it opens nothing. Empty: never.")
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    rotated_to = models.OneToOneField(
        "self", null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="rotated_from"
    )

    objects = RecordingQuerySet["ApiKey"].as_manager()

    class Meta:
        verbose_name = "key"
        ordering = ("-created_at", "-id")
        base_manager_name = "objects"
        permissions = (("issue_apikey", "Can see and issue keys"),)

    def __str__(self) -> str:
        return f"{self.prefix}…"

    def subjects(self, *, using: str) -> Iterable[Subject]:
        return (self.consumer_id,)

    @classmethod
    @sensitive_variables("text")
    def issue(cls, consumer: Consumer, **fields: Any) -> tuple[ApiKey, str]:
        """A new key and its text, which nothing can tell again. Raises ValidationError."""
        text = keys.make(secrets.token_bytes)
        hash_key_id, digest = vault.keyring().digest(text.encode())
        key = cls(
            consumer=consumer, prefix=keys.prefix_of(text), digest=digest.hex(), hash_key_id=hash_key_id, **fields
        )
        key.save()
        return key, text

    @sensitive_variables("text")
    def rotate(self, *, grace: timedelta, **fields: Any) -> tuple[ApiKey, str]:
        """A new key in this one's place, and its text. This one works until `grace` is over. Raises ValidationError."""
        now = timezone.now()
        with transaction.atomic():
            # First the lock that every writer takes, so that of two who rotate it the second is refused.
            record_changes((self.consumer_id,), kind=ConsumerChange, using=DEFAULT_DB_ALIAS)
            self.refresh_from_db()
            if not self.is_live(now):
                raise ValidationError("This key is no longer in force: issue a new one instead.", code="dead")
            if self.rotated_to is not None:
                raise ValidationError(f"This key was rotated already, to {self.rotated_to}.", code="rotated")
            fields = {"label": self.label, "expires_at": self.expires_at, **fields}
            following, text = type(self).issue(self.consumer, **fields)
            self.rotated_to = following
            end = now + grace
            self.expires_at = end if self.expires_at is None else min(end, self.expires_at)
            self.save(update_fields=("rotated_to", "expires_at"))
        return following, text

    def revoke(self) -> None:
        """Have it open nothing from now on. Any number of times."""
        if self.revoked_at is None:
            self.revoked_at = timezone.now()
            self.save(update_fields=("revoked_at",))

    def is_live(self, moment: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or moment < self.expires_at)


class Grant(Recorded):
    """What a consumer, or every consumer whose owner is in a group, may do at an upstream."""

    change_kind = ConsumerChange
    subject_lookups: ClassVar[tuple[str, ...]] = ("consumer_id", "group__user__relay_consumers__id")

    consumer = models.ForeignKey(Consumer, null=True, blank=True, on_delete=models.CASCADE, related_name="grants")
    group = models.ForeignKey(
        Group,
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="relay_grants",
        help_text="Everyone's consumers in this group may do it.",
    )
    upstream = models.ForeignKey(Upstream, on_delete=models.CASCADE, related_name="grants")
    methods = models.CharField(
        max_length=500, blank=True, help_text="Such as GET, POST. Empty: all that the upstream allows."
    )
    path_prefixes = models.TextField(
        blank=True,
        help_text=(
            "One a line, as callers write them after the slug: /v1/chat allows that and all below it. Empty: any path."
        ),
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = RecordingQuerySet["Grant"].as_manager()

    class Meta:
        ordering = ("upstream__slug", "id")
        base_manager_name = "objects"
        constraints = (
            models.CheckConstraint(
                condition=Q(consumer__isnull=False, group__isnull=True) | Q(consumer__isnull=True, group__isnull=False),
                name="relay_grant_one_holder",
            ),
        )

    def __str__(self) -> str:
        return f"{self.audit_name} at {self.upstream.slug}"

    @property
    def audit_name(self) -> str:
        return self.methods or "any method"

    @classmethod
    def add_lacking(
        cls, consumer: Consumer, upstream: Upstream, *, methods: str = "", prefixes: str = ""
    ) -> Grant | None:
        """The grant that was added, or None where the consumer's own ones do. Raises ValidationError.

        Without methods and prefixes any grant there will do: asking for no more than to call widens nothing.
        """
        wanted = cls(consumer=consumer, upstream=upstream, methods=methods, path_prefixes=prefixes)
        wanted.clean()
        held = cls.objects.filter(consumer=consumer, upstream=upstream)
        if any(grant.covers(wanted) for grant in held) or (held and not (wanted.methods or wanted.path_prefixes)):
            return None
        wanted.save()
        return wanted

    def covers(self, other: Grant) -> bool:
        """Whether it allows all that `other` does."""
        return self.as_rule().covers(other.as_rule())

    def as_rule(self) -> grants.Grant:
        return grants.Grant(
            frozenset(self.methods.replace(",", " ").split()), tuple(self.path_prefixes.encode().split())
        )

    def subjects(self, *, using: str) -> Iterable[Subject]:
        if self.consumer_id is not None:
            return (self.consumer_id,)
        return Consumer.objects.using(using).filter(owner__groups=self.group_id).values_list("id", flat=True)

    def clean(self) -> None:
        problems: dict[str, ValidationError] = {}
        try:
            self.methods = canonical_methods(self.methods or "")
        except ValueError as problem:
            problems["methods"] = ValidationError(str(problem), code="invalid")
        try:
            self.path_prefixes = canonical_prefixes(self.path_prefixes or "")
        except ValueError as problem:
            problems["path_prefixes"] = ValidationError(str(problem), code="invalid")
        if problems:
            raise ValidationError(problems)
        if (self.consumer_id is None) == (self.group_id is None):
            raise ValidationError("A grant is held by a consumer or by a group, one of the two.", code="holder")


def canonical_prefixes(text: str) -> str:
    """One a line, each once, in the order given. Raises ValueError with what to do."""
    prefixes = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(prefixes) > MOST_PREFIXES:
        raise ValueError(f"At most {MOST_PREFIXES} prefixes fit in one grant.")
    for prefix in prefixes:
        grants.check_prefix(prefix)
    return "\n".join(prefixes)


record_writes_of(Consumer, ApiKey, Grant)


def follow_people() -> None:
    """Have what happens to users and groups recorded as changes of the consumers that hang on them."""
    user = get_user_model()
    uid = "relay.models.consumers"
    post_save.connect(_record_owner, sender=user, dispatch_uid=uid)
    pre_delete.connect(_record_owner, sender=user, dispatch_uid=uid)
    m2m_changed.connect(_record_membership, sender=user.groups.through, dispatch_uid=uid)
    pre_delete.connect(_record_group, sender=Group, dispatch_uid=uid)


def _record_owner(instance: Any, using: str, update_fields: Iterable[str] | None = None, **_: Any) -> None:
    """An owner's end, or being switched off and on. Signing in writes `last_login` alone."""
    if update_fields is None or "is_active" in update_fields:
        _record_consumers(Q(owner=instance.pk), using)


def _record_membership(
    instance: Any, action: str, reverse: bool, pk_set: set[Any] | None, using: str, **_: Any
) -> None:
    if not action.startswith("pre_"):
        return
    if reverse:  # `group.user_set`; clearing it names nobody
        _record_consumers(Q(owner__groups=instance.pk) if pk_set is None else Q(owner__in=pk_set), using)
    else:
        _record_consumers(Q(owner=instance.pk), using)


def _record_group(instance: Group, using: str, **_: Any) -> None:
    _record_consumers(Q(owner__groups=instance.pk), using)


def _record_consumers(which: Q, using: str) -> None:
    with transaction.atomic(using=using):
        found = list(Consumer.objects.using(using).filter(which).values_list("id", flat=True))
        if found:
            record_changes(found, kind=ConsumerChange, using=using)
