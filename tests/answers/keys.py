"""The key, repeated by a server or a model."""

from __future__ import annotations

import json

from tests.answers.case import (
    ANY,
    BEGUN,
    DONE,
    GOOD,
    HEAD,
    HELLO,
    KEY,
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
from tests.answers.chat import call, function
from tests.answers.responses import CREATED, TEXT, ended

_SPLIT = len(KEY) // 2
KEYS = [
    failed("the key in a first error", chunked(data(error_body(f"Incorrect API key provided: {KEY}", type="server_error", code="x"))), ANY, "***",
            calls=None, owed=None),
    broken("the key in a later error", chunked(*BEGUN, data(error_body(f"Incorrect API key provided: {KEY}", type="server_error", code="x"))), says="***"),
    failed("the key in a 400", sized("400 Oh", error_body(f"your key {KEY} is fine")), "invalid_request", "your key *** is fine", owed=False),
    failed("the key in a code", sized("400 Oh", error_body("no", code=KEY)), "invalid_request", "no", owed=False),
    failed("the key escaped in a 400", sized("400 Oh", b'{"error":{"message":"your key %b\\u0066"}}' % KEY[:-1].encode()), "invalid_request",
            "your key ***", owed=False),
    failed("the key in a page", sized("400 Oh", f"<title>{KEY}</title>".encode(), kind="text/html"), "invalid_request", "***", owed=False),
    good("the key in the text", chunked(ROLE, delta(content=f"Hello {KEY} world"), STOP, DONE), text="Hello *** world"),
    good("the key in two chunks", chunked(ROLE, delta(content=f"Hello {KEY[:_SPLIT]}"), delta(content=f"{KEY[_SPLIT:]} world"), STOP, DONE),
          text="Hello *** world"),
    good("the key letter by letter", chunked(ROLE, *(delta(content=letter) for letter in f"Hello {KEY} world"), STOP, DONE), text="Hello *** world"),
    good("the key escaped", chunked(ROLE, replaced(delta(content=f"Hello {KEY} world"), b"sk-test", b"\\u0073k-test"), STOP, DONE), text="Hello *** world"),
    good("the key in a tool call", chunked(ROLE, delta(tool_calls=[call(id=KEY, function=function(KEY, json.dumps({"key": KEY})))]), delta("tool_calls"), DONE),
          text="", tools=(("***", "***", '{"key": "***"}'),)),
    good("the key in ids and the model", chunked(*(replaced(replaced(each, b"m-1", KEY.encode()), b"c-1", KEY.encode()) for each in GOOD[:-1]), DONE,
          head=HEAD + f"x-request-id: {KEY}\r\n".encode())),
    good("the key in a finish_reason", chunked(*BEGUN, delta(KEY), DONE)),
    good("the key in reasoning", chunked(ROLE, delta(reasoning_content=f"I see {KEY}"), HELLO, WORLD, STOP, DONE)),
    Case("the key in a retried call", (chunked(*BEGUN, delta(content=KEY), end=False, then="reset"), chunked(*GOOD)), calls=TWICE),
    good("the key in a whole answer", sized("200 OK", {**WHOLE, "choices": [{"index": 0, "message": {"content": f"Hello {KEY}"}, "finish_reason": "stop"}]}),
          text="Hello ***", mode="complete"),
    good("the key in a response", chunked(CREATED, replaced(TEXT, b"Hello world", f"Hello {KEY}".encode()), ended()), text="Hello ***", api="responses"),
]  # fmt: skip
