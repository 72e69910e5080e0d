"""The meaning of codes, types and finish_reasons of errors inside an answer. Pure.

A finish_reason can say that the server failed: `error` (OpenRouter, Mistral, vLLM), `network_error` (Zhipu),
`insufficient_system_resource` (DeepSeek), `abort` (SGLang, vLLM), `cancelled` and `timeout` (TensorRT-LLM),
`malformed_function_call` (Gemini), `malformed_model_output` (Bedrock). `http/outcomes.py` knows the codes of refusals.
"""

from __future__ import annotations

import re

# The statuses of a response whose generation has not ended.
UNFINISHED = ("queued", "in_progress")
# The HTTP status that an error corresponds to, by its code or type in lower case.
STATUSES = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "ratelimiterror": 429,
    "too_many_requests": 429,
    "request_limit_exceeded": 429,
    "resource_exhausted": 429,
    "throttling": 429,
    "throttling_error": 429,
    "throttlingexception": 429,
    "overloaded_error": 529,
    "invalid_prompt": 400,
    "invalid_request_error": 400,
    "invalid_argument": 400,
    "invalidparameter": 400,
    "bad_request": 400,
    "badrequesterror": 400,
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
    "invalid_api_key": 401,
    "invalidapikey": 401,
    "authentication_error": 401,
    "unauthenticated": 401,
    "billing_error": 402,
    "insufficient_balance": 402,
    "arrearage": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "not_found": 404,
    # MiniMax and Zhipu use their own numbers.
    "1002": 429,
    "1004": 401,
    "1008": 402,
    "1026": 400,
    "1039": 400,
    "1113": 402,
    "1301": 400,
    "1302": 429,
    "1303": 429,
    "1305": 429,
    "2013": 400,
    "2049": 401,
}

# A reason such as error_toxic names a content filter, which is an end.
_FAILURE = re.compile(
    "error(?!_toxic)|abort|fail|time[d_ ]*out|cancel|exception|crash|malformed|unexpected|insufficient_system_resource"
    "|overload|unavailable|disconnect|preempted|evicted|killed|shutdown|out_of_memory"
)


def names_failure(reason: str) -> bool:
    """Whether a finish_reason says that the server failed."""
    return _FAILURE.search(reason.lower()) is not None
