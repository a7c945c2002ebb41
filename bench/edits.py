"""The admin of the soak: edits upstreams through `manage.py upstreams`, one after another, in a process of its own.

Started as `python -m bench.edits SEED PAUSE_SECONDS`; its last line says how many it made, at first when it is ready
and then when it was told to end. What it changes must lose nobody anything: bounds stay wide enough, and what is
switched off is asked by those who expect it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from pathlib import Path

import django

EDITED = ("open", "guarded")
SETTINGS = {
    "description": ("before", "after"),
    "max_connections": (200, 500, 1024),
    "max_concurrent": (200, 500, 1024),
    "head_timeout_seconds": (30, 60),
    "idle_timeout_seconds": (60, 300),
    "keepalive_seconds": (1, 2, 3),
}


def drawn(draw: random.Random) -> list[str]:
    """The next command's arguments."""
    which = draw.random()
    if which < 0.2:
        return ["upstreams", draw.choice(("enable", "disable")), "switched"]
    slug = draw.choice(EDITED)
    if which < 0.4:
        return ["upstreams", "set", slug, "--header", f"response:set:X-Edited={draw.randrange(1000)}"]
    field = draw.choice(sorted(SETTINGS))
    return ["upstreams", "set", slug, "--set", f"{field}={draw.choice(SETTINGS[field])}"]


def main() -> None:
    seed, pause_seconds = sys.argv[1], float(sys.argv[2])
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    from django.core.management import call_command

    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    draw = random.Random(f"{seed}/edits")
    made = 0
    print(made, flush=True)
    with Path(os.devnull).open("w") as nowhere:
        while not ended.wait(draw.uniform(0, 2 * pause_seconds)):
            call_command(*drawn(draw), stdout=nowhere, stderr=nowhere)
            made += 1
    print(made, flush=True)


if __name__ == "__main__":
    main()
