"""A choice and its tool calls while their pieces arrive.

The accumulators fill these records, which do not depend on an API or on an event.
"""

from __future__ import annotations

import math
from codecs import utf_8_decode
from dataclasses import dataclass, field
from typing import Any

from deltatap.api.codes import names_failure
from deltatap.api.values import joined, to_json
from deltatap.model import Choice


class Text:
    """A text while its pieces arrive. UTF-8: `StringIO` keeps an object of more than 50 bytes for each piece."""

    __slots__ = ("_size", "_utf8")

    def __init__(self) -> None:
        self._utf8 = bytearray()
        self._size = 0

    def write(self, piece: str) -> None:
        """Add a piece. It may end with half of a surrogate pair."""
        self._utf8 += piece.encode("utf-8", "surrogatepass")
        self._size += len(piece)

    def tell(self) -> int:
        """The number of characters."""
        return self._size

    def place(self) -> int:
        """Where the next piece will be, for :meth:`since`."""
        return len(self._utf8)

    def since(self, place: int, size: int) -> str:
        """This many characters from a place on."""
        # A character has four bytes at most; the last one may be cut.
        return utf_8_decode(self._utf8[place : place + 4 * size], "surrogatepass", False)[0][:size]

    def end(self, size: int) -> str:
        """The last characters, this many at most."""
        # A character has four bytes at most; the first one may be cut.
        return self._utf8[-4 * size :].decode("utf-8", "ignore")[-size:]

    def getvalue(self) -> str:
        """The whole text."""
        return self._utf8.decode("utf-8", "surrogatepass")


@dataclass(slots=True)
class ToolCall:
    """A tool call while its pieces arrive. For a call that the server ran itself, `item` is the call as it was sent."""

    id: str | None = None
    type: str = "function"
    name: Text = field(default_factory=Text)
    arguments: Text = field(default_factory=Text)
    item: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The call in the form of chat completions."""
        if self.item is not None:
            return self.item
        function = {"name": joined(self.name.getvalue()), "arguments": joined(self.arguments.getvalue())}
        return {"id": self.id, "type": self.type, "function": function}


@dataclass(slots=True)
class GrowingChoice:
    """A choice while its pieces arrive.

    Attributes:
        annotations: JSON of each annotation, as keys: servers repeat them.
        failure: the finish_reason, if it names a failure.
        native: what the provider behind a gateway calls the finish_reason.
        calls: the tool call that an index or an id in a chunk means now.
        last_call: the tool call that came last.
        halves: by kind, half of a surrogate pair at the end of a piece. The other half is in the next piece.
        messages: whether a stream has whole messages (`growing` or in `pieces`) where others have deltas.
        reasoned: the last event with reasoning. Some servers send it under two names in one event.
        thinks: whether the tag that ends Gemini's thoughts has not arrived yet.
    """

    index: int
    text: Text = field(default_factory=Text)
    reasoning: Text = field(default_factory=Text)
    refusal: Text = field(default_factory=Text)
    tool_calls: dict[int, ToolCall] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    annotations: dict[str, None] = field(default_factory=dict)
    finish_reason: str | None = None
    failure: str | None = None
    native: str | None = None
    calls: dict[int | str, ToolCall] = field(default_factory=dict)
    last_call: ToolCall | None = None
    halves: dict[int, str] = field(default_factory=dict)
    messages: str = ""
    reasoned: int = -1
    thinks: bool = False
    last_output_ms: float = math.nan

    def to_choice(self) -> Choice:
        """The choice as received so far."""
        calls = [call.to_dict() for _, call in sorted(self.tool_calls.items())]
        return Choice(
            index=self.index,
            text=joined(self.text.getvalue()),
            finish_reason=self.finish_reason,
            refusal=joined(self.refusal.getvalue()) or None,
            reasoning=joined(self.reasoning.getvalue()) or None,
            tool_calls=to_json(calls) if calls else None,
        )

    def failed(self) -> str | None:
        """The finish_reason that names a failure. The gateway's provider counts only if there is no output."""
        if self.failure is None and math.isnan(self.last_output_ms) and self.native and names_failure(self.native):
            return self.native
        return self.failure
