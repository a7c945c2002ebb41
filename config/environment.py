"""Every environment variable the project reads: one record each, which parses, checks and documents it.

`read()` gives all values or one `EnvironmentInvalid` that lists everything wrong by name, with what was expected.
`reference_markdown()` writes the table of docs/configuration.md from the same records. What the values mean for Django
is the business of `config.settings`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast
from urllib.parse import urlsplit

import dj_database_url
from django.core.exceptions import ImproperlyConfigured
from environs import Env, EnvValidationError, ValidationError

from config import secret_key
from relay.rules import addresses, hosts

CODE_ROOT = Path(__file__).resolve().parent.parent
IS_CHECKOUT = (CODE_ROOT / "manage.py").is_file()
PROJECT_ROOT = CODE_ROOT if IS_CHECKOUT else Path.cwd()
"""Where relative paths start: the checkout, or for an installed package the current folder."""


class EnvironmentInvalid(ImproperlyConfigured):
    """One or more variables are wrong or missing. `problems` holds one line each; no secret's value is in them."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(("The environment cannot be used as it is:", *(f"  {line}" for line in problems))))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One environment variable. `default` is text, as one would write it; None when it is worked out from others."""

    name: str
    default: str | None
    expects: str
    help: str
    parse: Callable[[str], Any]
    default_words: str = ""
    is_secret: bool = False


def read(*, make_secret_key: bool = False) -> Mapping[str, Any]:
    """All values by name. With `make_secret_key`, or with DEBUG on, a missing secret key file is made.

    Raises EnvironmentInvalid with everything that is wrong.
    """
    env = Env(eager=False)
    env.add_parser("variable", _parse)
    values = {variable.name: env.variable(variable.name, "", variable=variable) for variable in VARIABLES}
    problems: dict[str, list[str]] = {}
    try:
        env.seal()
    except EnvValidationError as error:
        problems = dict(cast("Mapping[str, list[str]]", error.error_messages))
    if "RELAY_DATA_DIR" not in problems:
        if values["DATABASE_URL"] is None and "DATABASE_URL" not in problems:
            values["DATABASE_URL"] = {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(values["RELAY_DATA_DIR"] / "relay.sqlite3"),
            }
        if values["SECRET_KEY"] is None and "SECRET_KEY" not in problems:
            try:
                values["SECRET_KEY"] = _kept_secret_key(
                    values["RELAY_DATA_DIR"], may_make=make_secret_key or bool(values["DEBUG"])
                )
            except ValueError as error:
                problems["SECRET_KEY"] = [str(error)]
    if problems:
        in_order = [variable.name for variable in VARIABLES if variable.name in problems]
        raise EnvironmentInvalid(tuple(f"{name}: {line}" for name in in_order for line in problems[name]))
    return MappingProxyType(values)


def reference_markdown() -> str:
    """The table of all variables for docs/configuration.md."""
    lines = ["| variable | default | expects | what it does |", "|---|---|---|---|"]
    for variable in VARIABLES:
        default = variable.default_words or (f"`{variable.default}`" if variable.default else "empty")
        cells = (f"`{variable.name}`", default, variable.expects, variable.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _parse(text: str, *, variable: Variable) -> Any:
    """The value of one variable; one that is set to nothing counts as not set."""
    text = text.strip() or variable.default or ""
    if not text and variable.default is None:
        return None
    try:
        return variable.parse(text)
    except ValueError as error:
        shown = "" if variable.is_secret else f"{text!r} is wrong: "
        detail = f" ({error})" if str(error) else ""
        raise ValidationError(f"{shown}expected {variable.expects}{detail}") from None


def _kept_secret_key(data_dir: Path, *, may_make: bool) -> str:
    if may_make:
        try:
            return secret_key.ensure(data_dir)
        except OSError as error:
            raise ValueError(
                f"no key could be kept in {data_dir} ({error.strerror}): make the folder writable, or set SECRET_KEY"
            ) from None
    kept = secret_key.read(data_dir)
    if kept is None:
        raise ValueError(
            f"missing, and there is no {data_dir / secret_key.FILE_NAME}: set it to at least {secret_key.SHORTEST}"
            " random characters, or run `python manage.py first_run` (`make run` does), which makes and keeps one"
        )
    return kept


# Parsers: text to value, ValueError with the detail for people (or with none when `expects` says it all).


def _boolean(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError


def _second_factor(text: str) -> bool:
    wanted = _boolean(text)
    missing = [package for package in ("django_otp", "segno") if wanted and importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"on needs the packages of the `mfa` extra, and there is no {' and no '.join(missing)}")
    return wanted


def _integer(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,15}", text) or not lowest <= int(text) <= highest:
            raise ValueError
        return int(text)

    return parse


def _seconds(lowest: float, highest: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) or not lowest <= float(text) <= highest:
            raise ValueError
        return float(text)

    return parse


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.split(r"[\s,]+", text.strip(" \t\r\n,"))) if text.strip(" \t\r\n,") else ()


def _hosts(text: str) -> tuple[str, ...]:
    for word in _words(text):
        if not re.fullmatch(r"\*|\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]", word):
            raise ValueError(f"{word!r} is no host name: leave out scheme and port, put IPv6 in brackets")
    return _words(text)


def _relay_hosts(text: str) -> tuple[str, ...]:
    for word in _words(text):
        hosts.check_entry(word)
    return _words(text)


def _origins(text: str) -> tuple[str, ...]:
    for word in _words(text):
        parts = urlsplit(word)
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path or parts.query or parts.fragment:
            raise ValueError(f"{word!r} is none")
    return _words(text)


def _networks(text: str) -> tuple[str, ...]:
    addresses.parse_networks(text)
    return _words(text)


def _dotted_paths(text: str) -> tuple[str, ...]:
    for word in _words(text):
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", word):
            raise ValueError(f"{word!r} is none")
    return _words(text)


def _secret(text: str) -> str:
    if len(text) < secret_key.SHORTEST:
        raise ValueError(f"it has {len(text)}")
    return text


def _secrets(text: str) -> tuple[str, ...]:
    return tuple(_secret(word) for word in _words(text))


def _database(text: str) -> dict[str, Any]:
    """Django's own form of a database URL. The text may hold a password: no error repeats it."""
    scheme = text.partition("://")[0]
    if scheme not in {"sqlite", "postgres", "postgresql"}:
        raise ValueError("the scheme is another")
    try:
        database = dict(dj_database_url.parse(text))
    except ValueError:
        raise ValueError("it cannot be parsed: percent-encode user, password and name") from None
    if not database["NAME"] or database["NAME"] == ":memory:":
        raise ValueError("it names no database that several processes can share")
    return database


def _folder(text: str) -> Path:
    folder = PROJECT_ROOT / Path(text)
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise ValueError(f"{existing} is not a folder: name another, or move it away")
    return folder


def _credentials_folder(text: str) -> str:
    """It need not be there: a secret's volume may be mounted later."""
    if text and not Path(text).is_absolute():
        raise ValueError
    return os.path.normpath(text) if text else ""


def _time_zone(text: str) -> str:
    try:
        zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, OSError):
        raise ValueError from None
    return text


def _level(text: str) -> str:
    if text.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
        raise ValueError
    return text.upper()


def _user_name(text: str) -> str:
    if not re.fullmatch(r"[\w.@+-]{1,150}", text):
        raise ValueError
    return text


def _password(text: str) -> str:
    if len(text) < 10:
        raise ValueError
    return text


def _access_log(text: str) -> str:
    if text in {"stdout", "off"}:
        return text
    if "/" not in text:
        raise ValueError("write a file in the current folder as ./name")
    return str(PROJECT_ROOT / Path(text))


def _via_name(text: str) -> str:
    """A pseudonym of RFC 9110 section 7.6.3: a token."""
    if text and not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", text):
        raise ValueError
    return text


VARIABLES: tuple[Variable, ...] = (
    Variable(
        name="DEBUG",
        default="off",
        expects="on or off",
        help="Shows Django's error pages with source and settings, to anyone who meets one. For development only.",
        parse=_boolean,
    ),
    Variable(
        name="SECRET_KEY",
        default=None,
        default_words="the file `secret_key` in the data folder",
        expects=f"at least {secret_key.SHORTEST} random characters",
        help="Signs sessions and tokens; the same for all machines of one installation. `make run` makes the file.",
        parse=_secret,
        is_secret=True,
    ),
    Variable(
        name="SECRET_KEY_FALLBACKS",
        default="",
        expects=f"secret keys of at least {secret_key.SHORTEST} characters, separated by commas",
        help="Former secret keys: what was signed or sealed with them is still accepted. Empty it after a rotation.",
        parse=_secrets,
        is_secret=True,
    ),
    Variable(
        name="RELAY_ENCRYPTION_KEYS",
        default="",
        default_words="made from the secret key",
        expects=f"one or more of at least {secret_key.SHORTEST} random characters, separated by commas, newest first",
        help=(
            "Seal the secrets in the database: the first seals, all of them open, and so does the secret key. To "
            "replace one, put a new one before it, run `manage.py secrets rotate`, then take the old one out."
        ),
        parse=_secrets,
        is_secret=True,
    ),
    Variable(
        name="ALLOWED_HOSTS",
        default="localhost,127.0.0.1,[::1]",
        expects="host names separated by commas, `.example.com` for all below one, `*` for any",
        help="The names callers may use for this relay; others are answered with 421 or 400.",
        parse=_hosts,
    ),
    Variable(
        name="RELAY_HOSTS",
        default="",
        expects="whole host names, and patterns like `<slug>.relay.example.org` (or `*.relay.example.org`)",
        help=(
            "The names at which relayed requests are answered and the admin never is. A pattern gives each upstream a "
            "host, and so an origin, of its own: all of `wiki.relay.example.org` is the upstream `wiki`. Empty: "
            "relayed requests are answered at all of ALLOWED_HOSTS but RELAY_ADMIN_HOSTS."
        ),
        parse=_relay_hosts,
    ),
    Variable(
        name="RELAY_ADMIN_HOSTS",
        default="",
        expects="host names as in ALLOWED_HOSTS",
        help=(
            "The names at which the admin is answered and relayed requests never are. Empty: the admin is answered at "
            "all of ALLOWED_HOSTS but RELAY_HOSTS. With both empty, relayed pages and the admin are one origin for "
            "browsers."
        ),
        parse=_hosts,
    ),
    Variable(
        name="DATABASE_URL",
        default=None,
        default_words="SQLite: `relay.sqlite3` in the data folder",
        expects="sqlite:////absolute/path or postgres://user:password@host:port/name",
        help="Where upstreams and users are kept. PostgreSQL needs the `postgres` extra, which the lock holds.",
        parse=_database,
        is_secret=True,
    ),
    Variable(
        name="RELAY_DATA_DIR",
        default="var",
        expects="a folder that can be made or written",
        help="Holds the SQLite database, the secret key and the collected static files. Relative to the project.",
        parse=_folder,
    ),
    Variable(
        name="RELAY_CREDENTIALS_DIR",
        default="",
        default_words="empty: no files",
        expects="the whole path of a folder that holds secrets for upstreams and nothing else",
        help=(
            "Upstreams' credentials may name files below it. Whoever may set credentials can have the relay send what "
            "is in them: never a folder that holds the data folder."
        ),
        parse=_credentials_folder,
    ),
    Variable(
        name="TRUSTED_PROXIES",
        default="",
        expects="networks (CIDR) separated by commas",
        help="The proxies in front of the relay: their `Forwarded`, `X-Forwarded-*` and `X-Request-Id` are believed.",
        parse=_networks,
    ),
    Variable(
        name="CSRF_TRUSTED_ORIGINS",
        default="",
        expects="origins with scheme, like https://relay.example.com, separated by commas",
        help="Other origins whose forms the admin accepts. Needed when the proxy in front changes the host name.",
        parse=_origins,
    ),
    Variable(
        name="RELAY_HTTPS_ONLY",
        default="off",
        expects="on or off",
        help=(
            "For a relay behind TLS: admin cookies only travel over HTTPS and get `__Host-` names, the admin redirects"
            " to HTTPS and sends Strict-Transport-Security. The proxy that ends TLS has to be in `TRUSTED_PROXIES` and"
            " to send `X-Forwarded-Proto`."
        ),
        parse=_boolean,
    ),
    Variable(
        name="RELAY_ADMIN_MFA",
        default="off",
        expects="on or off",
        help=(
            "Asks everybody who signs in to the admin for a second factor: a code from an authenticator app, set up at"
            " the next sign-in. Needs the `mfa` extra, which the lock holds, and `manage.py migrate`."
        ),
        parse=_second_factor,
    ),
    Variable(
        name="RELAY_ADMIN_IDLE_SECONDS",
        default="7200",
        expects="whole seconds from 300 to 604800",
        help="How long a session of the admin lasts without a request.",
        parse=_integer(300, 7 * 24 * 3600),
    ),
    Variable(
        name="RELAY_ADMIN_SESSION_SECONDS",
        default="43200",
        expects="whole seconds from 300 to 2592000",
        help="How long a session of the admin lasts in all, from sign-in, however busy it is.",
        parse=_integer(300, 30 * 24 * 3600),
    ),
    Variable(
        name="LOG_LEVEL",
        default="INFO",
        expects="DEBUG, INFO, WARNING, ERROR or CRITICAL",
        help="What is logged to standard error. The access log has a setting of its own.",
        parse=_level,
    ),
    Variable(
        name="TIME_ZONE",
        default="UTC",
        expects="a name of the IANA time zone database, like Europe/Berlin",
        help="In which the admin shows times.",
        parse=_time_zone,
    ),
    Variable(
        name="PORT",
        default="8000",
        expects="a port from 0 to 65535; 0 takes any free one",
        help="Where `manage.py serve` listens on 127.0.0.1 when `--bind` is not given.",
        parse=_integer(0, 65_535),
    ),
    Variable(
        name="WEB_CONCURRENCY",
        default=None,
        default_words="the cores this process may use; `1` under `make run`",
        expects="a number from 1 to 1024",
        help="Worker processes of `manage.py serve` when `--workers` is not given.",
        parse=_integer(1, 1024),
    ),
    Variable(
        name="RELAY_DRAIN_SECONDS",
        default="0",
        expects="whole seconds from 0 to 600",
        help=(
            "How long a relay that was told to stop still takes requests, while `/readyz` says 503: as long as the"
            " balancer in front needs to notice. 0 when there is none."
        ),
        parse=_integer(0, 600),
    ),
    Variable(
        name="RELAY_GRACEFUL_SECONDS",
        default="30",
        expects="whole seconds from 0 to 3600",
        help="How long exchanges under way may go on once no new ones are taken; the rest are aborted then.",
        parse=_integer(0, 3600),
    ),
    Variable(
        name="DJANGO_SUPERUSER_USERNAME",
        default="admin",
        expects="a user name of at most 150 letters, digits and @.+-_",
        help="The first admin that `manage.py first_run` makes when there are no users at all.",
        parse=_user_name,
    ),
    Variable(
        name="DJANGO_SUPERUSER_PASSWORD",
        default=None,
        default_words="a random one, printed once",
        expects="a password of at least 10 characters",
        help="The first admin's password. When it is given, none is printed.",
        parse=_password,
        is_secret=True,
    ),
    Variable(
        name="RELAY_MIDDLEWARE",
        default="",
        expects="dotted paths separated by commas",
        help="Async-capable Django middleware around relayed requests, outermost first. Each costs every request.",
        parse=_dotted_paths,
    ),
    Variable(
        name="RELAY_MAX_HEADER_BYTES",
        default="65536",
        expects="bytes from 1024 to 1048576",
        help="Bound of a request's head, counted as it arrives: request line and header fields. More is 431.",
        parse=_integer(1024, 1024 * 1024),
    ),
    Variable(
        name="RELAY_MAX_HEADER_FIELDS",
        default="256",
        expects="a number from 16 to 10000",
        help="How many header fields a request may have. More is 431.",
        parse=_integer(16, 10_000),
    ),
    Variable(
        name="RELAY_MAX_TARGET_BYTES",
        default="16384",
        expects="bytes from 256 to 65535",
        help="Bound of a request's path and query. More is 414.",
        parse=_integer(256, 65_535),
    ),
    Variable(
        name="RELAY_HEAD_TIMEOUT_SECONDS",
        default="15",
        expects="seconds from 0.1 to 3600",
        help=(
            "In which a request's head has to arrive: from its first byte, on a new connection from the connection on. "
            "What takes longer is 408."
        ),
        parse=_seconds(0.1, 3600),
    ),
    Variable(
        name="RELAY_STALL_TIMEOUT_SECONDS",
        default="300",
        expects="seconds from 0.1 to 86400",
        help=(
            "How long a caller may leave an answer waiting before its connection is reset: in that time it has to take "
            "some 48 KiB of what it was sent."
        ),
        parse=_seconds(0.1, 86_400),
    ),
    Variable(
        name="RELAY_MAX_CONNECTIONS",
        default=None,
        default_words="half of the files that a worker may have open",
        expects="a number from 1 to 1000000",
        help="Bound of callers' connections to one worker. Further ones get 503.",
        parse=_integer(1, 1_000_000),
    ),
    Variable(
        name="RELAY_MAX_CONNECTIONS_PER_PEER",
        default="512",
        expects="a number from 1 to 1000000",
        help=(
            "Bound of connections to one worker from one IPv4 address or one IPv6 /64. Further ones get 429. This "
            "machine itself and `TRUSTED_PROXIES` are exempt."
        ),
        parse=_integer(1, 1_000_000),
    ),
    Variable(
        name="RELAY_MAX_FORM_BYTES",
        default="10485760",
        expects="bytes from 65536 to 1073741824",
        help="Bound of a request's body where the relay's own pages answer, such as the admin. More is 413.",
        parse=_integer(65_536, 1024**3),
    ),
    Variable(
        name="RELAY_ACCESS_LOG",
        default="stdout",
        expects="stdout, off, or a file's path",
        help="Where the line about each exchange goes.",
        parse=_access_log,
    ),
    Variable(
        name="RELAY_METRICS_NETWORKS",
        default="127.0.0.0/8,::1/128",
        expects="networks (CIDR) separated by commas",
        help="Whose machines may ask for `/metrics` and for the details of `/readyz`; others get 403, or none.",
        parse=_networks,
    ),
    Variable(
        name="RELAY_VIA",
        default="",
        default_words="a name made from the secret key",
        expects="1 to 64 characters of a token (RFC 9110)",
        help="The name of this installation in `Via`. A request that comes with it already has looped and gets 508.",
        parse=_via_name,
    ),
    Variable(
        name="RELAY_CATALOG_POLL_SECONDS",
        default="0.5",
        expects="seconds from 0.05 to 60",
        help="How often each worker asks the database whether something changed.",
        parse=_seconds(0.05, 60),
    ),
)
