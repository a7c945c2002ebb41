"""Cookies that the relay keeps for an upstream: what is read, what is sent, and how much of it (RFC 6265)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules import jar
from relay.rules.jar import Cookie, cookie_header, default_path, is_news, overflow, parse_date, read_set_cookie

NOW = 1_700_000_000.0
HOST = b"www.up.example"


def read(value: bytes, *, host: bytes = HOST, path: bytes = b"/a/b") -> Cookie | None:
    return read_set_cookie(value, host=host, path=path, now=NOW)


PLAIN = Cookie(name=b"a", value=b"1", domain=HOST, path=b"/a")


@pytest.mark.parametrize(
    ("value", "cookie"),
    [
        (b"a=1", PLAIN),
        (b" a = 1 ; HttpOnly; SameSite=Strict; Unknown", PLAIN),
        (b"a=", replace(PLAIN, value=b"")),
        (b"a=1=2", replace(PLAIN, value=b"1=2")),
        (b'a="1 2"', replace(PLAIN, value=b'"1 2"')),
        (b"a=\xff", replace(PLAIN, value=b"\xff")),
        (b"a=1; path=/x; PATH=/y", replace(PLAIN, path=b"/y")),
        (b"a=1; Path=/x; Path=y", PLAIN),
        (b"a=1; Path", PLAIN),
        (b"a=1; Secure", replace(PLAIN, secure=True)),
        (b"a=1; Domain=.UP.example", replace(PLAIN, domain=b"up.example", host_only=False)),
        (b"a=1; Domain=www.up.example; Domain=", replace(PLAIN, host_only=False)),
        (b"a=1; Domain=example", replace(PLAIN, domain=b"example", host_only=False)),
        (b"a=1; Max-Age=60", replace(PLAIN, expires_at=NOW + 60)),
        (b"a=1; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT", replace(PLAIN, expires_at=NOW + 60)),
        (b"a=1; Max-Age=soon", PLAIN),
        (b"a=1; Max-Age=0", replace(PLAIN, expires_at=NOW)),
        (b"a=1; Max-Age=-5", replace(PLAIN, expires_at=NOW)),
        (b"a=1; Max-Age=99999999999999999999", replace(PLAIN, expires_at=NOW + jar.LONGEST_LIFE_SECONDS)),
        (b"a=1; Expires=Wed, 15 Nov 2023 00:00:00 GMT", replace(PLAIN, expires_at=1_700_006_400.0)),
        (b"a=1; Expires=never", PLAIN),
    ],
)
def test_a_cookie_is_read_as_browsers_read_it(value: bytes, cookie: Cookie) -> None:
    assert read(value) == cookie


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"nameless",
        b"=1",
        b" =1",
        b"a=1; Domain=other.example",
        b"a=1; Domain=x.www.up.example",
        b"a=1; Domain=ww.up.example",
        b"a=%b" % (b"x" * jar.LARGEST_COOKIE),
        b"%b=1" % (b"x" * (jar.LONGEST_NAME + 1)),
        b"a=1; Path=/%b" % (b"x" * jar.LONGEST_PATH),
    ],
)
def test_what_is_no_cookie_of_this_host_or_is_too_large_is_not_kept(value: bytes) -> None:
    assert read(value) is None


def test_a_cookie_shows_no_value() -> None:
    assert "s3cret" not in repr(read(b"a=s3cret"))


@pytest.mark.parametrize(
    ("cookie", "host", "path", "secure", "is_sent"),
    [
        (PLAIN, HOST, b"/a", False, True),
        (PLAIN, HOST, b"/a/b", False, True),
        (PLAIN, HOST, b"/ab", False, False),
        (PLAIN, HOST, b"/", False, False),
        (PLAIN, HOST, b"/A", False, False),
        (replace(PLAIN, path=b"/a/"), HOST, b"/a/b", False, True),
        (replace(PLAIN, path=b"/a/"), HOST, b"/a", False, False),
        (replace(PLAIN, path=b"/"), HOST, b"/x", False, True),
        (PLAIN, b"x.www.up.example", b"/a", False, False),
        (replace(PLAIN, host_only=False), b"x.www.up.example", b"/a", False, True),
        (replace(PLAIN, domain=b"up.example", host_only=False), HOST, b"/a", False, True),
        (replace(PLAIN, domain=b"up.example", host_only=False), b"wwwup.example", b"/a", False, False),
        (replace(PLAIN, domain=b"0.0.1", host_only=False), b"127.0.0.1", b"/a", False, False),
        (replace(PLAIN, secure=True), HOST, b"/a", False, False),
        (replace(PLAIN, secure=True), HOST, b"/a", True, True),
        (replace(PLAIN, expires_at=NOW + 1), HOST, b"/a", False, True),
        (replace(PLAIN, expires_at=NOW), HOST, b"/a", False, False),
    ],
)
def test_a_cookie_goes_where_it_belongs(cookie: Cookie, host: bytes, path: bytes, secure: bool, is_sent: bool) -> None:
    header = cookie_header([cookie], host=host, path=path, secure=secure, now=NOW)
    assert header == (b"a=1" if is_sent else None)


def test_longer_paths_come_first_then_older_cookies() -> None:
    cookies = [
        replace(PLAIN, name=b"first", path=b"/"),
        replace(PLAIN, name=b"deep", path=b"/a/b"),
        replace(PLAIN, name=b"second", path=b"/"),
    ]
    assert cookie_header(cookies, host=HOST, path=b"/a/b", secure=False, now=NOW) == b"deep=1; first=1; second=1"


@pytest.mark.parametrize(
    ("path", "folder"),
    [(b"/", b"/"), (b"/a", b"/"), (b"/a/", b"/a"), (b"/a/b", b"/a"), (b"", b"/"), (b"x", b"/")],
)
def test_the_default_path_is_the_folder(path: bytes, folder: bytes) -> None:
    assert default_path(path) == folder


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        (b"Sun, 06 Nov 1994 08:49:37 GMT", datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)),
        (b"Sun Nov  6 08:49:37 1994", datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)),
        (b"Wed, 01-Jan-20 1:2:3", datetime(2020, 1, 1, 1, 2, 3, tzinfo=UTC)),
        (b"8:49:37 november 6th 1994x", datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)),
    ],
)
def test_dates_are_read_in_all_their_forms(text: bytes, moment: datetime) -> None:
    assert parse_date(text) == moment.timestamp()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"tomorrow",
        b"Sun, 06 Nov 1994",
        b"08:49:37 Nov 1994",
        b"Sun, 06 1994 08:49:37",
        b"Sun, 06 Nov 08:49:37",
        b"Sun, 31 Feb 1994 08:49:37",
        b"Sun, 06 Nov 1994 24:00:00",
        b"Sun, 06 Nov 1994 08:60:37",
        b"Sun, 06 Nov 1994 08:49:60",
        b"Sun, 06 Nov 1600 08:49:37",
    ],
)
def test_what_is_no_date_is_none(text: bytes) -> None:
    assert parse_date(text) is None


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_no_bytes_break_the_reading(value: bytes, path: bytes) -> None:
    cookie = read(value, path=b"/" + path)
    if cookie is not None:
        assert cookie.size <= jar.LARGEST_COOKIE
        assert b";" not in cookie.name + cookie.value
        assert cookie.path.startswith(b"/")
        assert jar.domain_matches(HOST, cookie.domain)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=3), st.integers(0, 4000), st.booleans()), max_size=120))
def test_a_jar_keeps_its_bounds_and_its_newest(drawn: list[tuple[bytes, int, bool]]) -> None:
    cookies = {
        (cookie := replace(PLAIN, name=name, value=b"x" * size, expires_at=NOW if gone else None)).key: cookie
        for name, size, gone in drawn
    }
    removed = overflow(cookies, NOW)
    kept = [cookie for key, cookie in cookies.items() if key not in removed]
    assert len(set(removed)) == len(removed)
    assert len(kept) <= jar.MOST_COOKIES
    assert sum(cookie.size for cookie in kept) <= jar.MOST_BYTES
    assert not any(cookie.has_expired(NOW) for cookie in kept)
    live = [cookie for cookie in cookies.values() if not cookie.has_expired(NOW)]
    assert kept == live[len(live) - len(kept) :]


@pytest.mark.parametrize(("count", "size", "kept"), [(70, 1, jar.MOST_COOKIES), (20, 4000, 8), (8, 4000, 8), (0, 0, 0)])
def test_the_oldest_go_first(count: int, size: int, kept: int) -> None:
    cookies = [replace(PLAIN, name=b"%03d" % number, value=b"x" * size) for number in range(count)]
    removed = overflow({cookie.key: cookie for cookie in cookies}, NOW)
    assert removed == [cookie.key for cookie in cookies[: count - kept]]


@pytest.mark.parametrize(
    ("stored", "news"),
    [
        (None, True),
        (PLAIN, False),
        (replace(PLAIN, value=b"2"), True),
        (replace(PLAIN, secure=True), True),
        (replace(PLAIN, host_only=False), True),
        (replace(PLAIN, expires_at=NOW), True),
    ],
)
def test_only_what_changed_is_news(stored: Cookie | None, news: bool) -> None:
    assert is_news(PLAIN, stored) is news


def test_an_expiry_that_moved_a_little_is_no_news() -> None:
    stored = replace(PLAIN, expires_at=NOW + 1000)
    assert not is_news(replace(PLAIN, expires_at=NOW + 1000 + jar.NEWS_SECONDS / 2), stored)
    assert is_news(replace(PLAIN, expires_at=NOW + 1000 + jar.NEWS_SECONDS), stored)
