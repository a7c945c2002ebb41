"""The ASGI application: which scope goes where, and what it answers itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import unquote

import pytest

from relay.serving.application import RelayApplication, get_application


class Exchanged:
    """One call of an ASGI application with a scope as a server makes it."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self._has_sent_request = False

    async def call(self, app: Any, **scope: Any) -> Exchanged:
        defaults = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        await app({**defaults, **scope}, self._receive, self._send)
        return self

    async def _receive(self) -> Any:
        if self._has_sent_request:
            await asyncio.get_running_loop().create_future()  # the caller stays
        self._has_sent_request = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


async def exchanged(**scope: Any) -> Exchanged:
    return await Exchanged().call(get_application(), **scope)


@pytest.mark.parametrize(
    ("raw_path", "root_path"),
    [(b"/relay/nobody/a", ""), (b"/outer/relay/nobody/a", "/outer"), (b"/relay/", "")],
)
async def test_the_mount_goes_to_the_relay(raw_path: bytes, root_path: str) -> None:
    answer = await exchanged(raw_path=raw_path, root_path=root_path, path=raw_path.decode())
    assert answer.status == 404
    assert json.loads(answer.body)["type"] == "urn:relay:error:upstream-unknown"


@pytest.mark.parametrize("raw_path", [b"/relay", b"/relayed/a", b"/Relay/o", b"//relay/o"])
async def test_what_only_looks_like_the_mount_goes_to_django(raw_path: bytes) -> None:
    answer = await exchanged(raw_path=raw_path, path=raw_path.decode())
    assert answer.status == 404
    assert b"urn:relay" not in answer.body


@pytest.mark.parametrize("raw_path", [b"/%72elay/o/a", b"/relay%2Fo/a", b"/relay%2fo"])
async def test_a_mount_in_disguise_is_refused(raw_path: bytes) -> None:
    answer = await exchanged(raw_path=raw_path, path=unquote(raw_path.decode()))
    assert answer.status == 400
    assert b"in plain spelling" in answer.body


@pytest.mark.parametrize(("raw_path", "status"), [(b"/healthz", "alive"), (b"/readyz", "ready")])
async def test_health_is_told_without_django(raw_path: bytes, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise AssertionError("Django was asked")

    app = RelayApplication()
    app._django = broken  # type: ignore[assignment]  # stands for a Django that cannot answer
    monkeypatch.setattr("relay.serving.status._draining", False)
    answer = await Exchanged().call(app, raw_path=raw_path, path=raw_path.decode(), headers=[])
    assert answer.status == 200
    assert json.loads(answer.body)["status"] == status
    assert (b"cache-control", b"no-store") in answer.sent[0]["headers"]


async def test_a_websocket_is_closed_with_its_reason() -> None:
    answer = await exchanged(type="websocket")
    assert answer.sent == [{"type": "websocket.close", "code": 1003, "reason": "WebSockets are not relayed"}]


async def test_an_unknown_scope_is_the_servers_mistake() -> None:
    with pytest.raises(ValueError, match="scopes of type pigeon"):
        await exchanged(type="pigeon")
