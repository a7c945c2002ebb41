#!/usr/bin/env python
"""Django's command line for this project; `config.commandline` says what it adds."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from config.commandline import main

    sys.exit(main())
