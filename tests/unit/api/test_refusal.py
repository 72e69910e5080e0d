from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatap.api.refusal import find_error, read_refusal
from deltatap.model import StreamError

LOC = {"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted", "type": "extra_forbidden"}
CHOICES = [{"index": 0, "delta": {"content": "Hi"}}]

# value: type, code, message
ERRORS: dict[str, tuple[Any, tuple[str | None, str | None, str | None]]] = {
    "openai": ({"error": {"message": "Oh", "type": "server_error", "param": None, "code": None}}, ("server_error", None, "Oh")),
    "a number as code": ({"error": {"message": "Slow down", "code": 429}}, (None, "429", "Slow down")),
    "a fraction as code": ({"error": {"message": "Oh", "code": 429.0}}, (None, "429", "Oh")),
    "gemini": (
        [{"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"}}], ("RESOURCE_EXHAUSTED", "429", "Quota"),
    ),
    "gemini after output": ([{"candidates": [1]}, {"error": {"message": "Oh"}}], (None, None, "Oh")),
    "text": ({"error": "Oh"}, (None, None, "Oh")),
    "text with a type": ({"error": "Model is overloaded", "error_type": "overloaded"}, ("overloaded", None, "Model is overloaded")),
    "several texts": ({"error": ["one", "two"], "warnings": []}, (None, None, "one; two")),
    "only a code": ({"error": "", "code": 424}, (None, "424", None)),
    "a code as error": ({"error": 1301, "msg": "Oh"}, ("1301", None, "Oh")),
    "true": ({"error": True, "message": "Oh"}, (None, None, "Oh")),
    "oauth": ({"error": "invalid_token", "error_description": "It expired"}, ("invalid_token", None, "It expired")),
    "spring": ({"timestamp": 1, "status": 404, "error": "Not Found", "path": "/v1"}, (None, "404", "Not Found")),
    "extra keys": ({"error": {"message": "Oh"}, "user_id": "u", "code": 502}, (None, "502", "Oh")),
    "words beside an empty error": ({"error": {}, "message": "Oh"}, (None, None, "Oh")),
    "nested": ({"error": {"error": {"message": "Oh", "type": "x"}}}, ("x", None, "Oh")),
    "nested as text": ({"error": {"message": '{"error": {"message": "Oh"}}'}}, (None, None, '{"error": {"message": "Oh"}}')),
    "absent as text": ({"error": {"message": "Oh", "type": "None", "code": "400", "param": "None"}}, (None, "400", "Oh")),
    "vllm": ({"object": "error", "message": "engine died", "type": "InternalServerError", "param": None, "code": 500},
             ("InternalServerError", "500", "engine died")),
    "mistral": ({"object": "error", "message": {"detail": [LOC]}, "type": "invalid_request_error", "code": None},
                ("invalid_request_error", None, "body.stream_options: Extra inputs are not permitted")),
    "anthropic": ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, ("overloaded_error", None, "Overloaded")),
    "a typed event": ({"type": "error", "code": "server_error", "message": "Oh", "param": None}, (None, "server_error", "Oh")),
    "a typed event without words": ({"type": "error"}, (None, None, None)),
    "fastapi text": ({"detail": "Not authenticated"}, (None, None, "Not authenticated")),
    "fastapi list": ({"detail": [LOC]}, ("extra_forbidden", None, "body.stream_options: Extra inputs are not permitted")),
    "fastapi two": ({"detail": [LOC, {"loc": ["body", "messages", 0], "msg": "Field required"}]},
                    ("extra_forbidden", None, "body.stream_options: Extra inputs are not permitted; body.messages.0: Field required")),
    "fastapi list alone": ([LOC], ("extra_forbidden", None, "body.stream_options: Extra inputs are not permitted")),
    "detail object": ({"detail": {"error": {"message": "Oh", "code": "x"}}}, (None, "x", "Oh")),
    "alibaba": ({"code": "InvalidParameter", "message": "Oh", "request_id": "r"}, (None, "InvalidParameter", "Oh")),
    "code, message, no choices": ({"choices": [], "code": 500, "message": "Oh"}, (None, "500", "Oh")),
    "minimax": ({"choices": None, "usage": {"total_tokens": 0}, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
                (None, "1008", "insufficient balance")),
    "minimax after output": ({"choices": CHOICES, "base_resp": {"status_code": 1027, "status_msg": "sensitive"}}, (None, "1027", "sensitive")),
    "databricks": ({"error_code": "BAD_REQUEST", "message": "Oh"}, (None, "BAD_REQUEST", "Oh")),
    "message": ({"message": "Oh"}, (None, None, "Oh")),
    "Message": ({"Message": "Oh"}, (None, None, "Oh")),
    "errorMessage": ({"errorMessage": "Oh", "errorType": "Fault"}, ("Fault", None, "Oh")),
    "error_message": ({"error_message": "Oh"}, (None, None, "Oh")),
    "error_msg": ({"error_code": 336003, "error_msg": "Oh"}, (None, "336003", "Oh")),
    "msg": ({"code": 1113, "msg": "Oh", "success": False}, (None, "1113", "Oh")),
    "statusCode": ({"statusCode": 401, "message": "Oh"}, (None, "401", "Oh")),
    "cloudflare": ({"success": False, "errors": [{"code": 7003, "message": "No route"}], "result": None}, (None, "7003", "No route")),
    "success false": ({"success": False}, (None, None, None)),
    "errors of fields": ({"errors": {"message": "Oh"}}, (None, None, "Oh")),
    "errors as text": ({"errors": ["Oh"]}, (None, None, "Oh")),
    "apigee": ({"fault": {"faultstring": "Oh", "detail": {"errorcode": "x.Y"}}}, (None, "x.Y", "Oh")),
    "problem+json": ({"title": "Bad Request", "detail": "Oh", "status": 400}, (None, "400", "Oh")),
    "problem+json without a detail": ({"title": "Bad Request", "status": 400}, (None, "400", "Bad Request")),
    "beside output": ({"error": {"message": "Oh"}, "choices": CHOICES}, (None, None, "Oh")),
    "half a surrogate pair": ({"error": {"message": "a\ud83d", "code": "\ud83d", "type": "\udc00"}}, ("\ufffd", "\ufffd", "a\ufffd")),
    "objects as code and type": ({"error": {"message": "Oh", "code": {"a": 1}, "type": [1]}}, ("[1]", '{"a":1}', "Oh")),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_every_form_of_an_error_is_found(name: str) -> None:
    value, (type_, code, message) = ERRORS[name]
    assert find_error(value) == StreamError(type_, code, message)
    body = json.dumps(value).encode()
    if message is not None:
        for sent in (
            body,
            b"data: " + body + b"\n\n",
            b"event: error\ndata: " + body,
            b"error: " + body,
            body + b"\n\ndata: [DONE]",
        ):
            assert read_refusal(sent) == StreamError(type_, code, message)


@pytest.mark.parametrize(
    "value",
    [
        {"choices": CHOICES, "error": None},
        {"choices": CHOICES, "error": {}},
        {"choices": CHOICES, "error": ""},
        {"choices": CHOICES, "error": {"code": None, "message": ""}},
        {"choices": CHOICES, "code": 200, "message": "success", "detail": "x"},
        {"choices": CHOICES, "code": 7, "message": "x", "errors": ["x"], "success": False},
        {"choices": CHOICES, "base_resp": {"status_code": 0, "status_msg": ""}},
        {"choices": [], "base_resp": {"status_code": 0, "status_msg": "success"}},
        {"choices": [], "usage": {"total_tokens": 3}, "message": "x"},
        {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
        {"id": "r", "object": "response", "status": "completed", "error": None, "output": [{"type": "message"}]},
        {"object": "response", "status": "in_progress", "error": None, "output": []},
        {"type": "message_start", "message": {"id": "m", "type": "message", "role": "assistant", "content": []}},
        {"model": "m", "message": {"role": "assistant", "content": "Hi"}, "done": False},
        {"type": "ping", "message": "still here"},
        {"code": 0, "message": "ok"},
        {"status": "queued", "message": "waiting"},
        {"title": "A story"},
        {"code": 5},
        {},
        [],
        [[]],
        [{}],
        "error",
        3,
        None,
    ],
)  # fmt: skip
def test_what_is_no_error(value: Any) -> None:
    assert find_error(value) is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", None),
        (b"  \r\n ", None),
        (b"{}", None),
        (b"[]", None),
        (b"null", None),
        (b'""', None),
        (b'"Oh"', "Oh"),
        (b"upstream connect error\n or  disconnect", "upstream connect error or disconnect"),
        (b"Unauthorized\x80", "Unauthorized\ufffd"),
        (b'{"detail": "a\xff"}', "a\ufffd"),
        (b'\xef\xbb\xbf{"detail": "Oh"}', "Oh"),
        (b'{"reason": "Oh"}', "Oh"),
        (b'{"unknown": "Oh"}', '{"unknown":"Oh"}'),
        (b'{"error": {"message": "the model is ov', '{"error": {"message": "the model is ov'),
        (b'{"detail": "Oh"}\n{"detail": "No"}', "Oh"),
        (b"<html><head><title>502 Bad Gateway</title></head><body><h1>502</h1></body></html>", "502 Bad Gateway"),
        (b"<!DOCTYPE html>\n<title>Error</title>\n<style>p {}</style><pre>Cannot POST\n&#x2F;v1</pre>", "Error Cannot POST /v1"),
        (b"<html><script>if (a</script><p>Blocked &amp; gone<p></html>", "Blocked & gone"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>No</Message></Error>", "AccessDenied No"),
        (b"data: plain words\n\n", "plain words"),
        (b': ping\n\ndata: {"error": {"message": "Oh"}}\n\ndata: [DONE]\n\n', "Oh"),
        (b"event: error\ndata: plain words\n\n", "plain words"),
        (b'event: error\ndata: {"reason": "Oh"}\n\n', "Oh"),
        (b"data:\n\n", "data:"),
    ],
)  # fmt: skip
def test_every_body_of_a_refusal_has_its_words(body: bytes, message: str | None) -> None:
    assert read_refusal(body).message == message


def test_words_are_bounded() -> None:
    long = "é" * 100_000
    error = find_error({"error": {"message": long, "code": long, "type": [long] * 9}})
    assert error is not None
    assert [len(str(text)) for text in (error.type, error.code, error.message)] == [100, 100, 500]
    digits = read_refusal(b'{"error": {"message": "Oh", "code": ' + b"9" * 5000 + b"}}")
    assert (digits.code or "").startswith("999")
    assert len(digits.code or "") == 100
    assert len(read_refusal(b"x " * 100_000).message or "") == 500


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"error":' * 100_000,
        b'{"error":' * 900 + b'"Oh"' + b"}" * 900,
        b"<html>" + b"<script" * 100_000,
        b"<html>" + b"<" * 500_000,
        b"<html><title" * 50_000,
        b"data: " * 100_000,
        b"data: x\n" * 100_000,
        b" " * 500_000 + b"x",
    ],
)
def test_large_bodies_are_read_in_linear_time(body: bytes) -> None:
    started = time.process_time()
    read_refusal(body)
    assert time.process_time() - started < 2


_NAMES = st.sampled_from(
    ["error", "message", "detail", "errors", "code", "type", "status", "base_resp", "status_code", "object", "choices", "loc", "msg"]
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text() | st.sampled_from(["\ud83d", "error", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES | st.text(), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None)
@given(_JSON)
def test_no_value_raises_an_exception(value: Any) -> None:
    for error in (find_error(value), read_refusal(json.dumps(value).encode())):
        if error is not None:
            "".join(filter(None, (error.type, error.code, error.message))).encode()


@settings(deadline=None)
@given(
    st.binary(max_size=80)
    | st.sampled_from([b"{", b"data: {", b"<html", b"[{"]).flatmap(lambda start: st.binary().map(start.__add__))
)
def test_no_bytes_raise_an_exception(body: bytes) -> None:
    (read_refusal(body).message or "").encode()
