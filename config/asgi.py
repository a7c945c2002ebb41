"""The ASGI application: `config.asgi:application` under gunicorn (`manage.py serve`) and plain uvicorn alike."""

from __future__ import annotations

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup(set_prefix=False)

from relay.serving.application import get_application  # noqa: E402 - Django has to be set up first

application = get_application()
