"""How a call ended: its status, and its error translated from an exception, an HTTP status or an error in the stream.

This is the only module that translates errors. Pure: times are passed in. ``model.ERRORS`` defines how each type of
error is handled.
"""

from __future__ import annotations

import email.utils
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx2

from deltatap.api.refusal import read_refusal
from deltatap.api.values import bounded, decode
from deltatap.errors import CredentialError, ProtocolError
from deltatap.http.parser import RefusedError
from deltatap.model import CaptureError, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deltatap.config import Timeouts
    from deltatap.model import Received, StreamError

# Our type and code for exceptions that end a call before the response has ended. Without a code, the name of the cause
# is used.
_OF_EXCEPTION: Mapping[type[Exception], tuple[str, str | None]] = {
    CredentialError: ("connection", "credential"),
    httpx2.HTTPError: ("connection", None),
    OSError: ("connection", None),
}
FAILURES: tuple[type[Exception], ...] = (ProtocolError, *_OF_EXCEPTION)

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
    498: "rate_limit",  # Groq: no flex capacity
    499: "server",
    529: "rate_limit",  # Anthropic: overloaded
}
# In lower case. The first group is OpenAI's and Azure's.
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
    )
)
# In lower case. The first group is OpenAI's, DeepSeek's (402), Anthropic's and Alibaba's. MiniMax 1008 and Zhipu 1113
# have numbers.
_QUOTA_CODES = frozenset(
    (
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "insufficient_balance",
        "billing_error",
        "arrearage",
        "1008",
        "1113",
        "budget_exceeded",  # LiteLLM: 400 or 429
        "exceeded_current_quota_error",  # Moonshot: 429
        "precondition_failed",  # Fireworks, 412: the account reached its spending limit or is suspended
    )
)
_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
# In lower case. Gemini refuses a bad key with 400, INVALID_ARGUMENT and one of the first two as the reason.
_KEY_CODES = frozenset(("api_key_invalid", "api_key_expired", "invalid_api_key", "invalidapikey"))
# What a gateway puts before the provider's message: LiteLLM an exception, OpenRouter a sentence. Both can also quote
# the provider's JSON.
_QUOTING = (
    r"(?:litellm\.\w{1,40}: )?(?:\w{1,40}Exception[\w ]{0,40} - |Provider returned error: )?"
    r"""(?:(?:b')?\[?\s*\{[^][{}]*(?:\{[^][{}]*)?"(?:message|error)":\s*")?"""
)
# The type of an error that only its message tells from others with the same status. The start of the message is
# compared, because a message can quote the prompt.
_OF_MESSAGE: Mapping[int, tuple[tuple[str, re.Pattern[str]], ...]] = {
    status: tuple((type_, re.compile(f"{_QUOTING}(?:{start})")) for type_, start in rules)
    for status, rules in {
        400: (
            # Anthropic, *Errors*.
            ("quota", "Your credit balance is too low|You have reached your specified API usage limits"),
            # LiteLLM behind another LiteLLM, which drops the code: github.com/BerriAI/litellm, issue 14144.
            ("quota", "Budget has been exceeded!"),
            # Gemini has one code, FAILED_PRECONDITION, for these and for a file that is not ready:
            # google-gemini/gemini-cli, issue 24641; expectedparrot/edsl, issue 1907.
            ("quota", "Gemini API free tier is not available"),
            ("permission", "User location is not supported"),
            # Gemini, native and OpenAI-compatible: google-gemini/gemini-cli, issue 25198; NVIDIA/NemoClaw, issue 2093.
            ("authentication", "API [Kk]ey (?:not valid|not found|expired)"),
            ("authentication", "(?:Missing or invalid|Missing|Invalid) Authorization header"),
            # xAI: github.com/openai/codex, issue 1352; escaped in i-am-bee/beeai-framework, issue 447.
            ("authentication", "Incorrect(?: |%20)API(?: |%20)key(?: |%20)provided"),
        ),
        # xAI: github.com/UKGovernmentBEIS/inspect_ai, pull request 2267.
        403: (("content_policy", r"Content violates usage guidelines|.*Failed check: SAFETY_CHECK_TYPE_\w+\W*$"),),
    }.items()
}
# OpenAI: a request above the limit per minute can never pass. Otherwise "Used" stands between the two numbers.
_TOO_LARGE = re.compile(r"\bLimit (\d+), Requested (\d+)")
_REDIRECTS = range(300, 400)
_POLICY_STATUSES = (400, 403, 422, 451)
_URL_CHARS = 200
_LONGEST_S = 10.0**9
# A reset above the first number is a time since the epoch in seconds; above the second, in milliseconds.
_EPOCH_S, _EPOCH_MS = 10.0**9, 10.0**11
_SUCCESS_WAIT_S = 60.0
# How many parts of a repeated header are read, so that a long one cannot hold up other calls.
_REPEATS = 8


def error_of(failure: Exception, http_status: int | None, now: float) -> CaptureError:
    """Translate one of :data:`FAILURES`.

    Args:
        failure: the exception.
        http_status: of the response that had begun; None when none had.
        now: seconds since the epoch.
    """
    if isinstance(failure, RefusedError):
        return http_error(failure.status, failure.body, failure.headers, now, url=failure.url)
    if isinstance(failure, ProtocolError):
        return CaptureError("protocol", None, str(failure), http_status)
    type_, code = next(found for kind, found in _OF_EXCEPTION.items() if isinstance(failure, kind))
    name = type(failure).__name__
    return CaptureError(type_, code or getattr(failure, "code", name), str(failure) or name)


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


def http_error(status: int, body: bytes, headers: Mapping[str, str], now: float, *, url: str = "") -> CaptureError:
    """The error of a response without a success status.

    Args:
        status: the HTTP status, 300 and above.
        body: as much of it as arrived.
        headers: with lower-case names.
        now: seconds since the epoch, for a Retry-After that is a date.
        url: that was called.
    """
    words = read_refusal(body)
    codes = {code for code in (words.code, words.type) if code} | _inner_codes(body)
    message = words.message or f"HTTP {status}"
    type_ = _type_of(status, codes, message)
    if type_ == "permission" and _moderated(body):
        type_ = "content_policy"
    if type_ == "wrong_url":
        location = bounded(" ".join(headers.get("location", "").split()), _URL_CHARS)
        leads = f" and points to {location}" if location else ""
        called = f"{bounded(url, _URL_CHARS)} answered" if url else "the server answered"
        said = f": {words.message}" if words.message else ""
        message = f"{called} HTTP {status}{leads}; endpoint.base_url is probably wrong{said}"
    return CaptureError(type_, words.code or words.type, message, status, retry_after_s(headers, now))


def _type_of(status: int, codes: set[str], message: str) -> str:
    """The type of an error, from the HTTP status, and from the codes and the message that the API gives."""
    lower = {code.lower() for code in codes}
    if lower & _QUOTA_CODES:
        return "quota"
    if lower & _KEY_CODES:
        return "authentication"
    if status in _REDIRECTS:
        return "wrong_url"
    if lower & _POLICY_CODES and status in _POLICY_STATUSES:
        return "content_policy"
    others = "server" if status >= 500 else "invalid_request"  # noqa: PLR2004 - the standard's class of server errors
    return _of_message(status, message) or _OF_STATUS.get(status, others)


def _of_message(status: int, message: str) -> str | None:
    """The type of an error that only its message shows; None for any other."""
    large = _TOO_LARGE.search(message) if status == 429 else None  # noqa: PLR2004 - too many requests
    if large is not None and int(large[2]) > int(large[1]):
        return "invalid_request"
    return next((type_ for type_, start in _OF_MESSAGE.get(status, ()) if start.match(message)), None)


def _inner(body: bytes) -> dict[str, object]:
    """The error object of a body that is a JSON object, or Gemini's list of one."""
    try:
        value = decode(body)
    except ValueError:
        return {}
    if type(value) is list and value:
        value = value[0]
    error = value.get("error", value) if type(value) is dict else None
    return error if type(error) is dict else {}


def _inner_codes(body: bytes) -> set[str]:
    """The code of Azure's inner error, and the reason of Google's ErrorInfo."""
    error = _inner(body)
    inner, details = error.get("innererror"), error.get("details")
    codes = [inner.get("code")] if type(inner) is dict else []
    infos = [detail for detail in details if type(detail) is dict] if type(details) is list else []
    codes += [info.get("reason") for info in infos if info.get("@type") == _ERROR_INFO]
    return {code for code in codes if type(code) is str}


def _moderated(body: bytes) -> bool:
    """Whether a refusal has OpenRouter's moderation metadata."""
    metadata = _inner(body).get("metadata")
    return type(metadata) is dict and bool(metadata.get("reasons") or metadata.get("flagged_input"))


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """How many seconds the server asks to wait, from the first of these headers that it sends.

    ``retry-after-ms``; ``retry-after``, in seconds or as a date (RFC 9110), or in a form of a reset; the same two as
    LiteLLM passes them on; the reset of a used-up rate limit.
    """
    for gateway in ("", "llm_provider-"):  # github.com/BerriAI/litellm, issue 21553
        milliseconds = _longest(headers.get(f"{gateway}retry-after-ms", ""), _number)
        if milliseconds is not None:
            return _bounded(milliseconds / 1000)
        wait = _longest(headers.get(f"{gateway}retry-after", ""), lambda text: _duration_s(text, now))
        if wait is not None:
            return _bounded(wait)
    return _reset_s(headers, now)


def _longest(text: str, parse: Callable[[str], float | None]) -> float | None:
    """The value of a header, or the largest value if the header was sent several times. A date has a comma, too."""
    whole = parse(text.strip())
    if whole is not None:
        return whole
    values = (parse(part.strip()) for part in text.split(",", _REPEATS))
    return max((value for value in values if value is not None), default=None)


_DURATION = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?"
    r"(?:(\d{1,12}(?:\.\d{1,12})?)s)?(?:(\d{1,12}(?:\.\d{1,12})?)ms)?"
)
# Anthropic's names have their own prefix, and their resets are RFC 3339 dates.
_LIMITS = (
    *(("x-ratelimit-remaining-" + what, "x-ratelimit-reset-" + what) for what in ("requests", "tokens")),
    *(
        (f"anthropic-ratelimit-{what}-remaining", f"anthropic-ratelimit-{what}-reset")
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),  # OpenRouter
)


def used_up_for_s(headers: Mapping[str, str], now: float) -> float | None:
    """How many seconds new starts wait after a response, at most 60; None while requests and tokens are left."""
    wait = _reset_s(headers, now)
    return None if wait is None else min(wait, _SUCCESS_WAIT_S)


def _reset_s(headers: Mapping[str, str], now: float) -> float | None:
    """How many seconds until requests and tokens are available again; None while some are left.

    A reset is in seconds, a duration such as ``6m0s`` or ``20ms`` (OpenAI's guide "Rate limits"), a date, or a time in
    seconds or milliseconds since the epoch.
    """
    waits = [
        _duration_s(headers.get(reset, "").strip(), now)
        for remaining, reset in _LIMITS
        if _number(headers.get(remaining, "").strip()) == 0
    ]
    return max((_bounded(wait) for wait in waits if wait is not None), default=None)


def _duration_s(text: str, now: float) -> float | None:
    number = _number(text)
    if number is not None:
        if number >= _EPOCH_MS:
            return number / 1000 - now
        return number - now if number >= _EPOCH_S else number
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        return _date_s(text, now)
    days, hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _date_s(text: str, now: float) -> float | None:
    """How many seconds until an HTTP date or an RFC 3339 date. A date without a zone is in UTC."""
    for parse in (email.utils.parsedate_to_datetime, datetime.fromisoformat):
        try:
            date = parse(text)
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return None


def _bounded(seconds: float) -> float:
    return min(max(0.0, seconds), _LONGEST_S)


def conclude(received: Received, failure: CaptureError | None) -> tuple[Status, CaptureError | None]:
    """The status and the error of a call.

    Args:
        received: the part of the answer that arrived before the call ended.
        failure: what ended the call early: a timeout, a lost connection, an HTTP status; None when the response ended.
    """
    wrong = received.error is not None or received.protocol_error is not None
    if not wrong and (received.finished or (received.done and received.output)):
        return "completed", None
    error = _in_stream(received) or failure or _unfinished(received)
    if received.output:
        lost = error.type == "connection"
        return "interrupted", replace(error, type="stream_interrupted") if lost else error
    return "failed", error


def _in_stream(received: Received) -> CaptureError | None:
    if received.error is not None:
        mark = received.error.code or received.error.type
        message = received.error.message or f"the stream contained {f'the error {mark}' if mark else 'an error'}"
        type_ = _type_in_stream(received.error, output=received.output)
        return CaptureError(type_, received.error.code or received.error.type, message, 200)
    if received.protocol_error is not None:
        return CaptureError("protocol", None, received.protocol_error, 200)
    return None


def _type_in_stream(error: StreamError, *, output: bool) -> str:
    """The type of an error in an answer. Before any output it may stand for an HTTP status; after it, the stream broke.

    Errors of quota, key and content policy keep their type even after output, since the next call would fail in the
    same way.
    """
    codes = {code for code in (error.code, error.type) if code}
    lower = {code.lower() for code in codes}
    if lower & _QUOTA_CODES:
        return "quota"
    if lower & _POLICY_CODES:
        return "content_policy"
    if error.client_status is None:
        return "stream_error"
    type_ = _type_of(error.client_status, codes, error.message or "")
    return type_ if not output or type_ in ("quota", "authentication", "content_policy") else "stream_error"


def _unfinished(received: Received) -> CaptureError:
    if received.done:
        return CaptureError("protocol", None, "the answer ended without any output and without a finish_reason", 200)
    what = "without finish_reason or [DONE]" if received.output else "before any output"
    return CaptureError("stream_interrupted", None, f"the stream ended {what}", 200)
