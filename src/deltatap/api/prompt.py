"""The prompt of a prompts row: text in `prompt`, or a list in `messages`. Pure.

This module checks and normalizes both. Each API's module decides which of them it accepts, and which field of the
request body they fill.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class BadPromptError(ValueError):
    """No request can be built from a prompts row. The message says why."""


def prompt_text(row: Mapping[str, Any]) -> str:
    """The text in `prompt`.

    Raises:
        BadPromptError: if the column has no text.
    """
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadPromptError("no prompt: expected text in prompt, or messages")
    return prompt


def messages(row: Mapping[str, Any], *, allow_items: bool = False) -> list[dict[str, Any]]:
    """The messages of a row. A `prompt` becomes one user message.

    Args:
        row: the columns by name. `messages` is a list of objects, or that list as JSON text.
        allow_items: accept objects that have a `type` and no `role`, as the Responses API does.

    Raises:
        BadPromptError: if the row has no valid prompt.
    """
    given = row.get("messages")
    if row.get("prompt") is not None and given is not None:
        raise BadPromptError("both prompt and messages: expected one of them")
    if given is None:
        return [{"role": "user", "content": prompt_text(row)}]
    found = [_message(at, message, allow_items=allow_items) for at, message in enumerate(_listed(given))]
    if not found:
        raise BadPromptError("no prompt: messages is empty")
    return found


def parts(content: str) -> str | list[Any]:
    """Decode content that is a JSON array of parts (objects with `type`). Return other content unchanged."""
    if not content.lstrip().startswith("["):
        return content
    try:
        found = json.loads(content)
    except ValueError:
        return content
    if isinstance(found, list) and found and all(isinstance(part, dict) and "type" in part for part in found):
        return found
    return content


def plain(value: object) -> Any:  # noqa: ANN401 - any JSON
    """Convert a value to plain JSON types. Keys become text, and nulls in objects are dropped."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _listed(given: object) -> Sequence[Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise BadPromptError("messages is not valid JSON") from None
        if not isinstance(given, list):
            raise BadPromptError("messages: expected a JSON array of objects with role and content")
    return given if isinstance(given, list) else list(given)  # type: ignore[call-overload]


def _message(at: int, given: object, *, allow_items: bool) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise BadPromptError(f"messages[{at}]: expected an object with role and content")
    message = {key: plain(value) for key, value in given.items() if value is not None}
    if allow_items and "role" not in message and "type" in message:
        return message  # an item of another type, such as the output of a tool
    role = message.get("role")
    if role not in ROLES:
        raise BadPromptError(f"messages[{at}].role: expected one of {', '.join(ROLES)}, found {role!r}")
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = parts(content)
    elif content is not None and not isinstance(content, list):
        raise BadPromptError(f"messages[{at}].content: expected text or a list of parts")
    calls = message.get("tool_calls")
    if isinstance(calls, str):
        try:
            message["tool_calls"] = json.loads(calls)
        except ValueError:
            raise BadPromptError(f"messages[{at}].tool_calls is not valid JSON") from None
    if content is None and role != "assistant":
        raise BadPromptError(f"messages[{at}].content: is missing")
    return message
