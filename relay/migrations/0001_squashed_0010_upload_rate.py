"""All tables of the first version at once, for new databases. One that took some of the ten steps takes the others."""

from __future__ import annotations

import django.core.validators
import django.db.models.deletion
import django.utils.timezone
import relay.models.upstreams
import uuid
from django.conf import settings
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps


def make_revision(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    apps.get_model("relay", "Revision").objects.using(schema_editor.connection.alias).get_or_create(pk=1)


class Migration(migrations.Migration):
    initial = True

    replaces = [
        ("relay", "0001_initial"),
        ("relay", "0002_consumers"),
        ("relay", "0003_credentials"),
        ("relay", "0004_usage"),
        ("relay", "0005_audit"),
        ("relay", "0006_signing"),
        ("relay", "0007_isolation"),
        ("relay", "0008_queue"),
        ("relay", "0009_targets"),
        ("relay", "0010_upload_rate"),
    ]

    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Change",
            fields=[
                ("slug", models.CharField(max_length=63, primary_key=True, serialize=False)),
                ("revision", models.PositiveBigIntegerField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="ConsumerChange",
            fields=[
                ("consumer_id", models.UUIDField(primary_key=True, serialize=False)),
                ("revision", models.PositiveBigIntegerField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="JarChange",
            fields=[
                ("slug", models.CharField(max_length=63, primary_key=True, serialize=False)),
                ("revision", models.PositiveBigIntegerField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="Consumer",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "name",
                    models.CharField(
                        help_text="What logs and lists call it, such as billing-batch or mobile app.",
                        max_length=100,
                        unique=True,
                        validators=[
                            django.core.validators.RegexValidator(
                                "^[^\\W_]([\\w .@+-]{0,98}[^\\W_])?\\Z",
                                "Use letters, digits, spaces and . _ @ + - and begin and end with a letter or digit.",
                            )
                        ],
                    ),
                ),
                (
                    "enabled",
                    models.BooleanField(
                        default=True,
                        help_text="Switched off, none of its keys lets anybody through; running exchanges are cut.",
                    ),
                ),
                (
                    "notes",
                    models.TextField(blank=True, help_text="For whoever runs the relay next: what it is, whom to ask."),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("changed_at", models.DateTimeField(auto_now=True, verbose_name="last change")),
                (
                    "changed_by",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "created_by",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "owner",
                    models.ForeignKey(
                        blank=True,
                        help_text="The person it belongs to. It then has the grants of this person's groups as well, and may call for as long as this person is active.",
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="relay_consumers",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "ordering": ("name",),
                "base_manager_name": "objects",
            },
        ),
        migrations.CreateModel(
            name="ApiKey",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("prefix", models.CharField(editable=False, max_length=20, unique=True)),
                ("digest", models.CharField(editable=False, max_length=64, unique=True)),
                ("hash_key_id", models.CharField(editable=False, max_length=8)),
                (
                    "label",
                    models.CharField(
                        blank=True, help_text="What it is for, such as “laptop” or “production”.", max_length=100
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "expires_at",
                    models.DateTimeField(
                        blank=True, help_text="From then on it opens nothing. Empty: never.", null=True
                    ),
                ),
                ("last_used_at", models.DateTimeField(blank=True, editable=False, null=True)),
                ("revoked_at", models.DateTimeField(blank=True, editable=False, null=True)),
                (
                    "created_by",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "rotated_to",
                    models.OneToOneField(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="rotated_from",
                        to="relay.apikey",
                    ),
                ),
                (
                    "consumer",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="keys", to="relay.consumer"
                    ),
                ),
            ],
            options={
                "verbose_name": "key",
                "ordering": ("-created_at", "-id"),
                "permissions": (("issue_apikey", "Can see and issue keys"),),
                "base_manager_name": "objects",
            },
        ),
        migrations.CreateModel(
            name="Revision",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("value", models.PositiveBigIntegerField(default=0)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(condition=models.Q(("id", 1)), name="relay_revision_single_row")
                ],
            },
        ),
        migrations.CreateModel(
            name="SigningKey",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("public_id", models.CharField(editable=False, max_length=20, unique=True, verbose_name="id")),
                (
                    "label",
                    models.CharField(
                        blank=True,
                        help_text="What it signs for, such as newsletter. Code may name the key by it: of several with one label the newest signs, so a key is replaced by making another and revoking the old one later.",
                        max_length=100,
                    ),
                ),
                ("secret_sealed", models.BinaryField()),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("revoked_at", models.DateTimeField(blank=True, editable=False, null=True)),
                (
                    "consumer",
                    models.ForeignKey(
                        help_text="What its grants allow is what the URLs can do.",
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="signing_keys",
                        to="relay.consumer",
                    ),
                ),
                (
                    "created_by",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "ordering": ("-created_at", "-id"),
                "base_manager_name": "objects",
            },
        ),
        migrations.CreateModel(
            name="Upstream",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "slug",
                    models.CharField(
                        help_text="The name in the relay URL: /relay/your-slug/… Callers have to change their URLs when you change it.",
                        max_length=63,
                        unique=True,
                        validators=[
                            django.core.validators.RegexValidator(
                                "^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?\\Z",
                                "Use lower-case letters, digits, hyphens and underscores, and begin and end with a letter or digit.",
                            )
                        ],
                    ),
                ),
                (
                    "name",
                    models.CharField(
                        blank=True, help_text="What people call it. Left empty, the slug is shown.", max_length=200
                    ),
                ),
                (
                    "description",
                    models.TextField(blank=True, help_text="For whoever runs the relay next: what it is, who owns it."),
                ),
                (
                    "base_url",
                    models.CharField(
                        help_text="Where requests go, such as https://api.example.com/v1. What follows the slug is appended to its path.",
                        max_length=2000,
                        verbose_name="base URL",
                    ),
                ),
                (
                    "enabled",
                    models.BooleanField(
                        default=True,
                        help_text="Switched off, callers get 404 as if it did not exist; running exchanges finish.",
                    ),
                ),
                (
                    "access",
                    models.CharField(
                        choices=[("anyone", "Anyone who can reach the relay"), ("key", "Callers with a key")],
                        default="key",
                        help_text="Who may call it. Callers with a key need a grant of this upstream as well.",
                        max_length=10,
                    ),
                ),
                (
                    "allowed_methods",
                    models.CharField(
                        blank=True,
                        help_text="Such as GET, POST. Empty: all methods but TRACE and CONNECT, which are never relayed.",
                        max_length=500,
                    ),
                ),
                (
                    "report_only",
                    models.BooleanField(
                        default=False,
                        help_text="Let through what access, grants and allowed methods would refuse, and count it: it tells whom a change would hit before it does.",
                    ),
                ),
                (
                    "connect_timeout_seconds",
                    models.FloatField(
                        default=5.0,
                        help_text="For DNS, TCP and TLS together, and for a free pooled connection.",
                        validators=[
                            django.core.validators.MinValueValidator(0.05),
                            django.core.validators.MaxValueValidator(604800),
                            relay.models.upstreams.refuse_nan,
                        ],
                    ),
                ),
                (
                    "head_timeout_seconds",
                    models.FloatField(
                        default=60.0,
                        help_text="From the request sent until the answer's status line and headers.",
                        validators=[
                            django.core.validators.MinValueValidator(0.05),
                            django.core.validators.MaxValueValidator(604800),
                            relay.models.upstreams.refuse_nan,
                        ],
                    ),
                ),
                (
                    "idle_timeout_seconds",
                    models.FloatField(
                        default=300.0,
                        help_text="Longest silence between two pieces of a body, either way. Set it above an event stream's heartbeat.",
                        validators=[
                            django.core.validators.MinValueValidator(0.05),
                            django.core.validators.MaxValueValidator(604800),
                            relay.models.upstreams.refuse_nan,
                        ],
                    ),
                ),
                (
                    "min_upload_bytes_per_second",
                    models.PositiveIntegerField(
                        default=240,
                        help_text="Callers that send a request body slower, on average and after a grace, get 408. Write 0 for streams that say something now and then, such as a conversation both ways.",
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(1073741824),
                        ],
                    ),
                ),
                (
                    "total_timeout_seconds",
                    models.FloatField(
                        blank=True,
                        help_text="For the exchange from first to last byte. Empty: no limit, so that event streams can live.",
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(0.05),
                            django.core.validators.MaxValueValidator(604800),
                            relay.models.upstreams.refuse_nan,
                        ],
                    ),
                ),
                (
                    "balancing",
                    models.CharField(
                        choices=[
                            (
                                "least",
                                "Least outstanding: of two targets drawn at random, the one with fewer exchanges",
                            ),
                            ("round-robin", "Round robin: one after the other"),
                            ("header", "By a request header: the same value goes to the same target"),
                            ("consumer", "By consumer: each goes to the same target"),
                        ],
                        default="least",
                        help_text="Which of several targets an exchange goes to.",
                        max_length=12,
                    ),
                ),
                (
                    "balancing_header",
                    models.CharField(
                        blank=True,
                        help_text="Such as X-Session-Id. Requests without it go by least outstanding.",
                        max_length=200,
                    ),
                ),
                (
                    "max_retries",
                    models.PositiveIntegerField(
                        default=1,
                        help_text="How often a request that failed may be sent again, to another target if there is one. Only where it cannot have been acted on, or may be repeated. 0: never.",
                        validators=[django.core.validators.MaxValueValidator(5)],
                    ),
                ),
                (
                    "retry_percent",
                    models.PositiveIntegerField(
                        default=20,
                        help_text="Share of all requests that may be retries. Over it, failures reach the callers.",
                        validators=[django.core.validators.MaxValueValidator(100)],
                    ),
                ),
                (
                    "breaker_failures",
                    models.PositiveIntegerField(
                        default=5,
                        help_text="So many failures in a row take a target out of use. 0: no number does.",
                        validators=[django.core.validators.MaxValueValidator(1000)],
                    ),
                ),
                (
                    "breaker_percent",
                    models.PositiveIntegerField(
                        default=50,
                        help_text="So many failures of a hundred exchanges take a target out of use. 0: no share does.",
                        validators=[django.core.validators.MaxValueValidator(100)],
                    ),
                ),
                (
                    "breaker_seconds",
                    models.FloatField(
                        default=5.0,
                        help_text="How long it is left alone before an exchange tries it again; longer each time that fails.",
                        validators=[
                            django.core.validators.MinValueValidator(0.05),
                            django.core.validators.MaxValueValidator(604800),
                            relay.models.upstreams.refuse_nan,
                        ],
                    ),
                ),
                (
                    "check_path",
                    models.CharField(
                        blank=True,
                        help_text="What to ask each target for, such as /healthz; it follows the base URL. Empty: no checks.",
                        max_length=2000,
                    ),
                ),
                (
                    "check_method",
                    models.CharField(
                        choices=[("GET", "GET"), ("HEAD", "HEAD"), ("OPTIONS", "OPTIONS")],
                        default="GET",
                        help_text="What checks are asked with. To HEAD there is no body to look for a text in.",
                        max_length=7,
                    ),
                ),
                (
                    "check_statuses",
                    models.CharField(
                        default="200-399",
                        help_text="Which statuses are healthy, such as 200, 204, 300-399.",
                        max_length=200,
                    ),
                ),
                (
                    "check_body",
                    models.CharField(
                        blank=True,
                        help_text="Text that has to be in the first 64 KiB of the answer. Empty: any answer will do.",
                        max_length=500,
                    ),
                ),
                (
                    "check_interval_seconds",
                    models.FloatField(
                        default=10.0,
                        help_text="Between two checks of a target; drawn anew within a tenth.",
                        validators=[
                            django.core.validators.MinValueValidator(0.05),
                            django.core.validators.MaxValueValidator(604800),
                            relay.models.upstreams.refuse_nan,
                        ],
                    ),
                ),
                (
                    "check_timeout_seconds",
                    models.FloatField(
                        default=5.0,
                        help_text="How long a check may take, connection included.",
                        validators=[
                            django.core.validators.MinValueValidator(0.05),
                            django.core.validators.MaxValueValidator(604800),
                            relay.models.upstreams.refuse_nan,
                        ],
                    ),
                ),
                (
                    "check_failures",
                    models.PositiveIntegerField(
                        default=3,
                        help_text="So many failed checks in a row take a target out of use.",
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(1000),
                        ],
                    ),
                ),
                (
                    "check_successes",
                    models.PositiveIntegerField(
                        default=2,
                        help_text="So many good checks in a row bring it back.",
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(1000),
                        ],
                    ),
                ),
                (
                    "max_request_bytes",
                    models.BigIntegerField(
                        blank=True,
                        help_text="Larger request bodies get 413. Empty: no limit.",
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(1125899906842624),
                        ],
                    ),
                ),
                (
                    "max_response_bytes",
                    models.BigIntegerField(
                        blank=True,
                        help_text="Longer answers are cut off. Empty: no limit.",
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(1125899906842624),
                        ],
                    ),
                ),
                (
                    "max_concurrent",
                    models.PositiveIntegerField(
                        default=1024,
                        help_text="Exchanges at the same time, per worker. Further ones wait for their turn.",
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(65535),
                        ],
                    ),
                ),
                (
                    "max_queued",
                    models.PositiveIntegerField(
                        default=1024,
                        help_text="How many may wait, per worker. Over it callers get 503 at once; 0 lets nobody wait.",
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(65535),
                        ],
                    ),
                ),
                (
                    "queue_timeout_seconds",
                    models.FloatField(
                        default=5.0,
                        help_text="How long they may wait. After it callers get 503 and are told when to retry.",
                        validators=[
                            django.core.validators.MinValueValidator(0.05),
                            django.core.validators.MaxValueValidator(604800),
                            relay.models.upstreams.refuse_nan,
                        ],
                    ),
                ),
                (
                    "max_connections",
                    models.PositiveIntegerField(
                        default=1024,
                        help_text="Connections to each target, per worker. Exchanges over it wait for a free one.",
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(65535),
                        ],
                    ),
                ),
                (
                    "keepalive_seconds",
                    models.FloatField(
                        default=20.0,
                        help_text="How long an unused connection is kept. Set it below the upstream's own; 0 opens a new one each time.",
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(604800),
                            relay.models.upstreams.refuse_nan,
                        ],
                    ),
                ),
                (
                    "delivery",
                    models.CharField(
                        choices=[
                            ("stream", "Stream: pass bytes on as they arrive"),
                            ("buffered", "Buffered: read the whole answer, then send it with its length"),
                        ],
                        default="stream",
                        help_text="Choose buffered only for callers that cannot take a stream.",
                        max_length=10,
                    ),
                ),
                (
                    "max_buffered_bytes",
                    models.BigIntegerField(
                        default=8388608,
                        help_text="Buffered delivery holds the answer in memory. Larger answers get 502.",
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(2147483648),
                        ],
                    ),
                ),
                (
                    "host_header",
                    models.CharField(
                        choices=[
                            ("upstream", "The upstream's own host name"),
                            ("caller", "The host name the caller used"),
                            ("target", "The host name of the target it goes to, in TLS as well"),
                        ],
                        default="upstream",
                        help_text="What the upstream sees in Host. Most want their own name.",
                        max_length=10,
                    ),
                ),
                (
                    "cookie_mode",
                    models.CharField(
                        choices=[
                            ("relay", "Relay: each caller has cookies of its own"),
                            ("drop", "Drop: no cookie passes, either way"),
                            ("jar", "Jar: the relay keeps the cookies, and all callers share one session"),
                        ],
                        default="relay",
                        help_text="Choose the jar only for an upstream that needs a session and gives every caller the same: whoever may call acts in it.",
                        max_length=10,
                    ),
                ),
                (
                    "cors_allowed_origins",
                    models.TextField(
                        blank=True,
                        help_text="Origins whose scripts may call it from a browser, one a line, such as https://app.example.com; “*” for any. Empty: nothing is added, and what the upstream itself says passes.",
                    ),
                ),
                (
                    "cors_allowed_methods",
                    models.CharField(
                        blank=True, help_text="Such as GET, POST. Empty: those this upstream allows.", max_length=500
                    ),
                ),
                (
                    "cors_allowed_headers",
                    models.CharField(
                        blank=True,
                        default="Authorization, Content-Type, Relay-Key",
                        help_text="Header names that scripts may send; “*” for whatever they ask for.",
                        max_length=2000,
                    ),
                ),
                (
                    "cors_exposed_headers",
                    models.CharField(
                        blank=True,
                        help_text="Header names of answers that scripts may read besides the ordinary ones, such as X-Request-Id.",
                        max_length=2000,
                    ),
                ),
                (
                    "cors_allow_credentials",
                    models.BooleanField(
                        default=False,
                        help_text="Scripts may call with the cookies of whoever sits at the browser. Needs origins by name.",
                    ),
                ),
                (
                    "cors_max_age_seconds",
                    models.PositiveIntegerField(
                        blank=True,
                        default=600,
                        help_text="How long browsers may go by one preflight. Empty: as long as they see fit.",
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(86400),
                        ],
                    ),
                ),
                (
                    "allowed_networks",
                    models.TextField(
                        blank=True,
                        help_text="Networks this upstream's addresses may lie in besides the public internet, one CIDR a line, such as 10.20.0.0/16. Empty: public addresses only.",
                    ),
                ),
                (
                    "verify_tls",
                    models.BooleanField(
                        default=True,
                        help_text="Check the upstream's certificate. Switched off, anyone on the way can read and change everything.",
                        verbose_name="verify TLS",
                    ),
                ),
                (
                    "ca_bundle",
                    models.TextField(
                        blank=True,
                        help_text="PEM certificates to trust for this upstream instead of the system's. Empty: the system's.",
                        verbose_name="CA bundle",
                    ),
                ),
                (
                    "outbound_proxy",
                    models.CharField(
                        blank=True,
                        help_text="An HTTP proxy to go through, such as http://user:password@proxy.internal:3128. Its address must be in an allowed network unless public; it resolves names itself, so it has to guard them.",
                        max_length=2000,
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("changed_at", models.DateTimeField(auto_now=True, verbose_name="last change")),
                (
                    "changed_by",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "created_by",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "ordering": ("slug",),
                "permissions": (("point_upstream", "Can change where an upstream points"),),
                "base_manager_name": "objects",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("slug__regex", "^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?\\Z")),
                        name="relay_upstream_slug",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("base_url__regex", "^https?://[^/?#@]+(/[^?#]*)?\\Z")),
                        name="relay_upstream_base_url",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("access__in", ["anyone", "key"])), name="relay_upstream_access"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("delivery__in", ["stream", "buffered"])), name="relay_upstream_delivery"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("host_header__in", ["upstream", "caller", "target"])),
                        name="relay_upstream_host_header",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("cookie_mode__in", ["relay", "drop", "jar"])),
                        name="relay_upstream_cookie_mode",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("balancing__in", ["least", "round-robin", "header", "consumer"]),
                            ("max_retries__gte", 0),
                            ("max_retries__lte", 5),
                            ("retry_percent__gte", 0),
                            ("retry_percent__lte", 100),
                            ("breaker_failures__gte", 0),
                            ("breaker_failures__lte", 1000),
                            ("breaker_percent__gte", 0),
                            ("breaker_percent__lte", 100),
                            ("breaker_seconds__gte", 0.05),
                            ("breaker_seconds__lte", 604800),
                        ),
                        name="relay_upstream_balancing",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("check_method__in", ["GET", "HEAD", "OPTIONS"]),
                            ("check_interval_seconds__gte", 0.05),
                            ("check_interval_seconds__lte", 604800),
                            ("check_timeout_seconds__gte", 0.05),
                            ("check_timeout_seconds__lte", 604800),
                            ("check_failures__gte", 1),
                            ("check_failures__lte", 1000),
                            ("check_successes__gte", 1),
                            ("check_successes__lte", 1000),
                        ),
                        name="relay_upstream_checks",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("cors_allow_credentials", True), ("cors_allowed_origins", "*"), _negated=True),
                            models.Q(
                                ("cors_max_age_seconds__isnull", True),
                                models.Q(("cors_max_age_seconds__gte", 0), ("cors_max_age_seconds__lte", 86400)),
                                _connector="OR",
                            ),
                        ),
                        name="relay_upstream_cors",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("connect_timeout_seconds__gte", 0.05),
                            ("connect_timeout_seconds__lte", 604800),
                            ("head_timeout_seconds__gte", 0.05),
                            ("head_timeout_seconds__lte", 604800),
                            ("idle_timeout_seconds__gte", 0.05),
                            ("idle_timeout_seconds__lte", 604800),
                            ("queue_timeout_seconds__gte", 0.05),
                            ("queue_timeout_seconds__lte", 604800),
                            ("keepalive_seconds__gte", 0),
                            ("keepalive_seconds__lte", 604800),
                            models.Q(
                                ("total_timeout_seconds__isnull", True),
                                models.Q(("total_timeout_seconds__gte", 0.05), ("total_timeout_seconds__lte", 604800)),
                                _connector="OR",
                            ),
                        ),
                        name="relay_upstream_timeouts",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("min_upload_bytes_per_second__gte", 0), ("min_upload_bytes_per_second__lte", 1073741824)
                        ),
                        name="relay_upstream_upload_rate",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("max_concurrent__gte", 1),
                            ("max_concurrent__lte", 65535),
                            ("max_queued__gte", 0),
                            ("max_queued__lte", 65535),
                            ("max_connections__gte", 1),
                            ("max_connections__lte", 65535),
                            ("max_buffered_bytes__gte", 1),
                            ("max_buffered_bytes__lte", 2147483648),
                            models.Q(
                                ("max_request_bytes__isnull", True),
                                models.Q(("max_request_bytes__gte", 0), ("max_request_bytes__lte", 1125899906842624)),
                                _connector="OR",
                            ),
                            models.Q(
                                ("max_response_bytes__isnull", True),
                                models.Q(("max_response_bytes__gte", 0), ("max_response_bytes__lte", 1125899906842624)),
                                _connector="OR",
                            ),
                        ),
                        name="relay_upstream_bounds",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Target",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "address",
                    models.CharField(
                        help_text="Host and port, such as 10.20.0.7:8080. Without a port, the base URL's.",
                        max_length=300,
                    ),
                ),
                (
                    "weight",
                    models.PositiveIntegerField(
                        default=1,
                        help_text="How much it takes beside the others: of weights 1 and 3, the second takes three times as much.",
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(100),
                        ],
                    ),
                ),
                (
                    "enabled",
                    models.BooleanField(
                        default=True, help_text="Switched off, it gets no more exchanges; running ones finish."
                    ),
                ),
                (
                    "backup",
                    models.BooleanField(default=False, help_text="It is used only while none of the others can be."),
                ),
                (
                    "upstream",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="targets", to="relay.upstream"
                    ),
                ),
            ],
            options={
                "ordering": ("upstream", "id"),
                "default_permissions": (),
                "base_manager_name": "objects",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("weight__gte", 1), ("weight__lte", 100)), name="relay_target_weight"
                    ),
                    models.UniqueConstraint(
                        fields=("upstream", "address"),
                        name="relay_target_once",
                        violation_error_message="This upstream has a target with this address already.",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="JarCookie",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("domain", models.CharField(max_length=255)),
                ("path", models.CharField(max_length=512)),
                ("name", models.CharField(max_length=256)),
                ("host_only", models.BooleanField()),
                ("secure", models.BooleanField()),
                ("expires_at", models.DateTimeField(null=True)),
                ("sealed_value", models.BinaryField()),
                (
                    "upstream",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="jar_cookies", to="relay.upstream"
                    ),
                ),
            ],
            options={
                "ordering": ("id",),
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(fields=("upstream", "domain", "path", "name"), name="relay_jar_cookie_once")
                ],
            },
        ),
        migrations.CreateModel(
            name="HeaderRule",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "side",
                    models.CharField(
                        choices=[("request", "Request to the upstream"), ("response", "Response to the caller")],
                        default="request",
                        max_length=10,
                    ),
                ),
                (
                    "action",
                    models.CharField(
                        choices=[
                            ("set", "Set: replace what is there"),
                            ("add", "Add: keep what is there"),
                            ("remove", "Remove"),
                        ],
                        default="set",
                        max_length=10,
                    ),
                ),
                ("name", models.CharField(help_text="Such as User-Agent or Authorization.", max_length=200)),
                (
                    "value",
                    models.TextField(
                        blank=True,
                        help_text="Sent as it is. Kept from people who may only view.",
                        max_length=8000,
                        validators=[django.core.validators.MaxLengthValidator(8000)],
                    ),
                ),
                (
                    "upstream",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="header_rules", to="relay.upstream"
                    ),
                ),
            ],
            options={
                "ordering": ("upstream", "id"),
                "base_manager_name": "objects",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("side__in", ["request", "response"])), name="relay_header_rule_side"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("action__in", ["set", "add", "remove"])), name="relay_header_rule_action"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("name__regex", "^[!#$%&'*+.^_`|~0-9a-z-]+\\Z"),
                            models.Q(
                                (
                                    "name__in",
                                    [
                                        "connection",
                                        "content-length",
                                        "expect",
                                        "host",
                                        "http2-settings",
                                        "keep-alive",
                                        "proxy-authenticate",
                                        "proxy-authentication-info",
                                        "proxy-authorization",
                                        "proxy-connection",
                                        "relay-key",
                                        "te",
                                        "trailer",
                                        "transfer-encoding",
                                        "upgrade",
                                        "via",
                                    ],
                                ),
                                _negated=True,
                            ),
                        ),
                        name="relay_header_rule_name",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("value__contains", "\r"), _negated=True),
                            models.Q(("value__contains", "\n"), _negated=True),
                        ),
                        name="relay_header_rule_value",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("action", "remove"), _negated=True), ("value", ""), _connector="OR"
                        ),
                        name="relay_header_rule_remove_has_no_value",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Grant",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "methods",
                    models.CharField(
                        blank=True, help_text="Such as GET, POST. Empty: all that the upstream allows.", max_length=500
                    ),
                ),
                (
                    "path_prefixes",
                    models.TextField(
                        blank=True,
                        help_text="One a line, as callers write them after the slug: /v1/chat allows that and all below it. Empty: any path.",
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "consumer",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="grants",
                        to="relay.consumer",
                    ),
                ),
                (
                    "group",
                    models.ForeignKey(
                        blank=True,
                        help_text="Everyone's consumers in this group may do it.",
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="relay_grants",
                        to="auth.group",
                    ),
                ),
                (
                    "upstream",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="grants", to="relay.upstream"
                    ),
                ),
            ],
            options={
                "ordering": ("upstream__slug", "id"),
                "base_manager_name": "objects",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("consumer__isnull", False), ("group__isnull", True)),
                            models.Q(("consumer__isnull", True), ("group__isnull", False)),
                            _connector="OR",
                        ),
                        name="relay_grant_one_holder",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Credential",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("bearer", "Bearer token"),
                            ("header", "Header field"),
                            ("basic", "User name and password (basic)"),
                            ("query", "Query parameter"),
                            ("oauth", "OAuth 2 client credentials"),
                            ("aws", "AWS Signature Version 4"),
                            ("certificate", "Client certificate (mTLS)"),
                        ],
                        max_length=12,
                    ),
                ),
                (
                    "name",
                    models.CharField(
                        blank=True, help_text="Such as X-Api-Key, or api_key for a parameter.", max_length=200
                    ),
                ),
                (
                    "identity",
                    models.CharField(blank=True, help_text="Who the upstream knows the relay as.", max_length=500),
                ),
                (
                    "token_url",
                    models.CharField(
                        blank=True,
                        help_text="Such as https://login.example.com/oauth2/token.",
                        max_length=2000,
                        verbose_name="token URL",
                    ),
                ),
                (
                    "auth_style",
                    models.CharField(
                        blank=True,
                        choices=[("basic", "The Authorization header (basic)"), ("body", "The body")],
                        help_text="How client id and secret are shown to the token URL. Servers that follow the standard take basic.",
                        max_length=5,
                    ),
                ),
                (
                    "scope",
                    models.CharField(
                        blank=True, help_text="Separated by blanks. Empty: none is asked for.", max_length=1000
                    ),
                ),
                (
                    "audience",
                    models.CharField(blank=True, help_text="Some servers ask for it. Empty: none.", max_length=1000),
                ),
                (
                    "token_networks",
                    models.TextField(
                        blank=True,
                        help_text="Networks the token URL may be in besides public ones, one CIDR a line. Empty: the upstream's.",
                    ),
                ),
                ("region", models.CharField(blank=True, help_text="Such as eu-central-1.", max_length=64)),
                (
                    "service",
                    models.CharField(blank=True, help_text="Such as s3, execute-api or bedrock.", max_length=64),
                ),
                (
                    "certificates",
                    models.TextField(
                        blank=True,
                        help_text="In PEM: the client's own certificate first, then those that lead to its authority.",
                    ),
                ),
                ("secret_sealed", models.BinaryField(blank=True, default=b"")),
                ("secret_reference", models.CharField(blank=True, editable=False, max_length=1000)),
                ("session_token_sealed", models.BinaryField(blank=True, default=b"")),
                ("session_token_reference", models.CharField(blank=True, editable=False, max_length=1000)),
                ("confirmed_for", models.TextField(editable=False)),
                ("confirmed_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ("set_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                (
                    "confirmed_by",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "set_by",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "upstream",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="credentials", to="relay.upstream"
                    ),
                ),
            ],
            options={
                "ordering": ("upstream", "kind"),
                "permissions": (("set_credential", "Can set, confirm and remove credentials of upstreams"),),
                "default_permissions": (),
                "base_manager_name": "objects",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("kind__in", ["bearer", "header", "basic", "query", "oauth", "aws", "certificate"])
                        ),
                        name="relay_credential_kind",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("kind", "certificate"), _negated=True),
                        fields=("upstream",),
                        name="relay_credential_one_a_request",
                        violation_error_message="This upstream has a credential for its requests already.",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("kind", "certificate")),
                        fields=("upstream",),
                        name="relay_credential_one_a_connection",
                        violation_error_message="This upstream has a client certificate already.",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="WouldRefuse",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("reason", models.CharField(max_length=40)),
                ("day", models.DateField(db_index=True)),
                ("count", models.PositiveBigIntegerField(default=0)),
                (
                    "upstream",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="would_refuse", to="relay.upstream"
                    ),
                ),
            ],
            options={
                "verbose_name": "report-only count",
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(fields=("upstream", "reason", "day"), name="relay_would_refuse_once")
                ],
            },
        ),
        migrations.CreateModel(
            name="AuditEntry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("moment", models.DateTimeField(db_index=True, default=django.utils.timezone.now)),
                ("actor_name", models.CharField(blank=True, max_length=150, verbose_name="who")),
                (
                    "source",
                    models.CharField(
                        choices=[
                            ("admin", "Admin"),
                            ("command", "Command"),
                            ("shell", "Shell or script"),
                            ("server", "Server"),
                        ],
                        max_length=10,
                    ),
                ),
                ("source_name", models.CharField(blank=True, max_length=100, verbose_name="command")),
                ("address", models.CharField(blank=True, max_length=64)),
                ("request_id", models.CharField(blank=True, max_length=128, verbose_name="request id")),
                (
                    "action",
                    models.CharField(
                        choices=[("added", "Added"), ("changed", "Changed"), ("removed", "Removed")], max_length=10
                    ),
                ),
                ("object_type", models.CharField(max_length=100, verbose_name="kind")),
                ("object_id", models.CharField(blank=True, max_length=40, verbose_name="id")),
                ("object_name", models.CharField(max_length=200, verbose_name="object")),
                ("upstream_key", models.BigIntegerField(db_index=True, null=True)),
                ("upstream", models.CharField(blank=True, max_length=63)),
                ("consumer_key", models.UUIDField(db_index=True, null=True)),
                ("consumer", models.CharField(blank=True, max_length=100)),
                ("changes", models.JSONField()),
                (
                    "actor",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "verbose_name": "audit entry",
                "verbose_name_plural": "audit entries",
                "ordering": ("-id",),
                "default_permissions": ("view",),
                "indexes": [models.Index(fields=["object_type", "object_id"], name="relay_audit_object")],
            },
        ),
        migrations.RunPython(make_revision, migrations.RunPython.noop, elidable=False),
    ]
