"""URLs under Django's own handler. The relay mount is dispatched before it; these names are for `reverse()`."""

from __future__ import annotations

from django.urls import path

from relay import views

app_name = "relay"

urlpatterns = [
    path("relay/<str:slug>/<path:rest>", views.disguised, name="relay"),
    path("relay/<str:slug>/", views.disguised, name="upstream"),
    path("relay/<str:slug>", views.disguised),
]
