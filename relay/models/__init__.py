"""What admins save. Requests are never decided from these tables: `relay.catalog` makes snapshots of them."""

from __future__ import annotations

from relay.models.audit import AuditEntry, Deed
from relay.models.consumers import ApiKey, Consumer, Grant
from relay.models.credentials import AuthStyle, Credential, CredentialKind
from relay.models.jars import JarCookie, empty_jar
from relay.models.key_states import KeyState
from relay.models.revisions import (
    Change,
    ConsumerChange,
    JarChange,
    Recorded,
    RecordingQuerySet,
    Revision,
    record_changes,
)
from relay.models.signing import SigningKey
from relay.models.targets import Target
from relay.models.upstreams import (
    Access,
    Action,
    Balancing,
    CookieMode,
    Delivery,
    HeaderRule,
    HostHeader,
    Side,
    Upstream,
    refuse_nan,
)
from relay.models.usage import WouldRefuse

__all__ = [
    "Access",
    "Action",
    "ApiKey",
    "AuditEntry",
    "AuthStyle",
    "Balancing",
    "Change",
    "Consumer",
    "ConsumerChange",
    "CookieMode",
    "Credential",
    "CredentialKind",
    "Deed",
    "Delivery",
    "Grant",
    "HeaderRule",
    "HostHeader",
    "JarChange",
    "JarCookie",
    "KeyState",
    "Recorded",
    "RecordingQuerySet",
    "Revision",
    "Side",
    "SigningKey",
    "Target",
    "Upstream",
    "WouldRefuse",
    "empty_jar",
    "record_changes",
    "refuse_nan",
]
