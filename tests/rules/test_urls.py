"""What admins may register as a base URL or an outbound proxy, and what they are told otherwise."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.urls import Address, parse_address, parse_base_url, parse_proxy_url


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "path", "canonical", "authority"),
    [
        ("https://a.example", "https", "a.example", 443, b"", "https://a.example", b"a.example"),
        ("  https://a.example/ \n", "https", "a.example", 443, b"", "https://a.example", b"a.example"),
        ("HTTP://A.Example:80/v1", "http", "a.example", 80, b"/v1", "http://a.example/v1", b"a.example"),
        ("http://a.example:443/v1/", "http", "a.example", 443, b"/v1/", "http://a.example:443/v1/", b"a.example:443"),
        ("https://a.example.:8443", "https", "a.example", 8443, b"", "https://a.example:8443", b"a.example:8443"),
        ("http://_sip._tcp.a-b.example", "http", "_sip._tcp.a-b.example", 80, b"", None, b"_sip._tcp.a-b.example"),
        ("http://localhost:00080", "http", "localhost", 80, b"", "http://localhost", b"localhost"),
        ("https://BÜCHER.example/", "https", "xn--bcher-kva.example", 443, b"", None, b"xn--bcher-kva.example"),
        ("https://_x.faß.example", "https", "_x.xn--fa-hia.example", 443, b"", None, b"_x.xn--fa-hia.example"),
        ("https://XN--BCHER-KVA.example", "https", "xn--bcher-kva.example", 443, b"", None, b"xn--bcher-kva.example"),
        ("https://a\u3002example", "https", "a.example", 443, b"", "https://a.example", b"a.example"),
        ("http://127.0.0.1:8000/x", "http", "127.0.0.1", 8000, b"/x", "http://127.0.0.1:8000/x", b"127.0.0.1:8000"),
        ("http://[2001:DB8::0:1]/x", "http", "2001:db8::1", 80, b"/x", "http://[2001:db8::1]/x", b"[2001:db8::1]"),
        ("http://[::1]:81", "http", "::1", 81, b"", "http://[::1]:81", b"[::1]:81"),
        ("http://a.example//v1", "http", "a.example", 80, b"//v1", "http://a.example//v1", b"a.example"),
        ("http://a.example/%C3%A9/%2f;p=1", "http", "a.example", 80, b"/%C3%A9/%2f;p=1", None, b"a.example"),
        ("http://a.example/v1...2/.well-known", "http", "a.example", 80, b"/v1...2/.well-known", None, b"a.example"),
        (f"http://{'a' * 63}.example", "http", f"{'a' * 63}.example", 80, b"", None, b"a" * 63 + b".example"),
    ],
)
def test_base_url_parts_are_those_of_the_text(
    text: str, scheme: str, host: str, port: int, path: bytes, canonical: str | None, authority: bytes
) -> None:
    url = parse_base_url(text)
    assert (url.scheme, url.host, url.port, url.path) == (scheme, host, port, path)
    assert url.text == canonical if canonical else parse_base_url(url.text) == url
    assert url.authority == authority


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("http://192.0.2.1", IPv4Address("192.0.2.1")),
        ("http://[2001:db8::1]:8080", IPv6Address("2001:db8::1")),
        ("http://a.example", None),
    ],
)
def test_a_host_is_a_literal_or_a_name(text: str, literal: IPv4Address | IPv6Address | None) -> None:
    assert parse_base_url(text).literal == literal


REFUSED_HOSTS_AND_PORTS = [
    ("http://a.example:0", "from 1 to 65535"),
    ("http://a.example:65536", "from 1 to 65535"),
    ("http://a.example:", "from 1 to 65535"),
    ("http://a.example:http", "from 1 to 65535"),
    ("http://a.example:\uff18\uff10", "from 1 to 65535"),
    ("http://a.example:999999999999999999999", "from 1 to 65535"),
    ("http://[::1]:0", "from 1 to 65535"),
    ("http://[::1", "in brackets, the port after them"),
    ("http://[::1]8080", "in brackets, the port after them"),
    ("http://2001:db8::1", "in brackets"),
    ("http://a.example:80:80", "in brackets"),
    ("http://[fe80::1%25eth0]", "zone id"),
    ("http://[v1.fe80]", "valid IPv6 address"),
    ("http://[127.0.0.1]", "valid IPv6 address"),
    ("http://a..example", "empty part"),
    ("http://.a.example", "empty part"),
    ("http://a.example..", "empty part"),
    ("http://.", "empty part"),
    (f"http://{'a' * 64}.example", "at most 63"),
    (f"http://{'ä' * 64}.example", "at most 63"),
    (f"http://{'ä' * 62}.example", "international name"),
    (f"http://{'abcdefg.' * 31}abcdef", "at most 253"),
    (f"http://{'äöüßáàâ.' * 28}example", "at most 253"),
    ("http://xn--a.example", "international name"),
    ("http://\u2603.example", "international name"),
    ("http://a\ud800.example", "cannot have"),
    ("http://a\ufffe.example", "cannot have"),
    ("http://-a.example", "letters, digits, hyphens"),
    ("http://a-.example", "letters, digits, hyphens"),
    ("http://a%41.example", "letters, digits, hyphens"),
    ("http://a,b.example", "letters, digits, hyphens"),
    ("http://a\u2100b.example", "letters, digits, hyphens"),
    *(
        (f"http://{host}", "four decimal numbers")
        for host in (
            "2130706433",
            "0x7f.1",
            "0X7F000001",
            "0x",
            "127.1",
            "0177.0.0.1",
            "127.0.0.1.",
            "127.0.0.01",
            "256.0.0.1",
            "1.2.3.4.5",
            "a.example.1",
            "a.0xf",
            "\uff11\uff12\uff17.0.0.1",
            "127\u30020\u30020\u30021",
            "127\u30021",
        )
    ),
]

REFUSED_TEXTS = [
    ("", "Give a URL"),
    (" \t\n", "Give a URL"),
    ("http://a.example/a b", "white space"),
    ("http://a.exa\nmple", "white space"),
    ("http://a.example/\x00", "white space"),
    ("http://a.example/\x7f", "white space"),
    ("http://a.example/\x85x", "white space"),
    ("http://a.example/\u2028x", "white space"),
    ("http:\\\\a.example", "backslash"),
    ("a.example/v1", "http:// or https://"),
    ("ftp://a.example", "http:// or https://"),
    ("//a.example", "http:// or https://"),
    ("https:a.example", "http:// or https://"),
    ("http://a.example/#top", "fragment"),
    ("http://a.example#?", "fragment"),
    ("http://a.example/?q=1", "query"),
    ("http://a.example?", "query"),
]


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        *REFUSED_TEXTS,
        *REFUSED_HOSTS_AND_PORTS,
        ("http://", "Name the host"),
        ("http:///v1", "Name the host"),
        ("http://:80", "Name the host"),
        ("http://user@a.example", "user name and password"),
        ("http://user:secret@a.example", "user name and password"),
        ("http://@a.example", "user name and password"),
        ("http://a.example/é", "not ASCII"),
        ('http://a.example/"', "cannot hold"),
        ("http://a.example/{id}", "cannot hold"),
        ("http://a.example/%", "two hexadecimal digits"),
        ("http://a.example/%4", "two hexadecimal digits"),
        ("http://a.example/%zz", "two hexadecimal digits"),
        *(
            (f"http://a.example{path}", "dot segments")
            for path in (
                "/.",
                "/..",
                "/v1/../x",
                "/v1/./x",
                "/%2e%2e/x",
                "/.%2E",
                "/%2e",
                "/..;x/y",
                "/..%3Bx",
                "/v1%2f..%2fx",
                "/v1%5C..%5cx",
                "/%252e%252e/x",
                "/%25252e",
            )
        ),
    ],
)
def test_a_base_url_that_could_be_misread_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=rf"^(?=[A-Z]).*{advice}.*\.$"):
        parse_base_url(text)


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "username", "password"),
    [
        ("http://proxy.example:3128", "http", "proxy.example", 3128, None, None),
        (" HTTPS://proxy.example/ ", "https", "proxy.example", 443, None, None),
        ("http://u:p@[::1]:3128", "http", "::1", 3128, "u", "p"),
        ("http://u@10.0.0.1", "http", "10.0.0.1", 80, "u", None),
        ("http://:p@proxy.example", "http", "proxy.example", 80, "", "p"),
        ("http://u:@proxy.example", "http", "proxy.example", 80, "u", ""),
        ("http://u%40x:p%3aq:r@s%C3%A9@proxy.example", "http", "proxy.example", 80, "u@x", "p:q:r@sé"),
    ],
)
def test_proxy_credentials_are_decoded(
    text: str, scheme: str, host: str, port: int, username: str | None, password: str | None
) -> None:
    proxy = parse_proxy_url(text)
    assert (proxy.scheme, proxy.host, proxy.port) == (scheme, host, port)
    assert (proxy.username, proxy.password) == (username, password)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        *REFUSED_TEXTS,
        *REFUSED_HOSTS_AND_PORTS,
        ("http://u:p@", "Name the host"),
        ("http://proxy.example/path", "path"),
        ("http://proxy.example//", "path"),
        ("socks5://proxy.example", "http:// or https://"),
        ("http://u:%zz@proxy.example", "two hexadecimal digits"),
        ("http://u:%ff@proxy.example", "UTF-8"),
        ("http://u:\ud800@proxy.example", "UTF-8"),
        ("http://u:%0d%0a@proxy.example", "control characters"),
        ("http://u:%7f@proxy.example", "control characters"),
        ("http://u%3a:p@proxy.example", "colons"),
    ],
)
def test_a_proxy_url_that_could_be_misread_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_proxy_url(text)


SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"http://{SECRET}:{SECRET}@proxy.example/path",
        f"http://{SECRET}:{SECRET}/{SECRET}@proxy.example",
        f"http://{SECRET}:{SECRET}#{SECRET}@proxy.example",
        f"http://{SECRET}:{SECRET}?{SECRET}@proxy.example",
        f"http://{SECRET}:{SECRET}\\@proxy.example",
        f"http://{SECRET}:{SECRET} @proxy.example",
        f"http://{SECRET}:{SECRET}%@proxy.example",
        f"http://{SECRET}:{SECRET}%ff@proxy.example",
        f"http://{SECRET}:{SECRET}%00@proxy.example",
        f"http://{SECRET}:{SECRET}@proxy.example:0",
        f"http://{SECRET}:{SECRET}@",
        f"{SECRET}:{SECRET}@proxy.example",
        f"{SECRET}://{SECRET}@proxy.example",
    ],
)
def test_no_error_repeats_credentials(text: str) -> None:
    for parse in (parse_proxy_url, parse_base_url):
        with pytest.raises(ValueError, match=r"URL|path|port|host|user name") as caught:
            parse(text)
        assert SECRET not in str(caught.value)


def test_repr_hides_credentials() -> None:
    shown = repr(parse_proxy_url(f"http://{SECRET}:{SECRET}@proxy.example:3128"))
    assert SECRET not in shown
    assert "proxy.example" in shown


label = st.from_regex(r"[a-z_]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True).filter(lambda text: text[:4] != "xn--")
host = st.one_of(
    st.lists(label, min_size=1, max_size=4).map(lambda labels: ".".join([*labels, "example"])),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
segment = st.text(st.sampled_from("az09-_~!$&'()*+,=:@"), max_size=6)
path = st.lists(segment, max_size=4).map(lambda segments: "".join("/" + text for text in segments))


@given(st.sampled_from(["http", "https"]), host, st.none() | st.integers(1, 65535), path)
def test_canonical_text_parses_to_an_equal_url(scheme: str, host: str, port: int | None, path: str) -> None:
    url = parse_base_url(f"{scheme}://{host}{'' if port is None else f':{port}'}{path}")
    assert parse_base_url(url.text) == url
    assert url.path == (b"" if path == "/" else path.encode())
    assert url.port == (port or {"http": 80, "https": 443}[scheme])
    assert (url.literal is None) == host[-1].isalpha()


@given(
    st.text() | st.text().map("http://{}".format) | st.text(alphabet="htps:/[]@.%0x7f1a?#\\ ").map("http://{}".format)
)
def test_any_text_is_parsed_canonically_or_refused(text: str) -> None:
    try:
        url = parse_base_url(text)
    except ValueError:
        return
    assert url.text.isascii()
    assert parse_base_url(url.text) == url


@given(st.text(), st.text())
def test_any_credentials_survive_percent_encoding(username: str, password: str) -> None:
    def encoded(text: str) -> str:
        return "".join(f"%{byte:02X}" for byte in text.encode())

    try:
        proxy = parse_proxy_url(f"http://{encoded(username)}:{encoded(password)}@proxy.example")
    except ValueError:
        assert ":" in username or any(character < " " or character == "\x7f" for character in username + password)
    else:
        assert (proxy.username, proxy.password) == (username, password)


# Addresses of targets.


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.20.0.7:8080", Address("10.20.0.7", 8080, "10.20.0.7:8080")),
        (" A.Example ", Address("a.example", None, "a.example")),
        ("a.example:80", Address("a.example", 80, "a.example:80")),
        ("[::1]:81", Address("::1", 81, "[::1]:81")),
        ("[2001:DB8::0:1]", Address("2001:db8::1", None, "[2001:db8::1]")),
        ("B\u00dcCHER.example", Address("xn--bcher-kva.example", None, "xn--bcher-kva.example")),
    ],
)
def test_an_address_is_a_host_and_perhaps_a_port(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(address.text) == address


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "Give a host"),
        (" \t", "Give a host"),
        ("http://a.example", "host and port alone"),
        ("a.example/v1", "host and port alone"),
        ("a.example?x", "host and port alone"),
        ("a.example#x", "host and port alone"),
        ("u@a.example", "host and port alone"),
        ("a b.example", "white space and control characters"),
        ("a.example\x00", "white space and control characters"),
        ("a.example:", "number from 1 to 65535"),
        ("a.example:0", "number from 1 to 65535"),
        ("::1", "brackets"),
    ],
)
def test_an_address_that_could_be_misread_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=rf"^(?=[A-Z]).*{advice}.*\.$"):
        parse_address(text)
