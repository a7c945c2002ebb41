"""The command line of `manage.py` and the installed `relay` script.

A wrong environment is told in plain lines with exit code 2, not as a traceback.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys

from django.core.management import execute_from_command_line

from config import environment

GC_THRESHOLD = 50_000
"""How many objects more there are before the young are looked at for garbage: a start-up makes many, and keeps them."""


def main() -> int:
    """Run the Django command that `sys.argv` names and give the exit code."""
    gc.set_threshold(GC_THRESHOLD)
    atexit.register(gc.freeze)  # else the interpreter, as it ends, looks for garbage in all there is, several times
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    try:
        if sys.argv[1:2] == ["first_run"]:
            # Settings cannot be loaded without the key, so it is made before the command of that name runs.
            environment.read(make_secret_key=True)
        execute_from_command_line(sys.argv)
    except environment.EnvironmentInvalid as error:
        print(error, file=sys.stderr)  # noqa: T201 - logging is not set up without settings
        return 2
    return 0
