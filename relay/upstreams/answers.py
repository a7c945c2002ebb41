"""Reads what an upstream sends: heads, framing and bodies of HTTP/1.1 answers, from bytes as they arrive. No I/O.

Theory of operation. llhttp (httptools, strict) reads heads and chunks; what frames the message is decided here, once,
from the head (RFC 9112 section 6.3). The parser is fed exactly a head: its end is the first empty line, for strict
llhttp ends a head nowhere else. So what follows is known to the byte. Counted bodies and those that end with the
connection do not go through the parser at all: a piece is passed on as it came from the socket. Chunks are cut out by
the parser, each once.

Refused as `httpx.RemoteProtocolError`, for good: everything that two readers could read in two ways. Both lengths,
repeated lengths, obsolete folding, bare CR or LF, bad bytes in names, values, reason and chunk sizes, transfer codings
other than one `chunked`, statuses outside 100-599, a protocol switch nobody asked for, bytes after the end of the
message. Bounded: a head's bytes and fields, the number of interim answers, what stands between the data of chunks.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NoReturn, Protocol

import httptools
import httpx

from relay.rules.headers import Pairs

MAX_HEAD_BYTES = 128 * 1024
"""Of one head, status line and all."""
MAX_FIELDS = 256
"""Of one head, and of one trailer section."""
MAX_INTERIM_ANSWERS = 32
"""1xx answers to one request."""
MAX_CHUNK_OVERHEAD_BYTES = 16 * 1024
"""What chunk sizes, extensions and trailers of one answer may take beyond `CHUNK_CREDIT_BYTES` for each chunk and
twice the data: Go's rule. Small chunks are no attack, large extensions are."""
CHUNK_CREDIT_BYTES = 16

_HEAD_END = b"\r\n\r\n"
_H = ord("H")
"""llhttp also takes empty lines, RTSP and ICE."""
_FRAMING_LENGTHS = frozenset(map(len, (b"connection", b"content-length", b"transfer-encoding")))
"""Few other names are as long, so few are looked at."""
_TOO_MUCH_OVERHEAD = "chunk extensions or trailers are too large"
_BAD_REASON = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class Framing(Enum):
    """How the end of what is being read is told."""

    NOTHING = "nothing"
    """Nothing is asked, or the answer is over: not a byte may come."""
    HEAD = "head"
    COUNTED = "counted"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"
    RAW = "raw"
    """No longer HTTP, after 101."""


class Sink(Protocol):
    """Who is told what was read, in the wire's order."""

    def on_interim(self, status: int, pairs: Pairs) -> None: ...

    def on_head(self, status: int, pairs: Pairs, *, keeps_alive: bool) -> None: ...

    def on_piece(self, piece: bytes) -> None: ...

    def on_end(self, trailers: Pairs) -> None: ...


class AnswerReader:
    """The answers of one connection, one after another."""

    __slots__ = (
        "_at",
        "_data",
        "_error",
        "_fields",
        "_gap",
        "_head_bytes",
        "_head_read",
        "_interim_answers",
        "_may_switch",
        "_message_read",
        "_messages_begun",
        "_overhead",
        "_parser",
        "_pieces",
        "_reason",
        "_remaining",
        "_sink",
        "_tail",
        "_to_head",
        "framing",
    )

    def __init__(self) -> None:
        self.framing = Framing.NOTHING
        self._parser: httptools.HttpResponseParser | None = None
        self._pieces: list[bytes] = []
        self._remaining = 0
        self._error: str | None = None

    def expect(self, sink: Sink, *, to_head: bool = False, may_switch: bool = False) -> None:
        """A request went out: what comes next answers it. `to_head`: its method was HEAD. `may_switch`: it asked to
        switch protocols."""
        self._sink = sink
        self._to_head = to_head
        self._may_switch = may_switch
        self._interim_answers = 0
        self._begin_head()

    def feed(self, data: bytes) -> None:
        """Read on. Raises `httpx.RemoteProtocolError`; nothing can be read after that."""
        framing = self.framing
        if framing is Framing.COUNTED:
            self._feed_counted(data)
        elif framing is Framing.HEAD:
            self._feed_head(data)
        elif framing is Framing.CHUNKED:
            self._feed_chunked(data)
        elif framing is not Framing.NOTHING:
            self._sink.on_piece(data)
        else:
            self._refuse("bytes that belong to no answer")

    def feed_end(self) -> bool:
        """The upstream closed its side. False when that cuts an answer short."""
        if self.framing is Framing.UNTIL_CLOSE:
            self._finish([])
            return True
        return self.framing is Framing.NOTHING or self.framing is Framing.RAW

    def forget(self) -> None:
        """Let go of sink and parser, which refer back here."""
        self.framing = Framing.NOTHING
        self._parser = None
        self._sink = _NOBODY

    # Heads.

    def _begin_head(self) -> None:
        self.framing = Framing.HEAD
        self._parser = httptools.HttpResponseParser(self)
        self._fields: Pairs = []
        self._reason = b""
        self._head_bytes = 0
        self._head_read = False
        self._message_read = False
        self._messages_begun = 0
        self._tail = b""

    def _feed_head(self, data: bytes) -> None:
        """`data` up to the end of the head goes through the parser, what follows through `feed`."""
        if not self._head_bytes and data[0] != _H:
            self._refuse("it does not begin with HTTP/1.1")
        tail = self._tail
        # The empty line may have begun in what came before.
        found = (tail + data if tail else data).find(_HEAD_END)
        end = found + len(_HEAD_END) - len(tail) if found >= 0 else len(data)
        self._head_bytes += end
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse("the head is too large")
        rest = data[end:]
        self._parse(data[:end] if rest else data)
        if found < 0:
            self._tail = (tail + data[-3:])[-3:]
            return
        self._judge_head(is_last=not rest)
        if rest:
            self.feed(rest)

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            self._refuse("nothing can be read any more")
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as problem:
            if self.framing is Framing.CHUNKED and self._message_read:
                self._refuse("bytes after the end of the answer")
            if not (self._head_read and self.framing is Framing.HEAD and parser.get_status_code() == 101):
                # llhttp's texts are its own, not the upstream's.
                self._refuse(self._error or str(problem) or type(problem).__name__)

    def _judge_head(self, *, is_last: bool) -> None:
        """`is_last`: nothing came behind the head yet."""
        parser = self._parser
        if parser is None or not self._head_read:
            self._refuse("the head is malformed")
        status: int = parser.get_status_code()
        version: str = parser.get_http_version()
        if version != "1.1" and version != "1.0":
            self._refuse(f"HTTP/{version}")
        if not 100 <= status <= 599:
            self._refuse(f"status {status}")
        if self._reason != b"OK" and _BAD_REASON.search(self._reason):
            self._refuse("control byte in the reason phrase")
        pairs = self._fields
        if status < 200:
            self._judge_interim(status, pairs)
            return
        length: bytes | None = None
        chunked = False
        keeps_alive = version == "1.1"
        closes = False
        for name, value in pairs:
            if len(name) in _FRAMING_LENGTHS:
                name = name.lower()
                if name == b"content-length":
                    length = value
                elif name == b"connection":
                    tokens = [token.strip(b" \t") for token in value.lower().split(b",")]
                    closes = closes or b"close" in tokens
                    keeps_alive = keeps_alive or b"keep-alive" in tokens
                elif name != b"transfer-encoding":
                    continue
                elif chunked or value.lower() != b"chunked" or version != "1.1":
                    # RFC 9112 section 6.1: an HTTP/1.0 message with a transfer coding is framed faultily.
                    self._refuse("a transfer coding other than one chunked")
                else:
                    chunked = True
        if self._to_head or status == 204 or status == 304:
            framing = Framing.NOTHING
        elif chunked:
            framing = Framing.CHUNKED
            self._fields = []
            # As if the line end behind a chunk had come, at no cost: a size line is next.
            self._gap = 2
            self._overhead = -2
            self._tail = b""
        elif length is not None:
            self._remaining = int(length)
            framing = Framing.COUNTED if self._remaining else Framing.NOTHING
        else:
            framing = Framing.UNTIL_CLOSE
            keeps_alive = False
        if framing is Framing.NOTHING and not is_last:
            self._refuse("bytes after the end of the answer")
        self.framing = framing
        if framing is not Framing.CHUNKED:
            self._parser = None
        self._sink.on_head(status, pairs, keeps_alive=keeps_alive and not closes)
        if framing is Framing.NOTHING:
            self._finish([])

    def _judge_interim(self, status: int, pairs: Pairs) -> None:
        if any(name.lower() == b"transfer-encoding" for name, _ in pairs):
            # RFC 9112 section 6.1: none may have one, and who heeds it takes the next head for a body.
            self._refuse("a transfer coding of an interim answer")
        if status == 101:
            if not self._may_switch or not any(name.lower() == b"upgrade" for name, _ in pairs):
                self._refuse("it switched protocols unasked")
            self.framing = Framing.RAW
            self._parser = None
            self._sink.on_head(status, pairs, keeps_alive=False)
            return
        self._interim_answers += 1
        if self._interim_answers > MAX_INTERIM_ANSWERS:
            self._refuse("too many interim answers")
        self._sink.on_interim(status, pairs)
        self._begin_head()

    # Bodies.

    def _feed_counted(self, data: bytes) -> None:
        remaining = self._remaining - len(data)
        if remaining < 0:
            self._refuse("bytes after the end of the answer")
        self._remaining = remaining
        self._sink.on_piece(data)
        if not remaining:
            self._finish([])

    def _feed_chunked(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._parse(data)
        self._data = b""
        self._gap += len(data) - self._at
        if self._overhead + self._gap > MAX_CHUNK_OVERHEAD_BYTES:
            self._refuse(_TOO_MUCH_OVERHEAD)
        tail = (self._tail + data[-5:])[-5:]
        if self._messages_begun > 1 or (self._message_read and (not tail.endswith(_HEAD_END) or tail[0] in b"\r\n")):
            # llhttp skips empty lines behind a message.
            self._refuse("bytes after the end of the answer")
        self._tail = tail
        if self._message_read and any(name.lower() == b"transfer-encoding" for name, _ in self._fields):
            # RFC 9110 section 6.5.1: trailers may not frame. llhttp refuses a length, but not this.
            self._refuse("a transfer coding as trailer")
        pieces = self._pieces
        if pieces:
            self._pieces = []
            for piece in pieces:
                self._sink.on_piece(piece)
        if self._message_read:
            self._finish(self._fields)

    def _finish(self, trailers: Pairs) -> None:
        self.framing = Framing.NOTHING
        self._parser = None
        # An idle connection keeps nothing of what it carried.
        self._fields = []
        sink, self._sink = self._sink, _NOBODY
        sink.on_end(trailers)

    def _refuse(self, reason: str) -> NoReturn:
        self.framing = Framing.NOTHING
        self._parser = None
        raise httpx.RemoteProtocolError(reason)

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._messages_begun += 1

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        fields = self._fields
        if len(fields) >= MAX_FIELDS:
            self._error = "too many header fields"
            raise ValueError(self._error)
        if b"\t" in value and name.lower() == b"transfer-encoding":
            # llhttp does not know a coding with a tab behind it, and would take chunks for the body itself.
            self._error = "a tab behind a transfer coding"
            raise ValueError(self._error)
        fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self._head_read = True

    def on_chunk_header(self) -> None:
        # Overhead is counted line by line, and credit where it is earned: it must not matter how the bytes arrived.
        # The first LF may be that behind the data before. Strict llhttp takes no other but the line's own.
        at = self._at
        gap = self._gap
        end = self._data.index(b"\n", at if gap > 1 else at + 2 - gap) + 1
        overhead = self._overhead + gap + end - at
        if overhead > MAX_CHUNK_OVERHEAD_BYTES:
            self._error = _TOO_MUCH_OVERHEAD
            raise ValueError(self._error)
        self._at = end
        self._gap = 0
        self._overhead = overhead - CHUNK_CREDIT_BYTES if overhead > CHUNK_CREDIT_BYTES else 0

    def on_body(self, piece: bytes) -> None:
        if self._gap:
            # It does not see chunks where we do.
            self._error = "data without a chunk size"
            raise ValueError(self._error)
        self._pieces.append(piece)
        size = len(piece)
        self._at += size
        credit = 2 * size
        self._overhead = self._overhead - credit if self._overhead > credit else 0

    def on_message_complete(self) -> None:
        self._message_read = True


class _Nobody:
    def on_interim(self, status: int, pairs: Pairs) -> None:
        pass

    def on_head(self, status: int, pairs: Pairs, *, keeps_alive: bool) -> None:
        pass

    def on_piece(self, piece: bytes) -> None:
        pass

    def on_end(self, trailers: Pairs) -> None:
        pass


_NOBODY: Sink = _Nobody()
