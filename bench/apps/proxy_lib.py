"""fastapi-proxy-lib's ready-made reverse proxy application."""

from __future__ import annotations

import os

from fastapi_proxy_lib.fastapi.app import reverse_http_app

app = reverse_http_app(base_url=os.environ["ORIGIN"] + "/")
