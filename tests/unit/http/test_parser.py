"""Framing, without a socket: a table of (bytes in, events out), and the same bytes through h11."""

from __future__ import annotations

import gzip
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import h11
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatap.http.parser import TRANSITIONS, Event, ResponseParser, State, header_map

if TYPE_CHECKING:
    from collections.abc import Iterable

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HELLO = CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
GZIPPED = gzip.compress(b"hello")
DEFLATED = zlib.compress(b"hello")
BROKEN = GZIPPED[:10] + b"\xff" * 8


class Outcome(NamedTuple):
    status: int
    body: bytes
    state: State
    failure: str | None = None


def parsed(reads: Iterable[bytes], *, eof: bool = False) -> Outcome:
    parser = ResponseParser()
    body = b"".join(piece for data in reads for piece in parser.decoded(parser.feed(data)))
    if eof:
        parser.end(None)
    failure = None if parser.failure is None else str(parser.failure)
    assert parser.open == (parser.state in {State.HEAD, State.BODY, State.BODY_TO_EOF})
    assert parser.complete == (parser.state in {State.REUSABLE, State.FINISHED})
    assert (parser.failure is not None) == (parser.state is State.FAILED)
    return Outcome(parser.status, body, parser.state, failure)


def compressed(name: bytes, packed: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n%b\r\n%b" % (
        name, len(packed), more, packed,
    )  # fmt: skip


def lengths(*values: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + b"".join(b"Content-Length: %b\r\n" % value for value in values) + b"\r\nhello"


UNREADABLE = "cannot read the server's response: "
CASES: dict[str, tuple[bytes, Outcome]] = {
    "nothing yet": (b"HTTP/1.1 200 OK\r\nA: b\r\n", Outcome(0, b"", State.HEAD)),
    "length": (SIZED, Outcome(200, b"hello", State.REUSABLE)),
    "part of the length": (SIZED[:-2], Outcome(200, b"hel", State.BODY)),
    "chunked": (HELLO, Outcome(200, b"hello world", State.REUSABLE)),
    "chunked without the end": (HELLO[:-5], Outcome(200, b"hello world", State.BODY)),
    "trailers": (HELLO[:-2] + b"X-Trailer: 1\r\n\r\n", Outcome(200, b"hello world", State.REUSABLE)),
    "connection: close": (
        SIZED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        Outcome(200, b"hello", State.FINISHED),
    ),
    "HTTP/1.0": (SIZED.replace(b"1.1", b"1.0"), Outcome(200, b"hello", State.FINISHED)),
    "HTTP/1.0 until EOF": (b"HTTP/1.0 200 OK\r\n\r\nhello", Outcome(200, b"hello", State.BODY_TO_EOF)),
    "until EOF": (b"HTTP/1.1 200 OK\r\n\r\nhello", Outcome(200, b"hello", State.BODY_TO_EOF)),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", Outcome(204, b"", State.REUSABLE)),
    "100": (b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED, Outcome(200, b"hello", State.REUSABLE)),
    "100 alone": (b"HTTP/1.1 100 Continue\r\n\r\n", Outcome(0, b"", State.HEAD)),
    "103": (b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n" + HELLO, Outcome(200, b"hello world", State.REUSABLE)),
    "gzip": (compressed(b"gzip", GZIPPED), Outcome(200, b"hello", State.REUSABLE)),
    "x-gzip": (compressed(b"X-GZip", GZIPPED), Outcome(200, b"hello", State.REUSABLE)),
    "deflate": (compressed(b"deflate", DEFLATED), Outcome(200, b"hello", State.REUSABLE)),
    "identity": (compressed(b"identity", b"hello"), Outcome(200, b"hello", State.REUSABLE)),
    "Content-Encoding: none": (compressed(b"none", b"hello"), Outcome(200, b"hello", State.REUSABLE)),
    "Content-Encoding without a value": (compressed(b"", b"hello"), Outcome(200, b"hello", State.REUSABLE)),
    "plain text as gzip": (compressed(b"gzip", b"hello"), Outcome(200, b"hello", State.REUSABLE)),
    "raw deflate": (compressed(b"deflate", zlib.compress(b"hello", wbits=-15)), Outcome(200, b"hello", State.REUSABLE)),
    "members of gzip": (compressed(b"gzip", gzip.compress(b"hel") + gzip.compress(b"") + gzip.compress(b"lo")), Outcome(200, b"hello", State.REUSABLE)),
    "zeros after gzip": (compressed(b"gzip", GZIPPED + b"\0\0\0"), Outcome(200, b"hello", State.REUSABLE)),
    "garbage after gzip": (compressed(b"gzip", GZIPPED + b"oops"), Outcome(200, b"hello", State.REUSABLE)),
    "gzip of gzip": (compressed(b"gzip, gzip", gzip.compress(GZIPPED)), Outcome(200, b"hello", State.REUSABLE)),
    "bare line feeds": (SIZED.replace(b"\r\n", b"\n"), Outcome(200, b"hello", State.REUSABLE)),
    "length and chunks": (HELLO.replace(b"\r\n\r\n", b"\r\nContent-Length: 99\r\n\r\n", 1), Outcome(200, b"hello world", State.REUSABLE)),
    "blanks after the size of a chunk": (HELLO.replace(b"5\r", b"5  \r"), Outcome(200, b"hello world", State.REUSABLE)),
    "extensions of a chunk": (HELLO.replace(b"5\r", b"5;a=b\r"), Outcome(200, b"hello world", State.REUSABLE)),
    "bytes after the end": (SIZED + b"H", Outcome(200, b"hello", State.FINISHED)),
    "a second response": (SIZED + HELLO, Outcome(200, b"hello", State.FINISHED)),
    "garbage after the end": (HELLO + b"\0", Outcome(200, b"hello world", State.FINISHED)),
    "bytes after connection: close": (
        SIZED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"zz",
        Outcome(200, b"hello", State.FINISHED),
    ),
    "broken gzip": (
        compressed(b"gzip", BROKEN),
        Outcome(200, b"", State.FAILED, UNREADABLE + "its content-encoding is broken"),
    ),
    "broken gzip, connection: close": (
        compressed(b"gzip", BROKEN, b"Connection: close\r\n"),
        Outcome(200, b"", State.FAILED, UNREADABLE + "its content-encoding is broken"),
    ),
    "brotli": (
        compressed(b"br", b"\x0babc"),
        Outcome(200, b"", State.FAILED, UNREADABLE + "content-encoding br was not requested"),
    ),
    "plain text as brotli": (compressed(b"br", b"hello"), Outcome(200, b"hello", State.REUSABLE)),
    "gzip as a transfer coding": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(GZIPPED), GZIPPED),
        Outcome(200, b"hello", State.REUSABLE),
    ),
    "the same length twice": (lengths(b"5", b"5"), Outcome(200, b"hello", State.REUSABLE)),
    "the same length in a list": (lengths(b"5, 5"), Outcome(200, b"hello", State.REUSABLE)),
    "the same length after a 103": (
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + lengths(b"5", b" 5 ", b"5"), Outcome(200, b"hello", State.REUSABLE)),
    "two lengths": (
        lengths(b"5", b"6"), Outcome(0, b"", State.FAILED, UNREADABLE + "it is not valid HTTP: Duplicate Content-Length")),
    "a length that is none": (
        lengths(b"-5", b"-5"), Outcome(0, b"", State.FAILED, UNREADABLE + "it is not valid HTTP: Invalid character in Content-Length")),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", Outcome(0, b"", State.FAILED, UNREADABLE + "it is not valid HTTP")),
    "bad chunk size": (
        CHUNKED + b"3\r\nhel\r\nzz\r\n",
        Outcome(200, b"hel", State.FAILED, UNREADABLE + "it is not valid HTTP"),
    ),
    "switching protocols": (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        Outcome(0, b"", State.FAILED, UNREADABLE + "it is not valid HTTP"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_outcome_does_not_depend_on_where_the_reads_cut(case: str) -> None:
    data, expected = CASES[case]
    whole = parsed([data])
    assert whole._replace(failure=None) == expected._replace(failure=None)
    assert (whole.failure or "").startswith(expected.failure or "")
    assert parsed(bytes([byte]) for byte in data)[:3] == expected[:3]
    for at in range(1, len(data)):
        assert parsed([data[:at], data[at:]])[:3] == expected[:3], (data[:at], data[at:])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", Outcome(0, b"", State.FAILED, "the server closed the connection before it responded")),
        (SIZED[:20], Outcome(0, b"", State.FAILED, "the server closed the connection before it responded")),
        (SIZED[:-2], Outcome(200, b"hel", State.FAILED, "the server closed the connection in the middle of the response")),
        (
            CHUNKED + b"10\r\nhel",
            Outcome(200, b"hel", State.FAILED, "the server closed the connection in the middle of the response"),
        ),
        (HELLO[:-5], Outcome(200, b"hello world", State.FAILED, "the server closed the connection in the middle of the response")),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", Outcome(200, b"hello", State.FINISHED)),
        (b"HTTP/1.0 200 OK\r\n\r\n", Outcome(200, b"", State.FINISHED)),
        (HELLO, Outcome(200, b"hello world", State.FINISHED)),
        (b"SSH-2.0", Outcome(0, b"", State.FAILED, UNREADABLE + "it is not valid HTTP: Expected HTTP/, RTSP/ or ICE/")),
    ],
)  # fmt: skip
def test_end_of_the_connection(data: bytes, expected: Outcome) -> None:
    assert parsed([data], eof=True) == expected


@pytest.mark.parametrize("data", [b"", SIZED[:-2], b"HTTP/1.1 200 OK\r\n\r\nhello"])
def test_reset_fails_every_incomplete_response_with_the_systems_message(data: bytes) -> None:
    parser = ResponseParser()
    parser.feed(data)
    parser.end(ConnectionResetError(104, "Connection reset by peer"))
    assert isinstance(parser.failure, httpx2.ReadError)
    assert "Connection reset by peer" in str(parser.failure)
    parser.end(None)
    assert isinstance(parser.failure, httpx2.ReadError), "the first failure is the cause"


def test_headers_are_the_final_responses_without_a_decoded_content_encoding() -> None:
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + compressed(b"gzip", GZIPPED, b"X-Request-Id: r\r\n"))
    assert parser.headers == [(b"Content-Length", b"%d" % len(GZIPPED)), (b"X-Request-Id", b"r")]


@pytest.mark.parametrize("between", [b"", b"\r\nHTTP/1.1 100 Continue\r\n"])
def test_endless_headers_fail(between: bytes) -> None:
    lines = b"a: %b\r\n" % (b"x" * 1000) * 30
    outcome = parsed([b"HTTP/1.1 100 Continue\r\n", *[lines + between] * 10])
    assert outcome == Outcome(0, b"", State.FAILED, UNREADABLE + "its headers exceed 262,144 bytes")


def test_closed_parser_ignores_further_bytes() -> None:
    parser = ResponseParser()
    parser.feed(CHUNKED)
    parser.close()
    assert parser.feed(b"5\r\nhello\r\n") == b""
    assert parser.state is State.BODY


def test_table_of_transitions() -> None:
    """A complete response never reopens, a failed one stays failed, and every ending of the connection ends it."""
    assert set(TRANSITIONS) == set(State)
    incomplete = {State.HEAD, State.BODY, State.BODY_TO_EOF}
    for state, row in TRANSITIONS.items():
        if state not in incomplete:
            assert not incomplete & set(row.values())
        else:
            assert not incomplete & {row[event] for event in (Event.EOF, Event.LOST, Event.MALFORMED)}
    assert TRANSITIONS[State.FAILED] == {}
    assert State.REUSABLE not in TRANSITIONS[State.FINISHED].values()
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bool, list[int]]:
    """A valid response, whether the server then closes the connection, and where the reads cut it."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4))
    body = b"".join(pieces)
    framing = draw(st.sampled_from(["length", "chunked", "eof"]))
    head = draw(st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"]))
    head += b"HTTP/%b %d OK\r\n" % (
        draw(st.sampled_from([b"1.1", b"1.0"] if framing != "chunked" else [b"1.1"])),
        draw(st.sampled_from([200, 201, 400, 429, 500])),
    )
    head += draw(st.sampled_from([b"", b"Connection: close\r\n", b"Content-Type: text/event-stream\r\n"]))
    if framing == "length":
        data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    elif framing == "chunked":
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    else:
        data = head + b"\r\n" + body
    cuts = draw(st.lists(st.integers(1, len(data) - 1), max_size=6))
    return data, framing == "eof", cuts


@given(responses())
def test_h11_agrees(response: tuple[bytes, bool, list[int]]) -> None:
    data, eof, cuts = response
    reference = h11.Connection(h11.CLIENT)
    reference.send(h11.Request(method="POST", target="/", headers=[("Host", "h"), ("Content-Length", "0")]))
    reference.send(h11.EndOfMessage())
    reference.receive_data(data)
    if eof:
        reference.receive_data(b"")
    status, body = 0, b""
    while not isinstance(event := reference.next_event(), h11.EndOfMessage):
        assert not isinstance(event, type(h11.NEED_DATA))
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
    reusable = not eof and reference.our_state is h11.DONE and reference.their_state is h11.DONE
    edges = sorted({0, len(data), *cuts})
    ours = parsed((data[a:b] for a, b in pairwise(edges)), eof=eof)
    assert ours == Outcome(status, body, State.REUSABLE if reusable else State.FINISHED)


def test_headers_by_their_names() -> None:
    raw = [(b"X-A", b"1"), (b"x-b", b"\xc3\xa9"), (b"x-a", b"2"), (b"X-C", b"\xe9")]
    assert header_map(raw) == {"x-a": "1, 2", "x-b": "é", "x-c": "é"}
