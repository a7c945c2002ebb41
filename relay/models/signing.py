"""Signing keys: what URLs are signed with where no header can be set. `relay.signing` makes the URLs.

The secret is sealed (`relay.vault`) and never shown: whoever may sign has the relay do it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, ClassVar
from uuid import uuid4

from django.conf import settings
from django.db import models
from django.utils import timezone

from relay import vault
from relay.models import sealed
from relay.models.consumers import Consumer
from relay.models.revisions import ConsumerChange, Recorded, RecordingQuerySet, Subject, record_writes_of
from relay.rules import signing


class SigningKey(Recorded):
    """Signs URLs that may do what its consumer may. Lists and URLs name it by its public id."""

    PURPOSE: ClassVar[str] = "signing-key.secret"
    """What the secret is sealed for, together with the row's primary key."""

    change_kind = ConsumerChange
    subject_lookups: ClassVar[tuple[str, ...]] = ("consumer_id",)

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    consumer = models.ForeignKey(
        Consumer,
        on_delete=models.CASCADE,
        related_name="signing_keys",
        help_text="What its grants allow is what the URLs can do.",
    )
    public_id = models.CharField("id", max_length=20, unique=True, editable=False)
    label = models.CharField(
        max_length=100,
        blank=True,
        help_text=(
            "What it signs for, such as newsletter. Code may name the key by it: of several with one label the newest "
            "signs, so a key is replaced by making another and revoking the old one later."
        ),
    )
    secret_sealed = models.BinaryField(editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = RecordingQuerySet["SigningKey"].as_manager()

    class Meta:
        ordering = ("-created_at", "-id")
        base_manager_name = "objects"

    def __str__(self) -> str:
        return f"{self.label} ({self.public_id})" if self.label else self.public_id

    def subjects(self, *, using: str) -> Iterable[Subject]:
        return (self.consumer_id,)

    def clean(self) -> None:
        self.label = " ".join(self.label.split())

    @classmethod
    def make(cls, consumer: Consumer, **fields: Any) -> SigningKey:
        """A new key, saved. Raises ValidationError."""
        key = cls(consumer=consumer, **fields)
        key.save()
        return key

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self.public_id:
            self.public_id = signing.make_id(secrets.token_bytes)
            self.secret_sealed = self.sealed(secrets.token_bytes(signing.SECRET_BYTES))
        super().save(*args, **kwargs)

    def sealed(self, secret: bytes) -> bytes:
        return vault.keyring().seal(secret, purpose=self.PURPOSE, row=str(self.pk))

    def secret(self) -> bytes:
        """Raises `vault.SealBroken`."""
        return vault.keyring().open(bytes(self.secret_sealed), purpose=self.PURPOSE, row=str(self.pk))

    def revoke(self) -> None:
        """Have its URLs open nothing from now on. Any number of times."""
        if self.revoked_at is None:
            self.revoked_at = timezone.now()
            self.save()


record_writes_of(SigningKey)
sealed.register(SigningKey, "secret_sealed", purpose=SigningKey.PURPOSE)
