"""Keys in the admin: the list, issuing, rotating and revoking. All of it for people with `relay.issue_apikey` alone.

A key's text is in one answer, to the request that made it, which no cache keeps. It goes into no session, message, URL,
log or history. A request that is sent again makes no second key: see `_refuse_repeated` and `ApiKey.rotate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models import Model, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.views.decorators.debug import sensitive_variables
from unfold.decorators import display

from relay.admin import callers
from relay.admin.examples import Example, curl_examples, programs
from relay.admin.key_forms import IssueForm, RotateForm
from relay.admin.trails import TrailedAdmin
from relay.admin.upstreams import relay_url
from relay.models import ApiKey, Consumer, ConsumerChange, Grant, KeyState, Upstream, record_changes
from relay.models.key_states import expiring, in_force, local, not_over, state_of, unused, words_for
from relay.rules.keys import prefix_of

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[ApiKey]
else:
    _ModelAdmin = TrailedAdmin

_Row = TypeVar("_Row", bound=Model)

MOST_EXAMPLES = 20
"""Upstreams with examples on the page that shows a key."""

_COLOURS = {
    KeyState.LIVE: "success",
    KeyState.EXPIRING: "warning",
    KeyState.REPLACED: "warning",
    KeyState.OFF: "default",
    KeyState.EXPIRED: "default",
    KeyState.REVOKED: "danger",
}


@dataclass(frozen=True, slots=True)
class StateShown:
    colour: str
    words: str
    more: str


def state_shown(key: ApiKey) -> StateShown:
    now = timezone.now()
    return StateShown(_COLOURS[state_of(key, now)], *words_for(key, now))


@dataclass(frozen=True, slots=True)
class Calls:
    """How to call one upstream with a key that was just made."""

    upstream: Upstream
    may: str
    lines: list[Example]
    programs: list[Example]


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"
    queries: ClassVar[dict[str, tuple[str, Callable[[datetime], Q]]]] = {
        "live": ("Live", in_force),
        "expiring": ("Expire within 7 days", expiring),
        "unused": ("Unused for 90 days", unused),
        "replaced": ("Replaced, still work", lambda now: not_over(now) & Q(rotated_to__isnull=False)),
        "expired": ("Expired", lambda now: Q(revoked_at__isnull=True, expires_at__lte=now)),
        "revoked": ("Revoked", lambda now: Q(revoked_at__isnull=False)),
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, words) for name, (words, _) in self.queries.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        if self.value() not in self.queries:
            return queryset
        return queryset.filter(self.queries[str(self.value())][1](timezone.now()))


@admin.register(ApiKey)
class ApiKeyAdmin(_ModelAdmin):
    fields = (
        "prefix",
        "consumer",
        "label",
        "state",
        "created_at",
        "created_by",
        "expires",
        "last_used",
        "revoked_at",
        "rotated_to",
    )
    readonly_fields = fields
    list_display = ("key", "holder", "state", "created", "expires", "last_used", "acts")
    list_select_related = ("consumer__owner", "rotated_to", "created_by")
    list_fullwidth = True
    list_per_page = 50
    list_filter = (StateFilter,)
    search_fields = ("prefix", "label", "consumer__name")
    search_help_text = "Search by the beginning of the key, label or consumer"
    ordering = ("-id",)  # the newest first, by an index
    actions = ("revoke_selected",)
    change_form_outer_before_template = "relay/admin/keys/acts_on_page.html"
    delete_selected_confirmation_template = "relay/admin/keys/delete_selected.html"

    class Media:
        css: ClassVar[dict[str, tuple[str, ...]]] = {"all": ("relay/admin.css",)}
        js = ("relay/copy.js",)

    # Who may do what. Django's own four permissions on keys mean nothing, but for deleting.

    def has_module_permission(self, request: HttpRequest) -> bool:
        return callers.may_issue(request.user)

    def has_view_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return callers.may_issue(request.user)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return callers.may_issue(request.user)

    def has_change_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Only keys that are over: a live one is revoked first, so that its end is in the history."""
        if obj is not None and obj.is_live(timezone.now()):
            return False
        return callers.may_issue(request.user) and super().has_delete_permission(request, obj)

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return callers.may_issue(request.user)

    def get_urls(self) -> list[URLPattern]:
        def page(end: str, view: Callable[..., HttpResponse]) -> URLPattern:
            return path(f"<int:key_id>/{end}/", self.admin_site.admin_view(view), name=f"relay_apikey_{end}")

        return [page("rotate", self.rotate_view), page("revoke", self.revoke_view), *super().get_urls()]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Nothing but filters: `?digest__startswith=` is nobody's business."""
        return lookup in {"state", "consumer__id__exact"}

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[ApiKey], search_term: str
    ) -> tuple[QuerySet[ApiKey], bool]:
        """A key is found by what lists show of it, and by the whole of it, such as one that turned up in a log."""
        if search_term.startswith("rk_"):
            search_term = prefix_of(search_term.rstrip("…. "))
        return super().get_search_results(request, queryset, search_term)

    # The list

    @display(header=True, ordering="prefix", description="key")
    def key(self, key: ApiKey) -> tuple[str, ...]:
        return (str(key), key.label) if key.label else (str(key),)

    @admin.display(ordering="consumer__name", description="consumer")
    def holder(self, key: ApiKey) -> str:
        page = reverse("admin:relay_consumer_change", args=(key.consumer_id,))
        return format_html('<a class="relay-link" href="{}">{}</a>', page, key.consumer)

    @admin.display(description="state")
    def state(self, key: ApiKey) -> str:
        return render_to_string("relay/admin/keys/state.html", {"state": state_shown(key)})

    @display(header=True, ordering="created_at", description="created")
    def created(self, key: ApiKey) -> tuple[str, ...]:
        return (local(key.created_at), f"by {key.created_by}") if key.created_by else (local(key.created_at),)

    @admin.display(ordering="expires_at", description="expires")
    def expires(self, key: ApiKey) -> str:
        return local(key.expires_at) or "never"

    @admin.display(ordering="last_used_at", description="last used")
    def last_used(self, key: ApiKey) -> str:
        return local(key.last_used_at) or "never"

    @admin.display(description="")
    def acts(self, key: ApiKey) -> str:
        lines = [
            format_html('<a class="relay-link" href="{}" aria-label="{} {}">{}</a>', page, word, key, word)
            for word, page in acts_on(key)
        ]
        return (
            format_html('<span class="relay-acts">{}{}</span>', lines[0], lines[1] if lines[1:] else "")
            if lines
            else ""
        )

    @admin.action(permissions=("revoke",), description="Revoke selected keys")
    def revoke_selected(self, request: HttpRequest, chosen: QuerySet[ApiKey]) -> HttpResponse | None:
        """Asks first; what was asked comes back here, with `post`."""
        keys = list(chosen.filter(revoked_at__isnull=True).select_related("consumer"))
        if not keys:
            self.message_user(request, "Every selected key was revoked already.", messages.INFO)
            return None
        if not request.POST.get("post"):
            return self._revoke_page(request, keys)
        self._revoke(request, keys)
        return None

    # Issuing

    @method_decorator(sensitive_variables())
    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        user = cast(User, request.user)
        consumer = _asked_for(Consumer.objects.select_related("owner"), request.GET.get("consumer"))
        upstream = _asked_for(Upstream.objects.all(), request.GET.get("upstream"))
        data = request.POST if request.method == "POST" else None
        form = IssueForm(data, user=user, consumer=consumer, initial={"upstream": upstream})
        if data is not None and form.is_valid():
            try:
                key, text = self._issue(request, form)
            except ValidationError as problem:
                form.add_error(None, problem)
            else:
                return self._shown_once(request, key, text)
        if form.non_field_errors():
            # It has been said; sent once more, it is meant.
            form.data = {**request.POST.dict(), "opened": timezone.now().isoformat()}
        granted = callers.grants_of(consumer) if consumer else []
        may_call = [(upstream, callers.in_words(grants)) for upstream, grants in granted]
        title = f"Issue a key for {consumer}" if consumer else "Issue a key"
        return self._page(request, "issue", title, form=form, consumer=consumer, may_call=may_call)

    @method_decorator(sensitive_variables())
    def _issue(self, request: HttpRequest, form: IssueForm) -> tuple[ApiKey, str]:
        """The key and its text; the consumer and the grant where they are wanted. All or nothing."""
        asked, user = form.cleaned_data, cast(User, request.user)
        with transaction.atomic():
            consumer = form.fixed_consumer or asked["consumer"]
            if consumer is None:
                consumer = Consumer(name=asked["new_consumer"], created_by=user, changed_by=user)
                consumer.save()
                self.log_addition(request, cast(Any, consumer), "Made with a key.")
            else:
                _refuse_repeated(consumer, since=asked["opened"])
            if asked.get("upstream") is not None:
                grant = Grant.add_lacking(consumer, asked["upstream"])
                if grant is not None:
                    self.log_change(request, cast(Any, consumer), f"Granted {grant}.")
            key, text = ApiKey.issue(consumer, label=asked["label"], expires_at=form.expires_at(), created_by=user)
            self.log_addition(request, key, "Issued.")
        return key, text

    # Rotating

    @method_decorator(sensitive_variables())
    def rotate_view(self, request: HttpRequest, key_id: int) -> HttpResponse:
        key = self._find(request, key_id)
        if not key.is_live(timezone.now()) or key.rotated_to is not None:
            advice = "It was rotated already." if key.rotated_to else "It opens nothing any more: issue a new one."
            return self._back(request, key, f"{key} was not rotated. {advice}", messages.ERROR)
        form = RotateForm(request.POST if request.method == "POST" else None, key=key)
        if request.method == "POST" and form.is_valid():
            user = cast(User, request.user)
            try:
                with transaction.atomic():
                    following, text = key.rotate(
                        grace=form.time_to_move(), expires_at=form.expires_at(), created_by=user
                    )
                    self.log_change(request, key, f"Rotated to {following}.")
                    self.log_addition(request, following, f"Issued in the place of {key}.")
            except ValidationError as problem:
                return self._back(request, key, " ".join(problem.messages), messages.ERROR)
            return self._shown_once(request, following, text, former=key)
        return self._page(request, "rotate", f"Rotate {key}", form=form, key=key)

    # Revoking

    def revoke_view(self, request: HttpRequest, key_id: int) -> HttpResponse:
        key = self._find(request, key_id)
        if key.revoked_at is not None:
            return self._back(request, key, f"{key} was revoked already.", messages.INFO)
        if request.method != "POST":
            return self._revoke_page(request, [key])
        self._revoke(request, [key])
        return self._back(request, key)

    def _revoke_page(self, request: HttpRequest, keys: Sequence[ApiKey]) -> HttpResponse:
        title = f"Revoke {keys[0]}" if len(keys) == 1 else f"Revoke {len(keys)} keys"
        return self._page(request, "revoke", title, keys=keys, is_bulk="_selected_action" in request.POST)

    def _revoke(self, request: HttpRequest, keys: Iterable[ApiKey]) -> None:
        with transaction.atomic():
            for key in keys:
                key.revoke()
                self.log_change(request, key, "Revoked.")
        names = ", ".join(map(str, keys))
        self.message_user(request, f"Revoked {names}. It acts in every worker within 2 seconds.", messages.SUCCESS)

    # What these have in common

    def _find(self, request: HttpRequest, key_id: int) -> ApiKey:
        if not callers.may_issue(request.user):
            raise PermissionDenied
        key = ApiKey.objects.filter(pk=key_id).select_related("consumer__owner", "rotated_to").first()
        if key is None:
            raise Http404("There is no such key.")
        return key

    def _page(self, request: HttpRequest, name: str, title: str, **context: Any) -> TemplateResponse:
        media = self.media + context["form"].media if "form" in context else self.media
        page = {**self.admin_site.each_context(request), "title": title, "opts": self.opts, "media": media, **context}
        return TemplateResponse(request, f"relay/admin/keys/{name}.html", page)

    @method_decorator(sensitive_variables())
    def _shown_once(
        self, request: HttpRequest, key: ApiKey, text: str, *, former: ApiKey | None = None
    ) -> HttpResponse:
        """The one page that has the key. Whoever loads it again sends the form again, which issues none."""
        granted = [(upstream, grants) for upstream, grants in callers.grants_of(key.consumer) if upstream.enabled]
        calls = []
        for upstream, grants in granted[:MOST_EXAMPLES]:
            url = relay_url(request, upstream)
            calls.append(
                Calls(
                    upstream,
                    callers.in_words(grants),
                    curl_examples(upstream, url, key=text, grants=grants),
                    programs(upstream, url, key=text, grants=grants),
                )
            )
        response = self._page(
            request,
            "shown_once",
            f"The new key of {key.consumer}",
            key=key,
            text=text,
            former=former,
            calls=calls,
            more=max(0, len(granted) - MOST_EXAMPLES),
        )
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    def _back(
        self, request: HttpRequest, key: ApiKey, said: str | None = None, level: int = messages.INFO
    ) -> HttpResponse:
        if said is not None:
            self.message_user(request, said, level)
        if callers.may_see(cast(User, request.user), "relay", "consumer"):
            return HttpResponseRedirect(reverse("admin:relay_consumer_change", args=(key.consumer_id,)))
        return HttpResponseRedirect(reverse("admin:relay_apikey_changelist"))

    # The page of one key, and deletion

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: ApiKey | None = None,
    ) -> HttpResponse:
        if obj is not None:
            context["acts"] = acts_on(obj)
        return super().render_change_form(request, context, add=add, change=change, form_url=form_url, obj=obj)

    def get_deleted_objects(
        self, objs: QuerySet[ApiKey] | Sequence[ApiKey], request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        """Live ones protect themselves."""
        now = timezone.now()
        live = [str(key) for key in objs if key.is_live(now)]
        if live:
            return [], {}, set(), live
        return super().get_deleted_objects(objs, request)


def acts_on(key: ApiKey) -> list[tuple[str, str]]:
    """(word, page) of what can still be done with it."""
    live = key.is_live(timezone.now())
    words = ["Rotate"] if live and key.rotated_to_id is None else []
    words += ["Revoke"] if live else []
    return [(word, reverse(f"admin:relay_apikey_{word.lower()}", args=(key.pk,))) for word in words]


def _refuse_repeated(consumer: Consumer, *, since: datetime) -> None:
    """A page that was sent twice, or opened before somebody else issued one: say so, once. Raises ValidationError.

    Call it in the transaction that issues: it takes the lock that every writer takes.
    """
    record_changes((consumer.pk,), kind=ConsumerChange, using=DEFAULT_DB_ALIAS)
    newer = consumer.keys.filter(created_at__gt=since).select_related("created_by").first()
    if newer is not None:
        by = f" by {newer.created_by}" if newer.created_by else ""
        raise ValidationError(
            f"{consumer} was issued the key {newer}{by} since this page was opened. If it is to have another one, "
            "press Issue again; if the key was lost on its way, revoke it.",
            code="repeated",
        )


def _asked_for(rows: QuerySet[_Row], key: str | None) -> _Row | None:
    """The row that a link asks for, if there is one."""
    try:
        return rows.filter(pk=key).first() if key else None
    except (ValueError, ValidationError):
        return None
