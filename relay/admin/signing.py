"""Signing keys in the admin: making and revoking them, and signing a URL by hand.

All of it is for people with `relay.issue_apikey`: a signed URL is a key to one place. No page shows a secret. A signed
URL is in one answer, which no cache keeps; the history has who signed what, without the signature and the query.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, cast
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Q, QuerySet
from django.forms import ModelForm
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import formats, timezone
from django.utils.html import escape, format_html, format_html_join
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from relay import signing
from relay.admin.examples import Example
from relay.admin.trails import TrailedAdmin
from relay.admin.upstreams import relay_url
from relay.models import Access, Consumer, Grant, SigningKey, Upstream
from relay.rules import grants

if TYPE_CHECKING:  # unfold has no types
    _ModelAdmin = admin.ModelAdmin[SigningKey]
else:
    _ModelAdmin = TrailedAdmin

MADE = ("public_id", "standing", "created_at", "created_by", "revoked_at")
"""What a key has that nobody enters."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
LIFETIMES = {
    "1h": "An hour",
    "1d": "A day",
    "7d": "A week",
    "30d": "30 days",
    "90d": "90 days",
    "366d": "A year",
}


class SignForm(forms.Form):
    """What is to be signed. Refuses what the consumer's grants would not let through: such a URL opens nothing."""

    upstream = forms.ModelChoiceField(
        Upstream.objects.none(),
        empty_label=None,
        widget=UnfoldAdminSelectWidget(),
        help_text="Those that want a key and that the consumer may call.",
    )
    place = forms.CharField(
        label="Path and query",
        required=False,
        max_length=4000,
        strip=False,
        widget=UnfoldAdminTextInputWidget(
            {
                "class": "relay-exact",
                "spellcheck": "false",
                "autocapitalize": "off",
                "autocomplete": "off",
                "placeholder": "/logo.png?size=2",
            }
        ),
        help_text="What follows the slug, as it travels: blanks and letters beyond ASCII percent-encoded.",
    )
    method = forms.ChoiceField(
        choices=[(name, name) for name in METHODS],
        initial="GET",
        widget=UnfoldAdminSelectWidget(),
        help_text="Pictures, films and links are fetched with GET, which opens HEAD, too.",
    )
    lifetime = forms.ChoiceField(
        label="Opens for",
        choices=list(LIFETIMES.items()),
        initial="7d",
        widget=UnfoldAdminSelectWidget(),
        help_text="As often as it is asked for. Revoking the signing key ends it, and all else it signed, at once.",
    )

    def __init__(self, *args: Any, key: SigningKey, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._key = key
        self._grants = grants_of(key.consumer)
        upstreams = Upstream.objects.filter(pk__in={grant.upstream_id for grant in self._grants})
        field = cast("forms.ModelChoiceField[Upstream]", self.fields["upstream"])
        field.queryset = upstreams.filter(enabled=True, access=Access.KEY)

    def clean_place(self) -> str:
        place = str(self.cleaned_data["place"])
        return place if not place or place.startswith(("/", "?")) else f"/{place}"

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if self.errors:
            return cleaned
        upstream, method = cleaned["upstream"], cleaned["method"]
        allowed = upstream.allowed_methods.replace(",", " ").split()
        if allowed and method not in allowed:
            self.add_error("method", f"{upstream} does not allow {method}: choose one of {', '.join(allowed)}.")
            return cleaned
        try:
            cleaned["now"] = timezone.now()
            cleaned["signed"] = signing.sign(
                signing.relay_path(upstream.slug, cleaned["place"]),
                key=self._key,
                method=method,
                expires_in=self.time_open(),
                now=cleaned["now"],
            )
        except signing.CannotSign as problem:
            self.add_error("place", str(problem))
            return cleaned
        rules = [grant.as_rule() for grant in self._grants if grant.upstream_id == upstream.pk]
        if not grants.allow(rules, method, self.path().encode()):
            self.add_error("place", f"{self._key.consumer} is not granted {method} for this path.")
        return cleaned

    def path(self) -> str:
        """What follows the slug, without query and fragment."""
        place = str(self.cleaned_data["place"])
        return place.partition("#")[0].partition("?")[0]

    def time_open(self) -> timedelta:
        return signing.lifetime(self.cleaned_data["lifetime"])

    def expires_at(self) -> datetime:
        return cast(datetime, self.cleaned_data["now"] + self.time_open())


def grants_of(consumer: Consumer) -> list[Grant]:
    """Its own and those of its owner's groups."""
    held = Q(consumer=consumer)
    if consumer.owner_id is not None:
        held |= Q(group__user=consumer.owner_id)
    return list(Grant.objects.filter(held))


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("live", "Live"), ("revoked", "Revoked")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[SigningKey]) -> QuerySet[SigningKey]:
        if self.value() not in ("live", "revoked"):
            return queryset
        return queryset.filter(revoked_at__isnull=self.value() == "live")


@admin.register(SigningKey)
class SigningKeyAdmin(_ModelAdmin):
    readonly_fields = MADE
    list_display = ("key", "holder", "state", "created", "acts")
    list_select_related = ("consumer__owner", "created_by")
    list_fullwidth = True
    list_per_page = 50
    list_filter = (StateFilter,)
    search_fields = ("public_id", "label", "consumer__name")
    search_help_text = "Search by id, label or consumer"
    ordering = ("-created_at", "-id")
    change_form_outer_before_template = "relay/admin/signing/using.html"

    class Media:
        css: ClassVar[dict[str, tuple[str, ...]]] = {"all": ("relay/admin.css",)}
        js = ("relay/copy.js",)

    # Who may do what. A key is made and revoked, never changed.

    def has_module_permission(self, request: HttpRequest) -> bool:
        return _may_sign(request)

    def has_view_permission(self, request: HttpRequest, obj: SigningKey | None = None) -> bool:
        return _may_sign(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return _may_sign(request)

    def has_change_permission(self, request: HttpRequest, obj: SigningKey | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: SigningKey | None = None) -> bool:
        """Only revoked ones: a live one is revoked first, so that its end is in the history."""
        if obj is not None and obj.revoked_at is None:
            return False
        return _may_sign(request) and super().has_delete_permission(request, obj)

    def get_urls(self) -> list[URLPattern]:
        def page(end: str, view: Callable[..., HttpResponse]) -> URLPattern:
            return path(f"<uuid:key_id>/{end}/", self.admin_site.admin_view(view), name=f"relay_signingkey_{end}")

        return [page("sign", self.sign_view), page("revoke", self.revoke_view), *super().get_urls()]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Nothing but filters: `?secret_sealed__startswith=` is nobody's business."""
        return lookup in {"state", "consumer__id__exact"}

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Not even deleting in bulk: live ones would be among them."""
        return {}

    # The list

    @display(header=True, ordering="label", description="key")
    def key(self, key: SigningKey) -> tuple[str, ...]:
        return (key.label, key.public_id) if key.label else (key.public_id,)

    @admin.display(ordering="consumer__name", description="consumer")
    def holder(self, key: SigningKey) -> str:
        return key.consumer.name

    @display(label={"Live": "success", "Off with its consumer": "warning", "Revoked": "danger"}, description="state")
    def state(self, key: SigningKey) -> str:
        return self.standing(key)

    @admin.display(description="state")
    def standing(self, key: SigningKey) -> str:
        if key.revoked_at is not None:
            return "Revoked"
        owner = key.consumer.owner
        if not key.consumer.enabled or (owner is not None and not owner.is_active):
            return "Off with its consumer"
        return "Live"

    @display(header=True, ordering="created_at", description="made")
    def created(self, key: SigningKey) -> tuple[str, ...]:
        moment = _local(key.created_at)
        return (moment, f"by {key.created_by}") if key.created_by else (moment,)

    @admin.display(description="")
    def acts(self, key: SigningKey) -> str:
        links = format_html_join(
            "",
            '<a class="relay-link" href="{}" aria-label="{} {}">{}</a>',
            ((page, word, key, word) for word, page in acts_on(key)),
        )
        return format_html('<span class="relay-acts">{}</span>', links)

    # Making one, and its page

    def get_fields(self, request: HttpRequest, obj: SigningKey | None = None) -> tuple[str, ...]:
        return ("consumer", "label") if obj is None else ("consumer", "label", *MADE)

    def get_autocomplete_fields(self, request: HttpRequest) -> tuple[str, ...]:
        """Where consumers have an admin that can be searched."""
        consumers = self.admin_site._registry.get(Consumer)
        return ("consumer",) if consumers is not None and consumers.search_fields else ()

    def save_model(self, request: HttpRequest, obj: SigningKey, form: ModelForm[SigningKey], change: bool) -> None:
        obj.created_by = cast(User, request.user)
        super().save_model(request, obj, form, change)

    def response_add(self, request: HttpRequest, obj: SigningKey, post_url_continue: str | None = None) -> HttpResponse:
        """To its page, which has how to use it."""
        self.message_user(request, f"Made the signing key {obj}. It signs from now on.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:relay_signingkey_change", args=(obj.pk,)))

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: SigningKey | None = None,
    ) -> HttpResponse:
        context |= {"show_save_and_add_another": False, "show_save_and_continue": False}
        if obj is not None:
            context |= {"signing_key": obj, "acts": acts_on(obj), "ways": ways_to_sign(obj)}
        return super().render_change_form(request, context, add=add, change=change, form_url=form_url, obj=obj)

    # Signing

    def sign_view(self, request: HttpRequest, key_id: UUID) -> HttpResponse:
        key = self._find(request, key_id)
        if key.revoked_at is not None:
            return self._back(request, key, f"{key} was revoked: it signs nothing any more.", messages.ERROR)
        form = SignForm(request.POST if request.method == "POST" else None, key=key)
        context: dict[str, Any] = {"form": form, "key": key}
        if request.method == "POST" and form.is_valid():
            asked = form.cleaned_data
            upstream, method = asked["upstream"], asked["method"]
            url = relay_url(request, upstream).removesuffix(signing.relay_path(upstream.slug, "/")) + asked["signed"]
            until = _local(form.expires_at())
            self.log_change(
                request, key, f"Signed {method} {signing.relay_path(upstream.slug, form.path())} until {until}."
            )
            context |= {"url": url, "until": until, "method": method, "examples": ways_to_use(url, method)}
        return self._page(request, "sign", f"Sign a URL with {key}", **context)

    # Revoking

    def revoke_view(self, request: HttpRequest, key_id: UUID) -> HttpResponse:
        key = self._find(request, key_id)
        if key.revoked_at is not None:
            return self._back(request, key, f"{key} was revoked already.", messages.INFO)
        if request.method != "POST":
            return self._page(request, "revoke", f"Revoke {key}", key=key)
        with transaction.atomic():
            key.revoke()
            self.log_change(request, key, "Revoked.")
        return self._back(request, key, f"Revoked {key}: what it signed opens nothing any more.", messages.SUCCESS)

    # What these have in common

    def _find(self, request: HttpRequest, key_id: UUID) -> SigningKey:
        if not _may_sign(request):
            raise PermissionDenied
        key = SigningKey.objects.filter(pk=key_id).select_related("consumer__owner").first()
        if key is None:
            raise Http404("There is no such signing key.")
        return key

    def _page(self, request: HttpRequest, name: str, title: str, **context: Any) -> TemplateResponse:
        context |= {**self.admin_site.each_context(request), "title": title, "opts": self.opts, "media": self.media}
        headers = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"} if "url" in context else {}
        return TemplateResponse(request, f"relay/admin/signing/{name}.html", context, headers=headers)

    def _back(self, request: HttpRequest, key: SigningKey, said: str, level: int) -> HttpResponse:
        self.message_user(request, said, level)
        return HttpResponseRedirect(reverse("admin:relay_signingkey_change", args=(key.pk,)))


def acts_on(key: SigningKey) -> list[tuple[str, str]]:
    """(word, page) of what can still be done with it."""
    if key.revoked_at is not None:
        return []
    pages = {"Sign a URL": "sign", "Revoke": "revoke"}
    return [(word, reverse(f"admin:relay_signingkey_{end}", args=(key.pk,))) for word, end in pages.items()]


def ways_to_sign(key: SigningKey) -> list[Example]:
    if key.revoked_at is not None:
        return []
    name = key.label or key.public_id
    quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return [
        Example(
            "In a template",
            "{% load relay %}\n"
            f'<img src="{{% relay_signed_url "images" "/logo.png?size=2" key={quoted} expires_in="30d" %}}" alt="">',
        ),
        Example(
            "In Python",
            "from datetime import timedelta\n"
            "from relay.signing import sign\n\n"
            f'url = sign("/relay/images/logo.png?size=2", key={quoted}, expires_in=timedelta(days=30))',
        ),
        Example(
            "In a shell",
            f"manage.py signing sign '/relay/images/logo.png?size=2' --key {key.public_id} --expires-in 30d",
        ),
    ]


def ways_to_use(url: str, method: str) -> list[Example]:
    """Lines to copy. In HTML the `&` of a query is written `&amp;`."""
    if method != "GET":
        how = ("-I",) if method == "HEAD" else ("-X", method)
        return [Example("curl", shlex.join(("curl", *how, url)))]
    attribute = escape(url)
    return [
        Example("As a picture", f'<img src="{attribute}" alt="">'),
        Example("As a link", f'<a href="{attribute}">Open</a>'),
        Example("curl", shlex.join(("curl", url))),
    ]


def _may_sign(request: HttpRequest) -> bool:
    return cast(User, request.user).has_perm("relay.issue_apikey")


def _local(moment: datetime) -> str:
    return formats.date_format(timezone.localtime(moment), "Y-m-d H:i")
