"""Finds the error, and the server's message, in any JSON, event or text that a server sends. Pure.

OpenAI sends `{"error": {"message", "type", "code"}}`. Other servers, gateways and proxies have other forms, and some
send them with status 200. This module knows the forms. `http/outcomes.py` decides what an error means for a request.
"""

from __future__ import annotations

import html
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deltatap.api.sse import BOM, SSEDecoder
from deltatap.api.values import bounded, decode, decode_first, to_json
from deltatap.model import StreamError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MESSAGE_CHARS, _MARK_CHARS = 500, 100
_BODY_BYTES = 2**16
# An object can be nested in another, and a list can hold several errors.
_LEVELS, _ITEMS = 5, 10

# The names of fields, in lower case and without underscores: servers write error_code, errorCode and ErrorCode.
# In order of preference: the detail of problem+json says more than its title.
_MESSAGES = ("message", "detail", "msg", "errormessage", "errormsg", "statusmsg", "errordescription")
# These fields also have other meanings. They contain an error's message only if the object also has a code.
_VAGUE = ("description", "details", "faultstring", "messages", "reason", "title")
_CODES = ("code", "errorcode", "statuscode", "errcode")
_TYPES = ("type", "errortype")
# Objects, or lists of objects, that hold the words.
_INNER = ("error", "errors", "fault", "err", "exception", "baseresp", "response")
# Objects that are an error only where an answer should be.
_ALONE = _INNER[1:5]
# Bedrock names the object by the type of the error: internalServerException, modelStreamErrorException.
_NAMES = ("error", "exception")
# Fields with an answer in them. An object with an answer is an error only if it says so.
_ANSWERS = ("choices", "output", "content", "candidates", "delta", "text", "response", "usage")
# Values that say that all is well, or that nothing has happened yet.
_WELL = frozenset(
    (
        *("0", "200", "ok", "success", "succeeded", "completed"),
        *("queued", "pending", "in_progress", "processing", "running", "loading", "starting", "waiting"),
    )
)
_NOTICES = (
    "ping",
    "heartbeat",
    "keepalive",
    "keep-alive",
    "keep_alive",
    "debug",
    "info",
    "notice",
    "status",
    "warning",
)
_ABSENT = frozenset(("", "none", "null"))
_NO_WORDS = StreamError(None, None, None)

_SSE = re.compile(rb"\s*(?:data|event|error|id|retry)?:")
_HTML = re.compile(r"\s*(?:<\?xml|<!doctype|<html|<head|<body|<title|<center|<h\d|<p>|<error)", re.IGNORECASE)
_TITLE = re.compile(r"<title[^<>]*>([^<]*)", re.IGNORECASE)
_HIDDEN = re.compile(r"<(?:script|style)\b", re.IGNORECASE)
_HIDDEN_END = re.compile(r"</(?:script|style)[^<>]*>?", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")


def find_error(value: object, *, plain: bool = True) -> StreamError | None:
    """The error that a decoded JSON value is: an event, or a whole answer. None if it is not an error.

    A list is an error if it holds one; Gemini sends such lists.

    Args:
        value: the JSON.
        plain: whether words alone are an error, where an answer should be.
    """
    if type(value) is list:
        errors = [error for item in value[:_ITEMS] if type(item) is dict and (error := find_error(item)) is not None]
        return _of_list(errors) if errors else None
    if type(value) is not dict:
        return None
    named = _named(value)
    answer = any(named.get(name) for name in _ANSWERS)
    if _explicit(named):
        words = _words(value)
        # Some servers put an error without words into every chunk.
        return None if answer and words == _NO_WORDS else words
    return _implicit(named, value) if plain and not answer and not _well(named) else None


def read_refusal(body: bytes) -> StreamError:
    """The error in the body of a response with an error status: JSON in any form, event stream, HTML or plain text."""
    body = body.removeprefix(BOM).strip()
    try:
        value = decode(body)
    except ValueError:
        return _in_text(body[:_BODY_BYTES])
    words = find_error(value) or _words(value)
    if words.message is not None or not value:
        return words
    return replace(words, message=bounded(to_json(value), _MESSAGE_CHARS))


def _explicit(named: Mapping[str, Any]) -> bool:
    """Whether the object says that it is an error, even if it also has an answer."""
    error = named.get("error")
    if error or named.get("type") == "error" or named.get("object") == "error":
        return True
    if error == "" and _first(named, _CODES) is not None:
        return not _well(named)
    # MiniMax sends base_resp in every chunk; 0 is success.
    base, response = named.get("baseresp"), named.get("response")
    if type(response) is dict and _named(response).get("error"):
        return True
    return type(base) is dict and _mark(base.get("status_code")) not in (None, "0")


def _well(named: Mapping[str, Any]) -> bool:
    marks = (_mark(named.get(name)) for name in (*_CODES, "status"))
    return any(mark and mark.lower() in _WELL for mark in marks) or named.get("type") in _NOTICES


def _implicit(named: Mapping[str, Any], value: dict[str, Any]) -> StreamError | None:
    """An error that only its fields show: words where an answer should be."""
    if named.get("success") is True or named.get("baseresp"):
        return None
    if any(named.get(name) for name in _ALONE) or named.get("success") is False:
        return _words(value)
    for name, inner in named.items():
        if inner and type(inner) is dict and name.endswith(_NAMES):
            found = _words(inner)
            return replace(found, type=found.type or bounded(name, _MARK_CHARS))
    words = _words(value)
    said = words.code is not None or any(named.get(name) for name in _MESSAGES)
    return words if said and words.message is not None else None


def _words(value: object, levels: int = _LEVELS) -> StreamError:
    """The words in an error of any form: text, an object, or a list of either."""
    if type(value) is list:
        return _of_list([_words(item, levels - 1) for item in value[:_ITEMS]] if levels else [])
    if type(value) is not dict or not levels:
        return StreamError(None, None, _message(value))
    named = _named(value)
    own = _own(named, levels)
    inner = [_words(named[name], levels - 1) for name in _INNER if type(named.get(name)) in (dict, list)]
    found = next((words for words in inner if words != _NO_WORDS), _NO_WORDS)
    return StreamError(found.type or own.type, found.code or own.code, found.message or own.message)


def _own(named: Mapping[str, Any], levels: int) -> StreamError:
    """The words in the object itself."""
    type_, code, status = _first(named, _TYPES), _first(named, _CODES), _mark(named.get("status"))
    if status is not None and status.isdecimal():
        code = code or status
    elif type_ is None:
        type_ = status
    nested = [_words(named[name], levels - 1) for name in (*_MESSAGES, *_VAGUE) if named.get(name)]
    message = next((words.message for words in nested if words.message is not None), None)
    error = named.get("error")
    if message is None:
        message = next((_message(named[name]) for name in _INNER if named.get(name) and type(named[name]) is str), None)
    elif type_ is None and type(error) in (str, int):
        # OAuth has the code in error, and the words in error_description.
        type_ = _mark(error)
    if type(named.get("loc")) is list and message is not None:
        place = ".".join(str(_mark(part)) for part in named["loc"][:_ITEMS])
        message = _message(f"{place}: {message}")
    metadata = named.get("metadata")
    if message is not None and type(metadata) is dict and (raw := _message(metadata.get("raw"))) is not None:
        # OpenRouter quotes the provider.
        message = _message(f"{message}: {raw}")
    inner = _of_list(nested)
    return StreamError(None if type_ == "error" else type_ or inner.type, code or inner.code, message)


def _of_list(errors: list[StreamError]) -> StreamError:
    messages = [error.message for error in errors if error.message is not None]
    return StreamError(
        next((error.type for error in errors if error.type is not None), None),
        next((error.code for error in errors if error.code is not None), None),
        _message("; ".join(messages)),
    )


def _named(value: dict[str, Any]) -> dict[str, Any]:
    """The fields by their names in lower case without underscores. The first of several spellings counts."""
    named: dict[str, Any] = {}
    for name, inner in value.items():
        named.setdefault(name.lower().replace("_", "").replace("-", ""), inner)
    return named


def _first(named: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((mark for name in names if (mark := _mark(named.get(name))) is not None), None)


def _mark(value: object) -> str | None:
    """A code or a type as text. None for a value that says nothing."""
    if value is None or type(value) is bool:
        return None
    if type(value) is float and value.is_integer():
        value = int(value)
    text = value if type(value) is str else to_json(value)
    text = text.strip()
    return None if text.lower() in _ABSENT else bounded(text, _MARK_CHARS)


def _message(value: object) -> str | None:
    """Words as text; None for a value that holds none."""
    if type(value) is str:
        return bounded(value, _MESSAGE_CHARS) if value.strip().lower() not in _ABSENT else None
    if value is None or type(value) is bool or not value:
        return None
    return bounded(to_json(value), _MESSAGE_CHARS)


def _in_text(body: bytes) -> StreamError:
    """The error in a body that is not one JSON value."""
    if _SSE.match(body) and (framed := _in_events(body)) is not None:
        return framed
    text = body.decode("utf-8", "replace")
    try:
        # JSON lines, or JSON and then [DONE].
        value = decode_first(text)
    except ValueError:
        return StreamError(None, None, _visible(text))
    words = find_error(value) or _words(value)
    return words if type(value) in (dict, list) and words.message is not None else StreamError(None, None, _line(text))


def _in_events(body: bytes) -> StreamError | None:
    """The error in a body that is framed as an event stream. None if it has no data."""
    decoder = SSEDecoder(len(body) + 1)
    plain: list[str] = []
    for event in decoder.feed(body + b"\n\n"):
        try:
            value = decode(event.data)
        except ValueError:
            plain.append(event.data.decode("utf-8", "replace"))
            continue
        words = find_error(value) or (_words(value) if event.event == "error" else None)
        if words is not None:
            return words
        plain.append(to_json(value))
    text = _line(" ".join(part for part in plain if part.strip() != "[DONE]"))
    return None if text is None else StreamError(None, None, text)


def _visible(text: str) -> str | None:
    """The title of an HTML page, or its visible text if the title is only one word.

    Text that is not HTML is returned as it is.
    """
    if not _HTML.match(text):
        return _line(text)
    title = _TITLE.search(text)
    words = _line(html.unescape(title[1])) if title else None
    if words is not None and " " in words:
        return words
    first, *hidden = _HIDDEN.split(text)
    shown = [first, *(_HIDDEN_END.split(part, maxsplit=1)[1] for part in hidden if _HIDDEN_END.search(part))]
    return _line(html.unescape(_TAG.sub(" ", " ".join(shown))))


def _line(text: str) -> str | None:
    """The text on one line."""
    return _message(" ".join(text.split()))
