"""Reads the URLs that admins register, of upstreams and outbound proxies, and refuses what could be read in two ways.

The relay builds its requests from the parts found here, so a text that httpx, the resolver and an admin might each take
for another place (an IPv4 address in disguise, userinfo, dot segments) is refused with a sentence that says what to
write instead. No error repeats the text: it may hold a password. Where a host leads, and whether the relay may go
there, is judged by `addresses` at connect time.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

import idna

DEFAULT_PORTS = {"http": 80, "https": 443}

_PORT = re.compile(r"[0-9]{1,5}")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# What WHATWG URL section 3.5 ("ends in a number") and inet_aton take for a number: such a host is never a name.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@%/]*")  # RFC 3986 section 3.3
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SEGMENT_ENDS = re.compile(rb"[/\\]")


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """Where an upstream is. `host` is a lower-case A-label name or an IP literal without brackets.

    `path` is as registered, percent-encoding and a trailing slash included; b"" when there is none or "/" alone. `text`
    is canonical: parsing it gives an equal BaseUrl.
    """

    scheme: str
    host: str
    port: int
    path: bytes
    text: str

    @property
    def authority(self) -> bytes:
        """The value of the Host header (RFC 9110 section 7.2)."""
        return _authority(self.scheme, self.host, self.port).encode("ascii")

    @property
    def literal(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The address when the host is one rather than a name. Parsed anew at each call."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class ProxyUrl:
    """An outbound proxy. `username` and `password` are percent-decoded and never shown."""

    scheme: str
    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Address:
    """Where one of an upstream's targets is. `host` as in BaseUrl; `text` is canonical."""

    host: str
    port: int | None
    """None: the base URL's."""
    text: str


def parse_address(text: str) -> Address:
    """Raises ValueError with a sentence for the admin."""
    text = text.strip()
    if not text:
        raise ValueError("Give a host, with a port if it is not the base URL's, such as 10.20.0.7:8080.")
    if "/" in text or "?" in text or "#" in text or "@" in text:
        raise ValueError("Write host and port alone, such as 10.20.0.7:8080: all else is the base URL's.")
    if any(_is_blank_or_control(character) for character in text):
        raise ValueError("Take the white space and control characters out of the address.")
    has_port = text.rpartition("]")[2].find(":") >= 0
    host, port = _host_and_port("http", text)
    return Address(host=host, port=port if has_port else None, text=join_address(host, port if has_port else None))


def join_address(host: str, port: int | None) -> str:
    """`host:port`, an IPv6 address in brackets."""
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"


def parse_base_url(text: str) -> BaseUrl:
    """Raises ValueError with a sentence for the admin."""
    scheme, authority, path = _split(text, example="https://api.example.com/v1")
    if "@" in authority:
        raise ValueError("Take the user name and password out of the URL: set a credential instead.")
    host, port = _host_and_port(scheme, authority)
    _require_plain_path(path)
    path = "" if path == "/" else path
    canonical = f"{scheme}://{_authority(scheme, host, port)}{path}"
    return BaseUrl(scheme=scheme, host=host, port=port, path=path.encode("ascii"), text=canonical)


def parse_proxy_url(text: str) -> ProxyUrl:
    """Raises ValueError with a sentence for the admin, never repeating any of `text`."""
    scheme, authority, path = _split(text, example="http://proxy.example.com:3128")
    if path not in ("", "/"):
        raise ValueError("Take the path out of the proxy URL: a proxy has a scheme, a host and a port only.")
    userinfo, at, authority = authority.rpartition("@")
    host, port = _host_and_port(scheme, authority)
    if not at:
        return ProxyUrl(scheme=scheme, host=host, port=port)
    username, colon, password = userinfo.partition(":")
    return ProxyUrl(
        scheme=scheme,
        host=host,
        port=port,
        username=_decoded_credential(username, forbidden=":"),  # RFC 7617 section 2: no colon in a user-id
        password=_decoded_credential(password) if colon else None,
    )


def _split(text: str, *, example: str) -> tuple[str, str, str]:
    """Scheme in lower case, authority, and path with its leading slash or empty."""
    text = text.strip()
    if not text:
        raise ValueError(f"Give a URL, such as {example}.")
    if any(_is_blank_or_control(character) for character in text):
        raise ValueError("Take the white space and control characters out of the URL.")
    if "\\" in text:
        raise ValueError("Write / instead of the backslash in the URL.")
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in DEFAULT_PORTS:
        raise ValueError(f"Begin the URL with http:// or https://, such as {example}.")
    if "#" in rest:
        raise ValueError("Take the fragment (everything from the #) out of the URL.")
    if "?" in rest:
        raise ValueError("Take the query (everything from the ?) out of the URL: callers send their own.")
    authority, slash, path = rest.partition("/")
    return scheme, authority, slash + path


def _is_blank_or_control(character: str) -> bool:
    return character <= " " or "\x7f" <= character <= "\x9f" or character.isspace()


def _host_and_port(scheme: str, authority: str) -> tuple[str, int]:
    if authority.startswith("["):
        inside, bracket, after = authority[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise ValueError("Write an IPv6 address in brackets, the port after them: [2001:db8::1]:8080.")
        return _ipv6_host(inside), _port(scheme, after)
    if authority.count(":") > 1:
        raise ValueError("Write an IPv6 address in brackets, such as [2001:db8::1]; before a port there is one colon.")
    host, colon, port = authority.partition(":")
    if not host:
        raise ValueError("Name the host after the ://, such as https://api.example.com.")
    return _host(host), _port(scheme, colon + port)


def _ipv6_host(inside: str) -> str:
    if "%" in inside:
        raise ValueError("Take the zone id (everything from the %) out of the IPv6 address.")
    try:
        return str(ipaddress.IPv6Address(inside))
    except ValueError:
        raise ValueError("Write a valid IPv6 address between the brackets, such as [2001:db8::1].") from None


def _port(scheme: str, suffix: str) -> int:
    """`suffix` is empty or begins with a colon."""
    if not suffix:
        return DEFAULT_PORTS[scheme]
    if not _PORT.fullmatch(suffix, 1) or not 0 < (port := int(suffix[1:])) < 65536:
        raise ValueError("Write the port as a number from 1 to 65535, or leave it and its colon out.")
    return port


def _host(host: str) -> str:
    """A lower-case A-label name, or a dotted-decimal IPv4 address."""
    try:
        # Lower-cases, and makes full-width digits and dots plain, so the IPv4 check sees what a resolver would.
        mapped = idna.uts46_remap(host, std3_rules=False)
    except idna.IDNAError:
        raise ValueError("The host has a character that host names cannot have: correct the host name.") from None
    name = mapped.removesuffix(".")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        return _dotted_decimal(host)
    if len(name) > 253:
        raise ValueError("The host name is too long: it may have at most 253 characters.")
    name = ".".join(_a_label(label) for label in name.split("."))
    if len(name) > 253:
        raise ValueError("The host name is too long: in its A-label form (xn--...) it may have at most 253 characters.")
    return name


def _dotted_decimal(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise ValueError(
            "The host ends in a number, so it reads as an IPv4 address: "
            "write it as four decimal numbers from 0 to 255 without leading zeros, such as 192.0.2.1."
        ) from None


def _a_label(label: str) -> str:
    if not label:
        raise ValueError("The host name has an empty part: take out the doubled or leading dot.")
    if len(label) > 63:
        raise ValueError("A part of the host name is too long: between two dots there are at most 63 characters.")
    if not label.isascii() or label.startswith("xn--"):
        try:
            return idna.alabel(label).decode("ascii")
        except idna.IDNAError:
            raise ValueError("The host is not a valid international name (IDNA 2008): correct the host name.") from None
    if not _LABEL.fullmatch(label):
        raise ValueError(
            "The host name has a part that is not valid: use letters, digits, hyphens and underscores, "
            "no hyphen at either end of a part."
        )
    return label


def _require_plain_path(path: str) -> None:
    if not path.isascii():
        raise ValueError("Percent-encode the characters of the path that are not ASCII: %C3%A9 for é.")
    if not _PATH.fullmatch(path):
        raise ValueError(
            'Percent-encode the characters of the path that a URL cannot hold, such as " < > [ ] { } | ^ `.'
        )
    if _BAD_ESCAPE.search(path):
        raise ValueError("Follow every % in the path with two hexadecimal digits; a percent sign itself is %25.")
    if _has_dot_segment(path):
        raise ValueError(
            "Take the dot segments (. and .., in any spelling) out of the path: write the path they lead to."
        )


def _has_dot_segment(path: str) -> bool:
    """As the most eager reader sees it: decoded as often as it can be, cut at backslashes too, parameters dropped."""
    seen, decoded = b"", path.encode("ascii")
    while seen != decoded:
        seen, decoded = decoded, unquote_to_bytes(decoded)
    return any(segment.partition(b";")[0] in (b".", b"..") for segment in _SEGMENT_ENDS.split(decoded))


def _decoded_credential(quoted: str, *, forbidden: str = "") -> str:
    if _BAD_ESCAPE.search(quoted):
        raise ValueError("Percent-encode the user name and password: follow every % with two hexadecimal digits.")
    try:
        plain = unquote_to_bytes(quoted).decode("utf-8")
    except UnicodeError:
        raise ValueError("Percent-encode the user name and password as UTF-8.") from None
    if any(character < " " or character == "\x7f" or character in forbidden for character in plain):
        raise ValueError(
            "Take control characters out of the user name and password, and colons out of the user name: "
            "no proxy can read them."
        )
    return plain


def _authority(scheme: str, host: str, port: int) -> str:
    return join_address(host, None if port == DEFAULT_PORTS[scheme] else port)
