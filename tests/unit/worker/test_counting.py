from __future__ import annotations

import json
from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from deltatap.api.chat import ChatAccumulator
from deltatap.model import Call, Capture, CaptureError, Choice, Job, Usage
from deltatap.prices import Prices
from deltatap.prompts import build_request, wire
from deltatap.rates import Price
from deltatap.worker import billing, counting
from deltatap.worker.counting import Context, counted

if TYPE_CHECKING:
    from deltatap.model import Received

PRICE = Price(model="gpt-4o-mini", input=1, cached_input=0.5, output=10, date=date(2026, 1, 1), source="here")
CONTEXT = Context("run-1", "sim", "chat", "host/3", "o200k_base", Prices((PRICE,)))
REQUEST = build_request({"prompt": "Hi"}, api="chat", model="gpt-4o-mini", defaults={}, keep=())  # 8 tokens
LOST = CaptureError("stream_interrupted", "ReadError", "gone", 200)
DOWN = CaptureError("server", None, "Oh", 503, 2.0)


def received(*texts: str, usage: dict[str, Any] | None = None, finish: str | None = "stop") -> Received:
    """A stream of these texts, 10 ms apart, from 100 ms on."""
    accumulator = ChatAccumulator()
    events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    if finish:
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if usage:
        events.append({"choices": [], "usage": usage})
    for at, event in enumerate(events):
        accumulator.add(json.dumps(event).encode(), 100.0 + 10 * at, at)
    return accumulator.finish()


def call(got: Received, status: Any = "completed", error: CaptureError | None = None) -> Call:
    at = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
    return Call(at, at + 0.2, 5.0, 1.5, 90.0, 150.0, "req_1", got, status, error, 200)


def test_an_echoed_prompt_is_not_output() -> None:
    echoing = Context("run-1", "sim", "completions", "host/3", "o200k_base", Prices((PRICE,)))
    given = {"prompt": "Hi there", "params": '{"echo": true}'}
    request = build_request(given, api="completions", model="gpt-4o-mini", defaults={}, keep=())
    sent = wire(request.body or "", api="completions", mode="stream", include_usage=True)
    job = Job(request, sent, "stream", 7, [], 4.0, calls=[call(received("Hi there", " friend"))])
    assert counted(Capture(job), echoing).output_tokens == 1


TOOLS = [
    pytest.param('[{"function": {"name": "f", "arguments": "{}"}}]', "f{}", id="usual"),
    pytest.param('[{"function": {"name": "f", "arguments": {"a": 1}}}]', 'f{"a": 1}', id="arguments as an object"),
    pytest.param('[{"function": {"name": null, "arguments": null}}]', "", id="nothing"),
    pytest.param('[{"function": "f()"}]', "f()", id="a function that is text"),
    pytest.param('[{"function": ["f", 1]}]', '["f", 1]', id="a function that is a list"),
    pytest.param('[{"function": null}]', "", id="no function"),
    pytest.param('[{"type": "web_search_call"}]', "", id="another kind of call"),
    pytest.param('["f", 5, null]', "f5", id="calls that are no objects"),
    pytest.param('{"function": {"name": "f"}}', '{"function": {"name": "f"}}', id="no list"),
    pytest.param('[{"function"', '[{"function"', id="no JSON"),
    pytest.param("[" * 100_000, "[" * 100_000, id="too deep"),
]


@pytest.mark.parametrize(("tools", "counted_as"), TOOLS)
def test_tool_calls_of_any_shape_are_counted(tools: str, counted_as: str) -> None:
    texts = [text for _, text in counting._texts(Choice(0, "", tool_calls=tools))]
    assert "".join(texts) == counted_as


def bill(usage: Usage | None, counted: int, *, output: bool = True, final: bool = True) -> tuple[int, int, str | None]:
    got = SimpleNamespace(usage=usage, output=output, usage_final=final, choices=())
    made = billing.bill(cast("Call", SimpleNamespace(received=got)), 8, counted, PRICE)
    return made.input_tokens, made.output_tokens, made.basis


@pytest.mark.parametrize(
    ("usage", "counted", "options", "expected"),
    [
        (None, 0, {"output": False}, (0, 0, None)),
        (None, 20, {}, (8, 20, "tiktoken")),
        (Usage(10, 30), 20, {}, (10, 30, "reported")),
        (Usage(10, 15), 20, {}, (10, 15, "reported")),
        (Usage(10, 15), 20, {"final": False}, (10, 20, "mixed")),
        (Usage(10, 30), 20, {"final": False}, (10, 30, "reported")),
        (Usage(10, 0), 20, {}, (10, 20, "mixed")),
        (Usage(None, 0), 20, {}, (8, 20, "tiktoken")),
        (Usage(10, 0), 0, {"output": False}, (10, 0, "reported")),
        (Usage(10, 7), 0, {"output": False}, (10, 7, "reported")),
        (Usage(0, 0), 20, {}, (8, 20, "tiktoken")),
        (Usage(0, 25), 20, {}, (8, 25, "mixed")),
        (Usage(0, 0), 0, {"output": False}, (0, 0, None)),
        (Usage(None, None), 0, {"output": False}, (0, 0, None)),
    ],
)
def test_a_bill_is_never_less_than_what_arrived(
    usage: Usage | None, counted: int, options: dict[str, bool], expected: tuple[int, int, str | None]
) -> None:
    assert bill(usage, counted, **options) == expected
