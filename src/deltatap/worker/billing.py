"""The billed units of a call, and its cost. Pure.

Knows whether the server's count or tiktoken's count is used, and which tools the server ran. Leaves prices to
``prices.py`` and the arithmetic to ``rates.py``. ``counting.py`` counts the tokens; ``usage.py`` uses the same rules
for budgets.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from deltatap.rates import PARTS, Billed, cost_parts, in_places

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from deltatap.model import Call, Received
    from deltatap.prices import Prices
    from deltatap.rates import Price

# The tools that a server runs, as stored in their calls: the type of an item of Responses, or the name of a tool.
_WEB_SEARCHES = ("web_search_call", "web_search_preview_call", "web_search")
_FILE_SEARCHES = ("file_search_call",)
# Opening a page that a search found, and finding text in it, are not billed.
_SEARCH = "search"


@dataclass(frozen=True, slots=True)
class Bill:
    """The use of one call.

    Attributes:
        input_tokens, output_tokens: as billed.
        parts: the cost, part by part; None without a price.
        basis: who counted the tokens; None when nothing was used.
        price: that applied.
    """

    input_tokens: int
    output_tokens: int
    parts: Mapping[str, Decimal] | None
    basis: str | None
    price: Price | None = None

    @property
    def cost_usd(self) -> Decimal | None:
        """The sum of the parts."""
        return None if self.parts is None else sum(self.parts.values(), Decimal(0))


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a row.

    Attributes:
        usd: of all its calls; None if the model has no price.
        basis: reported, tiktoken or mixed; None if nothing was used.
        parts: those of the last call, and `retries`.
        price: of the last call.
    """

    usd: Decimal | None = None
    basis: str | None = None
    parts: Mapping[str, Decimal] = field(default_factory=dict)
    price: Price | None = None


def price_of(prices: Prices, asked: str | None, received: Received, body: str | None, at: float) -> Price | None:
    """The price of a call, for the model and the tier that the answer names, or else for the requested ones.

    Args:
        prices: of the run.
        asked: the requested model.
        received: the answer.
        body: the request.
        at: when the call started, in seconds since the epoch.
    """
    tier = received.service_tier or requested_tier(body)
    try:
        when = datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        when = None
    return prices.find(asked, received.response_model, tier=tier, at=when)


def requested_tier(body: str | None) -> str | None:
    """The service tier that a request asks for."""
    if not body or '"service_tier"' not in body:
        return None
    tier = json.loads(body).get("service_tier")
    return tier if isinstance(tier, str) else None


def bill(call: Call, inputs: int, output: int, price: Price | None) -> Bill:
    """The tokens of a call: as reported, or else as tiktoken counts them; none if no output arrived.

    No request has an input of zero tokens, so zero input tokens are not a report. A report of fewer output tokens than
    tiktoken counts is used only if it is not zero and came after all output.
    """
    received = call.received
    usage = received.usage
    if not received.output and not (usage and (usage.input_tokens or usage.output_tokens)):
        return Bill(0, 0, {} if price else None, None, price)
    used_in = (usage.input_tokens if usage else None) or None
    used_out = usage.output_tokens if usage else None
    stale = used_out is not None and used_out < output and not (used_out and received.usage_final)
    if stale:
        used_out = None
    bases = {"tiktoken" if tokens is None else "reported" for tokens in (used_in, used_out)}
    used_in = inputs if used_in is None else used_in
    used_out = output if used_out is None else used_out
    parts = cost_parts(price, billed(received, used_in, used_out)) if price else None
    return Bill(used_in, used_out, parts, bases.pop() if len(bases) == 1 else "mixed", price)


def billed(received: Received, inputs: int, outputs: int) -> Billed:
    """The billed units of an answer with these total tokens."""
    usage = received.usage
    web, files = _searches(received)
    if usage is None:
        return Billed(inputs, outputs, web_searches=web, file_searches=files)
    return Billed(
        inputs,
        outputs,
        cached_input=usage.cached_input_tokens or 0,
        cache_write=usage.cache_write_tokens or 0,
        cache_write_1h=usage.cache_write_1h_tokens or 0,
        audio_input=usage.audio_input_tokens or 0,
        image_input=usage.image_input_tokens or 0,
        reasoning=usage.reasoning_tokens or 0,
        audio_output=usage.audio_output_tokens or 0,
        image_output=usage.image_output_tokens or 0,
        citations=usage.citation_tokens or 0,
        web_searches=web if usage.web_searches is None else usage.web_searches,
        file_searches=files,
    )


def total(bills: Sequence[Bill], earlier: Sequence[Mapping[str, Any]], *, priced: bool) -> Cost:
    """The cost of a row.

    Args:
        bills: of the calls of this worker, oldest first.
        earlier: the earlier calls, in the form of the ``retries`` column.
        priced: whether the model has a price.
    """
    bases = {each.basis for each in bills if each.basis}
    if any(call["input_tokens"] for call in earlier):
        bases.add("tiktoken")  # a retried call ended before its usage, which comes last in a stream
    basis = None if not bases else bases.pop() if len(bases) == 1 else "mixed"
    if not priced:
        return Cost(basis=basis)
    # Decimals from text keep the sum exact to the last digit.
    before = sum((Decimal(str(call["cost_usd"] or 0)) for call in earlier), Decimal(0))
    before += sum((each.cost_usd or Decimal(0) for each in bills[:-1]), Decimal(0))
    last = bills[-1].parts if bills else None
    parts = {**dict.fromkeys(PARTS, Decimal(0)), **(last or {}), "retries": in_places(before)}
    return Cost(sum(parts.values(), Decimal(0)), basis, parts, bills[-1].price if bills else None)


def _searches(received: Received) -> tuple[int, int]:
    """How often the server searched the web, and files, according to the calls that are stored with the answer."""
    web = files = 0
    for call in _server_calls(received):
        kind = call.get("type") if call.get("type") != "server_tool_use" else call.get("name")
        if kind in _WEB_SEARCHES:
            action = call.get("action")
            web += not isinstance(action, dict) or action.get("type", _SEARCH) == _SEARCH
        files += kind in _FILE_SEARCHES
    return web, files


def _server_calls(received: Received) -> Iterator[Mapping[str, Any]]:
    for choice in received.choices:
        # Decoding takes time, so calls without a search are not decoded.
        if choice.tool_calls and "_search" in choice.tool_calls:
            try:
                calls = json.loads(choice.tool_calls)
            except (ValueError, RecursionError):
                continue
            yield from (call for call in calls if isinstance(call, dict) and "function" not in call)
