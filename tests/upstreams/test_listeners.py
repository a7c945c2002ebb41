"""What leads back to the relay's own sockets is known by address and port."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from relay.upstreams import listeners


@pytest.fixture(autouse=True)
def told() -> Iterator[None]:
    yield
    listeners.tell([])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def bound(stack: ExitStack, host: str, *, v6_only: bool = False) -> int:
    """The port of a socket that was told of."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
    listener.bind((host, 0))
    listeners.tell([listener])
    return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("at", "to", "is_own"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "::1", False),
        ("127.0.0.1", "192.0.2.1", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "127.8.9.10", True),
        ("0.0.0.0", "192.0.2.1", False),
        ("0.0.0.0", "::1", False),
        ("0.0.0.0", "::ffff:127.0.0.1", True),
        ("::1", "::1", True),
        ("::1", "2001:db8::1", False),
        ("::", "::1", True),
        ("::", "127.0.0.1", True),
        ("::", "::ffff:127.0.0.1", True),
        ("::", "192.0.2.1", False),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
    ],
)
def test_what_leads_to_a_listening_socket(at: str, to: str, is_own: bool, stack: ExitStack) -> None:
    port = bound(stack, at)
    assert listeners.is_own((to, port)) is is_own
    assert not listeners.is_own((to, port + 1 if port < 65_535 else 1))


def test_a_socket_for_ipv6_alone_takes_nothing_of_ipv4(stack: ExitStack) -> None:
    port = bound(stack, "::", v6_only=True)
    assert not listeners.is_own(("127.0.0.1", port))
    assert listeners.is_own(("::1", port))


def test_without_being_told_nothing_is_own() -> None:
    assert not listeners.is_own(("127.0.0.1", 8000))


def test_sockets_of_the_file_system_have_no_address(stack: ExitStack) -> None:
    listeners.tell([stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))])
    assert not listeners.is_own(("127.0.0.1", 8000))
