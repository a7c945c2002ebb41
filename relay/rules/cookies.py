"""Keeps cookies of different upstreams, and Django's own, apart although callers see one origin for all of them.

Law: a cookie that an upstream did not set never goes to it, and an upstream never sets a cookie that another upstream,
or Django, reads. An upstream `a`'s cookie `foo` is therefore given to callers as `relay.a.foo`, without Domain and with
its Path under `/relay/a`, and only cookies so named go up to `a`, renamed back. This holds only while slugs hold no
dot. At a host name of its own an upstream has its cookies to itself: prefix and mount are empty there, and names stay.
Everything else of a cookie passes byte for byte (RFC 6265), but for Priority beside the admin.
"""

from __future__ import annotations

from collections.abc import Sequence

_BLANKS = b" \t"  # WSP, all that RFC 6265 section 5.2 strips


def outgoing_cookie(values: Sequence[bytes], *, prefix: bytes) -> bytes | None:
    """The one Cookie value for the upstream that owns `prefix` (b"relay.a.", or b""); None when no cookie is its own.

    `values` are those of all the caller's Cookie lines.
    """
    pairs = []
    for line in values:
        for pair in line.split(b";"):
            name, equals, value = pair.partition(b"=")
            name = name.strip(_BLANKS)
            if equals and name.startswith(prefix) and name != prefix:
                pairs.append(name[len(prefix) :] + equals + value)
    return b"; ".join(pairs) or None


def relayed_set_cookie(
    value: bytes,
    *,
    prefix: bytes,
    mount: bytes,
    base_path: bytes,
    host: bytes,
    at_root: bool = False,
    beside_admin: bool = False,
) -> bytes | None:
    """One Set-Cookie value as the caller gets it; None for a cookie that browsers would refuse or never send back.

    `mount` is b"/relay/a", or empty; `base_path` has no trailing slash and may be empty; `host` is lower case, an IPv6
    literal without brackets. `at_root` says that the request was for `mount` itself: the browser's default path would
    then be the parent of all mounts (RFC 6265 section 5.1.4). `beside_admin` says that the admin has the same origin:
    browsers that have too many cookies of a site throw them out by Priority, and those of the admin have to stay.
    """
    pair, *attributes = value.split(b";")
    name, equals, content = pair.partition(b"=")
    name = name.strip(_BLANKS)
    if not equals or not name:
        return None
    kept = [prefix + name + equals + content]
    domain = b""
    path: bytes | None = None
    path_at = 0
    for attribute in attributes:
        key, _, setting = attribute.partition(b"=")
        match key.strip(_BLANKS).lower():
            case b"domain":
                # An empty one is as good as none (section 5.2.3), also after one that names a domain.
                domain = setting.strip(_BLANKS).removeprefix(b".").lower() or domain
            case b"path":
                # The last one wins (section 5.3 step 7), also when it is not absolute: that is no Path (section 5.2.4).
                path, path_at = _absolute(setting.strip(_BLANKS)), len(kept)
            case b"priority" if beside_admin:
                pass
            case _:
                kept.append(attribute)
    if domain and not domain_matches(host, domain):
        return None
    if path is not None:
        mapped = _mapped_path(path, mount=mount, base_path=base_path)
        if not mapped:
            return None
        kept.insert(path_at, b" Path=" + mapped)
    elif at_root:
        kept.append(b" Path=" + mount)
    return b";".join(kept)


def _absolute(path: bytes) -> bytes | None:
    return path if path.startswith(b"/") else None


def domain_matches(host: bytes, domain: bytes) -> bool:
    """RFC 6265 section 5.1.3. Host names never end in a number (see `urls`), so one that does is an IPv4 literal."""
    if b":" in host or host.rpartition(b".")[2].isdigit():
        return domain.strip(b"[]") == host
    return domain == host or host.endswith(b"." + domain)


def _mapped_path(path: bytes, *, mount: bytes, base_path: bytes) -> bytes:
    """The relay's path for an upstream's cookie path; empty when no request through the relay can match that.

    Bytes are compared as browsers compare them (section 5.1.4): a dot segment matches no request, so it need not be
    resolved.
    """
    if path != b"/" and path.startswith(base_path + b"/"):
        return mount + path[len(base_path) :]
    if (base_path + b"/").startswith(path.removesuffix(b"/") + b"/"):
        return mount or b"/"
    return b""
