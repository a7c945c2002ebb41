"""asgiproxy's own application, as its command line makes it."""

from __future__ import annotations

import os

from asgiproxy.__main__ import make_app

app, _ = make_app(os.environ["ORIGIN"])
