"""Errors in chat completions, as servers send them."""

from __future__ import annotations

from typing import Any

import pytest

from deltatap.model import StreamError, Usage
from tests.unit.api.chat_events import DONE, beside, delta, kinds, message, receive, receive_whole

WORDS = StreamError(None, "502", "gone")
FAULT = {"code": 502, "message": "gone"}
# events: the error, text, finish_reason
ERRORS: dict[str, tuple[list[Any], StreamError, str | None, str | None]] = {
    "an error": ([{"error": FAULT}], WORDS, None, None),
    "an error after output": ([delta(content="Hi"), {"error": FAULT}], WORDS, "Hi", None),
    "text beside it": ([{"error": FAULT, **delta("error", content="Hi")}], WORDS, "Hi", "error"),
    "text after it": ([{"error": FAULT}, delta("stop", content="Hi")], WORDS, "Hi", "stop"),
    "an error in a choice": ([delta(content="Hi"), beside(error=FAULT, finish_reason="error")], WORDS, "Hi", "error"),
    "an error in a delta": ([delta(content="Hi"), delta(error=FAULT)], WORDS, "Hi", None),
    "an error in a choice without a reason": ([beside(error="gone")], StreamError(None, None, "gone"), "", None),
    "a reason, then words": ([delta("error", content="Hi"), {"error": FAULT}], WORDS, "Hi", "error"),
    "a code, then words": ([{"error": "", "code": 424}, {"error": FAULT}], WORDS, None, None),
    "two errors": ([{"error": FAULT}, {"error": "more"}], WORDS, None, None),
    "vllm": ([delta(content="Hi"), {"object": "error", "message": "gone", "code": 502}], WORDS, "Hi", None),
    "detail": ([{"detail": "gone"}], StreamError(None, None, "gone"), None, None),
    "a list": ([[{"error": FAULT}]], WORDS, None, None),
    "the field error": ([delta(content="Hi"), b'error: {"code":502,"message":"gone"}\n\n'], WORDS, "Hi", None),
    "an event of type error": ([b'event: error\ndata: {"message":"gone","code":502}\n\n'], WORDS, None, None),
    "an event of type error with a reason": ([b'event: error\ndata: {"reason":"gone"}\n\n'], StreamError(None, None, "gone"), None, None),
    "an event of type error with words": ([b"event: error\ndata: gone\n\n"], StreamError(None, None, "gone"), None, None),
    "an event of type error with text": ([b'event: error\ndata: "gone"\n\n'], StreamError(None, None, "gone"), None, None),
    "an event of type error with a list": ([b'event: error\ndata: ["gone"]\n\n'], StreamError(None, None, "gone"), None, None),
    "groq": ([delta(content="Hi"), {**delta(), "x_groq": {"error": "over_capacity"}}], StreamError(None, None, "over_capacity"), "Hi", None),
    "minimax beside output": (
        [{**delta(content="Hi"), "base_resp": {"status_code": 1027, "status_msg": "gone"}}], StreamError(None, "1027", "gone"), "Hi", None),
    "minimax without output": (
        [{"choices": None, "base_resp": {"status_code": 1008, "status_msg": "gone"}}], StreamError(None, "1008", "gone", 402), None, None),
    **{
        reason: ([delta(content="Hi"), delta(reason)], StreamError(None, reason, f"the finish_reason is {reason}"), "Hi", reason)
        for reason in (
            "error", "ERROR", "network_error", "server_error", "internal_error", "engine_error", "abort", "aborted", "timeout", "timed_out",
            "TIMEOUT", "cancelled", "canceled", "USER_CANCEL", "failed", "insufficient_system_resource", "MALFORMED_FUNCTION_CALL",
            "malformed_model_output", "malformed_tool_use", "UNEXPECTED_TOOL_CALL", "engine_overloaded", "error: the worker died",
        )
    },
    "sglang's object": ([delta({"type": "abort", "message": "x"})], StreamError(None, "abort", "the finish_reason is abort"), "", "abort"),
    "a failure is not taken back": ([delta("error"), delta("stop")], StreamError(None, "error", "the finish_reason is error"), "", "stop"),
    "the provider's reason": (
        [beside(finish_reason="stop", native_finish_reason="network_error")],
        StreamError(None, "network_error", "the finish_reason is network_error"), "", "stop"),
    "the provider's reason of one empty choice": (
        [{"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"},
                      {"index": 1, "delta": {}, "finish_reason": "stop", "native_finish_reason": "MALFORMED_FUNCTION_CALL"}]}],
        StreamError(None, "MALFORMED_FUNCTION_CALL", "the finish_reason is MALFORMED_FUNCTION_CALL"), "a", "stop"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_inside_a_200_is_an_error_in_every_form(name: str) -> None:
    events, error, text, reason = ERRORS[name]
    received = receive(*events, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 40}}, DONE)
    assert received.error == error
    assert (received.text, received.finish_reason) == (text, reason)
    assert received.usage == Usage(9, 40)
    assert received.protocol_error is None
    assert received.done
    assert kinds(received).count("error") <= 2


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ({"error": FAULT}, WORDS, None),
        ({"code": "InvalidParameter", "message": "gone"}, StreamError(None, "InvalidParameter", "gone", 400), None),
        ([{"error": FAULT}], WORDS, None),
        ({**message("error", content="Hi"), "error": FAULT}, WORDS, "Hi"),
        (message("error", content="Hi"), StreamError(None, "error", "the finish_reason is error"), "Hi"),
        ({"choices": [{"message": {"content": "Hi"}, "error": FAULT, "finish_reason": "stop"}]}, WORDS, "Hi"),
        ({**message("stop", content="Hi"), "base_resp": {"status_code": 1, "status_msg": "gone"}}, StreamError(None, "1", "gone"), "Hi"),
        ({**message("stop", content="Hi"), "error": None, "message": "fine", "code": 200}, None, "Hi"),
    ],
)  # fmt: skip
def test_an_error_inside_a_whole_answer(answer: Any, error: StreamError | None, text: str | None) -> None:
    received = receive_whole(answer)
    assert (received.error, received.text, received.protocol_error) == (error, text, None)


@pytest.mark.parametrize(
    ("code", "type_", "status"),
    [
        (429, None, 429),
        ("429", None, 429),
        (429.0, None, 429),
        (424, None, 424),
        (498, None, 498),
        (529, None, 529),
        (500, None, None),
        (503, "rate_limit_error", 429),
        (500, "invalid_request_error", None),
        (529, "invalid_request_error", 529),
        (400, "rate_limit_error", 400),
        (None, "RESOURCE_EXHAUSTED", 429),
        ("1008", None, 402),
        ("x", "Invalid_Request_Error", 400),
        ("9" * 5000, None, None),
        ([429], None, None),
        (True, None, None),
        (None, {"a": 1}, None),
    ],
)
def test_the_status_that_an_error_stands_for(code: Any, type_: Any, status: int | None) -> None:
    error = receive({"error": {"code": code, "type": type_, "message": "x"}}).error
    assert error is not None
    assert error.client_status == status
