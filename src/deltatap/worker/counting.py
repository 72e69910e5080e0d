"""Counts the tokens of a finished capture and sums the costs of its calls.

Knows which texts are output. Leaves counting to ``tokens.py`` and ``api/``, the tokens of each chunk to
``chunk_tokens.py``, bills to ``billing.py``, and the columns to ``rows.py``. A capture takes milliseconds, so run this
off the event loop.

No answer can raise here. A capture that cannot be counted gets the error ``internal`` and keeps its output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from deltatap.api.input_tokens import InputTokens
from deltatap.api.registry import specification
from deltatap.http.faults import internal_error
from deltatap.model import CONTENT, INTERNAL_COMPLETE, INTERNAL_CUT, REASONING, REFUSAL, TOOL_CALLS
from deltatap.tokens import known_encoding, token_ends
from deltatap.worker.billing import Bill, Cost, bill, price_of, total
from deltatap.worker.chunk_tokens import chunk_tokens
from deltatap.worker.jobs import input_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from deltatap.model import Call, Capture, CaptureError, Choice, Job, Status
    from deltatap.prices import Prices
    from deltatap.rates import Price


@dataclass(frozen=True, slots=True)
class Context:
    """The values that all rows of a worker share.

    Attributes:
        run_id: the run; empty for the public UDF.
        endpoint: the endpoint's name.
        api: the API's name.
        worker: host, and part or partition.
        fallback_encoding: for models that tiktoken does not know.
        prices: USD per million tokens.
    """

    run_id: str
    endpoint: str
    api: str
    worker: str
    fallback_encoding: str
    prices: Prices


@dataclass(frozen=True, slots=True)
class Output:
    """The output tokens of one call.

    Attributes:
        tokens: as tiktoken counts them.
        by_chunk: of each chunk.
        source: where the counts of the chunks come from: ``usage``, ``logprobs`` or ``tiktoken``; None without output
            in chunks.
    """

    tokens: int
    by_chunk: np.ndarray[Any, Any]
    source: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A capture with its counted tokens and costs; `outputs` and `bills` have one entry per call.

    `fault` says why deltatap could not count or store the capture as it is. A row that could not be counted has no
    outputs.
    """

    capture: Capture
    encoding: str
    input: InputTokens
    outputs: tuple[Output, ...]
    bills: tuple[Bill, ...]
    cost: Cost = field(default_factory=Cost)
    fault: CaptureError | None = None

    @property
    def last(self) -> Call | None:
        """The call that the row describes; None when there was none."""
        calls = self.capture.job.calls
        return calls[-1] if calls else None

    @property
    def output_tokens(self) -> int:
        """The output tokens of the last call, as tiktoken counts them."""
        return self.outputs[-1].tokens if self.outputs else 0

    @property
    def status(self) -> Status:
        """The row's status. An answer that had ended cleanly, but could not be handled, is interrupted."""
        if self.capture.reused is not None:
            return "interrupted" if self.fault else "completed"
        if self.last is None:
            return "failed"
        return "interrupted" if self.fault and self.last.status == "completed" else self.last.status

    @property
    def error(self) -> CaptureError | None:
        """The row's error. A call that failed keeps its own error."""
        if self.capture.reused is not None:
            return self.fault
        if self.last is None:
            return self.capture.error
        return self.last.error if self.fault is None or self.last.status == "failed" else self.fault

    def with_fault(self, error: BaseException) -> Row:
        """The row with an ``internal`` error. Raises the exception again if it does not belong to this row."""
        code = INTERNAL_COMPLETE if self.status == "completed" else INTERNAL_CUT
        request_id = self.capture.job.request.request_id
        return replace(self, fault=internal_error(error, request_id, code, "handle the answer"))


def counted(capture: Capture, context: Context) -> Row:
    """Count a capture's tokens and costs; takes CPU time for every token, so call it off the event loop."""
    try:
        return _counted(capture, context)
    except BaseException as error:  # noqa: BLE001 - raised again if it is not this row's trouble
        bills = tuple(Bill(0, 0, None, None) for _ in capture.job.calls)
        uncounted = Row(capture, context.fallback_encoding, InputTokens(0, approximate=True), (), bills)
        return uncounted.with_fault(error)


def _counted(capture: Capture, context: Context) -> Row:
    job = capture.job
    api = specification(context.api)
    asked = job.request.model
    if capture.reused is not None:
        answered = capture.reused.job.calls[-1].received.response_model
        priced = context.prices.find(asked, answered) is not None
        cost = total((), job.earlier, priced=priced)
        return Row(capture, context.fallback_encoding, InputTokens(), (), (), cost)
    answered = next(
        (call.received.response_model for call in reversed(job.calls) if call.received.response_model), None
    )
    # The owner of a deployment or a serving endpoint chooses its name; the response names the model behind it.
    model = next((name for name in (asked, answered) if name and known_encoding(name)), None)
    encoding = (known_encoding(model) if model else None) or context.fallback_encoding
    inputs = InputTokens() if job.wire is None else input_tokens(job.wire.body, api, model or asked or "", encoding)
    inputs += InputTokens(0, approximate=job.wire is not None and model is None)
    echo = None if job.wire is None else api.echo(json.loads(job.wire.body))
    outputs = tuple(_output(call, encoding, echo) for call in job.calls)
    bills = tuple(
        bill(call, inputs.tokens, output.tokens, _price(call, job, answered, context.prices))
        for call, output in zip(job.calls, outputs, strict=True)
    )
    price = bills[-1].price if bills else context.prices.find(asked, answered)
    cost = total(bills, job.earlier, priced=price is not None)
    return Row(capture, encoding, inputs, outputs, bills, cost)


def _price(call: Call, job: Job, answered: str | None, prices: Prices) -> Price | None:
    """The price of a call. A call that broke off before it named its model has the price of the other calls."""
    received, body = call.received, call.body or (job.wire.body if job.wire else None)
    if received.response_model is None and answered is not None:
        received = replace(received, response_model=answered)
    return price_of(prices, job.request.model, received, body, call.started_at)


def _output(call: Call, encoding: str, echo: str | None) -> Output:
    """The tokens of all choices; an echoed prompt is not output. Each text is encoded once."""
    texts: dict[tuple[int, int], list[np.ndarray[Any, Any]]] = {}
    echoed: dict[tuple[int, int], int] = {}
    for choice in call.received.choices:
        for kind, text in _texts(choice):
            if echo and text.startswith(echo):
                echoed[choice.index, kind] = len(echo.encode("utf-8", "surrogatepass"))
                text = text.removeprefix(echo)  # noqa: PLW2901 - the rest is output
            texts.setdefault((choice.index, kind), []).append(token_ends(text, encoding))
    tokens = sum(len(ends) for each in texts.values() for ends in each)
    return Output(tokens, *chunk_tokens(call.received, texts, echoed))


def _texts(choice: Choice) -> Iterator[tuple[int, str]]:
    """The texts of a choice that are not empty, with their kinds.

    The texts of a tool call are its name and its arguments.
    """
    for kind, text in ((CONTENT, choice.text), (REASONING, choice.reasoning), (REFUSAL, choice.refusal)):
        if text:
            yield kind, text
    if choice.tool_calls:
        for text in _called(choice.tool_calls):
            if text:
                yield TOOL_CALLS, text


def _called(tool_calls: str) -> Iterator[str | None]:
    """The texts of tool calls: names and arguments, without the JSON around them."""
    try:
        calls = json.loads(tool_calls)
    except (ValueError, RecursionError):
        calls = None
    if not isinstance(calls, list):
        yield tool_calls
        return
    for call in calls:
        generated = call.get("function", {}) if isinstance(call, dict) else call
        for value in generated.values() if isinstance(generated, dict) else (generated,):
            yield value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)
