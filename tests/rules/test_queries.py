"""The relay's own parameter stands behind the caller's query, byte for byte, or the request is refused."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ParameterRefused
from relay.rules.queries import parameter, with_parameter

OWN = parameter("api_key", "s3cr&t=?")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (None, b"api_key=s3cr%26t%3D%3F"),
        (b"", b"api_key=s3cr%26t%3D%3F"),
        (b"a=1", b"a=1&api_key=s3cr%26t%3D%3F"),
        (b"a=%zz&&b;c=+", b"a=%zz&&b;c=+&api_key=s3cr%26t%3D%3F"),
        (b"q=api_key", b"q=api_key&api_key=s3cr%26t%3D%3F"),
        (b"q=%26api_key%3Dx", b"q=%26api_key%3Dx&api_key=s3cr%26t%3D%3F"),
        (b"api_keys=1&my_api_key=2", b"api_keys=1&my_api_key=2&api_key=s3cr%26t%3D%3F"),
    ],
)
def test_it_is_added_behind_what_the_caller_sent(query: bytes | None, expected: bytes) -> None:
    assert with_parameter(query, OWN) == expected


@pytest.mark.parametrize(
    "query",
    [
        b"api_key=x",
        b"api_key",
        b"a=1&api_key=x",
        b"a=1;api_key=x",
        b"API_KEY=x",
        b"api%5fkey=x",
        b"%61%70%69%5F%6B%65%79=x",
        b"api%255fkey=x",
        b"api%25255fkey=x",
        b"api%u005fkey=x",
        b"api.key=x",
        b"api+key=x",
        b"api%20key=x",
        b"+api_key=x",
        b"api_key%20=x",
        b"api_key[]=x",
        b"api_key%5B0%5D=x",
        b"api_key%00=x",
        b"x%26api_key=x",
        b"api_key%3Dx",
        b"a&api_key",
    ],
)
def test_a_callers_own_is_refused_in_every_spelling(query: bytes) -> None:
    with pytest.raises(ParameterRefused):
        with_parameter(query, OWN)


@given(st.integers(0, 2**7 - 1), st.integers(0, 5))
def test_no_mixture_of_encoded_letters_passes(encoded: int, times: int) -> None:
    name = "".join(f"%{ord(letter):02X}" if encoded >> at & 1 else letter for at, letter in enumerate("api_key"))
    for _ in range(times):
        name = quote(name, safe="")
    with pytest.raises(ParameterRefused):
        with_parameter(f"{name}=x".encode(), OWN)


def test_what_is_encoded_without_end_is_refused() -> None:
    with pytest.raises(ParameterRefused, match="over and over"):
        with_parameter(b"%" + b"25" * 40 + b"61=1", OWN)


@given(st.binary(max_size=60).filter(lambda query: b"%" not in query and b"key" not in query.lower()))
def test_what_passes_is_unchanged(query: bytes) -> None:
    assert with_parameter(query, OWN) == (query + b"&" if query else b"") + OWN.added


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), st.text(st.characters(codec="utf-8"), max_size=20)
)
def test_any_name_and_value_stay_inside_one_parameter(name: str, value: str) -> None:
    added = parameter(name, value).added
    assert added.count(b"=") == 1
    assert not set(added) & set(b"&;#? \r\n\x00+")


def test_its_value_does_not_show() -> None:
    assert "s3cr" not in repr(OWN)
