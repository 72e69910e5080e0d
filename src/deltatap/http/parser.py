"""The framing of one HTTP/1.1 response: bytes in; status, headers, body and end out. Sans-IO.

The rules are one table, :data:`TRANSITIONS`. llhttp (httptools) splits the bytes; this module decides what they mean
for the response. It uses no socket, no clock and no reader: ``connection.py`` delivers the body. Failures are httpx2
errors, which ``outcomes.py`` translates.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING

import httptools
import httpx2

from deltatap.http.coding import CodingError, Decoder, codings, decoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_MAX_HEAD_BYTES = 256 * 1024
_OK = 200
# Deviations that browsers and other clients also accept: bare line feeds, blanks after the size of a chunk, a length
# next to chunks, odd bytes in headers, bytes after the end.
_LENIENT = {
    "lenient_headers": True,
    "lenient_chunked_length": True,
    "lenient_transfer_encoding": True,
    "lenient_version": True,
    "lenient_data_after_close": True,
    "lenient_optional_lf_after_cr": True,
    "lenient_optional_cr_before_lf": True,
    "lenient_optional_crlf_after_chunk": True,
    "lenient_spaces_after_chunk_size": True,
}


_HEAD_END = re.compile(rb"\n\r?\n")
_PROVISIONAL = re.compile(rb"(?s)(?:HTTP/\d\.\d 1.*?\n\r?\n)+")
_LENGTH = re.compile(rb"(?im)^(content-length[ \t]*:)([^\r\n]*)(\r?\n)")


class RefusedError(httpx2.HTTPError):
    """A response with an error status, with the start of its body."""

    def __init__(self, url: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"HTTP {status}")
        self.url, self.status, self.headers, self.body = url, status, headers, body


def header_map(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Raw headers by their names in lower case. Those with the same name are one, joined by commas."""
    found: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin1").lower(), _decoded_value(raw_value)
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _decoded_value(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin1")


class State(Enum):
    """The state of a response."""

    HEAD = auto()  # no status yet; provisional responses (1xx) are skipped
    BODY = auto()  # in a body with a length, or in chunks
    BODY_TO_EOF = auto()  # in a body that ends when the connection closes
    REUSABLE = auto()  # complete; the connection can take another request
    FINISHED = auto()  # complete; the connection cannot be reused
    FAILED = auto()  # incomplete, and the rest cannot be read


class Event(Enum):
    """The events of a response."""

    SIZED_HEAD = auto()  # status and headers; the body has a length or is chunked
    UNSIZED_HEAD = auto()  # status and headers; only the end of the connection ends the body
    END = auto()  # the end of the body
    LAST_END = auto()  # the end of the body, and the server will close the connection
    EXTRA = auto()  # bytes after the end
    EOF = auto()  # the server closed the connection
    LOST = auto()  # the connection failed
    MALFORMED = auto()  # not HTTP
    UNDECODABLE = auto()  # the body does not match its content-encoding


# An event that is not listed for a state changes nothing.
TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.HEAD: {
        Event.SIZED_HEAD: State.BODY,
        Event.UNSIZED_HEAD: State.BODY_TO_EOF,
        Event.EOF: State.FAILED,
        Event.LOST: State.FAILED,
        Event.MALFORMED: State.FAILED,
    },
    State.BODY: {
        Event.END: State.REUSABLE,
        Event.LAST_END: State.FINISHED,
        Event.EOF: State.FAILED,
        Event.LOST: State.FAILED,
        Event.MALFORMED: State.FAILED,
        Event.UNDECODABLE: State.FAILED,
    },
    State.BODY_TO_EOF: {
        Event.END: State.REUSABLE,  # a status without a body, such as 204
        Event.LAST_END: State.FINISHED,
        Event.EOF: State.FINISHED,
        Event.LOST: State.FAILED,
        Event.MALFORMED: State.FAILED,
        Event.UNDECODABLE: State.FAILED,
    },
    State.REUSABLE: {
        Event.EXTRA: State.FINISHED,
        Event.EOF: State.FINISHED,
        Event.LOST: State.FINISHED,
        Event.MALFORMED: State.FINISHED,
        Event.UNDECODABLE: State.FAILED,
    },
    State.FINISHED: {Event.UNDECODABLE: State.FAILED},
    State.FAILED: {},
}

_OPEN = frozenset({State.HEAD, State.BODY, State.BODY_TO_EOF})


class ResponseParser:
    """Parses one response.

    Attributes:
        state: where the response is.
        open: whether more of the response is expected.
        status: the HTTP status; 0 until the head is complete.
        headers: raw. A content-encoding is removed, because `decoded` undoes it.
        failure: why the state is FAILED.
    """

    __slots__ = (
        "_decoders",
        "_head",
        "_llhttp",
        "_pieces",
        "_unread",
        "failure",
        "headers",
        "on_body",
        "open",
        "state",
        "status",
    )

    def __init__(self) -> None:
        self.state = State.HEAD
        self.open = True
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.failure: httpx2.TransportError | None = None
        self._head = bytearray()
        self._unread: Exception | None = None  # why llhttp stopped in a head that may become valid once it is complete
        self._decoders: list[Decoder] = []
        self._pieces: list[bytes] = []
        # The httptools callback for a piece of the body. It runs for every chunk, so it stays in C.
        self.on_body = self._pieces.append
        self._llhttp: httptools.HttpResponseParser | None = self._new_llhttp()

    @property
    def complete(self) -> bool:
        """Whether the whole response was read."""
        return not self.open and self.state is not State.FAILED

    def feed(self, data: bytes) -> bytes:
        """Parse the data of one read of the socket.

        Returns:
            The part of the body in it, still compressed; empty when there is none.
        """
        if self._llhttp is None or not self.open:
            self._advance(Event.EXTRA)
            return b""
        if self.state is State.HEAD:
            self._head += data
        try:
            if self._unread is not None:
                raise self._unread
            self._llhttp.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._mend(error)
        if self.state is State.HEAD and len(self._head) > _MAX_HEAD_BYTES:
            self._fail(Event.MALFORMED, _invalid(f"its headers exceed {_MAX_HEAD_BYTES:,} bytes"))
        pieces = self._pieces
        if not pieces:
            return b""
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body

    def _new_llhttp(self) -> httptools.HttpResponseParser:
        llhttp = httptools.HttpResponseParser(self)
        llhttp.set_dangerous_leniencies(**_LENIENT)
        return llhttp

    def _mend(self, error: Exception) -> None:
        """Read a head again without repeated content-lengths (RFC 9110, section 8.6), or fail."""
        reason = _invalid(f"it is not valid HTTP: {error}")
        if provisional := _PROVISIONAL.match(self._head):
            del self._head[: provisional.end()]
        if self.state is not State.HEAD or "Content-Length" not in str(error):
            self._fail(Event.MALFORMED, reason)
        elif _HEAD_END.search(self._head) is None:
            self._unread = error
        elif (head := one_length(bytes(self._head))) is None:
            self._fail(Event.MALFORMED, reason)
        else:
            self._unread, self._llhttp = None, self._new_llhttp()
            self.headers.clear()
            try:
                self._llhttp.feed_data(head)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as again:
                self._fail(Event.MALFORMED, _invalid(f"it is not valid HTTP: {again}"))

    def decoded(self, body: bytes) -> Iterable[bytes]:
        """The output of a part of the body. Ends early, with a failure, if the part does not match its coding."""
        return self._decoded(body) if self._decoders else (body,)

    def _decoded(self, body: bytes) -> Iterator[bytes]:
        try:
            yield from decoded(self._decoders, body)
        except CodingError as error:
            self._fail(Event.UNDECODABLE, _invalid(str(error)))

    def end(self, error: Exception | None) -> None:
        """Handle the end of the connection.

        Args:
            error: what broke the connection; None when the server closed it.
        """
        if error is None:
            where = "in the middle of the response" if self.status else "before it responded"
            self._fail(Event.EOF, httpx2.RemoteProtocolError(f"the server closed the connection {where}"))
        else:
            failure = httpx2.ReadError(str(error) or type(error).__name__)
            failure.__cause__ = error
            self._fail(Event.LOST, failure)

    def close(self) -> None:
        """Stop parsing.

        This breaks the reference cycle with llhttp, which would stay in memory for long: garbage collections are rare.
        """
        self._llhttp = None

    def _advance(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state].get(event, self.state)
        self.open = self.state in _OPEN

    def _fail(self, event: Event, failure: httpx2.TransportError) -> None:
        self._advance(event)
        if self.state is State.FAILED and self.failure is None:
            self.failure = failure

    def on_message_begin(self) -> None:
        """Httptools callback. Stops the parser when bytes follow a complete response."""
        if not self.open:
            self._advance(Event.EXTRA)
            raise _invalid("unexpected bytes follow it")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Httptools callback. Trailers, which come after the body, are ignored."""
        if self.state is State.HEAD:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Httptools callback."""
        if self._llhttp is None or (status := self._llhttp.get_status_code()) < _OK:
            return
        self.status = status
        values = {name.lower(): value.strip().lower() for name, value in self.headers}
        sized = b"content-length" in values or b"chunked" in values.get(b"transfer-encoding", b"")
        self._advance(Event.SIZED_HEAD if sized else Event.UNSIZED_HEAD)
        encodings = b",".join(
            value
            for coding in (b"content-encoding", b"transfer-encoding")  # the second is applied after the first
            for name, value in self.headers
            if name.lower() == coding
        )
        if encodings:
            self._decoders = [Decoder(name) for name in reversed(codings(encodings.decode("latin1")))]
            self.headers = [(name, value) for name, value in self.headers if name.lower() != b"content-encoding"]

    def on_message_complete(self) -> None:
        """Httptools callback."""
        if self.state is State.HEAD:  # the end of a provisional response
            self.headers.clear()
        elif self._llhttp is not None:
            self._advance(Event.END if self._llhttp.should_keep_alive() else Event.LAST_END)


def one_length(head: bytes) -> bytes | None:
    """The head with one content-length instead of several equal ones; None if they differ or there is only one."""
    end = _HEAD_END.search(head)
    found = list(_LENGTH.finditer(head, 0, len(head) if end is None else end.end()))
    values = [value.strip() for line in found for value in line[2].split(b",")]
    if len(values) < 2 or len(set(values)) > 1 or not values[0].isdigit():  # noqa: PLR2004 - repeated
        return None
    for line in reversed(found[1:]):
        head = head[: line.start()] + head[line.end() :]
    first = found[0]
    return head[: first.start(2)] + b" " + values[0] + head[first.end(2) :]


def _invalid(reason: str) -> httpx2.RemoteProtocolError:
    return httpx2.RemoteProtocolError(f"cannot read the server's response: {reason}")
