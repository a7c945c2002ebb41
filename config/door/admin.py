"""Takes django-otp's devices out of the admin: `manage.py mfa reset` is how they go, and nothing else changes them."""

from __future__ import annotations

from django.apps import apps
from django.contrib import admin

if apps.is_installed("django_otp"):
    from django_otp.plugins.otp_static.models import StaticDevice
    from django_otp.plugins.otp_totp.models import TOTPDevice

    admin.site.unregister([StaticDevice, TOTPDevice])
