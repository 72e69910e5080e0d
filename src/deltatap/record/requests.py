"""Parses the requests of a client on one connection: bytes in; heads, parts of bodies and ends out. Sans-IO.

llhttp (httptools) does the framing. ``forwarding.py`` rewrites heads, ``session.py`` forwards them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import httptools

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_HEAD_BYTES = 256 * 1024
# The headers that say where a body ends.
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))


@dataclass(frozen=True, slots=True)
class Head:
    """The request line and the headers, as the client sent them."""

    method: str
    target: bytes
    version: str
    headers: tuple[tuple[bytes, bytes], ...]

    def values(self, name: bytes) -> Iterator[bytes]:
        """The values of the headers with this name, which is in lower case."""
        return (value for found, value in self.headers if found.lower() == name)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a body."""

    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The end of a request."""


Event = Head | Part | End


class RequestParser:
    """Parses the requests of one connection, one after the other.

    Attributes:
        wrong: why the client's data is not HTTP/1.1, as text for the client; None while it is valid. Nothing is read
            after that.
    """

    def __init__(self) -> None:
        self.wrong: str | None = None
        self._events: list[Event] = []
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._in_head, self._again = True, False
        self._llhttp = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> list[Event]:
        """The events in the data of one read, up to the first invalid byte."""
        if self.wrong is not None:
            return []
        self._head_bytes += len(data)
        rest = data
        while rest:
            rest = self._parsed(rest)
        if not self._in_head:
            self._head_bytes = 0
        if self._head_bytes > _MAX_HEAD_BYTES:
            self.wrong = f"the headers exceed {_MAX_HEAD_BYTES:,} bytes"
        events, self._events = self._events, []
        return events

    def _parsed(self, data: bytes) -> bytes:
        """Parse data. Returns what follows a request that asks for another protocol."""
        try:
            try:
                self._llhttp.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._stay()
                return data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self.wrong = f"this is not valid HTTP/1.1: {error}"
        return b""

    def _stay(self) -> None:
        """Continue after a request that asks for another protocol. It is forwarded without the upgrade.

        httptools ends such a request at its head. Its body, and the next request, follow.
        """
        self._llhttp = httptools.HttpRequestParser(self)
        *_, head, _end = self._events
        if isinstance(head, Head) and head.method != "CONNECT":
            self._events.pop()
            framing = (b"%b: %b\r\n" % header for header in head.headers if header[0].lower() in _FRAMING)
            self._again = True
            self._llhttp.feed_data(b"".join((b"POST / HTTP/1.1\r\n", *framing, b"\r\n")))
            self._again = False

    def on_message_begin(self) -> None:
        """Httptools callback."""
        self._target, self._headers, self._in_head = b"", [], True

    def on_url(self, url: bytes) -> None:
        """Httptools callback; a read may bring a part of the URL."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Httptools callback. Trailers, which come after the body, are ignored."""
        if self._in_head:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Httptools callback."""
        self._in_head, self._head_bytes = False, 0
        if self._again:
            return
        method, version = self._llhttp.get_method().decode("latin1"), self._llhttp.get_http_version()
        self._events.append(Head(method, self._target, version, tuple(self._headers)))

    def on_body(self, data: bytes) -> None:
        """Httptools callback."""
        self._events.append(Part(data))

    def on_message_complete(self) -> None:
        """Httptools callback."""
        self._in_head, self._head_bytes = True, 0
        self._events.append(End())
