"""Turns a row of the prompts table into a request with a hash. Pure.

This module knows the columns of a prompts row and the fields that deltatap itself adds to a body. Each API's module
builds the part of the body with the prompt, `driver/reading.py` reads the rows, and `http/client.py` sends the
requests. A bad row never raises an exception: it becomes a request without a body, with a description of the problem.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltatap.api.prompt import BadPromptError, Json, as_text, decode, plain
from deltatap.api.registry import specification
from deltatap.model import Mode, Request, Wire

OURS = ("stream",)
# Python's JSON decoder fails at a depth that depends on its caller.
_MOST_LEVELS = 250
_TOO_DEEP = f"the request is nested deeper than {_MOST_LEVELS} levels"
# Possessive: otherwise, a long text costs a hundred bytes of memory for each character.
_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{}]')
# Above this, a float cannot represent every integer.
_MOST_EXACT = 2**53


def depends_on_resume(request: Request, api: str) -> bool:
    """Whether a bad row may be valid with another ``capture.resume``."""
    starts = tuple(f"params.{name}: " for name in specification(api).resume)
    return request.error is not None and request.error.startswith(starts)


def compact(value: object) -> str:
    """Compact JSON with sorted keys and without escapes: the text that is hashed.

    Raises:
        ValueError: for NaN and infinities, which JSON cannot express.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(text: str) -> str:
    """The sha256 of the text's UTF-8, in hex; a lone surrogate is hashed as its Python escape."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def build_request(
    row: Mapping[str, Any],
    *,
    api: str,
    model: str | None,
    defaults: Mapping[str, Any],
    keep: Sequence[str],
    filled: Mapping[str, str] | None = None,
    problem: str | None = None,
    resume: bool = False,
) -> Request:
    """Build the request of a row.

    Args:
        row: the columns of the prompts table by name. Nested values are lists and dicts; the MAP in `params` can also
            be a list of pairs.
        api: name of the API.
        model: the model for rows that name none.
        defaults: parameters of the body. The row's own `params` override them.
        keep: names of the columns to copy as text.
        filled: texts that replace columns; they come from templates.
        problem: why the row cannot be read; None if it can.
        resume: whether broken streams are resumed (``capture.resume``). It changes no request, but some are refused.
    """
    kept = {name: None if (value := row.get(name)) is None else as_text(value) for name in keep} or None
    asked, given_id = _asked(row, model), _id(row.get("request_id"))
    try:
        if problem is not None:
            raise BadPromptError(problem)  # noqa: TRY301 - as any other problem
        body = _body({**row, **(filled or {})}, api, asked, defaults)
        if (why := specification(api).resume_problem(body, resume=resume)) is not None:
            raise BadPromptError(f"params.{why}")  # noqa: TRY301 - as any other problem
        asked, request_hash, text = body["model"], request_hash_of(body), _text(body)
    except UnicodeEncodeError:
        bad = "text that is not valid Unicode (a lone surrogate)"
    except RecursionError:
        bad = _TOO_DEEP
    except BadPromptError as error:
        bad = str(error)
    else:
        return Request(given_id or request_hash, request_hash, asked, text, kept, None)
    source = _hash_of(row)
    return Request(given_id or source, source, asked, None, kept, bad)


def _hash_of(row: Mapping[str, Any]) -> str:
    """The hash of a row without a request."""
    try:
        values = plain(row, strict=False)
        return sha256(json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    except (BadPromptError, RecursionError):  # a VARIANT nests too deeply
        return sha256(compact({name: as_text(value) for name, value in row.items()}))


def _asked(row: Mapping[str, Any], model: str | None) -> str | None:
    """The model that a row names, or else the default."""
    named = row.get("model")
    return named if named and isinstance(named, str) else model


def _id(given: object) -> str | None:
    """A request id as text. pandas turns a column of integers with nulls into floats."""
    if isinstance(given, float):
        return str(int(given)) if given.is_integer() and abs(given) < _MOST_EXACT else None
    return None if given is None else as_text(given)


def _text(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    text.encode()
    if _levels(text) > _MOST_LEVELS:
        raise BadPromptError(_TOO_DEEP)
    return text


def _levels(text: str) -> int:
    """How deeply a JSON text nests."""
    if text.count("[") + text.count("{") <= _MOST_LEVELS:
        return 0
    level = deepest = 0
    for found in _BRACKETS.finditer(text):
        level += (found[0] in "[{") - (found[0] in "]}")
        deepest = max(deepest, level)
    return deepest


def request_hash_of(body: Mapping[str, Any]) -> str:
    """The hash that identifies a request. It is the same whether or not the request is streamed and asks for usage."""
    hashed = {key: value for key, value in body.items() if key not in OURS}
    options = hashed.get("stream_options")
    if isinstance(options, dict) and "include_usage" in options:
        hashed["stream_options"] = options = {key: value for key, value in options.items() if key != "include_usage"}
    if not options:
        hashed.pop("stream_options", None)
    return sha256(compact(hashed))


def stream_options_problem(params: Mapping[str, Any]) -> str | None:
    """The problem with the `stream_options` in a request's parameters; None if there is none."""
    options = params.get("stream_options")
    if options is None:
        return None
    if not isinstance(options, Mapping):
        return "stream_options: expected an object, such as {include_obfuscation: false}"
    if "include_usage" in options:
        return "stream_options.include_usage: must not be set: deltatap sets it; use endpoint.include_usage"
    return None


def wire(
    body: str,
    *,
    api: str,
    mode: Mode,
    include_usage: bool,
    added: Mapping[str, Mapping[str, str]] | None = None,
    resume: bool = False,
) -> Wire:
    """The body to send.

    Args:
        body: the body of a :class:`Request`. Its `stream_options` are sent only in a stream: OpenAI refuses them
            otherwise.
        api: name of the API.
        mode: whether to stream.
        include_usage: ask for usage in a stream (`stream_options.include_usage`), if the API has this option.
        added: objects to add, which are not part of the request's hash. The request's own values take precedence.
        resume: ask the server to store the answer, so that a stream can be resumed, if the API has this option.
    """
    specified = specification(api)
    sent = json.loads(body)
    for name, values in (added or {}).items():
        own = sent.get(name)
        sent[name] = {**values, **own} if isinstance(own, dict) else values
    options = sent.pop("stream_options", None) or {}
    kept = specified.resume if resume and mode == "stream" else {}
    if mode == "stream":
        sent |= {"stream": True, **kept}
        if include_usage and specified.takes_stream_options:
            options = {**options, "include_usage": True}
        if options:
            sent["stream_options"] = options
    text = json.dumps(sent, separators=(",", ":"), ensure_ascii=False)
    usage = "stream_options" in sent
    return Wire(text, str(sent["model"]), mode, specified.choices(sent), usage, resumable=bool(kept))


def without_stream_options(body: str) -> str:
    """The body for a server that refuses `stream_options`."""
    sent = json.loads(body)
    del sent["stream_options"]
    return json.dumps(sent, separators=(",", ":"), ensure_ascii=False)


def _body(row: Mapping[str, Any], api: str, model: str | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    # `null` in JSON means the same as NULL.
    row = {**row, **{name: None for name in ("messages", "params") if _is_null(row.get(name))}}
    for name in ("model", "system"):
        if not isinstance(row.get(name), str | None):
            raise BadPromptError(f"{name}: expected text, found a value of type {type(row[name]).__name__}")
    params = _params(row.get("params"))
    if "model" in params and not isinstance(params["model"], str):
        raise BadPromptError("params.model: expected text")
    model = params.get("model", model)
    if not model:
        raise BadPromptError("no model: the row has none and endpoint.model is null")
    specified = specification(api)
    given = specified.prompt(row)
    ours = [key for key in (specified.prompt_field, *OURS) if key in params]
    ours += [key for key in given if key in params and key not in ours]
    if ours:
        raise BadPromptError(f"params must not contain {', '.join(ours)}: deltatap sets it")
    defaults = {**specified.defaults, **defaults}
    body = {"model": model, **given, **{key: value for key, value in defaults.items() if key not in given}, **params}
    if (problem := stream_options_problem(body)) is not None:
        raise BadPromptError(f"params: {problem}")
    if body.get("stream_options") in (None, {}):
        body.pop("stream_options", None)
    _require_json(messages=given, params=params)
    return body


def _require_json(**columns: Mapping[str, Any]) -> None:
    for name, part in columns.items():
        try:
            compact(part)
        except ValueError:
            raise BadPromptError(f"{name} contains NaN or an infinite number, which JSON cannot express") from None
        except RecursionError:
            raise BadPromptError(_TOO_DEEP) from None


def _is_null(given: object) -> bool:
    return isinstance(given, str) and given.strip() == "null"


def _params(given: object) -> dict[str, Any]:
    if given is None:
        return {}
    if isinstance(given, str | Json):
        text = given if isinstance(given, str) else given.text
        params = decode(text, "params") if text.strip() else {}
        if not isinstance(params, dict):
            raise BadPromptError("params: expected a JSON object")
        return params
    try:
        pairs = dict(given)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise BadPromptError("params: expected a JSON object or a MAP") from None
    return {as_text(name): _param(value) for name, value in pairs.items() if value is not None}


def _param(value: object) -> object:
    """A value of a MAP. All values of a MAP have one type, usually STRING, so text that is valid JSON is decoded."""
    if not isinstance(value, str):
        return plain(value)
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
