"""Clients that know nothing of relays work with a base URL and a key alone, and the key never reaches the upstream.

The `openai` package, given nothing but `base_url` and `api_key`, and curl, against an origin that answers as such a
service does.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import pytest

from tests.behaviour.conftest import Issued, Relayed
from tests.origin import Exchange, Gate, Origin, Received, chunked_head, counted_answer
from tests.serving_ground import Ground

Result = TypeVar("Result")

WORDS = ["The", " relay", " streams", "."]
CURL = shutil.which("curl")
UNKNOWN = "rk_" + "a" * 8 + "B" * 43


def chunk_of(word: str | None) -> bytes:
    delta = {} if word is None else {"role": "assistant", "content": word}
    choice = {"index": 0, "delta": delta, "finish_reason": "stop" if word is None else None}
    document = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "small",
        "choices": [choice],
    }
    return b"data: " + json.dumps(document).encode() + b"\n\n"


class Service:
    """What such a service is to its callers: it streams word by word, each when the gate is opened for it."""

    def __init__(self, origin: Origin) -> None:
        self.gate = Gate()
        origin.on(b"/v1/chat/completions", self._complete)
        origin.on(b"/v1/embeddings", self._embed)

    async def _complete(self, exchange: Exchange) -> None:
        asked = json.loads(await exchange.read_body())
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "".join(WORDS)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            await answer(
                exchange,
                {"id": "1", "object": "chat.completion", "created": 1, "model": "small", "choices": [choice]},
            )
            return
        await exchange.send(chunked_head(200, [(b"Content-Type", b"text/event-stream")]))
        for word in [*WORDS, None]:
            await self.gate.wait()
            await exchange.send_chunk(chunk_of(word))
        await exchange.send_chunk(b"data: [DONE]\n\n")
        await exchange.send_chunk(b"")

    async def _embed(self, exchange: Exchange) -> None:
        await exchange.read_body()
        row = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        await answer(exchange, {"object": "list", "model": "small", "data": [row], "usage": usage})


async def answer(exchange: Exchange, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    await exchange.send(counted_answer(200, [(b"Content-Type", b"application/json")], body))


@pytest.fixture(scope="session")
def openai() -> ModuleType:
    """Imported by who needs it: with its hundreds of models it takes a second, and all processes collect all tests."""
    return importlib.import_module("openai")


@pytest.fixture
def service(origin: Origin) -> Service:
    return Service(origin)


@pytest.fixture
def key(relayed: Relayed, issued: Issued) -> str:
    return issued(relayed("llm", open_to_anyone=False))[0].decode()


async def the_only_request(origin: Origin, key: str) -> Received:
    """The next request at the origin, which has nothing of the key in it."""
    request = await origin.next_request()
    assert request.values(b"authorization") == []
    assert key[3:].encode() not in request.raw_head
    return request


def given(client: type[Result], ground: Ground, key: str) -> Result:
    """Nothing set but what the package asks for."""
    make: Callable[..., Result] = client
    return make(base_url=f"{ground.url}/relay/llm/v1", api_key=key)


async def test_the_asynchronous_client_streams_a_completion_word_by_word(
    service: Service, origin: Origin, ground: Ground, openai: ModuleType, key: str
) -> None:
    async with given(openai.AsyncOpenAI, ground, key) as client:
        service.gate.open()
        stream = await client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        heard = []
        async for event in stream:
            # The next word is only said once this one has arrived.
            service.gate.open()
            if event.choices[0].delta.content:
                heard.append(event.choices[0].delta.content)
    assert heard == WORDS
    assert (await the_only_request(origin, key)).target == b"/v1/chat/completions"


async def test_the_synchronous_client_streams_a_completion_word_by_word(
    service: Service, origin: Origin, ground: Ground, openai: ModuleType, key: str
) -> None:
    loop = asyncio.get_running_loop()

    def listen() -> list[str]:
        heard = []
        with given(openai.OpenAI, ground, key) as client:
            loop.call_soon_threadsafe(service.gate.open)
            with client.chat.completions.create(
                model="small", messages=[{"role": "user", "content": "hello"}], stream=True
            ) as stream:
                for event in stream:
                    loop.call_soon_threadsafe(service.gate.open)
                    if event.choices[0].delta.content:
                        heard.append(event.choices[0].delta.content)
        return heard

    assert await asyncio.to_thread(listen) == WORDS
    await the_only_request(origin, key)


async def test_whole_answers_come_whole(
    service: Service, origin: Origin, ground: Ground, openai: ModuleType, key: str
) -> None:
    async with given(openai.AsyncOpenAI, ground, key) as client:
        completion = await client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "hello"}]
        )
        assert completion.choices[0].message.content == "".join(WORDS)
        await the_only_request(origin, key)
        embeddings = await client.embeddings.create(model="small", input="hello", encoding_format="float")
        assert embeddings.data[0].embedding == [0.25, -0.5]
        request = await the_only_request(origin, key)
        assert json.loads(request.body or b"")["input"] == "hello"


@pytest.mark.parametrize(("shown", "kind"), [(UNKNOWN, "key-refused"), ("sk-somebody-elses", "key-required")])
async def test_a_wrong_key_is_the_packages_own_error(
    service: Service, origin: Origin, ground: Ground, openai: ModuleType, key: str, shown: str, kind: str
) -> None:
    async with given(openai.AsyncOpenAI, ground, shown) as client:
        with pytest.raises(openai.AuthenticationError) as refusal:
            await client.embeddings.create(model="small", input="hello")
    assert isinstance(refusal.value.body, dict)
    assert refusal.value.body["type"] == f"urn:relay:error:{kind}"
    assert shown not in str(refusal.value) + json.dumps(refusal.value.body)
    assert origin.connections_made == 0


async def test_what_is_not_granted_is_the_packages_own_error(
    service: Service, relayed: Relayed, issued: Issued, ground: Ground, openai: ModuleType
) -> None:
    key = issued(relayed("llm", open_to_anyone=False), grants=[])[0].decode()
    async with given(openai.AsyncOpenAI, ground, key) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.embeddings.create(model="small", input="hello")


async def curl(ground: Ground, *arguments: str) -> tuple[int, str]:
    """(status, body)"""
    assert CURL is not None, "curl is not installed"
    process = await asyncio.create_subprocess_exec(
        *(CURL, "--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--write-out", "\n%{http_code}"),
        *("-H", "Content-Type: application/json", "--data", '{"input": "hello"}', *arguments),
        f"{ground.url}/relay/llm/v1/embeddings",
        stdout=asyncio.subprocess.PIPE,
        env={},
    )
    out, _ = await process.communicate()
    body, _, status = out.decode().rpartition("\n")
    return int(status), body


@pytest.mark.parametrize("arguments", [("-H", "Relay-Key: {}"), ("--oauth2-bearer", "{}"), ("-H", "relay-key:{}")])
async def test_curl_shows_a_key_in_either_field(
    service: Service, origin: Origin, ground: Ground, key: str, arguments: tuple[str, str]
) -> None:
    status, body = await curl(ground, *(argument.format(key) for argument in arguments))
    assert (status, json.loads(body)["object"]) == (200, "list")
    await the_only_request(origin, key)


async def test_curl_sends_its_own_credentials_along_with_the_key(
    service: Service, origin: Origin, ground: Ground, key: str
) -> None:
    status, _ = await curl(ground, "-H", f"Relay-Key: {key}", "--user", "ada:secret")
    assert status == 200
    request = await origin.next_request()
    assert request.values(b"authorization") == [b"Basic YWRhOnNlY3JldA=="]
    assert key[3:].encode() not in request.raw_head


async def test_curl_without_a_key_is_told_to_show_one(service: Service, ground: Ground, key: str) -> None:
    status, body = await curl(ground)
    assert (status, json.loads(body)["type"]) == (401, "urn:relay:error:key-required")
