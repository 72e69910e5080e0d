"""Every row is replayed through every API that can express it, and is received again as an equal row.

The rows are those of the transcripts in tests/transcripts, streamed, and of whole answers built from them.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from deltatap.api.from_row import CannotSayError, captured
from deltatap.api.registry import NAMES, specification
from deltatap.api.sse import SSEDecoder
from deltatap.http.outcomes import conclude

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltatap.model import CaptureError, Received

FOLDER = Path(__file__).parents[2] / "transcripts"
TRANSCRIPTS = sorted(path.stem for path in FOLDER.glob("*.sse"))
# What the answers of other APIs can have that an API has no place for.
CANNOT = {
    "chat": {"calls of the server"},
    "completions": {"reasoning", "refusal", "calls"},
    "responses": {"calls of the server", "choices"},
    "messages": {"calls of the server", "choices", "refusal"},
}
OUTPUT = ("content", "reasoning", "refusal", "tool_calls")


def received(name: str, frames: Iterable[tuple[float, bytes]], *, choices: int = 1) -> Received:
    """The result of a received stream, with each frame at its time."""
    accumulator, decoder = specification(name).accumulator(choices), SSEDecoder()
    for read, (ms, frame) in enumerate(frames):
        for event in decoder.feed(frame):
            accumulator.add(event.data, ms, read, event.event)
    return accumulator.finish()


def row_of(found: Received, api: str, mode: str = "stream", failure: CaptureError | None = None) -> dict[str, Any]:
    """The columns of captures that a replay uses."""
    status, error = conclude(found, failure)
    return {
        "request_id": "r", "api": api, "mode": mode, "status": status, "error": error and asdict(error),
        "text": found.text, "choices": [asdict(choice) for choice in found.choices],
        "chunks": found.chunks.to_dicts() if mode == "stream" else [], "e2e_ms": 999.0, "token_source": None,
        "usage_reported": found.usage and asdict(found.usage), "response_id": found.response_id,
        "response_model": found.response_model, "request_model": "m", "started_at": datetime(2026, 11, 21, tzinfo=UTC),
        "system_fingerprint": found.system_fingerprint, "service_tier": found.service_tier,
    }  # fmt: skip


def transcript(name: str) -> dict[str, Any]:
    data = (FOLDER / f"{name}.sse").read_bytes()
    api = data.split(b"\n", 1)[0].removeprefix(b": api: ").decode()
    frames = [(7.5 * at, piece + b"\n\n") for at, piece in enumerate(data.split(b"\n\n"))]
    return row_of(received(api, frames, choices=len(received(api, frames).choices)), api)


def again(row: dict[str, Any], asked: str) -> dict[str, Any]:
    """The row of a capture from a replay of this row, streamed if the row is streamed."""
    api = specification(asked)
    answer = captured(row, specification(row["api"]), api)
    if row["mode"] == "stream":
        frames = [(frame.ms, frame.data) for frame in api.frames(answer.facts).replayed(answer)]
        return row_of(received(asked, frames, choices=len(row["choices"])), asked)
    accumulator = api.accumulator(len(row["choices"]))
    body = api.frames(answer.facts).whole(answer.answers)
    accumulator.add_whole(
        orjson.dumps(body if answer.error is None else api.frames(answer.facts).whole_error(body, answer.error))
    )
    return row_of(accumulator.finish(), asked, "complete")


def outputs(row: dict[str, Any], *, joined: bool = True) -> list[Any]:
    """The times and texts of the output. An API can need several events for a piece of a call."""
    found = [
        (chunk["choice"], chunk["kind"], chunk["ms"], chunk["text"])
        for chunk in row["chunks"]
        if chunk["kind"] in OUTPUT
    ]
    if not joined:
        return found
    texts = [(*key, "".join(each[3] for each in its)) for key, its in groupby(found, lambda each: each[:3])]
    # The Messages API adds the empty input of a call at the end, without a chunk.
    return [(*key, text.removesuffix("{}") if key[1] == "tool_calls" else text) for *key, text in texts]


def known_id(id_: str | None) -> bool:
    """Whether an id comes from the row, not from the replay (which creates ids for calls without one)."""
    return id_ is not None and "chatcmpl-123_" not in id_


def called(choice: dict[str, Any]) -> Any:
    """The calls of a choice. Spaces in the JSON of arguments do not count."""
    calls = json.loads(choice["tool_calls"] or "[]")
    for call in calls:
        if "function" in call:
            call["id"] = call["id"] if known_id(call["id"]) else None
            with contextlib.suppress(ValueError):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"] or "{}")
    return calls


def answer(row: dict[str, Any], reason: Any) -> list[Any]:
    return [
        (choice["index"], choice["text"], choice["reasoning"], choice["refusal"], called(choice), reason(choice))
        for choice in row["choices"]
        if any(value for name, value in choice.items() if name not in ("index", "finish_reason"))
        or choice["finish_reason"] is not None
    ]


def reasons(row: dict[str, Any], asked: str) -> Any:
    """How a finish_reason of a row is named by the API that replays it, in chat completions' terms."""
    api = specification(asked)

    def named(choice: dict[str, Any]) -> str | None:
        if row["status"] != "completed":
            return None
        reason = choice["finish_reason"]
        found = api.finish_reasons.get(reason, reason)
        return "stop" if found in ("tool_calls", "function_call") else found

    return named


def known(row: dict[str, Any]) -> Any:
    usage = row["usage_reported"] or {}
    return [
        usage.get(name) or 0 for name in ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")
    ]


def check_equal(row: dict[str, Any], found: dict[str, Any], asked: str) -> None:
    assert found["status"] == row["status"]
    assert outputs(found) == outputs(row)
    assert answer(found, reasons(found, asked)) == answer(row, reasons(row, row["api"]))
    for name in ("response_id", "response_model") if found["choices"] else ():
        assert (found[name] or "") in (row[name] or "", row["request_model"]), name
    if row["error"]:
        assert [found["error"][name] for name in ("code", "message", "http_status")] == [
            row["error"][name] for name in ("code", "message", "http_status")
        ]
    # A response that failed has no usage.
    assert known(found) == known(row) or (found["usage_reported"] is None and row["status"] != "completed")


def traits(row: dict[str, Any]) -> set[str]:
    """What an answer has that an API may be unable to express."""
    choices = row["choices"]
    calls = [call for choice in choices for call in json.loads(choice["tool_calls"] or "[]")]
    found = {name for name in ("reasoning", "refusal") if any(choice[name] for choice in choices)}
    found |= {"calls"} if calls else set()
    found |= (
        {"calls of the server"} if any("function" not in call and "custom" not in call for call in calls) else set()
    )
    return found | ({"choices"} if len(choices) > 1 else set())


def check_again(row: dict[str, Any], asked: str) -> None:
    """An API that can express the answer gives an equal row; one that cannot refuses to replay it."""
    if row["api"] != asked and traits(row) & CANNOT.get(asked, set()):
        with pytest.raises(CannotSayError, match="cannot express this answer: it has"):
            again(row, asked)
    else:
        check_equal(row, again(row, asked), asked)


@pytest.mark.parametrize("asked", NAMES)
@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_stream_is_received_again_as_an_equal_row(name: str, asked: str) -> None:
    check_again(transcript(name), asked)


@pytest.mark.parametrize("asked", NAMES)
@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_whole_answer_is_received_again_as_an_equal_row(name: str, asked: str) -> None:
    check_again(transcript(name) | {"mode": "complete", "chunks": []}, asked)


@pytest.mark.parametrize("asked", ["chat", "completions", "messages"])
def test_the_status_of_a_response_is_not_the_type_of_its_error(asked: str) -> None:
    response = {"status": "failed", "error": {"code": "server_error", "message": "Sorry."}}
    failed = {"type": "response.failed", "response": response}
    row = row_of(received("responses", [(1.0, b"data: " + orjson.dumps(failed) + b"\n\n")]), "responses")
    api = specification(asked)
    answer = captured(row, specification("responses"), api)
    frames = [frame.data for frame in api.frames(answer.facts).replayed(answer)]
    error = json.loads(frames[-1].partition(b"data: ")[2])["error"]
    expected = (
        {"type": "server_error"} if asked == "messages" else {"type": None, "param": None, "code": "server_error"}
    )
    assert error == {"message": "Sorry.", **expected}
