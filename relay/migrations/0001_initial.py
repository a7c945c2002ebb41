"""The first tables, and the one row of `Revision`."""

from __future__ import annotations

import django.core.validators
import django.db.models.deletion
import relay.models
from django.conf import settings
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps


def make_revision(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    apps.get_model("relay", "Revision").objects.using(schema_editor.connection.alias).get_or_create(pk=1)


class Migration(migrations.Migration):
    initial = True

    dependencies = [
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
                        help_text="Who may call it. Until keys are issued, “callers with a key” lets nobody through.",
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
                    "connect_timeout_seconds",
                    models.FloatField(
                        default=5.0,
                        help_text="For DNS, TCP and TLS together, and for a free pooled connection.",
                        validators=[
                            django.core.validators.MinValueValidator(0.05),
                            django.core.validators.MaxValueValidator(604800),
                            relay.models.refuse_nan,
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
                            relay.models.refuse_nan,
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
                            relay.models.refuse_nan,
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
                            relay.models.refuse_nan,
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
                        help_text="Exchanges at the same time, per worker. Over it callers get 503 and are told when to retry.",
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(65535),
                        ],
                    ),
                ),
                (
                    "max_connections",
                    models.PositiveIntegerField(
                        default=1024,
                        help_text="Connections to the upstream, per worker. Exchanges over it wait for a free one.",
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
                            relay.models.refuse_nan,
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
                        ],
                        default="upstream",
                        help_text="What the upstream sees in Host. Most want their own name.",
                        max_length=10,
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
                "base_manager_name": "objects",
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
            },
        ),
        migrations.AddConstraint(
            model_name="upstream",
            constraint=models.CheckConstraint(
                condition=models.Q(("slug__regex", "^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?\\Z")),
                name="relay_upstream_slug",
            ),
        ),
        migrations.AddConstraint(
            model_name="upstream",
            constraint=models.CheckConstraint(
                condition=models.Q(("base_url__regex", "^https?://[^/?#@]+(/[^?#]*)?\\Z")),
                name="relay_upstream_base_url",
            ),
        ),
        migrations.AddConstraint(
            model_name="upstream",
            constraint=models.CheckConstraint(
                condition=models.Q(("access__in", ["anyone", "key"])), name="relay_upstream_access"
            ),
        ),
        migrations.AddConstraint(
            model_name="upstream",
            constraint=models.CheckConstraint(
                condition=models.Q(("delivery__in", ["stream", "buffered"])), name="relay_upstream_delivery"
            ),
        ),
        migrations.AddConstraint(
            model_name="upstream",
            constraint=models.CheckConstraint(
                condition=models.Q(("host_header__in", ["upstream", "caller"])), name="relay_upstream_host_header"
            ),
        ),
        migrations.AddConstraint(
            model_name="upstream",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("connect_timeout_seconds__gte", 0.05),
                    ("connect_timeout_seconds__lte", 604800),
                    ("head_timeout_seconds__gte", 0.05),
                    ("head_timeout_seconds__lte", 604800),
                    ("idle_timeout_seconds__gte", 0.05),
                    ("idle_timeout_seconds__lte", 604800),
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
        ),
        migrations.AddConstraint(
            model_name="upstream",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("max_concurrent__gte", 1),
                    ("max_concurrent__lte", 65535),
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
        ),
        migrations.AddConstraint(
            model_name="headerrule",
            constraint=models.CheckConstraint(
                condition=models.Q(("side__in", ["request", "response"])), name="relay_header_rule_side"
            ),
        ),
        migrations.AddConstraint(
            model_name="headerrule",
            constraint=models.CheckConstraint(
                condition=models.Q(("action__in", ["set", "add", "remove"])), name="relay_header_rule_action"
            ),
        ),
        migrations.AddConstraint(
            model_name="headerrule",
            constraint=models.CheckConstraint(
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
        ),
        migrations.AddConstraint(
            model_name="headerrule",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("value__contains", "\r"), _negated=True),
                    models.Q(("value__contains", "\n"), _negated=True),
                ),
                name="relay_header_rule_value",
            ),
        ),
        migrations.AddConstraint(
            model_name="headerrule",
            constraint=models.CheckConstraint(
                condition=models.Q(models.Q(("action", "remove"), _negated=True), ("value", ""), _connector="OR"),
                name="relay_header_rule_remove_has_no_value",
            ),
        ),
        migrations.RunPython(make_revision, migrations.RunPython.noop, elidable=False),
    ]
