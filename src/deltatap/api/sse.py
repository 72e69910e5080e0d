"""Decodes bytes into server-sent events. Sans-IO: there are no sockets, clocks or JSON here.

The grammar is WHATWG's (HTML Living Standard, 9.2.6): lines end with LF, CR or CRLF, and reads may cut them anywhere; a
blank line ends an event. The standard drops a last event without a blank line, but `finish` returns it, because the
caller knows whether the event is complete. There are four extensions: llama.cpp sends errors as `error: {…}`; some
servers that fail in the middle of a stream send the error as JSON without `data:`, on one line or indented; some leave
out the blank lines between events; and an `event: error` counts without data. Data stays bytes, because the JSON
decoder checks that they are UTF-8. No byte is searched twice, so the cost is O(bytes), however small the reads are.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from deltatap.errors import EventTooLargeError

MAX_EVENT_BYTES = 16 * 2**20
BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
# A line without a field that begins JSON, and the fields that can follow it.
_JSON = re.compile(rb'\{\s*(?:"|$)|\{.*\}$|\[\s*(?:\{|$)|\[DONE\]')
_FIELDS = (b"", b"id", b"retry")


class ServerSentEvent(NamedTuple):
    """One event: its data lines joined by LF, and its type, which is empty if the stream has none."""

    data: bytes
    event: str = ""


# The constructor of tuple is twice as fast as that of the named tuple.
_event = tuple.__new__


class SSEDecoder:
    """Turns reads into events. Use one decoder per stream.

    Args:
        max_event_bytes: maximum size of an event's data and of a line.
    """

    __slots__ = ("_after_cr", "_at_start", "_between", "_data", "_event", "_limit", "_line", "_unframed")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._line = bytearray()  # a line that has not ended
        self._data: bytes | bytearray | None = None
        self._event = ""
        self._unframed = False  # whether the data is JSON without `data:`
        self._after_cr = False
        self._at_start = True
        self._between = False  # whether the next byte begins an event

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Add a read; returns the events that it completes.

        Raises:
            EventTooLargeError: if an event or a line exceeds the limit.
        """
        if self._between:
            # Usually a read is one event with one line of data.
            end = len(data) - 2
            if data.find(b"\n") == end > 0 and data.startswith(b"data: ") and data.endswith(b"\n\n"):
                if b"\r" not in data and end <= self._limit:
                    return [_event(ServerSentEvent, (data[6:end], ""))]
            elif (whole := _whole(data, self._limit)) is not None:
                return whole
        events = self._by_line(data)
        self._between = not (self._line or self._data is not None or self._event or self._after_cr or self._at_start)
        return events

    def _by_line(self, data: bytes) -> list[ServerSentEvent]:  # noqa: C901, PLR0912 - function calls would slow down every read
        if self._at_start:
            data = self._without_bom(data)
        if self._after_cr and data:
            # A CR at the end of the previous read may be half of a CRLF.
            self._after_cr = False
            if data.startswith(b"\n"):
                data = data[1:]
        events: list[ServerSentEvent] = []
        start = 0
        for end in _LINE_END.finditer(data):
            line = data[start : end.start()]
            start = end.end()
            if self._line:
                line = bytes(self._line + line)
                self._line.clear()
            if line:
                if (ended := self._field(line)) is not None:
                    events.append(ended)
            elif self._data is not None:
                events.append(self._ended(self._data))
            elif self._event == "error":
                events.append(self._ended(b""))
            else:
                self._event = ""
        if start and start == len(data) and data.endswith(b"\r"):
            self._after_cr = True
        if start < len(data):
            self._line += data[start:]
            if len(self._line) > self._limit:
                raise EventTooLargeError(f"a line of the event stream exceeds {self._limit:,} bytes")
        return events

    def finish(self) -> list[ServerSentEvent]:
        """End the stream; returns the events that lack their blank line. The last line can be cut short.

        Raises:
            EventTooLargeError: if the event exceeds the limit.
        """
        line = bytes(self._line)
        self._line.clear()
        ended = self._field(line) if line else None
        last = None if self._data is None else self._ended(self._data)
        return [event for event in (ended, last) if event is not None]

    def _without_bom(self, data: bytes) -> bytes:
        """Drop a byte order mark at the start of the stream, even if it comes in pieces."""
        start = bytes(self._line + data)
        self._line.clear()
        if len(start) < len(BOM) and BOM.startswith(start):
            self._line += start
            return b""
        self._at_start = False
        return start.removeprefix(BOM)

    def _field(self, line: bytes) -> ServerSentEvent | None:
        """Handle a line; returns the event that it shows to have ended without a blank line."""
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._event = value.decode("utf-8", "replace")
            return None
        if name == b"error":
            self._event = "error"
        elif name != b"data":
            if name in _FIELDS or not (self._unframed or _JSON.match(line)):
                return None
            self._unframed, value = True, line
        ended = None
        if self._data is None:
            self._data = value
        elif value[:1] in (b"{", b"[") and self._data.endswith((b"}", b"]")):
            # No JSON value continues like this, so this line begins the next value.
            ended = ServerSentEvent(bytes(self._data), self._event)
            self._data = value
        else:
            if type(self._data) is bytes:
                self._data = bytearray(self._data)
            self._data += b"\n"
            self._data += value
        if len(self._data) > self._limit:
            raise EventTooLargeError(f"an event's data exceeds {self._limit:,} bytes")
        return ended

    def _ended(self, data: bytes | bytearray) -> ServerSentEvent:
        event = ServerSentEvent(bytes(data), self._event)
        self._data = None
        self._event = ""
        self._unframed = False
        return event


def _whole(data: bytes, limit: int) -> list[ServerSentEvent] | None:
    """The events of a read with only complete events of one data line each, the usual case. None for other reads."""
    if not data.endswith(b"\n\n") or b"\r" in data or len(data) > limit:
        return None
    events = []
    for line in data[:-2].split(b"\n\n"):
        if not line.startswith(b"data: ") or b"\n" in line:
            return None
        events.append(_event(ServerSentEvent, (line[6:], "")))
    return events
