"""`AnswerReader` beside h11, an independent reader, over answers that were generated, and spoiled.

The law: what we take, h11 takes, and reads the same out of it. What h11 takes and we refuse falls under one of the
`STRICTER` rules, and whatever falls under one is refused: the list is exact. What we read otherwise on purpose is in
`is_h11s_own_limit` and `keeps_alive_by_h11`. Limits of size and number are left to test_answers.

`RELAY_TEST_EXAMPLES` is how many answers are tried; 100 without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import h11
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.upstreams.telling import Asked, read

Fields = list[tuple[bytes, bytes]]

TRIED = settings(
    max_examples=int(os.environ.get("RELAY_TEST_EXAMPLES", "100")),
    derandomize=False,  # CI too looks for what was not seen before
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# What h11 reads.


@dataclass(slots=True)
class Reading:
    interim: list[tuple[int, Fields]] = field(default_factory=list)
    status: int | None = None
    version: bytes = b""
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    keeps_alive: bool = False
    taken: bool = False
    """To its end, or to a switch of protocols."""
    refusal: str | None = None
    """Before the end of the connection: with it, what is not whole is only cut short."""
    heads: list[bytes] = field(default_factory=list)
    """As they came, interim ones too."""
    between: list[bytes] = field(default_factory=list)
    """What came around the data: size lines, and the last with its trailers."""
    surplus: bytes = b""

    @property
    def is_chunked(self) -> bool:
        return b"transfer-encoding" in names(self.fields) and self.between[-1:] not in ([], [b""])


def read_by_h11(data: bytes, asked: Asked) -> Reading:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(data) + 1)
    headers = [(b"Host", b"x")] + [(b"Upgrade", b"x"), (b"Connection", b"upgrade")] * asked.may_switch
    connection.send(h11.Request(method=b"HEAD" if asked.to_head else b"GET", target=b"/", headers=headers))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    reading = Reading()
    has_ended = False
    while True:
        before = connection.trailing_data[0]
        try:
            happened = connection.next_event()
        except h11.RemoteProtocolError as refusal:
            if not has_ended:
                reading.refusal = str(refusal)
            return reading
        after = connection.trailing_data[0]
        came = before[: len(before) - len(after)]
        if happened is h11.NEED_DATA:
            has_ended = True
            connection.receive_data(b"")
        elif isinstance(happened, h11.InformationalResponse) and happened.status_code != 101:
            reading.heads.append(came)
            reading.interim.append((happened.status_code, list(happened.headers)))
        elif isinstance(happened, h11.Response | h11.InformationalResponse):
            reading.heads.append(came)
            reading.status, reading.version = happened.status_code, happened.http_version
            reading.fields = list(happened.headers)
            if happened.status_code == 101:
                reading.body, reading.taken = after, True
                return reading
        elif isinstance(happened, h11.Data):
            reading.body += happened.data
            reading.between.append(came[: len(came) - len(happened.data)])
        elif isinstance(happened, h11.EndOfMessage):
            reading.between.append(came)
            reading.trailers = list(happened.headers)
            reading.keeps_alive = connection.our_state is h11.DONE
            reading.surplus, reading.taken = after, True
            return reading
        else:
            return reading


# What is allowed to differ.


GET = Asked()
SWITCH = Asked(may_switch=True)


@dataclass(frozen=True)
class Rule:
    """Something that h11 takes and we refuse."""

    what: str
    section: str
    holds: Callable[[Reading], Any]
    example: bytes
    """That shows this rule, and no other."""
    asked: Asked = GET


def has_bare_lf(lines: bytes) -> bool:
    return re.search(rb"(?<!\r)\n", lines) is not None


def has_fold(lines: bytes) -> bool:
    return re.search(rb"\n[ \t]", lines) is not None


def names(fields: Fields) -> set[bytes]:
    return {name for name, _ in fields}


def all_fields(reading: Reading) -> list[Fields]:
    return [reading.fields, *(fields for _, fields in reading.interim)]


def lengths_of(head: bytes) -> list[bytes]:
    return re.findall(rb"(?mi)^content-length:[ \t]*(.*?)[ \t\r]*$", head)


LONG_NUMBER = re.compile(rb"0[0-9A-Fa-f]{20}")
CONTROL = re.compile(rb"[\x01-\x08\x0e-\x1f\x7f]")
"""What h11 lets pass of it."""
TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*"
VALUE = rb'%s(?:"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*")?' % TOKEN
SIZE_LINE = re.compile(rb"(?:\r\n)?[0-9A-Fa-f]+(?:;%s(?:=%s)?)*(?<!;)\r\n" % (TOKEN, VALUE))
"""As llhttp has it, which is lax about what an extension may lack. It goes no further than here."""


def size_lines(reading: Reading) -> list[bytes]:
    return reading.between if reading.is_chunked else []


def trailer_lines(reading: Reading) -> bytes:
    """Of the last chunk: what follows its size line."""
    return re.sub(rb"\A(?:\r\n)?[^\n]*\n", b"", reading.between[-1]) if reading.is_chunked else b""


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

STRICTER = [
    Rule(
        "bytes behind the end of the answer",
        "RFC 9112 section 6.3",
        lambda reading: reading.surplus,
        HEAD + b"Content-Length: 0\r\n\r\nx",
    ),
    Rule(
        "a bare LF as line end",
        "RFC 9112 section 2.2",
        lambda reading: has_bare_lf(b"".join(reading.heads)) or has_bare_lf(trailer_lines(reading)),
        HEAD + b"Content-Length: 0\n\r\n",
    ),
    Rule(
        "obsolete line folding",
        "RFC 9112 section 5.2",
        lambda reading: any(map(has_fold, [*reading.heads, b"\n" + trailer_lines(reading)])),
        HEAD + b"A: b\r\n c\r\n\r\n",
    ),
    Rule(
        "a control byte in a value or the reason",
        "RFC 9110 section 5.5",
        lambda reading: CONTROL.search(b"".join(reading.heads) + trailer_lines(reading)),
        HEAD + b"A: \x01\r\n\r\n",
    ),
    Rule(
        "a version other than 1.1 and 1.0",
        "RFC 9112 section 2.3",
        lambda reading: any(not head.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")) for head in reading.heads),
        b"HTTP/1.2 200 OK\r\n\r\n",
    ),
    Rule(
        "a status above 599",
        "RFC 9110 section 15",
        lambda reading: reading.status and reading.status > 599,
        b"HTTP/1.1 600 x\r\n\r\n",
    ),
    Rule(
        "both Content-Length and Transfer-Encoding",
        "RFC 9112 section 6.3",
        lambda reading: any(
            {b"content-length", b"transfer-encoding"} <= names(fields) for fields in all_fields(reading)
        ),
        HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    Rule(
        "one Content-Length twice",
        "RFC 9112 section 6.3",
        lambda reading: any(
            len(lengths) > 1 or any(b"," in length for length in lengths) for lengths in map(lengths_of, reading.heads)
        ),
        HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    ),
    Rule(
        "a Content-Length of more than 64 bits",
        "RFC 9110 section 8.6",
        lambda reading: any(
            name == b"content-length" and int(value) >= 2**64
            for fields in all_fields(reading)
            for name, value in fields
        ),
        HEAD.replace(b"200", b"304") + b"Content-Length: 18446744073709551616\r\n\r\n",
    ),
    Rule(
        "a tab behind chunked, which llhttp does not take for chunked",
        "RFC 9110 section 5.6.3",
        lambda reading: any(re.search(rb"(?mi)^transfer-encoding:[ \t]*chunked *\t", head) for head in reading.heads),
        HEAD + b"Transfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
    ),
    Rule(
        "chunked in HTTP/1.0",
        "RFC 9112 section 6.1",
        lambda reading: reading.version < b"1.1" and b"transfer-encoding" in names(reading.fields),
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    Rule(
        "chunked in an interim answer, or with a switch of protocols",
        "RFC 9112 section 6.1",
        lambda reading: any(
            b"transfer-encoding" in names(fields)
            for status, fields in [*reading.interim, (reading.status, reading.fields)]
            if status and status < 200
        ),
        b"HTTP/1.1 103 x\r\nTransfer-Encoding: chunked\r\n\r\n" + HEAD + b"\r\n",
    ),
    Rule(
        "a switch to no protocol",
        "RFC 9110 section 7.8",
        lambda reading: reading.status == 101 and b"upgrade" not in names(reading.fields),
        b"HTTP/1.1 101 x\r\n\r\n",
        Asked(may_switch=True),
    ),
    Rule(
        "a size line with spaces or a malformed extension",
        "RFC 9112 section 7.1.1",
        lambda reading: any(not SIZE_LINE.match(line) for line in size_lines(reading)),
        CHUNKED + b"1 \r\nx\r\n0\r\n\r\n",
    ),
    Rule(
        "a trailer that frames",
        "RFC 9110 section 6.5.1",
        lambda reading: names(reading.trailers) & {b"content-length", b"transfer-encoding"},
        CHUNKED + b"0\r\nContent-Length: 0\r\n\r\n",
    ),
]


def is_h11s_own_limit(reading: Reading, data: bytes) -> bool:
    """h11 bounds the digits of numbers, we what they stand for. The grammar (RFC 9112 section 7.1, RFC 9110 section
    8.6) has no bound."""
    refusal = reading.refusal or ""
    return refusal.startswith(("illegal chunk header", "bad Content-Length")) and LONG_NUMBER.search(data) is not None


def keeps_alive_by_h11(reading: Reading, asked: Asked) -> bool | None:
    """None where we judge otherwise on purpose."""
    if reading.version == b"1.0" and any(
        name == b"connection" and b"keep-alive" in value.lower() for name, value in reading.fields
    ):
        # RFC 9112 section 9.3 has the connection kept. h11 never does.
        return None
    has_body = not asked.to_head and reading.status not in {204, 304}
    if has_body and not names(reading.fields) & {b"content-length", b"transfer-encoding"}:
        # The end of the connection is the end of the answer. h11 leaves it to what comes next to find out.
        return None
    return reading.keeps_alive


def assert_read_alike(data: bytes, asked: Asked) -> list[str]:
    """What came of it."""
    outcome = read([data], [asked])
    reading = read_by_h11(data, asked)
    (answer,) = outcome.answers
    taken = outcome.refusal is None and (answer.ended or answer.status == 101)
    if reading.taken:
        reasons = [rule.what for rule in STRICTER if rule.holds(reading)]
        assert (outcome.refusal is not None) == bool(reasons), (outcome.refusal, reasons)
        if reasons:
            return [f"refused by us alone: {reason}" for reason in reasons]
    elif taken:
        assert is_h11s_own_limit(reading, data), f"only h11 refuses: {reading.refusal}"
        return ["refused by h11 alone"]
    if outcome.refusal is not None:
        return ["refused"]
    if reading.refusal is not None:
        return ["refused by h11 before it was cut short"]
    assert [(status, pairs(told)) for status, told in answer.interim] == [
        (status, comparable(fields)) for status, fields in reading.interim
    ]
    assert answer.status == reading.status
    assert pairs(answer.pairs) == comparable(reading.fields)
    assert answer.body == reading.body
    assert pairs(answer.trailers) == comparable(reading.trailers)
    if answer.ended:
        judgement = keeps_alive_by_h11(reading, asked)
        assert judgement is None or answer.keeps_alive == judgement
    return ["taken" if taken else "cut short"]


def pairs(told: Fields) -> Fields:
    return comparable([(name.lower(), value) for name, value in told])


def comparable(fields: Fields) -> Fields:
    """h11 tells codings in small letters."""
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in fields]


# Answers, and what spoils them.

ASKED = st.sampled_from([GET, GET, GET, Asked(to_head=True), SWITCH])
NAMES = st.sampled_from([b"X", b"x-y", b"Set-Cookie", b"Upgrade", b"Trailer", b"ETag", b"~!#", b"Content-Type"])
VALUES = st.one_of(
    st.sampled_from([b"", b"a", b"a b", b"close", b"\xe9t\xe9", b"a,b;c=d", b" \t", b"x\t"]),
    st.text("abc ,:;\t\"'()\xe4\xff", max_size=12).map(lambda text: text.encode("latin-1")),
)
CONNECTIONS = st.sampled_from(
    [b"", b"", b"", b"Connection: close", b"Connection: keep-alive", b"Connection: x, Close", b"connection:upgrade"]
)
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0"])
STATUSES = st.sampled_from([200] * 6 + [101, 204, 206, 304, 404, 500, 599])
FINAL_REASONS = st.sampled_from([b" OK", b" ", b"", b" Not Found", b" \xe9\t"])
EXTENSIONS = st.sampled_from([b"", b"", b"", b";a", b";a=b", b';a="b;\\"c"', b";a;b=c"])
BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"hello", b"\r\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]),
)


@st.composite
def field_lines(draw: st.DrawFn) -> list[bytes]:
    spaces = st.sampled_from([b"", b" ", b" ", b"\t "])
    fields = draw(st.lists(st.tuples(NAMES, spaces, VALUES, st.sampled_from([b"", b"", b" \t"])), max_size=3))
    return [name + b":" + before + value + after for name, before, value, after in fields]


@st.composite
def heads(draw: st.DrawFn, first: bytes, *more: bytes) -> bytes:
    lines = draw(st.permutations([*draw(field_lines()), *filter(None, more)]))
    return b"\r\n".join([first, *lines, b"", b""])


@st.composite
def chunks(draw: st.DrawFn, body: bytes) -> bytes:
    told = b""
    while body:
        size = draw(st.integers(1, len(body)))
        form = draw(st.sampled_from([b"%x", b"%X", b"00%x"]))
        told += form % size + draw(EXTENSIONS) + b"\r\n" + body[:size] + b"\r\n"
        body = body[size:]
    trailers = b"".join(line + b"\r\n" for line in draw(field_lines()))
    return told + draw(st.sampled_from([b"0", b"000"])) + draw(EXTENSIONS) + b"\r\n" + trailers + b"\r\n"


@st.composite
def valid_answers(draw: st.DrawFn) -> tuple[bytes, Asked]:
    asked = draw(ASKED)
    data = b""
    for status in draw(st.lists(st.sampled_from([100, 102, 103, 199]), max_size=2)):
        data += draw(heads(b"HTTP/1.1 %d Interim" % status))
    status = draw(STATUSES)
    if status == 101 and not asked.may_switch:
        status = 200
    framing = draw(st.sampled_from(["counted", "counted", "chunked", "chunked", "until close"]))
    version = draw(VERSIONS) if framing != "chunked" else b"HTTP/1.1"
    if status == 101:
        version, framing = b"HTTP/1.1", "until close"
    body = draw(BODIES)
    line = {
        "counted": b"Content-Length: %d" % len(body),
        "chunked": b"Transfer-Encoding: chunked",
        "until close": b"Upgrade: x" if status == 101 else b"",
    }[framing]
    data += draw(heads(b"%s %d%s" % (version, status, draw(FINAL_REASONS)), draw(CONNECTIONS), line))
    if not asked.to_head and status not in {204, 304}:
        data += draw(chunks(body)) if framing == "chunked" else body
    return data, asked


SPOILERS = st.one_of(
    st.sampled_from(
        [
            *(b"\x00", b"\x01", b"\x7f", b"\x80", b" ", b"\t", b":", b";", b";a=", b",", b'"', b"="),
            *(b"\r", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\n ", b"\n\t", b"HTTP/1.1 200 OK\r\n"),
            *(b"0", b"5", b"f", b"-", b"+", b"0" * 21, b"5, 5"),
        ]
    ),
    st.binary(min_size=1, max_size=2),
)
LINES = st.sampled_from(
    [
        *(
            b"Content-Length: 0",
            b"Content-Length: 5",
            b"Content-Length: 5, 5",
            b"content-length:05 ",
            b"Content-Length:",
        ),
        *(b"Content-Length: 18446744073709551615", b"Content-Length: 18446744073709551616", b"Content-Length: +5"),
        *(b"Content-Length: 99999999999999999999", b"Content-Length: 000000000000000000005", b"Content-Length : 5"),
        *(b"Transfer-Encoding: chunked", b"transfer-encoding:Chunked\t", b"Transfer-Encoding: gzip, chunked"),
        *(b"Transfer-Encoding: gzip", b"Transfer-Encoding:", b"Transfer-Encoding: identity", b"TE: trailers"),
        *(b"Connection: close", b"Connection: keep-alive", b"Connection: close, keep-alive", b"Connection:\tCLOSE,"),
        *(b"Upgrade: x", b"A: b", b" a: b", b"\ta", b"a", b":", b": b", b"a :b", b"", b"a:b\rc", b"a:\x00", b"a:\x0b"),
    ]
)
FIRST_LINES = st.sampled_from(
    [
        *(b"HTTP/1.1 600 x", b"HTTP/1.1 999 ", b"HTTP/1.1 099 ", b"HTTP/1.1 1000 ", b"HTTP/1.1 20 x", b"HTTP/1.1 200x"),
        *(b"HTTP/1.1 101 ", b"HTTP/1.1 100 ", b"HTTP/1.1 204", b"HTTP/1.1 304 ", b"HTTP/1.1  200 OK", b"HTTP/1.1"),
        *(b"HTTP/1.0 200 OK", b"HTTP/0.9 200 OK", b"HTTP/1.2 200 OK", b"HTTP/2.0 200 OK", b"HTTP/1.1\t200 OK", b""),
        *(b"http/1.1 200 OK", b"HTTP/1.1 200 O\x01K", b"HTTP/1.1 200 O\x0bK", b"RTSP/1.0 200 OK", b"ICE/1.0 200 OK"),
        *(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x", b"HTTP/1.0 100 ", b"HTTP/1.2 100 "),
    ]
)


@st.composite
def spoiled(draw: st.DrawFn, data: bytes) -> bytes:
    """One thing changed."""
    how = draw(st.sampled_from(["insert", "delete", "replace", "line end", "number", "line", "first line", "end"]))
    at = draw(st.integers(0, len(data)))
    if how == "insert":
        return data[:at] + draw(SPOILERS) + data[at:]
    if how == "delete":
        return data[:at] + data[at + draw(st.integers(1, 3)) :]
    if how == "replace":
        return data[:at] + draw(SPOILERS) + data[at + 1 :]
    if how == "line end":
        ends = [match.span() for match in re.finditer(rb"\r\n", data)] or [(at, at)]
        start, stop = draw(st.sampled_from(ends))
        end = draw(st.sampled_from([b"\n", b"\r", b"", b"\r\r\n", b"\n\r", b"\r\n ", b"\r\n\t", b" \r\n", b"\t\r\n"]))
        return data[:start] + end + data[stop:]
    if how == "number":
        numbers = [match.span() for match in re.finditer(rb"\b[0-9A-Fa-f]+\b", data)] or [(at, at)]
        start, stop = draw(st.sampled_from(numbers))
        number = draw(
            st.sampled_from([b"0", b"1", b"5", b"6", b"a", b"-1", b"0x5", b"00", b"1 ", b"f" * 17, b"9" * 20])
        )
        return data[:start] + number + data[stop:]
    if how == "end":
        return draw(st.sampled_from([data[:at], data + data, data + b"\r\n", data + b"x", data + b"0\r\n\r\n"]))
    lines = data.split(b"\r\n")
    if how == "first line":
        return b"\r\n".join([draw(FIRST_LINES), *lines[1:]])
    one, another = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
    match draw(st.sampled_from(["add", "add", "add", "duplicate", "remove", "swap"])):
        case "add":
            lines.insert(one, draw(LINES))
        case "duplicate":
            lines.insert(one, lines[another])
        case "remove":
            del lines[one]
        case "swap":
            lines[one], lines[another] = lines[another], lines[one]
    return b"\r\n".join(lines)


@st.composite
def spoiled_answers(draw: st.DrawFn) -> tuple[bytes, Asked]:
    data, asked = draw(valid_answers())
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        data = draw(spoiled(data)) or data
    return data, asked


@pytest.mark.parametrize("rule", STRICTER, ids=[rule.what for rule in STRICTER])
def test_a_stricter_rule_refuses_what_h11_takes(rule: Rule) -> None:
    reading = read_by_h11(rule.example, rule.asked)
    assert reading.taken
    assert [other.what for other in STRICTER if other.holds(reading)] == [rule.what]
    assert read([rule.example], [rule.asked]).refusal is not None


@pytest.mark.parametrize(
    "data",
    [HEAD + b"Content-Length: 000000000000000000001\r\n\r\nx", CHUNKED + b"000000000000000000001\r\nx\r\n0\r\n\r\n"],
    ids=["Content-Length", "a chunk size"],
)
def test_zeros_before_a_number_are_no_reason_to_refuse_it(data: bytes) -> None:
    assert not read_by_h11(data, GET).taken
    assert read([data]).answers[0].body == b"x"


@pytest.mark.parametrize(
    ("data", "is_kept"),
    [
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", True),
        (HEAD + b"\r\nx", False),
    ],
    ids=["1.0 with keep-alive", "until close"],
)
def test_whether_a_connection_is_kept_is_judged_otherwise_than_by_h11(data: bytes, is_kept: bool) -> None:
    assert read_by_h11(data, GET).keeps_alive is not is_kept
    assert read([data]).answers[0].keeps_alive is is_kept


@TRIED
@given(answer=valid_answers())
def test_what_is_valid_is_read_as_h11_reads_it(answer: tuple[bytes, Asked]) -> None:
    data, asked = answer
    reading = read_by_h11(data, asked)
    assert reading.taken
    assert read([data], [asked]).refusal is None
    assert assert_read_alike(data, asked) == ["taken"]


@TRIED
@given(answer=spoiled_answers())
def test_what_is_spoiled_is_refused_or_read_as_h11_reads_it(answer: tuple[bytes, Asked]) -> None:
    for what_came in assert_read_alike(*answer):
        event(what_came)


CHANGED = {
    "counted": HEAD + b"Content-Length: 5\r\n\r\nhello",
    "chunked": CHUNKED + b"1\r\nx\r\n00a;b=c\r\n0123456789\r\n0\r\n\r\n",
    "trailers": CHUNKED + b"0;a\r\nb: c\r\nd:e \r\n\r\n",
    "until close": HEAD + b"Connection: close\r\n\r\nhello",
    "interim": b"HTTP/1.1 103 Hints\r\na: b\r\n\r\nHTTP/1.1 304 \r\nContent-Length: 5\r\n\r\n",
    "101": b"HTTP/1.1 101 x\r\nUpgrade: x\r\n\r\nraw",
}
CHANGES = [
    b"",
    b"\n",
    b"\r",
    b"\r\n",
    b"\r\n\r\n",
    b"\r\n ",
    b" ",
    b"\t",
    b"\x00",
    b"\x01",
    b":",
    b";",
    b",",
    b"=",
    b'"',
    b"0",
    b"x",
]


@pytest.mark.parametrize("data", CHANGED.values(), ids=list(CHANGED))
def test_every_small_change_is_refused_or_read_as_h11_reads_it(data: bytes) -> None:
    """At every byte: something put in before it, or in its place, or in the place of it and the next."""
    for at in range(len(data) + 1):
        for change in CHANGES:
            for until in (at, at + 1, at + 2):
                assert_read_alike(data[:at] + change + data[until:], SWITCH)
