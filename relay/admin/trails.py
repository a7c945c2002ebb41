"""What all admin pages of audited rows have in common: their history is the audit trail, and not Django's own log.

Django's log knows what the admin did, without values; the trail knows every change. Django's stays behind the list of
recent actions on the start page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from unfold.admin import ModelAdmin

if TYPE_CHECKING:  # unfold has no types
    _ModelAdmin = admin.ModelAdmin[Model]
else:
    _ModelAdmin = ModelAdmin

MAY_SEE_TRAIL = "relay.view_auditentry"


def trail_url(model: type[Model], key: object) -> str:
    """The audit trail of this row; of an upstream or a consumer, with that of all that belongs to it."""
    label = model._meta.label_lower
    if label in {"relay.upstream", "relay.consumer"}:
        query = {f"{model._meta.model_name}_key__exact": key}
    else:
        query = {"object_type__exact": label, "object_id__exact": key}
    return f"{reverse('admin:relay_auditentry_changelist')}?{urlencode(query)}"


class TrailedAdmin(_ModelAdmin):
    """In the place of unfold's ModelAdmin, for every model that `relay.models.audit` follows."""

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        context = {"show_history": request.user.has_perm(MAY_SEE_TRAIL), **(extra_context or {})}
        return super().changeform_view(request, object_id, form_url, context)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not request.user.has_perm(MAY_SEE_TRAIL):
            raise PermissionDenied
        return HttpResponseRedirect(trail_url(self.model, object_id))
