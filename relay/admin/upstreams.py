"""Upstreams in the admin: the changelist, the change form with its targets and header rules, bulk switches, deletion.

Header rule values and the proxy's password are shown to those who may change them and to nobody else: readers see
“(hidden)”, and lookups in the URL cannot ask for them either. Where an upstream points is a right of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import unescape
from typing import TYPE_CHECKING, Any, ClassVar, cast

from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models import Count, F, OuterRef, QuerySet, Subquery, Value
from django.db.models.functions import Coalesce, NullIf
from django.forms import BaseInlineFormSet, ModelForm
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import formats, timezone
from django.utils.html import format_html
from django.utils.text import capfirst
from unfold.admin import TabularInline
from unfold.decorators import display

from relay.admin import callers, credentials, documentation
from relay.admin.examples import curl_examples
from relay.admin.forms import HeaderRuleForm, TargetForm, TargetFormSet, UpstreamForm
from relay.admin.switching import Switches
from relay.admin.trails import TrailedAdmin
from relay.models import Access, CookieMode, HeaderRule, JarCookie, Target, Upstream, empty_jar, usage
from relay.models.targets import MOST_TARGETS
from relay.models.upstreams import POINTING_FIELDS
from relay.rules.hosts import Hosts
from relay.serving.hosts import names

if TYPE_CHECKING:  # unfold has no types
    _ModelAdmin = admin.ModelAdmin[Upstream]
    _HeaderRules = admin.TabularInline[HeaderRule, Upstream]
    _Targets = admin.TabularInline[Target, Upstream]
else:
    _ModelAdmin = TrailedAdmin
    _HeaderRules = _Targets = TabularInline

HIDDEN = "(hidden)"
MAY_POINT = "relay.point_upstream"
MAY_CHANGE = "relay.change_upstream"


def hide(contents: str) -> str:
    """`contents` is what would be shown, a dash when there is nothing."""
    return contents if contents == "-" else HIDDEN


def hide_userinfo(contents: str) -> str:
    """`contents` is what would be shown of a proxy URL, escaped for HTML; so is not what this gives."""
    scheme, separator, rest = unescape(contents).partition("://")
    userinfo, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{HIDDEN if userinfo else ''}{at}{place}"


def relay_url(request: HttpRequest, upstream: Upstream) -> str:
    """The URL callers use: at a host name of the upstream's own, at one of the relay's, or at the one the admin was
    reached by; the first there is."""
    host, path = relay_place(upstream.slug, names())
    if not host:
        return request.build_absolute_uri(path)
    _, colon, port = request.get_host().rpartition("]")[2].partition(":")
    return f"{request.scheme}://{host}{colon}{port}{path}"


def relay_place(slug: str, hosts: Hosts) -> tuple[str, str]:
    """(host name, path) at which callers find an upstream; no host where any will do."""
    if hosts.suffixes:
        return f"{slug}{hosts.suffixes[0]}", "/"
    return hosts.relay_name(), reverse("relay:upstream", args=(slug,))


def _count(targets: QuerySet[Target]) -> Coalesce:
    """How many of these an upstream has."""
    counts = targets.filter(upstream=OuterRef("pk")).order_by().values("upstream").annotate(count=Count("pk"))
    return Coalesce(Subquery(counts.values("count")), 0)


def _cookies(count: int) -> str:
    return f"{count} cookie{'' if count == 1 else 's'}"


class TargetInline(_Targets):
    """Who may change the upstream changes what share its targets have; where they are is a matter of pointing it."""

    model = Target
    form = TargetForm
    formset = TargetFormSet
    fields = ("address", "weight", "enabled", "backup")
    extra = 0
    max_num = MOST_TARGETS
    hide_title = True
    template_before = "relay/admin/targets.html"

    def get_formset(self, request: HttpRequest, obj: Upstream | None = None, **kwargs: Any) -> Any:
        # Who may not add gets a `max_num` of 0, and the targets there are would be too many.
        return super().get_formset(request, obj, validate_max=self.has_add_permission(request, obj), **kwargs)

    def get_readonly_fields(self, request: HttpRequest, obj: Upstream | None = None) -> tuple[str, ...]:
        return () if request.user.has_perm(MAY_POINT) else ("address",)

    def has_view_permission(self, request: HttpRequest, obj: Upstream | None = None) -> bool:
        return True  # who sees the page sees them

    def has_change_permission(self, request: HttpRequest, obj: Upstream | None = None) -> bool:
        return request.user.has_perm(MAY_CHANGE)

    def has_add_permission(self, request: HttpRequest, obj: Upstream | None = None) -> bool:
        return request.user.has_perm(MAY_POINT) and (obj is None or request.user.has_perm(MAY_CHANGE))

    def has_delete_permission(self, request: HttpRequest, obj: Upstream | None = None) -> bool:
        return self.has_add_permission(request, obj)


class HeaderRuleInline(_HeaderRules):
    model = HeaderRule
    form = HeaderRuleForm
    fields = ("side", "action", "name", "value")
    extra = 0
    readonly_preprocess_fields: ClassVar[dict[str, Callable[[str], str]]] = {"value": hide}


@admin.register(Upstream)
class UpstreamAdmin(Switches, _ModelAdmin):
    form = UpstreamForm
    inlines = (TargetInline, HeaderRuleInline)
    save_as = True
    radio_fields = dict.fromkeys(("access", "balancing", "delivery", "host_header", "cookie_mode"), admin.VERTICAL)
    readonly_fields = ("created_at", "created_by", "changed_at", "changed_by")
    readonly_preprocess_fields: ClassVar[dict[str, Callable[[str], str]]] = {"outbound_proxy": hide_userinfo}
    fieldsets = (
        ("What and where", {"fields": ("slug", "name", "description", "base_url")}),
        ("Who may call", {"fields": ("enabled", "access", "allowed_methods", "report_only")}),
        ("Delivery", {"fields": ("delivery", "max_buffered_bytes", "host_header")}),
        ("Cookies", {"fields": ("cookie_mode",)}),
        (
            "Scripts of other origins (CORS)",
            {
                "fields": (
                    "cors_allowed_origins",
                    "cors_allowed_methods",
                    "cors_allowed_headers",
                    "cors_exposed_headers",
                    "cors_allow_credentials",
                    "cors_max_age_seconds",
                )
            },
        ),
        (
            "Time-outs",
            {
                "fields": (
                    "connect_timeout_seconds",
                    "head_timeout_seconds",
                    "idle_timeout_seconds",
                    "min_upload_bytes_per_second",
                    "total_timeout_seconds",
                )
            },
        ),
        ("Balancing", {"fields": ("balancing", "balancing_header")}),
        (
            "Failures",
            {
                "fields": (
                    "max_retries",
                    "retry_percent",
                    "breaker_failures",
                    "breaker_percent",
                    "breaker_seconds",
                )
            },
        ),
        (
            "Health checks",
            {
                "fields": (
                    "check_path",
                    "check_method",
                    "check_statuses",
                    "check_body",
                    "check_interval_seconds",
                    "check_timeout_seconds",
                    "check_failures",
                    "check_successes",
                )
            },
        ),
        (
            "Bounds",
            {
                "fields": (
                    "max_request_bytes",
                    "max_response_bytes",
                    "max_concurrent",
                    "max_queued",
                    "queue_timeout_seconds",
                    "max_connections",
                    "keepalive_seconds",
                )
            },
        ),
        ("Network and TLS", {"fields": ("allowed_networks", "verify_tls", "ca_bundle", "outbound_proxy")}),
        ("History", {"fields": readonly_fields}),
    )
    list_select_related = ("changed_by",)
    list_fullwidth = True
    list_per_page = 50
    list_filter = (
        "enabled",
        "access",
        "delivery",
        "verify_tls",
        ("allowed_networks", admin.EmptyFieldListFilter),
        ("outbound_proxy", admin.EmptyFieldListFilter),
    )
    search_fields = ("slug", "name", "base_url", "targets__address")
    search_help_text = "Search by slug, name or host"
    ordering = ("slug",)
    actions = ("switch_on", "switch_off")
    change_form_outer_before_template = "relay/admin/calling.html"
    change_form_outer_after_template = "relay/admin/credentials_panel.html"

    class Media:
        css: ClassVar[dict[str, tuple[str, ...]]] = {"all": ("relay/admin.css",)}
        js = ("relay/copy.js",)

    def get_urls(self) -> list[URLPattern]:
        page = path("docs/<slug:name>/", self.admin_site.admin_view(self.documentation_view), name="relay_docs")
        emptying = path(
            "<path:object_id>/empty-jar/", self.admin_site.admin_view(self.empty_jar_view), name="relay_empty_jar"
        )
        return [page, emptying, *credentials.CredentialPages(self).urls(), *super().get_urls()]

    def documentation_view(self, request: HttpRequest, name: str) -> HttpResponse:
        page = next((page for page in documentation.pages() if page.name == name), None)
        if page is None:
            raise Http404("There is no such page.")
        context = {**self.admin_site.each_context(request), "title": page.title, "page": page, "media": self.media}
        return TemplateResponse(request, "relay/admin/documentation.html", context)

    def empty_jar_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Only ever posted: a page that merely leads here must not sign an upstream's session out."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        upstream = self.get_object(request, object_id)
        if upstream is None or not self.has_change_permission(request, upstream):
            raise PermissionDenied
        count = empty_jar(upstream)
        self.log_change(request, upstream, f"Emptied the cookie jar ({count}).")
        self.message_user(request, f"The jar of {upstream} is empty: {_cookies(count)} gone.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:relay_upstream_change", args=(upstream.pk,)))

    # The changelist

    def get_list_display(self, request: HttpRequest) -> tuple[str | Callable[[Upstream], str], ...]:
        @admin.display(description="relay URL", ordering="slug")
        def copyable_url(upstream: Upstream) -> str:
            return render_to_string(
                "relay/admin/copyable.html",
                {"text": relay_url(request, upstream), "what": f"the relay URL of {upstream}"},
            )

        return ("title", copyable_url, "leads_to", "caller", "state", "last_change")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Upstream]:
        rows: QuerySet[Upstream] = super().get_queryset(request)
        targets = Target.objects.all()
        return rows.annotate(target_count=_count(targets), used_target_count=_count(targets.filter(enabled=True)))

    @display(header=True, ordering="base_url", description="base URL")
    def leads_to(self, upstream: Any) -> tuple[str, ...]:
        """`upstream` as `get_queryset` gives it."""
        count, off = upstream.target_count, upstream.target_count - upstream.used_target_count
        if not count:
            return (upstream.base_url,)
        targets = f"{count} target{'' if count == 1 else 's'}"
        return upstream.base_url, f"{targets}, {off} switched off" if off else targets

    @display(header=True, ordering=Coalesce(NullIf(F("name"), Value("")), F("slug")), description="name")
    def title(self, upstream: Upstream) -> tuple[str, ...]:
        return (upstream.name, upstream.slug) if upstream.name else (upstream.slug,)

    @display(label={Access.KEY: "info", Access.ANYONE: "warning"}, ordering="access", description="access")
    def caller(self, upstream: Upstream) -> tuple[str, str]:
        return upstream.access, "Anyone" if upstream.access == Access.ANYONE else "With a key"

    @display(label={True: "success", False: "default"}, ordering="enabled", description="state")
    def state(self, upstream: Upstream) -> tuple[bool, str]:
        return upstream.enabled, "Live" if upstream.enabled else "Switched off"

    @display(header=True, ordering="changed_at", description="last change")
    def last_change(self, upstream: Upstream) -> tuple[str, ...]:
        moment = formats.date_format(timezone.localtime(upstream.changed_at), "Y-m-d H:i")
        return (moment, f"by {upstream.changed_by}") if upstream.changed_by else (moment,)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Without this, `?outbound_proxy__startswith=` would tell a reader the password letter by letter."""
        if lookup.startswith("outbound_proxy"):
            return lookup == "outbound_proxy__isempty"
        return super().lookup_allowed(lookup, value, request)

    # The form

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Whoever adds an upstream says where it points. “Save as new” asks this, too."""
        return super().has_add_permission(request) and request.user.has_perm(MAY_POINT)

    def get_readonly_fields(self, request: HttpRequest, obj: Upstream | None = None) -> tuple[str, ...]:
        fields = super().get_readonly_fields(request, obj)
        return (*fields, *(() if request.user.has_perm(MAY_POINT) else POINTING_FIELDS))

    def get_fieldsets(self, request: HttpRequest, obj: Upstream | None = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        return fieldsets if obj else fieldsets[:-1]

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Upstream | None = None,
    ) -> HttpResponse:
        # Never what a form with errors has made of it: the page tells how to call what is saved.
        saved = Upstream.objects.filter(pk=obj.pk).first() if obj else None
        if saved:
            url = relay_url(request, saved)
            context |= {"credentials": credentials.shown(saved)}
            context |= {"saved": saved, "relay_url": url, "examples": curl_examples(saved, url)}
            counts = usage.would_refuse(saved)
            context["would_refuse"] = usage.report(counts) if saved.report_only or counts else ""
            if saved.cookie_mode == CookieMode.JAR:
                context["jar"] = _cookies(JarCookie.objects.filter(upstream=saved).count())
                context["may_empty_jar"] = self.has_change_permission(request, saved)
            context["callers"] = callers.of(saved, cast(User, request.user))
        return super().render_change_form(request, context, add=add, change=change, form_url=form_url, obj=obj)

    def save_model(self, request: HttpRequest, obj: Upstream, form: ModelForm[Upstream], change: bool) -> None:
        if change and not form.has_changed():
            return
        obj.changed_by = cast(User, request.user)
        if not change:
            obj.created_by = obj.changed_by
        super().save_model(request, obj, form, change)

    def save_related(
        self,
        request: HttpRequest,
        form: ModelForm[Upstream],
        formsets: Iterable[BaseInlineFormSet[Any, Upstream, ModelForm[Any]]],
        change: bool,
    ) -> None:
        super().save_related(request, form, formsets, change)
        upstream = form.instance
        if change and not form.has_changed() and any(formset.has_changed() for formset in formsets):
            Upstream.objects.filter(pk=upstream.pk).update(changed_by=cast(User, request.user))
        for sentence in upstream.warnings():
            messages.warning(request, sentence)

    # Deletion

    def get_deleted_objects(
        self, objs: QuerySet[Upstream] | Sequence[Upstream], request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        """Instead of related rows it lists what stops working: each upstream with its relay URL."""
        _, counts, lacking, protected = super().get_deleted_objects(objs, request)
        lines = [format_html("{}: <code>{}</code>", upstream, relay_url(request, upstream)) for upstream in objs]
        return lines, {capfirst(name): count for name, count in counts.items()}, lacking, protected
