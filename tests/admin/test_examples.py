"""Which curl lines an upstream gets."""

from __future__ import annotations

import pytest

from relay.admin.examples import curl_examples
from relay.models import Access, Upstream

URL = "https://relay.example/relay/a/"


def commands(methods: str = "", access: str = Access.ANYONE) -> list[str]:
    upstream = Upstream(slug="a", base_url="https://a.example", allowed_methods=methods, access=access)
    return [example.command for example in curl_examples(upstream, URL)]


def test_all_methods_get_all_examples() -> None:
    assert commands() == [
        f"curl {URL}",
        f"""curl -H 'Content-Type: application/json' -d '{{"hello": "world"}}' {URL}""",
        f"curl -N -H 'Accept: text/event-stream' {URL}",
    ]


def test_every_example_shows_the_key_that_is_asked_for() -> None:
    assert all("-H 'Relay-Key: rk_…'" in command for command in commands(access=Access.KEY))


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ("PUT, DELETE", [f"curl -X PUT {URL}"]),
        ("HEAD", [f"curl -I {URL}"]),
        ("GET", [f"curl {URL}", f"curl -N -H 'Accept: text/event-stream' {URL}"]),
    ],
)
def test_methods_that_are_not_allowed_get_no_example(methods: str, expected: list[str]) -> None:
    assert commands(methods) == expected
