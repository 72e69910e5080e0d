"""A row of the prompts table becomes a request: checked, in the API's form, with its hash. Pure.

Knows what a prompts row may hold and what the chat API takes. Leaves to others where rows come from (``plan.py``) and
how a request is sent. A bad row never raises: it becomes a request without a body that says what is wrong with the
row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
OURS = ("stream", "stream_options")
_BODY_KEYS = ("messages", *OURS)


@dataclass(frozen=True, slots=True)
class Request:
    """A request to capture, or a bad row.

    Attributes:
        request_id: of the row, else the request's hash.
        request_hash: sha256, hex, of the body's compact UTF-8 JSON with sorted keys; of a bad row, of its source
        columns. model: the model asked for; None when a bad row names none. body: the JSON body without stream
        options, keys in the order given (JSON schemas mean something by theirs);
            None for a bad row.
        keep: the columns carried along.
        error: what is wrong with a bad row; None otherwise.
    """

    request_id: str
    request_hash: str
    model: str | None
    body: str | None
    keep: dict[str, str | None] | None
    error: str | None


class BadPromptError(ValueError):
    """What is wrong with a row; caught within this module."""


def compact(value: object) -> str:
    """Compact JSON with sorted keys, text left as it is: what is hashed.

    Raises:
        ValueError: for NaN and infinities, which JSON has no words for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(text: str) -> str:
    """The sha256 of the text's UTF-8, in hex; a lone surrogate is hashed as what Python would escape it to."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def build_request(
    row: Mapping[str, Any], *, model: str | None, defaults: Mapping[str, Any], keep: Sequence[str]
) -> Request:
    """The request of a row.

    Args:
        row: the prompts table's columns by name; nested values as lists and dicts, a MAP as pairs.
        model: the model for rows that name none.
        defaults: parameters of the body; a row's own params win.
        keep: columns to carry along, as text.
    """
    kept = {name: _kept(row.get(name)) for name in keep} or None
    request_id = row.get("request_id")
    asked = row.get("model") or model
    try:
        body = _body(row, asked, defaults)
        request_hash = request_hash_of(body)
        text = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        bad = "text that is no valid Unicode (a lone surrogate)"
    except BadPromptError as error:
        bad = str(error)
    else:
        return Request(request_id or request_hash, request_hash, asked, text, kept, None)
    source = sha256(json.dumps(_plain(row), sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str))
    return Request(request_id or source, source, asked, None, kept, bad)


def request_hash_of(body: Mapping[str, Any]) -> str:
    """The identity of a body: the same request has the same hash, streamed or not."""
    return sha256(compact({key: value for key, value in body.items() if key not in OURS}))


def wire(body: str, *, include_usage: bool) -> tuple[str, int]:
    """The body to send, with ``stream=True``, and how many choices it asks for.

    Args:
        body: of a :class:`Request`.
        include_usage: whether to ask for usage (``stream_options.include_usage``).
    """
    sent = {**json.loads(body), "stream": True}
    if include_usage:
        sent["stream_options"] = {"include_usage": True}
    choices = sent.get("n")
    text = json.dumps(sent, separators=(",", ":"), ensure_ascii=False)
    return text, choices if isinstance(choices, int) and choices > 1 else 1


def _body(row: Mapping[str, Any], model: str | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    if not model:
        raise BadPromptError("no model: the row has none and endpoint.model is null")
    params = _params(row.get("params"))
    ours = [key for key in _BODY_KEYS if key in params]
    if ours:
        raise BadPromptError(f"params must not hold {', '.join(ours)}: deltatap sets it")
    body = {"model": model, "messages": _messages(row), **defaults, **params}
    try:
        compact(body)
    except ValueError:
        raise BadPromptError("params hold NaN or an infinite number, which JSON cannot say") from None
    return body


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    prompt, given, system = row.get("prompt"), row.get("messages"), row.get("system")
    if prompt is not None and given is not None:
        raise BadPromptError("both prompt and messages: expected one of them")
    if given is None:
        if prompt is None or not prompt.strip():
            raise BadPromptError("no prompt: expected a text in prompt, or messages")
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    else:
        messages = [_message(at, message) for at, message in enumerate(_listed(given))]
        if not messages:
            raise BadPromptError("no prompt: messages is empty")
    return [{"role": "system", "content": system}, *messages] if system else messages


def _listed(given: object) -> Sequence[Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise BadPromptError("messages is no JSON") from None
        if not isinstance(given, list):
            raise BadPromptError("messages: expected a JSON array of objects with role and content")
    return given if isinstance(given, list) else list(given)  # type: ignore[call-overload]


def _message(at: int, given: object) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise BadPromptError(f"messages[{at}]: expected an object with role and content")
    message = {key: _plain(value) for key, value in given.items() if value is not None}
    role = message.get("role")
    if role not in ROLES:
        raise BadPromptError(f"messages[{at}].role: expected one of {', '.join(ROLES)}, found {role!r}")
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = _parts(content)
    elif content is not None and not isinstance(content, list):
        raise BadPromptError(f"messages[{at}].content: expected text or a list of parts")
    calls = message.get("tool_calls")
    if isinstance(calls, str):
        try:
            message["tool_calls"] = json.loads(calls)
        except ValueError:
            raise BadPromptError(f"messages[{at}].tool_calls is no JSON") from None
    if content is None and role != "assistant":
        raise BadPromptError(f"messages[{at}].content: is missing")
    return message


def _parts(content: str) -> str | list[Any]:
    """Content is parts only when it is a JSON array of objects with ``type``; any other text is just text."""
    if not content.lstrip().startswith("["):
        return content
    try:
        parts = json.loads(content)
    except ValueError:
        return content
    if isinstance(parts, list) and parts and all(isinstance(part, dict) and "type" in part for part in parts):
        return parts
    return content


def _params(given: object) -> dict[str, Any]:
    if given is None:
        return {}
    if isinstance(given, str):
        try:
            params = json.loads(given) if given.strip() else {}
        except ValueError:
            raise BadPromptError("params is no JSON") from None
        if not isinstance(params, dict):
            raise BadPromptError("params: expected a JSON object")
        return params
    pairs: Any = given.items() if isinstance(given, Mapping) else given
    return {name: _param(value) for name, value in pairs if value is not None}


def _param(value: object) -> object:
    """A MAP's values have one type, mostly STRING: what reads as JSON is taken as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _plain(value: object) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _kept(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | Mapping | list | tuple):
        return json.dumps(_plain(value), ensure_ascii=False, default=str)
    return str(value)
