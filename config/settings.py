"""Django settings, made from the environment that `config.environment` read and checked. Nothing else reads it.

Relayed requests meet none of MIDDLEWARE: `relay.serving` takes them first. What is here serves the admin and static
files.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse_lazy

from config import environment
from relay.rules.hosts import upstream_suffix

_env = environment.read()

BASE_DIR = environment.CODE_ROOT
DEBUG: bool = _env["DEBUG"]
SECRET_KEY: str = _env["SECRET_KEY"]
SECRET_KEY_FALLBACKS: list[str] = list(_env["SECRET_KEY_FALLBACKS"])
RELAY_HOSTS: tuple[str, ...] = _env["RELAY_HOSTS"]
RELAY_ADMIN_HOSTS: tuple[str, ...] = _env["RELAY_ADMIN_HOSTS"]
# The hosts of upstreams are left out: Django's own pages never answer there.
ALLOWED_HOSTS: list[str] = [
    *_env["ALLOWED_HOSTS"],
    *(host for host in RELAY_HOSTS if not upstream_suffix(host)),
    *RELAY_ADMIN_HOSTS,
]
CSRF_TRUSTED_ORIGINS: list[str] = list(_env["CSRF_TRUSTED_ORIGINS"])

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "axes",
    "relay",
    "config.door",
]

MIDDLEWARE = [
    "config.middleware.believe_trusted_proxies_only",
    "config.middleware.keep_own_cookies",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "config.middleware.bound_what_pages_load",
    "config.door.lockout.bound_checks_at_once",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "config.door.sessions.end_old_sessions",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "relay.admin.authorship.name_author",
    "axes.middleware.AxesMiddleware",
]

RELAY_ADMIN_MFA: bool = _env["RELAY_ADMIN_MFA"]
if RELAY_ADMIN_MFA:
    # Before the door, which takes their devices out of the admin.
    _door = INSTALLED_APPS.index("config.door")
    INSTALLED_APPS[_door:_door] = ["django_otp", "django_otp.plugins.otp_totp", "django_otp.plugins.otp_static"]
    _after = MIDDLEWARE.index("django.contrib.auth.middleware.AuthenticationMiddleware") + 1
    MIDDLEWARE[_after:_after] = ["django_otp.middleware.OTPMiddleware", "config.door.factors.ask_for_second_factor"]

ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        # A checkout keeps them at the top, an installed package inside `relay`; either way before unfold's.
        "DIRS": [BASE_DIR / "templates" if environment.IS_CHECKOUT else BASE_DIR / "relay" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]


def _database(url: dict[str, Any]) -> dict[str, Any]:
    """The database with what several processes on it need."""
    # Under ASGI no thread belongs to a connection: none outlives its request.
    database = {**url, "CONN_MAX_AGE": 0}
    if database["ENGINE"].endswith("sqlite3"):
        # WAL: readers and the one writer do not wait for each other. IMMEDIATE: a transaction queues at its start, for
        # up to `timeout` seconds, where one that turned writer half-way would fail at once.
        return database | {
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 5,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON",
            }
        }
    # A worker's pool is small: the watcher and the admin are all that use it.
    pool = {"min_size": 0, "max_size": 8, "timeout": 5, "max_idle": 60, "reconnect_timeout": 5}
    # A network that swallows packets is noticed within about 20 seconds.
    patience = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 2, "tcp_user_timeout": 20_000}
    options = {"connect_timeout": 5, **patience, "pool": pool, **database.get("OPTIONS", {})}
    return database | {"OPTIONS": options, "CONN_HEALTH_CHECKS": True}


DATABASES = {"default": _database(_env["DATABASE_URL"])}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LANGUAGE_CODE = "en"
TIME_ZONE: str = _env["TIME_ZONE"]
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = _env["RELAY_DATA_DIR"] / "static"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "config.static.CollectedStaticFiles"},
}
# Without collected files the admin is served from the packages: slower, but whole.
WHITENOISE_USE_FINDERS = not (STATIC_ROOT / "staticfiles.json").is_file()

_HTTPS_ONLY: bool = _env["RELAY_HTTPS_ONLY"]
if _HTTPS_ONLY:
    # Browsers take these names from this very host over HTTPS alone, and demand the Path. The relay passes no cookie
    # that is not the upstream's own, either way.
    SESSION_COOKIE_NAME = "__Host-relay_session"
    CSRF_COOKIE_NAME = "__Host-relay_csrf"
    SESSION_COOKIE_PATH = CSRF_COOKIE_PATH = "/"
else:
    # Relayed pages share the origin with the admin: its cookies stay under /admin/.
    SESSION_COOKIE_PATH = CSRF_COOKIE_PATH = "/admin/"
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _HTTPS_ONLY
# `config.door.sessions` keeps them.
RELAY_ADMIN_IDLE_SECONDS: int = _env["RELAY_ADMIN_IDLE_SECONDS"]
RELAY_ADMIN_SESSION_SECONDS: int = _env["RELAY_ADMIN_SESSION_SECONDS"]
SESSION_COOKIE_AGE = min(RELAY_ADMIN_IDLE_SECONDS, RELAY_ADMIN_SESSION_SECONDS)
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"  # no cookie of its own

SECURE_SSL_REDIRECT = _HTTPS_ONLY
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if _HTTPS_ONLY else 0
# Safe because `believe_trusted_proxies_only` drops the header from everyone else.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
DEFAULT_EXCEPTION_REPORTER_FILTER = "relay.admin.reports.SecretsHidden"
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"  # the sign-in page asked for itself
# The relay's host may have siblings and children that are not its own: HSTS is for this host, and for no list.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
# `config.door.lockout` counts.
AXES_HANDLER = "config.door.lockout.Handler"
AXES_LOCKOUT_CALLABLE = "config.door.lockout.refusal"
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"], "ip_address"]
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = datetime.timedelta(minutes=15)
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False

# Of devices and their secrets the admin shows nothing; `config.door.factors` asks for them.
OTP_ADMIN_HIDE_SENSITIVE_DATA = True
OTP_TOTP_ISSUER = "Relay"

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "config.logs.LineFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {
        "handlers": ["stderr"],
        "level": "WARNING" if _env["LOG_LEVEL"] in {"DEBUG", "INFO"} else _env["LOG_LEVEL"],
    },
    "loggers": {
        "relay": {"level": _env["LOG_LEVEL"]},
        # No mail to admins, and no console handler that only speaks under DEBUG.
        "django": {"handlers": ["stderr"], "level": _env["LOG_LEVEL"], "propagate": False},
        "django.server": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        # SQL at DEBUG has parameters in it.
        "django.db.backends": {"level": "INFO"},
        "django.template": {"level": "INFO"},
        # At each retry it logs where the database is; the watcher tells of an outage once.
        "psycopg.pool": {"level": "ERROR"},
        # It logs query strings, secrets included; ours is `RELAY_ACCESS_LOG`.
        "uvicorn.access": {"handlers": [], "level": "CRITICAL", "propagate": False},
    },
}


def _mark(request: HttpRequest) -> str:
    return static("relay/mark.svg")


def _may_see(permission_of: str) -> Callable[[HttpRequest], bool]:
    """What the admin asks before it shows a model: view or change, such as `relay.{}_upstream`."""
    return lambda request: any(request.user.has_perm(permission_of.format(right)) for right in ("view", "change"))


def _may_issue_keys(request: HttpRequest) -> bool:
    return request.user.has_perm("relay.issue_apikey")


UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Relay",
    "SITE_HEADER": "Relay",
    "SITE_ICON": _mark,
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": _mark}],
    "SITE_URL": None,
    "SHOW_VIEW_ON_SITE": False,
    "DASHBOARD_CALLBACK": "relay.admin.index.dashboard",
    "COLORS": {
        "primary": {
            "50": "oklch(98.4% .014 180.72)",
            "100": "oklch(95.3% .051 180.801)",
            "200": "oklch(91% .096 180.426)",
            "300": "oklch(85.5% .138 181.071)",
            "400": "oklch(77.7% .152 181.912)",
            "500": "oklch(70.4% .14 182.503)",
            "600": "oklch(51.1% .096 186.391)",
            "700": "oklch(43.7% .078 188.216)",
            "800": "oklch(38.6% .063 188.416)",
            "900": "oklch(33% .055 189)",
            "950": "oklch(27.7% .046 192.524)",
        }
    },
    "SIDEBAR": {
        "navigation": [
            {
                "items": [
                    {"title": "Overview", "icon": "home", "link": reverse_lazy("admin:index")},
                    {
                        "title": "Upstreams",
                        "icon": "swap_horiz",
                        "link": reverse_lazy("admin:relay_upstream_changelist"),
                        "permission": _may_see("relay.{}_upstream"),
                    },
                    {
                        "title": "Consumers",
                        "icon": "apps",
                        "link": reverse_lazy("admin:relay_consumer_changelist"),
                        "permission": _may_see("relay.{}_consumer"),
                    },
                    {
                        "title": "Keys",
                        "icon": "key",
                        "link": reverse_lazy("admin:relay_apikey_changelist"),
                        "permission": _may_issue_keys,
                    },
                    {
                        "title": "Signing keys",
                        "icon": "link",
                        "link": reverse_lazy("admin:relay_signingkey_changelist"),
                        "permission": _may_issue_keys,
                    },
                    {
                        "title": "Audit trail",
                        "icon": "history",
                        "link": reverse_lazy("admin:relay_auditentry_changelist"),
                        "permission": _may_see("relay.{}_auditentry"),
                    },
                ]
            },
            {
                "title": "People",
                "separator": True,
                "items": [
                    {
                        "title": "Users",
                        "icon": "person",
                        "link": reverse_lazy("admin:auth_user_changelist"),
                        "permission": _may_see("auth.{}_user"),
                    },
                    {
                        "title": "Groups",
                        "icon": "group",
                        "link": reverse_lazy("admin:auth_group_changelist"),
                        "permission": _may_see("auth.{}_group"),
                    },
                ],
            },
        ]
    },
}

RELAY_DATA_DIR = _env["RELAY_DATA_DIR"]
RELAY_ENCRYPTION_KEYS: tuple[str, ...] = _env["RELAY_ENCRYPTION_KEYS"]
RELAY_CREDENTIALS_DIR: str = _env["RELAY_CREDENTIALS_DIR"]
RELAY_MIDDLEWARE: tuple[str, ...] = _env["RELAY_MIDDLEWARE"]
RELAY_TRUSTED_PROXIES: tuple[str, ...] = _env["TRUSTED_PROXIES"]
RELAY_MAX_HEADER_BYTES: int = _env["RELAY_MAX_HEADER_BYTES"]
RELAY_MAX_HEADER_FIELDS: int = _env["RELAY_MAX_HEADER_FIELDS"]
RELAY_MAX_TARGET_BYTES: int = _env["RELAY_MAX_TARGET_BYTES"]
RELAY_HEAD_TIMEOUT_SECONDS: float = _env["RELAY_HEAD_TIMEOUT_SECONDS"]
RELAY_STALL_TIMEOUT_SECONDS: float = _env["RELAY_STALL_TIMEOUT_SECONDS"]
RELAY_MAX_CONNECTIONS: int | None = _env["RELAY_MAX_CONNECTIONS"]
RELAY_MAX_CONNECTIONS_PER_PEER: int = _env["RELAY_MAX_CONNECTIONS_PER_PEER"]
RELAY_MAX_FORM_BYTES: int = _env["RELAY_MAX_FORM_BYTES"]
RELAY_ACCESS_LOG: str = _env["RELAY_ACCESS_LOG"]
RELAY_METRICS_NETWORKS: tuple[str, ...] = _env["RELAY_METRICS_NETWORKS"]
RELAY_METRICS_FOLDER = RELAY_DATA_DIR / "metrics"
RELAY_STORE_FOLDER = RELAY_DATA_DIR / "catalog"
RELAY_VIA: str = _env["RELAY_VIA"]
RELAY_CATALOG_POLL_SECONDS: float = _env["RELAY_CATALOG_POLL_SECONDS"]

# `manage.py serve` and `first_run`
RELAY_SERVER = "config.gunicorn.run"
RELAY_FIRST_ADMIN_NAME: str = _env["DJANGO_SUPERUSER_USERNAME"]
RELAY_FIRST_ADMIN_PASSWORD: str | None = _env["DJANGO_SUPERUSER_PASSWORD"]
RELAY_PORT: int = _env["PORT"]
RELAY_WORKERS: int | None = _env["WEB_CONCURRENCY"]
RELAY_DRAIN_SECONDS: int = _env["RELAY_DRAIN_SECONDS"]
RELAY_GRACEFUL_SECONDS: int = _env["RELAY_GRACEFUL_SECONDS"]
RELAY_LOG_LEVEL: str = _env["LOG_LEVEL"]
