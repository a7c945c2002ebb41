"""Tries a target step by step, for `manage.py upstreams check`: DNS, egress, TCP, proxy, TLS, one HTTP request.

It goes out by the same door as relayed requests (`egress`: the addresses judged are those connected to, TLS with the
upstream's own settings), on plain streams, so that each step is seen and timed alone. Header rules and credentials are
not applied, but for a client certificate: no secret of an upstream is sent or shown. The first step that fails is the
last.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from typing import Any

from cryptography import x509

from relay.catalog import Target, Upstream
from relay.rules.urls import ProxyUrl, parse_proxy_url
from relay.upstreams.egress import Guard, judge_address, show_certificate, tls_context

MAX_HEAD_BYTES = 64 * 1024
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r?\n")


@dataclass(frozen=True, slots=True)
class Step:
    """What one step found out. `detail` is a line for people, `facts` the same for programs; neither holds secrets."""

    name: str
    succeeded: bool
    milliseconds: float
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)


class _StepFailed(Exception):
    def __init__(self, detail: str, **facts: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.facts = facts


_Found = tuple[str, dict[str, Any]]


async def probe_all(upstream: Upstream, *, path: bytes) -> list[tuple[Target, list[Step]]]:
    """Of each target that is switched on, at the same time: what `probe` gives."""
    return list(
        zip(
            upstream.targets,
            await asyncio.gather(*(probe(upstream, target, path=path) for target in upstream.targets)),
            strict=True,
        )
    )


async def probe(upstream: Upstream, target: Target, *, path: bytes) -> list[Step]:
    """The steps taken, in order; all but the last succeeded. `path`, with its query, is asked for with HEAD."""
    attempt = _Attempt(upstream, target, path)
    steps: list[Step] = []
    try:
        for name, act in attempt.plan():
            steps.append(await _take(name, act))
            if not steps[-1].succeeded:
                break
    finally:
        attempt.close()
    return steps


async def _take(name: str, act: Callable[[], Awaitable[_Found]]) -> Step:
    began = time.perf_counter()
    succeeded = True
    facts: dict[str, Any] = {}
    try:
        detail, facts = await act()
    except _StepFailed as problem:
        succeeded, detail, facts = False, problem.detail, problem.facts
    except TimeoutError:
        succeeded, detail = False, "it took longer than the upstream's time-out"
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as problem:
        succeeded, detail = False, _in_words(problem)
    return Step(name, succeeded, round((time.perf_counter() - began) * 1000, 1), detail, facts)


def _in_words(problem: Exception) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {problem.verify_message}"
    if isinstance(problem, ssl.SSLError):
        return f"TLS could not be agreed on: {problem.reason or 'the other side broke off'}"
    if isinstance(problem, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(problem, asyncio.LimitOverrunError):
        return f"the answer's head is longer than {MAX_HEAD_BYTES} bytes"
    if isinstance(problem, asyncio.IncompleteReadError | ConnectionError):
        return "the other side closed the connection"
    return str(getattr(problem, "strerror", None) or type(problem).__name__)


def _facts_of(certificate: bytes) -> dict[str, Any]:
    """Of one in DER. Raises whatever cryptography finds wrong with it."""
    read = x509.load_der_x509_certificate(certificate)
    expires = read.not_valid_after_utc
    return {
        "subject": read.subject.rfc4514_string(),
        "issuer": read.issuer.rfc4514_string(),
        "expires": expires.isoformat(),
        "days_left": (expires - datetime.now(UTC)).days,
    }


def _on_one_line(name: str) -> str:
    """Whoever made the certificate chose it, and a terminal obeys control characters."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class _Attempt:
    """The connection while it is made. Each step uses what the one before left behind."""

    def __init__(self, upstream: Upstream, target: Target, path: bytes) -> None:
        self._upstream = upstream
        self._target = target
        self._path = path
        self._proxy: ProxyUrl | None = parse_proxy_url(upstream.outbound_proxy) if upstream.outbound_proxy else None
        self._host, self._port = (self._proxy.host, self._proxy.port) if self._proxy else (target.host, target.port)
        self._guard = Guard(upstream.allowed_networks)
        self._deadline: float | None = None
        self._infos: list[Any] = []
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def plan(self) -> list[tuple[str, Callable[[], Awaitable[_Found]]]]:
        secure = self._upstream.scheme == "https"
        steps: list[tuple[str, Callable[[], Awaitable[_Found]]]] = [
            ("dns", self._resolve),
            ("egress", self._judge),
            ("tcp", self._connect),
        ]
        if self._proxy and (secure or self._proxy.scheme == "https"):
            steps.append(("proxy", partial(self._enter_proxy, self._proxy)))
        if secure:
            steps.append(("tls", self._secure))
        return [*steps, ("http", self._request)]

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()

    @property
    def _wire(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            raise RuntimeError("not connected yet")
        return self._streams

    def _until_connected(self) -> asyncio.Timeout:
        """DNS, TCP, proxy and TLS share the connect time-out, as they do for relayed requests."""
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._upstream.connect_timeout_seconds
        return asyncio.timeout_at(self._deadline)

    async def _resolve(self) -> _Found:
        async with self._until_connected():
            try:
                self._infos = await asyncio.get_running_loop().getaddrinfo(
                    self._host, self._port, type=socket.SOCK_STREAM
                )
            except socket.gaierror as problem:
                raise _StepFailed(f"{self._host} has no address: {problem.strerror}", host=self._host) from None
        addresses = self._addresses()
        detail = "an address, no name" if addresses == [self._host] else f"{self._host} is {', '.join(addresses)}"
        return detail, {"host": self._host, "addresses": addresses}

    def _addresses(self) -> list[str]:
        # A scope id names an interface, not another address.
        return list(dict.fromkeys(str(info[4][0]).partition("%")[0] for info in self._infos))

    async def _judge(self) -> _Found:
        judged = []
        # A proxy resolves names; an address it is told is judged like one that is connected to.
        told = [self._target.host] if self._proxy and _is_address(self._target.host) else []
        for text in [*self._addresses(), *told]:
            judgement = judge_address(ip_address(text), allowed_networks=self._upstream.allowed_networks)
            judged.append(
                {
                    "address": text,
                    "verdict": str(judgement.verdict),
                    "network": judgement.network,
                    "allowed": judgement.allowed,
                }
            )
        detail = ", ".join(f"{line['address']} is {line['verdict']} ({line['network']})" for line in judged)
        refused = [line for line in judged if not line["allowed"]]
        if refused:
            raise _StepFailed(
                f"refused: {detail}. If it is meant, open its network in this upstream's allowed networks.",
                addresses=judged,
            )
        return detail, {"addresses": judged}

    async def _connect(self) -> _Found:
        """To the addresses judged, in the resolver's order, until one takes the connection."""
        loop = asyncio.get_running_loop()
        failures: list[str] = []
        async with self._until_connected():
            for family, kind, protocol, name, where in self._infos:
                opened = self._guard.open_socket((family, kind, protocol, name, where))
                opened.setblocking(False)
                try:
                    await loop.sock_connect(opened, where)
                    self._streams = await asyncio.open_connection(sock=opened, limit=MAX_HEAD_BYTES)
                except OSError as problem:
                    opened.close()
                    failures.append(f"{where[0]}: {_in_words(problem)}")
                except BaseException:
                    opened.close()
                    raise
                else:
                    return f"connected to {where[0]} port {self._port}", {"address": where[0], "port": self._port}
        raise _StepFailed(f"port {self._port}: {'; '.join(failures)}", port=self._port)

    async def _enter_proxy(self, proxy: ProxyUrl) -> _Found:
        """TLS with the proxy if it wants it, and a tunnel (RFC 9110 section 9.3.6) if the upstream speaks TLS."""
        reader, writer = self._wire
        async with self._until_connected():
            if proxy.scheme == "https":
                await writer.start_tls(tls_context(self._upstream), server_hostname=proxy.host)
            if self._upstream.scheme == "http":
                return "TLS with the proxy", {}
            where = self._target.name
            writer.write(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{self._credentials()}\r\n".encode())
            await writer.drain()
            status = await self._read_status(reader)
        if not 200 <= status <= 299:
            advice = ": correct the user name and password in its URL" if status == 407 else ""
            raise _StepFailed(f"the proxy refused the tunnel with {status}{advice}", status=status)
        return f"tunnel to {where}", {"status": status}

    def _credentials(self) -> str:
        if self._proxy is None or self._proxy.username is None:
            return ""
        pair = f"{self._proxy.username}:{self._proxy.password or ''}"
        return f"Proxy-Authorization: Basic {b64encode(pair.encode()).decode()}\r\n"

    async def _secure(self) -> _Found:
        _, writer = self._wire
        async with self._until_connected():
            context = tls_context(self._upstream)
            if self._upstream.credential is not None and self._upstream.credential.certificate is not None:
                show_certificate(context, self._upstream.credential.certificate)
            name = self._target.host if self._upstream.target_host else self._upstream.host
            await writer.start_tls(context, server_hostname=name)
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        facts: dict[str, Any] = {"version": tls.version(), "verified": self._upstream.verify_tls}
        encoded = tls.getpeercert(binary_form=True)
        if encoded is None:
            return f"{tls.version()}, no certificate", facts
        shown = f"{tls.version()}{'' if self._upstream.verify_tls else ', NOT VERIFIED'}"
        try:
            facts |= (told := _facts_of(encoded))
        except Exception:  # stricter than OpenSSL, which decides, and with a dozen reasons
            return f"{shown}, a certificate that cannot be read", facts
        subject, issuer = (_on_one_line(told[name]) or "nobody" for name in ("subject", "issuer"))
        expires, days_left = told["expires"][:10], told["days_left"]
        return f"{shown}, certificate of {subject} from {issuer}, expires {expires} ({days_left} days left)", facts

    async def _request(self) -> _Found:
        reader, writer = self._wire
        upstream, target = self._upstream, self._target
        asked, credentials = self._path, ""
        if self._proxy and upstream.scheme == "http":
            asked, credentials = b"http://" + target.authority + asked, self._credentials()
        host = target.authority if upstream.target_host else upstream.authority
        writer.write(
            b"HEAD %b HTTP/1.1\r\nHost: %b\r\nUser-Agent: relay-check\r\nAccept: */*\r\n%bConnection: close\r\n\r\n"
            % (asked, host, credentials.encode())
        )
        async with asyncio.timeout(upstream.head_timeout_seconds):
            await writer.drain()
            status = await self._read_status(reader)
        if status == 407 and self._proxy:
            raise _StepFailed("the proxy wants other credentials (407): correct them in its URL", status=status)
        return f"HEAD {self._path.decode('ascii')} was answered with {status}", {"status": status}

    async def _read_status(self, reader: asyncio.StreamReader) -> int:
        """The final status; informational ones (RFC 9110 section 15.2) are read over."""
        status = 100
        while status < 200:
            head = await reader.readuntil(b"\r\n\r\n")
            match = _STATUS_LINE.match(head)
            if match is None:
                raise _StepFailed("what came back is not HTTP/1.1")
            status = int(match[1])
            if status == 101:
                raise _StepFailed("it switched protocols unasked", status=status)
        return status
