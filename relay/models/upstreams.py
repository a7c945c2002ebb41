"""The table of allowed upstreams and their header rules.

Validation lives here and in database constraints, so admin, commands and the shell give the same verdicts.
"""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator, MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q

from relay.conf import MOUNT
from relay.models.revisions import Recorded, RecordingQuerySet, Subject, record_writes_of
from relay.rules import addresses, balancing, cors, headers, health, urls

SLUG_PATTERN = r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?\Z"
BASE_URL_PATTERN = r"^https?://[^/?#@]+(/[^?#]*)?\Z"
METHOD_PATTERN = re.compile(r"[A-Z0-9!#$%&'*+.^_`|~-]{1,64}")
"""A token (RFC 9110 section 5.6.2) as long as the server takes one, in capitals."""
FORBIDDEN_METHODS = frozenset({"CONNECT", "TRACE"})
LONGEST_SECONDS = 7 * 24 * 3600
LARGEST_BYTES = 2**50
LARGEST_BUFFER_BYTES = 2**31
MOST_CONNECTIONS = 65_535
MOST_RETRIES = 5
MOST_FAILURES = 1000
MOST_BYTES_PER_SECOND = 2**30
POINTING_FIELDS = ("base_url", "host_header", "allowed_networks", "verify_tls", "ca_bundle", "outbound_proxy")
"""Where an upstream points, and whom it takes for that: what the right `point_upstream` is about."""
LONGEST_MAX_AGE_SECONDS = 24 * 3600
"""Browsers take no more: Firefox a day, Chrome two hours."""

SHORTEST_SECONDS = 0.05


def refuse_nan(value: float) -> None:
    """Not a number is neither below nor above any bound."""
    if math.isnan(value):
        raise ValidationError("Write a number of seconds.", code="invalid")


_seconds: list[Callable[[Any], None]] = [
    MinValueValidator(SHORTEST_SECONDS),
    MaxValueValidator(LONGEST_SECONDS),
    refuse_nan,
]
_bytes = [MinValueValidator(0), MaxValueValidator(LARGEST_BYTES)]
_connections = [MinValueValidator(1), MaxValueValidator(MOST_CONNECTIONS)]


def _between(field: str, least: float, most: float) -> Q:
    return Q(**{f"{field}__gte": least, f"{field}__lte": most})


def _empty_or_between(field: str, least: float, most: float) -> Q:
    return Q(**{f"{field}__isnull": True}) | _between(field, least, most)


class Access(models.TextChoices):
    ANYONE = "anyone", "Anyone who can reach the relay"
    KEY = "key", "Callers with a key"


class Delivery(models.TextChoices):
    STREAM = "stream", "Stream: pass bytes on as they arrive"
    BUFFERED = "buffered", "Buffered: read the whole answer, then send it with its length"


class HostHeader(models.TextChoices):
    UPSTREAM = "upstream", "The upstream's own host name"
    CALLER = "caller", "The host name the caller used"
    TARGET = "target", "The host name of the target it goes to, in TLS as well"


class Balancing(models.TextChoices):
    LEAST = (
        balancing.Balancing.LEAST.value,
        "Least outstanding: of two targets drawn at random, the one with fewer exchanges",
    )
    ROUND_ROBIN = balancing.Balancing.ROUND_ROBIN.value, "Round robin: one after the other"
    HEADER = balancing.Balancing.HEADER.value, "By a request header: the same value goes to the same target"
    CONSUMER = balancing.Balancing.CONSUMER.value, "By consumer: each goes to the same target"


def split_userinfo(proxy: str) -> tuple[str, str]:
    """A proxy's URL without user and password, and these."""
    scheme, separator, rest = proxy.partition("://")
    userinfo, _, place = rest.rpartition("@")
    return f"{scheme}{separator}{place}", userinfo


class CheckMethod(models.TextChoices):
    GET = "GET", "GET"
    HEAD = "HEAD", "HEAD"
    OPTIONS = "OPTIONS", "OPTIONS"


class CookieMode(models.TextChoices):
    RELAY = "relay", "Relay: each caller has cookies of its own"
    DROP = "drop", "Drop: no cookie passes, either way"
    JAR = "jar", "Jar: the relay keeps the cookies, and all callers share one session"


class Upstream(Recorded):
    """One allowed destination. The slug is its segment in relay URLs; all under `base_url` can be reached by it."""

    subject_lookups: ClassVar[tuple[str, ...]] = ("slug",)
    touched_by_updates: ClassVar[tuple[str, ...]] = ("changed_at",)
    free_of_checks: ClassVar[frozenset[str]] = frozenset({"changed_at", "changed_by", "enabled"})
    unaudited_fields: ClassVar[frozenset[str]] = frozenset({"changed_at", "changed_by"})
    split_fields: ClassVar[Mapping[str, Callable[[str], tuple[str, str]]]] = {"outbound_proxy": split_userinfo}

    slug = models.CharField(
        max_length=63,
        unique=True,
        validators=[
            RegexValidator(
                SLUG_PATTERN,
                "Use lower-case letters, digits, hyphens and underscores, and begin and end with a letter or digit.",
            )
        ],
        help_text="The name in the relay URL: /relay/your-slug/… Callers have to change their URLs when you change it.",
    )
    name = models.CharField(max_length=200, blank=True, help_text="What people call it. Left empty, the slug is shown.")
    description = models.TextField(blank=True, help_text="For whoever runs the relay next: what it is, who owns it.")
    base_url = models.CharField(
        "base URL",
        max_length=2000,
        help_text=(
            "Where requests go, such as https://api.example.com/v1. What follows the slug is appended to its path."
        ),
    )
    enabled = models.BooleanField(
        default=True, help_text="Switched off, callers get 404 as if it did not exist; running exchanges finish."
    )
    access = models.CharField(
        max_length=10,
        choices=Access,
        default=Access.KEY,
        help_text="Who may call it. Callers with a key need a grant of this upstream as well.",
    )
    allowed_methods = models.CharField(
        max_length=500,
        blank=True,
        help_text="Such as GET, POST. Empty: all methods but TRACE and CONNECT, which are never relayed.",
    )

    report_only = models.BooleanField(
        default=False,
        help_text=(
            "Let through what access, grants and allowed methods would refuse, and count it: it tells whom a change "
            "would hit before it does."
        ),
    )

    connect_timeout_seconds = models.FloatField(
        default=5.0, validators=_seconds, help_text="For DNS, TCP and TLS together, and for a free pooled connection."
    )
    head_timeout_seconds = models.FloatField(
        default=60.0, validators=_seconds, help_text="From the request sent until the answer's status line and headers."
    )
    idle_timeout_seconds = models.FloatField(
        default=300.0,
        validators=_seconds,
        help_text="Longest silence between two pieces of a body, either way. Set it above an event stream's heartbeat.",
    )
    min_upload_bytes_per_second = models.PositiveIntegerField(
        default=240,
        validators=[MinValueValidator(0), MaxValueValidator(MOST_BYTES_PER_SECOND)],
        help_text=(
            "Callers that send a request body slower, on average and after a grace, get 408. Write 0 for streams that "
            "say something now and then, such as a conversation both ways."
        ),
    )
    total_timeout_seconds = models.FloatField(
        null=True,
        blank=True,
        validators=_seconds,
        help_text="For the exchange from first to last byte. Empty: no limit, so that event streams can live.",
    )

    balancing = models.CharField(
        max_length=12,
        choices=Balancing,
        default=Balancing.LEAST,
        help_text="Which of several targets an exchange goes to.",
    )
    balancing_header = models.CharField(
        max_length=200,
        blank=True,
        help_text="Such as X-Session-Id. Requests without it go by least outstanding.",
    )
    max_retries = models.PositiveIntegerField(
        default=1,
        validators=[MaxValueValidator(MOST_RETRIES)],
        help_text=(
            "How often a request that failed may be sent again, to another target if there is one. Only where it "
            "cannot have been acted on, or may be repeated. 0: never."
        ),
    )
    retry_percent = models.PositiveIntegerField(
        default=20,
        validators=[MaxValueValidator(100)],
        help_text="Share of all requests that may be retries. Over it, failures reach the callers.",
    )
    breaker_failures = models.PositiveIntegerField(
        default=5,
        validators=[MaxValueValidator(MOST_FAILURES)],
        help_text="So many failures in a row take a target out of use. 0: no number does.",
    )
    breaker_percent = models.PositiveIntegerField(
        default=50,
        validators=[MaxValueValidator(100)],
        help_text="So many failures of a hundred exchanges take a target out of use. 0: no share does.",
    )
    breaker_seconds = models.FloatField(
        default=5.0,
        validators=_seconds,
        help_text="How long it is left alone before an exchange tries it again; longer each time that fails.",
    )

    check_path = models.CharField(
        max_length=2000,
        blank=True,
        help_text="What to ask each target for, such as /healthz; it follows the base URL. Empty: no checks.",
    )
    check_method = models.CharField(
        max_length=7,
        choices=CheckMethod,
        default=CheckMethod.GET,
        help_text="What checks are asked with. To HEAD there is no body to look for a text in.",
    )
    check_statuses = models.CharField(
        max_length=200, default="200-399", help_text="Which statuses are healthy, such as 200, 204, 300-399."
    )
    check_body = models.CharField(
        max_length=500,
        blank=True,
        help_text="Text that has to be in the first 64 KiB of the answer. Empty: any answer will do.",
    )
    check_interval_seconds = models.FloatField(
        default=10.0, validators=_seconds, help_text="Between two checks of a target; drawn anew within a tenth."
    )
    check_timeout_seconds = models.FloatField(
        default=5.0, validators=_seconds, help_text="How long a check may take, connection included."
    )
    check_failures = models.PositiveIntegerField(
        default=3,
        validators=[MinValueValidator(1), MaxValueValidator(MOST_FAILURES)],
        help_text="So many failed checks in a row take a target out of use.",
    )
    check_successes = models.PositiveIntegerField(
        default=2,
        validators=[MinValueValidator(1), MaxValueValidator(MOST_FAILURES)],
        help_text="So many good checks in a row bring it back.",
    )

    max_request_bytes = models.BigIntegerField(
        null=True, blank=True, validators=_bytes, help_text="Larger request bodies get 413. Empty: no limit."
    )
    max_response_bytes = models.BigIntegerField(
        null=True, blank=True, validators=_bytes, help_text="Longer answers are cut off. Empty: no limit."
    )
    max_concurrent = models.PositiveIntegerField(
        default=1024,
        validators=_connections,
        help_text="Exchanges at the same time, per worker. Further ones wait for their turn.",
    )
    max_queued = models.PositiveIntegerField(
        default=1024,
        validators=[MinValueValidator(0), MaxValueValidator(MOST_CONNECTIONS)],
        help_text="How many may wait, per worker. Over it callers get 503 at once; 0 lets nobody wait.",
    )
    queue_timeout_seconds = models.FloatField(
        default=5.0,
        validators=_seconds,
        help_text="How long they may wait. After it callers get 503 and are told when to retry.",
    )
    max_connections = models.PositiveIntegerField(
        default=1024,
        validators=_connections,
        help_text="Connections to each target, per worker. Exchanges over it wait for a free one.",
    )
    keepalive_seconds = models.FloatField(
        default=20.0,
        validators=[MinValueValidator(0), MaxValueValidator(LONGEST_SECONDS), refuse_nan],
        help_text=(
            "How long an unused connection is kept. Set it below the upstream's own; 0 opens a new one each time."
        ),
    )

    delivery = models.CharField(
        max_length=10,
        choices=Delivery,
        default=Delivery.STREAM,
        help_text="Choose buffered only for callers that cannot take a stream.",
    )
    max_buffered_bytes = models.BigIntegerField(
        default=8 * 1024 * 1024,
        validators=[MinValueValidator(1), MaxValueValidator(LARGEST_BUFFER_BYTES)],
        help_text="Buffered delivery holds the answer in memory. Larger answers get 502.",
    )
    host_header = models.CharField(
        max_length=10,
        choices=HostHeader,
        default=HostHeader.UPSTREAM,
        help_text="What the upstream sees in Host. Most want their own name.",
    )

    cookie_mode = models.CharField(
        max_length=10,
        choices=CookieMode,
        default=CookieMode.RELAY,
        help_text=(
            "Choose the jar only for an upstream that needs a session and gives every caller the same: whoever may "
            "call acts in it."
        ),
    )
    cors_allowed_origins = models.TextField(
        blank=True,
        help_text=(
            "Origins whose scripts may call it from a browser, one a line, such as https://app.example.com; “*” for "
            "any. Empty: nothing is added, and what the upstream itself says passes."
        ),
    )
    cors_allowed_methods = models.CharField(
        max_length=500, blank=True, help_text="Such as GET, POST. Empty: those this upstream allows."
    )
    cors_allowed_headers = models.CharField(
        max_length=2000,
        blank=True,
        default=cors.DEFAULT_HEADERS,
        help_text="Header names that scripts may send; “*” for whatever they ask for.",
    )
    cors_exposed_headers = models.CharField(
        max_length=2000,
        blank=True,
        help_text="Header names of answers that scripts may read besides the ordinary ones, such as X-Request-Id.",
    )
    cors_allow_credentials = models.BooleanField(
        default=False,
        help_text="Scripts may call with the cookies of whoever sits at the browser. Needs origins by name.",
    )
    cors_max_age_seconds = models.PositiveIntegerField(
        null=True,
        blank=True,
        default=600,
        validators=[MinValueValidator(0), MaxValueValidator(LONGEST_MAX_AGE_SECONDS)],
        help_text="How long browsers may go by one preflight. Empty: as long as they see fit.",
    )

    allowed_networks = models.TextField(
        blank=True,
        help_text=(
            "Networks this upstream's addresses may lie in besides the public internet, one CIDR a line, "
            "such as 10.20.0.0/16. Empty: public addresses only."
        ),
    )
    verify_tls = models.BooleanField(
        "verify TLS",
        default=True,
        help_text="Check the upstream's certificate. Switched off, anyone on the way can read and change everything.",
    )
    ca_bundle = models.TextField(
        "CA bundle",
        blank=True,
        help_text="PEM certificates to trust for this upstream instead of the system's. Empty: the system's.",
    )
    outbound_proxy = models.CharField(
        max_length=2000,
        blank=True,
        help_text=(
            "An HTTP proxy to go through, such as http://user:password@proxy.internal:3128. Its address must be in an "
            "allowed network unless public; it resolves names itself, so it has to guard them."
        ),
    )

    created_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField("last change", auto_now=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )
    changed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )

    objects = RecordingQuerySet["Upstream"].as_manager()

    class Meta:
        ordering = ("slug",)
        base_manager_name = "objects"  # related managers' bulk writes are recorded too
        permissions = (("point_upstream", "Can change where an upstream points"),)
        constraints = (
            models.CheckConstraint(condition=Q(slug__regex=SLUG_PATTERN), name="relay_upstream_slug"),
            models.CheckConstraint(condition=Q(base_url__regex=BASE_URL_PATTERN), name="relay_upstream_base_url"),
            models.CheckConstraint(condition=Q(access__in=Access.values), name="relay_upstream_access"),
            models.CheckConstraint(condition=Q(delivery__in=Delivery.values), name="relay_upstream_delivery"),
            models.CheckConstraint(condition=Q(host_header__in=HostHeader.values), name="relay_upstream_host_header"),
            models.CheckConstraint(condition=Q(cookie_mode__in=CookieMode.values), name="relay_upstream_cookie_mode"),
            models.CheckConstraint(
                condition=Q(balancing__in=Balancing.values)
                & _between("max_retries", 0, MOST_RETRIES)
                & _between("retry_percent", 0, 100)
                & _between("breaker_failures", 0, MOST_FAILURES)
                & _between("breaker_percent", 0, 100)
                & _between("breaker_seconds", SHORTEST_SECONDS, LONGEST_SECONDS),
                name="relay_upstream_balancing",
            ),
            models.CheckConstraint(
                condition=Q(check_method__in=CheckMethod.values)
                & _between("check_interval_seconds", SHORTEST_SECONDS, LONGEST_SECONDS)
                & _between("check_timeout_seconds", SHORTEST_SECONDS, LONGEST_SECONDS)
                & _between("check_failures", 1, MOST_FAILURES)
                & _between("check_successes", 1, MOST_FAILURES),
                name="relay_upstream_checks",
            ),
            models.CheckConstraint(
                condition=~Q(cors_allowed_origins=cors.ANY, cors_allow_credentials=True)
                & _empty_or_between("cors_max_age_seconds", 0, LONGEST_MAX_AGE_SECONDS),
                name="relay_upstream_cors",
            ),
            models.CheckConstraint(
                condition=_between("connect_timeout_seconds", SHORTEST_SECONDS, LONGEST_SECONDS)
                & _between("head_timeout_seconds", SHORTEST_SECONDS, LONGEST_SECONDS)
                & _between("idle_timeout_seconds", SHORTEST_SECONDS, LONGEST_SECONDS)
                & _between("queue_timeout_seconds", SHORTEST_SECONDS, LONGEST_SECONDS)
                & _between("keepalive_seconds", 0, LONGEST_SECONDS)
                & _empty_or_between("total_timeout_seconds", SHORTEST_SECONDS, LONGEST_SECONDS),
                name="relay_upstream_timeouts",
            ),
            models.CheckConstraint(
                condition=_between("min_upload_bytes_per_second", 0, MOST_BYTES_PER_SECOND),
                name="relay_upstream_upload_rate",
            ),
            models.CheckConstraint(
                condition=_between("max_concurrent", 1, MOST_CONNECTIONS)
                & _between("max_queued", 0, MOST_CONNECTIONS)
                & _between("max_connections", 1, MOST_CONNECTIONS)
                & _between("max_buffered_bytes", 1, LARGEST_BUFFER_BYTES)
                & _empty_or_between("max_request_bytes", 0, LARGEST_BYTES)
                & _empty_or_between("max_response_bytes", 0, LARGEST_BYTES),
                name="relay_upstream_bounds",
            ),
        )

    def __str__(self) -> str:
        return self.name or self.slug

    def subjects(self, *, using: str) -> Iterable[Subject]:
        return (self.slug,)

    @property
    def relay_path(self) -> str:
        return f"{MOUNT}{self.slug}/"

    def clean(self) -> None:
        """Bring every text to its one canonical form, or say what is wrong with it."""
        problems: dict[str, ValidationError] = {}

        def settle(field: str, canonical: Callable[[str], str]) -> None:
            try:
                setattr(self, field, canonical(getattr(self, field) or ""))
            except ValueError as problem:
                problems[field] = ValidationError(str(problem), code="invalid")

        settle("base_url", lambda text: urls.parse_base_url(text).text if text else "")
        settle("allowed_methods", canonical_methods)
        settle("allowed_networks", canonical_networks)
        settle("ca_bundle", canonical_ca_bundle)
        settle("outbound_proxy", canonical_proxy)
        settle("cors_allowed_origins", cors.canonical_origins)
        settle("cors_allowed_methods", canonical_methods)
        settle("cors_allowed_headers", cors.canonical_names)
        settle("cors_exposed_headers", cors.canonical_names)
        settle("balancing_header", canonical_header)
        settle("check_path", health.canonical_path)
        settle("check_statuses", health.canonical_statuses)
        if self.balancing == Balancing.HEADER and not self.balancing_header and "balancing_header" not in problems:
            problems["balancing_header"] = ValidationError("Name the header to balance by.", code="required")
        if self.check_body and self.check_method == CheckMethod.HEAD:
            problems["check_body"] = ValidationError(
                "Answers to HEAD have no body: check with GET, or leave the text out.", code="invalid"
            )
        if self.cors_allow_credentials and cors.ANY in (self.cors_allowed_origins, self.cors_exposed_headers):
            problems["cors_allow_credentials"] = ValidationError(
                "Browsers take no “*” together with credentials: name the origins and exposed headers, or switch "
                "credentials off.",
                code="invalid",
            )
        if problems:
            raise ValidationError(problems)

    def warnings(self) -> list[str]:
        """What is allowed to be saved and will not work: each a sentence that says what to do."""
        base = urls.parse_base_url(self.base_url)
        targets = list(self.targets.all()) if self.pk else []
        used = [target for target in targets if target.enabled]
        places = [urls.parse_address(target.address) for target in used]
        hosts = [place.host for place in places] if targets else [base.host]
        if self.outbound_proxy:
            hosts.append(urls.parse_proxy_url(self.outbound_proxy).host)
        found = self._refused_addresses(hosts)
        if targets and not used:
            found.append(
                "All of its targets are switched off: callers get 503. Switch one on, or remove them all to go to the "
                "base URL."
            )
        elif used and all(target.backup for target in used):
            found.append("Only backups are switched on: they take all requests until another target is switched on.")
        seen: dict[str, str] = {}
        for target, place in zip(used, places, strict=True):
            first = seen.setdefault(urls.join_address(place.host, place.port or base.port), target.address)
            if first != target.address:
                found.append(
                    f"The targets {first} and {target.address} are the same place: only the first counts. Remove one."
                )
        if self.check_path and (len(seen) == 1 or not targets):
            found.append(
                "Its health checks only inform: there is nowhere else to go, so the one place it leads to is never "
                "taken out of use."
            )
        if self.report_only and self.access == Access.KEY:
            found.append(
                "Report only is on: everybody may call, with or without a key. Switch it off to have keys count."
            )
        if base.scheme == "https" and not self.verify_tls:
            found.append("TLS verification is off: whoever sits on the way can read and change all traffic.")
        connections = self.max_connections * max(1, len(seen))
        if connections < self.max_concurrent:
            found.append(
                f"Only {connections} of {self.max_concurrent} concurrent exchanges can have a connection; "
                "the others wait for the connect time-out."
            )
        unconfirmed = [
            credential for credential in (self.credentials.all() if self.pk else ()) if not credential.is_confirmed
        ]
        found += [
            f"Its credential ({credential}) was confirmed for another place than it leads to now. Requests are refused "
            "until somebody who may set credentials confirms it."
            for credential in unconfirmed
        ]
        return found

    def _refused_addresses(self, hosts: Iterable[str]) -> list[str]:
        """A sentence for each kind of address among these hosts that the guard will not let through."""
        networks = addresses.parse_networks(self.allowed_networks)
        refused: dict[str, list[str]] = {}
        for host in dict.fromkeys(hosts):
            try:
                judgement = addresses.judge(ip_address(host), allowed_networks=networks)
            except ValueError:
                continue
            if not judgement.allowed:
                refused.setdefault(str(judgement.verdict), []).append(host)
        return [
            f"{alike[0]} is not a public address ({verdict}). Requests will be refused until an allowed network of "
            "this upstream contains it."
            if len(alike) == 1
            else f"{', '.join(alike)} are not public addresses ({verdict}). Requests to them will be refused until "
            "allowed networks of this upstream contain them."
            for verdict, alike in refused.items()
        ]


class Side(models.TextChoices):
    REQUEST = "request", "Request to the upstream"
    RESPONSE = "response", "Response to the caller"


class Action(models.TextChoices):
    SET = "set", "Set: replace what is there"
    ADD = "add", "Add: keep what is there"
    REMOVE = "remove", "Remove"


class HeaderRule(Recorded):
    """A fixed change to the header fields of an upstream's exchanges. Values may be secrets: never print them."""

    subject_lookups: ClassVar[tuple[str, ...]] = ("upstream__slug",)
    secret_fields: ClassVar[frozenset[str]] = frozenset({"value"})

    upstream = models.ForeignKey(Upstream, on_delete=models.CASCADE, related_name="header_rules")
    side = models.CharField(max_length=10, choices=Side, default=Side.REQUEST)
    action = models.CharField(max_length=10, choices=Action, default=Action.SET)
    name = models.CharField(max_length=200, help_text="Such as User-Agent or Authorization.")
    value = models.TextField(
        blank=True,
        max_length=8000,
        validators=[MaxLengthValidator(8000)],
        help_text="Sent as it is. Kept from people who may only view.",
    )

    objects = RecordingQuerySet["HeaderRule"].as_manager()

    class Meta:
        ordering = ("upstream", "id")
        base_manager_name = "objects"
        constraints = (
            models.CheckConstraint(condition=Q(side__in=Side.values), name="relay_header_rule_side"),
            models.CheckConstraint(condition=Q(action__in=Action.values), name="relay_header_rule_action"),
            models.CheckConstraint(
                condition=Q(name__regex=r"^[!#$%&'*+.^_`|~0-9a-z-]+\Z") & ~Q(name__in=sorted(headers.FIXED_NAMES)),
                name="relay_header_rule_name",
            ),
            models.CheckConstraint(
                condition=~Q(value__contains="\r") & ~Q(value__contains="\n"), name="relay_header_rule_value"
            ),
            models.CheckConstraint(
                condition=~Q(action=Action.REMOVE) | Q(value=""), name="relay_header_rule_remove_has_no_value"
            ),
        )

    def __str__(self) -> str:
        return f"{self.action} {self.name} on the {self.side}"

    def subjects(self, *, using: str) -> Iterable[Subject]:
        return (self.upstream.slug,)

    def clean(self) -> None:
        problems: dict[str, ValidationError] = {}
        self.name = self.name.strip().lower()
        self.value = self.value.strip(" \t")
        try:
            headers.check_rule_name(self.name)
        except ValueError as problem:
            problems["name"] = ValidationError(str(problem), code="invalid")
        try:
            headers.check_rule_value(self.value)
        except ValueError as problem:
            problems["value"] = ValidationError(str(problem), code="invalid")
        if self.action == Action.REMOVE and self.value:
            problems["value"] = ValidationError("Leave the value empty: the header field is removed.", code="invalid")
        if problems:
            raise ValidationError(problems)


record_writes_of(Upstream, HeaderRule)


def canonical_methods(text: str) -> str:
    """`get post` -> `GET, POST`, in the order given, each once."""
    methods = list(dict.fromkeys(text.upper().replace(",", " ").split()))
    for method in methods:
        if method in FORBIDDEN_METHODS:
            raise ValueError(f"{method} is never relayed: leave it out.")
        if not METHOD_PATTERN.fullmatch(method):
            raise ValueError(f"“{method}” is not a method name. Write names such as GET, POST or PURGE.")
    return ", ".join(methods)


def canonical_header(text: str) -> str:
    text = text.strip().lower()
    if text:
        headers.check_name(text)
    return text


def canonical_networks(text: str) -> str:
    return "\n".join(str(network) for network in addresses.parse_networks(text))


def canonical_ca_bundle(text: str) -> str:
    text = text.strip()
    if not text:
        return ""
    advice = "Paste whole PEM certificates, from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----."
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise ValueError(f"There is no certificate in this. {advice}")
    if "PRIVATE KEY-----" in text:
        raise ValueError("There is a private key in this. Paste certificates alone, and replace that key.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError, TypeError) as problem:
        raise ValueError(f"These certificates cannot be read. {advice}") from problem
    return text + "\n"


def canonical_proxy(text: str) -> str:
    text = text.strip()
    if text:
        urls.parse_proxy_url(text)
    return text
