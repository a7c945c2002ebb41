"""Consumers in the admin: the list, the form with its grants, and the keys of one beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from django import forms
from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.db.models import Count, Exists, IntegerField, Max, OuterRef, QuerySet, Subquery, Value
from django.db.models.functions import Coalesce
from django.forms import BaseInlineFormSet, ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.text import capfirst
from unfold.admin import TabularInline
from unfold.decorators import display
from unfold.forms import PaginationInlineFormSet
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from relay.admin import callers
from relay.admin.forms import LinesField, exact
from relay.admin.keys import StateShown, acts_on, state_shown
from relay.admin.switching import Switches
from relay.admin.trails import TrailedAdmin
from relay.models import ApiKey, Consumer, Grant, SigningKey
from relay.models.key_states import in_force, local

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Consumer]
    _TabularInline = admin.TabularInline[Grant, Any]
    _GrantForm = forms.ModelForm[Grant]
    _ConsumerForm = forms.ModelForm[Consumer]
    _FormSet = BaseInlineFormSet[Grant, Any, ModelForm[Grant]]
else:
    _ModelAdmin, _TabularInline = TrailedAdmin, TabularInline
    _GrantForm = _ConsumerForm = forms.ModelForm
    _FormSet = PaginationInlineFormSet

MOST_KEYS = 50
"""Of a consumer, on its page. The list of keys has the others."""


class ConsumerForm(_ConsumerForm):
    class Meta:
        field_classes: ClassVar[dict[str, type[forms.Field]]] = {"notes": LinesField}
        widgets: ClassVar[dict[str, forms.Widget]] = {"notes": UnfoldAdminTextareaWidget({"rows": 3})}
        error_messages: ClassVar[dict[str, dict[str, str]]] = {
            "name": {"unique": "Another consumer has this name: choose another."}
        }


class GrantForm(_GrantForm):
    class Meta:
        field_classes: ClassVar[dict[str, type[forms.Field]]] = {"path_prefixes": LinesField}
        widgets: ClassVar[dict[str, forms.Widget]] = {
            "methods": UnfoldAdminTextInputWidget(exact(placeholder="any method")),
            "path_prefixes": UnfoldAdminTextareaWidget(exact(rows=2, placeholder="any path")),
        }


class GrantFormSet(_FormSet):
    def add_fields(self, form: ModelForm[Grant], index: int | None) -> None:
        """Django takes a new consumer's id away, since saving makes another. Its grants are checked with this one."""
        key = self.instance.pk
        super().add_fields(form, index)
        self.instance.pk = key


class GrantInline(_TabularInline):
    model = Grant
    form = GrantForm
    formset = GrantFormSet
    fields = ("upstream", "methods", "path_prefixes")
    autocomplete_fields = ("upstream",)
    extra = 0
    verbose_name_plural = "What it may do"


@dataclass(frozen=True, slots=True)
class KeyLine:
    """A key as its consumer's page shows it."""

    key: ApiKey
    state: StateShown
    acts: list[tuple[str, str]]


class KeysFilter(admin.SimpleListFilter):
    title = "keys"
    parameter_name = "keys"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("live", "With a live key"), ("none", "Without one")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Consumer]) -> QuerySet[Consumer]:
        has_key = Exists(ApiKey.objects.filter(in_force(timezone.now()), consumer=OuterRef("pk")))
        match self.value():
            case "live":
                return queryset.filter(has_key)
            case "none":
                return queryset.filter(~has_key)
            case _:
                return queryset


@admin.register(Consumer)
class ConsumerAdmin(Switches, _ModelAdmin):
    form = ConsumerForm
    inlines = (GrantInline,)
    readonly_fields = ("created_at", "created_by", "changed_at", "changed_by")
    fieldsets = (
        ("Who calls", {"fields": ("name", "owner", "enabled", "notes")}),
        ("History", {"fields": readonly_fields}),
    )
    list_display = ("title", "owned_by", "state", "live_keys", "may_call", "last_used", "last_change")
    list_select_related = ("owner", "changed_by")
    list_fullwidth = True
    list_per_page = 50
    list_filter = ("enabled", KeysFilter, ("owner", admin.EmptyFieldListFilter))
    search_fields = ("name", f"owner__{get_user_model().USERNAME_FIELD}", "notes")
    search_help_text = "Search by name, owner or notes"
    ordering = ("name",)
    actions = ("switch_on", "switch_off")
    change_form_outer_after_template = "relay/admin/keys_of_consumer.html"

    class Media:
        css: ClassVar[dict[str, tuple[str, ...]]] = {"all": ("relay/admin.css",)}

    # The list

    def get_queryset(self, request: HttpRequest) -> QuerySet[Consumer]:
        """With what the columns show. Each is an index look-up for the rows on the page, and for those alone."""
        keys = ApiKey.objects.filter(consumer=OuterRef("pk")).order_by().values("consumer")
        own = Grant.objects.filter(consumer=OuterRef("pk"))
        lent = Grant.objects.filter(group__user=OuterRef("owner")).exclude(
            upstream__in=Grant.objects.filter(consumer=OuterRef(OuterRef("pk"))).values("upstream")
        )
        found = super().get_queryset(request)
        annotated: QuerySet[Consumer] = found.annotate(
            key_count=_number(keys.filter(in_force(timezone.now())).annotate(number=Count("pk"))),
            used_at=Subquery(keys.annotate(moment=Max("last_used_at")).values("moment")),
            upstream_count=_upstreams(own) + _upstreams(lent),
        )
        return annotated

    @admin.display(ordering="name", description="name")
    def title(self, consumer: Consumer) -> str:
        return consumer.name

    @admin.display(ordering="owner", description="owner", empty_value="nobody")
    def owned_by(self, consumer: Consumer) -> str | None:
        return str(consumer.owner) if consumer.owner else None

    @display(label={"live": "success", "off": "default", "owner": "warning"}, ordering="enabled", description="state")
    def state(self, consumer: Consumer) -> tuple[str, str]:
        if not consumer.enabled:
            return "off", "Switched off"
        if consumer.owner is not None and not consumer.owner.is_active:
            return "owner", "Off with its owner"
        return "live", "Live"

    @admin.display(ordering="key_count", description="live keys")
    def live_keys(self, consumer: Any) -> int:
        return cast(int, consumer.key_count)

    @admin.display(ordering="upstream_count", description="upstreams")
    def may_call(self, consumer: Any) -> int:
        return cast(int, consumer.upstream_count)

    @admin.display(ordering="used_at", description="last used", empty_value="never")
    def last_used(self, consumer: Any) -> str | None:
        return local(consumer.used_at) or None

    @display(header=True, ordering="changed_at", description="last change")
    def last_change(self, consumer: Consumer) -> tuple[str, ...]:
        moment = local(consumer.changed_at)
        return (moment, f"by {consumer.changed_by}") if consumer.changed_by else (moment,)

    # The form

    def get_autocomplete_fields(self, request: HttpRequest) -> tuple[str, ...]:
        """Where users have an admin that can be searched. Another project's may have none."""
        users = self.admin_site._registry.get(Consumer._meta.get_field("owner").related_model)
        return ("owner",) if users is not None and users.search_fields else ()

    def get_fieldsets(self, request: HttpRequest, obj: Consumer | None = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        return fieldsets if obj else fieldsets[:-1]

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Consumer | None = None,
    ) -> HttpResponse:
        saved = Consumer.objects.filter(pk=obj.pk).select_related("owner").first() if obj else None
        if saved is not None:
            lent = [
                (upstream, [grant for grant in grants if grant.group_id])
                for upstream, grants in callers.grants_of(saved)
            ]
            context["lent"] = [
                (upstream, callers.in_words(grants), sorted({str(grant.group) for grant in grants}))
                for upstream, grants in lent
                if grants
            ]
            context["saved"] = saved
            if callers.may_issue(request.user):
                context |= _keys_of(saved)
        return super().render_change_form(request, context, add=add, change=change, form_url=form_url, obj=obj)

    def response_add(self, request: HttpRequest, obj: Consumer, post_url_continue: str | None = None) -> HttpResponse:
        """To its page, where the first key is issued."""
        if {"_addanother", "_continue", "_popup"} & request.POST.keys() or not self.has_view_permission(request, obj):
            return super().response_add(request, obj, post_url_continue)
        self.message_user(request, f"Made the consumer {obj}.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:relay_consumer_change", args=(obj.pk,)))

    def save_model(self, request: HttpRequest, obj: Consumer, form: ModelForm[Consumer], change: bool) -> None:
        if change and not form.has_changed():
            return
        obj.changed_by = cast(User, request.user)
        if not change:
            obj.created_by = obj.changed_by
        super().save_model(request, obj, form, change)

    def save_related(
        self,
        request: HttpRequest,
        form: ModelForm[Consumer],
        formsets: Iterable[BaseInlineFormSet[Grant, Consumer, ModelForm[Grant]]],
        change: bool,
    ) -> None:
        super().save_related(request, form, formsets, change)
        if change and not form.has_changed() and any(formset.has_changed() for formset in formsets):
            Consumer.objects.filter(pk=form.instance.pk).update(changed_by=cast(User, request.user))

    # Deletion

    def get_deleted_objects(
        self, objs: QuerySet[Consumer] | Sequence[Consumer], request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        """Instead of related rows it lists what stops working. Keys go with their consumer, live ones too."""
        _, counts, lacking, protected = super().get_deleted_objects(objs, request)
        now = timezone.now()
        lines = []
        for consumer in objs:
            number = consumer.keys.filter(in_force(now)).count()
            lines.append(format_html("{}: {}", consumer, f"{number} live key{'' if number == 1 else 's'}"))
        lacking -= {str(kind._meta.verbose_name) for kind in (ApiKey, SigningKey)}
        return lines, {capfirst(name): count for name, count in counts.items()}, lacking, protected


def _number(counted: QuerySet[Any]) -> Coalesce:
    return Coalesce(Subquery(counted.values("number")[:1], output_field=IntegerField()), Value(0))


def _upstreams(grants: QuerySet[Grant]) -> Coalesce:
    one_group = grants.order_by().annotate(one=Value(1)).values("one")
    return _number(one_group.annotate(number=Count("upstream", distinct=True)))


def _keys_of(consumer: Consumer) -> dict[str, Any]:
    found = list(consumer.keys.select_related("consumer__owner", "rotated_to")[: MOST_KEYS + 1])
    lines = [KeyLine(key, state_shown(key), acts_on(key)) for key in found[:MOST_KEYS]]
    page = reverse("admin:relay_apikey_changelist")
    return {
        "may_issue": True,
        "keys": lines,
        "all_keys": f"{page}?consumer__id__exact={consumer.pk}" if len(found) > MOST_KEYS else None,
        "issue_page": f"{reverse('admin:relay_apikey_add')}?consumer={consumer.pk}",
    }
