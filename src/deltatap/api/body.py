"""Decodes the body of an answer, and judges it by its first bytes, not by its content type. Sans-IO.

An answer is an event stream, one JSON value, or JSON lines. Servers send each of them under any content type, and some
end JSON with `[DONE]`. This module finds out which it is, and feeds an accumulator. It does not know what an event
means.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING

from deltatap.api.sse import BOM, SSEDecoder
from deltatap.api.values import bounded, decode
from deltatap.errors import ProtocolError

if TYPE_CHECKING:
    from deltatap.api.accumulate import Accumulator

MAX_WHOLE_BYTES = 64 * 2**20
_SHOWN_BYTES, _SHOWN_CHARS = 400, 80
_DONE = b"[DONE]"
_BLANK = b" \t\r\n"
_DONE_AT_END = re.compile(rb"\s*(?:data:)?\s*\[DONE\]\s*$")
_DONE_BYTES = 256
_FIELD = re.compile(rb"\s*(?:data|event|id|retry|error)?:")


class AnswerBody:
    """Feeds an accumulator with the body of one answer.

    Args:
        accumulator: takes the events, or the whole answer.
        content_type: for messages.
    """

    __slots__ = ("_accumulator", "_content_type", "_events", "_json", "_last", "_reads", "_start", "_stream")

    def __init__(self, accumulator: Accumulator, content_type: str = "") -> None:
        self._accumulator, self._content_type = accumulator, content_type
        self._start = b""
        self._stream: SSEDecoder | None = None
        self._events = 0
        self._last = (0.0, 0)
        self._json: bytearray | None = None
        # Where each read of JSON ends, its time and its number: JSON lines are events.
        self._reads: list[tuple[int, float, int]] = []

    def feed(self, data: bytes, ms: float, read: int) -> None:
        """Add a part of the body.

        Args:
            data: the part that one read of the socket returned.
            ms: when it was read, in ms since the request was written.
            read: the number of the read, from 0.

        Raises:
            ProtocolError: if an event, or the whole answer, exceeds its limit.
        """
        if self._stream is None and self._json is None:
            data = self._chosen(data)
        if self._stream is not None:
            self._last = (ms, read)
            if len(self._start) < _SHOWN_BYTES:
                self._start += data
            events = self._stream.feed(data)
            self._events += len(events)
            add = self._accumulator.add
            for event in events:
                add(event.data, ms, read, event.event)
        elif self._json is not None:
            self._json += data
            self._reads.append((len(self._json), ms, read))
            if len(self._json) > MAX_WHOLE_BYTES:
                raise ProtocolError(f"the answer exceeds {MAX_WHOLE_BYTES:,} bytes")

    def _chosen(self, data: bytes) -> bytes:
        """Choose the form by the first byte that is not blank. Returns all bytes since the start."""
        start = (self._start + data).lstrip(_BLANK)
        self._start = start[:3]
        if BOM.startswith(self._start):  # the byte order mark: all of it, a part of it, or nothing
            start = start.removeprefix(BOM).lstrip(_BLANK) if len(start) >= len(BOM) else b""
        if start.startswith((b"{", b"[")):
            self._json = bytearray()
        elif start:
            self._stream = SSEDecoder()
            self._start = b""
        return start

    def end(self, *, complete: bool) -> None:
        """End the body. A last record without its blank line counts if it is complete.

        Args:
            complete: whether the server has ended the body; False if the connection broke.

        Raises:
            ProtocolError: if the body is complete but not an answer.
        """
        if self._json is not None:
            self._end_json(bytes(self._json), complete=complete)
        elif self._stream is not None:
            last = [event for event in self._stream.finish() if _is_record(event.data)]
            for event in last:
                self._accumulator.add(event.data, *self._last, event.event)
            if complete and not last and not self._events and _FIELD.match(self._start) is None:
                text = " ".join(self._start[:_SHOWN_BYTES].decode("utf-8", "replace").split())
                found = self._content_type or "no content-type"
                raise ProtocolError(
                    f"expected an event stream or a JSON object, found {found}: {bounded(text, _SHOWN_CHARS)}"
                )

    def _end_json(self, data: bytes, *, complete: bool) -> None:
        """Take one value, with or without [DONE] after it, or several lines."""
        done = _DONE_AT_END.search(data[-_DONE_BYTES:])
        whole = data[: len(data) - len(done[0])] if done else data
        if _is_json(whole):
            self._accumulator.add_whole(whole)
            return
        records, at = [], 0
        for line in data.split(b"\n"):
            at += len(line) + 1
            record = line.strip().removeprefix(b"data:").strip()
            if record == _DONE or _is_record(record):
                records.append((record, min(at, len(data))))
        if _is_record(data.partition(b"\n")[0]):
            for record, end in records:
                _, ms, read = self._reads[bisect_left(self._reads, (end,))]
                self._accumulator.add(record, ms, read)
        elif complete:
            self._accumulator.add_whole(data)


def _is_record(data: bytes) -> bool:
    """Whether a record is whole: [DONE], or a JSON object or list."""
    data = data.strip()
    return data == _DONE or (data[:1] in (b"{", b"[") and _is_json(data))


def _is_json(data: bytes) -> bool:
    try:
        decode(data)
    except ValueError:
        return False
    return True
