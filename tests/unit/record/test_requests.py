"""Requests as bytes: whole, byte by byte, one after the other, and invalid data."""

from __future__ import annotations

import pytest

from deltatap.record.requests import End, Event, Head, Part, RequestParser

ONE = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /y HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=1\r\nde\r\n0\r\nTrailer: t\r\n\r\n"
BARE = b"GET /z HTTP/1.0\r\n\r\n"


def joined(events: list[Event]) -> list[tuple[object, ...]]:
    """Heads and the bodies that follow them."""
    made: list[tuple[object, ...]] = []
    body = b""
    for event in events:
        match event:
            case Head():
                made.append((event.method, event.target, event.version, dict(event.headers)))
            case Part():
                body += event.data
            case End():
                made.append((body,))
                body = b""
    return made


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_requests_in_pieces_of_any_size(size: int) -> None:
    data, parser, events = ONE + CHUNKED + ONE + BARE, RequestParser(), []
    for at in range(0, len(data), size):
        events += parser.feed(data[at : at + size])
    one = [("POST", b"/v1/x", "1.1", {b"Host": b"a", b"Content-Length": b"5"}), (b"hello",)]
    chunked = [("POST", b"/y", "1.1", {b"Transfer-Encoding": b"chunked"}), (b"abcde",)]
    assert joined(events) == [*one, *chunked, *one, ("GET", b"/z", "1.0", {}), (b"",)]


def test_an_upgrade_to_another_protocol_is_ignored() -> None:
    upgrade = b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert [made[1] for made in joined(RequestParser().feed(upgrade + ONE)) if len(made) > 1] == [b"/ws", b"/v1/x"]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"],
)
def test_a_request_to_upgrade_keeps_its_body(framing: bytes, size: int) -> None:
    """Java's client sends one with each request until it knows that the server has no HTTP/2."""
    upgrade = b"POST /a HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" + framing
    data, parser, events = upgrade + ONE + upgrade, RequestParser(), []
    for at in range(0, len(data), size):
        events += parser.feed(data[at : at + size])
    assert parser.wrong is None
    made = joined(events)
    assert [each[1] for each in made if len(each) > 1] == [b"/a", b"/v1/x", b"/a"]
    assert [each[0] for each in made if len(each) == 1] == [b"hello"] * 3
    assert isinstance(events[0], Head)
    assert any(name == b"Upgrade" for name, _ in events[0].headers)


def test_small_requests_are_not_one_large_head() -> None:
    parser = RequestParser()
    for _ in range(5000):
        assert len(parser.feed(ONE)) == 3
    assert parser.wrong is None


def test_thousands_of_upgrades_in_one_read() -> None:
    upgrade = b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    parser = RequestParser()
    assert len(parser.feed(upgrade * 3000)) == 6000
    assert parser.wrong is None


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00",  # TLS
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * 300_000,
    ],
)
def test_invalid_requests(data: bytes) -> None:
    parser = RequestParser()
    assert parser.feed(data) == []
    assert parser.wrong
    assert parser.feed(ONE) == []


def test_an_upgrade_with_invalid_framing_is_invalid() -> None:
    parser = RequestParser()
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    (head,) = parser.feed(b"POST / HTTP/1.1\r\n" + upgrade + b"Transfer-Encoding: c\r\n\r\n")
    assert isinstance(head, Head)
    assert parser.wrong
    assert parser.feed(ONE) == []


def test_a_request_before_bad_data_counts() -> None:
    parser = RequestParser()
    assert joined(parser.feed(ONE + b"hello\r\n\r\n"))[1] == (b"hello",)
    assert parser.wrong
