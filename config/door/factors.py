"""The second factor: a code from an authenticator app (TOTP, RFC 6238), or one of ten backup codes, each good for once.

In force where `RELAY_ADMIN_MFA` is on. The password alone opens a session that reaches nothing but the pages here: the
one that asks for a code, or, for who has no device yet, the one that sets it up. django-otp keeps the devices, slows
down whoever guesses (1, 2, 4 ... seconds for each device) and takes no code twice.

The secret of a device being set up stays in the session that will confirm it: nobody else sees it, or has it confirmed
by somebody else. Of backup codes the database has hashes. They hold 80 random bits, so a hash without a key will do,
and outlives the secret key.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from math import ceil
from typing import Any
from urllib.parse import urlencode

import django_otp
import segno
from django import forms
from django.contrib import admin, messages
from django.contrib.auth import REDIRECT_FIELD_NAME, get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.contrib.auth.views import redirect_to_login
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import path, reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods
from django_otp.plugins.otp_static.models import StaticDevice
from django_otp.plugins.otp_totp.models import TOTPDevice, default_key
from unfold.widgets import UnfoldAdminTextInputWidget

BACKUP_CODES = 10
PENDING_KEY = "door.pending_key"
"""In the session: the hexadecimal secret of the device that is being set up."""

View = Callable[[HttpRequest], HttpResponse]


class CodeForm(forms.Form):
    code = forms.CharField(
        max_length=40,
        widget=UnfoldAdminTextInputWidget(
            {"autocomplete": "one-time-code", "autocapitalize": "off", "spellcheck": "false", "autofocus": ""}
        ),
    )

    def clean_code(self) -> str:
        """Without the blanks and hyphens that people and apps group codes with."""
        return re.sub(r"[\s-]", "", self.cleaned_data["code"]).lower()


def ask_for_second_factor(get_response: View) -> View:
    """After django-otp's middleware: who has only given a password is led to the page that asks for the rest."""

    def respond(request: HttpRequest) -> HttpResponse:
        user: Any = request.user
        if not user.is_authenticated or user.is_verified():
            return get_response(request)
        open_pages = ("admin:login", "admin:logout", "second_factor", "second_factor_setup")
        if request.path in map(reverse, open_pages):
            return get_response(request)
        return redirect(_with_next(reverse("second_factor"), request.get_full_path()))

    return respond


def _of_signed_in(view: View) -> View:
    @never_cache
    @require_http_methods(["GET", "HEAD", "POST"])
    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponse:
        if not request.user.is_authenticated:
            return redirect_to_login(request.get_full_path(), reverse("admin:login"))
        return view(request)

    return guarded


@_of_signed_in
def ask(request: HttpRequest) -> HttpResponse:
    """The page between the password and the admin."""
    user: Any = request.user
    if user.is_verified():
        return redirect(_next(request))
    if not _has_device(user):
        return redirect(_with_next(reverse("second_factor_setup"), _next(request)))
    form = CodeForm(request.POST or None)
    if not form.is_valid():
        return _page(request, "door/code.html", title="Second factor", form=form)
    device = _device_of(user, form.cleaned_data["code"])
    if device is not None and (opens_at := _refused_until(device)):
        response = _page(request, "door/code.html", title="Second factor", form=form, opens_at=opens_at, status=429)
        response["Retry-After"] = str(max(1, ceil((opens_at - timezone.now()).total_seconds())))
        return response
    if device is None or not _verify(user, device, form.cleaned_data["code"]):
        form.add_error("code", "That code is wrong, or was used before.")
        return _page(request, "door/code.html", title="Second factor", form=form)
    _let_in(request, device)
    return redirect(_next(request))


@_of_signed_in
def set_up(request: HttpRequest) -> HttpResponse:
    """The page that sets a device up; what it shows when that is done, the backup codes, is shown this once."""
    user: Any = request.user
    if _has_device(user):
        return redirect(_with_next(reverse("second_factor"), _next(request)))
    key = request.session.setdefault(PENDING_KEY, default_key())
    form = CodeForm(request.POST or None)
    if form.is_valid():
        if (done := _enrol(user, key, form.cleaned_data["code"])) is not None:
            device, codes = done
            _let_in(request, device)
            return _page(request, "door/backup_codes.html", title="Backup codes", codes=codes)
        form.add_error("code", "That code does not belong to this key. Check the clock of your device.")
    pending = TOTPDevice(user=user, key=key)
    secret = base64.b32encode(pending.bin_key).decode()
    return _page(
        request,
        "door/set_up.html",
        title="Set up a second factor",
        form=form,
        picture=_picture(pending.config_url),
        secret=" ".join(re.findall("....", secret)),
    )


urlpatterns = [
    path("", ask, name="second_factor"),
    path("set-up/", set_up, name="second_factor_setup"),
]


def reset(user: AbstractBaseUser) -> bool:
    """Forget the user's devices; gives whether there were any. Their sessions are unverified from then on."""
    found = _has_device(user)
    TOTPDevice.objects.filter(user=user).delete()
    StaticDevice.objects.filter(user=user).delete()
    return found


def _has_device(user: AbstractBaseUser) -> bool:
    return bool(TOTPDevice.objects.devices_for_user(user, confirmed=True).exists())


def _device_of(user: AbstractBaseUser, code: str) -> Any:
    """The device that such a code is for: wrong codes of one kind do not slow down the other."""
    kind = TOTPDevice if re.fullmatch("[0-9]{6}", code) else StaticDevice
    return kind.objects.devices_for_user(user, confirmed=True).first()


def _refused_until(device: Any) -> datetime | None:
    allowed, why = device.verify_is_allowed()
    return None if allowed else why["locked_until"]


def _verify(user: AbstractBaseUser, device: Any, code: str) -> bool:
    """In a transaction that holds the device, so of two that come with one code at once, one gets in."""
    token = code if isinstance(device, TOTPDevice) else _kept(code)
    return django_otp.verify_token(user, device.persistent_id, token) is not None


def _let_in(request: HttpRequest, device: Any) -> None:
    request.session.cycle_key()
    request.session.pop(PENDING_KEY, None)
    django_otp.login(request, device)
    if isinstance(device, StaticDevice):
        left = device.token_set.count()
        messages.warning(request, f"That backup code is used up. Codes left: {left}.")


@transaction.atomic
def _enrol(user: AbstractBaseUser, key: str, code: str) -> tuple[Any, list[str]] | None:
    """The confirmed device and its backup codes, or None when the code is not this key's, or there is a device now."""
    get_user_model()._default_manager.select_for_update().get(pk=user.pk)  # of two set-ups at once, one goes through
    if _has_device(user) or not re.fullmatch("[0-9]{6}", code):
        return None
    device = TOTPDevice.objects.create(user=user, name="Authenticator app", key=key)
    if not device.verify_token(code):
        device.delete()
        return None
    StaticDevice.objects.filter(user=user).delete()
    backup = StaticDevice.objects.create(user=user, name="Backup codes")
    codes = [base64.b32encode(secrets.token_bytes(10)).decode().lower() for _ in range(BACKUP_CODES)]
    for each in codes:
        backup.token_set.create(token=_kept(each))
    return device, ["-".join(re.findall("....", each)) for each in codes]


def _kept(code: str) -> str:
    """What the database has of a backup code: 96 bits of its hash, as long as the column."""
    return base64.urlsafe_b64encode(hashlib.sha256(code.encode()).digest()).decode()[:16]


def _picture(url: str) -> SafeString:
    svg = segno.make(url, error="m", micro=False).svg_inline(
        border=4, dark="#000", light="#fff", omitsize=True, svgclass="door-picture", lineclass=None, title="QR code"
    )
    return mark_safe(svg)  # noqa: S308 - made of squares alone


def _page(request: HttpRequest, template: str, *, title: str, status: int = 200, **context: Any) -> HttpResponse:
    shown = {**admin.site.each_context(request), "title": title, "next_url": _next(request), **context}
    return render(request, template, shown, status=status)


def _with_next(url: str, where: str) -> str:
    return f"{url}?{urlencode({REDIRECT_FIELD_NAME: where})}"


def _next(request: HttpRequest) -> str:
    where = request.GET.get(REDIRECT_FIELD_NAME, "")
    allowed = url_has_allowed_host_and_scheme(where, {request.get_host()}, require_https=request.is_secure())
    return where if where and allowed else reverse("admin:index")
