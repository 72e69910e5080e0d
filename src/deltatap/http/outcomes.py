"""What happens to an outcome: which errors there are, what is tried again, what stops the run, what is owed. Pure.

The design's table stands here once, as :data:`ERRORS`; the engine, the plan and the landing all read it. Knows no
network and no clock: times and random numbers are passed in.
"""

from __future__ import annotations

import email.utils
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from deltatap.model import CaptureError, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltatap.api.base import Api
    from deltatap.model import Received

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


def http_error(
    status: int, body: object, headers: Mapping[str, str], now: float, api: Api | None = None
) -> CaptureError:
    """The error of a response that is not a success.

    Args:
        status: the HTTP status, 300 and above.
        body: the decoded JSON, or the text.
        headers: with lower-case names.
        now: the time in seconds since the epoch, for a Retry-After that is a date.
        api: may know from the message that another status describes the error better.
    """
    given = body.get("error", body) if isinstance(body, dict) else body
    code = message = kind = None
    if isinstance(given, dict):
        # Databricks says error_code where OpenAI says code.
        code, message, kind = (
            _text(given.get(key)) for key in ("code" if given.get("code") else "error_code", "message", "type")
        )
    elif isinstance(given, str):
        message = " ".join(given.split())[:500] or None
    type_ = _type_of(api.refusal_status(status, message or "") if api else status, {code, kind})
    return CaptureError(type_, code or kind, message or f"HTTP {status}", status, retry_after_s(headers, now))


def _type_of(status: int, marks: set[str | None]) -> str:
    """The error's type, by the HTTP status and the API's own words for it."""
    if status >= 500:  # noqa: PLR2004 - the standard's class of server errors
        return "server"
    if status == 429 and marks & _QUOTA_CODES:  # noqa: PLR2004
        return "quota"
    if status in _OF_STATUS:
        return _OF_STATUS[status]
    return "content_policy" if marks & _POLICY_CODES else "invalid_request"


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """How long the server asks to wait: ``retry-after-ms``, else ``retry-after``, seconds or a date (RFC 9110).

    Where it does not say, until what is used up comes back.
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
        if seconds == seconds and seconds != float("inf"):  # noqa: PLR0124 - not NaN
            return max(0.0, seconds)
    return used_up_for_s(headers)


_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


def used_up_for_s(headers: Mapping[str, str]) -> float | None:
    """How long no request or no token is left, by ``x-ratelimit-remaining-*`` and ``-reset-*``; None while some are.

    Resets are durations such as ``1s``, ``6m0s`` or ``20ms`` (OpenAI's guide "Rate limits"), or seconds.
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
    """The status of a call, and its error.

    Args:
        received: what had arrived when the call ended.
        failure: what ended it, when that was not the end of the response: a time-out, a lost connection, an HTTP
        status.
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
        message = received.error.message or "the stream sent an error"
        return CaptureError(_type_in_stream(received), received.error.code or received.error.type, message, 200)
    if received.protocol_error is not None:
        return CaptureError("protocol", None, received.protocol_error, 200)
    return None


def _type_in_stream(received: Received) -> str:
    """An error event instead of any output may say what a status would have said; after output the stream broke off."""
    marks = [mark for mark in (received.error.code, received.error.type) if mark] if received.error else []
    if not _POLICY_CODES.isdisjoint(marks):
        return "content_policy"
    if received.output:
        return "stream_error"
    if not _QUOTA_CODES.isdisjoint(marks):
        return "quota"
    refused = received.error.client_status if received.error else None
    return "stream_error" if refused is None else _type_of(refused, set(marks))


def _unfinished(received: Received) -> CaptureError:
    if received.done:
        return CaptureError("protocol", None, "the answer ended without any output and without a finish_reason", 200)
    what = "without finish_reason and [DONE]" if received.output else "before any output"
    return CaptureError("stream_interrupted", None, f"the stream ended {what}", 200)


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)
