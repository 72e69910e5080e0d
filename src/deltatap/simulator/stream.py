"""Writes one streamed answer: each piece at its time, with the faults of the call.

This module knows ASGI's messages and the clock. The API's frames define what is written, and `shapes.py` how bytes are
distorted.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from heapq import merge
from typing import TYPE_CHECKING, Any

from deltatap.simulator import shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from starlette.types import Send

    from deltatap.api.frames import Answer, Piece
    from deltatap.api.framing import Frames
    from deltatap.simulator.faults import Fault
    from deltatap.simulator.record import Call, Record

# The number of frames that the fault `coalesce` puts into one write.
_COALESCED = 4


class BrokenOff(Exception):  # noqa: N818 - not an error: a fault asked for it
    """The connection was closed on purpose."""


@dataclass(slots=True)
class Stream:
    """One streamed answer.

    Attributes:
        call: records what was written.
        fault: the faults to inject.
        frames: builds the events.
        send: ASGI's.
        transport: the connection.
        gone: set when the client has disconnected.
    """

    call: Call
    record: Record
    fault: Fault
    frames: Frames
    send: Send
    transport: Any
    gone: asyncio.Event
    _held: list[bytes] = field(default_factory=list)
    _begun: bool = False

    async def run(self, answers: Sequence[Answer], end_mark: bytes) -> str:
        """Write everything.

        Args:
            answers: the choices.
            end_mark: the bytes after the last event.

        Returns:
            How the call ended: done, or broken.

        Raises:
            BrokenOff: if the fault broke the stream.
            ConnectionResetError: if the client disconnected.
        """
        facts = self.frames.facts
        await self._all(self.frames.begin())
        await self._pieces(answers)
        finishes = "no_finish" not in self.fault
        if finishes:
            for index, answer in enumerate(answers):
                self.call.finish_reasons[index] = answer.finish_reason
                await self._all(self.frames.finish(index, answer.finish_reason))
        ending = self.frames.end(answers[0].finish_reason if finishes else None)
        if (ending and facts.with_usage) or "usage_with_finish" in self.fault:
            self.call.usage = facts.usage
        await self._all(ending)
        if end_mark and "no_done" not in self.fault:
            await self._write(end_mark)
        await self._close()
        return "broken" if "bad_json" in self.fault else "done"

    async def _pieces(self, answers: Sequence[Answer]) -> None:
        """Write the pieces of all choices. Each is due at a time since the answer's start, so delays do not add up."""
        call, fault = self.call, self.fault
        total = sum(len(answer.pieces) for answer in answers)
        breaks_at = fault.piece if fault.piece is not None else max(1, total // 2)
        without_role = set(range(len(answers)))
        remaining = [len(answer.pieces) for answer in answers]
        sent = 0
        for due, index, piece in merge(*(_timed(index, answer) for index, answer in enumerate(answers))):
            if sent == breaks_at:
                await self._break()
            await asyncio.sleep(max(0.0, call.began + due - time.monotonic()))
            if "comments" in fault:
                await self._write(shapes.COMMENT)
            if "empty_choices" in fault and sent % 5 == 0:
                await self._all(self.frames.empty())
            remaining[index] -= 1
            together = index in without_role and "role_with_content" in fault and piece.kind == "content"
            if index in without_role and not together:
                await self._all(self.frames.role(index))
            without_role.discard(index)
            now = time.monotonic()
            if due:
                self.record.late_by(now - call.began - due)
            call.write(now, index, piece)
            if together:
                await self._all(self.frames.role(index, piece.text))
            else:
                last = not remaining[index] and "finish_with_content" in fault
                await self._all(self.frames.piece(index, piece, answers[index].finish_reason if last else None))
            sent += 1
        if sent <= breaks_at:
            await self._break()

    async def _break(self) -> None:
        """Break the stream if the fault requires that."""
        fault = self.fault
        if "cut" in fault:
            await self._flush()
            self.transport.close()
            raise BrokenOff
        if "stall" in fault:
            await self._flush()
            try:
                await asyncio.wait_for(self.gone.wait(), fault.seconds(3600))
            except TimeoutError:
                pass
            else:
                raise ConnectionResetError
        if "drip" in fault:
            await self._flush()
            while not self.gone.is_set():
                await self._write(shapes.COMMENT)
                await asyncio.sleep(fault.seconds(0.1))
            raise ConnectionResetError
        if "error_event" in fault:
            await self._all(self.frames.error(named=fault.argument == "event"))
        if "bad_json" in fault:
            await self._all([shapes.BAD_JSON])
        if "error_event" in fault or "no_end" in fault:
            await self._close()
            raise BrokenOff

    async def _all(self, made: Sequence[bytes]) -> None:
        """Write frames and count them."""
        for frame in made:
            self.call.frames += 1
            await self._write(frame)

    async def _write(self, frame: bytes) -> None:
        """Write a frame, distorted if the fault requires it."""
        fault = self.fault
        if "crlf" in fault or "cr" in fault:
            frame = frame.replace(b"\n", b"\r\n" if "crlf" in fault else b"\r")
        if "bom" in fault and not self._begun:
            frame = shapes.BOM + frame
        self._begun = True
        if "coalesce" in fault:
            self._held.append(frame)
            if len(self._held) >= int(fault.seconds(_COALESCED)):
                await self._flush()
        elif "fragment" in fault:
            for piece in shapes.fragments(frame):
                await self._out(piece)
                await asyncio.sleep(0.001)
        else:
            await self._out(frame)

    async def _flush(self) -> None:
        if self._held:
            await self._out(b"".join(self._held))
            self._held.clear()

    async def _out(self, piece: bytes) -> None:
        if self.gone.is_set():
            raise ConnectionResetError
        await self.send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _close(self) -> None:
        await self._flush()
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def _timed(index: int, answer: Answer) -> Iterator[tuple[float, int, Piece]]:
    """When each piece of a choice is due, in seconds since the answer's start."""
    due = 0.0
    for wait, piece in zip(answer.waits_s, answer.pieces, strict=True):
        due += wait
        yield due, index, piece
