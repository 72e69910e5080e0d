"""Usage in chat completions, as servers send it."""

from __future__ import annotations

from typing import Any

import pytest

from deltatap.model import Usage
from tests.unit.api.chat_events import HI, beside, delta, receive, receive_whole


def used(*counts: Any, **more: Any) -> dict[str, Any]:
    return {
        "choices": [],
        "usage": dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), counts, strict=False)) | more,
    }


USAGES: dict[str, tuple[list[Any], Usage | None, bool]] = {
    "at the end": ([HI, used(9, 2, 11)], Usage(9, 2, 11), True),
    "none": ([HI], None, True),
    "beside the last output": ([{**HI, "usage": {"prompt_tokens": 9, "completion_tokens": 2}}], Usage(9, 2), True),
    "the last of several": ([HI, used(9, 1, 10), HI, used(9, 2, 11)], Usage(9, 2, 11), True),
    "output after it": ([HI, used(9, 1, 10), HI], Usage(9, 1, 10), False),
    "only a finish after it": ([HI, used(9, 1, 10), delta("stop")], Usage(9, 1, 10), True),
    "zeros after a count": ([HI, used(9, 2, 11), used(0, 0, 0)], Usage(9, 2, 11), True),
    "no output tokens after a count": ([HI, used(9, 2, 11), used(9, 0, 9)], Usage(9, 2, 11), True),
    "nothing after a count": ([HI, used(9, 2, 11), used()], Usage(9, 2, 11), True),
    "zeros after an input": ([used(9, 0, 9), HI, used(0, 0, 0)], Usage(9, 0, 9), False),
    "zeros before a count": ([used(0, 0, 0), HI, used(9, 2, 11)], Usage(9, 2, 11), True),
    "only zeros": ([HI, used(0, 0, 0)], Usage(0, 0, 0), False),
    "zeros and no output": ([used(9, 0, 9), delta("stop")], Usage(9, 0, 9), True),
    "null": ([HI, {"choices": [], "usage": None}], None, True),
    "a list": ([HI, {"choices": [], "usage": [1]}], None, True),
    "in a choice": ([HI, beside(finish_reason="stop", usage={"prompt_tokens": 9, "completion_tokens": 2})], Usage(9, 2), True),
    "in a choice without a reason": ([HI, beside(usage={"prompt_tokens": 9, "completion_tokens": 2})], Usage(9, 2), True),
    "in a delta": ([HI, delta("stop", usage={"prompt_tokens": 9, "completion_tokens": 2})], Usage(9, 2), True),
    "groq": ([HI, {**delta("stop"), "x_groq": {"id": "r", "usage": {"prompt_tokens": 9, "completion_tokens": 2}}}], Usage(9, 2), True),
    "groq twice": ([HI, {**delta("stop"), "usage": {"prompt_tokens": 9, "completion_tokens": 2}, "x_groq": {"usage": None}}], Usage(9, 2), True),
    "cached tokens outside": ([HI, used(99, 2, 101, cached_tokens=90)], Usage(99, 2, 101, 90), True),
    "deepseek": ([HI, used(99, 2, 101, prompt_cache_hit_tokens=90)], Usage(99, 2, 101, 90), True),
    "cached tokens twice": ([HI, used(99, 2, 101, cached_tokens=90, prompt_tokens_details={"cached_tokens": 0})], Usage(99, 2, 101, 90), True),
    "xai": ([HI, used(32, 9, 135, completion_tokens_details={"reasoning_tokens": 94})], Usage(32, 103, 135, None, 94), True),
    "portkey": ([HI, used(50, 503, 100553, cache_read_input_tokens=99000, cache_creation_input_tokens=1000)], Usage(100050, 503, 100553, 99000, cache_write_tokens=1000), True),
    "databricks": ([HI, used(99, 2, 101, cache_read_input_tokens=90, cache_creation_input_tokens=0)], Usage(99, 2, 101, 90, cache_write_tokens=0), True),
    "audio only in the total": ([HI, used(3, 41, 419, prompt_tokens_details={"audio_tokens": 375})], Usage(378, 41, 419, audio_input_tokens=375), True),
    "xai with a cache": ([HI, used(32, 9, 135, prompt_tokens_details={"cached_tokens": 8}, completion_tokens_details={"reasoning_tokens": 94})], Usage(32, 103, 135, 8, 94), True),
    "perplexity": ([HI, used(33, 7, 40, citation_tokens=2, reasoning_tokens=73)], Usage(33, 80, 40, None, 73, citation_tokens=2), True),
    "perplexity, little reasoning": ([HI, used(33, 7, 40, citation_tokens=2, reasoning_tokens=5)], Usage(33, 12, 40, None, 5, citation_tokens=2), True),
    "perplexity, reasoning in the total": ([HI, used(33, 7, 45, citation_tokens=2, reasoning_tokens=5)], Usage(33, 12, 45, None, 5, citation_tokens=2), True),
    "reasoning beyond the total": ([HI, used(9, 2, 11, completion_tokens_details={"reasoning_tokens": 73})], Usage(9, 2, 11, None, 73), True),
    "reasoning apart, without a total": ([HI, used(9, 2, None, completion_tokens_details={"reasoning_tokens": 73})], Usage(9, 75, None, None, 73), True),
    "the total is too small": ([HI, used(9, 5, 9)], Usage(9, 5, 9), True),
    "the total is less than the input": ([HI, used(9, None, 5)], Usage(9, None, 5), True),
    "no output tokens": ([HI, used(9, None, 20)], Usage(9, 11, 20), True),
    "only a total": ([HI, used(None, None, 20)], Usage(None, None, 20), True),
    "floats": ([HI, used(9.0, 2.0, 11.0)], Usage(9, 2, 11), True),
    "no numbers of tokens": ([HI, used(9.5, -1, True)], Usage(), True),
    "text": ([HI, used("9", "2", "11")], Usage(), True),
    "without end": ([HI, used(10**9 + 1, float("inf"), float("nan"))], Usage(), True),
    "2**63": ([HI, used(2**63 - 1, 2**64, 1)], Usage(None, None, 1), True),
    "details that are no objects": ([HI, used(9, 2, 11, prompt_tokens_details=[1], completion_tokens_details="x")], Usage(9, 2, 11), True),
}  # fmt: skip


@pytest.mark.parametrize("name", USAGES)
def test_usage(name: str) -> None:
    events, usage, final = USAGES[name]
    received = receive(*events)
    assert (received.usage, received.usage_final) == (usage, final)


def of_choice(index: int, tokens: int | None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    usage = {} if tokens is None else {"usage": {"prompt_tokens": 9, "completion_tokens": tokens}}
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish}], **usage}


@pytest.mark.parametrize(
    ("events", "final"),
    [
        ([of_choice(0, 50, content="a"), of_choice(1, 5, content="b")], False),
        ([of_choice(0, 50, content="a"), of_choice(1, 5, content="b"), used(9, 55, 64)], True),
        ([of_choice(0, None, "stop", content="a"), of_choice(1, 55, "stop", content="b")], True),
        ([of_choice(0, 50, content="a")], True),
    ],
)
def test_the_usage_of_one_of_several_choices_is_not_that_of_the_call(events: list[Any], *, final: bool) -> None:
    assert receive(*events).usage_final is final


def test_a_whole_answer_with_an_error_and_without_choices_keeps_its_usage() -> None:
    received = receive_whole(
        {"id": "r", "model": "m", "error": {"message": "x", "code": 500}, **used(10, 5, 15), "choices": None}
    )
    assert received.error is not None
    assert (received.usage, received.response_id, received.response_model) == (Usage(10, 5, 15), "r", "m")
