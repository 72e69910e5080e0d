"""Responses that the simulator generates in the background and keeps for a while, as OpenAI does.

Knows how a stored response is generated, streamed, read whole, cancelled and deleted. ``app.py`` knows the URLs,
``stream.py`` the pace, and ``record.py`` counts the calls. The number of an event is its position in the response, from
0.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deltatap.simulator.faults import Fault
from deltatap.simulator.stream import BrokenOff, Stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Message, Send

    from deltatap.api.frames import Answer
    from deltatap.api.framing import BackgroundFrames
    from deltatap.simulator.record import Call, Record

# Faults of one connection. The response itself is generated without them.
_OF_CONNECTION = (
    "cut",
    "cut_first",
    "stall",
    "drip",
    "coalesce",
    "fragment",
    "comments",
    "crlf",
    "cr",
    "bom",
    "bad_json",
    "no_end",
)


@dataclass(slots=True, eq=False)
class Kept:
    """A response in the background.

    Attributes:
        id: of the response.
        call: the call that created it.
        frames: builds its events.
        answers: the answers that it generates.
        events: the events that it has generated, by their numbers.
        created: when it was created, by the monotonic clock.
        status: queued, in_progress, completed, incomplete, failed or cancelled.
    """

    id: str
    call: Call
    frames: BackgroundFrames
    answers: Sequence[Answer]
    created: float
    events: list[bytes] = field(default_factory=list)
    status: str = "queued"
    _more: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        """Whether the response has ended."""
        return self.status not in ("queued", "in_progress")

    def start(self, record: Record, fault: Fault) -> None:
        """Generate the response, with or without readers."""
        names = tuple(name for name in fault.names if name not in _OF_CONNECTION)
        stream = Stream(
            self.call, record, Fault(names, fault.argument, fault.piece), self.frames, self._send, None, asyncio.Event()
        )
        self._task = asyncio.create_task(self._generate(stream))

    async def _generate(self, stream: Stream) -> None:
        self.status = "in_progress"
        try:
            await stream.run(self.answers, b"")
            reason = self.answers[0].finish_reason
            self._end("incomplete" if reason in ("length", "content_filter") else "completed")
        except BrokenOff:
            self._end("failed")

    async def _send(self, message: Message) -> None:
        if body := message.get("body"):
            self.events.append(body)
            self._wake()

    def cancel(self) -> None:
        """Stop generating."""
        if not self.over and self._task is not None:
            self._task.cancel()
            self.events.extend(self.frames.cancelled())
            self._end("cancelled")

    def _end(self, status: str) -> None:
        self.status = status
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    def whole(self) -> dict[str, Any]:
        """The response as it is now."""
        if self.status in ("completed", "incomplete"):
            return type(self.frames)(self.frames.facts).whole(self.answers)
        return self.frames.unfinished(self.status)

    async def follow(self, after: int, send: Send, fault: Fault, transport: Any, gone: asyncio.Event) -> str:  # noqa: ANN401 - uvicorn's
        """Send the events after a number, past events at once; returns how the call ended.

        Raises:
            BrokenOff: the fault broke the connection.
            ConnectionResetError: the client disconnected.
        """
        at, sent = after + 1, 0
        breaks_at = fault.piece if fault.piece is not None else 8
        while True:
            more = self._more
            while at < len(self.events):
                if sent == breaks_at:
                    await _break(fault, send, transport, gone)
                if gone.is_set():
                    raise ConnectionResetError
                await send({"type": "http.response.body", "body": self.events[at], "more_body": True})
                at, sent = at + 1, sent + 1
            if self.over:
                break
            waits = [asyncio.ensure_future(more.wait()), asyncio.ensure_future(gone.wait())]
            _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for each in pending:
                each.cancel()
        if sent <= breaks_at:
            await _break(fault, send, transport, gone)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return "done"


async def _break(fault: Fault, send: Send, transport: Any, gone: asyncio.Event) -> None:  # noqa: ANN401 - uvicorn's
    if "cut" in fault:
        transport.close()
        raise BrokenOff
    if "no_end" in fault:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        raise BrokenOff
    if "stall" in fault:
        await gone.wait()
        raise ConnectionResetError


class Store:
    """The responses that are kept, by id."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}

    def add(self, kept: Kept) -> None:
        """Keep a response."""
        self._kept[kept.id] = kept

    def find(self, response_id: str, keep_s: float) -> Kept | None:
        """The response with this id, unless it is older than `keep_s` seconds."""
        kept = self._kept.get(response_id)
        if kept is None or time.monotonic() - kept.created > keep_s:
            return None
        return kept
