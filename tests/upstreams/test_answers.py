"""The reading of answers: what is told of each message, what is refused, and that it matters not how bytes arrive.

Each message of the tables is read whole, cut in two at every byte, and byte by byte. What is told must be the same; of
a message that is refused, less may be told the more of it comes at once, and the reason is the same. One difference
lies in time itself: bytes behind the end of an answer that come in a later read cannot take the answer back.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.upstreams import answers
from relay.upstreams.answers import AnswerReader, Framing
from tests.upstreams.telling import Answer, Asked, Outcome, halves, one_by_one, read

Fields = list[tuple[bytes, bytes]]

GET = Asked()
HEAD = Asked(to_head=True)
SWITCH = Asked(may_switch=True)
SURPLUS = "bytes after the end"
SURPLUS_LATER = "bytes that belong to no answer"
CHUNKED = b"Transfer-Encoding: chunked"


def head(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


def chunked(*after_head: bytes) -> bytes:
    return head(CHUNKED) + b"".join(after_head)


@dataclass(frozen=True)
class Message:
    """A valid one, and what is told of it."""

    what: str
    data: bytes
    body: bytes = b""
    status: int = 200
    fields: Fields | None = None
    interim: list[tuple[int, Fields]] = field(default_factory=list)
    trailers: Fields = field(default_factory=list)
    keeps_alive: bool = True
    ended: bool = True
    asked: Asked = GET


@dataclass(frozen=True)
class Refused:
    what: str
    data: bytes
    reason: str
    asked: Asked = GET


HELLO = head(b"Content-Length: 5") + b"hello"

VALID = [
    # Counted.
    Message("counted", HELLO, b"hello"),
    Message("counted, empty", head(b"Content-Length: 0")),
    Message("counted, with zeros in front", head(b"Content-Length: 005") + b"hello", b"hello"),
    Message("a body that looks like a head", head(b"Content-Length: 19") + head(), head()),
    Message("a body of line ends", head(b"Content-Length: 8") + b"\r\n\r\n\n\r\r\n", b"\r\n\r\n\n\r\r\n"),
    # Chunked.
    Message("chunked", chunked(b"5\r\nhello\r\n", b"0\r\n\r\n"), b"hello"),
    Message("chunked, empty", chunked(b"0\r\n\r\n")),
    Message("chunked, more zeros", chunked(b"005\r\nhello\r\n", b"000\r\n\r\n"), b"hello"),
    Message("chunks of any size", chunked(b"1\r\nh\r\n", b"A\r\n0123456789\r\n", b"0\r\n\r\n"), b"h0123456789"),
    Message(
        "chunks that look like ends", chunked(b"5\r\n0\r\n\r\n\r\n", b"2\r\n\r\n\r\n", b"0\r\n\r\n"), b"0\r\n\r\n\r\n"
    ),
    Message(
        "spaces around the coding",
        head(b"Transfer-Encoding: \t chunked  ") + b"0\r\n\r\n",
        fields=[(b"Transfer-Encoding", b"chunked")],
    ),
    Message("the coding in capitals", head(b"Transfer-Encoding: Chunked") + b"0\r\n\r\n"),
    Message(
        "extensions",
        chunked(b'5;a;b=c;d="e;\\"f"\r\nhello\r\n', b"0;last\r\n\r\n"),
        b"hello",
    ),
    Message(
        "trailers",
        chunked(b"5\r\nhello\r\n", b"0\r\n", b"Checksum: abc\r\nEmpty:\r\nChecksum:\t d e \t\r\n\r\n"),
        b"hello",
        trailers=[(b"Checksum", b"abc"), (b"Empty", b""), (b"Checksum", b"d e")],
    ),
    # Until the connection ends.
    Message("until close", head() + b"hello", b"hello", keeps_alive=False),
    Message("until close, empty", head(), keeps_alive=False),
    Message("until close, though it asks to keep", head(b"Connection: keep-alive") + b"x", b"x", keeps_alive=False),
    Message("until close, like an end of chunks", head() + b"0\r\n\r\n", b"0\r\n\r\n", keeps_alive=False),
    # Without a body, whatever the head says.
    Message("to HEAD", head(b"Content-Length: 5"), asked=HEAD),
    Message("to HEAD, chunked", head(CHUNKED), asked=HEAD),
    Message("to HEAD, without a length", head(), asked=HEAD),
    Message("204", head(first=b"HTTP/1.1 204 No Content"), status=204),
    Message("204 with a length", head(b"Content-Length: 5", first=b"HTTP/1.1 204 No Content"), status=204),
    Message("304", head(b"ETag: x", first=b"HTTP/1.1 304 Not Modified"), status=304),
    Message("304 with a length", head(b"Content-Length: 5", first=b"HTTP/1.1 304 Not Modified"), status=304),
    Message("304, chunked", head(CHUNKED, first=b"HTTP/1.1 304 Not Modified"), status=304),
    # Interim answers.
    Message(
        "interim answers",
        head(first=b"HTTP/1.1 100 Continue")
        + head(b"Link: </a>", b"Link: </b>", first=b"HTTP/1.1 103 Early Hints")
        + head(first=b"HTTP/1.1 199 ")
        + HELLO,
        b"hello",
        interim=[(100, []), (103, [(b"Link", b"</a>"), (b"Link", b"</b>")]), (199, [])],
    ),
    Message(
        "an interim answer with a length has no body",
        head(b"Content-Length: 5", first=b"HTTP/1.1 100 Continue") + HELLO,
        b"hello",
        interim=[(100, [(b"Content-Length", b"5")])],
    ),
    Message(
        "an interim answer does not end the connection",
        head(b"Connection: close", first=b"HTTP/1.0 100 Continue") + HELLO,
        b"hello",
        interim=[(100, [(b"Connection", b"close")])],
    ),
    Message("interim, to HEAD", head(first=b"HTTP/1.1 103 ") + head(), interim=[(103, [])], asked=HEAD),
    # Switches of protocols.
    Message(
        "101",
        head(b"Upgrade: x", b"Connection: upgrade", first=b"HTTP/1.1 101 Switching Protocols") + b"\x00raw\r\n",
        b"\x00raw\r\n",
        status=101,
        keeps_alive=False,
        ended=False,
        asked=SWITCH,
    ),
    Message(
        "101 with a length",
        head(b"Upgrade: x", b"Content-Length: 1", first=b"HTTP/1.1 101 ") + b"raw",
        b"raw",
        status=101,
        keeps_alive=False,
        ended=False,
        asked=SWITCH,
    ),
    Message(
        "100, then 101",
        head(first=b"HTTP/1.1 100 ") + head(b"upgrade: x", first=b"HTTP/1.1 101 "),
        interim=[(100, [])],
        status=101,
        keeps_alive=False,
        ended=False,
        asked=SWITCH,
    ),
    Message("a switch that was not taken up", HELLO, b"hello", asked=SWITCH),
    Message(
        "an upgrade that is only on offer",
        head(b"Upgrade: h2c", b"Connection: upgrade", b"Content-Length: 5") + b"hello",
        b"hello",
    ),
    # What the connection comes to.
    Message("1.1, close", head(b"Connection: close", b"Content-Length: 0"), keeps_alive=False),
    Message("1.1, close among others", head(b"Connection: x , CLOSE", b"Content-Length: 0"), keeps_alive=False),
    Message(
        "1.1, close in a second line",
        head(b"Connection: x", b"connection: close", CHUNKED) + b"0\r\n\r\n",
        keeps_alive=False,
    ),
    Message(
        "1.1, close beats keep-alive", head(b"Connection: close, keep-alive", b"Content-Length: 0"), keeps_alive=False
    ),
    Message(
        "1.1, close in the first of two lines",
        head(b"Connection: close", b"connection: x", b"Content-Length: 0"),
        keeps_alive=False,
    ),
    Message(
        "1.0, keep-alive in the first of two lines",
        head(b"Connection: keep-alive", b"Connection: x", b"Content-Length: 0", first=b"HTTP/1.0 200 OK"),
    ),
    Message("1.1, something that contains close", head(b"Connection: closed", b"Content-Length: 0")),
    Message("1.0", head(b"Content-Length: 5", first=b"HTTP/1.0 200 OK") + b"hello", b"hello", keeps_alive=False),
    Message(
        "1.0, keep-alive",
        head(b"Connection: Keep-Alive", b"Content-Length: 5", first=b"HTTP/1.0 200 OK") + b"hello",
        b"hello",
    ),
    Message("1.0, until close", head(first=b"HTTP/1.0 200 OK") + b"hello", b"hello", keeps_alive=False),
    # Heads.
    Message(
        "the lowest and the highest status", head(first=b"HTTP/1.1 599 x") + b"y", b"y", status=599, keeps_alive=False
    ),
    Message("no reason", head(b"Content-Length: 0", first=b"HTTP/1.1 200 ")),
    Message("no reason and no space", head(b"Content-Length: 0", first=b"HTTP/1.1 200")),
    Message("a reason in Latin-1 with tabs", head(b"Content-Length: 0", first=b"HTTP/1.1 200 \xe9\tok  ")),
    Message(
        "names keep their case, values lose the space around them",
        head(b"X-A:b", b"x-a: \t c  d \t", b"Content-Length:\t0 "),
        fields=[(b"X-A", b"b"), (b"x-a", b"c  d"), (b"Content-Length", b"0")],
    ),
    Message(
        "empty values",
        head(b"A:", b"B: ", b"C: \t ", b"Content-Length: 0"),
        fields=[(b"A", b""), (b"B", b""), (b"C", b""), (b"Content-Length", b"0")],
    ),
    Message(
        "every byte a name may have",
        head(b"!#$%&'*+-.^_`|~09AZaz: x", b"Content-Length: 0"),
    ),
    Message(
        "every byte a value may have",
        head(b"A: " + bytes([*range(0x21, 0x7F), *range(0x80, 0x100)]), b"Content-Length: 0"),
    ),
    Message("cookies stay apart", head(b"Set-Cookie: a=b", b"Set-Cookie: c=d, e", b"Content-Length: 0")),
]


REFUSED = [
    # Bytes behind the end.
    Refused("a byte behind a counted body", HELLO + b"x", SURPLUS),
    Refused("an answer behind a counted body", HELLO + HELLO, SURPLUS),
    Refused("a byte behind an empty body", head(b"Content-Length: 0") + b"x", SURPLUS),
    Refused("a byte behind chunks", chunked(b"1\r\nx\r\n0\r\n\r\n") + b"x", SURPLUS),
    Refused("an answer behind chunks", chunked(b"0\r\n\r\n") + HELLO, SURPLUS),
    Refused("an empty answer behind chunks", chunked(b"0\r\n\r\n") + chunked(b"0\r\n\r\n"), SURPLUS),
    Refused("an end of chunks behind chunks", chunked(b"0\r\n\r\n") + b"0\r\n\r\n", SURPLUS),
    Refused("CR behind chunks", chunked(b"0\r\n\r\n\r"), SURPLUS),
    Refused("LF behind chunks", chunked(b"0\r\n\r\n\n"), SURPLUS),
    Refused("an empty line behind chunks", chunked(b"0\r\n\r\n\r\n"), SURPLUS),
    Refused("empty lines behind chunks", chunked(b"0\r\n\r\n\r\n\r\n\r\n"), SURPLUS),
    Refused("an empty line behind trailers", chunked(b"0\r\na: b\r\n\r\n\r\n"), SURPLUS),
    Refused("a line behind trailers", chunked(b"0\r\na: b\r\n\r\nc: d\r\n\r\n"), SURPLUS),
    Refused("a body to HEAD", HELLO, SURPLUS, HEAD),
    Refused("chunks to HEAD", chunked(b"0\r\n\r\n"), SURPLUS, HEAD),
    Refused("a body of 204", head(b"Content-Length: 5", first=b"HTTP/1.1 204 ") + b"hello", SURPLUS),
    Refused("a body of 304", head(first=b"HTTP/1.1 304 ") + b"hello", SURPLUS),
    Refused(
        "a body of an interim answer", head(b"Content-Length: 5", first=b"HTTP/1.1 100 ") + b"hello", "begin with HTTP"
    ),
    # Lengths.
    Refused("both lengths", head(CHUNKED, b"Content-Length: 5") + b"0\r\n\r\n", ""),
    Refused("both lengths, the other way around", head(b"Content-Length: 5", CHUNKED) + b"hello", ""),
    Refused("both lengths to HEAD", head(b"Content-Length: 5", CHUNKED), "", HEAD),
    Refused("both lengths of 304", head(b"Content-Length: 5", CHUNKED, first=b"HTTP/1.1 304 "), ""),
    Refused("differing lengths", head(b"Content-Length: 5", b"Content-Length: 6") + b"hello!", "Content-Length"),
    Refused("one length twice", head(b"Content-Length: 5", b"Content-Length: 5") + b"hello", "Content-Length"),
    Refused("differing lengths in one line", head(b"Content-Length: 5, 6") + b"hello!", "Content-Length"),
    Refused("one length twice in one line", head(b"Content-Length: 5, 5") + b"hello", "Content-Length"),
    *(
        Refused(f"the length {length!r}", head(b"Content-Length: " + length) + b"hello", "Content-Length")
        for length in (b"", b"+5", b"-5", b"5.0", b"0x5", b"5 0", b"five", b"5;a", b"18446744073709551616", b"9" * 30)
    ),
    *(
        Refused(f"the coding {coding!r}", head(b"Transfer-Encoding: " + coding) + b"0\r\n\r\n", "coding")
        for coding in (
            b"",
            b"gzip",
            b"gzip, chunked",
            b"chunked, gzip",
            b"identity",
            b"chunked;q=1",
            b",chunked",
            b"xchunked",
        )
    ),
    Refused("chunked twice", head(CHUNKED, CHUNKED) + b"0\r\n\r\n", "coding"),
    Refused("chunked twice in one line", head(CHUNKED + b", chunked") + b"0\r\n\r\n", ""),
    Refused("a coding to HEAD", head(b"Transfer-Encoding: gzip"), "coding", HEAD),
    # Valid, but llhttp would take the chunks for the body.
    Refused("a tab behind chunked", head(CHUNKED + b"\t") + b"1\r\nx\r\n0\r\n\r\n", "coding"),
    Refused("a space and a tab behind chunked", head(CHUNKED + b" \t ") + b"0\r\n\r\n", "coding"),
    Refused("a tab behind chunked to HEAD", head(CHUNKED + b"\t"), "coding", HEAD),
    Refused("chunked in 1.0", head(CHUNKED, first=b"HTTP/1.0 200 OK") + b"0\r\n\r\n", "coding"),
    Refused("a coding of 100", head(b"Transfer-Encoding: gzip", first=b"HTTP/1.1 100 ") + HELLO, "coding"),
    Refused("chunks of 103", head(CHUNKED, first=b"HTTP/1.1 103 ") + HELLO, "coding"),
    Refused("chunks of 101", head(CHUNKED, b"Upgrade: x", first=b"HTTP/1.1 101 "), "coding", SWITCH),
    Refused("a coding as trailer", chunked(b"0\r\n" + CHUNKED + b"\r\n\r\n"), "coding"),
    Refused("a length as trailer", chunked(b"0\r\nContent-Length: 5\r\n\r\n"), "Content-Length"),
    # Lines.
    Refused("a folded value", head(b"A: b", b" c", b"Content-Length: 0"), "whitespace"),
    Refused("a value folded with a tab", head(b"A: b", b"\tc", b"Content-Length: 0"), "whitespace"),
    Refused("an empty value folded", head(b"A:", b" c", b"Content-Length: 0"), "value"),
    Refused("a folded first line", head(b" A: b", b"Content-Length: 0"), "space"),
    Refused("a folded trailer", chunked(b"0\r\nA: b\r\n c\r\n\r\n"), "whitespace"),
    Refused("LF after the status line", b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", "CR"),
    Refused("LF after a field", b"HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n", "CR"),
    Refused("LF at the head's end", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n", ""),
    Refused("nothing but LF", b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "CR"),
    Refused("CR in a value", head(b"A: b\rc", b"Content-Length: 0"), "LF"),
    Refused("CR in the reason", head(b"Content-Length: 0", first=b"HTTP/1.1 200 O\rK"), "LF"),
    Refused("CR after the status line", b"HTTP/1.1 200 OK\rContent-Length: 0\r\n\r\n", "LF"),
    Refused("CR at the head's end", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\rx", ""),
    Refused("CR twice", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\r\n\r\n", "LF"),
    Refused("a name without a colon", head(b"A", b"Content-Length: 0"), "header"),
    Refused("no name", head(b": b", b"Content-Length: 0"), "header"),
    Refused("a space after a name", head(b"Content-Length : 0"), "header"),
    # Chunks.
    *(
        Refused(f"the chunk size {size!r}", chunked(size + b"\r\nhello\r\n0\r\n\r\n"), "hunk")
        for size in (b"", b" 5", b"5 ", b"5\t", b"+5", b"-5", b"0x5", b"5h", b"5,5", b"5 ;a", b"5;", b"5; a", b'5;a="b')
    ),
    Refused("a chunk size that is too large", chunked(b"10000000000000000\r\n"), "hunk"),
    Refused("LF after a chunk size", chunked(b"5\nhello\r\n0\r\n\r\n"), "CR"),
    Refused("LF after an extension", chunked(b"5;a\nhello\r\n0\r\n\r\n"), "CR"),
    Refused("CR after a chunk size", chunked(b"5\rhello\r\n0\r\n\r\n"), "LF"),
    Refused("LF after a chunk", chunked(b"5\r\nhello\n0\r\n\r\n"), "CR"),
    Refused("nothing after a chunk", chunked(b"5\r\nhello0\r\n\r\n"), ""),
    Refused("a chunk that is longer than it says", chunked(b"4\r\nhello\r\n0\r\n\r\n"), ""),
    Refused("an empty line before a chunk", chunked(b"\r\n5\r\nhello\r\n0\r\n\r\n"), "hunk"),
    Refused("LF at the end of the chunks", chunked(b"0\r\n\n"), ""),
    Refused("LF after the last chunk", chunked(b"0\n\r\n"), "CR"),
    Refused("no end of the chunks", chunked(b"0\r\n0\r\n\r\n"), ""),
    # First lines.
    *(
        Refused(f"the status {status!r}", head(b"Content-Length: 0", first=b"HTTP/1.1 " + status), "")
        for status in (
            b"",
            b"0",
            b"20",
            b"099",
            b"000",
            b"600",
            b"999",
            b"2000",
            b"+20",
            b"-20",
            b"2 0",
            b"abc",
            b"200x",
            b" 200",
            b"20\xb2",
        )
    ),
    *(
        Refused(f"the version {version!r}", head(b"Content-Length: 0", first=version + b" 200 OK"), "")
        for version in (
            b"HTTP/0.9",
            b"HTTP/1.2",
            b"HTTP/2.0",
            b"HTTP/3.0",
            b"HTTP/1",
            b"HTTP/11",
            b"HTTP/1.10",
            b"HTTP/01.1",
            b"HTTP/1,1",
            b"HTTP /1.1",
        )
    ),
    *(
        Refused(f"it begins with {start!r}", start + HELLO, "")
        for start in (b"\r\n", b"\n", b" ", b"\x00", b"\xef\xbb\xbf", b"x", b"H")
    ),
    Refused("another protocol", HELLO.replace(b"HTTP", b"RTSP"), "begin with HTTP"),
    Refused("the protocol in small letters", HELLO.replace(b"HTTP", b"http"), "begin with HTTP"),
    Refused("TLS", b"\x15\x03\x01\x00\x02\x02\x46", "begin with HTTP"),
    Refused("a request", b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", ""),
    # Switches of protocols.
    Refused("101, unasked", head(b"Upgrade: x", b"Connection: upgrade", first=b"HTTP/1.1 101 ") + b"raw", "unasked"),
    Refused("101 to what?", head(b"Connection: upgrade", first=b"HTTP/1.1 101 "), "unasked", SWITCH),
]

TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
TEXT = frozenset([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])

# Where a byte stands, which may, and which mean something else there.
PLACES = {
    "a name": (head(b"Xa?b: y", b"Content-Length: 0"), TOKEN, b":"),
    "a value": (head(b"X: ya?b", b"Content-Length: 0"), TEXT, b""),
    "the reason": (head(b"Content-Length: 0", first=b"HTTP/1.1 200 a?b"), TEXT, b""),
    "a chunk size": (chunked(b"?\r\n", b"x\r\n0\r\n\r\n"), b"1", b"023456789abcdefABCDEF;"),
    "an extension's name": (chunked(b"1;a?b\r\n", b"x\r\n0\r\n\r\n"), TOKEN, b";="),
    "an extension's value": (chunked(b"1;a=b?c\r\n", b"x\r\n0\r\n\r\n"), TOKEN, b'";'),
    "a quoted value": (chunked(b'1;a="b?c"\r\n', b"x\r\n0\r\n\r\n"), TEXT - {ord('"'), ord("\\")}, b'"\\'),
    "a trailer's name": (chunked(b"0\r\n", b"Xa?b: y\r\n\r\n"), TOKEN, b":"),
    "a trailer's value": (chunked(b"0\r\n", b"X: ya?b\r\n\r\n"), TEXT, b""),
}


def fields_of(head: bytes) -> Fields:
    """Of a plain head: one space behind each colon."""
    return [(name, value) for name, value in (line.split(b": ", 1) for line in head.split(b"\r\n")[1:])]


def assert_tells(outcome: Outcome, message: Message) -> None:
    (answer,) = outcome.answers
    assert outcome.refusal is None
    assert not outcome.cut
    assert answer.interim == message.interim
    assert answer.status == message.status
    fields = message.fields
    if fields is None:
        final = message.data.split(b"\r\n\r\n")[len(message.interim)]
        fields = fields_of(final)
    assert answer.pairs == fields
    assert answer.body == message.body
    assert answer.trailers == message.trailers
    assert answer.keeps_alive == message.keeps_alive
    assert answer.ended == message.ended


def named(rows: Sequence[Message | Refused]) -> list[str]:
    return [row.what for row in rows]


@pytest.mark.parametrize("message", VALID, ids=named(VALID))
def test_a_valid_message_is_told_however_it_arrives(message: Message) -> None:
    whole = read([message.data], [message.asked])
    assert_tells(whole, message)
    for pieces in [one_by_one(message.data), *halves(message.data)]:
        assert read(pieces, [message.asked]).told == whole.told


@pytest.mark.parametrize("message", VALID, ids=named(VALID))
def test_a_message_that_is_cut_short_is_never_taken_for_whole(message: Message) -> None:
    whole = read([message.data], [message.asked])
    (answer,) = whole.answers
    ends_with_connection = message.status != 101 and answer.ended and answer.announced is None
    for at in range(1, len(message.data)):
        part = read([message.data[:at]], [message.asked])
        assert part.refusal is None
        if part.answers[0].status is not None and (message.status == 101 or (ends_with_connection and not part.cut)):
            # Nothing but the connection says where these end.
            assert CHUNKED not in message.data
            assert message.body.startswith(part.answers[0].body)
        else:
            assert part.cut
            assert not part.answers[0].ended
            assert part.begins(whole)


@pytest.mark.parametrize("message", REFUSED, ids=named(REFUSED))
def test_a_refused_message_is_refused_however_it_arrives(message: Refused) -> None:
    assert_is_refused(message, halves(message.data))


def assert_is_refused(message: Refused, cuts: Iterable[Sequence[bytes]], by_byte: bool = True) -> None:
    def refused(pieces: Sequence[bytes]) -> Outcome:
        outcome = read(pieces, [message.asked])
        reason = outcome.refusal
        assert reason is not None, "it was taken"
        if message.reason == SURPLUS and outcome.answers[0].ended:
            assert reason == SURPLUS_LATER
        else:
            assert message.reason in reason
            assert not outcome.answers[0].ended
        return outcome

    whole = refused([message.data])
    longest = refused(one_by_one(message.data)) if by_byte else None
    for pieces in cuts:
        outcome = refused(pieces)
        # The later the refusal comes, the more was told; never something else.
        assert whole.begins(outcome)
        assert longest is None or outcome.begins(longest)


@pytest.mark.parametrize("place", PLACES)
def test_a_byte_is_taken_where_the_grammar_has_it_and_nowhere_else(place: str) -> None:
    pattern, allowed, other = PLACES[place]
    for byte in set(range(0x100)) - set(other):
        data = pattern.replace(b"?", bytes([byte]))
        if byte in allowed:
            whole = read([data])
            assert whole.answers[0].ended, data
            assert read(one_by_one(data)).told == whole.told
        else:
            assert_is_refused(Refused(place, data, ""), halves(data))


# Limits, at the bound and one over it.

MANY_FIELDS = [b"a: b"] * (answers.MAX_FIELDS - 1)
LONGEST_HEAD = head(
    b"Content-Length: 0", b"a: " + b"b" * (answers.MAX_HEAD_BYTES - len(head(b"Content-Length: 0", b"a: ")))
)
LONGEST_INTERIM = LONGEST_HEAD.replace(b"200", b"103", 1)
LONGEST_SIZE_LINE = b"1;" + b"a" * (answers.MAX_CHUNK_OVERHEAD_BYTES - len(b"1;\r\n")) + b"\r\n"
LONGEST_TRAILERS = b"a:" + b"b" * (answers.MAX_CHUNK_OVERHEAD_BYTES - len(b"a:\r\n\r\n")) + b"\r\n\r\n"
"""Beside `0\\r\\n`, which its own credit pays for."""
MOST_INTERIM = head(first=b"HTTP/1.1 100 ") * answers.MAX_INTERIM_ANSWERS

AT_THE_BOUND = [
    ("a head's bytes", LONGEST_HEAD),
    ("an interim head's bytes", LONGEST_INTERIM + LONGEST_HEAD),
    ("fields", head(b"Content-Length: 0", *MANY_FIELDS)),
    ("fields of an interim answer", head(b"c: d", *MANY_FIELDS, first=b"HTTP/1.1 103 ") + HELLO),
    ("trailers", chunked(b"0\r\n") + head(*MANY_FIELDS, first=b"c: d")),
    ("trailers' bytes", chunked(b"0\r\n", LONGEST_TRAILERS)),
    ("interim answers", MOST_INTERIM + HELLO),
    ("an extension", chunked(LONGEST_SIZE_LINE, b"x\r\n0\r\n\r\n")),
    (
        "zeros before a chunk size",
        chunked(LONGEST_SIZE_LINE.replace(b"1;", b"00").replace(b"a\r", b"1\r").replace(b"a", b"0"), b"x\r\n0\r\n\r\n"),
    ),
    ("chunks of one byte", chunked(b"1\r\nx\r\n" * 3000, b"0\r\n\r\n")),
    ("short extensions", chunked(b"1;abcdefghij\r\nx\r\n" * 3000, b"0\r\n\r\n")),
    (
        "extensions as long as their data",
        chunked((b"100;" + b"a" * 256 + b"\r\n" + b"x" * 256 + b"\r\n") * 100, b"0\r\n\r\n"),
    ),
]
OVER_THE_BOUND = [
    Refused("a head's bytes", LONGEST_HEAD.replace(b"b", b"bb", 1), "head is too large"),
    Refused("an interim head's bytes", LONGEST_INTERIM.replace(b"b", b"bb", 1), "head is too large"),
    Refused("a head without an end", b"HTTP/1.1 200 " + b"x" * answers.MAX_HEAD_BYTES, "head is too large"),
    Refused("fields", head(b"Content-Length: 0", b"c: d", *MANY_FIELDS), "too many header fields"),
    Refused(
        "fields of an interim answer",
        head(b"c: d", b"e: f", *MANY_FIELDS, first=b"HTTP/1.1 103 "),
        "too many header fields",
    ),
    Refused("trailers", chunked(b"0\r\n") + head(b"c: d", *MANY_FIELDS, first=b"e: f"), "too many header fields"),
    Refused("trailers' bytes", chunked(b"0\r\n", LONGEST_TRAILERS.replace(b"b", b"bb", 1)), "trailers are too large"),
    Refused(
        "trailers without an end",
        chunked(b"0\r\n", b"a:" + b"b" * answers.MAX_CHUNK_OVERHEAD_BYTES),
        "trailers are too large",
    ),
    Refused("interim answers", MOST_INTERIM + head(first=b"HTTP/1.1 100 ") + HELLO, "too many interim answers"),
    Refused("an extension", chunked(LONGEST_SIZE_LINE.replace(b"a", b"aa", 1), b"x\r\n0\r\n\r\n"), "extensions"),
    Refused("an extension without an end", chunked(b"1;" + b"a" * answers.MAX_CHUNK_OVERHEAD_BYTES), "extensions"),
    Refused(
        "extensions, one byte too long for what they bring",
        chunked((b"1;" + b"a" * 2000 + b"\r\nx\r\n") * 10),
        "extensions",
    ),
    Refused(
        "no credit for what came long before",
        chunked(b"8000\r\n", b"x" * 0x8000, b"\r\n1;", b"a" * answers.MAX_CHUNK_OVERHEAD_BYTES, b"\r\n"),
        "extensions",
    ),
    Refused(
        "no credit for what comes after",
        chunked(b"1;", b"a" * answers.MAX_CHUNK_OVERHEAD_BYTES, b"\r\nx\r\n", b"8000\r\n", b"x" * 0x8000),
        "extensions",
    ),
]


def some_cuts(data: bytes) -> Iterable[Sequence[bytes]]:
    """In two near the ends and, evenly, between them; into reads of one packet."""
    size = len(data)
    places = {*range(1, 50), *range(size - 50, size), *range(50, size, max(1, size // 40))}
    yield from ((data[:at], data[at:]) for at in sorted(places) if 0 < at < size)
    yield [data[at : at + 1460] for at in range(0, size, 1460)]


@pytest.mark.parametrize(("what", "data"), AT_THE_BOUND, ids=[what for what, _ in AT_THE_BOUND])
def test_what_reaches_a_bound_is_taken_however_it_arrives(what: str, data: bytes) -> None:
    whole = read([data])
    assert whole.refusal is None
    assert whole.answers[0].ended
    for pieces in some_cuts(data):
        assert read(pieces).told == whole.told
    if len(data) < 64 * 1024:
        assert read(one_by_one(data)).told == whole.told


@pytest.mark.parametrize("message", OVER_THE_BOUND, ids=named(OVER_THE_BOUND))
def test_what_goes_over_a_bound_is_refused_however_it_arrives(message: Refused) -> None:
    assert_is_refused(message, some_cuts(message.data), by_byte=len(message.data) < 64 * 1024)


@settings(deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), max_size=6),
    last=st.integers(0, 60),
    trailer=st.integers(0, 60),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_the_allowance_of_chunks_is_counted_byte_by_byte(
    chunks: list[tuple[int, int]], last: int, trailer: int, cuts: list[int]
) -> None:
    """Each chunk: the size of its data and of its extension."""
    bound = 64
    lines = [b"%x" % size + b";" * (extension > 0) + b"a" * extension + b"\r\n" for size, extension in chunks]
    end = b"0" + b";" * (last > 0) + b"a" * last + b"\r\n"
    trailers = b"a:" + b"b" * trailer + b"\r\n\r\n"
    data = chunked(
        *(line + b"x" * size + b"\r\n" for line, (size, _) in zip(lines, chunks, strict=True)), end, trailers
    )
    # The law, as Go has it: lines cost, and what they announced pays when it comes.
    spent, peak = 0, 0
    for line, (size, _) in zip(lines, chunks, strict=True):
        spent += len(line)
        peak = max(peak, spent)
        spent = max(0, max(0, spent - answers.CHUNK_CREDIT_BYTES) - 2 * size) + len(b"\r\n")
    spent += len(end)
    peak = max(peak, spent)
    peak = max(peak, max(0, spent - answers.CHUNK_CREDIT_BYTES) + len(trailers))
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(answers, "MAX_CHUNK_OVERHEAD_BYTES", bound)
        for pieces in ([data], one_by_one(data), [data[a:b] for a, b in itertools.pairwise(places)]):
            outcome = read(pieces)
            assert (outcome.refusal is not None) == (peak > bound)
            assert outcome.answers[0].ended == (peak <= bound)


# Combinations.

SECOND = head(b"Content-Length: 6") + b"second"
INTERIM: list[tuple[int, ...]] = [(), (100,), (103, 102), (102, 100, 103)]
EVERY_INTERIM = [sequence for count in range(4) for sequence in itertools.product((100, 102, 103), repeat=count)]
FRAMINGS = {
    "counted": ([b"Content-Length: 5"], b"hello"),
    "zero-counted": ([b"Content-Length: 0"], b""),
    "chunked": ([CHUNKED], b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    "extended": ([CHUNKED], b"2;a=b\r\nhe\r\n3\r\nllo\r\n0;c\r\nd: e\r\nf:g\r\n\r\n"),
    "until close": ([], b"hello"),
}
CONNECTIONS = [None, b"close", b"keep-alive"]


@dataclass(frozen=True)
class Combination:
    asked: Asked
    interim: tuple[int, ...]
    status: int
    framing: str
    version: bytes
    connection: bytes | None

    @property
    def has_body(self) -> bool:
        return not self.asked.to_head and self.status not in {204, 304}

    @property
    def data(self) -> bytes:
        lines, body = FRAMINGS[self.framing]
        if self.connection is not None:
            lines = [*lines, b"Connection: " + self.connection]
        interim = b"".join(head(b"a: b", first=b"HTTP/1.1 %d " % status) for status in self.interim)
        return interim + head(*lines, first=b"%s %d x" % (self.version, self.status)) + body * self.has_body

    @property
    def is_refused(self) -> bool:
        return CHUNKED in self.data and self.version == b"HTTP/1.0"

    @property
    def ends_with_connection(self) -> bool:
        return self.has_body and self.framing == "until close"

    @property
    def keeps_alive(self) -> bool:
        says_so = self.connection == b"keep-alive" or (self.connection is None and self.version == b"HTTP/1.1")
        return says_so and not self.ends_with_connection

    def is_told(self, answer: Answer) -> bool:
        body = b"" if self.framing == "zero-counted" or not self.has_body else b"hello"
        trailers = [(b"d", b"e"), (b"f", b"g")] if self.framing == "extended" and self.has_body else []
        return (
            [status for status, _ in answer.interim] == list(self.interim)
            and answer.status == self.status
            and answer.keeps_alive == self.keeps_alive
            and answer.body == body
            and answer.trailers == trailers
            and answer.ended
        )


COMBINED = [
    Combination(*parts)
    for parts in itertools.product(
        [GET, HEAD], INTERIM, [200, 204, 206, 304, 404, 500], FRAMINGS, [b"HTTP/1.1", b"HTTP/1.0"], CONNECTIONS
    )
]


@pytest.mark.parametrize("status", [200, 204, 206, 304, 404, 500])
@pytest.mark.parametrize("asked", [GET, HEAD], ids=["GET", "HEAD"])
def test_every_combination_is_told_however_it_arrives(asked: Asked, status: int) -> None:
    for combination in COMBINED:
        if combination.asked is asked and combination.status == status:
            assert_is_told(combination)


@pytest.mark.parametrize("asked", [GET, HEAD], ids=["GET", "HEAD"])
def test_every_sequence_of_interim_answers_is_told_however_it_arrives(asked: Asked) -> None:
    for interim, framing in itertools.product(EVERY_INTERIM, FRAMINGS):
        assert_is_told(Combination(asked, interim, 200, framing, b"HTTP/1.1", None))


def assert_is_told(combination: Combination) -> None:
    data = combination.data
    for pieces in [[data], one_by_one(data), *halves(data)]:
        outcome = read(pieces, [combination.asked])
        if combination.is_refused:
            assert "coding" in str(outcome.refusal)
            assert outcome.answers[0].status is None
        else:
            assert outcome.refusal is None
            assert not outcome.cut
            assert combination.is_told(outcome.answers[0])


@pytest.mark.parametrize("status", [200, 204, 206, 304, 404, 500])
@pytest.mark.parametrize("asked", [GET, HEAD], ids=["GET", "HEAD"])
def test_no_byte_of_an_answer_reaches_another_exchange(asked: Asked, status: int) -> None:
    """Each answer is followed by a second one: to a second request if the connection is kept, else to nothing."""
    for parts in itertools.product(FRAMINGS, [b"HTTP/1.1", b"HTTP/1.0"], CONNECTIONS):
        combination = Combination(asked, (103,), status, *parts)
        if combination.is_refused or combination.ends_with_connection:
            continue
        data = combination.data
        apart = [[data, SECOND], [*one_by_one(data), *one_by_one(SECOND)]]
        apart += [[*pieces, SECOND] for pieces in halves(data)]
        apart += [[data, *pieces] for pieces in halves(SECOND)]
        for pieces in apart:
            outcome = read(pieces, [asked, GET])
            assert combination.is_told(outcome.answers[0])
            if combination.keeps_alive:
                assert outcome.refusal is None
                assert outcome.answers[1].body == b"second"
                assert outcome.answers[1].ended
            else:
                assert outcome.refusal == SURPLUS_LATER
                assert len(outcome.answers) == 1
        # Of one read with the end of the first, nothing may be taken for an answer to what is asked later.
        for before, after in [(b"", data), *halves(data)]:
            pieces = [piece for piece in (before, after + SECOND) if piece]
            outcome = read(pieces, [asked, GET])
            assert SURPLUS in str(outcome.refusal)
            assert len(outcome.answers) == 1
            assert not outcome.answers[0].ended


def test_an_answer_may_be_awaited_as_soon_as_the_one_before_has_ended() -> None:
    """As the connection does it: the next request goes out while the last answer's end is told."""

    class Successor(Answer):
        def on_end(self, trailers: answers.Pairs) -> None:
            super().on_end(trailers)
            reader.expect(second)

    for first in (HELLO, chunked(b"5\r\nhello\r\n0\r\n\r\n")):
        reader, second = AnswerReader(), Answer()
        successor = Successor()
        reader.expect(successor)
        reader.feed(first)
        assert reader.framing is Framing.HEAD
        reader.feed(SECOND)
        assert (successor.body, second.body) == (b"hello", b"second")
        assert second.ended


def test_a_reader_that_was_let_go_tells_nobody() -> None:
    reader, answer = AnswerReader(), Answer()
    reader.expect(answer)
    reader.feed(HELLO[:-1])
    reader.forget()
    with pytest.raises(httpx.RemoteProtocolError):
        reader.feed(b"o")
    assert (answer.body, answer.ended) == (b"hell", False)


def test_a_sink_may_let_the_reader_go_while_it_is_told() -> None:
    class Leaver(Answer):
        def on_interim(self, status: int, pairs: answers.Pairs) -> None:
            super().on_interim(status, pairs)
            reader.forget()

        def on_head(self, status: int, pairs: answers.Pairs, *, keeps_alive: bool) -> None:
            super().on_head(status, pairs, keeps_alive=keeps_alive)
            reader.forget()

    for data in (message.data for message in VALID):
        reader, leaver = AnswerReader(), Leaver()
        reader.expect(leaver)
        with contextlib.suppress(httpx.RemoteProtocolError):
            reader.feed(data)
        assert len(leaver.interim) + (leaver.status is not None) <= 1
        assert leaver.body == b""
        assert not leaver.ended


def test_nothing_may_come_before_anything_was_asked() -> None:
    with pytest.raises(httpx.RemoteProtocolError, match=SURPLUS_LATER):
        AnswerReader().feed(HELLO)
    assert AnswerReader().feed_end()


def test_data_that_no_chunk_size_announced_is_refused() -> None:
    """Should llhttp ever see another framing than we."""
    reader = AnswerReader()
    reader.expect(Answer())
    reader.feed(head(CHUNKED))
    with pytest.raises(ValueError, match="without a chunk size"):
        reader.on_body(b"x")
