"""How a call ended: its status, and its error translated from an exception, an HTTP status or an error in the stream.

This is the only module that translates errors. Pure: times are passed in. ``model.ERRORS`` defines how each type of
error is handled.
"""

from __future__ import annotations

import email.utils
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx2
import openai

from deltatap.errors import CredentialError, ProtocolError
from deltatap.model import CaptureError, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltatap.api.base import Api
    from deltatap.config import Timeouts
    from deltatap.model import Received

# Our type and code for exceptions that end a call before its response does; without a code, the cause's name is used.
_OF_EXCEPTION: Mapping[type[Exception], tuple[str, str | None]] = {
    CredentialError: ("connection", "credential"),
    openai.APIConnectionError: ("connection", None),
    httpx2.HTTPError: ("connection", None),
    OSError: ("connection", None),
}
FAILURES: tuple[type[Exception], ...] = (openai.APIStatusError, ProtocolError, *_OF_EXCEPTION)

_OF_STATUS = {
    401: "authentication",
    402: "quota",
    403: "permission",
    404: "not_found",
    408: "server",
    409: "server",
    425: "server",
    429: "rate_limit",
}
_POLICY_CODES = {
    "content_filter",
    "content_policy_violation",
    "image_content_policy_violation",
    "bio_policy",
    "misalignment_policy_violation",
    "ResponsibleAIPolicyViolation",
}
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached"}


def error_of(failure: Exception, http_status: int | None, now: float, api: Api | None = None) -> CaptureError:
    """Translate one of :data:`FAILURES`.

    Args:
        failure: the exception.
        http_status: of the response that had begun; None when none had.
        now: seconds since the epoch.
        api: the API that was called.
    """
    if isinstance(failure, openai.APIStatusError):
        return http_error(failure.status_code, failure.body, failure.response.headers, now, api)
    if isinstance(failure, ProtocolError):
        return CaptureError("protocol", None, str(failure), http_status)
    type_, code = next(found for kind, found in _OF_EXCEPTION.items() if isinstance(failure, kind))
    # The openai client's own message is always "Connection error."; its cause says what happened.
    cause = failure if code else failure.__cause__ or failure
    name = type(cause).__name__
    return CaptureError(type_, code or getattr(cause, "code", name), str(cause) or name)


_WAITS = {
    "connect": "not connected",
    "first_byte": "no first byte of the response",
    "idle": "no more bytes of the response",
    "total": "the response was not complete",
}


def cancelled(timeout: str | None, timeouts: Timeouts) -> CaptureError:
    """The error of a call whose task was cancelled.

    Args:
        timeout: the timeout that fired, named as its setting without ``_s``; None when the run was stopped.
        timeouts: how long each wait may take.
    """
    if timeout is None:
        return CaptureError("cancelled", None, "the run was stopped, and the grace period ended")
    seconds = getattr(timeouts, f"{timeout}_s")
    return CaptureError("timeout", timeout, f"{_WAITS[timeout]} after {seconds:g} s (timeouts.{timeout}_s)")


def http_error(
    status: int, body: object, headers: Mapping[str, str], now: float, api: Api | None = None
) -> CaptureError:
    """The error of a response without a success status.

    Args:
        status: the HTTP status, 300 and above.
        body: the decoded JSON, or the text.
        headers: with lower-case names.
        now: seconds since the epoch, for a Retry-After that is a date.
        api: may identify another status from the message, which then decides the type.
    """
    given = body.get("error", body) if isinstance(body, dict) else body
    code = message = kind = None
    if isinstance(given, dict):
        # Databricks calls it error_code, OpenAI code.
        code, message, kind = (
            _text(given.get(key)) for key in ("code" if given.get("code") else "error_code", "message", "type")
        )
    elif isinstance(given, str):
        message = " ".join(given.split())[:500] or None
    type_ = _type_of(api.refusal_status(status, message or "") if api else status, {code, kind})
    return CaptureError(type_, code or kind, message or f"HTTP {status}", status, retry_after_s(headers, now))


def _type_of(status: int, codes: set[str | None]) -> str:
    """The type of an error, from the HTTP status and the codes that the API gives."""
    if codes & _QUOTA_CODES:
        return "quota"
    if status >= 500:  # noqa: PLR2004 - the standard's class of server errors
        return "server"
    if status in _OF_STATUS:
        return _OF_STATUS[status]
    return "content_policy" if codes & _POLICY_CODES else "invalid_request"


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """How many seconds the server asks to wait, from the first of these that it sends.

    ``retry-after-ms``; ``retry-after``, in seconds or as a date (RFC 9110); the reset of a used-up rate limit.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if not value:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
            except ValueError:
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return used_up_for_s(headers)


_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


def used_up_for_s(headers: Mapping[str, str]) -> float | None:
    """How many seconds until requests and tokens are available again; None while some are left.

    Read from ``x-ratelimit-remaining-*`` and ``x-ratelimit-reset-*``. A reset is in seconds or a duration such as
    ``1s``, ``6m0s`` or ``20ms`` (OpenAI's guide "Rate limits").
    """
    waits = [
        _duration_s(headers.get(f"x-ratelimit-reset-{what}", ""))
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0"
    ]
    return max((wait for wait in waits if wait is not None), default=None)


def _duration_s(text: str) -> float | None:
    try:
        return max(0.0, float(text))
    except ValueError:
        found = _DURATION.fullmatch(text.strip())
    if found is None or not text.strip():
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def conclude(received: Received, failure: CaptureError | None) -> tuple[Status, CaptureError | None]:
    """The status and the error of a call.

    Args:
        received: what had arrived when the call ended.
        failure: what ended the call early: a timeout, a lost connection, an HTTP status; None when the response ended.
    """
    if received.finished or (received.done and received.output):
        return "completed", None
    error = _in_stream(received) or failure or _unfinished(received)
    if received.output:
        lost = error.type == "connection"
        return "interrupted", replace(error, type="stream_interrupted") if lost else error
    return "failed", error


def _in_stream(received: Received) -> CaptureError | None:
    if received.error is not None:
        message = received.error.message or "the stream contained an error"
        return CaptureError(_type_in_stream(received), received.error.code or received.error.type, message, 200)
    if received.protocol_error is not None:
        return CaptureError("protocol", None, received.protocol_error, 200)
    return None


def _type_in_stream(received: Received) -> str:
    """The type of an error event. Before any output it may stand for an HTTP status; after it, the stream broke."""
    codes = [code for code in (received.error.code, received.error.type) if code] if received.error else []
    if not _POLICY_CODES.isdisjoint(codes):
        return "content_policy"
    if received.output:
        return "stream_error"
    if not _QUOTA_CODES.isdisjoint(codes):
        return "quota"
    refused = received.error.client_status if received.error else None
    return "stream_error" if refused is None else _type_of(refused, set(codes))


def _unfinished(received: Received) -> CaptureError:
    if received.done:
        return CaptureError("protocol", None, "the answer ended without any output and without a finish_reason", 200)
    what = "without finish_reason or [DONE]" if received.output else "before any output"
    return CaptureError("stream_interrupted", None, f"the stream ended {what}", 200)


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)
