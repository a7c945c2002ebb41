"""The forms of upstreams, their targets and header rules: labels with units, fitting widgets. All validation is the
models', but for what several rows are to each other before they are saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from unfold.forms import PaginationInlineFormSet
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from relay.models import HeaderRule, Target, Upstream
from relay.models.targets import LISTED_ALREADY

if TYPE_CHECKING:
    _UpstreamForm = forms.ModelForm[Upstream]
    _HeaderRuleForm = forms.ModelForm[HeaderRule]
    _TargetForm = forms.ModelForm[Target]
    _TargetFormSet = forms.BaseInlineFormSet[Target, Upstream, _TargetForm]
else:
    _UpstreamForm = _HeaderRuleForm = _TargetForm = forms.ModelForm
    _TargetFormSet = PaginationInlineFormSet


class LinesField(forms.CharField):
    """Lines of text. That browsers end them with CRLF and drop the last end is no change to tell the history about."""

    def has_changed(self, initial: Any, data: Any) -> bool:
        return super().has_changed(_settled(initial), _settled(data))


def _settled(text: str | None) -> str:
    return (text or "").replace("\r\n", "\n").strip()


def exact(**attributes: Any) -> dict[str, Any]:
    """For text that machines read: one width per letter, and no browser that corrects it."""
    return {"class": "relay-exact", "spellcheck": "false", "autocapitalize": "off", "autocomplete": "off", **attributes}


class UpstreamForm(_UpstreamForm):
    class Meta:
        labels: ClassVar[dict[str, str]] = {
            "connect_timeout_seconds": "Connect (seconds)",
            "head_timeout_seconds": "Start of the answer (seconds)",
            "idle_timeout_seconds": "Silence (seconds)",
            "min_upload_bytes_per_second": "Slowest upload (bytes per second)",
            "total_timeout_seconds": "Whole exchange (seconds)",
            "balancing": "Chosen target",
            "balancing_header": "Request header",
            "max_retries": "Retries of a request",
            "retry_percent": "Retries among all requests (percent)",
            "breaker_failures": "Failures in a row",
            "breaker_percent": "Failures among exchanges (percent)",
            "breaker_seconds": "Out of use for (seconds)",
            "check_path": "Path",
            "check_method": "Method",
            "check_statuses": "Healthy statuses",
            "check_body": "Text in the answer",
            "check_interval_seconds": "Between checks (seconds)",
            "check_timeout_seconds": "Longest check (seconds)",
            "check_failures": "Failed checks in a row",
            "check_successes": "Good checks in a row",
            "max_request_bytes": "Request body (bytes)",
            "max_response_bytes": "Answer (bytes)",
            "max_concurrent": "Exchanges at a time",
            "max_queued": "Exchanges that wait",
            "queue_timeout_seconds": "Longest wait (seconds)",
            "max_connections": "Connections",
            "keepalive_seconds": "Keep unused connections (seconds)",
            "max_buffered_bytes": "Buffer (bytes)",
            "cookie_mode": "Cookies",
            "cors_allowed_origins": "Allowed origins",
            "cors_allowed_methods": "Allowed methods",
            "cors_allowed_headers": "Allowed headers",
            "cors_exposed_headers": "Readable headers",
            "cors_allow_credentials": "Allow credentials",
            "cors_max_age_seconds": "Preflights count for (seconds)",
        }
        field_classes: ClassVar[dict[str, type[forms.Field]]] = {
            "description": LinesField,
            "allowed_networks": LinesField,
            "cors_allowed_origins": LinesField,
            "ca_bundle": LinesField,
        }
        widgets: ClassVar[dict[str, forms.Widget]] = {
            "slug": UnfoldAdminTextInputWidget(exact()),
            "base_url": UnfoldAdminTextInputWidget(exact(placeholder="https://api.example.com/v1", inputmode="url")),
            "description": UnfoldAdminTextareaWidget({"rows": 3}),
            "allowed_methods": UnfoldAdminTextInputWidget(exact()),
            "balancing_header": UnfoldAdminTextInputWidget(exact(placeholder="X-Session-Id")),
            "check_path": UnfoldAdminTextInputWidget(exact(placeholder="/healthz")),
            "check_statuses": UnfoldAdminTextInputWidget(exact()),
            "check_body": UnfoldAdminTextInputWidget(exact()),
            "cors_allowed_origins": UnfoldAdminTextareaWidget(exact(rows=3, placeholder="https://app.example.com")),
            "cors_allowed_methods": UnfoldAdminTextInputWidget(exact()),
            "cors_allowed_headers": UnfoldAdminTextInputWidget(exact()),
            "cors_exposed_headers": UnfoldAdminTextInputWidget(exact()),
            "allowed_networks": UnfoldAdminTextareaWidget(exact(rows=3, placeholder="10.20.0.0/16")),
            "ca_bundle": UnfoldAdminTextareaWidget(exact(rows=8, cols=64, placeholder="-----BEGIN CERTIFICATE-----")),
            "outbound_proxy": UnfoldAdminTextInputWidget(exact(inputmode="url")),
        }
        error_messages: ClassVar[dict[str, dict[str, str]]] = {
            "slug": {"unique": "Another upstream has this slug: choose another."}
        }


class HeaderRuleForm(_HeaderRuleForm):
    class Meta:
        widgets: ClassVar[dict[str, forms.Widget]] = {
            "name": UnfoldAdminTextInputWidget(exact(placeholder="User-Agent")),
            "value": UnfoldAdminTextInputWidget(exact()),
        }


class TargetForm(_TargetForm):
    class Meta:
        widgets: ClassVar[dict[str, forms.Widget]] = {
            "address": UnfoldAdminTextInputWidget(exact(placeholder="10.20.0.7:8080")),
        }


class TargetFormSet(_TargetFormSet):
    def validate_unique(self) -> None:
        """By the addresses as they will be saved: Django compares what was typed in."""
        seen: set[str] = set()
        for form in self.forms:
            address = form.instance.address
            if form in self.deleted_forms or not address:
                continue
            if address in seen and not form.errors:
                form.add_error("address", LISTED_ALREADY)
            seen.add(address)
            # Rows are saved one after the other, in their order.
            if not form.errors and any(
                other.instance.pk != form.instance.pk and other.initial.get("address") == address
                for other in (self.initial_forms if form in self.initial_forms else ())
            ):
                form.add_error("address", "Another target has this address until it is saved: change that one first.")
