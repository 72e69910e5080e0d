"""Text, numbers and JSON that break code which does not expect them. One row's trouble stays in its row."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.answers.case import (
    ANY,
    BEGUN,
    DIGITS,
    DONE,
    GOOD,
    HALF,
    HELLO,
    ROLE,
    STOP,
    TWICE,
    USAGE,
    WHOLE,
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
    usage,
)

if TYPE_CHECKING:
    from tests.raw_server import Answer


def _long(text: str) -> Answer:
    """A long text in 20 chunks."""
    piece = delta(content=text)
    return chunked(ROLE, *[piece] * 20, STOP, DONE)


TROUBLE = [
    failed(
        "a surrogate in the error of a 400",
        sized("400 Bad Request", b'{"error":{"message":"cannot use text %b","code":"bad"}}' % HALF),
        "invalid_request",
        "cannot use text",
        owed=False,
    ),
    failed(
        "a surrogate in the code of a 400",
        sized("400 Bad Request", b'{"error":{"message":"no","code":"bad %b"}}' % HALF),
        "invalid_request",
        "no",
        owed=False,
    ),
    failed(
        "a surrogate in an error page",
        sized("400 Bad Request", b"bad \xed\xa0\xbd", kind="text/plain"),
        "invalid_request",
        "bad",
        owed=False,
    ),
    good(
        "a surrogate in the text",
        chunked(ROLE, replaced(HELLO, b"Hello", b"Hello" + HALF), STOP, DONE),
        text="Hello�",
    ),
    good(
        "a surrogate in the id and the model",
        chunked(*(replaced(replaced(each, b"m-1", b"m" + HALF), b"c-1", HALF) for each in BEGUN), STOP, DONE),
    ),
    good("a surrogate in the finish_reason", chunked(*BEGUN, replaced(STOP, b'"stop"', b'"st%b"' % HALF), DONE)),
    good(
        "a surrogate in a tool call",
        chunked(
            ROLE,
            replaced(
                delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x":"?"}'}}]),
                b"?",
                HALF,
            ),
            delta("tool_calls"),
            DONE,
        ),
        text="",
        tools=(("a", "f", ANY),),
    ),
    good(
        "a surrogate in a whole answer",
        sized("200 OK", json.dumps(WHOLE).encode().replace(b"Hello", b"Hello" + HALF)),
        text="Hello� world",
    ),
    broken(
        "a surrogate in the error of a stream",
        chunked(*BEGUN, b'data: {"error":{"message":"died %b"}}\n\n' % HALF),
        says="died",
    ),
    good("a million spaces", _long(" " * 50_000), text=" " * 1_000_000),
    good("a million line breaks and tabs", _long("\n\t" * 25_000), text="\n\t" * 500_000),
    good("a million letters", _long("a" * 50_000), text="a" * 1_000_000),
    good("a million letters that alternate with accents", _long("é́" * 20_000), text="é́" * 400_000),
    good("a NUL in the text", chunked(ROLE, delta(content="Hello\0world"), STOP, DONE), text="Hello\0world"),
    good("usage of 2**63-1", chunked(*BEGUN, STOP, usage(2**63 - 1, 2), DONE), usage={"input_tokens": None}),
    good(
        "usage of 2**63", chunked(*BEGUN, STOP, usage(9, 2**63), DONE), usage={"input_tokens": 9, "output_tokens": None}
    ),
    good("usage of 2**31", chunked(*BEGUN, STOP, usage(2**31, 2), DONE), usage={"input_tokens": None}),
    good(
        "usage of 1e400", chunked(*BEGUN, STOP, replaced(USAGE, b" 9,", b" 1e400,"), DONE), usage={"output_tokens": 2}
    ),
    good("usage of NaN", chunked(*BEGUN, STOP, replaced(USAGE, b" 9,", b" NaN,"), DONE), usage={"output_tokens": 2}),
    good("usage of -5", chunked(*BEGUN, STOP, usage(-5, 2), DONE), usage={"input_tokens": None, "output_tokens": 2}),
    good("usage as floats", chunked(*BEGUN, STOP, replaced(USAGE, b" 9,", b" 9.0,"), DONE), usage={"input_tokens": 9}),
    good(
        "usage as half a token",
        chunked(*BEGUN, STOP, replaced(USAGE, b" 9,", b" 9.5,"), DONE),
        usage={"input_tokens": None},
    ),
    good("usage as text", chunked(*BEGUN, STOP, replaced(USAGE, b" 9,", b' "9",'), DONE)),
    good(
        "usage as true", chunked(*BEGUN, STOP, replaced(USAGE, b" 9,", b" true,"), DONE), usage={"input_tokens": None}
    ),
    good("usage of 5,000 digits", chunked(*BEGUN, STOP, replaced(USAGE, b" 9,", b" %b," % DIGITS), DONE)),
    good("usage that is a list", chunked(*BEGUN, STOP, data({"choices": [], "usage": [1, 2]}), DONE)),
    failed(
        "an error code of 5,000 digits",
        sized("400 Bad Request", b'{"error":{"code":%b,"message":"no"}}' % DIGITS),
        "invalid_request",
        "no",
        owed=False,
    ),
    broken(
        "an error code of 5,000 digits in a stream",
        chunked(*BEGUN, b'data: {"error":{"code":%b,"message":"died"}}\n\n' % DIGITS),
        ANY,
    ),
    broken("nested too deeply", chunked(*BEGUN, data(b'{"choices":' + b"[" * 100_000)), "protocol"),
    failed("nested too deeply at once", chunked(data(b'{"choices":' + b"[" * 100_000)), "protocol", calls=TWICE),
    failed("a whole answer nested too deeply", sized("200 OK", b'{"a":' * 100_000), "protocol", calls=TWICE),
    failed(
        "an error nested too deeply", sized("400 Bad Request", b'{"error":' * 100_000), "invalid_request", owed=False
    ),
]
TROUBLE += [
    Case(
        f"{status[:3]}, Retry-After: {value}",
        (sized(status, error_body(), f"Retry-After: {value}"), chunked(*GOOD)),
        calls=TWICE,
    )
    for status in ("429 Too Many Requests", "503 Service Unavailable")
    for value in (
        "Wed, 21 Oct 99999999999 07:28:00 GMT",
        "inf",
        "nan",
        "-5",
        "soon",
        "0x1",
        "",
        "Wed, 21 Oct 2015 07:28:00 GMT",
    )
]
TROUBLE += [
    replace(good(f"choices as {name}", chunked(*BEGUN, data({"choices": choices}), STOP, DONE)), status=None, text=ANY, error=ANY, calls=None, owed=None)
    for name, choices in {
        "an object": {"0": {}}, "text": "x", "a list of null": [None], "a list of lists": [[]], "true": True,
        "index 2**40": [{"index": 2**40, "delta": {"content": "!"}}],
        "index 1e300": [{"index": 1e300, "delta": {"content": "!"}}],
        "index -1": [{"index": -1, "delta": {"content": "!"}}],
        "index text": [{"index": "0", "delta": {"content": "!"}}],
        "index true": [{"index": True, "delta": {"content": "!"}}],
        "a delta that is a list": [{"index": 0, "delta": ["!"]}],
        "a delta that is text": [{"index": 0, "delta": "!"}],
        "content that is a number": [{"index": 0, "delta": {"content": 5}}],
        "content that is an object": [{"index": 0, "delta": {"content": {"text": "!"}}}],
        "content that is a list of numbers": [{"index": 0, "delta": {"content": [1, None, True]}}],
        "tool calls that are an object": [{"index": 0, "delta": {"tool_calls": {"function": 1}}}],
        "tool calls that are numbers": [{"index": 0, "delta": {"tool_calls": [1, None, "x"]}}],
        "a finish_reason that is a number": [{"index": 0, "delta": {}, "finish_reason": 7}],
        "a finish_reason that is an object": [{"index": 0, "delta": {}, "finish_reason": {"x": 1}}],
        "logprobs that are a number": [{"index": 0, "delta": {}, "logprobs": 1}],
    }.items()
]  # fmt: skip
