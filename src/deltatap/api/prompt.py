"""The prompt of a prompts row: text in `prompt`, or a list in `messages`. Pure.

This module checks and normalizes both. Each API's module decides which of them it accepts, and which field of the
request body they fill.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class BadPromptError(ValueError):
    """No request can be built from a prompts row. The message says why."""


@dataclass(frozen=True, slots=True)
class Json:
    """A value that is JSON already: that of a VARIANT."""

    text: str

    @classmethod
    def of(cls, text: str) -> Json | None:
        """The value with this JSON text; None for ``null``, as for NULL in other columns."""
        return None if text == "null" else cls(text)


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


def decode(text: str, what: str) -> Any:  # noqa: ANN401 - any JSON
    """The JSON value in a text.

    Raises:
        BadPromptError: if there is none; the message names `what`.
    """
    try:
        return json.loads(text)
    except ValueError:
        raise BadPromptError(f"{what} is not valid JSON") from None
    except RecursionError:
        raise BadPromptError(f"{what} is nested too deeply") from None


def parts(content: str) -> str | list[Any]:
    """Decode content that is a JSON array of parts (objects with `type`). Return other content unchanged."""
    if not content.lstrip().startswith("["):
        return content
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if isinstance(found, list) and found and all(isinstance(part, dict) and "type" in part for part in found):
        return found
    return content


def plain(value: object, *, strict: bool = True) -> Any:  # noqa: ANN401, PLR0911 - any JSON; one return for each type
    """A value of a Spark column as plain JSON types.

    A decimal becomes a number, and bytes become Base64. Dates and times become ISO 8601 text, in UTC if they have a
    time zone. The keys of objects become text, and nulls in objects are dropped.

    Args:
        value: the value.
        strict: refuse a value of any other type; otherwise it becomes its text.

    Raises:
        BadPromptError: if JSON cannot express the value.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Json):
        return decode(value.text, "a VARIANT")
    if isinstance(value, Mapping):
        return {_key(key): plain(item, strict=strict) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item, strict=strict) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if strict:
        raise BadPromptError(f"expected a JSON value, found one of type {type(value).__name__}")
    return str(value)


def as_text(value: object) -> str:
    """A value as text: text unchanged, anything else as JSON."""
    try:
        made = plain(value, strict=False)
        return made if isinstance(made, str) else json.dumps(made, ensure_ascii=False)
    except (BadPromptError, RecursionError):  # it nests too deeply for Python's JSON
        return value.text if isinstance(value, Json) else str(value)


def _key(key: object) -> str:
    return key if isinstance(key, str) else as_text(key)


def _listed(given: object) -> Sequence[Any]:
    if isinstance(given, str | Json):
        given = decode(given if isinstance(given, str) else given.text, "messages")
        if not isinstance(given, list):
            raise BadPromptError("messages: expected a JSON array of objects with role and content")
    if not isinstance(given, list | tuple):
        raise BadPromptError("messages: expected a list of objects with role and content")
    return given


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
        message["tool_calls"] = decode(calls, f"messages[{at}].tool_calls")
    if content is None and role != "assistant":
        raise BadPromptError(f"messages[{at}].content is missing")
    return message
