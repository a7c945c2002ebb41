"""A Django site of one django-revproxy view, without middleware. Both settings module and WSGI application."""

from __future__ import annotations

import os

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import re_path

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATA_UPLOAD_MAX_MEMORY_SIZE=None,  # it reads bodies whole, and at the default refuses more than 2.5 MB
    INSTALLED_APPS=["revproxy"],
    REVPROXY={"QUOTE_SPACES_AS_PLUS": True},
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for the bench",
)
django.setup()

from revproxy.views import ProxyView  # noqa: E402 - it reads the settings when imported

urlpatterns = [re_path(r"^(?P<path>.*)$", ProxyView.as_view(upstream=os.environ["ORIGIN"] + "/"))]
application = get_wsgi_application()
