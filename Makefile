# What there is to do, each from a fresh clone with nothing but Python 3.11+ and make:
#   make run     prepare everything and serve on 127.0.0.1:$PORT (8000)
#   make test    all tests                     make check   lint, types, import laws, templates, migrations
#   make coverage  all tests, and what of the code they reach; coverage-rules: the rules by their own tests alone
#   make fuzz    fuzz the reader of answers for FUZZ_SECONDS (60), and compare it with h11 on FUZZ_EXAMPLES (1000)
#   make bench   the side-by-side measurement  make lock    pin the newest versions that pyproject.toml allows
#   make soak    look for lost requests and leaks for SOAK_MINUTES (10); soak-streams: hold STREAMS (10000) idle event
#                streams for STREAM_MINUTES (5); soak-readers: 500 slow readers
# Variables: PYTHON (which to make the environment with), VENV (where it is), PYTEST_ARGS, TEST_PROCESSES (one more than
#   cores), BENCH_ARGS, FUZZ_SECONDS, FUZZ_EXAMPLES, SOAK_ARGS.

SHELL := /bin/sh
.DEFAULT_GOAL := run
.DELETE_ON_ERROR:
.PHONY: run test coverage coverage-rules fuzz check format bench soak soak-streams soak-readers lock chromium load-tools clean

VENV ?= .venv
VENV_BENCH ?= .venv-bench
PYTEST_ARGS ?=
BENCH_ARGS ?=
FUZZ_SECONDS ?= 60
FUZZ_EXAMPLES ?= 1000
SOAK_ARGS ?=
SOAK_MINUTES ?= 10
STREAMS ?= 10000
STREAM_MINUTES ?= 5

# One process more than cores: many tests wait for processes of their own. The long ones are left to whoever is free.
TEST_PROCESSES ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
AT_ONCE = -n $(TEST_PROCESSES) --dist worksteal

OLD_ENOUGH = -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	if $$python $(OLD_ENOUGH) >/dev/null 2>&1; then command -v $$python; break; fi; done)
# The locks are whole: resolving anew would only let an old pip look for newer releases of what has extras.
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r
COMPARED = tests/upstreams/test_answers_against_h11.py tests/upstreams/test_exchanges_at_random.py
TEMPLATES = $(shell find templates -name '*.html')

run: $(VENV)/.installed
	@$(VENV)/bin/python manage.py first_run
	@WEB_CONCURRENCY=$${WEB_CONCURRENCY:-1} exec $(VENV)/bin/python manage.py serve

# Processes by the hundred import the same modules: what they compiled is kept, whatever the caller's environment says.
test coverage coverage-rules: export PYTHONDONTWRITEBYTECODE =

test: $(VENV)/.installed-dev chromium
	$(VENV)/bin/python -m pytest $(AT_ONCE) $(PYTEST_ARGS)

coverage: $(VENV)/.installed-dev chromium
	$(VENV)/bin/python -m pytest $(AT_ONCE) --cov --cov-report= $(PYTEST_ARGS)
	$(VENV)/bin/python -m coverage report --include='relay/rules/*' --fail-under=100
	$(VENV)/bin/python -m coverage report --include='relay/*' --fail-under=90

# The rules have to be whole by their own tests.
coverage-rules: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(AT_ONCE) --cov --cov-report= tests/rules
	$(VENV)/bin/python -m coverage report --include='relay/rules/*' --fail-under=100

# What it finds is kept in .fuzz, and where the next run begins.
fuzz: $(VENV)/.installed-dev
	$(VENV)/bin/python -X dev -W error -m tests.fuzz.fuzz_answers -max_total_time=$(FUZZ_SECONDS)
	RELAY_TEST_EXAMPLES=$(FUZZ_EXAMPLES) $(VENV)/bin/python -m pytest $(AT_ONCE) --timeout=0 $(COMPARED)

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(if $(TEMPLATES),$(VENV)/bin/djade --check --target-version 5.2 $(TEMPLATES))
	DJANGO_SETTINGS_MODULE=tests.settings $(VENV)/bin/python manage.py makemigrations --check --dry-run
	DJANGO_SETTINGS_MODULE=tests.settings $(VENV)/bin/python manage.py check --fail-level WARNING

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(if $(TEMPLATES),$(VENV)/bin/djade --target-version 5.2 $(TEMPLATES))

bench: $(VENV)/.installed $(VENV_BENCH)/.installed load-tools
	$(VENV_BENCH)/bin/python -m bench --relay-python $(VENV)/bin/python $(BENCH_ARGS)

soak: $(VENV)/.installed-dev
	$(VENV)/bin/python -m bench.soak --minutes $(SOAK_MINUTES) $(SOAK_ARGS)

soak-streams: $(VENV)/.installed-dev
	$(VENV)/bin/python -m bench.streams --streams $(STREAMS) --minutes $(STREAM_MINUTES)

soak-readers: $(VENV)/.installed-dev
	$(VENV)/bin/python -m bench.slow_readers

# Plain names in the locks: no index host or local path belongs there.
COMPILE = CUSTOM_COMPILE_COMMAND="make lock" $(VENV)/bin/pip-compile --quiet --generate-hashes --allow-unsafe \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --strip-extras --extra
LOCKED = mfa --extra postgres
lock: $(VENV)/.installed-dev
	$(COMPILE) $(LOCKED) --upgrade -o requirements.lock pyproject.toml
	$(COMPILE) $(LOCKED) --extra dev -c requirements.lock --upgrade -o requirements-dev.lock pyproject.toml
	$(COMPILE) bench -c requirements.lock --upgrade -o requirements-bench.lock pyproject.toml

clean:
	rm -rf $(VENV) $(VENV_BENCH) .coverage .fuzz .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache \
		build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than the lock they were installed from: a second run installs nothing.
$(VENV)/.installed: requirements.lock | $(VENV)/bin/python
	@echo "Installing what requirements.lock names into $(VENV)"
	@$(VENV)/bin/python $(PIP_INSTALL) requirements.lock
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock | $(VENV)/bin/python
	@echo "Installing what requirements-dev.lock names into $(VENV)"
	@$(VENV)/bin/python $(PIP_INSTALL) requirements-dev.lock
	@touch $@ $(VENV)/.installed  # the one lock holds the other

$(VENV_BENCH)/.installed: requirements-bench.lock | $(VENV_BENCH)/bin/python
	@echo "Installing what requirements-bench.lock names into $(VENV_BENCH)"
	@$(VENV_BENCH)/bin/python $(PIP_INSTALL) requirements-bench.lock
	@touch $@

$(VENV)/bin/python $(VENV_BENCH)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none is on PATH: install it, or run make with PYTHON=/path/to/it." >&2; exit 1; }
	@"$(PYTHON)" $(OLD_ENOUGH) || { echo "$(PYTHON) is older than Python 3.11: run make with PYTHON=/path/to/a/newer/one." >&2; exit 1; }
	@"$(PYTHON)" -m venv "$(@D)/.." || { echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian: apt-get install python3-venv)." >&2; exit 1; }

# The browser tests drive whichever of these is there. The first is the same browser without windows, and starts sooner.
chromium:
	@for name in chromium-headless-shell chromium chromium-browser google-chrome; do \
		command -v "$$name" >/dev/null && exit; \
	done; \
	as_root=; test "$$(id -u)" = 0 || as_root="sudo -n"; \
	if command -v apt-get >/dev/null && $$as_root true 2>/dev/null; then \
		echo "Installing chromium for the browser tests"; \
		$$as_root apt-get update -qq && \
		package=$$(apt-cache show chromium-headless-shell >/dev/null 2>&1 && echo chromium-headless-shell || echo chromium) && \
		$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$package >/dev/null; \
	else \
		echo "The browser tests need chromium or google-chrome on PATH: install one of them." >&2; exit 1; \
	fi

# Debian keeps nginx where only root's PATH looks.
load-tools:
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin"; { command -v nginx && command -v wrk; } >/dev/null || { \
		if command -v apt-get >/dev/null && test "$$(id -u)" = 0; then \
			echo "Installing nginx and wrk for the measurement"; \
			apt-get update -qq && \
			DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends nginx-light wrk >/dev/null; \
		else \
			echo "The measurement needs nginx and wrk on PATH: install them (Debian: apt-get install nginx-light wrk)." >&2; exit 1; \
		fi; }
