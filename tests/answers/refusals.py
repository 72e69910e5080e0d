"""Responses with an error status: their words, the waits that they ask for, and refused stream options."""

from __future__ import annotations

import gzip
from dataclasses import replace
from typing import Any

from tests.answers.case import DIGITS, GOOD, HEAD, TWICE, Case, chunked, error_body, failed, good, sized
from tests.raw_server import Answer

# A response with an error status


def _refused(status: str, error: str, body: object = None, says: str = "", *headers: str, **more: Any) -> Case:
    """A refusal that no retry follows; it is owed unless the request itself is wrong."""
    answer = sized(status, error_body() if body is None else body, *headers, kind=more.pop("kind", "application/json"))
    name = more.pop("name", status)
    owed = error not in {"invalid_request", "content_policy"}
    return failed(name, answer, error, says, **{"owed": owed, **more})


REFUSALS = [
    _refused(f"{status} Moved", "wrong_url", b"", "", "Location: https://127.0.0.2:1/v1/chat/completions",
             kind="text/html", alone=True, name=f"{status} to another host")
    for status in (300, 301, 302, 303, 307, 308)
]  # fmt: skip
REFUSALS += [
    _refused("405 Method Not Allowed", "wrong_url", b"<html>405 Not Allowed</html>", "Not Allowed", kind="text/html", alone=True),
    _refused("401 Unauthorized", "authentication", None, "Oh no", alone=True),
    _refused("402 Payment Required", "quota", None, "Oh no", alone=True),
    _refused("400 Bad Request", "quota", error_body("Billing hard limit", code="billing_hard_limit_reached"), "Billing hard limit", alone=True,
             name="a billing code at 400"),
    _refused("403 Forbidden", "quota", error_body("no more", code="insufficient_quota"), "no more", alone=True, name="a quota code at 403"),
    _refused("429 Too Many Requests", "quota", error_body("no more", type="insufficient_quota"), "no more", alone=True,
             name="a quota type at 429"),
    _refused("503 Service Unavailable", "quota", error_body("no more", code="insufficient_quota"), "no more", alone=True,
             name="a quota code at 503"),
    _refused("400 Bad Request", "invalid_request", error_body("the quota parameter is wrong: insufficient_quota"), "the quota parameter",
             name="the word quota in a message"),
    _refused("403 Forbidden", "permission", None, "Oh no"),
    _refused("404 Not Found", "not_found", error_body("no such model", code="model_not_found"), "no such model"),
    _refused("404 Not Found", "not_found", b"<html><head><title>404 Not Found</title></head></html>", "404 Not Found", kind="text/html",
             name="404 as a page"),
    _refused("403 Forbidden", "content_policy",
             error_body("flagged", code=403, metadata={"reasons": ["violence"], "flagged_input": "x"}), "flagged", name="403 of a moderation"),
    _refused("400 Bad Request", "content_policy", error_body("filtered", code="content_filter"), "filtered", name="400 of a content filter"),
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
    failed("a cut body of a 500", sized("500 Internal Server Error", _TRUNCATED, length=500), "server", "mess", calls=TWICE),
    failed("a reset in the body of a 500", sized("500 Internal Server Error", _TRUNCATED, length=500, then="reset"), "server", calls=TWICE),
    failed("a stalled body of a 500", sized("500 Internal Server Error", _TRUNCATED, length=500, then="stall"), "server", calls=TWICE),
    failed("a stalled body of a 400", sized("400 Bad Request", b'{"error":{"message":"bad field"}}', length=500, then="stall"),
            "invalid_request", "bad field", owed=False),
    failed("a cut body of a 400", sized("400 Bad Request", b'{"error":{"message":"bad field"}}', length=500),
            "invalid_request", "bad field", owed=False),
    failed("an endless body of a 500",
            Answer((b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"no " * 21845 + b"n\r\n"), "repeat"),
            "server", "no", calls=TWICE),
    failed("a gzip bomb in a 500", sized("500 Internal Server Error", _BOMB, "Content-Encoding: gzip"), "server", calls=TWICE),
    failed("broken gzip in a 500", sized("500 Internal Server Error", b"not gzip", "Content-Encoding: gzip"), "server", calls=TWICE),
    failed("an unknown coding of a 500", sized("500 Internal Server Error", b"\x1b\x03", "Content-Encoding: br"), "server", calls=TWICE),
    failed("a gzip body of a 400", sized("400 Bad Request", gzip.compress(b'{"detail":"bad field"}'), "Content-Encoding: gzip"),
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
    Case("the request id of a retried refusal", (sized("500 Oh", error_body(), "x-request-id: req-7"), chunked(*GOOD)), calls=TWICE,
         columns={"retries": [("server", 500)]}),
]  # fmt: skip

# Waits


WAITS = [
    failed("429 with an hour to wait", sized("429 Too Many Requests", error_body("daily limit"), "Retry-After: 3600"),
            "rate_limit", "daily limit", alone=True),
    Case("503 with an hour to wait", (sized("503 Oh", error_body("down"), "Retry-After: 3600"), chunked(*GOOD)),
         "failed", None, "server", "down", owed=True),
    Case("503 with a short wait", (sized("503 Oh", error_body("down"), "Retry-After: 0.05"), chunked(*GOOD)), calls=TWICE),
    *(Case(f"503 with a wait of {wait}", (sized("503 Oh", error_body("down"), f"Retry-After: {wait}"), chunked(*GOOD)), calls=TWICE) for wait in ("0.05s", "50ms", "1000000001")),
    failed("503 with a wait of 5m", sized("503 Oh", error_body("down"), "Retry-After: 5m"), "server", "down"),
    Case("429 with a short wait", (sized("429 Oh", error_body("slow"), "Retry-After: 0.05"), chunked(*GOOD)), calls=TWICE),
    Case("Retry-After beats the reset headers",
         (sized("429 Oh", error_body("slow"), "Retry-After: 0.05", "x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 1h"),
          chunked(*GOOD)), calls=TWICE),
    good("a reset that is an epoch", chunked(*GOOD, head=HEAD + b"x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 1790000000\r\n"),
          alone=True),
    good("a reset in an hour", chunked(*GOOD, head=HEAD + b"x-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 1h\r\n"), alone=True,
         columns={"server_timing": [("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "1h")]}),
    good("a reset that is no time", chunked(*GOOD, head=HEAD + b"x-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: " + DIGITS + b"\r\n"),
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
        ("an error", "400 Oh", error_body("Unrecognized request argument supplied: stream_options")),
        ("a param", "400 Oh", error_body("Unknown parameter", param="stream_options")),
        ("a record", "400 Oh", b'data: {"error":{"message":"stream_options is not supported"}}\n\n'),
        ("text", "400 Oh", b"stream_options: not allowed"),
        ("camel case", "400 Oh", error_body('Unrecognized field "streamOptions"')),
        ("words", "400 Oh", {"detail": "Stream options are not supported"}),
        ("an object in an object", "422 Oh", {"object": "error", "message": {"detail": [{"loc": ["body", "stream_options", "include_usage"], "msg": "Extra inputs"}]}}),
    )
]  # fmt: skip

OPTIONS.append(
    Case(
        "stream_options refused: by a fault of the server",
        (sized("500 Oh", error_body("create() got an unexpected keyword argument 'stream_options'")), chunked(*GOOD)),
        calls=TWICE,
        columns={"retries": [("server", 500)]},
    )
)
