"""The typed events of Responses around the simulator's texts. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deltatap.simulator.frames import MODERATION, SAFE, Facts, call_id, event, logprob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltatap.simulator.answers import Answer, Piece


@dataclass(slots=True)
class ResponsesFrames:
    """The typed events of Responses; items open with the first piece of their kind and close before the next."""

    facts: Facts
    _sequence: int = -1
    _items: list[dict[str, Any]] = field(default_factory=list)
    _open: tuple[str, int] | None = None
    _text: str = ""

    def begin(self) -> list[bytes]:
        """The response as it starts."""
        return [
            self._event(kind, response=self._response("in_progress"))
            for kind in ("response.created", "response.in_progress")
        ]

    def role(self, choice: int, content: str = "") -> list[bytes]:  # noqa: ARG002 - an item's start says it
        """Nothing."""
        return []

    def empty(self) -> list[bytes]:
        """A repetition."""
        return [self._event("response.in_progress", response=self._response("in_progress"))]

    def piece(self, choice: int, piece: Piece, finish: str | None = None) -> list[bytes]:  # noqa: ARG002 - as chat's
        """A delta, with what opens its item and closes the one before."""
        of = (piece.kind if piece.kind != "arguments" else "call", piece.call)
        made = [] if of == self._open else [*self._close(), *self._opened(piece)]
        self._open = of
        if piece.kind == "call":
            return made
        self._text += piece.text
        where = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        if piece.kind == "arguments":
            return [*made, self._event("response.function_call_arguments.delta", **where, delta=piece.text)]
        if piece.kind == "reasoning":
            return [
                *made,
                self._event("response.reasoning_summary_text.delta", **where, summary_index=0, delta=piece.text),
            ]
        if piece.kind == "refusal":
            return [*made, self._event("response.refusal.delta", **where, content_index=0, delta=piece.text)]
        probabilities = [logprob(piece.text)] if self.facts.logprobs else []
        return [
            *made,
            self._event(
                "response.output_text.delta", **where, content_index=0, delta=piece.text, logprobs=probabilities
            ),
        ]

    def _opened(self, piece: Piece) -> list[bytes]:
        number = len(self._items)
        item = self._item(piece, number)
        self._items.append(item)
        made = [self._event("response.output_item.added", output_index=number, item=item)]
        if piece.kind in ("content", "refusal"):
            part = (
                {"type": "refusal", "refusal": ""}
                if piece.kind == "refusal"
                else {"type": "output_text", "text": "", "annotations": []}
            )
            made.append(
                self._event(
                    "response.content_part.added", item_id=item["id"], output_index=number, content_index=0, part=part
                )
            )
        return made

    def _item(self, piece: Piece, number: int) -> dict[str, Any]:
        facts = self.facts
        if piece.kind == "call":
            called = call_id(facts, piece.call)
            return {
                "id": f"fc_{facts.id}_{number}",
                "type": "function_call",
                "status": "in_progress",
                "call_id": called,
                "name": piece.text,
                "arguments": "",
            }
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
        kind, number = self._open[0], len(self._items) - 1
        item, text = self._items[-1], self._text
        self._text = ""
        where = {"item_id": item["id"], "output_index": number}
        if kind == "call":
            item |= {"arguments": text, "status": "completed"}
            made = [self._event("response.function_call_arguments.done", **where, arguments=text)]
        elif kind == "reasoning":
            item["summary"] = [{"type": "summary_text", "text": text}]
            made = [self._event("response.reasoning_summary_text.done", **where, summary_index=0, text=text)]
        elif kind == "refusal":
            item |= {"content": [{"type": "refusal", "refusal": text}], "status": "completed"}
            made = [self._event("response.refusal.done", **where, content_index=0, refusal=text)]
        else:
            item |= {"content": [{"type": "output_text", "text": text, "annotations": []}], "status": "completed"}
            made = [self._event("response.output_text.done", **where, content_index=0, text=text)]
        return [*made, self._event("response.output_item.done", output_index=number, item=item)]

    def finish(self, choice: int, answer: Answer, reason: str) -> list[bytes]:  # noqa: ARG002 - as chat's
        """The last item closes."""
        made = self._close()
        self._open = None
        return made

    def end(self, answers: Sequence[Answer], reason: str) -> list[bytes]:  # noqa: ARG002 - as chat's
        """The whole response once more."""
        status = _status(reason)
        return [self._event(f"response.{status}", response=self._response(status, reason, self._items))]

    def error(self, *, named: bool) -> list[bytes]:
        """An error event, or a response that failed."""
        message = "The server had an error in mid-stream."
        if named:
            return [self._event("error", code="server_error", message=message, param=None)]
        failed = {**self._response("failed"), "error": {"code": "server_error", "message": message}}
        return [self._event("response.failed", response=failed)]

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The response, its items as a stream would have left them."""
        for piece in answers[0].pieces:
            self.piece(0, piece)
        self._close()
        if self.facts.logprobs:
            for item in self._items:
                for part in item.get("content", ()):
                    part["logprobs"] = [logprob(part.get("text", ""))]
        reason = answers[0].finish_reason
        return self._response(_status(reason), reason, self._items)

    def _response(self, status: str, reason: str = "", output: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        facts = self.facts
        details = {"reason": "max_output_tokens" if reason == "length" else reason} if status == "incomplete" else None
        made: dict[str, Any] = {
            "id": f"resp_{facts.id}",
            "object": "response",
            "created_at": facts.created,
            "status": status,
            "error": None,
            "incomplete_details": details,
            "model": facts.model,
            "output": list(output),
            "service_tier": "default",
            "usage": _responses_usage(facts.usage) if status in ("completed", "incomplete") else None,
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
    return "incomplete" if reason in ("length", "content_filter") else "completed"


def _responses_usage(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": given["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": given["prompt_tokens_details"]["cached_tokens"]},
        "output_tokens": given["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": given["completion_tokens_details"]["reasoning_tokens"]},
        "total_tokens": given["total_tokens"],
    }
