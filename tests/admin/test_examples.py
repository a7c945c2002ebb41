"""Which curl lines and programs an upstream gets, and that they run."""

from __future__ import annotations

import pytest

from relay.admin.examples import curl_examples, programs
from relay.models import Access, Grant, Upstream

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
        ("POST", [f"""curl -N -H 'Content-Type: application/json' -d '{{"hello": "world"}}' {URL}"""]),
        ("GET", [f"curl {URL}", f"curl -N -H 'Accept: text/event-stream' {URL}"]),
    ],
)
def test_methods_that_are_not_allowed_get_no_example(methods: str, expected: list[str]) -> None:
    assert commands(methods) == expected


def granted(methods: str = "", prefixes: str = "") -> Grant:
    return Grant(methods=methods, path_prefixes=prefixes)


def program(title: str, upstream: Upstream, *grants: Grant) -> str | None:
    found = programs(upstream, URL, key="rk_key", grants=grants)
    return next((example.command for example in found if example.title.startswith(title)), None)


def test_a_key_stands_in_every_example() -> None:
    upstream = Upstream(slug="a", base_url="https://a.example/v1", access=Access.ANYONE)
    found = [*curl_examples(upstream, URL, key="rk_key"), *programs(upstream, URL, key="rk_key")]
    assert len(found) == 6
    assert all("rk_key" in example.command for example in found)


@pytest.mark.parametrize(
    ("grants", "expected"),
    [
        ([granted("GET", "/v1/days\n/v1/hours")], f"curl -H 'Relay-Key: k' {URL}v1/days"),
        ([granted("DELETE")], f"curl -X DELETE -H 'Relay-Key: k' {URL}"),
        ([granted("GET", "/v1"), granted("GET")], f"curl -H 'Relay-Key: k' {URL}"),
    ],
)
def test_examples_keep_to_what_is_granted(grants: list[Grant], expected: str) -> None:
    upstream = Upstream(slug="a", base_url="https://a.example", access=Access.KEY)
    assert curl_examples(upstream, URL, key="k", grants=grants)[0].command == expected


def test_methods_that_the_upstream_forbids_are_not_shown_because_they_are_granted() -> None:
    upstream = Upstream(slug="a", base_url="https://a.example", allowed_methods="GET", access=Access.KEY)
    titles = [example.title for example in curl_examples(upstream, URL, grants=[granted("GET, POST")])]
    assert titles == ["Read", "Follow an event stream"]


@pytest.mark.parametrize("methods", ["GET", "POST", "PUT"])
def test_the_python_program_is_python_and_uses_the_method(methods: str) -> None:
    text = program("Python", Upstream(slug="a", base_url="https://a.example"), granted(methods))
    assert text is not None
    compile(text, "example.py", "exec")
    assert f'httpx.stream("{methods}", "{URL}", headers=headers' in text
    assert ("json=" in text) == (methods == "POST")


def test_the_javascript_program_sends_a_body_where_it_posts() -> None:
    upstream = Upstream(slug="a", base_url="https://a.example")
    assert "JSON.stringify" in (program("JavaScript", upstream, granted("POST")) or "")
    assert "JSON.stringify" not in (program("JavaScript", upstream, granted("GET")) or "")


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("https://api.example/v1", URL.rstrip("/")),
        ("https://api.openai.example", f"{URL}v1"),
        ("https://api.example", None),
    ],
)
def test_the_openai_sdk_is_shown_where_it_may_fit(base_url: str, expected: str | None) -> None:
    text = program("OpenAI", Upstream(slug="a", base_url=base_url))
    if expected is None:
        assert text is None
    else:
        assert text is not None
        compile(text, "example.py", "exec")
        assert f'OpenAI(base_url="{expected}", api_key="rk_key")' in text


def test_the_openai_sdk_is_not_shown_to_those_who_may_not_post() -> None:
    assert program("OpenAI", Upstream(slug="a", base_url="https://api.example/v1"), granted("GET")) is None
