"""The project's settings for tests and type checks.

Of the shell's environment only DATABASE_URL counts, and the data folder is one of their own.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from config.environment import VARIABLES

_folder = tempfile.mkdtemp(prefix="relay-tests-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
for _variable in VARIABLES:
    if _variable.name != "DATABASE_URL":
        os.environ.pop(_variable.name, None)
os.environ.update(
    RELAY_DATA_DIR=_folder, SECRET_KEY="for-tests-only-" * 4, ALLOWED_HOSTS="localhost,127.0.0.1,[::1],testserver"
)

from config.settings import *  # noqa: E402, F403 - the environment comes first
from config.settings import DATABASES, INSTALLED_APPS, SILENCED_SYSTEM_CHECKS, STATIC_ROOT, STORAGES  # noqa: E402

# The second factor's tables and pages are there; that it is asked for is up to the tests about it.
_door = INSTALLED_APPS.index("config.door")
INSTALLED_APPS[_door:_door] = ["django_otp", "django_otp.plugins.otp_totp", "django_otp.plugins.otp_static"]

# One test's database is no other's. Tests of the store name a folder of their own.
RELAY_STORE_FOLDER = None

# Tests look at either side of one server, at one name.
SILENCED_SYSTEM_CHECKS = [*SILENCED_SYSTEM_CHECKS, "relay.W001"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
Path(STATIC_ROOT).mkdir()
# Each of Django's test clients would look for all of them.
WHITENOISE_USE_FINDERS = False
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # A file, not memory: threads and processes share it as they do in production.
    DATABASES["default"]["TEST"] = {"NAME": str(Path(_folder) / "test.sqlite3")}
