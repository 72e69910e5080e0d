"""How answers of the Responses API end: status, finish_reason and error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deltatap.api.responses import ResponsesAccumulator
from deltatap.http.outcomes import conclude
from deltatap.model import Usage
from tests.responses import completed, message, received, text
from tests.unit.api.test_responses_tools import MCP

ERROR = {"code": "server_error", "message": "Oh"}
# How a response ends: the code and the message of its error, and its finish_reason.
ENDS: dict[str, tuple[list[Any], tuple[Any, ...]]] = {
    "completed": ([completed(message("Hi"))], (None, None, "completed")),
    "failed": ([completed(message("Hi"), type_="response.failed", error=ERROR)], ("server_error", "Oh", None)),
    "failed without an error": ([completed(type_="response.failed")], ("failed", "the response has the status failed", None)),
    "failed without a response": ([{"type": "response.failed"}], ("failed", "the response has the status failed", None)),
    "cancelled": ([text("Hi"), completed(type_="response.cancelled")], ("cancelled", "the response has the status cancelled", None)),
    "completed, with status failed": ([completed(message("Hi"), status="failed", error=ERROR)], ("server_error", "Oh", None)),
    "completed, with status cancelled": (
        [completed(message("Hi"), status="cancelled")], ("cancelled", "the response has the status cancelled", None),
    ),
    "completed, with an error": ([text("Hi"), completed(error=ERROR)], ("server_error", "Oh", None)),
    "completed, with an item that failed": ([text("Hi"), completed(message("Hi"), {**MCP, "status": "failed"})], (None, None, "completed")),
    "completed, with the status of the start": ([text("Hi"), completed(status="in_progress")], (None, None, "completed")),
    "completed without a response": ([text("Hi"), {"type": "response.completed"}], (None, None, "completed")),
    "completed without anything": ([{"type": "response.completed"}], (None, None, None)),
    "completed, with a response that is text": ([text("Hi"), {"type": "response.completed", "response": "x"}], (None, None, "completed")),
    "incomplete": (
        [completed(message("Hi"), type_="response.incomplete", incomplete_details={"reason": "max_output_tokens"})],
        (None, None, "max_output_tokens"),
    ),
    "incomplete without a reason": ([completed(message("Hi"), type_="response.incomplete")], (None, None, "incomplete")),
    "completed, with status incomplete": ([completed(message("Hi"), status="incomplete")], (None, None, "incomplete")),
    "an error": ([text("Hi"), {"type": "error", **ERROR}], ("server_error", "Oh", None)),
    "an error in an error": ([text("Hi"), {"type": "error", "error": ERROR}], ("server_error", "Oh", None)),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_how_a_response_ends(name: str) -> None:
    events, expected = ENDS[name]
    found = received(*events)
    error = found.error
    assert (error and error.code, error and error.message, found.finish_reason) == expected
    assert (found.text or "") == ("Hi" if found.output else "")
    assert (found.usage is not None) == isinstance(events[-1].get("response"), dict)


@pytest.mark.parametrize("status", ["failed", "cancelled", "queued", "in_progress", "expired"])
def test_a_whole_response_that_did_not_end_is_an_error(status: str) -> None:
    accumulator = ResponsesAccumulator()
    accumulator.add_whole(json.dumps(completed(message("Hi"), status=status)["response"]).encode())
    found = accumulator.finish()
    assert (found.text, found.usage) == ("Hi", Usage(9, 20, 29))
    assert found.error is not None
    assert found.error.code == status


@pytest.mark.parametrize("code", ["invalid_image_url", "image_too_large", "invalid_prompt"])
def test_a_request_that_cannot_succeed_is_refused(code: str) -> None:
    found = received(completed(type_="response.failed", error={"code": code, "message": "Oh"}))
    _, error = conclude(found, None)
    assert error is not None
    assert error.type == "invalid_request"


def test_the_end_of_a_response_must_be_json() -> None:
    accumulator = ResponsesAccumulator()
    accumulator.add(b"waiting", 1.0, 0, "response.keepalive")
    assert accumulator.finish().protocol_error is None
    for kind in ("response.completed", "response.output_text.done", "response.output_text.delta"):
        accumulator = ResponsesAccumulator()
        accumulator.add(b'{"type":', 1.0, 0, kind)
        assert accumulator.finish().protocol_error is not None
