"""The page on which an upstream's credentials are set, confirmed and removed. Secrets go in, and none comes out.

Everybody who may see the upstream sees which kinds are set, when and by whom. The fields to enter a secret, and the
buttons, are for those with the permission `relay.set_credential`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from django import forms
from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.core.exceptions import NON_FIELD_ERRORS, PermissionDenied, ValidationError
from django.db import models, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from unfold.widgets import (
    UnfoldAdminPasswordWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from relay.catalog import credentials as readable
from relay.models import AuthStyle, Credential, CredentialKind, Upstream
from relay.models.credentials import upstream_destination
from relay.rules.credentials import SHAPES, Kind

if TYPE_CHECKING:
    from relay.admin.upstreams import UpstreamAdmin

PERMISSION = "relay.set_credential"
_LONG = frozenset({"certificates", "token_networks"})
_IDENTITIES = {
    Kind.BASIC: "As the upstream knows it.",
    Kind.OAUTH: "As the token's server knows it.",
    Kind.AWS: "Such as AKIAIOSFODNN7EXAMPLE.",
}


class _UnreadTextarea(UnfoldAdminTextareaWidget):  # type: ignore[misc]  # unfold has no types
    """What was typed in is not given back, not even by a form with errors."""

    def format_value(self, value: Any) -> str:
        return ""


def _exact(**attributes: Any) -> dict[str, Any]:
    return {"class": "relay-exact", "spellcheck": "false", "autocapitalize": "off", "autocomplete": "off", **attributes}


class CredentialForm(forms.Form):
    """The fields of one kind: its settings, and for each secret one to type it in and one to say where it is kept."""

    destination = forms.CharField(widget=forms.HiddenInput)

    def __init__(self, kind: Kind, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind = kind
        shape = SHAPES[kind]
        for name, label in shape.settings.items():
            self.fields[name] = _setting(kind, name, label, required=name not in shape.optional)
        for name, label in shape.secrets.items():
            optional = " Leave both empty if there is none." if name in shape.optional else ""
            self.fields[name] = forms.CharField(
                label=label,
                required=False,
                strip=False,
                widget=_UnreadTextarea(_exact(rows=6))
                if kind is Kind.CERTIFICATE
                else UnfoldAdminPasswordWidget(_exact(autocomplete="new-password")),
                help_text="Sealed in the database. Nobody is shown it again." + optional,
            )
            self.fields[f"{name}_reference"] = forms.CharField(
                label=f"{label}: or where it is kept",
                required=False,
                widget=UnfoldAdminTextInputWidget(_exact(placeholder="env:RELAY_CREDENTIAL_NAME or file:/path")),
                help_text="A variable or a file, in place of the value. Files are read anew when they change.",
            )

    @sensitive_variables()
    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        shape = SHAPES[self.kind]
        for name in shape.secrets:
            value, reference = cleaned.get(name), cleaned.get(f"{name}_reference")
            if value and reference:
                self.add_error(f"{name}_reference", "Enter the value, or say where it is kept: not both.")
            elif not value and not reference and name not in shape.optional:
                self.add_error(name, "Enter the value, or say where it is kept.")
        return cleaned

    @sensitive_variables()
    def save(self, upstream: Upstream, user: User) -> Credential | None:
        """None when it could not be set; the form's errors then say why."""
        given = self.cleaned_data
        shape = SHAPES[self.kind]
        try:
            with transaction.atomic():
                credential = Credential.put(
                    upstream,
                    self.kind.value,
                    secrets={name: given[name] for name in shape.secrets if given[name]},
                    references={
                        name: given[f"{name}_reference"] for name in shape.secrets if given[f"{name}_reference"]
                    },
                    destination=_one_line_ends(given["destination"]),
                    by=user,
                    **{name: given[name] for name in shape.settings},
                )
                problem = readable.problem_of(credential)
                if problem:
                    raise ValidationError(problem)
        except ValidationError as refusal:
            self._tell(refusal)
            return None
        return credential

    def _tell(self, refusal: ValidationError) -> None:
        for field, problems in getattr(refusal, "error_dict", {NON_FIELD_ERRORS: [refusal]}).items():
            self.add_error(field if field in self.fields else None, problems)


def _one_line_ends(text: str) -> str:
    """Browsers send CRLF."""
    return text.replace("\r\n", "\n")


def _setting(kind: Kind, name: str, label: str, *, required: bool) -> forms.Field:
    column = cast("models.Field[Any, Any]", Credential._meta.get_field(name))
    help_text = _IDENTITIES.get(kind, "") if name == "identity" else str(column.help_text)
    if name == "name":
        help_text = "Such as X-Api-Key." if kind is Kind.HEADER else "Such as api_key. Callers may not send it."
    if name == "auth_style":
        return forms.ChoiceField(
            label=label, choices=AuthStyle.choices, help_text=help_text, widget=UnfoldAdminSelectWidget()
        )
    widget = UnfoldAdminTextareaWidget(_exact(rows=6 if name == "certificates" else 2)) if name in _LONG else None
    return forms.CharField(
        label=label,
        required=required,
        max_length=column.max_length,
        help_text=help_text,
        widget=widget or UnfoldAdminTextInputWidget(_exact()),
    )


@dataclass(frozen=True, slots=True)
class Shown:
    """A credential as the admin shows it."""

    row: Credential
    destination: str
    confirmed_lines: list[str]
    lines: list[str]
    settings: list[tuple[str, str]]
    problem: str
    """Why it cannot be used though it is confirmed, or nothing."""

    @property
    def is_confirmed(self) -> bool:
        return self.row.confirmed_for == self.destination


def shown(upstream: Upstream) -> list[Shown]:
    found = []
    for row in upstream.credentials.select_related("set_by", "confirmed_by"):
        shape = SHAPES[Kind(row.kind)]
        settings = [(label, getattr(row, name)) for name, label in shape.settings.items() if name != "certificates"]
        settings += [
            (label, getattr(row, f"{name}_reference") or ("sealed" if getattr(row, f"{name}_sealed") else ""))
            for name, label in shape.secrets.items()
        ]
        destination = row.destination(upstream)
        found.append(
            Shown(
                row,
                destination,
                row.confirmed_for.split("\n"),
                destination.split("\n"),
                [(label, value) for label, value in settings if value],
                readable.problem_of(row),
            )
        )
    return found


class CredentialPages:
    """What the admin of upstreams gets in addition."""

    actions: ClassVar[tuple[str, ...]] = ("set", "confirm", "remove")

    def __init__(self, model_admin: UpstreamAdmin) -> None:
        self._admin = model_admin

    def urls(self) -> list[URLPattern]:
        view = self._admin.admin_site.admin_view(self.page)
        return [path("<int:upstream_id>/credentials/", view, name="relay_upstream_credentials")]

    @method_decorator(never_cache)
    @method_decorator(sensitive_post_parameters())
    def page(self, request: HttpRequest, upstream_id: int) -> HttpResponse:
        upstream = get_object_or_404(Upstream, pk=upstream_id)
        if not self._admin.has_view_or_change_permission(request, upstream):
            raise PermissionDenied
        may_set = cast(User, request.user).has_perm(PERMISSION)
        form: CredentialForm | None = None
        if request.method == "POST":
            if not may_set:
                raise PermissionDenied
            action = request.POST.get("action")
            if action == "set":
                form = _bound(request, upstream)
                done = self._set(request, upstream, form)
            else:
                done = self._confirm_or_remove(request, upstream, action)
            if done:
                return HttpResponseRedirect(request.path)
        elif may_set:
            form = _unbound(request, upstream)
        if form is None and may_set:
            form = _unbound(request, upstream)
        return self._render(request, upstream, form)

    def _set(self, request: HttpRequest, upstream: Upstream, form: CredentialForm) -> bool:
        user = cast(User, request.user)
        if not form.is_valid():
            return False
        credential = form.save(upstream, user)
        if credential is None:
            return False
        _log(user, upstream, f"Set the credential: {credential}.")
        messages.success(request, f"{credential} is set. Requests carry it within two seconds.")
        for sentence in credential.warnings():
            messages.warning(request, sentence)
        return True

    def _confirm_or_remove(self, request: HttpRequest, upstream: Upstream, action: str | None) -> bool:
        user = cast(User, request.user)
        chosen = [row for row in upstream.credentials.all() if str(row.pk) == request.POST.get("credential")]
        if not chosen or action not in self.actions:
            messages.error(request, "This credential was set anew or removed meanwhile. Nothing was changed.")
            return True
        row = chosen[0]
        if action == "confirm":
            try:
                row.confirm(_one_line_ends(request.POST.get("destination", "")), by=user)
            except ValidationError as problem:
                messages.error(request, " ".join(problem.messages))
                return True
            _log(user, upstream, f"Confirmed the credential: {row}.")
            messages.success(request, f"{row} is confirmed for where the upstream leads now.")
        elif request.POST.get("sure") != "on":
            messages.error(request, "Tick that you are sure: a removed secret cannot be brought back.")
        else:
            row.delete()
            _log(user, upstream, f"Removed the credential: {row}.")
            messages.success(request, f"{row} is removed. Requests go without it.")
        return True

    def _render(self, request: HttpRequest, upstream: Upstream, form: CredentialForm | None) -> HttpResponse:
        context = {
            **self._admin.admin_site.each_context(request),
            "title": f"Credentials of {upstream}",
            "opts": Upstream._meta,
            "media": self._admin.media,
            "upstream": upstream,
            "upstream_url": reverse(f"{self._admin.admin_site.name}:relay_upstream_change", args=(upstream.pk,)),
            "shown": shown(upstream),
            "form": form,
            "kind": form.kind if form else None,
            "kinds": [(value, label) for value, label in CredentialKind.choices],
            "destination": upstream_destination(upstream).split("\n"),
        }
        return TemplateResponse(request, "relay/admin/credentials.html", context)


def _log(user: User, upstream: Upstream, sentence: str) -> None:
    LogEntry.objects.log_actions(user.pk, [upstream], CHANGE, sentence, single_object=True)


def _kind(given: str | None, upstream: Upstream) -> Kind:
    """The one asked for, else the one that is set."""
    if given in CredentialKind.values:
        return Kind(given)
    first = upstream.credentials.order_by("set_at").first()
    return Kind(first.kind) if first else Kind.BEARER


def _unbound(request: HttpRequest, upstream: Upstream) -> CredentialForm:
    kind = _kind(request.GET.get("kind"), upstream)
    row = upstream.credentials.filter(kind=kind.value).first()
    initial = {name: getattr(row, name) for name in SHAPES[kind].settings} if row else {}
    return CredentialForm(kind, initial={**initial, "destination": upstream_destination(upstream)})


@sensitive_variables()
def _bound(request: HttpRequest, upstream: Upstream) -> CredentialForm:
    return CredentialForm(_kind(request.POST.get("kind"), upstream), request.POST)
