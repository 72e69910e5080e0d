"""Reads output items of the Responses API: messages, reasoning, calls of tools and their results. Pure.

The items are described in OpenAI's API reference. This module reads one complete item, with any values in it.
`responses.py` knows the events, and which part of an item has already arrived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from deltatap.api.values import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

# The ends of the types of items that are stored as tool calls: function_call, shell_call, web_search_call, …; the
# results of calls that the server ran, such as shell_call_output; mcp_approval_request; a program that makes calls.
_CALLS = ("_call", "_output", "_request", "program")
# A call of one of these types is converted to the form of chat completions, with its type there.
_FUNCTIONS = {"function_call": "function", "custom_tool_call": "custom", "tool_call": "function"}
# The fields of an item that say nothing about what the model asks for.
_ENVELOPE = frozenset(("id", "type", "call_id", "status", "name", "caller", "created_by", "async", "namespace"))
# The field with the arguments of a call: of a function, a custom tool, a code interpreter, and the end of a patch.
_ARGUMENTS = ("arguments", "input", "code", "diff")


class Text(NamedTuple):
    """A text of an item.

    Attributes:
        field: `content`, `refusal`, `summary` or `reasoning`.
        at: its number among the texts of the item with the same field.
        text: the text.
        part: the object that contains it, which can also have annotations and log probabilities.
    """

    field: str
    at: int
    text: str
    part: dict[str, Any]


class SentCall(NamedTuple):
    """A call in the form of chat completions, or the result of a call.

    Attributes:
        id, type, name, arguments: of the call.
        item: the item as it was sent; None for a call that the client must answer.
        as_json: whether the arguments are JSON of the item's fields, because the tool is not a function.
    """

    id: str | None
    type: str
    name: str
    arguments: str
    item: dict[str, Any] | None = None
    as_json: bool = False


def is_call(item: dict[str, Any]) -> bool:
    """Whether the item is a tool call or the result of one."""
    type_ = item.get("type")
    return type(type_) is str and type_.endswith(_CALLS)


def texts(item: dict[str, Any]) -> Iterator[Text]:
    """The texts of a message or of reasoning."""
    for name in ("summary", "content"):
        given = item.get(name)
        for index, part in enumerate(given if type(given) is list else [given]):
            found = part if type(part) is dict else {"text": part}
            reasoning = name == "summary" or item.get("type") == "reasoning" or found.get("type") == "reasoning_text"
            yield from part_texts(found, index, name if name == "summary" or not reasoning else "reasoning")


def part_texts(part: dict[str, Any], index: int, field: str) -> Iterator[Text]:
    """The texts of a part; the text of spoken output is its transcript."""
    for name, of in (("text", field), ("transcript", field), ("refusal", "refusal")):
        if type(part.get(name)) is str and part[name]:
            yield Text(of, index, part[name], part)


def sent_call(item: dict[str, Any]) -> SentCall:
    """The call that an item is, or its result.

    A call that the client must answer has a `call_id`. It keeps its type and everything that it asks for, such as the
    action of a shell or the operation of a patch. Other calls, and results, are kept as they were sent.
    """
    type_, function = item["type"], item.get("function")
    inner = function if type(function) is dict else {}
    id_ = identifier(item.get("call_id"))
    name = identifier(inner.get("name")) or identifier(item.get("name")) or ""
    arguments = arguments_in(inner) or arguments_in(item)
    if inner or type_ in _FUNCTIONS:
        return SentCall(id_ or identifier(item.get("id")), _FUNCTIONS.get(type_, "function"), name, arguments)
    if id_ is None or not type_.endswith("_call"):
        result = type_.endswith("_output")
        return SentCall(None if result else id_, type_, name, "" if result else arguments, _as_sent(item))
    content = {key: value for key, value in item.items() if key not in _ENVELOPE and value not in (None, "", [], {})}
    return SentCall(
        id_, type_, name or type_.removesuffix("_call"), to_json(content) if content else "", None, as_json=True
    )


def arguments_in(given: dict[str, Any]) -> str:
    """The arguments in a call, or in an event that repeats them. An object becomes JSON."""
    return next((text for name in _ARGUMENTS if (text := as_text(given.get(name)))), "")


def identifier(value: object) -> str | None:
    """The value if it is text that is not empty."""
    return value if type(value) is str and value else None


def as_text(value: object) -> str:
    """Arguments as text: a server can send an object where JSON text belongs."""
    if type(value) is str:
        return value
    return to_json(value) if type(value) in (dict, list) and value else ""


def _as_sent(item: dict[str, Any]) -> dict[str, Any]:
    """The item without the data of images, which `raw` keeps."""
    made = dict(item)
    if item["type"] == "image_generation_call" and type(item.get("result")) is str:
        made["result"] = _mark(item["result"])
    outputs = item.get("outputs")
    if type(outputs) is list:
        made["outputs"] = [
            {**output, "url": _mark(output["url"])}
            if type(output) is dict and type(output.get("url")) is str and output["url"].startswith("data:")
            else output
            for output in outputs
        ]
    return made


def _mark(data: str) -> str:
    """The text that is stored instead of an image."""
    return f"(image: {len(data):,} characters of base64)" if data else data
