"""How a call ended: its status, and its error translated from an exception, an HTTP status or an error in the stream.

This is the only module that translates errors. Pure: times are passed in. ``model.ERRORS`` defines how each type of
error is handled.
"""

from __future__ import annotations

import email.utils
import math
import re
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx2
import openai

from deltatap.api.refusal import read_refusal
from deltatap.api.values import decode
from deltatap.errors import CredentialError, ProtocolError
from deltatap.http.parser import RefusedError
from deltatap.model import CaptureError, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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
FAILURES: tuple[type[Exception], ...] = (ProtocolError, *_OF_EXCEPTION)

# 498 (a proxy's queue is full) and 529 (overloaded) are other names of 429. 424 means that a server behind the endpoint
# failed, 499 that a proxy lost its client.
_OF_STATUS = {
    401: "authentication",
    402: "quota",
    403: "permission",
    404: "not_found",
    405: "wrong_url",
    408: "server",
    409: "server",
    424: "server",
    425: "server",
    429: "rate_limit",
    498: "rate_limit",
    499: "server",
    529: "rate_limit",
}
_POLICY_CODES = frozenset(
    (
        "content_filter",
        "content_policy_violation",
        "image_content_policy_violation",
        "bio_policy",
        "misalignment_policy_violation",
        "moderation_blocked",
        "responsibleaipolicyviolation",
        "data_inspection_failed",  # Alibaba
        "datainspectionfailed",
        "safety_check_failed",
    )
)
# Fields with which OpenRouter and Azure say why a moderation refused a prompt.
_POLICY_FIELDS = ("flagged_input", "reasons", "content_filter_result", "content_filter_results")
_QUOTA_CODES = frozenset(
    (
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "billing_error",  # Anthropic
        "insufficient_balance",  # DeepSeek
        "insufficient_credits",
        "credit_limit_exceeded",
        "credits_exhausted",
        "spend_limit_exceeded",
        "arrearage",  # Alibaba
        "1008",  # MiniMax
    )
)


def error_of(
    failure: Exception, http_status: int | None, now: float, api: Api | None = None, url: str = ""
) -> CaptureError:
    """Translate one of :data:`FAILURES`.

    Args:
        failure: the exception.
        http_status: of the response that had begun; None when none had.
        now: seconds since the epoch.
        api: the API that was called.
        url: that was called.
    """
    # The openai client's own message is always "Connection error."; its cause says what happened.
    cause = failure.__cause__ if isinstance(failure, openai.APIConnectionError) else failure
    if isinstance(cause, RefusedError):
        return http_error(cause.status, cause.body, cause.headers, now, api=api, url=url)
    if isinstance(failure, ProtocolError):
        return CaptureError("protocol", None, str(failure), http_status)
    type_, code = next(found for kind, found in _OF_EXCEPTION.items() if isinstance(failure, kind))
    cause = cause or failure
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
    status: int, body: bytes, headers: Mapping[str, str], now: float, *, api: Api | None = None, url: str = ""
) -> CaptureError:
    """The error of a response without a success status.

    Args:
        status: the HTTP status, 300 and above.
        body: of the response, or its start.
        headers: with lower-case names.
        now: seconds since the epoch, for a Retry-After that is a date.
        api: may identify another status from the message, which then decides the type.
        url: that was called.
    """
    words = read_refusal(body)
    message = words.message or f"HTTP {status}"
    type_ = _type_of(api.refusal_status(status, message) if api else status, words.code, words.type)
    if type_ in ("permission", "invalid_request") and _names_policy(body):
        type_ = "content_policy"
    if type_ == "wrong_url":
        moved = f", which redirects to {headers['location'][:200]}" if headers.get("location") else ""
        message = f"{message}: {url or 'the URL'} takes no requests{moved}; check endpoint.base_url"
    return CaptureError(type_, words.code or words.type, message, status, retry_after_s(headers, now))


def _type_of(status: int, *marks: str | None) -> str:
    """The type of an error, from the HTTP status and from the code and the type that the server gives."""
    codes = {mark.lower() for mark in marks if mark}
    if codes & _QUOTA_CODES:
        return "quota"
    if status >= 500:  # noqa: PLR2004 - the standard's class of server errors
        return _OF_STATUS.get(status, "server")
    if codes & _POLICY_CODES and status in (400, 403, 422, 451):
        return "content_policy"
    if status < 400:  # noqa: PLR2004 - redirections
        return "wrong_url"
    return _OF_STATUS.get(status, "invalid_request")


def _names_policy(body: bytes) -> bool:
    """Whether an error says which content it refuses, in its details."""
    try:
        value = decode(body)
    except ValueError:
        return False
    for inner in _objects(value):
        if any(inner.get(name) for name in _POLICY_FIELDS) or str(inner.get("code")).lower() in _POLICY_CODES:
            return True
    return False


def _objects(value: Any, levels: int = 4) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - any JSON
    if type(value) is list and levels:
        for item in value:
            yield from _objects(item, levels - 1)
    elif type(value) is dict:
        yield value
        for name in ("error", "innererror", "metadata", "errors") if levels else ():
            yield from _objects(value.get(name), levels - 1)


_FOREVER_S = 1e9
# A reset later than this is a time since the epoch, not a duration: in seconds, or in milliseconds.
_EPOCH_S, _EPOCH_MS = 1e9, 1e12


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """How many seconds the server asks to wait, from the first of these that it sends.

    ``retry-after-ms``; ``retry-after``, in seconds or as a date (RFC 9110); the reset of a used-up rate limit.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        seconds = _number(value)
        wait = _date_s(value, now) if seconds is None else seconds / unit
        if wait is not None:
            return min(max(0.0, wait), _FOREVER_S)
    return used_up_for_s(headers, now)


# The headers of OpenAI's guide "Rate limits", and of Anthropic's "Rate limits", for each limit.
_LIMITS = (
    *((f"x-ratelimit-remaining-{what}", f"x-ratelimit-reset-{what}") for what in ("requests", "tokens")),
    *(
        (f"anthropic-ratelimit-{what}-remaining", f"anthropic-ratelimit-{what}-reset")
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
)
_DURATION = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,12}(?:\.\d+)?)s)?(?:(\d{1,12}(?:\.\d+)?)ms)?"
)
_UNITS_S = (86400.0, 3600.0, 60.0, 1.0, 0.001)


def used_up_for_s(headers: Mapping[str, str], now: float) -> float | None:
    """How many seconds until requests and tokens are available again; None while some are left.

    A reset is in seconds, a duration such as ``1s``, ``6m0s`` or ``20ms``, a time since the epoch, or a date.
    """
    waits = [_reset_s(headers.get(reset, "").strip(), now) for left, reset in _LIMITS if _number(headers.get(left, "")) == 0]
    return max((wait for wait in waits if wait is not None), default=None)


def _reset_s(text: str, now: float) -> float | None:
    seconds = _number(text)
    if seconds is None:
        found = _DURATION.fullmatch(text) if text else None
        if found is None:
            seconds = _date_s(text, now)
        else:
            seconds = sum(float(part or 0) * unit for part, unit in zip(found.groups(), _UNITS_S, strict=True))
    elif seconds >= _EPOCH_MS:
        seconds = seconds / 1000 - now
    elif seconds >= _EPOCH_S:
        seconds -= now
    return None if seconds is None else min(max(0.0, seconds), _FOREVER_S)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _date_s(text: str, now: float) -> float | None:
    """Seconds until a date, of RFC 9110 or of RFC 3339."""
    readers: tuple[Callable[[str], datetime], ...] = (email.utils.parsedate_to_datetime, datetime.fromisoformat)
    for read in readers:
        try:
            return read(text).timestamp() - now
        except (ValueError, TypeError, IndexError, OverflowError, OSError):
            continue
    return None


def conclude(received: Received, failure: CaptureError | None) -> tuple[Status, CaptureError | None]:
    """The status and the error of a call.

    Args:
        received: what had arrived when the call ended.
        failure: what ended the call early: a timeout, a lost connection, an HTTP status; None when the response ended.
    """
    error = _in_stream(received)
    if error is None and (received.finished or (received.done and received.output)):
        return "completed", None
    error = error or failure or _unfinished(received)
    if received.output:
        lost = error.type == "connection"
        return "interrupted", replace(error, type="stream_interrupted") if lost else error
    return "failed", error


def _in_stream(received: Received) -> CaptureError | None:
    """The error that arrived in the answer, or in place of it."""
    error = received.error
    if error is not None:
        message = error.message or "the stream contained an error"
        return CaptureError(_type_in_stream(received), error.code or error.type, message, 200)
    if received.protocol_error is not None and not received.finished:
        return CaptureError("protocol", None, received.protocol_error, 200)
    return None


def _type_in_stream(received: Received) -> str:
    """The type of an error in an answer. Before any output it may stand for an HTTP status."""
    error = received.error
    status = 500 if error is None or error.client_status is None else error.client_status
    marks = () if error is None else (error.code, error.type)
    type_ = _type_of(status, *marks)
    if not _POLICY_CODES.isdisjoint(mark.lower() for mark in marks if mark):
        type_ = "content_policy"
    # After output, the stream has broken off, unless no other request can succeed either.
    keeps = ("content_policy", "quota", "authentication")
    return type_ if type_ in keeps or (not received.output and type_ != "server") else "stream_error"


def _unfinished(received: Received) -> CaptureError:
    if received.done:
        return CaptureError("protocol", None, "the answer ended without any output and without a finish_reason", 200)
    what = "without finish_reason or [DONE]" if received.output else "before any output"
    return CaptureError("stream_interrupted", None, f"the stream ended {what}", 200)
