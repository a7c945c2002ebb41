"""The frozen picture of everything admins saved that requests are decided from.

`relay.catalog.loader` builds it from the database, `relay.catalog.watcher` swaps it when an edit commits, and the
request path only reads it: one shard lookup, no locks, no I/O. An exchange keeps the `Upstream` it began with to its
end.

A snapshot is never changed in place. It is cut into shards, so that an edit copies one shard of many and costs the same
whether ten upstreams are registered or a hundred thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from zlib import crc32

from relay.catalog.roster import ApiKey, Consumer, Roster, Signer
from relay.rules.balancing import Balancing, Ring
from relay.rules.breaker import BreakerPolicy
from relay.rules.cors import CorsPolicy
from relay.rules.credentials import Credential
from relay.rules.health import Check
from relay.rules.urls import join_address

SHARDS = 1024
_USUAL_BREAKER = BreakerPolicy()


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """One side's header rules, worked out when they were saved. Names are lower-case; values may be secrets."""

    removed: frozenset[bytes] = frozenset()
    """Names to drop: those of `remove` and of `set` rules."""
    appended: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    """Pairs to put at the end, in the rules' order."""

    def __bool__(self) -> bool:
        return bool(self.removed or self.appended)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One address of an upstream."""

    host: str
    """A-label or IP literal, lower-case, without brackets."""
    port: int
    weight: int = 1
    is_backup: bool = False

    authority: bytes
    """Host header value, for upstreams that send the target's own."""
    name: str = ""
    """`host:port`, as logs and metrics know it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", join_address(self.host, self.port))


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One enabled upstream as requests see it. Times in seconds, sizes in bytes; None means no limit."""

    slug: str
    id: int = 0
    """The row's; grants name it, so that they outlive a change of the slug."""
    revision: int
    """When it was last changed; two pictures of a slug with the same revision are the same, but for a
    credential that was read from a file."""

    scheme: str
    host: str
    """A-label or IP literal, lower-case, without brackets."""
    port: int
    authority: bytes
    """Host header value: the default port is left out."""
    base_path: bytes
    """As registered: empty, or beginning with `/`; what callers append follows it less one trailing `/`."""

    listed_targets: tuple[Target, ...] | None = None
    """Those switched on, in their order. None: there are none, and the above is where requests go."""
    balancing: str = Balancing.LEAST
    balancing_header: bytes = b""
    """Lower-case."""
    max_retries: int = 1
    retry_share: float = 0.2
    breaker: BreakerPolicy = _USUAL_BREAKER
    check: Check | None = None

    open_to_anyone: bool = False
    methods: frozenset[str] = frozenset()
    """Empty: all but TRACE and CONNECT."""
    report_only: bool = False
    """What access and methods would refuse passes, and is counted."""

    connect_timeout_seconds: float = 5.0
    head_timeout_seconds: float = 60.0
    idle_timeout_seconds: float = 300.0
    min_upload_bytes_per_second: int = 240
    """0: callers may send their bodies as slowly as they like."""
    total_timeout_seconds: float | None = None
    max_request_bytes: int | None = None
    max_response_bytes: int | None = None
    max_concurrent: int = 1024
    max_queued: int = 1024
    queue_timeout_seconds: float = 5.0
    max_connections: int = 1024
    keepalive_seconds: float = 20.0
    max_buffered_bytes: int | None = None
    """Set for buffered delivery, None for streaming."""
    caller_host: bool = False
    """Send the caller's Host instead of the upstream's own."""
    target_host: bool = False
    """Send the target's Host, and ask for it in TLS. Never with `caller_host`."""

    relays_cookies: bool = True
    """Cookies pass both ways; else callers' cookies stay below and the upstream's do not reach them."""
    keeps_jar: bool = False
    """The relay keeps the upstream's cookies itself, in one jar for all callers. Never with `relays_cookies`."""
    cors: CorsPolicy | None = None

    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    verify_tls: bool = True
    ca_bundle: str = field(default="", repr=False)
    outbound_proxy: str = field(default="", repr=False)
    credential: Credential | None = field(default=None, repr=False)

    request_changes: HeaderChanges = HeaderChanges()
    response_changes: HeaderChanges = HeaderChanges()

    # Worked out from the above, so that no request has to.
    mount: bytes = b""
    """`/relay/<slug>`"""
    cookie_prefix: bytes = b""
    """`relay.<slug>.`"""
    base_prefix: bytes = b""
    """`base_path` without its trailing slash."""
    bare_target: bytes = b"/"
    """What `/relay/<slug>` itself asks for: the base path as registered, or `/`."""
    targets: tuple[Target, ...] = ()
    """Where requests go."""
    sole_target: Target | None = None
    """The one there is to go to, if there is just one."""
    ring: Ring | None = field(default=None, repr=False, compare=False)
    """Of the targets, for balancing that goes by a key."""

    def __post_init__(self) -> None:
        slug = self.slug.encode()
        object.__setattr__(self, "mount", b"/relay/" + slug)
        object.__setattr__(self, "cookie_prefix", b"relay." + slug + b".")
        object.__setattr__(self, "base_prefix", self.base_path.rstrip(b"/"))
        object.__setattr__(self, "bare_target", self.base_path or b"/")
        targets = self.listed_targets
        if targets is None:
            targets = (Target(host=self.host, port=self.port, authority=self.authority),)
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "sole_target", targets[0] if len(targets) == 1 else None)
        if len(targets) > 1 and self.balancing in (Balancing.HEADER, Balancing.CONSUMER):
            ring = Ring([target.name.encode() for target in targets], [target.weight for target in targets])
            object.__setattr__(self, "ring", ring)


_Shards = tuple[dict[bytes, Upstream], ...]
_NOBODY = Roster()


class Snapshot:
    """All enabled upstreams and live consumers at one revision. Immutable: `with_changes` gives the next one."""

    __slots__ = ("_checked", "_following_files", "_shards", "revision", "roster")

    def __init__(self, upstreams: Iterable[Upstream] = (), *, roster: Roster = _NOBODY, revision: int = 0) -> None:
        shards: _Shards = tuple({} for _ in range(SHARDS))
        following_files = set()
        checked = set()
        for upstream in upstreams:
            key = upstream.slug.encode()
            shards[crc32(key) % SHARDS][key] = upstream
            if upstream.credential is not None and upstream.credential.files:
                following_files.add(key)
            if upstream.check is not None:
                checked.add(key)
        self._following_files = frozenset(following_files)
        self._checked = frozenset(checked)
        self._shards = shards
        self.roster = roster
        self.revision = revision

    def find(self, slug: bytes) -> Upstream | None:
        """The upstream of this exact URL segment; nothing is decoded or folded."""
        return self._shards[crc32(slug) % SHARDS].get(slug)

    def with_changes(
        self,
        changed: Iterable[Upstream],
        removed: Iterable[str],
        *,
        roster: Roster | None = None,
        revision: int,
    ) -> Snapshot:
        """The next snapshot. Costs as much as what changed, not as what there is. No `roster`: it is as it was."""
        shards = list(self._shards)
        copied: set[int] = set()
        following_files = set(self._following_files)
        checked = set(self._checked)

        def shard_of(key: bytes) -> dict[bytes, Upstream]:
            index = crc32(key) % SHARDS
            if index not in copied:
                shards[index] = dict(shards[index])
                copied.add(index)
            return shards[index]

        for slug in removed:
            shard_of(slug.encode()).pop(slug.encode(), None)
            following_files.discard(slug.encode())
            checked.discard(slug.encode())
        for upstream in changed:
            key = upstream.slug.encode()
            shard_of(key)[key] = upstream
            following_files.discard(key)
            if upstream.credential is not None and upstream.credential.files:
                following_files.add(key)
            checked.discard(key)
            if upstream.check is not None:
                checked.add(key)
        following = object.__new__(Snapshot)
        following._shards = tuple(shards)
        following._following_files = frozenset(following_files)
        following._checked = frozenset(checked)
        following.roster = self.roster if roster is None else roster
        following.revision = revision
        return following

    def following_files(self) -> Iterator[Upstream]:
        """The upstreams whose credentials were read from files."""
        for key in self._following_files:
            yield self._shards[crc32(key) % SHARDS][key]

    @property
    def has_checks(self) -> bool:
        """Whether targets of any upstream are to be checked."""
        return bool(self._checked)

    def checked(self) -> Iterator[Upstream]:
        """The upstreams whose targets are to be checked."""
        for key in self._checked:
            yield self._shards[crc32(key) % SHARDS][key]

    def not_shared_with(self, following: Snapshot) -> list[Upstream | Consumer | ApiKey | Signer]:
        """What is in shards that `following` replaced, changed or not."""
        found: list[Upstream | Consumer | ApiKey | Signer] = []
        for mine, its in zip(self._shards, following._shards, strict=True):
            if mine is not its:
                found += mine.values()
        return found + self.roster.not_shared_with(following.roster)

    def __iter__(self) -> Iterator[Upstream]:
        for shard in self._shards:
            yield from shard.values()

    def __len__(self) -> int:
        return sum(map(len, self._shards))


def free_in_slices(retired: list[Snapshot], following: Snapshot) -> None:
    """Take the one snapshot in `retired` apart, for a thread beside the event loop.

    The last reference to a hundred thousand upstreams frees them in one go, and holds everyone up for a tenth of a
    second. Here they go one by one, and other threads run in between. The list hands over the caller's reference.
    """
    waiting = retired.pop().not_shared_with(following)
    while waiting:
        waiting.pop()
