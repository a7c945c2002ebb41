"""Cookies of upstreams, and Django's own, never meet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.cookies import outgoing_cookie, relayed_set_cookie


@pytest.mark.parametrize(
    ("values", "outgoing"),
    [
        ([], None),
        ([b""], None),
        ([b"sessionid=s; csrftoken=c"], None),
        ([b"relay.b.x=1; relay.ab.x=2; relay.a=3; relay.a.=4; relay.a.nameless"], None),
        ([b"sessionid=s; relay.a.x=1; csrftoken=c; relay.a.y=2"], b"x=1; y=2"),
        ([b"relay.a.y=2", b"sessionid=s", b"relay.a.x=1"], b"y=2; x=1"),
        ([b"relay.a.x=1; relay.a.x=2"], b"x=1; x=2"),
        ([b'relay.a.x= a="b\xff ,c ; relay.a.y='], b'x= a="b\xff ,c ; y='),
        ([b"\trelay.a.x =1;;relay.a.y=2;"], b"x=1; y=2"),
        ([b"RELAY.A.x=1; Relay.a.y=2"], None),
        ([b"relay.a.sessionid=x"], b"sessionid=x"),
        ([b'relay.a.x="; sessionid=s; relay.a.y="'], b'x="; y="'),
        ([b"=relay.a.x=1; relay.a.=relay.a.x"], None),
    ],
)
def test_only_the_upstreams_own_cookies_go_up(values: list[bytes], outgoing: bytes | None) -> None:
    assert outgoing_cookie(values, prefix=b"relay.a.") == outgoing


def relayed(
    value: bytes, *, base_path: bytes = b"/v1", host: bytes = b"api.shop.example", at_root: bool = False
) -> bytes | None:
    return relayed_set_cookie(
        value, prefix=b"relay.a.", mount=b"/relay/a", base_path=base_path, host=host, at_root=at_root
    )


@pytest.mark.parametrize(
    ("value", "given_to_callers"),
    [
        (b"x=1", b"relay.a.x=1"),
        (b" x\t= 1 ", b"relay.a.x= 1 "),
        (b"x=", b"relay.a.x="),
        (b'x="a=b\xff,"', b'relay.a.x="a=b\xff,"'),
        (b"sessionid=evil; Secure", b"relay.a.sessionid=evil; Secure"),
        (b"relay.b.x=evil", b"relay.a.relay.b.x=evil"),
        (b"__Host-x=1; Secure; Path=/", b"relay.a.__Host-x=1; Secure; Path=/relay/a"),
        (
            b"x=1;HttpOnly; partitioned ;  SameSite=None; Priority=High; Max-Age=5;"
            b" Expires=Wed, 09 Jun 2021 10:18:14 GMT;",
            b"relay.a.x=1;HttpOnly; partitioned ;  SameSite=None; Priority=High; Max-Age=5;"
            b" Expires=Wed, 09 Jun 2021 10:18:14 GMT;",
        ),
        (b"x", None),
        (b"", None),
        (b"=x", None),
        (b" \t=x", None),
        (b"; Path=/", None),
        (b"=relay.b.x=evil", None),
    ],
)
def test_a_cookie_is_renamed_and_otherwise_kept(value: bytes, given_to_callers: bytes | None) -> None:
    assert relayed(value) == given_to_callers


@pytest.mark.parametrize(
    ("domain", "host", "taken"),
    [
        (b"api.shop.example", b"api.shop.example", True),
        (b" .Shop.EXAMPLE ", b"api.shop.example", True),
        (b"", b"api.shop.example", True),
        (b".", b"api.shop.example", True),
        (b"other.example", b"api.shop.example", False),
        (b"i.shop.example", b"api.shop.example", False),
        (b"www.api.shop.example", b"api.shop.example", False),
        (b"shop.example.", b"api.shop.example", False),
        (b"192.0.2.1", b"192.0.2.1", True),
        (b"2.1", b"192.0.2.1", False),
        (b"[2001:db8::1]", b"2001:db8::1", True),
        (b"2001:db8::1", b"2001:db8::1", True),
        (b":1", b"2001:db8::1", False),
    ],
)
def test_domain_is_dropped_and_a_foreign_one_refused(domain: bytes, host: bytes, taken: bool) -> None:
    assert relayed(b"x=1; dOMAIN=" + domain + b"; Secure", host=host) == (b"relay.a.x=1; Secure" if taken else None)


@pytest.mark.parametrize(
    ("attributes", "taken"),
    [
        (b"; Domain=other.example; Domain=shop.example", True),
        (b"; Domain=shop.example; Domain=other.example", False),
        (b"; Domain=other.example; Domain=", False),
        (b"; Domain", True),
    ],
)
def test_the_last_domain_that_names_one_counts(attributes: bytes, taken: bool) -> None:
    assert relayed(b"x=1" + attributes) == (b"relay.a.x=1" if taken else None)


@pytest.mark.parametrize(
    ("path", "base_path", "mapped"),
    [
        (b"/v1", b"/v1", b"/relay/a"),
        (b"/v1/", b"/v1", b"/relay/a/"),
        (b"/v1/x", b"/v1", b"/relay/a/x"),
        (b"/v1//x", b"/v1", b"/relay/a//x"),
        (b"/v1/%2e\xff", b"/v1", b"/relay/a/%2e\xff"),
        (b"/v1/../b", b"/v1", b"/relay/a/../b"),
        (b"/", b"/v1", b"/relay/a"),
        (b"/api", b"/api/v1", b"/relay/a"),
        (b"/api/", b"/api/v1", b"/relay/a"),
        (b"/", b"", b"/relay/a"),
        (b"/x", b"", b"/relay/a/x"),
        (b"//", b"", b"/relay/a//"),
        (b"/v10", b"/v1", None),
        (b"/v", b"/v1", None),
        (b"/api//", b"/api/v1", None),
        (b"/V1", b"/v1", None),
        (b"/other", b"/v1", None),
        (b"/../v1", b"/v1", None),
    ],
)
def test_path_is_mapped_under_the_mount(path: bytes, base_path: bytes, mapped: bytes | None) -> None:
    expected = None if mapped is None else b"relay.a.x=1; Path=" + mapped + b"; Secure"
    assert relayed(b"x=1; pATH = " + path + b" ; Secure", base_path=base_path) == expected


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [
        (b"; Path=/other; Secure; Path=/v1/x; HttpOnly", b"; Secure; Path=/relay/a/x; HttpOnly"),
        (b"; Path=/v1/x; Path=/other", None),
        (b"; Path=/v1; Path=", b""),
        (b"; Path=/other; Path=v1; Secure", b"; Secure"),
        (b'; Path="/v1"', b""),
        (b"; Path", b""),
    ],
)
def test_the_last_path_wins_and_one_that_is_not_absolute_is_none(attributes: bytes, kept: bytes | None) -> None:
    assert relayed(b"x=1" + attributes) == (None if kept is None else b"relay.a.x=1" + kept)


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [
        (b"", b"; Path=/relay/a"),
        (b"; Secure", b"; Secure; Path=/relay/a"),
        (b"; Path=; Secure", b"; Secure; Path=/relay/a"),
        (b"; Path=/v1/x; Secure", b"; Path=/relay/a/x; Secure"),
    ],
)
def test_at_the_mount_itself_the_default_path_would_be_too_wide(attributes: bytes, kept: bytes) -> None:
    assert relayed(b"x=1" + attributes, at_root=True) == b"relay.a.x=1" + kept


token = st.text("abcxyz.-_", min_size=1).map(str.encode)
octets = st.binary().map(lambda value: value.replace(b";", b""))
attribute = st.one_of(
    octets,
    octets.map(b" Path=".__add__),
    octets.map(b"Path=/".__add__),
    octets.map(b"path=/v1/".__add__),
    octets.map(b"Domain=".__add__),
)


@given(st.binary(), st.lists(attribute), st.booleans())
def test_no_set_cookie_leaves_the_upstreams_namespace(pair: bytes, attributes: list[bytes], at_root: bool) -> None:
    result = relayed(b";".join([pair, *attributes]), at_root=at_root)
    if result is None:
        return
    name, *rest = result.split(b";")
    assert name.startswith(b"relay.a.")
    assert name.partition(b"=")[0].strip(b" \t") != b"relay.a."
    settings = [(key.strip(b" \t").lower(), value) for key, _, value in (text.partition(b"=") for text in rest)]
    paths = [value for key, value in settings if key == b"path"]
    assert b"domain" not in [key for key, _ in settings]
    assert all(path == b"/relay/a" or path.startswith(b"/relay/a/") for path in paths)
    assert len(paths) <= 1
    assert not at_root or paths


@given(token, octets)
def test_a_cookie_comes_back_to_the_upstream_as_it_was_set(name: bytes, value: bytes) -> None:
    relayed_cookie = relayed(name + b"=" + value + b"; Path=/")
    assert relayed_cookie is not None
    pair = relayed_cookie.split(b";")[0]
    assert outgoing_cookie([b"sessionid=s; " + pair], prefix=b"relay.a.") == name + b"=" + value
    assert outgoing_cookie([b"sessionid=s; " + pair], prefix=b"relay.b.") is None


@given(st.lists(st.binary()))
def test_nothing_without_the_prefix_goes_up(values: list[bytes]) -> None:
    outgoing = outgoing_cookie([value.replace(b"relay.a.", b"") for value in values], prefix=b"relay.a.")
    assert outgoing is None


# At a host name of the upstream's own there is neither prefix nor mount.


@pytest.mark.parametrize(
    ("value", "relayed"),
    [
        (b"sid=1", b"sid=1"),
        (b" sid =1; HttpOnly", b"sid=1; HttpOnly"),
        (b"__Host-sid=1; Secure; Path=/", b"__Host-sid=1; Secure; Path=/"),
        (b"sid=1; Path=/v1", b"sid=1; Path=/"),
        (b"sid=1; Path=/v1/", b"sid=1; Path=/"),
        (b"sid=1; Path=/v1/x", b"sid=1; Path=/x"),
        (b"sid=1; Path=/v1x", None),
        (b"sid=1; Domain=up.example", b"sid=1"),
        (b"sid=1; Domain=relay.example", None),
        (b"=1", None),
    ],
)
def test_a_cookie_at_a_host_of_its_own_keeps_its_name(value: bytes, relayed: bytes | None) -> None:
    given_back = relayed_set_cookie(value, prefix=b"", mount=b"", base_path=b"/v1", host=b"up.example")
    assert given_back == relayed


def test_all_cookies_at_a_host_of_its_own_are_the_upstreams() -> None:
    assert outgoing_cookie([b"a=1; relay.b.c=2", b"=3; nameless; d="], prefix=b"") == b"a=1; relay.b.c=2; d="


def test_beside_the_admin_no_cookie_outranks_its_own() -> None:
    value = b"a=1; Secure; PRIORITY=High; Path=/; priority"
    given_back = relayed_set_cookie(
        value, prefix=b"relay.a.", mount=b"/relay/a", base_path=b"", host=b"up.example", beside_admin=True
    )
    assert given_back == b"relay.a.a=1; Secure; Path=/relay/a"
