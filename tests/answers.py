"""What servers really send, case by case, and the row that deltatap must make of it.

Each group is one kind of answer: the answers that public bug reports describe, and neighbours of them. The quick tests run
every case through a worker; the poison job mixes the cases among good prompts; the fuzz tests mutate them.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tests.raw_server import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.raw_server import Then

KEY = "sk-test-0123456789abcdef"
# The tests' configuration: every wait is short, and a call is repeated once.
CAPTURE = {"max_attempts": 2, "max_broken": 2, "retry_for_s": 0.3, "concurrency": 256, "max_runs": 3}
TIMEOUTS = {"connect_s": 5, "first_byte_s": 5, "idle_s": 1, "total_s": 20}
TWICE = 2


@dataclass(frozen=True)
class Case:
    """Answers of a server, and what must come of them.

    Attributes:
        name: of the case; also its prompt.
        answers: to the first call, the second, …; the last one repeats.
        status: of the row; None where any status is right, as long as there is one row.
        text: of the row; None for no text, ANY where it does not matter.
        error: the type of the error; None for no error.
        says: what the error's message contains.
        calls: how many calls are made; None where it depends on the time.
        owed: whether the next run owes the request; None where both are right.
        tools: (id, name, arguments) of each call of a tool.
        usage: counts of usage_reported.
        columns: other columns.
        api: the API that is called.
        mode: of the request.
        alone: whether the case affects other requests: it stops the run or delays it.
    """

    name: str
    answers: tuple[Answer, ...]
    status: str | None = "completed"
    text: str | None = "Hello world"
    error: str | None = None
    says: str = ""
    calls: int | None = 1
    owed: bool | None = False
    tools: tuple[tuple[str | None, str, str], ...] | None = None
    usage: Mapping[str, int | None] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    api: str = "chat"
    mode: str = "stream"
    alone: bool = False

    def __str__(self) -> str:
        return self.name


ANY = "\0any"

# Building blocks


def data(event: object) -> bytes:
    """A record of an event stream."""
    return b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"


def delta(finish: str | None = None, /, **fields: Any) -> bytes:
    """A chunk of chat completions."""
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return data({"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": [choice]})


def usage(given: int, output: int, total: int | None = None, **more: Any) -> bytes:
    """The last chunk of chat completions."""
    counts = {"prompt_tokens": given, "completion_tokens": output, "total_tokens": total or given + output, **more}
    return data({"id": "c-1", "object": "chat.completion.chunk", "model": "m-1", "choices": [], "usage": counts})


def typed(kind: str, /, **fields: Any) -> bytes:
    """An event of Responses or Messages."""
    return b"event: %b\n" % kind.encode() + data({"type": kind, **fields})


ROLE, HELLO, WORLD = delta(role="assistant", content=""), delta(content="Hello"), delta(content=" world")
STOP, USAGE, DONE = delta("stop"), usage(9, 2), b"data: [DONE]\n\n"
GOOD = (ROLE, HELLO, WORLD, STOP, USAGE, DONE)
BEGUN = (ROLE, HELLO, WORLD)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
WHOLE: dict[str, Any] = {
    "id": "c-1",
    "object": "chat.completion",
    "model": "m-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello world"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}


def chunked(*pieces: bytes, head: bytes = HEAD, then: Then = "keep", end: bool = True) -> Answer:
    """A chunked response; each piece is a chunk. Without `end`, the last chunk is missing and the connection closes."""
    framed = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    return Answer(
        (head + b"Transfer-Encoding: chunked\r\n\r\n", *framed, *([b"0\r\n\r\n"] if end else [])),
        _ended_by(then, end=end),
    )


def sized(
    status: str, body: object, *headers: str, kind: str = "application/json", then: Then = "keep", length: int = -1
) -> Answer:
    """A response with a length. With another `length` than the body's, the connection closes after the body."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content) if length < 0 else length}",
        *headers,
    ]
    return Answer(("\r\n".join(lines).encode("latin1") + b"\r\n\r\n", content), _ended_by(then, end=length < 0))


def _ended_by(then: Then, *, end: bool) -> Then:
    return "close" if then == "keep" and not end else then


def headed(*lines: str) -> bytes:
    """The head of a response with status 200, without its transfer-encoding."""
    return "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *lines)).encode("latin1")


def _error(message: str = "Oh no", **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


def _good(name: str, answer: Answer, **more: Any) -> Case:
    return Case(name, (answer,), **more)


def _failed(name: str, answer: Answer, error: str, says: str = "", **more: Any) -> Case:
    return Case(
        name, (answer,), **{"status": "failed", "text": None, "error": error, "says": says, "owed": True, **more}
    )


def _broken(name: str, answer: Answer, error: str = "stream_error", says: str = "", **more: Any) -> Case:
    known = {"status": "interrupted", "error": error, "says": says, "owed": True, "calls": TWICE}
    return Case(name, (answer,), **{**known, **more})


# One row's trouble stays in its row.

_DIGITS = b"9" * 5_000
_HALF = b"\\ud83d"  # half of a surrogate pair


def _replaced(record: bytes, old: bytes, new: bytes) -> bytes:
    assert old in record
    return record.replace(old, new)


def _long(text: str) -> Answer:
    """A long text in 20 chunks."""
    piece = delta(content=text)
    return chunked(ROLE, *[piece] * 20, STOP, DONE)


TROUBLE = [
    _failed(
        "a surrogate in the error of a 400",
        sized("400 Bad Request", b'{"error":{"message":"cannot use text %b","code":"bad"}}' % _HALF),
        "invalid_request",
        "cannot use text",
        owed=False,
    ),
    _failed(
        "a surrogate in the code of a 400",
        sized("400 Bad Request", b'{"error":{"message":"no","code":"bad %b"}}' % _HALF),
        "invalid_request",
        "no",
        owed=False,
    ),
    _failed(
        "a surrogate in an error page",
        sized("400 Bad Request", b"bad \xed\xa0\xbd", kind="text/plain"),
        "invalid_request",
        "bad",
        owed=False,
    ),
    _good(
        "a surrogate in the text",
        chunked(ROLE, _replaced(HELLO, b"Hello", b"Hello" + _HALF), STOP, DONE),
        text="Hello�",
    ),
    _good(
        "a surrogate in the id and the model",
        chunked(*(_replaced(_replaced(each, b"m-1", b"m" + _HALF), b"c-1", _HALF) for each in BEGUN), STOP, DONE),
    ),
    _good("a surrogate in the finish_reason", chunked(*BEGUN, _replaced(STOP, b'"stop"', b'"st%b"' % _HALF), DONE)),
    _good(
        "a surrogate in a tool call",
        chunked(
            ROLE,
            _replaced(
                delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x":"?"}'}}]),
                b"?",
                _HALF,
            ),
            delta("tool_calls"),
            DONE,
        ),
        text="",
        tools=(("a", "f", ANY),),
    ),
    _good(
        "a surrogate in a whole answer",
        sized("200 OK", json.dumps(WHOLE).encode().replace(b"Hello", b"Hello" + _HALF)),
        text="Hello� world",
    ),
    _broken(
        "a surrogate in the error of a stream",
        chunked(*BEGUN, b'data: {"error":{"message":"died %b"}}\n\n' % _HALF),
        says="died",
    ),
    _good("a million spaces", _long(" " * 50_000), text=" " * 1_000_000),
    _good("a million line breaks and tabs", _long("\n\t" * 25_000), text="\n\t" * 500_000),
    _good("a million letters", _long("a" * 50_000), text="a" * 1_000_000),
    _good("a million letters that alternate with accents", _long("é́" * 20_000), text="é́" * 400_000),
    _good("a NUL in the text", chunked(ROLE, delta(content="Hello\0world"), STOP, DONE), text="Hello\0world"),
    _good("usage of 2**63-1", chunked(*BEGUN, STOP, usage(2**63 - 1, 2), DONE), usage={"input_tokens": None}),
    _good(
        "usage of 2**63", chunked(*BEGUN, STOP, usage(9, 2**63), DONE), usage={"input_tokens": 9, "output_tokens": None}
    ),
    _good("usage of 2**31", chunked(*BEGUN, STOP, usage(2**31, 2), DONE), usage={"input_tokens": None}),
    _good(
        "usage of 1e400", chunked(*BEGUN, STOP, _replaced(USAGE, b" 9,", b" 1e400,"), DONE), usage={"output_tokens": 2}
    ),
    _good("usage of NaN", chunked(*BEGUN, STOP, _replaced(USAGE, b" 9,", b" NaN,"), DONE), usage={"output_tokens": 2}),
    _good("usage of -5", chunked(*BEGUN, STOP, usage(-5, 2), DONE), usage={"input_tokens": None, "output_tokens": 2}),
    _good(
        "usage as floats", chunked(*BEGUN, STOP, _replaced(USAGE, b" 9,", b" 9.0,"), DONE), usage={"input_tokens": 9}
    ),
    _good(
        "usage as half a token",
        chunked(*BEGUN, STOP, _replaced(USAGE, b" 9,", b" 9.5,"), DONE),
        usage={"input_tokens": None},
    ),
    _good("usage as text", chunked(*BEGUN, STOP, _replaced(USAGE, b" 9,", b' "9",'), DONE)),
    _good(
        "usage as true", chunked(*BEGUN, STOP, _replaced(USAGE, b" 9,", b" true,"), DONE), usage={"input_tokens": None}
    ),
    _good("usage of 5,000 digits", chunked(*BEGUN, STOP, _replaced(USAGE, b" 9,", b" %b," % _DIGITS), DONE)),
    _good("usage that is a list", chunked(*BEGUN, STOP, data({"choices": [], "usage": [1, 2]}), DONE)),
    _failed(
        "an error code of 5,000 digits",
        sized("400 Bad Request", b'{"error":{"code":%b,"message":"no"}}' % _DIGITS),
        "invalid_request",
        "no",
        owed=False,
    ),
    _broken(
        "an error code of 5,000 digits in a stream",
        chunked(*BEGUN, b'data: {"error":{"code":%b,"message":"died"}}\n\n' % _DIGITS),
        ANY,
    ),
    _broken("nested too deeply", chunked(*BEGUN, data(b'{"choices":' + b"[" * 100_000)), "protocol"),
    _failed("nested too deeply at once", chunked(data(b'{"choices":' + b"[" * 100_000)), "protocol", calls=TWICE),
    _failed("a whole answer nested too deeply", sized("200 OK", b'{"a":' * 100_000), "protocol", calls=TWICE),
    _failed(
        "an error nested too deeply", sized("400 Bad Request", b'{"error":' * 100_000), "invalid_request", owed=False
    ),
]
TROUBLE += [
    Case(
        f"{status[:3]}, Retry-After: {value}",
        (sized(status, _error(), f"Retry-After: {value}"), chunked(*GOOD)),
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
    replace(_good(f"choices as {name}", chunked(*BEGUN, data({"choices": choices}), STOP, DONE)), status=None, text=ANY, error=ANY, calls=None, owed=None)
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

# A response with an error status


def _refused(status: str, error: str, body: object = None, says: str = "", *headers: str, **more: Any) -> Case:
    """A refusal that no retry follows; it is owed unless the request itself is wrong."""
    answer = sized(status, _error() if body is None else body, *headers, kind=more.pop("kind", "application/json"))
    name = more.pop("name", status)
    owed = error not in {"invalid_request", "content_policy"}
    return _failed(name, answer, error, says, **{"owed": owed, **more})


REFUSALS = [
    _refused(f"{status} Moved", "wrong_url", b"", "", "Location: https://127.0.0.2:1/v1/chat/completions",
             kind="text/html", alone=True, name=f"{status} to another host")
    for status in (300, 301, 302, 303, 307, 308)
]  # fmt: skip
REFUSALS += [
    _refused("405 Method Not Allowed", "wrong_url", b"<html>405 Not Allowed</html>", "Not Allowed", kind="text/html", alone=True),
    _refused("401 Unauthorized", "authentication", None, "Oh no", alone=True),
    _refused("402 Payment Required", "quota", None, "Oh no", alone=True),
    _refused("400 Bad Request", "quota", _error("Billing hard limit", code="billing_hard_limit_reached"), "Billing hard limit", alone=True,
             name="a billing code at 400"),
    _refused("403 Forbidden", "quota", _error("no more", code="insufficient_quota"), "no more", alone=True, name="a quota code at 403"),
    _refused("429 Too Many Requests", "quota", _error("no more", type="insufficient_quota"), "no more", alone=True,
             name="a quota type at 429"),
    _refused("503 Service Unavailable", "quota", _error("no more", code="insufficient_quota"), "no more", alone=True,
             name="a quota code at 503"),
    _refused("400 Bad Request", "invalid_request", _error("the quota parameter is wrong: insufficient_quota"), "the quota parameter",
             name="the word quota in a message"),
    _refused("403 Forbidden", "permission", None, "Oh no"),
    _refused("404 Not Found", "not_found", _error("no such model", code="model_not_found"), "no such model"),
    _refused("404 Not Found", "not_found", b"<html><head><title>404 Not Found</title></head></html>", "404 Not Found", kind="text/html",
             name="404 as a page"),
    _refused("403 Forbidden", "content_policy",
             _error("flagged", code=403, metadata={"reasons": ["violence"], "flagged_input": "x"}), "flagged", name="403 of a moderation"),
    _refused("400 Bad Request", "content_policy", _error("filtered", code="content_filter"), "filtered", name="400 of a content filter"),
    _refused("413 Payload Too Large", "invalid_request", None, "Oh no"),
    _refused("422 Unprocessable Entity", "invalid_request", None, "Oh no"),
    _refused("418 I'm a teapot", "invalid_request", None, "Oh no"),
]  # fmt: skip
REFUSALS += [
    _refused(f"{status} Oh", "server", b"" if status in {499, 520} else None, kind="text/html", calls=TWICE)
    for status in (
        408,
        409,
        424,
        425,
        499,
        500,
        501,
        502,
        503,
        504,
        520,
        521,
        522,
        523,
        524,
        525,
        526,
        527,
        528,
        530,
        599,
    )
]
REFUSALS += [_refused(f"{status} Oh", "rate_limit", calls=None) for status in (429, 498, 529)]
REFUSALS += [
    _refused(
        "400 Bad Request", "invalid_request", body, says, name=f"words of an error: {name}",
        kind="application/json" if not isinstance(body, bytes) or body.startswith(b"{") else "text/html",
    )
    for name, body, says in (
        ("detail", {"detail": "max_tokens must be at least 1"}, "max_tokens must be at least 1"),
        ("a list of details", {"detail": [{"type": "value_error", "loc": ["body", "messages"], "msg": "roles must alternate"}]}, "roles must alternate"),
        ("an object in detail", {"detail": {"error": {"message": "too long"}}}, "too long"),
        ("a list", [{"error": {"code": 400, "message": "bad field", "status": "INVALID_ARGUMENT"}}], "bad field"),
        ("a list of texts", ["bad field"], "bad field"),
        ("errors", {"errors": [{"message": "bad field"}]}, "bad field"),
        ("errors as texts", {"errors": ["bad field"]}, "bad field"),
        ("message", {"message": "bad field", "code": "InvalidParameter"}, "bad field"),
        ("error as text", {"error": "bad field"}, "bad field"),
        ("error_code", {"error_code": "BAD_REQUEST", "message": "bad field"}, "bad field"),
        ("Anthropic's", {"type": "error", "error": {"type": "invalid_request_error", "message": "bad field"}}, "bad field"),
        ("base_resp", {"base_resp": {"status_code": 2013, "status_msg": "bad field"}}, "bad field"),
        ("a record of an event stream", b'data: {"error":{"message":"bad field"}}\n\n', "bad field"),
        ("a named record", b'event: error\ndata: {"message":"bad field"}\n\n', "bad field"),
        ("a page", b"<!DOCTYPE html><html><head><title>Bad field</title></head><body><h1>x</h1></body></html>", "Bad field"),
        ("text", b"bad field", "bad field"),
        ("broken JSON", b'{"error":{"message":"bad field', "bad field"),
        ("nothing", b"", "400"),
        ("an empty object", {}, "400"),
        ("null", b"null", "400"),
        ("a number", b"400", "400"),
        ("a number as message", {"error": {"message": 17}}, "17"),
        ("an object as message", {"error": {"message": {"text": "bad field"}}}, "bad field"),
        ("invalid UTF-8", b'{"error":{"message":"bad field \xff"}}', "bad field"),
        ("a long text", b"bad field " + b"x" * 100_000, "bad field"),
    )
]  # fmt: skip

_TRUNCATED = b'{"error":{"mess'
# 64 MB of zeros in 64 kB.
_BOMB = gzip.compress(b" " * 2**26, mtime=0)
REFUSALS += [
    _failed("a cut body of a 500", sized("500 Internal Server Error", _TRUNCATED, length=500), "server", "mess", calls=TWICE),
    _failed("a reset in the body of a 500", sized("500 Internal Server Error", _TRUNCATED, length=500, then="reset"), "server", calls=TWICE),
    _failed("a stalled body of a 500", sized("500 Internal Server Error", _TRUNCATED, length=500, then="stall"), "server", calls=TWICE),
    _failed("a stalled body of a 400", sized("400 Bad Request", b'{"error":{"message":"bad field"}}', length=500, then="stall"),
            "invalid_request", "bad field", owed=False),
    _failed("a cut body of a 400", sized("400 Bad Request", b'{"error":{"message":"bad field"}}', length=500),
            "invalid_request", "bad field", owed=False),
    _failed("an endless body of a 500",
            Answer((b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"no " * 21845 + b"n\r\n"), "repeat"),
            "server", "no", calls=TWICE),
    _failed("a gzip bomb in a 500", sized("500 Internal Server Error", _BOMB, "Content-Encoding: gzip"), "server", calls=TWICE),
    _failed("broken gzip in a 500", sized("500 Internal Server Error", b"not gzip", "Content-Encoding: gzip"), "server", calls=TWICE),
    _failed("an unknown coding of a 500", sized("500 Internal Server Error", b"\x1b\x03", "Content-Encoding: br"), "server", calls=TWICE),
    _failed("a gzip body of a 400", sized("400 Bad Request", gzip.compress(b'{"detail":"bad field"}'), "Content-Encoding: gzip"),
            "invalid_request", "bad field", owed=False),
]  # fmt: skip
REFUSALS = [
    replace(each, columns={"error": {"http_status": int(each.answers[0].data[9:12])}})
    if each.error != "quota"
    else each
    for each in REFUSALS
]

REFUSALS += [
    _refused("400 Bad Request", "invalid_request", None, "Oh no", "x-request-id: req-7", name="the request id of a refusal",
             columns={"server_request_id": "req-7"}),
    Case("the request id of a retried refusal", (sized("500 Oh", _error(), "x-request-id: req-7"), chunked(*GOOD)), calls=TWICE,
         columns={"retries": [("server", 500)]}),
]  # fmt: skip

# Waits


WAITS = [
    _failed("429 with an hour to wait", sized("429 Too Many Requests", _error("daily limit"), "Retry-After: 3600"),
            "rate_limit", "daily limit", alone=True),
    Case("503 with an hour to wait", (sized("503 Oh", _error("down"), "Retry-After: 3600"), chunked(*GOOD)),
         "failed", None, "server", "down", owed=True),
    Case("503 with a short wait", (sized("503 Oh", _error("down"), "Retry-After: 0.05"), chunked(*GOOD)), calls=TWICE),
    *(Case(f"503 with a wait of {wait}", (sized("503 Oh", _error("down"), f"Retry-After: {wait}"), chunked(*GOOD)), calls=TWICE) for wait in ("0.05s", "50ms", "1000000001")),
    _failed("503 with a wait of 5m", sized("503 Oh", _error("down"), "Retry-After: 5m"), "server", "down"),
    Case("429 with a short wait", (sized("429 Oh", _error("slow"), "Retry-After: 0.05"), chunked(*GOOD)), calls=TWICE),
    Case("Retry-After beats the reset headers",
         (sized("429 Oh", _error("slow"), "Retry-After: 0.05", "x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 1h"),
          chunked(*GOOD)), calls=TWICE),
    _good("a reset that is an epoch", chunked(*GOOD, head=HEAD + b"x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 1790000000\r\n"),
          alone=True),
    _good("a reset in an hour", chunked(*GOOD, head=HEAD + b"x-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 1h\r\n"), alone=True),
    _good("a reset that is no time", chunked(*GOOD, head=HEAD + b"x-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: " + _DIGITS + b"\r\n"),
          alone=True),
]  # fmt: skip

# stream_options that a server refuses

OPTIONS = [
    Case(f"stream_options refused: {name}", (sized(status, body), chunked(*GOOD)), calls=TWICE,
         columns={"retries": [("invalid_request", int(status[:3]))]})
    for name, status, body in (
        ("a list of details", "422 Oh", {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]}),
        ("detail", "400 Oh", {"detail": "Unsupported parameter(s): `stream_options`"}),
        ("a list", "400 Oh", [{"error": {"code": 400, "message": 'Unknown name "stream_options": Cannot find field.'}}]),
        ("an error", "400 Oh", _error("Unrecognized request argument supplied: stream_options")),
        ("a param", "400 Oh", _error("Unknown parameter", param="stream_options")),
        ("a record", "400 Oh", b'data: {"error":{"message":"stream_options is not supported"}}\n\n'),
        ("text", "400 Oh", b"stream_options: not allowed"),
        ("camel case", "400 Oh", _error('Unrecognized field "streamOptions"')),
        ("words", "400 Oh", {"detail": "Stream options are not supported"}),
        ("an object in an object", "422 Oh", {"object": "error", "message": {"detail": [{"loc": ["body", "stream_options", "include_usage"], "msg": "Extra inputs"}]}}),
    )
]  # fmt: skip

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
        _failed(f"{name}, at once", chunked(record, DONE), ANY, says, **first),
        _failed(f"{name}, alone", chunked(record), ANY, says, **first),
        _broken(f"{name}, after output", chunked(*BEGUN, record, DONE), says=says),
        _broken(f"{name}, after output, then stop", chunked(*BEGUN, record, STOP, DONE), says=says),
    ]


IN_STREAM = [
    *_errors("an error object", data(_TOO_LONG), "maximum context length"),
    *_errors("a dead engine", data(_DIED), "engine died"),
    *_errors("an error with a message", data(_error("died", code=502)), "died"),
    *_errors("an error as text", data({"error": "died"}), "died"),
    *_errors("an error in a list", data([_error("no capacity", code=429, status="RESOURCE_EXHAUSTED")]), "no capacity"),
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
    _failed(f"200 with JSON: {name}", sized("200 OK", body, kind=kind), ANY, says, calls=None, owed=None)
    for kind in ("application/json", "text/event-stream")
    for name, body, says in (
        (
            f"error as {kind}",
            _error("request (19185 tokens) exceeds the context", code=400, type="exceed_context_size_error"),
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
        (f"a list as {kind}", [_error("bad field", code=400)], "bad field"),
        (f"detail as {kind}", {"detail": "model is loading"}, "loading"),
        (f"an error and choices as {kind}", {"choices": [], **_error("bad field")}, "bad field"),
    )
]
IN_STREAM += [
    _failed(
        "200 with a quota code",
        sized("200 OK", {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}),
        "quota",
        "insufficient balance",
        alone=True,
    ),
    _failed(
        "unframed JSON in chunks",
        chunked(json.dumps(_error("too large", code=400)).encode()),
        ANY,
        "too large",
        calls=None,
        owed=None,
    ),
    _broken("unframed JSON after output", chunked(*BEGUN, json.dumps(_error("died", code=500)).encode()), ANY),
    _broken(
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
                        **_error("the upstream went away", code=502),
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
    _broken(
        "usage in the error",
        chunked(
            *BEGUN,
            data({**_error("died"), "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}}),
            DONE,
        ),
        says="died",
        usage={"input_tokens": 9, "output_tokens": 2},
    ),
    _failed(
        "an error of a whole answer's choice",
        sized(
            "200 OK",
            {
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": ""},
                        "finish_reason": "error",
                        "error": _error("died", code=502)["error"],
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
    _broken(
        "a whole answer and an error",
        sized("200 OK", {**WHOLE, **_error("died", code=502)}),
        says="died",
        mode="complete",
    ),
    _good(
        "an error that is null",
        chunked(*BEGUN, data({"error": None, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), DONE),
    ),
    _good("a whole answer whose error is null", sized("200 OK", {**WHOLE, "error": None}), mode="complete"),
    _good(
        "base_resp of a success",
        sized("200 OK", {**WHOLE, "base_resp": {"status_code": 0, "status_msg": ""}}),
        mode="complete",
    ),
    _good(
        "code and message of a success", sized("200 OK", {**WHOLE, "code": 200, "message": "success"}), mode="complete"
    ),
]

_INDENTED = json.dumps(_error("slot lost", code=429, status="RESOURCE_EXHAUSTED"), indent=2).encode()
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
    *_errors("the provider's words", data(_error("Provider returned error", code=502, metadata={"raw": "slot lost"})), "error: slot lost"),
    *_errors("an error in a message", data({"choices": [{"index": 0, "message": {"error": "slot lost"}}]}), "slot lost"),
]  # fmt: skip

# Reasons to finish

FINISHES = [
    _broken(f"finish_reason {reason}", chunked(*BEGUN, delta(reason), DONE))
    for reason in ("error", "network_error", "server_error", "abort", "insufficient_system_resource", "ERROR")
]
FINISHES += [
    _good(f"finish_reason {reason}", chunked(*BEGUN, delta(reason), DONE), columns={"finish_reason": reason})
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
    _broken("finish_reason error with its error",
            chunked(ROLE, delta(content="Half an ans"), data({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error", "error": {"code": 502, "message": "upstream died"}}]}), DONE),
            text="Half an ans", says="upstream died"),
    _failed("finish_reason error before output", chunked(ROLE, delta("error"), DONE), "stream_error", calls=TWICE),
    _broken("finish_reason null as text, then reset",
            chunked(_replaced(delta(content="Hi"), b"null", b'"null"'), _replaced(delta(content=" you"), b"null", b'"null"'), end=False, then="reset"),
            "stream_interrupted", text="Hi you"),
    _broken("finish_reason empty, then closed",
            chunked(_replaced(delta(content="Hi"), b"null", b'""'), end=False), "stream_interrupted", text="Hi"),
    _good("finish_reason null as text, then stop", chunked(ROLE, *(_replaced(each, b"null", b'"null"') for each in (HELLO, WORLD)), STOP, DONE),
          columns={"finish_reason": "stop"}),
    _failed("stop, empty, with a native error",
            chunked(ROLE, data({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "stop", "native_finish_reason": "network_error"}]}), DONE),
            "stream_error", calls=TWICE),
    _good("stop, with text and a native error",
          chunked(*BEGUN, data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "native_finish_reason": "network_error"}]}), DONE)),
    _good("stop, empty, with a native stop",
          chunked(ROLE, data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "native_finish_reason": "end_turn"}]}), DONE), text=""),
    _good("stop, empty", chunked(ROLE, STOP, DONE), text=""),
    _good("only [DONE] after output", chunked(*BEGUN, DONE)),
    _failed("only [DONE]", chunked(DONE), "protocol", calls=TWICE),
    _failed("nothing", chunked(), ANY, calls=TWICE),
    _broken("no end", chunked(*BEGUN), "stream_interrupted"),
    _broken("cut in a chunk", chunked(*BEGUN, end=False), "stream_interrupted"),
    _broken("reset", chunked(*BEGUN, end=False, then="reset"), "stream_interrupted"),
    _broken("stalled", chunked(*BEGUN, end=False, then="stall"), "timeout", "idle"),
    _failed("closed before the head", Answer((b"HTTP/1.1 2",)), "connection", calls=TWICE),
    _failed("not HTTP", Answer((b"SSH-2.0-OpenSSH_9.6\r\n",)), "connection", calls=TWICE),
    _broken("finish_reason error of a whole answer", sized("200 OK", {**WHOLE, "choices": [{**WHOLE["choices"][0], "finish_reason": "error"}]}), mode="complete"),
]  # fmt: skip

# Content is judged by content

_JSON = json.dumps(WHOLE).encode()
_LINES = b"".join(each.removeprefix(b"data: ").removesuffix(b"\n") for each in GOOD[:-1])
_EVENTS = b"".join(GOOD)


def _deflated(*pieces: bytes, bits: int) -> list[bytes]:
    packer = zlib.compressobj(wbits=bits)
    return [*(packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) for piece in pieces), packer.flush()]


CONTENT = [
    _good(f"an event stream as {kind}", chunked(*GOOD, head=headed(*([f"Content-Type: {kind}"] if kind else []))),
          usage={"input_tokens": 9, "output_tokens": 2}, columns={"finish_reason": "stop"})
    for kind in ("text/plain; charset=utf-8", "application/json", "application/octet-stream", "TEXT/EVENT-STREAM", "text/html", "")
]  # fmt: skip
CONTENT += [
    _good(
        f"JSON {name} as {kind}",
        sized("200 OK", body, kind=kind),
        usage={"input_tokens": 9, "output_tokens": 2},
        mode=mode,
    )
    for kind in ("text/event-stream", "application/json")
    for mode in ("stream", "complete")
    for name, body in (
        (f"({mode})", _JSON),
        (f"({mode}) and [DONE]", _JSON + b"\n" + DONE),
        (f"({mode}) and [DONE] on its line", _JSON + b"\n\n[DONE]\n"),
        (f"({mode}) after blank lines", b"\n\r\n  " + _JSON + b"\n\n"),
        (f"({mode}) after a BOM", b"\xef\xbb\xbf" + _JSON),
        (f"({mode}) indented", json.dumps(WHOLE, indent=2).encode()),
    )
]
CONTENT += [
    _good("a list of chunks", chunked(b"[" + b",\n".join(_LINES.splitlines()) + b"]"), usage={"input_tokens": 9}),
    _good("a list of one whole answer", sized("200 OK", [WHOLE]), usage={"input_tokens": 9}),
    _good("an indented whole answer after comments", chunked(b": wait\n\n: wait\n\n", json.dumps(WHOLE, indent=2).encode())),
    _good("a tab in a text of JSON", sized("200 OK", _JSON.replace(b"Hello world", b"Hello\tworld")), text="Hello\tworld"),
    _good("JSON lines", chunked(_LINES, head=headed("Content-Type: application/x-ndjson")), usage={"input_tokens": 9}),
    _good("a whole answer in a record", chunked(data(WHOLE), DONE)),
    _good("a stream for a whole request", chunked(*GOOD), mode="complete"),
    *(
        _good(f"content-encoding {value!r}", chunked(*GOOD, head=HEAD + b"Content-Encoding: %b\r\n" % value.encode()), usage={"input_tokens": 9})
        for value in ("none", "", "identity", "Identity", "utf-8", "identity, identity")
    ),
    *(
        _good(f"compressed: {name}", chunked(*pieces, head=HEAD + f"Content-Encoding: {coding}\r\n".encode()), usage={"input_tokens": 9})
        for name, coding, pieces in (
            ("raw deflate", "deflate", _deflated(*GOOD, bits=-15)),
            ("deflate", "deflate", _deflated(*GOOD, bits=15)),
            ("gzip", "gzip", _deflated(*GOOD, bits=31)),
            ("x-gzip", "X-GZIP", _deflated(*GOOD, bits=31)),
            ("members", "gzip", [gzip.compress(each, mtime=0) for each in GOOD]),
            ("members in one piece", "gzip", [b"".join(gzip.compress(each, mtime=0) for each in GOOD)]),
            ("an empty member", "gzip", [gzip.compress(b"", mtime=0), gzip.compress(_EVENTS, mtime=0), gzip.compress(b"", mtime=0)]),
            ("zeros after the end", "gzip", [gzip.compress(_EVENTS, mtime=0) + b"\0" * 8]),
            ("identity and gzip", "identity, gzip", _deflated(*GOOD, bits=31)),
        )
    ),
    _good("both Transfer-Encoding and Content-Length", chunked(*GOOD, head=HEAD + b"Content-Length: 99999\r\n"), usage={"input_tokens": 9}),
    _good("a head with bare line feeds",
          Answer((HEAD.replace(b"\r\n", b"\n") + b"Transfer-Encoding: chunked\n\n", *chunked(*GOOD).pieces[1:]), "keep"), usage={"input_tokens": 9}),
    _good("a head with bare line feeds and no length", Answer((HEAD.replace(b"\r\n", b"\n") + b"\n", *GOOD))),
    _good("a body to the end of the connection", Answer((HEAD + b"\r\n", *GOOD))),
    _good("HTTP/1.0", Answer((HEAD.replace(b"1.1", b"1.0") + b"\r\n", *GOOD))),
    _good("blanks around a header", Answer((HEAD + b"Transfer-Encoding:   chunked  \r\n\r\n", *chunked(*GOOD).pieces[1:]), "keep")),
    _good("a byte of Latin-1 in a header", chunked(*GOOD, head=HEAD + b"x-request-id: caf\xe9\r\n")),
    _good("a long header", chunked(*GOOD, head=HEAD + b"x-debug: " + b"x" * 50_000 + b"\r\n")),
    _failed("headers without end", Answer((HEAD, b"x-debug: " + b"x" * 8_000 + b"\r\n"), "repeat"), "connection", calls=TWICE),
    _failed("a header line without end", Answer((HEAD, b"x" * 8_000), "repeat"), "connection", calls=TWICE),
    _good("103 first", Answer((b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", *chunked(*GOOD).pieces), "keep")),
    _failed("204", Answer((b"HTTP/1.1 204 No Content\r\n\r\n",), "keep"), ANY, calls=None, owed=None),
    _failed("a page", sized("200 OK", b"<html><title>Sign in</title></html>", kind="text/html"), "protocol", "Sign in", calls=TWICE),
]  # fmt: skip

# Records of an event stream

RECORDS = [
    _good(f"a record in between: {name}", chunked(ROLE, HELLO, record, WORLD, STOP, USAGE, DONE), usage={"output_tokens": 2})
    for name, record in {
        "no data": b"data:\n\n", "a blank": b"data: \n\n", "blanks": b"data:   \n\n", "two lines of no data": b"data:\ndata:\n\n",
        "a tab": b"data: \t\n\n", "a ping with a date": b"event: ping\ndata: 2026-09-01T00:00:00Z\n\n",
        "a heartbeat": b"event: heartbeat\ndata: alive\n\n", "a keep-alive": b"event: keep-alive\ndata: {}\n\n",
        "a comment": b": keep-alive\n\n", "an event without data": b"event: ping\n\n", "an id": b"id: 7\nretry: 100\n\n",
        "an empty object": b"data: {}\n\n", "an unknown typed record": b'event: metrics\ndata: {"tps": 3}\n\n', "null": b"data: null\n\n",
        "a field that nobody knows": b"foo: bar\n\n", "a line of a log": b"[INFO] loaded\n\n",
        "a typed notice of an end": b"event: search\ndata: done\n\n",
        "a typed notice": b'event: status\ndata: {"status":"busy","message":"cold start"}\n\n',
        "a typed notice with a code": b'event: info\ndata: {"code":"W1","message":"deprecated"}\n\n',
        "a warning": b'data: {"type":"warning","message":"deprecated"}\n\n',
    }.items()
]  # fmt: skip
RECORDS += [
    _good(f"a stream with {name}", Answer((HEAD + b"\r\n", body)), usage={"output_tokens": 2})
    for name, body in {
        "CRLF": _EVENTS.replace(b"\n", b"\r\n"), "CR": _EVENTS.replace(b"\n", b"\r"), "no blank after the colon": _EVENTS.replace(b"data: ", b"data:"),
        "a BOM": b"\xef\xbb\xbf" + _EVENTS, "blanks around [DONE]": _EVENTS.replace(b" [DONE]", b"  [DONE] "),
        "no blank lines": _EVENTS.replace(b"\n\n", b"\n"), "data: twice": _EVENTS.replace(b"data: ", b"data: data: "),
        "no blank line before [DONE]": _EVENTS.replace(b"\n\ndata: [DONE]", b"\r\ndata: [DONE]"),
        "[done]": _EVENTS.replace(b"[DONE]", b"[done]"), "DONE": _EVENTS.replace(b"[DONE]", b"DONE"),
        "[DONE] as JSON": _EVENTS.replace(b"[DONE]", b'"[DONE]"'), "[DONE] without data:": _EVENTS.replace(b"data: [DONE]", b"[DONE]"),
        "indented JSON": b"".join(b"data: " + json.dumps(json.loads(each), indent=1).encode().replace(b"\n", b"\ndata: ") + b"\n\n" for each in _LINES.splitlines()),
        "a comment first": b": PROCESSING\n\n" * 3 + _EVENTS, "blank lines first": b"\n\n\n" + _EVENTS,
    }.items()
]  # fmt: skip
RECORDS += [
    _good("a [DONE] without a blank line", chunked(*BEGUN, b"data: [DONE]\n")),
    _good("a [DONE] without a line end", chunked(*BEGUN, b"data: [DONE]")),
    _good("a last record without a blank line", chunked(*BEGUN, STOP.rstrip(b"\n")), columns={"finish_reason": "stop"}),
    _good(
        "a last record without a line end, at a closed connection", Answer((HEAD + b"\r\n", *BEGUN, STOP.rstrip(b"\n")))
    ),
    _broken("half of a last record", chunked(*BEGUN, STOP[:60]), ANY),
    _broken("half of a last record, reset", chunked(*BEGUN, STOP[:60], end=False, then="reset"), "stream_interrupted"),
    _broken(
        "a last record whose connection breaks",
        chunked(*BEGUN, delta(content="!").rstrip(b"\n"), end=False, then="reset"),
        "stream_interrupted",
        text=ANY,
    ),
    _broken("a record that is not JSON", chunked(*BEGUN, b"data: oops\n\n", STOP, DONE), "protocol", text=ANY),
    _good(
        "text that is not UTF-8",
        chunked(ROLE, _replaced(HELLO, b"Hello", b"Hello\xff"), WORLD, STOP, DONE),
        text="Hello� world",
    ),
    _good(
        "a cut sequence of UTF-8",
        chunked(ROLE, _replaced(HELLO, b"Hello", b"Hello\xe2\x82"), WORLD, STOP, DONE),
        text="Hello� world",
    ),
    _good("more after [DONE]", chunked(*GOOD, delta(content="!"), b"garbage")),
    _good("an event 'message'", chunked(*(b"event: message\n" + each for each in GOOD))),
    _good("a long record", chunked(ROLE, delta(content="Hello" * 60_000), STOP, DONE), text="Hello" * 60_000),
]

# Calls of tools


def _call(index: object = 0, **more: Any) -> dict[str, Any]:
    """A part of a tool call; `index` None leaves the index out."""
    return {"type": "function", **({} if index is None else {"index": index}), **more}


def _tools(name: str, *parts: bytes, tools: tuple[tuple[str | None, str, str], ...], **more: Any) -> Case:
    return _good(name, chunked(ROLE, *parts, delta("tool_calls"), DONE), **{"text": "", "tools": tools, **more})


def _function(name: str, arguments: object) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


_ADD = ("call_1", "add", '{"a":1}')
_MUL = ("call_2", "mul", '{"a":2}')


def _two(*indexes: object) -> list[bytes]:
    return [
        delta(tool_calls=[_call(index, id=id_, function=_function(name, arguments))])
        for index, (id_, name, arguments) in zip(indexes, (_ADD, _MUL), strict=True)
    ]


TOOLS = [
    _tools("two calls with index 0 and their own ids", *_two(0, 0), tools=(_ADD, _MUL)),
    _tools("two calls without index", *_two(None, None), tools=(_ADD, _MUL)),
    _tools("two calls with index 0 and 1", *_two(0, 1), tools=(_ADD, _MUL)),
    _tools("two calls with index 1 and 2", *_two(1, 2), tools=(_ADD, _MUL)),
    _tools("two calls without index in one chunk",
           delta(tool_calls=[_call(None, id=id_, function=_function(name, arguments)) for id_, name, arguments in (_ADD, _MUL)]),
           tools=(_ADD, _MUL)),
    _tools("two calls with index 0 in one chunk",
           delta(tool_calls=[_call(0, id=id_, function=_function(name, arguments)) for id_, name, arguments in (_ADD, _MUL)]),
           tools=(_ADD, _MUL)),
    _tools("two calls whose index is null", *(_replaced(each, b'"index": 0, "id"', b'"index": null, "id"') for each in _two(0, 0)),
           tools=(_ADD, _MUL)),
    _tools("arguments in pieces without index",
           delta(tool_calls=[_call(None, id="call_1", function=_function("add", ""))]),
           delta(tool_calls=[_call(None, function={"arguments": '{"a"'})]), delta(tool_calls=[_call(None, function={"arguments": ":1}"})]),
           tools=(_ADD,)),
    _tools("arguments in pieces with the id again",
           delta(tool_calls=[_call(0, id="call_1", function=_function("add", '{"a"'))]),
           delta(tool_calls=[_call(0, id="call_1", function={"arguments": ":1}"})]), tools=(_ADD,)),
    _tools("arguments in pieces with id and name again",
           delta(tool_calls=[_call(0, id="call_1", function=_function("add", '{"a"'))]),
           delta(tool_calls=[_call(0, id="call_1", function=_function("add", ":1}"))]), tools=(_ADD,)),
    _tools("arguments in pieces with empty ids and names",
           delta(tool_calls=[_call(0, id="call_1", function=_function("add", '{"a"'))]),
           delta(tool_calls=[_call(0, id="", function=_function("", ":1}"))]), tools=(_ADD,)),
    _tools("arguments in pieces with a null id and name",
           delta(tool_calls=[_call(0, id="call_1", function=_function("add", '{"a"'))]),
           delta(tool_calls=[{**_call(0, function={"name": None, "arguments": ":1}"}), "id": None}]), tools=(_ADD,)),
    _tools("interleaved pieces", *_two(0, 1), delta(tool_calls=[_call(0, function={"arguments": " "})]), delta(tool_calls=[_call(1, function={"arguments": " "})]),
           tools=((_ADD[0], _ADD[1], '{"a":1} '), (_MUL[0], _MUL[1], '{"a":2} '))),
    _tools("the same id for two calls", *(delta(tool_calls=[_call(index, id="c", function=_function(name, arguments))]) for index, (_, name, arguments) in enumerate((_ADD, _MUL))),
           tools=(("c", *_ADD[1:]), ("c", *_MUL[1:]))),
    _tools("the same id for two calls of a function", *(delta(tool_calls=[_call(0, id="c", function=_function("add", arguments))]) for arguments in ('{"a":1}', '{"a":2}')),
           tools=(("c", "add", '{"a":1}'), ("c", "add", '{"a":2}'))),
    _tools("no arguments yet, with the id again", *(delta(tool_calls=[_call(0, id="c", function=_function("add", arguments))]) for arguments in ("{}", '{"a":1}')),
           tools=(("c", "add", '{"a":1}'),)),
    _tools("another id in every piece", *(delta(tool_calls=[_call(0, id=id_, function=_function("add", piece))]) for id_, piece in (("a", '{"a"'), ("b", ":"), ("c", "1}"))),
           tools=(("a", "add", '{"a":1}'),)),
    _tools("parameters", delta(tool_calls=[_call(0, id="c", function={"name": "add", "parameters": {"a": 1}})]), tools=(("c", "add", '{"a":1}'),)),
    _tools("arguments as an object", delta(tool_calls=[_call(id="c1", function=_function("bash", {"command": "ls"}))]),
           tools=(("c1", "bash", '{"command": "ls"}'),)),
    _tools("arguments as an empty object", delta(tool_calls=[_call(id="c1", function=_function("now", {}))]), tools=(("c1", "now", "{}"),)),
    _tools("arguments as a list", delta(tool_calls=[_call(id="c1", function=_function("f", [1, 2]))]), tools=(("c1", "f", "[1, 2]"),)),
    _tools("arguments that are null", delta(tool_calls=[_call(id="c1", function=_function("f", None))]), tools=(("c1", "f", ""),)),
    _tools("no arguments", delta(tool_calls=[_call(id="c1", function={"name": "f"})]), tools=(("c1", "f", ""),)),
    _good("arguments as an object in a whole answer",
          sized("200 OK", {"choices": [{"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": [
              {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}, "finish_reason": "tool_calls"}]}),
          text="", tools=(("c", "f", '{"a": 1}'),)),
    _tools("text and a call", HELLO, WORLD, *_two(0, 1), tools=(_ADD, _MUL), text="Hello world"),
    _broken("a call that is cut off", chunked(ROLE, _two(0, 0)[0], end=False), "stream_interrupted", text="", tools=(_ADD,)),
]  # fmt: skip

# The same text twice, and text in other forms

_FULL = {"id": "x", "object": "chat.completion", "model": "m-1", "usage": WHOLE["usage"]}
DOUBLED = [
    _good("the full message in the last chunk",
          chunked(*BEGUN, data({**_FULL, "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello world"}}]})),
          usage={"output_tokens": 2}),
    _good("the full message beside the last delta",
          chunked(*BEGUN, data({**_FULL, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello world"}}]}), DONE)),
    _good("the full message in every chunk", chunked(*(
        data({"choices": [{"index": 0, "delta": {"content": piece}, "message": {"role": "assistant", "content": so_far}, "finish_reason": finish}]})
        for piece, so_far, finish in (("Hello", "Hello", None), (" world", "Hello world", None), ("", "Hello world", "stop"))), DONE)),
    _good("only a message", chunked(data({**_FULL, "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello world"}}]}), DONE)),
    _good("a list of texts", chunked(ROLE, delta(content=["Hello", " world"]), STOP, DONE)),
    _good("a list of a text and a part", chunked(ROLE, delta(content=["Hello", {"type": "text", "text": " world"}]), STOP, DONE)),
    _good("an empty list", chunked(ROLE, delta(content=[]), HELLO, WORLD, STOP, DONE)),
    _good("a list of texts in a whole answer",
          sized("200 OK", {**WHOLE, "choices": [{"index": 0, "message": {"content": ["Hello", " world"]}, "finish_reason": "stop"}]}), mode="complete"),
    _good("usage and citations in the full message",
          chunked(*BEGUN, data({"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "Hello world", "usage": WHOLE["usage"], "citations": ["u"]}}]}), DONE),
          usage={"input_tokens": 9}, columns={"annotations": '[{"index":0,"annotations":["u"]}]'}),
    _good("text of legacy completions", chunked(*(data({"choices": [{"index": 0, "text": text, "finish_reason": end}]}) for text, end in (("Hello", None), (" world", "stop"))), DONE)),
    _good("all text again, as in legacy completions", chunked(*BEGUN, data({"choices": [{"index": 0, "delta": {}, "text": "Hello world", "finish_reason": "stop"}]}), DONE)),
    _good("all text again, as the message", chunked(*BEGUN, data({"choices": [{"index": 0, "message": "Hello world", "finish_reason": "stop"}]}), DONE)),
    _good("a delta that is the text", chunked(ROLE, *(data({"choices": [{"index": 0, "delta": text}]}) for text in ("Hello", " world")), STOP, DONE)),
    _good("a message that is the text", sized("200 OK", {"choices": [{"index": 0, "message": "Hello world", "finish_reason": "stop"}]})),
    _good("content that is decoded JSON", chunked(ROLE, delta(content={"answer": 1}), STOP, DONE), text='{"answer":1}'),
    _good("a chat completion for legacy completions", chunked(*GOOD), api="completions"),
    _good("a surrogate pair in two chunks",
          chunked(ROLE, _replaced(HELLO, b"Hello", b"Hello" + _HALF), _replaced(WORLD, b" world", b"\\ude42 world"), STOP, DONE), text="Hello🙂 world"),
    _good("the finish_reason twice", chunked(*BEGUN, STOP, STOP, DONE), columns={"finish_reason": "stop"}),
]  # fmt: skip

# Usage

_MORE = {
    "prompt_tokens": 32,
    "completion_tokens": 9,
    "total_tokens": 135,
    "completion_tokens_details": {"reasoning_tokens": 94},
}
USAGES = [
    _good("usage in a choice", chunked(*BEGUN, data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop",
          "usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}}]}), DONE),
          usage={"input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500}),
    _good("usage in x_groq", chunked(*BEGUN, data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
          "x_groq": {"id": "r", "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}}}), DONE),
          usage={"input_tokens": 9, "output_tokens": 2}),
    _good("cached tokens at the top", chunked(*BEGUN, STOP, usage(2989, 5, cached_tokens=2989), DONE),
          usage={"input_tokens": 2989, "cached_input_tokens": 2989}),
    _good("cached tokens in details", chunked(*BEGUN, STOP, usage(2989, 5, prompt_tokens_details={"cached_tokens": 2000}), DONE),
          usage={"cached_input_tokens": 2000}),
    _good("reasoning tokens that are not in the output tokens", chunked(*BEGUN, STOP, data({"choices": [], "usage": _MORE}), DONE),
          usage={"input_tokens": 32, "output_tokens": 103, "total_tokens": 135, "reasoning_tokens": 94}),
    _good("reasoning tokens that are in the output tokens", chunked(*BEGUN, STOP, usage(32, 103, completion_tokens_details={"reasoning_tokens": 94}), DONE),
          usage={"input_tokens": 32, "output_tokens": 103, "total_tokens": 135, "reasoning_tokens": 94}),
    _good("zeros after a count", chunked(*BEGUN, STOP, usage(9, 2), usage(0, 0), DONE), usage={"input_tokens": 9, "output_tokens": 2}),
    _good("nulls after a count", chunked(*BEGUN, STOP, usage(9, 2), data({"choices": [], "usage": None}), DONE), usage={"input_tokens": 9}),
    _good("a growing count", chunked(ROLE, HELLO, usage(9, 1), WORLD, usage(9, 2), STOP, DONE), usage={"input_tokens": 9, "output_tokens": 2}),
    _good("two names for a count", chunked(*BEGUN, STOP, data({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": None, "input_tokens": 0, "output_tokens": 2}}), DONE),
          usage={"input_tokens": 9, "output_tokens": 2}),
    _good("only the input", chunked(*BEGUN, STOP, data({"choices": [], "usage": {"prompt_tokens": 9}}), DONE),
          usage={"input_tokens": 9, "output_tokens": None}),
    _good("usage without choices", chunked(*BEGUN, STOP, data({"usage": WHOLE["usage"]}), DONE), usage={"input_tokens": 9}),
    _good("usage before the text", chunked(ROLE, usage(9, 2), HELLO, WORLD, STOP, DONE), usage={"input_tokens": 9}),
    _broken("a stale count of a broken stream",
            chunked(ROLE, usage(9, 1), delta(content="one two three four five six seven eight nine ten"), end=False, then="reset"),
            "stream_interrupted", text="one two three four five six seven eight nine ten"),
]  # fmt: skip

# Responses

_ARGS = '{"city":"Paris"}'
_PARIS = (("call_1", "get_weather", _ARGS),)


def _item(arguments: str = _ARGS, status: str = "completed") -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "get_weather",
        "arguments": arguments,
        "status": status,
    }


def _message(text: str = "Hello world") -> dict[str, Any]:
    return {"type": "message", "id": "m1", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []}]}  # fmt: skip


def _ended(*output: dict[str, Any], status: str = "completed", kind: str = "", **more: Any) -> bytes:
    response = {"id": "resp_1", "object": "response", "model": "m-1", "status": status, "output": list(output),
                "usage": {"input_tokens": 9, "output_tokens": 20, "total_tokens": 29}, **more}  # fmt: skip
    return typed(kind or f"response.{status}", response=response)


_CREATED = typed(
    "response.created",
    response={"id": "resp_1", "object": "response", "model": "m-1", "status": "in_progress", "output": []},
)
_ADDED = typed("response.output_item.added", output_index=0, item=_item("", "in_progress"))
_ITEM_DONE = typed("response.output_item.done", output_index=0, item=_item())
_TEXT = typed("response.output_text.delta", output_index=0, content_index=0, item_id="m1", delta="Hello world")
_ODD = {
    "type": "function_call",
    "id": "fc_1",
    "name": "f",
    "arguments": "{}",
    "function": {"name": "f", "arguments": {"a": 1}},
}


def _response(name: str, *events: bytes, **more: Any) -> Case:
    return _good(
        name,
        chunked(_CREATED, *events),
        **{"api": "responses", "usage": {"input_tokens": 9, "output_tokens": 20}, **more},
    )


RESPONSES = [
    _response("r: arguments only in arguments.done", _ADDED,
              typed("response.function_call_arguments.done", output_index=0, item_id="fc_1", arguments=_ARGS), _ITEM_DONE, _ended(_item()),
              tools=_PARIS, text=ANY),
    _response("r: arguments only in item.done", _ADDED, _ITEM_DONE, _ended(_item()), tools=_PARIS, text=ANY),
    _response("r: a call only in item.done", _ITEM_DONE, _ended(_item()), tools=_PARIS, text=ANY),
    _response("r: a call only in the response", _ended(_item()), tools=_PARIS, text=ANY),
    _response("r: a call only in item.added and the response", _ADDED, _ended(_item()), tools=_PARIS, text=ANY),
    _response("r: a call in deltas", _ADDED, *(typed("response.function_call_arguments.delta", output_index=0, item_id="fc_1", delta=part) for part in (_ARGS[:5], _ARGS[5:])),
              typed("response.function_call_arguments.done", output_index=0, item_id="fc_1", arguments=_ARGS), _ITEM_DONE, _ended(_item()),
              tools=_PARIS, text=ANY),
    _response("r: a call in item.added, complete", typed("response.output_item.added", output_index=0, item=_item()), _ended(_item()), tools=_PARIS, text=ANY),
    _response("r: a call, then text only in text.done", _ADDED, typed("response.function_call_arguments.delta", output_index=0, delta=_ARGS),
              typed("response.output_text.done", output_index=1, text="Hello world"), _ended(_item(), _message()), tools=_PARIS),
    _response("r: reasoning in a delta, text only in text.done", typed("response.reasoning_summary_text.delta", output_index=0, delta="think"),
              typed("response.output_text.done", output_index=1, text="Hello world"),
              _ended({"type": "reasoning", "summary": [{"type": "summary_text", "text": "think"}]}, _message())),
    _response("r: text, then a call only in item.done", _TEXT, typed("response.output_item.done", output_index=1, item=_item()),
              _ended(_message(), _item()), tools=_PARIS),
    _response("r: text in a delta and in text.done", _TEXT, typed("response.output_text.done", output_index=0, content_index=0, item_id="m1", text="Hello world"),
              typed("response.output_item.done", output_index=0, item=_message()), _ended(_message())),
    _response("r: text only in the message of item.done", typed("response.output_item.done", output_index=0, item=_message()), _ended(_message())),
    _response("r: text only in the response", _ended(_message())),
    _response("r: text in a delta only", _TEXT, _ended()),
    _response("r: an item with an object as function", typed("response.output_item.added", output_index=0, item=_ODD),
              typed("response.output_item.done", output_index=0, item=_ODD), _ended(), tools=((ANY, "f", ANY),), text=ANY),
    _response("r: a call without call_id", typed("response.output_item.done", output_index=0, item={k: v for k, v in _item().items() if k != "call_id"}),
              _ended(), tools=((ANY, "get_weather", _ARGS),), text=ANY),
    _response("r: incomplete", _TEXT, _ended(_message(), status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
              columns={"finish_reason": "max_output_tokens"}),
    _broken("r: failed after output", chunked(_CREATED, _TEXT, _ended(_message(), status="failed", error={"code": "server_error", "message": "model died"})),
            says="model died", api="responses", usage={"input_tokens": 9}),
    _failed("r: failed at once", chunked(_CREATED, _ended(status="failed", error={"code": "server_error", "message": "model died"})),
            ANY, "model died", api="responses", calls=TWICE),
    _broken("r: completed with status failed after output",
            chunked(_CREATED, _TEXT, _ended(_message(), status="failed", kind="response.completed", error={"code": "server_error", "message": "model died"})),
            says="model died", api="responses"),
    _failed("r: completed with status failed at once",
            chunked(_CREATED, _ended(status="failed", kind="response.completed", error={"code": "server_error", "message": "model died"})),
            ANY, "model died", api="responses", calls=TWICE),
    _failed("r: an error event", chunked(_CREATED, typed("error", code="server_error", message="model died", param=None)), ANY, "model died",
            api="responses", calls=TWICE),
    _failed("r: a whole response that failed", sized("200 OK", {"id": "resp_1", "object": "response", "status": "failed", "output": [],
            "error": {"code": "server_error", "message": "model died"}}), ANY, "model died", api="responses", calls=TWICE, mode="complete"),
    _response("r: items that are numbers", typed("response.output_item.added", output_index=0, item=5),
              typed("response.output_item.done", output_index="x", item=[1]), _TEXT, _ended()),
    _response("r: a text that is a number", typed("response.output_text.done", output_index=0, text=5), _ended(_message()), text=ANY),
    _response("r: an output_index of 2**40", typed("response.output_item.added", output_index=2**40, item=_item("")), _TEXT, _ended(_message())),
    _good("r: usage beside the response", chunked(_CREATED, _TEXT, typed("response.completed", usage=WHOLE["usage"], response={"status": "completed", "output": []})),
          api="responses", usage={"input_tokens": 9, "output_tokens": 2}),
    _broken("r: no end", chunked(_CREATED, _TEXT), "stream_interrupted", api="responses"),
]  # fmt: skip

# Messages

_STARTED = typed(
    "message_start",
    message={
        "id": "msg_1",
        "model": "m-1",
        "role": "assistant",
        "content": [],
        "usage": {"input_tokens": 9, "output_tokens": 1},
    },
)
_BLOCK = typed("content_block_start", index=0, content_block={"type": "text", "text": ""})
_BLOCK_TEXT = typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello world"})
_BLOCK_STOP = typed("content_block_stop", index=0)
_END = (typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}), typed("message_stop"))
_OVERLOADED = typed("error", error={"type": "overloaded_error", "message": "Overloaded"})

MESSAGES = [
    _good("m: text", chunked(_STARTED, _BLOCK, typed("ping"), _BLOCK_TEXT, _BLOCK_STOP, *_END), api="messages",
          usage={"input_tokens": 9, "output_tokens": 2}),
    _broken("m: an error after output", chunked(_STARTED, _BLOCK, _BLOCK_TEXT, _OVERLOADED), says="Overloaded", api="messages"),
    _failed("m: an error at once", chunked(_STARTED, _OVERLOADED), ANY, "Overloaded", api="messages", calls=None),
    _good("m: a tool whose input comes at once",
          chunked(_STARTED, typed("content_block_start", index=0, content_block={"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}),
                  _BLOCK_STOP, *_END), api="messages", text=ANY, tools=(("t1", "f", ANY),)),
    _good("m: a delta without its block", chunked(_STARTED, _BLOCK_TEXT, *_END), api="messages", text=ANY),
    *(_good(f"m: a delta of type {kind}", chunked(_STARTED, _BLOCK, _replaced(_BLOCK_TEXT, b'"text_delta"', json.dumps(kind).encode()), *_END), api="messages")
      for kind in (None, "text")),
    _good("m: an unknown block", chunked(_STARTED, typed("content_block_start", index=0, content_block={"type": "hologram", "x": 1}),
          typed("content_block_delta", index=0, delta={"type": "hologram_delta", "x": 2}), _BLOCK_STOP,
          _replaced(_BLOCK, b'"index": 0', b'"index": 1'), _replaced(_BLOCK_TEXT, b'"index": 0', b'"index": 1'), *_END), api="messages"),
    _good("m: a surrogate", chunked(_STARTED, _BLOCK, _replaced(_BLOCK_TEXT, b"Hello", b"Hello" + _HALF), *_END), api="messages", text="Hello� world"),
]  # fmt: skip

# The key

_SPLIT = len(KEY) // 2
KEYS = [
    _failed("the key in a first error", chunked(data(_error(f"Incorrect API key provided: {KEY}", type="server_error", code="x"))), ANY, "***",
            calls=None, owed=None),
    _broken("the key in a later error", chunked(*BEGUN, data(_error(f"Incorrect API key provided: {KEY}", type="server_error", code="x"))), says="***"),
    _failed("the key in a 400", sized("400 Oh", _error(f"your key {KEY} is fine")), "invalid_request", "your key *** is fine", owed=False),
    _failed("the key in a code", sized("400 Oh", _error("no", code=KEY)), "invalid_request", "no", owed=False),
    _failed("the key escaped in a 400", sized("400 Oh", b'{"error":{"message":"your key %b\\u0066"}}' % KEY[:-1].encode()), "invalid_request",
            "your key ***", owed=False),
    _failed("the key in a page", sized("400 Oh", f"<title>{KEY}</title>".encode(), kind="text/html"), "invalid_request", "***", owed=False),
    _good("the key in the text", chunked(ROLE, delta(content=f"Hello {KEY} world"), STOP, DONE), text="Hello *** world"),
    _good("the key in two chunks", chunked(ROLE, delta(content=f"Hello {KEY[:_SPLIT]}"), delta(content=f"{KEY[_SPLIT:]} world"), STOP, DONE),
          text="Hello *** world"),
    _good("the key letter by letter", chunked(ROLE, *(delta(content=letter) for letter in f"Hello {KEY} world"), STOP, DONE), text="Hello *** world"),
    _good("the key escaped", chunked(ROLE, _replaced(delta(content=f"Hello {KEY} world"), b"sk-test", b"\\u0073k-test"), STOP, DONE), text="Hello *** world"),
    _good("the key in a tool call", chunked(ROLE, delta(tool_calls=[_call(id=KEY, function=_function(KEY, json.dumps({"key": KEY})))]), delta("tool_calls"), DONE),
          text="", tools=(("***", "***", '{"key": "***"}'),)),
    _good("the key in ids and the model", chunked(*(_replaced(_replaced(each, b"m-1", KEY.encode()), b"c-1", KEY.encode()) for each in GOOD[:-1]), DONE,
          head=HEAD + f"x-request-id: {KEY}\r\n".encode())),
    _good("the key in a finish_reason", chunked(*BEGUN, delta(KEY), DONE)),
    _good("the key in reasoning", chunked(ROLE, delta(reasoning_content=f"I see {KEY}"), HELLO, WORLD, STOP, DONE)),
    Case("the key in a retried call", (chunked(*BEGUN, delta(content=KEY), end=False, then="reset"), chunked(*GOOD)), calls=TWICE),
    _good("the key in a whole answer", sized("200 OK", {**WHOLE, "choices": [{"index": 0, "message": {"content": f"Hello {KEY}"}, "finish_reason": "stop"}]}),
          text="Hello ***", mode="complete"),
    _good("the key in a response", chunked(_CREATED, _replaced(_TEXT, b"Hello world", f"Hello {KEY}".encode()), _ended()), text="Hello ***", api="responses"),
]  # fmt: skip

OPTIONS.append(
    Case(
        "stream_options refused: by a fault of the server",
        (sized("500 Oh", _error("create() got an unexpected keyword argument 'stream_options'")), chunked(*GOOD)),
        calls=TWICE,
        columns={"retries": [("server", 500)]},
    )
)
CASES = [*TROUBLE, *REFUSALS, *WAITS, *OPTIONS, *IN_STREAM, *FINISHES, *CONTENT, *RECORDS, *TOOLS, *DOUBLED, *USAGES, *RESPONSES, *MESSAGES, *KEYS]  # fmt: skip


def answer_of(case: Case, before: int) -> Answer:
    """The answer to a call, after as many earlier ones."""
    return case.answers[min(before, len(case.answers) - 1)]
