"""The events and the whole answer of the Responses API, for the simulator and the replay. Pure.

`responses.py` has everything else of that API.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deltatap.api.frames import MODERATION, SAFE, STREAM_ERROR, Answer, Piece, call_id, event, logprob
from deltatap.api.framing import BackgroundFrames
from deltatap.api.typed import TypedFrames
from deltatap.api.values import decode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltatap.model import StreamError

# For each type of call in the form of chat completions: the type of its item, and the item's field with the arguments.
_CALL_ITEMS = {"function": ("function_call", "arguments"), "custom": ("custom_tool_call", "input")}
# The fields of an item that the server adds when it is complete.
_RESULTS = frozenset(("arguments", "code", "output", "outputs", "result", "results"))
# For each kind of output and type of call: the name of its events, their index, and the last one's field with the text.
_EVENTS_OF: Mapping[str, tuple[str, dict[str, int], str]] = {
    "call": ("function_call_arguments", {}, "arguments"),
    "custom": ("custom_tool_call_input", {}, "input"),
    "mcp_call": ("mcp_call_arguments", {}, "arguments"),
    "code_interpreter_call": ("code_interpreter_call_code", {}, "code"),
    "content": ("output_text", {"content_index": 0}, "text"),
    "reasoning": ("reasoning_summary_text", {"summary_index": 0}, "text"),
    "refusal": ("refusal", {"content_index": 0}, "refusal"),
}


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": []}


@dataclass(slots=True)
class ResponsesFrames(TypedFrames, BackgroundFrames):
    """Writes typed events. An item opens with the first piece of its kind and closes before the next item."""

    _sequence: int = -1
    _items: list[dict[str, Any]] = field(default_factory=list)
    _open: tuple[str, int] | None = None
    _call: Piece | None = None
    _text: str = ""

    def begin(self) -> list[bytes]:
        """The start of the response. In the background, it waits in a queue first."""
        queued = "background" in self.facts.traits
        made = [self._event("response.created", response=self._response("queued" if queued else "in_progress"))]
        if queued:
            made.append(self._event("response.queued", response=self._response("queued")))
        return [*made, self._event("response.in_progress", response=self._response("in_progress"))]

    def unfinished(self, status: str) -> dict[str, Any]:
        """The response without output. A failed response has an error instead of output."""
        error = {"code": "server_error", "message": STREAM_ERROR} if status == "failed" else None
        return {**self._response(status), "error": error}

    def cancelled(self) -> list[bytes]:
        """The last event of a cancelled response."""
        return [self._event("response.cancelled", response=self._response("cancelled"))]

    def empty(self) -> list[bytes]:
        """An event that repeats the state."""
        return [self._event("response.in_progress", response=self._response("in_progress"))]

    def piece(self, choice: int, piece: Piece, finish: str | None = None) -> list[bytes]:  # noqa: ARG002 - there is one choice
        """The events that close the previous item and open this one, if necessary; then a delta."""
        of = (piece.kind if piece.kind != "arguments" else "call", piece.call)
        made = [] if of == self._open else [*self._close(), *self._opened(piece)]
        self._open = of
        if piece.kind == "call":
            return made
        self._text += piece.text
        name, index, _ = self._events()
        if not name:
            return made
        more = {"logprobs": [logprob(piece.text)] if self.facts.logprobs else []} if piece.kind == "content" else {}
        return [*made, self._event(f"response.{name}.delta", **self._where(), **index, delta=piece.text, **more)]

    def announce(self, kind: str) -> list[bytes]:
        """The start of a message."""
        if kind not in ("content", "refusal"):
            return []
        made = [*self._close(), *self._opened(Piece(kind, ""))]  # type: ignore[arg-type] # of Kind
        self._open = (kind, 0)
        return made

    def _events(self) -> tuple[str, dict[str, int], str]:
        """The events of the open item. The arguments of some calls have no events."""
        kind, call = "" if self._open is None else self._open[0], self._call
        if kind == "call" and call is not None and call.type != "function":
            kind = call.type
        return _EVENTS_OF.get(kind, ("", {}, ""))

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._items[-1].get("id"), "output_index": len(self._items) - 1}

    def _opened(self, piece: Piece) -> list[bytes]:
        number = len(self._items)
        item = self._item(piece, number)
        self._items.append(item)
        made = [self._event("response.output_item.added", output_index=number, item=item)]
        if piece.kind in ("content", "refusal"):
            part = _part(piece.kind, "")
            made.append(self._event("response.content_part.added", **self._where(), content_index=0, part=part))
        return made

    def _item(self, piece: Piece, number: int) -> dict[str, Any]:
        facts = self.facts
        if piece.kind == "call":
            self._call = piece
            if piece.sent is not None:
                return {name: value for name, value in piece.sent.items() if name not in _RESULTS}
            made = {"id": f"fc_{facts.id}_{number}", "status": "in_progress", "call_id": call_id(facts, piece)}
            if piece.type in _CALL_ITEMS:
                type_, arguments = _CALL_ITEMS[piece.type]
                return {**made, "type": type_, "name": piece.text, arguments: ""}
            return {**made, "type": piece.type}
        if piece.kind == "reasoning":
            return {"id": f"rs_{facts.id}_{number}", "type": "reasoning", "summary": []}
        return {
            "id": f"msg_{facts.id}_{number}",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        kind, item, text, call = self._open[0], self._items[-1], self._text, self._call
        name, index, complete = self._events()
        self._text, self._open = "", None
        if kind == "call" and call is not None:
            item |= self._completed(call, text)
        elif kind == "reasoning":
            item["summary"] = [{"type": "summary_text", "text": text}]
        else:
            item |= {"content": [_part(kind, text)], "status": "completed"}
        made = [self._event(f"response.{name}.done", **self._where(), **index, **{complete: text})] if name else []
        return [*made, self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)]

    def _completed(self, call: Piece, arguments: str) -> dict[str, Any]:
        """The fields of a complete call."""
        if call.sent is not None:
            return dict(call.sent)
        if call.type in _CALL_ITEMS:
            return {_CALL_ITEMS[call.type][1]: arguments, "status": "completed"}
        try:
            content = decode(arguments.encode()) if arguments else {}
        except ValueError:  # an answer that broke off may have a part of them
            content = {}
        return {**content, "status": "completed"} if isinstance(content, dict) else {"status": "completed"}

    def finish(self, choice: int, reason: str) -> list[bytes]:  # noqa: ARG002 - the response's end has the reason
        """The end of the last item."""
        return self._close()

    def end(self, reason: str | None) -> list[bytes]:
        """The complete response, whose status and details are this API's finish_reason."""
        if reason is None:
            return []
        status = _status(reason)
        return [self._event(f"response.{status}", response=self._response(status, reason, self._items))]

    def error(self, *, named: bool) -> list[bytes]:
        """An error event, or a response that failed."""
        if named:
            return [self._event("error", code="server_error", message=STREAM_ERROR, param=None)]
        failed = {**self._response("failed"), "error": {"code": "server_error", "message": STREAM_ERROR}}
        return [self._event("response.failed", response=failed)]

    def refuse(self, error: StreamError) -> list[bytes]:
        """An error event. Its fields are in two places: as documented, and as OpenAI's clients expect them."""
        code = error.code or error.type
        given = {
            "type": error.type or "server_error",
            "code": code or "",
            "message": error.message or "",
            "param": None,
        }
        return [self._event("error", code=code, message=error.message, param=None, error=given)]

    def whole_error(self, body: dict[str, Any], error: StreamError) -> dict[str, Any]:
        """A response that failed."""
        given = {"code": error.code or error.type, "message": error.message}
        return {**body, "status": "failed", "error": given, "incomplete_details": None}

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The response with the same items as a stream."""
        for piece in answers[0].pieces if answers else ():
            self.piece(0, piece)
        self._close()
        if self.facts.logprobs:
            for item in self._items:
                for part in item.get("content", ()):
                    part["logprobs"] = [logprob(part.get("text", ""))]
        reason = answers[0].finish_reason if answers else ""
        return self._response(_status(reason), reason, self._items)

    def _response(self, status: str, reason: str = "", output: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        facts = self.facts
        details = {"reason": "max_output_tokens" if reason == "length" else reason}
        made: dict[str, Any] = {
            "id": f"resp_{facts.id}" if facts.response_id is None else facts.response_id,
            "object": "response",
            "created_at": facts.created,
            "status": status,
            "error": None,
            "incomplete_details": details if status == "incomplete" and reason != "incomplete" else None,
            "background": "background" in facts.traits,
            "model": facts.model,
            "output": list(output),
            "service_tier": facts.tier,
            "usage": _responses_usage(facts.usage) if facts.usage and status in ("completed", "incomplete") else None,
        }
        if "moderation" in facts.traits and status == "completed":
            made["moderation"] = MODERATION
        if "filters" in facts.traits and status in ("completed", "incomplete"):
            made["content_filters"] = [{"source_type": "completion", "content_filter_results": SAFE}]
        return made

    def _event(self, kind: str, **fields: Any) -> bytes:  # noqa: ANN401 - any JSON
        self._sequence += 1
        return event({"type": kind, "sequence_number": self._sequence, **fields}, kind)


def _status(reason: str) -> str:
    return "completed" if reason in ("", "stop", "tool_calls", "completed") else "incomplete"


def _responses_usage(given: dict[str, Any]) -> dict[str, Any]:
    names = {
        "input_tokens": "prompt_tokens",
        "input_tokens_details": "prompt_tokens_details",
        "output_tokens": "completion_tokens",
        "output_tokens_details": "completion_tokens_details",
        "total_tokens": "total_tokens",
    }
    return {name: given[of_chat] for name, of_chat in names.items() if of_chat in given}
