"""A row of captures as a captured answer, in the terms of the API through which it is replayed. Pure.

A row has the texts and the times of the chunks, and the calls of each choice. This module makes events out of them, and
finds the parts that an API cannot express.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltatap.api.calls import Called, pieces_of_calls
from deltatap.api.captured import Captured, Event, Part
from deltatap.api.codes import names_failure
from deltatap.api.frames import Answer, Facts, Piece
from deltatap.api.values import decode, to_json
from deltatap.model import OUTPUT_KINDS, StreamError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from deltatap.api.base import Api

_TEXTS = (("reasoning", "reasoning"), ("content", "text"), ("refusal", "refusal"))
_TITLES = {"reasoning": "reasoning", "refusal": "a refusal that is separate from the text", "tool_calls": "tool calls"}
_OK = 200
# The error types that deltatap sets itself, not from an event of the server.
_OURS = ("cancelled", "connection", "internal", "protocol", "stream_interrupted", "timeout")


class CannotSayError(ValueError):
    """An API cannot express a captured answer."""


def captured(row: Mapping[str, Any], source: Api, asked: Api, *, usage: bool = True) -> Captured:
    """The answer of a row.

    Args:
        row: of captures, as a dict.
        source: the API that it was captured from.
        asked: the API through which it is replayed.
        usage: whether the answer reports its usage.

    Raises:
        CannotSayError: the API cannot express the answer.
    """
    calls = {choice["index"]: _calls(choice, source) for choice in row["choices"] or ()}
    _check(row, source, asked, calls)
    failure = _failure(row)
    answers = tuple(_answer(choice, calls[choice["index"]], source, asked) for choice in row["choices"] or ())
    if row["chunks"]:
        events = list(_events(row, calls, source, asked, usage=usage))
    else:
        parts = _without_chunks(row, answers, usage=usage)
        events = [Event(row["e2e_ms"] or 0.0, (part,)) for part in parts]
    kinds = {part.kind for event in events for part in event.parts}
    if failure is not None and "error" not in kinds and not any(names_failure(a.finish_reason) for a in answers):
        words = to_json({"error": {"code": failure.code, "message": failure.message}})
        events.append(Event(row["e2e_ms"] or 0.0, (Part("failed", None, words),)))
    return Captured(
        facts=_facts(row, usage=usage),
        events=tuple(events),
        answers=answers,
        completed=row["status"] == "completed",
        same=source is asked,
        typed=source.frames.typed,
        error=failure,
    )


def _failure(row: Mapping[str, Any]) -> StreamError | None:
    """The error that the server sent inside the answer; None for no error, or an error that deltatap detected."""
    error = row["error"]
    if row["status"] == "completed" or error is None or error["http_status"] != _OK or error["type"] in _OURS:
        return None
    return StreamError(None, error["code"], error["message"])


def _check(row: Mapping[str, Any], source: Api, asked: Api, calls: Mapping[int, Sequence[Called]]) -> None:
    """Raise an error if the API cannot express the answer."""
    if source is asked:
        return
    choices = row["choices"] or ()
    kinds = {chunk["kind"] for chunk in row["chunks"] or ()}
    kinds |= {kind for choice in choices for kind, name in _TEXTS if choice[name]}
    kinds |= {"tool_calls" for its in calls.values() if its}
    cannot = [title for kind, title in _TITLES.items() if kind in kinds - asked.says]
    if len(choices) > 1 and not asked.takes_n:
        cannot.append(f"{len(choices)} choices")
    for call in (call for its in calls.values() for call in its):
        if "tool_calls" in asked.says and (call.sent is not None or call.type not in asked.call_types):
            cannot.append(f"a call of the type {call.type}")
            break
    if cannot:
        raise CannotSayError(f"{asked.title} cannot express this answer: it has {' and '.join(cannot)}")


def _calls(choice: Mapping[str, Any], source: Api) -> list[Called]:
    given = decode(choice["tool_calls"].encode()) if choice["tool_calls"] else []
    return [_called(call, source) for call in given if isinstance(call, dict)]


def _called(call: Mapping[str, Any], source: Api) -> Called:
    function = call.get("function")
    # A call that is kept as the server sent it can have any field with this name.
    if isinstance(function, dict) and all(isinstance(function.get(name), str) for name in ("name", "arguments")):
        type_ = call.get("type") or "function"
        named = type_ in source.call_types or type_ == "function"
        return Called(call.get("id"), type_, function["name"], function["arguments"], named=named)
    name, arguments = source.sent(call)
    return Called(None, str(call.get("type")), name, arguments, call)


def _answer(choice: Mapping[str, Any], calls: Sequence[Called], source: Api, asked: Api) -> Answer:
    pieces = [Piece(kind, choice[name]) for kind, name in _TEXTS if choice[name]]  # type: ignore[arg-type] # of Kind
    pieces += [piece for number, call in enumerate(calls) for piece in call.pieces(number)]
    reason = _reason(choice["finish_reason"], source, asked, called=bool(calls))
    return Answer(tuple(pieces), 0, 0, (), reason or "", choice["index"])


def _reason(reason: str | None, source: Api, asked: Api, *, called: bool) -> str | None:
    """The finish_reason as the API calls it. Names are translated through those of chat completions."""
    if reason is None or source is asked:
        return reason
    of_chat = source.finish_reasons.get(reason, reason)
    if called and of_chat == "stop" and source.finish_reasons:
        of_chat = "tool_calls"
    names: dict[str, str] = {}
    for name, its in asked.finish_reasons.items():
        names.setdefault(its, name)
    if of_chat in ("tool_calls", "function_call") and names:
        return names.get("tool_calls", names["stop"])
    return names.get(of_chat, of_chat)


def _events(
    row: Mapping[str, Any], calls: Mapping[int, Sequence[Called]], source: Api, asked: Api, *, usage: bool
) -> Iterator[Event]:
    chunks = row["chunks"]
    pieces = _pieces_by_chunk(chunks, calls, complete=source is not asked)
    used = [at for at, chunk in enumerate(chunks) if chunk["kind"] == "usage"]
    silent = tuple(call.start(number) for number, call in enumerate(calls.get(0, ())) if not call.text)
    parts: list[Part] = []
    tokens, event = 0, chunks[0]["event"]
    ms = chunks[0]["ms"] or 0.0
    for at, chunk in enumerate(chunks):
        if chunk["event"] != event:
            yield Event(ms, tuple(parts))
            # The times of chunks that were read again after a kill are not known.
            parts, event, ms = [], chunk["event"], ms if chunk["ms"] is None else chunk["ms"]
        tokens += chunk.get("tokens") or 0
        kind, index, text = chunk["kind"], chunk["choice"], chunk["text"]
        index = None if index is None or index < 0 else index
        if kind == "finish":
            text = _reason(text, source, asked, called=bool(calls.get(index or 0))) or ""
        elif kind == "usage":
            text = "" if at == used[-1] else str(tokens)
            counted = at == used[-1] or row.get("token_source") == "usage"
            kind = kind if usage and counted else "empty"
        if silent and kind in ("role", "finish", *OUTPUT_KINDS):
            parts.append(Part("silent", 0, "", silent))
            silent = ()
        parts.append(Part(kind, index, text, tuple(pieces.get(at, ()))))
    yield Event(ms, tuple(parts))


def _pieces_by_chunk(
    chunks: Sequence[Mapping[str, Any]], calls: Mapping[int, Sequence[Called]], *, complete: bool
) -> dict[int, Sequence[Piece]]:
    """The output of each chunk, by its place."""
    found: dict[int, Sequence[Piece]] = {}
    called: dict[int, list[int]] = {}
    for at, chunk in enumerate(chunks):
        if chunk["kind"] == "tool_calls":
            called.setdefault(chunk["choice"], []).append(at)
        elif chunk["kind"] in ("content", "reasoning", "refusal"):
            found[at] = (Piece(chunk["kind"], chunk["text"]),)
    for choice, places in called.items():
        made = pieces_of_calls(calls.get(choice, ()), [chunks[at]["text"] for at in places], complete=complete)
        found |= dict(zip(places, made, strict=True))
    return found


def _without_chunks(row: Mapping[str, Any], answers: Sequence[Answer], *, usage: bool) -> Iterator[Part]:
    """The parts of an answer that was not streamed, or that deltatap could not store."""
    for answer in answers:
        yield Part("role", answer.index, "assistant")
        for number, piece in enumerate(answer.pieces):
            if piece.kind == "call":
                arguments = answer.pieces[number + 1]
                yield Part("tool_calls", answer.index, "", (piece, arguments))
            elif piece.kind != "arguments":
                yield Part(piece.kind, answer.index, "", (piece,))
        if answer.finish_reason:
            yield Part("finish", answer.index, answer.finish_reason)
    if not answers and row["text"]:
        yield Part("content", 0, "", (Piece("content", row["text"]),))
    if row["usage_reported"] is not None and usage:
        yield Part("usage", None)


def _facts(row: Mapping[str, Any], *, usage: bool) -> Facts:
    id_ = row["response_id"] or ""
    reported = row["usage_reported"]
    return Facts(
        id_ or str(row["request_id"]),
        int(row["started_at"].timestamp()) if row["started_at"] else 0,
        row["response_model"] or row["request_model"] or "",
        _usage(reported) if reported is not None and usage else {},
        with_usage=reported is not None and usage,
        response_id=id_,
        fingerprint=row.get("system_fingerprint"),
        tier=row.get("service_tier"),
    )


def _usage(reported: Mapping[str, Any]) -> dict[str, Any]:
    """Usage with the field names of chat completions, without the counts that the server left out."""
    made = {
        "prompt_tokens": reported["input_tokens"],
        "completion_tokens": reported["output_tokens"],
        "total_tokens": reported["total_tokens"],
        "citation_tokens": reported.get("citation_tokens"),
        "num_search_queries": reported.get("web_searches"),
    }
    inputs = {
        "cached_tokens": "cached_input_tokens",
        "audio_tokens": "audio_input_tokens",
        "cache_write_tokens": "cache_write_tokens",
        "cache_write_1h_tokens": "cache_write_1h_tokens",
        "image_tokens": "image_input_tokens",
    }
    outputs = {
        "reasoning_tokens": "reasoning_tokens",
        "audio_tokens": "audio_output_tokens",
        "accepted_prediction_tokens": "accepted_prediction_tokens",
        "rejected_prediction_tokens": "rejected_prediction_tokens",
        "image_tokens": "image_output_tokens",
    }
    for details, names in (("prompt_tokens_details", inputs), ("completion_tokens_details", outputs)):
        found = {name: reported.get(column) for name, column in names.items()}
        made[details] = {name: tokens for name, tokens in found.items() if tokens is not None} or None
    return {name: value for name, value in made.items() if value is not None}
