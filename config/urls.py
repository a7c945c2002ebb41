"""The project's URLs: the admin, what the relay brings, and a root that leads to the admin."""

from __future__ import annotations

from django.apps import apps
from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

_second_factor = (
    [path("admin/second-factor/", include("config.door.factors"))] if apps.is_installed("django_otp") else []
)

urlpatterns = [
    *_second_factor,
    path("admin/", admin.site.urls),
    path("", include("relay.urls")),
    path("", RedirectView.as_view(pattern_name="admin:index"), name="root"),
]

handler500 = "config.outage.server_error"
