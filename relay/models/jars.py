"""The cookies that the relay keeps for upstreams in jar mode. Values are sealed: `relay.vault` opens them."""

from __future__ import annotations

from django.db import models, router, transaction

from relay.models import audit, sealed
from relay.models.revisions import JarChange, record_changes
from relay.models.upstreams import Upstream

VALUE_PURPOSE = "jar.value"
"""What values are sealed for."""


class JarCookie(models.Model):
    """One cookie of an upstream's jar. Written by `relay.catalog.jar_rows` alone."""

    upstream = models.ForeignKey(Upstream, on_delete=models.CASCADE, related_name="jar_cookies")
    domain = models.CharField(max_length=255)
    path = models.CharField(max_length=512)
    name = models.CharField(max_length=256)
    host_only = models.BooleanField()
    secure = models.BooleanField()
    expires_at = models.DateTimeField(null=True)
    sealed_value = models.BinaryField()

    class Meta:
        ordering = ("id",)
        default_permissions = ()  # nobody edits cookies: who may change the upstream may empty its jar
        constraints = (
            models.UniqueConstraint(fields=("upstream", "domain", "path", "name"), name="relay_jar_cookie_once"),
        )

    def __str__(self) -> str:
        return f"{self.name} of {self.domain}{self.path}"

    @property
    def row(self) -> str:
        """What the value is bound to. None of the four holds a line break."""
        return "\n".join((str(self.upstream_id), self.domain, self.path, self.name))


def empty_jar(upstream: Upstream) -> int:
    """Have every worker forget the cookies kept for `upstream`; how many there were."""
    using = router.db_for_write(JarCookie)
    with transaction.atomic(using=using):
        record_changes([upstream.slug], kind=JarChange, using=using)
        count = JarCookie.objects.using(using).filter(upstream=upstream).delete()[0]
        changes = {"cookies in the jar": [count, 0]}
        audit.write([audit.entry_of(upstream, audit.Deed.CHANGED, changes)], using=using)
        return count


sealed.register(JarCookie, "sealed_value", purpose=VALUE_PURPOSE, row_of=lambda cookie: cookie.row)
