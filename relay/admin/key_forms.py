"""What is asked when a key is issued or rotated: for whom, what it is for, and how long it works."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin.widgets import AutocompleteSelect
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.utils import timezone
from unfold.widgets import (
    INPUT_CLASSES,
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
)

from relay.models import ApiKey, Consumer, Grant, Upstream
from relay.models.key_states import local

NEVER, ON_A_DATE, SAME = "never", "date", "same"
ENDS = {"30": "In 30 days", "90": "In 90 days", "365": "In a year", NEVER: "Never", ON_A_DATE: "On the date below"}
GRACES = {
    "0": "Nothing: it stops at once",
    "3600": "1 hour",
    "86400": "24 hours",
    "604800": "7 days",
    "2592000": "30 days",
}
DEFAULT_GRACE = "86400"


class _DayInput(forms.DateInput):
    """The browser's own."""

    input_type = "date"

    def __init__(self) -> None:
        super().__init__({"class": " ".join(INPUT_CLASSES)}, format="%Y-%m-%d")


class _Ends(forms.Form):
    """How long the new key works."""

    ends = forms.ChoiceField(
        label="Expires", choices=list(ENDS.items()), initial=NEVER, widget=UnfoldAdminRadioSelectWidget()
    )
    ends_on = forms.DateField(
        label="Last day",
        required=False,
        widget=_DayInput(),
        help_text="For “On the date below”: it works until the end of this day.",
    )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        ends, day = cleaned.get("ends"), cleaned.get("ends_on")
        if ends == ON_A_DATE and day is None and "ends_on" not in self.errors:
            self.add_error("ends_on", "Give the last day on which it works, or choose another end.")
        elif ends != ON_A_DATE and day is not None:
            self.add_error("ends_on", "Leave the day empty, or choose “On the date below”.")
        elif day is not None and day < timezone.localdate():
            self.add_error("ends_on", "This day is over: choose today or a later one.")
        return cleaned

    def expires_at(self) -> datetime | None:
        ends, day = self.cleaned_data["ends"], self.cleaned_data["ends_on"]
        if ends == ON_A_DATE:
            return timezone.make_aware(datetime.combine(day + timedelta(days=1), time.min))
        return None if ends == NEVER else timezone.now() + timedelta(days=int(ends))


class IssueForm(_Ends):
    """For a consumer that is given, chosen, or made on the way; with a grant for one upstream where it is wanted."""

    consumer = forms.ModelChoiceField(
        Consumer.objects.select_related("owner"),
        required=False,
        widget=AutocompleteSelect(ApiKey._meta.get_field("consumer"), admin.site),
        help_text="Who is to have the key.",
    )
    new_consumer = forms.CharField(
        label="or a new consumer",
        required=False,
        max_length=100,
        widget=UnfoldAdminTextInputWidget(),
        help_text="Its name in logs and lists, such as billing-batch. It is made with the key.",
    )
    upstream = forms.ModelChoiceField(
        Upstream.objects.all(),
        label="Let it call",
        required=False,
        widget=AutocompleteSelect(Grant._meta.get_field("upstream"), admin.site),
        help_text="A grant for the whole of this upstream, unless it has one there. Narrow it on the consumer's page.",
    )
    label = forms.CharField(
        required=False,
        max_length=100,
        widget=UnfoldAdminTextInputWidget(),
        help_text="What the key is for, such as “production”.",
    )
    opened = forms.CharField(widget=forms.HiddenInput)
    """When the page was made: a page sent twice issues no second key."""

    field_order = ("consumer", "new_consumer", "upstream", "label", "ends", "ends_on", "opened")

    def __init__(self, *args: Any, user: User, consumer: Consumer | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fixed_consumer = consumer
        self.initial.setdefault("opened", timezone.now().isoformat())
        if consumer is not None:
            del self.fields["consumer"]
        if consumer is not None or not user.has_perm("relay.add_consumer"):
            del self.fields["new_consumer"]
        if not user.has_perm("relay.add_grant"):
            del self.fields["upstream"]

    def clean_new_consumer(self) -> str:
        name = " ".join(str(self.cleaned_data["new_consumer"]).split())
        if name and Consumer.objects.filter(name=name).exists():
            raise ValidationError("There is a consumer of this name already: choose it above.", code="taken")
        return name

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        try:
            cleaned["opened"] = datetime.fromisoformat(cleaned.get("opened", "")).astimezone()
        except ValueError:
            self.add_error(None, "This page was too old, or not whole: look it over and press Issue again.")
        if self.fixed_consumer is not None:
            return cleaned
        chosen, made = cleaned.get("consumer"), cleaned.get("new_consumer")
        if chosen and made:
            self.add_error("new_consumer", "Choose a consumer or name a new one, not both.")
        elif not chosen and not made and not {"consumer", "new_consumer"} & self.errors.keys():
            self.add_error("consumer", "Say who is to have the key.")
        elif made:
            consumer = Consumer(name=made)
            try:
                consumer.full_clean()
            except ValidationError as problem:
                self.add_error("new_consumer", problem.messages)
        return cleaned


class RotateForm(_Ends):
    grace = forms.ChoiceField(
        label="Time to move over",
        choices=list(GRACES.items()),
        initial=DEFAULT_GRACE,
        widget=UnfoldAdminSelectWidget(),
        help_text="For so long the old key goes on working beside the new one.",
    )

    field_order = ("grace", "ends", "ends_on")

    def __init__(self, *args: Any, key: ApiKey, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._key = key
        field = self.fields["ends"]
        field.label = "The new key expires"
        if key.expires_at is not None:
            self.initial["ends"] = SAME
            field.choices = [(SAME, f"When the old one would have ({local(key.expires_at)})"), *ENDS.items()]  # type: ignore[attr-defined]

    def expires_at(self) -> datetime | None:
        return self._key.expires_at if self.cleaned_data["ends"] == SAME else super().expires_at()

    def time_to_move(self) -> timedelta:
        return timedelta(seconds=int(self.cleaned_data["grace"]))
