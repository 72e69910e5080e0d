"""Errors inside a response with status 200, and reasons to finish that name a failure."""

from __future__ import annotations

import json

from tests.answers.case import (
    ANY,
    BEGUN,
    DONE,
    HEAD,
    HELLO,
    ROLE,
    STOP,
    TWICE,
    WHOLE,
    WORLD,
    Case,
    broken,
    chunked,
    data,
    delta,
    error_body,
    failed,
    good,
    replaced,
    sized,
)
from tests.raw_server import Answer

# Errors inside a 200

_TOO_LONG = {
    "object": "error",
    "message": "maximum context length is 4096 tokens",
    "type": "BadRequestError",
    "param": None,
    "code": 400,
}
_DIED = {"object": "error", "message": "engine died", "type": "InternalServerError", "param": None, "code": 500}


def _errors(name: str, record: bytes, says: str) -> list[Case]:
    """An error as the first record, with and without [DONE], and after output."""
    first = {"calls": None, "owed": None}
    return [
        failed(f"{name}, at once", chunked(record, DONE), ANY, says, **first),
        failed(f"{name}, alone", chunked(record), ANY, says, **first),
        broken(f"{name}, after output", chunked(*BEGUN, record, DONE), says=says),
        broken(f"{name}, after output, then stop", chunked(*BEGUN, record, STOP, DONE), says=says),
    ]


IN_STREAM = [
    *_errors("an error object", data(_TOO_LONG), "maximum context length"),
    *_errors("a dead engine", data(_DIED), "engine died"),
    *_errors("an error with a message", data(error_body("died", code=502)), "died"),
    *_errors("an error as text", data({"error": "died"}), "died"),
    *_errors(
        "an error in a list", data([error_body("no capacity", code=429, status="RESOURCE_EXHAUSTED")]), "no capacity"
    ),
    *_errors("a detail", data({"detail": "model is loading"}), "model is loading"),
    *_errors(
        "a list of details",
        data({"detail": [{"msg": "roles must alternate", "loc": ["body"]}]}),
        "roles must alternate",
    ),
    *_errors("the field error", b'error: {"code":500,"message":"slot lost","type":"server_error"}\n\n', "slot lost"),
    *_errors("an event error", b'event: error\ndata: {"message":"slot lost"}\n\n', "slot lost"),
    *_errors("an event error with text", b"event: error\ndata: slot lost\n\n", "slot lost"),
    *_errors("an empty error with a code", data({"error": "", "code": 424}), ""),
    *_errors(
        "a code and a message",
        data({"code": "Throttling", "message": "too many requests", "request_id": "r"}),
        "too many requests",
    ),
    *_errors(
        "base_resp",
        data({"id": "x", "choices": None, "base_resp": {"status_code": 1000, "status_msg": "no balance"}}),
        "no balance",
    ),
    *_errors("errors", data({"errors": [{"message": "died"}]}), "died"),
    *_errors(
        "a type error",
        data({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        "Overloaded",
    ),
]
IN_STREAM += [
    failed(f"200 with JSON: {name}", sized("200 OK", body, kind=kind), ANY, says, calls=None, owed=None)
    for kind in ("application/json", "text/event-stream")
    for name, body, says in (
        (
            f"error as {kind}",
            error_body("request (19185 tokens) exceeds the context", code=400, type="exceed_context_size_error"),
            "19185",
        ),
        (
            f"code and message as {kind}",
            {"code": "InvalidParameter", "message": "max_tokens too large", "request_id": "r"},
            "too large",
        ),
        (
            f"base_resp as {kind}",
            {"id": "x", "choices": None, "base_resp": {"status_code": 1000, "status_msg": "insufficient balance"}},
            "balance",
        ),
        (f"a list as {kind}", [error_body("bad field", code=400)], "bad field"),
        (f"detail as {kind}", {"detail": "model is loading"}, "loading"),
        (f"an error and choices as {kind}", {"choices": [], **error_body("bad field")}, "bad field"),
    )
]
IN_STREAM += [
    failed(
        "200 with a quota code",
        sized("200 OK", {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}),
        "quota",
        "insufficient balance",
        alone=True,
    ),
    failed(
        "unframed JSON in chunks",
        chunked(json.dumps(error_body("too large", code=400)).encode()),
        ANY,
        "too large",
        calls=None,
        owed=None,
    ),
    broken("unframed JSON after output", chunked(*BEGUN, json.dumps(error_body("died", code=500)).encode()), ANY),
    broken(
        "an error, text and usage beside it",
        Answer(
            (
                HEAD + b"Connection: close\r\n\r\n",
                data(
                    {
                        "choices": [
                            {
                                "index": 0,
                                "delta": {"role": "assistant", "content": "Half an ans"},
                                "finish_reason": None,
                            }
                        ]
                    }
                ),
                data(
                    {
                        **error_body("the upstream went away", code=502),
                        "choices": [{"index": 0, "delta": {"content": "wer"}, "finish_reason": "error"}],
                    }
                ),
                data({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 40, "total_tokens": 49}}),
                DONE,
            )
        ),
        text="Half an answer",
        says="the upstream went away",
        usage={"input_tokens": 9, "output_tokens": 40},
    ),
    broken(
        "usage in the error",
        chunked(
            *BEGUN,
            data({**error_body("died"), "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}}),
            DONE,
        ),
        says="died",
        usage={"input_tokens": 9, "output_tokens": 2},
    ),
    failed(
        "an error of a whole answer's choice",
        sized(
            "200 OK",
            {
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": ""},
                        "finish_reason": "error",
                        "error": error_body("died", code=502)["error"],
                    }
                ]
            },
        ),
        ANY,
        "died",
        calls=None,
        owed=None,
        mode="complete",
    ),
    broken(
        "a whole answer and an error",
        sized("200 OK", {**WHOLE, **error_body("died", code=502)}),
        says="died",
        mode="complete",
    ),
    good(
        "an error that is null",
        chunked(*BEGUN, data({"error": None, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), DONE),
    ),
    good("a whole answer whose error is null", sized("200 OK", {**WHOLE, "error": None}), mode="complete"),
    good(
        "base_resp of a success",
        sized("200 OK", {**WHOLE, "base_resp": {"status_code": 0, "status_msg": ""}}),
        mode="complete",
    ),
    good(
        "code and message of a success", sized("200 OK", {**WHOLE, "code": 200, "message": "success"}), mode="complete"
    ),
]

_INDENTED = json.dumps(error_body("slot lost", code=429, status="RESOURCE_EXHAUSTED"), indent=2).encode()
IN_STREAM += [
    *_errors("an error that is indented, without data:", _INDENTED + b"\n\n", "slot lost"),
    *_errors("an error that is indented, before a record without a blank line", _INDENTED + b"\n", "slot lost"),
    *_errors("a list that is indented, with CRLF", b"[" + _INDENTED.replace(b"\n", b"\r\n") + b"]\r\n\r\n", "slot lost"),
    *_errors("an event error without data", b"event: error\n\n", ""),
    *_errors("an event ERROR", b'event: ERROR\ndata: {"message":"slot lost"}\n\n', "slot lost"),
    *_errors("an event exception", b"event: exception\ndata: slot lost\n\n", "slot lost"),
    *_errors("data: twice", b'data: data: {"error":{"message":"slot lost"}}\n\n', "slot lost"),
    *_errors("a typed exception", data({"modelStreamErrorException": {"message": "slot lost"}}), "slot lost"),
    *_errors("a response that failed", data({"response": {"status": "failed", "error": {"message": "slot lost"}}}), "slot lost"),
    *_errors("errors as text", data({"errors": "slot lost"}), "slot lost"),
    *_errors("err", data({"err": "slot lost"}), "slot lost"),
    *_errors("only a code", data({"error": {"code": "slot_lost", "message": None}}), "slot_lost"),
    *_errors("the provider's words", data(error_body("Provider returned error", code=502, metadata={"raw": "slot lost"})), "error: slot lost"),
    *_errors("an error in a message", data({"choices": [{"index": 0, "message": {"error": "slot lost"}}]}), "slot lost"),
]  # fmt: skip

# Reasons to finish

FINISHES = [
    broken(f"finish_reason {reason}", chunked(*BEGUN, delta(reason), DONE))
    for reason in ("error", "network_error", "server_error", "abort", "insufficient_system_resource", "ERROR")
]
FINISHES += [
    good(f"finish_reason {reason}", chunked(*BEGUN, delta(reason), DONE), columns={"finish_reason": reason})
    for reason in (
        "stop",
        "length",
        "content_filter",
        "eos",
        "end_turn",
        "STOP",
        "function_call",
        "sensitive",
        "something_new",
    )
]
FINISHES += [
    broken("finish_reason error with its error",
            chunked(ROLE, delta(content="Half an ans"), data({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error", "error": {"code": 502, "message": "upstream died"}}]}), DONE),
            text="Half an ans", says="upstream died"),
    failed("finish_reason error before output", chunked(ROLE, delta("error"), DONE), "stream_error", calls=TWICE),
    broken("finish_reason null as text, then reset",
            chunked(replaced(delta(content="Hi"), b"null", b'"null"'), replaced(delta(content=" you"), b"null", b'"null"'), end=False, then="reset"),
            "stream_interrupted", text="Hi you"),
    broken("finish_reason empty, then closed",
            chunked(replaced(delta(content="Hi"), b"null", b'""'), end=False), "stream_interrupted", text="Hi"),
    good("finish_reason null as text, then stop", chunked(ROLE, *(replaced(each, b"null", b'"null"') for each in (HELLO, WORLD)), STOP, DONE),
          columns={"finish_reason": "stop"}),
    failed("stop, empty, with a native error",
            chunked(ROLE, data({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "stop", "native_finish_reason": "network_error"}]}), DONE),
            "stream_error", calls=TWICE),
    good("stop, with text and a native error",
          chunked(*BEGUN, data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "native_finish_reason": "network_error"}]}), DONE)),
    good("stop, empty, with a native stop",
          chunked(ROLE, data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "native_finish_reason": "end_turn"}]}), DONE), text=""),
    good("stop, empty", chunked(ROLE, STOP, DONE), text=""),
    good("only [DONE] after output", chunked(*BEGUN, DONE)),
    failed("only [DONE]", chunked(DONE), "protocol", calls=TWICE),
    failed("nothing", chunked(), ANY, calls=TWICE),
    broken("no end", chunked(*BEGUN), "stream_interrupted"),
    broken("cut in a chunk", chunked(*BEGUN, end=False), "stream_interrupted"),
    broken("reset", chunked(*BEGUN, end=False, then="reset"), "stream_interrupted"),
    broken("stalled", chunked(*BEGUN, end=False, then="stall"), "timeout", "idle"),
    failed("closed before the head", Answer((b"HTTP/1.1 2",)), "connection", calls=TWICE),
    failed("not HTTP", Answer((b"SSH-2.0-OpenSSH_9.6\r\n",)), "connection", calls=TWICE),
    broken("finish_reason error of a whole answer", sized("200 OK", {**WHOLE, "choices": [{**WHOLE["choices"][0], "finish_reason": "error"}]}), mode="complete"),
]  # fmt: skip
