"""Events of the Responses API, and what is received of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.unit.api.test_transcripts import receive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltatap.model import Received

CREATED = {"type": "response.created", "response": {"id": "resp_1", "model": "gpt", "status": "in_progress"}}
USAGE = {"input_tokens": 9, "output_tokens": 20, "total_tokens": 29}
ARGUMENTS = '{"city":"Paris"}'


def completed(*output: Any, type_: str = "response.completed", **more: Any) -> dict[str, Any]:
    status = type_.removeprefix("response.")
    return {
        "type": type_,
        "response": {"id": "resp_1", "status": status, "output": list(output), "usage": USAGE, **more},
    }


def function(name: str = "f", arguments: Any = ARGUMENTS, number: int = 1, **more: Any) -> dict[str, Any]:
    ids = {"id": f"fc_{number}", "call_id": f"call_{number}"}
    return {"type": "function_call", **ids, "name": name, "arguments": arguments, **more}


def message(*texts: str, id_: str = "msg_1") -> dict[str, Any]:
    parts = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return {"type": "message", "id": id_, "role": "assistant", "content": parts}


def thought(*texts: str) -> dict[str, Any]:
    return {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": text} for text in texts]}


def added(item: Any, at: Any = 0) -> dict[str, Any]:
    return {"type": "response.output_item.added", "output_index": at, "item": item}


def done(item: Any, at: Any = 0) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": at, "item": item}


def event(name: str, at: Any = 0, **more: Any) -> dict[str, Any]:
    """An event with a place. None leaves the place out."""
    place = {} if at is None else {"output_index": at}
    return {"type": f"response.{name}", **place, **more}


def text(delta: str, at: Any = 0, **more: Any) -> dict[str, Any]:
    return event("output_text.delta", at, delta=delta, **more)


def text_done(whole: str, at: Any = 0, **more: Any) -> dict[str, Any]:
    return event("output_text.done", at, text=whole, **more)


def arguments(delta: Any, at: Any = 0, **more: Any) -> dict[str, Any]:
    return event("function_call_arguments.delta", at, delta=delta, **more)


def arguments_done(whole: Any, at: Any = 0, **more: Any) -> dict[str, Any]:
    return event("function_call_arguments.done", at, arguments=whole, **more)


def call(name: str = "f", given: str = ARGUMENTS, number: int = 1, type_: str = "function") -> dict[str, Any]:
    return {"id": f"call_{number}", "type": type_, "function": {"name": name, "arguments": given}}


def sse(events: Sequence[Any]) -> bytes:
    return b"".join(
        f"event: {event['type']}\n".encode() + b"data: " + json.dumps(event).encode() + b"\n\n" for event in events
    )


def received(*events: Any) -> Received:
    return receive("responses", [sse([CREATED, *events])])


def tools(of: Received) -> list[Any]:
    found = of.choices[0].tool_calls if of.choices else None
    return json.loads(found) if found else []


def joined(of: Received, kind: str) -> str:
    return "".join(chunk["text"] for chunk in of.chunks.to_dicts() if chunk["kind"] == kind)
