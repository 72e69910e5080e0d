"""A row of the prompts table becomes a request: checked, in the API's form, with its hash. Pure.

Knows what a prompts row may hold and what each API takes. Leaves to others where rows come from (``plan.py``) and
how a request is sent. A bad row never raises: it becomes a request without a body that says what is wrong with the
row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deltatap.model import Mode, Request, Wire

if TYPE_CHECKING:
    from deltatap.model import Api
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
OURS = ("stream", "stream_options")
# What of the body is the prompt: a row's own, never a parameter.
INPUTS: Mapping[Api, tuple[str, ...]] = {
    "chat": ("messages",),
    "completions": ("prompt",),
    "responses": ("input",),
}


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
    row: Mapping[str, Any], *, api: Api, model: str | None, defaults: Mapping[str, Any], keep: Sequence[str]
) -> Request:
    """The request of a row.

    Args:
        row: the prompts table's columns by name; nested values as lists and dicts, a MAP as pairs.
        api: whose form the body takes.
        model: the model for rows that name none.
        defaults: parameters of the body; a row's own params win.
        keep: columns to carry along, as text.
    """
    kept = {name: _kept(row.get(name)) for name in keep} or None
    request_id = row.get("request_id")
    asked = row.get("model") or model
    try:
        body = _body(row, api, asked, defaults)
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


def wire(body: str, *, api: Api, mode: Mode, include_usage: bool) -> Wire:
    """The body to send.

    Args:
        body: of a :class:`Request`.
        api: the API it is for.
        mode: whether to stream.
        include_usage: whether to ask for usage in a stream (``stream_options.include_usage``). Responses always has it.
    """
    sent = json.loads(body)
    usage = include_usage and mode == "stream" and api != "responses"
    if mode == "stream":
        sent["stream"] = True
    if usage:
        sent["stream_options"] = {"include_usage": True}
    choices = sent.get("n") if api != "responses" else None
    text = json.dumps(sent, separators=(",", ":"), ensure_ascii=False)
    return Wire(text, str(sent["model"]), mode, choices if isinstance(choices, int) and choices > 1 else 1, usage)


def without_stream_options(body: str) -> str:
    """The body for a server that does not know them."""
    sent = json.loads(body)
    del sent["stream_options"]
    return json.dumps(sent, separators=(",", ":"), ensure_ascii=False)


def _body(row: Mapping[str, Any], api: Api, model: str | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    if not model:
        raise BadPromptError("no model: the row has none and endpoint.model is null")
    params = _params(row.get("params"))
    given = {"chat": _chat, "completions": _completions, "responses": _responses}[api](row)
    ours = [key for key in (*INPUTS[api], *OURS) if key in params]
    ours += [key for key in given if key in params and key not in ours]
    if ours:
        raise BadPromptError(f"params must not hold {', '.join(ours)}: deltatap sets it")
    body = {"model": model, **given, **{key: value for key, value in defaults.items() if key not in given}, **params}
    try:
        compact(body)
    except ValueError:
        raise BadPromptError("params hold NaN or an infinite number, which JSON cannot say") from None
    return body


def _chat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Chat completions take messages."""
    messages = _messages(row)
    system = row.get("system")
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def _completions(row: Mapping[str, Any]) -> dict[str, Any]:
    """Legacy completions take one text."""
    for name in ("messages", "system"):
        if row.get(name):
            raise BadPromptError(
                f"{name}: endpoint.api is completions, which takes a text in prompt and knows no roles"
            )
    return {"prompt": _prompt(row)}


def _responses(row: Mapping[str, Any]) -> dict[str, Any]:
    """Responses takes a text or items, and the system's word as instructions."""
    system = row.get("system")
    given = _prompt(row) if row.get("messages") is None else _messages(row, items=True)
    return {"input": given, "instructions": system} if system else {"input": given}


def _prompt(row: Mapping[str, Any]) -> str:
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadPromptError("no prompt: expected a text in prompt, or messages")
    return prompt


def _messages(row: Mapping[str, Any], *, items: bool = False) -> list[dict[str, Any]]:
    given = row.get("messages")
    if row.get("prompt") is not None and given is not None:
        raise BadPromptError("both prompt and messages: expected one of them")
    if given is None:
        return [{"role": "user", "content": _prompt(row)}]
    messages = [_message(at, message, items=items) for at, message in enumerate(_listed(given))]
    if not messages:
        raise BadPromptError("no prompt: messages is empty")
    return messages


def _listed(given: object) -> Sequence[Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise BadPromptError("messages is no JSON") from None
        if not isinstance(given, list):
            raise BadPromptError("messages: expected a JSON array of objects with role and content")
    return given if isinstance(given, list) else list(given)  # type: ignore[call-overload]


def _message(at: int, given: object, *, items: bool) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise BadPromptError(f"messages[{at}]: expected an object with role and content")
    message = {key: _plain(value) for key, value in given.items() if value is not None}
    if items and "role" not in message and "type" in message:
        return message  # an item of Responses that is no message: a tool's output, a reference
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
