"""Prompts and answers in the form of the attributes ``gen_ai.*.messages``. Pure.

The form is that of the JSON schemas of the semantic conventions for GenAI (gen-ai-input-messages.json and
gen-ai-output-messages.json). Parts of a message that the schemas do not know stay as they were sent. Attributes of a
span hold no objects, so messages are JSON text, as the conventions say.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from deltatap.api.registry import NAMES, specification
from deltatap.api.values import to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Part = dict[str, Any]

_TEXTS = ("text", "input_text", "output_text")
# The fields of tool calls and their results in Messages and in Responses.
_CALLS = {"tool_use": ("id", "input"), "function_call": ("call_id", "arguments")}
_RESPONSES = {"tool_result": ("tool_use_id", "content"), "function_call_output": ("call_id", "output")}


def system_instructions(body: Mapping[str, Any], api: str) -> str | None:
    """The system prompt, if the API keeps it separate from the messages; None if there is none."""
    system = specification(api).system if api in NAMES else None
    given = body.get(system) if system else None
    return to_json(_parts(given)) if given else None


def input_messages(body: Mapping[str, Any], api: str) -> str | None:
    """The messages that were sent, in their order; None if there are none."""
    given = body.get(specification(api).prompt_field) if api in NAMES else None
    if not given:
        return None
    return to_json([_message(each) for each in (given if isinstance(given, list) else [given])])


def output_messages(choices: Iterable[Mapping[str, Any]]) -> str | None:
    """One message for each choice; None if there is none."""
    found = [_answer(choice) for choice in choices]
    return to_json(found) if found else None


def _message(given: object) -> dict[str, Any]:
    """One message, from a text, a message of chat completions or Messages, or an item of Responses."""
    if not isinstance(given, dict):
        return {"role": "user", "parts": _parts(given)}
    if "role" not in given:
        part = _part(given)
        return {"role": "tool" if part["type"] == "tool_call_response" else "assistant", "parts": [part]}
    role, content = str(given["role"]), given.get("content")
    if role == "tool":
        return {"role": role, "parts": [_response(given.get("tool_call_id"), content)]}
    calls = given.get("tool_calls")
    return {
        "role": role,
        "parts": [*([] if content is None else _parts(content)), *_calls(calls if isinstance(calls, list) else ())],
    }


def _answer(choice: Mapping[str, Any]) -> dict[str, Any]:
    parts: list[Part] = []
    if choice["reasoning"]:
        parts.append({"type": "reasoning", "content": choice["reasoning"]})
    if choice["text"]:
        parts.append(_text(choice["text"]))
    if choice["refusal"]:
        parts.append({"type": "refusal", "content": choice["refusal"]})
    if choice["tool_calls"]:
        parts += _calls(json.loads(choice["tool_calls"]))
    # The schema requires a reason. A choice has none if the stream ended early.
    return {"role": "assistant", "parts": parts, "finish_reason": choice["finish_reason"] or "error"}


def _parts(content: object) -> list[Part]:
    return [_part(each) for each in (content if isinstance(content, list) else [content])]


def _part(given: object) -> Part:
    if not isinstance(given, dict):
        return _text(given if isinstance(given, str) else to_json(given))
    kind = given.get("type")
    if kind in _TEXTS and isinstance(given.get("text"), str):
        return _text(given["text"])
    if kind in _CALLS:
        id_, arguments = _CALLS[kind]
        return _call(given.get(id_), given.get("name"), given.get(arguments))
    if kind in _RESPONSES:
        id_, response = _RESPONSES[kind]
        return _response(given.get(id_), given.get(response))
    return {**given, "type": str(kind or "unknown")}


def _calls(calls: Iterable[object]) -> list[Part]:
    """Tool calls in the form of chat completions. Calls that the server ran itself stay as they are."""
    found = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(call, dict) and isinstance(function, dict):
            found.append(_call(call.get("id"), function.get("name"), function.get("arguments")))
        else:
            found.append(_part(call))
    return found


def _text(text: str) -> Part:
    return {"type": "text", "content": text}


def _call(id_: object, name: object, arguments: object) -> Part:
    if isinstance(arguments, str):
        with suppress(ValueError):  # a model wrote it
            arguments = json.loads(arguments)
    return {"type": "tool_call", "id": id_, "name": str(name), "arguments": arguments}


def _response(id_: object, response: object) -> Part:
    return {"type": "tool_call_response", "id": id_, "response": response}
