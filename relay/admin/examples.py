"""How to call an upstream through the relay: lines for a shell, short programs. Sends nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from relay.models import Access, Grant, Upstream

KEY_PLACEHOLDER = "rk_…"


@dataclass(frozen=True, slots=True)
class Example:
    title: str
    command: str


def curl_examples(
    upstream: Upstream, url: str, *, key: str | None = None, grants: Sequence[Grant] = ()
) -> list[Example]:
    """What upstream and grants allow of reading, sending JSON and following a stream; at least one example.

    Without a key, a placeholder stands where the upstream asks for one.
    """
    shown = key or (KEY_PLACEHOLDER if upstream.access == Access.KEY else None)
    header = ("-H", f"Relay-Key: {shown}") if shown else ()
    methods = _methods(upstream, grants)
    url += _below(grants)
    found: list[Example] = []
    if "GET" in methods:
        found.append(Example("Read", _curl(*header, url)))
    if "POST" in methods:
        body = ("-H", "Content-Type: application/json", "-d", '{"hello": "world"}')
        if "GET" in methods:
            found.append(Example("Send JSON", _curl(*header, *body, url)))
        else:
            found.append(Example("Send JSON, and follow the answer as it streams", _curl("-N", *header, *body, url)))
    if "GET" in methods:
        found.append(Example("Follow an event stream", _curl("-N", *header, "-H", "Accept: text/event-stream", url)))
    if not found:
        how = ("-I",) if methods[0] == "HEAD" else ("-X", methods[0])
        found.append(Example(f"Send {methods[0]}", _curl(*how, *header, url)))
    return found


def programs(upstream: Upstream, url: str, *, key: str, grants: Sequence[Grant] = ()) -> list[Example]:
    """Python and JavaScript that show the key and print the answer as it comes, and the OpenAI SDK where it may fit."""
    methods = _methods(upstream, grants)
    method = next((name for name in ("GET", "POST") if name in methods), methods[0])
    values = {"url": json.dumps(url + _below(grants)), "key": json.dumps(key), "method": json.dumps(method)}
    python, javascript = (_PYTHON_BODY, _JAVASCRIPT_BODY) if method == "POST" else ("", "")
    found = [
        Example("Python (httpx)", _PYTHON.format(**values, body=python)),
        Example("JavaScript (fetch)", _JAVASCRIPT.format(**values, body=javascript)),
    ]
    if _may_speak_openai(upstream) and "POST" in methods:
        base = url.rstrip("/") if _base_path(upstream).endswith("/v1") else f"{url}v1"
        text = _OPENAI.format(base=json.dumps(base), key=values["key"])
        found.append(Example("OpenAI SDK, if the upstream speaks its protocol", text))
    return found


def _methods(upstream: Upstream, grants: Sequence[Grant]) -> list[str]:
    """Those that both allow; the upstream's, where nothing is both."""
    allowed = upstream.allowed_methods.split(", ") if upstream.allowed_methods else []
    if not grants or any(not grant.methods for grant in grants):
        return allowed or ["GET", "POST"]
    granted = list(dict.fromkeys(name for grant in grants for name in grant.methods.split(", ")))
    return [name for name in granted if not allowed or name in allowed] or allowed


def _below(grants: Sequence[Grant]) -> str:
    """Where to point an example at, so that the grants allow it."""
    if not grants or any(not grant.path_prefixes for grant in grants):
        return ""
    return grants[0].path_prefixes.split()[0].removeprefix("/")


def _may_speak_openai(upstream: Upstream) -> bool:
    return _base_path(upstream).endswith("/v1") or any(
        word in text for word in ("openai", "llm") for text in (upstream.slug, upstream.base_url)
    )


def _base_path(upstream: Upstream) -> str:
    return upstream.base_url.rstrip("/")


def _curl(*arguments: str) -> str:
    return shlex.join(("curl", *arguments))


_PYTHON = """\
import httpx

headers = {{"Relay-Key": {key}}}
with httpx.stream({method}, {url}, headers=headers{body}) as answer:
    for text in answer.iter_text():
        print(text, end="", flush=True)
"""

_PYTHON_BODY = ', json={"hello": "world"}'

_JAVASCRIPT = """\
const answer = await fetch({url}, {{
  method: {method},
  headers: {{ "Relay-Key": {key} }},{body}
}});
const decoder = new TextDecoder();
for await (const piece of answer.body) {{
  console.log(decoder.decode(piece, {{ stream: true }}));
}}
"""

_JAVASCRIPT_BODY = """
  body: JSON.stringify({ hello: "world" }),"""

_OPENAI = """\
from openai import OpenAI

client = OpenAI(base_url={base}, api_key={key})
stream = client.chat.completions.create(
    model="the-model",
    messages=[{{"role": "user", "content": "Hello"}}],
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
"""
