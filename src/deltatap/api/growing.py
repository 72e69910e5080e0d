"""A choice and its tool calls while their pieces arrive. The accumulators fill them; they know no API and no event."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from deltatap.api.codes import names_failure
from deltatap.api.values import joined, to_json
from deltatap.model import Choice


@dataclass(slots=True)
class ToolCall:
    """A tool call while its pieces arrive. For a call that the server ran itself, `item` is the call as it was sent."""

    id: str | None = None
    type: str = "function"
    name: StringIO = field(default_factory=StringIO)
    arguments: StringIO = field(default_factory=StringIO)
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
        reasoned: the last event that brought reasoning. Some servers send it under two names in one event.
    """

    index: int
    text: StringIO = field(default_factory=StringIO)
    reasoning: StringIO = field(default_factory=StringIO)
    refusal: StringIO = field(default_factory=StringIO)
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
