"""The audit trail in the admin: read, searched, filtered and exported; never added to, changed or removed here."""

from __future__ import annotations

import difflib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any, ClassVar

from asgiref.sync import sync_to_async
from django.apps import apps
from django.contrib import admin
from django.core.exceptions import FieldDoesNotExist, PermissionDenied, ValidationError
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import URLPattern, path
from django.utils import formats, timezone
from django.utils.text import capfirst
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import FieldTextFilter, RangeDateFilter
from unfold.decorators import display
from unfold.utils import parse_date_str

from relay.models import AuditEntry, Deed
from relay.models.audit import CHANGED, followed
from relay.models.authors import Source
from relay.models.exports import Format, pieces

if TYPE_CHECKING:  # unfold has no types
    _ModelAdmin = admin.ModelAdmin[AuditEntry]
    _RangeDateFilter = admin.FieldListFilter
else:
    _ModelAdmin, _RangeDateFilter = ModelAdmin, RangeDateFilter

_MOST_LINES_COMPARED = 5000
_LINES_AROUND = 2
_FIELDS_NAMED = 4


class MomentFilter(_RangeDateFilter):
    """Whole days, both of them included, as the admin's time zone has them."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        for edge, lookup, hour in (("from", "moment__gte", time.min), ("to", "moment__lte", time.max)):
            day = parse_date_str(self.used_parameters.get(f"moment_{edge}"))
            if day is not None:
                queryset = queryset.filter(**{lookup: _in_utc(day, hour)})
        return queryset


def _in_utc(day: date, hour: time) -> datetime:
    moment = datetime.combine(day, hour)
    try:
        return timezone.make_aware(moment).astimezone(UTC)
    except OverflowError:  # the first or last day there is
        return moment.replace(tzinfo=UTC)


class KindFilter(admin.SimpleListFilter):
    title = "kind"
    parameter_name = "object_type__exact"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        kinds = followed()
        kinds.append(AuditEntry)
        named = [(kind._meta.label_lower, capfirst(str(kind._meta.verbose_name))) for kind in kinds]
        return sorted(named, key=lambda kind: kind[1])

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        return queryset.filter(object_type=self.value()) if self.value() else queryset


@dataclass(frozen=True, slots=True)
class Line:
    mark: str
    """`+`, `-`, `@` for a place further on, or a space."""
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """A field in the table of changes. `lines` instead of the two values where line by line tells more."""

    field: str
    before: str = ""
    after: str = ""
    lines: tuple[Line, ...] = ()
    is_secret: bool = False


@admin.register(AuditEntry)
class AuditEntryAdmin(_ModelAdmin):
    list_display = ("when", "who", "deed", "subject", "fields_changed", "address")
    list_filter = (("moment", MomentFilter), ("actor_name", FieldTextFilter), KindFilter, "action", "source")
    search_fields = ("object_name", "upstream", "consumer", "actor_name", "address")
    search_help_text = "Search by object, upstream, consumer, who or address"
    list_filter_submit = True
    sortable_by = ()
    list_fullwidth = True
    list_per_page = 50
    show_full_result_count = False
    list_before_template = "relay/admin/exports.html"
    readonly_fields = (
        *("moment_in_full", "who_in_full", "address", "request_id"),
        *("subject_in_full", "object_id", "upstream", "consumer"),
    )
    fieldsets = (("Who", {"fields": readonly_fields[:4]}), ("What", {"fields": readonly_fields[4:]}))
    change_form_outer_before_template = "relay/admin/changes.html"

    class Media:
        css: ClassVar[dict[str, tuple[str, ...]]] = {"all": ("relay/admin.css",)}

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.export_view)
        return [path("export/<str:form>/", view, name="relay_audit_export"), *super().get_urls()]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: AuditEntry | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: AuditEntry | None = None) -> bool:
        return False

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        return super().changeform_view(request, object_id, form_url, {"show_history": False, **(extra_context or {})})

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: AuditEntry | None = None,
    ) -> HttpResponse:
        context["rows"] = rows_of(obj) if obj else []
        return super().render_change_form(request, context, add=add, change=change, form_url=form_url, obj=obj)

    # The list

    @display(header=True, description="when")
    def when(self, entry: AuditEntry) -> tuple[str, ...]:
        moment = timezone.localtime(entry.moment)
        return formats.date_format(moment, "Y-m-d"), formats.date_format(moment, "H:i:s")

    @display(header=True, description="who")
    def who(self, entry: AuditEntry) -> tuple[str, ...]:
        source = " · ".join(filter(None, (Source(entry.source).label, entry.source_name)))
        return entry.actor_name or "—", source

    @display(label={Deed.ADDED: "success", Deed.CHANGED: "info", Deed.REMOVED: "danger"}, description="action")
    def deed(self, entry: AuditEntry) -> tuple[str, str]:
        return entry.action, Deed(entry.action).label

    @display(header=True, description="object")
    def subject(self, entry: AuditEntry) -> tuple[str, ...]:
        holders = [name for name in (entry.upstream, entry.consumer) if name and name != entry.object_name]
        return entry.object_name, " · ".join([capfirst(entry.kind), *holders])

    @admin.display(description="fields")
    def fields_changed(self, entry: AuditEntry) -> str:
        if entry.action != Deed.CHANGED:
            return ""
        names = list(entry.changes)
        more = f" and {len(names) - _FIELDS_NAMED} more" if len(names) > _FIELDS_NAMED else ""
        return ", ".join(names[:_FIELDS_NAMED]) + more

    # One entry

    @admin.display(description="when")
    def moment_in_full(self, entry: AuditEntry) -> str:
        return f"{timezone.localtime(entry.moment):%Y-%m-%d %H:%M:%S %Z}"

    @admin.display(description="who")
    def who_in_full(self, entry: AuditEntry) -> str:
        name, source = self.who(entry)
        return f"{name} ({source})"

    @admin.display(description="object")
    def subject_in_full(self, entry: AuditEntry) -> str:
        return f"{capfirst(entry.kind)} {entry.object_name}"

    # Exports

    def export_view(self, request: HttpRequest, form: str) -> StreamingHttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        if form not in set(Format):
            raise Http404("There is no such format.")
        format_ = Format(form)
        found = pieces(self.get_changelist_instance(request).get_queryset(request), format_)
        # Under ASGI Django would read all of a synchronous iterator into memory, and the other way round under WSGI.
        content = _read_in_threads(found) if hasattr(request, "scope") else found
        name = f"audit-{timezone.localtime():%Y-%m-%d}.{format_}"
        return StreamingHttpResponse(
            content,
            content_type=format_.content_type,
            headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
        )


async def _read_in_threads(found: Iterator[str]) -> AsyncIterator[str]:
    def following() -> str | None:
        return next(found, None)

    while (piece := await sync_to_async(following)()) is not None:
        yield piece


# The table of changes


def rows_of(entry: AuditEntry) -> list[Row]:
    return [_row(entry, field, change) for field, change in entry.changes.items()]


def _row(entry: AuditEntry, field: str, change: Any) -> Row:
    if change == CHANGED:
        return Row(field, is_secret=True)
    before, after = change
    if isinstance(before, str) and isinstance(after, str) and ("\n" in before or "\n" in after):
        lines = _compared(before.splitlines(), after.splitlines())
        if lines:
            return Row(field, lines=lines)
    return Row(field, _shown(entry, field, before), _shown(entry, field, after))


def _compared(before: list[str], after: list[str]) -> tuple[Line, ...]:
    if len(before) + len(after) > _MOST_LINES_COMPARED:
        return ()
    told = list(difflib.unified_diff(before, after, n=_LINES_AROUND, lineterm=""))[2:]
    return tuple(Line(line[:1], "" if line.startswith("@") else line[1:]) for line in told)[1:]


def _shown(entry: AuditEntry, field: str, value: Any) -> str:
    if value is None or value == "" or value == []:
        return ""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    if isinstance(value, bool | dict):
        return json.dumps(value)
    related = _related(entry.object_type, field)
    if related is None:
        return str(value)
    try:
        row = related._base_manager.filter(pk=value).first()
    except (ValueError, ValidationError):
        row = None
    return f"{value} ({row})" if row is not None else str(value)


def _related(label: str, field: str) -> type[Model] | None:
    """What a foreign key leads to, for a name beside the id. Both may be of a former version."""
    try:
        found = apps.get_model(label)._meta.get_field(field).related_model
    except (LookupError, FieldDoesNotExist):
        return None
    return found if isinstance(found, type) else None
