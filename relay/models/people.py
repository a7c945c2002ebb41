"""Users and groups in the audit trail: they are not ours, but decide who may change what is.

Of a user it keeps the name, what it may do, and that the password changed; of a group its name and permissions; and who
joined or left which group. Their tables send no word of `QuerySet.update`: a script that goes that way is not seen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.db import models
from django.db.models.signals import m2m_changed, post_delete, pre_delete

from relay.models import audit
from relay.models.audit import AuditEntry, Deed

_UID = "relay.models.people"
_ROWS_AT_A_TIME = 500


def follow() -> None:
    user = get_user_model()
    audit.follow(
        user,
        fields=(user.USERNAME_FIELD, "is_active", "is_staff", "is_superuser", "password"),
        secret=("password",),
    )
    audit.follow(Group, fields=("name",))
    for links in (user.groups, user.user_permissions, Group.permissions):
        m2m_changed.connect(_note_links, sender=links.through, dispatch_uid=_UID)
    pre_delete.connect(_note_end_of_group, sender=Group, dispatch_uid=_UID)
    post_delete.connect(_forget_actor, sender=user, dispatch_uid=_UID)


def _note_links(
    sender: type[models.Model],
    instance: models.Model,
    action: str,
    reverse: bool,
    pk_set: set[Any] | None,
    using: str,
    **_: Any,
) -> None:
    """Before links are made or cut: the rows that lose them still have them."""
    if not action.startswith("pre_"):
        return
    field = next(
        field
        for kind in audit.followed()
        for field in kind._meta.local_many_to_many
        if field.remote_field.through is sender
    )
    holder, held = field.m2m_field_name(), field.m2m_reverse_field_name()
    mine, theirs = (held, holder) if reverse else (holder, held)
    if action == "pre_add":
        pairs = [(instance.pk, other) for other in pk_set or ()]
    else:
        links = sender._default_manager.using(using).filter(**{mine: instance.pk})
        if pk_set is not None:
            links = links.filter(**{f"{theirs}__in": pk_set})
        pairs = list(links.values_list(mine, theirs))
    held_by: defaultdict[Any, list[Any]] = defaultdict(list)
    for one, other in pairs:
        held_by[other if reverse else one].append(one if reverse else other)
    names = _names(field.related_model, {key for keys in held_by.values() for key in keys}, using=using)
    holders = list(held_by)
    with audit.gathered(using):
        for start in range(0, len(holders), _ROWS_AT_A_TIME):
            some = holders[start : start + _ROWS_AT_A_TIME]
            for row in field.model._base_manager.using(using).filter(pk__in=some).order_by():
                told = sorted(names[key] for key in held_by[row.pk] if key in names)
                change = [[], told] if action == "pre_add" else [told, []]
                audit.write([audit.entry_of(row, Deed.CHANGED, {field.name: change})], using=using)


def _names(kind: type[models.Model], keys: Iterable[Any], *, using: str) -> dict[Any, str]:
    if issubclass(kind, Permission):
        rights = Permission.objects.using(using).filter(pk__in=keys)
        told = rights.values_list("pk", "content_type__app_label", "codename")
        return {key: f"{app_label}.{codename}" for key, app_label, codename in told}
    return {row.pk: str(row) for row in kind._base_manager.using(using).filter(pk__in=keys)}


def _note_end_of_group(instance: Group, using: str, **_: Any) -> None:
    """Its members lose it without another word."""
    through = get_user_model().groups.through
    _note_links(through, instance, "pre_clear", reverse=True, pk_set=None, using=using)


def _forget_actor(instance: models.Model, using: str, **_: Any) -> None:
    """Of what people caused by removing themselves, entries came after Django had let go of the others."""
    AuditEntry._base_manager.using(using).filter(actor=instance.pk).update(actor=None)
