"""The frames of a captured answer in an API whose events have types. Pure.

Such an API has one item or block open at a time. A row does not contain the events that mark where an item starts or
ends, so these are written together with the output. `choices.py` has the counterpart for events with choices.
"""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING

from deltatap.api.captured import error_in
from deltatap.api.frames import Frame, Piece
from deltatap.api.framing import Frames

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deltatap.api.captured import Captured, Event


class TypedFrames(Frames, ABC):
    """Writes events with types."""

    __slots__ = ()

    def announce(self, kind: str) -> list[bytes]:  # noqa: ARG002 - few APIs have an event for it
        """The events before the first output of a message. The kind of the output is known."""
        return []

    def replayed(self, captured: Captured) -> Iterator[Frame]:
        """One event for each chunk, and the events that start and end items."""
        reason: str | None = None
        begins = bool(captured.answers) or captured.same
        begins = begins and bool(captured.events) and captured.events[0].parts[0].kind not in ("error", "failed")
        for at, (ms, parts) in enumerate(in_order(captured.events)):
            made = [] if at or not begins else self.begin()
            outputs = 0
            for part in parts:
                if part.kind == "error":
                    made += [captured.error_frame(part.text)] if captured.same else self.refuse(error_in(part.text))
                elif part.kind == "failed":
                    made += self.refuse(error_in(part.text))
                elif part.kind == "finish":
                    reason = part.text
                    made += self.finish(0, reason)
                elif part.kind == "role":
                    made += self.announce(captured.next_output(at))
                else:
                    for piece in part.pieces:
                        made += self.piece(0, piece)
                    outputs += bool(part.pieces) and part.kind != "silent"
            if at == len(captured.events) - 1 and captured.ends(reason):
                made += [*(self.finish(0, "") if reason is None else ()), *self.end(reason or "")]
            for number, frame in enumerate(made, 1):
                yield Frame(ms, frame, outputs if number == len(made) else 0)


def in_order(events: Sequence[Event]) -> list[Event]:
    """The events with the pieces of each call next to each other, for an API that has one call open at a time.

    If something else starts before a call is complete, the rest of its arguments is sent before that.
    """
    rest: dict[int, str] = {}
    for piece in (piece for event in events for part in event.parts for piece in part.pieces):
        if piece.kind == "arguments":
            rest[piece.call] = rest.get(piece.call, "") + piece.text
    made, open_call = [], None
    for event in events:
        parts = []
        for part in event.parts:
            pieces = []
            for piece in part.pieces:
                call = piece.call if piece.kind in ("call", "arguments") else None
                if piece.kind == "arguments" and not rest.get(piece.call):
                    continue
                if open_call is not None and call != open_call and rest.get(open_call):
                    pieces.append(Piece("arguments", rest.pop(open_call), open_call))
                pieces.append(piece)
                if piece.kind == "arguments":
                    rest[piece.call] = rest[piece.call][len(piece.text) :]
                open_call = call
            parts.append(part._replace(pieces=tuple(pieces)))
        made.append(event._replace(parts=tuple(parts)))
    return made
