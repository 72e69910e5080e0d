"""Refuses calls: the answer of each refusal, which of them a fault or a body causes, and the limits per minute.

Leaves the form of an error to the API's module, and the names of the refusals to `faults.py`.
"""

from __future__ import annotations

import math
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from deltatap.api.frames import openai_error
from deltatap.simulator.faults import REFUSALS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltatap.api.base import Api
    from deltatap.simulator.faults import Fault
    from deltatap.simulator.record import Record

_STATUS_LIMITED = 429


def refusal(
    api: Api | None,
    name: str,
    message: str | None = None,
    *,
    argument: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer that refuses a call.

    Args:
        api: gives the error its form; None: the form of OpenAI's other endpoints.
        name: of the refusal.
        message: None: the usual one.
        argument: of the fault: the seconds of a Retry-After, or `date` for an HTTP date.
        headers: None: those that the refusal usually has.
    """
    status, kind, code, usual = REFUSALS[name]
    if headers is None and status == _STATUS_LIMITED and name != "quota":
        date = formatdate(time.time() + 1, usegmt=True)
        headers = {
            "retry-after": date if argument == "date" else argument or "1",
            "x-ratelimit-remaining-requests": "0",
        }
    said = message or usual
    body = openai_error(kind, code, said) if api is None else api.error_body(status, kind, code, said)
    return JSONResponse(body, status, headers)


def not_found(api: Api, response_id: str) -> Response:
    """The answer to a call that names a response which is not kept."""
    message = f"Response with id '{response_id}' not found."
    return JSONResponse(api.error_body(404, "invalid_request_error", None, message), 404)


def of_fault(api: Api | None, fault: Fault) -> Response | None:
    """The refusal that a fault names, if it names one."""
    names = (name for name in fault.names if name in REFUSALS)
    return next((refusal(api, name, argument=fault.argument) for name in names), None)


def of_call(api: Api, body: Mapping[str, Any], fault: Fault, limits: Mapping[str, str]) -> Response | None:
    """The refusal that the body, the fault or the limits cause. None if the call gets an answer."""
    if api.resume and body.get("background") and body.get("store") is False:
        return refusal(api, "400", "Background mode requires store=true.")
    if "no_stream_options" in fault and "stream_options" in body:
        return refusal(api, "400", "Unrecognized request argument supplied: stream_options")
    if named := of_fault(api, fault):
        return named
    return refusal(api, "429", headers=limits) if "retry-after" in limits else None


def limit_headers(
    record: Record, started: float, tokens: int, *, requests_per_minute: float | None, tokens_per_minute: float | None
) -> dict[str, str]:
    """The headers with the remaining requests and tokens. If a call exceeds a limit, also a Retry-After.

    Args:
        record: counts the calls. A call within the limits is added.
        started: when the call started, in monotonic seconds.
        tokens: of the call.
        requests_per_minute: None: no limit.
        tokens_per_minute: None: no limit.
    """
    headers: dict[str, str] = {}
    for what, limit, amount in (("requests", requests_per_minute, 1), ("tokens", tokens_per_minute, tokens)):
        if limit is None:
            continue
        used, free_in = record.within_a_minute(started, what)
        remaining = math.floor(limit - used - amount)
        headers |= {
            f"x-ratelimit-limit-{what}": f"{limit:g}",
            f"x-ratelimit-remaining-{what}": str(max(0, remaining)),
            f"x-ratelimit-reset-{what}": f"{free_in:.3f}s",
        }
        if remaining < 0 and used:
            headers["retry-after"] = f"{max(free_in, 0.05):.3f}"
    if "retry-after" not in headers:
        record.accept(started, tokens)
    return headers
