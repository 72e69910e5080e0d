"""The price of a model, and the exact cost of one call, part by part. Pure: does not know files, the catalog or APIs.

Costs are ``Decimal``, so that they add up exactly. ``prices.py`` finds the price of a call.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_MILLION, _THOUSAND = Decimal(1_000_000), Decimal(1_000)
# The decimal places of the column `cost`. Prices per million tokens with up to twelve decimal places are exact.
PLACES = 18
_LAST_PLACE = Decimal(1).scaleb(-PLACES)
# No call searches more often. A larger number would lead to a cost that does not fit into its column.
_MOST_CALLS = 1_000_000_000
# The parts of the cost of a call, in the order of the column `cost`. `retries` is the cost of a row's earlier calls.
PARTS = (
    "input", "cached_input", "cache_write", "audio_input", "image_input", "output", "reasoning", "audio_output",
    "image_output", "citations", "tools", "requests",
)  # fmt: skip
# A float is converted through its text, so that 0.15 is exactly 0.15. The maximum keeps every cost within its column.
Usd = Annotated[
    Decimal, BeforeValidator(lambda usd: str(usd) if isinstance(usd, float) else usd), Field(ge=0, le=1_000_000)
]


class Rates(BaseModel):
    """USD per million tokens, and USD per thousand tool calls and requests.

    Attributes:
        input: input tokens.
        cached_input: input tokens read from a cache; if not set, they cost as much as other input.
        cache_write, cache_write_1h: input tokens written to a cache, by default for minutes, and for an hour. If not
            set, they cost as much as other input, and writes for an hour as much as other writes.
        audio_input, image_input: if not set, as other input.
        output: output tokens.
        reasoning: if set, reasoning tokens are billed separately; otherwise they are part of the output.
        audio_output, image_output: if not set, as other output.
        citations: tokens of cited sources (Perplexity); if not set, they cost nothing.
        web_search, file_search: a thousand calls of a tool that the server ran; if not set, they cost nothing.
        request: a thousand requests; if not set, they cost nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Usd
    cached_input: Usd | None = None
    cache_write: Usd | None = None
    cache_write_1h: Usd | None = None
    audio_input: Usd | None = None
    image_input: Usd | None = None
    output: Usd
    reasoning: Usd | None = None
    audio_output: Usd | None = None
    image_output: Usd | None = None
    citations: Usd | None = None
    web_search: Usd | None = None
    file_search: Usd | None = None
    request: Usd | None = None


class Step(Rates):
    """The rates of all tokens of a call whose input has more than `above` tokens."""

    above: Annotated[int, Field(ge=0)]


class Price(Rates):
    """The price of a model. ``model`` is a shell pattern such as ``gpt-4o-2024-*``.

    Attributes:
        service_tier: the tier to which the price applies; None: every tier.
        steps: the rates of calls with a long input.
        date: when the price was read or took effect; None if this is unknown.
        source: where it is published.
    """

    model: str
    service_tier: str | None = None
    steps: tuple[Step, ...] = ()
    date: dt.date | None
    source: str

    def at(self, input_tokens: int) -> Rates:
        """The rates of a call with this many input tokens."""
        passed = [step for step in self.steps if input_tokens > step.above]
        return max(passed, key=lambda step: step.above) if passed else self

    def to_json(self) -> dict[str, Any]:
        """The price as a dict, without unset rates; amounts are text, so that they stay exact."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


@dataclass(frozen=True, slots=True)
class Billed:
    """The billed units of one call: tokens, and calls of tools that the server ran.

    Attributes:
        input_tokens: all input tokens, including cached, written, audio and image tokens.
        output_tokens: all output tokens, including reasoning, audio, image and prediction tokens.
        cache_write: all tokens written to a cache; `cache_write_1h` are those kept for an hour.
    """

    input_tokens: int
    output_tokens: int
    cached_input: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    audio_input: int = 0
    image_input: int = 0
    reasoning: int = 0
    audio_output: int = 0
    image_output: int = 0
    citations: int = 0
    web_searches: int = 0
    file_searches: int = 0


def cost_parts(price: Price, billed: Billed) -> dict[str, Decimal]:
    """The parts of a call's cost in USD, those of :data:`PARTS`. Their sum is the cost.

    Servers can report contradictory counts, such as more cached tokens than input tokens. A token is billed once, so a
    part has at most the tokens that the earlier parts leave.
    """
    rates, left = price.at(billed.input_tokens), max(0, billed.input_tokens)

    def share(tokens: int) -> int:
        nonlocal left
        taken = min(max(0, tokens), left)
        left -= taken
        return taken

    cached, written = share(billed.cached_input), share(billed.cache_write)
    audio, image, plain = share(billed.audio_input), share(billed.image_input), left
    for_an_hour = min(max(0, billed.cache_write_1h), written)
    left = max(0, billed.output_tokens)
    spoken, drawn = share(billed.audio_output), share(billed.image_output)
    reasoning = share(billed.reasoning)
    write = _rate(rates.cache_write, rates.input)
    amounts = {
        "input": plain * rates.input,
        "cached_input": cached * _rate(rates.cached_input, rates.input),
        "cache_write": (written - for_an_hour) * write + for_an_hour * _rate(rates.cache_write_1h, write),
        "audio_input": audio * _rate(rates.audio_input, rates.input),
        "image_input": image * _rate(rates.image_input, rates.input),
        "output": left * rates.output,
        "reasoning": reasoning * _rate(rates.reasoning, rates.output),
        "audio_output": spoken * _rate(rates.audio_output, rates.output),
        "image_output": drawn * _rate(rates.image_output, rates.output),
        "citations": max(0, billed.citations) * _rate(rates.citations, Decimal(0)),
    }
    web, files = (min(max(0, calls), _MOST_CALLS) for calls in (billed.web_searches, billed.file_searches))
    searches = web * _rate(rates.web_search, Decimal(0)) + files * _rate(rates.file_search, Decimal(0))
    parts = {name: amount / _MILLION for name, amount in amounts.items()}
    parts |= {"tools": searches / _THOUSAND, "requests": _rate(rates.request, Decimal(0)) / _THOUSAND}
    return {name: in_places(amount) for name, amount in parts.items()}


def cost_usd(price: Price, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0) -> Decimal:
    """The exact cost of a call in USD. The input tokens include the cached ones."""
    return sum(cost_parts(price, Billed(input_tokens, output_tokens, cached_input_tokens)).values(), Decimal(0))


def _rate(rate: Decimal | None, otherwise: Decimal) -> Decimal:
    return otherwise if rate is None else rate


def in_places(amount: Decimal) -> Decimal:
    """The amount with no more than :data:`PLACES` places."""
    exponent = amount.as_tuple().exponent
    fits = isinstance(exponent, int) and exponent >= -PLACES
    return amount if fits else amount.quantize(_LAST_PLACE)
