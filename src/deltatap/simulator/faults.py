"""The faults that the simulator injects. Pure.

A fault is written as `name[=argument][@piece][:times]`. A request asks for faults in its model's name or in the header
`x-simulate`. Faults joined by `!` apply to consecutive calls for one prompt: `gpt-4o-mini!429=0.2:2!cut@5:1` means two
rate limits, then a connection that is cut after five pieces, then an answer. A fault without `:times` applies to all
later calls. Faults joined by `+` apply together, if none of them is a refusal or a break.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Refusals before anything is streamed: HTTP status, error type, code, message.
REFUSALS: Mapping[str, tuple[int, str, str | None, str]] = {
    "400": (400, "invalid_request_error", None, "Invalid value for 'temperature'."),
    "401": (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    "403": (403, "permission_error", None, "You are not allowed to use this model."),
    "404": (404, "invalid_request_error", "model_not_found", "The model does not exist."),
    "408": (408, "timeout", None, "Request timed out."),
    "409": (409, "conflict", None, "Conflict."),
    "413": (413, "invalid_request_error", None, "Request too large."),
    "422": (422, "invalid_request_error", None, "Unprocessable."),
    "429": (429, "requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    "quota": (429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota."),
    "500": (500, "server_error", None, "The server had an error."),
    "502": (502, "server_error", None, "Bad gateway."),
    "503": (503, "server_error", None, "The engine is overloaded."),
    "content_policy": (400, "invalid_request_error", "content_policy_violation", "Your request was rejected."),
}
# The stream breaks after a part of the answer.
BREAKS = ("cut", "cut_first", "stall", "drip", "error_event", "bad_json", "no_end")
# The answer is complete, but its end or its headers differ from the usual ones.
ENDINGS = ("no_finish", "no_done", "content_filter", "length", "no_usage", "html", "slow_headers")
SHAPES = (
    "role_only", "role_with_content", "empty_choices", "comments", "crlf", "cr", "coalesce", "fragment", "bom",
)  # fmt: skip
# Differences between servers.
TRAITS = (
    "refusal", "reasoning", "reasoning_field", "content_parts", "filters", "late_filters", "moderation", "details",
    "usage_with_finish", "usage_each", "finish_with_content", "no_id", "float_created", "no_stream_options", "planted",
)  # fmt: skip
NAMES = (*REFUSALS, *BREAKS, *ENDINGS, *SHAPES, *TRAITS)


class BadFaultError(ValueError):
    """An unknown fault; the message lists the known ones."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, or several that apply together.

    Attributes:
        names: the faults.
        argument: seconds, a date or a number, depending on the fault.
        piece: number of pieces after which a stream breaks; None for half of them.
        times: number of calls; None for all later calls.
    """

    names: tuple[str, ...]
    argument: str | None = None
    piece: int | None = None
    times: int | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def text(self) -> str:
        """The fault as text, without `:times`."""
        argument = "" if self.argument is None else f"={self.argument}"
        return "+".join(self.names) + argument + ("" if self.piece is None else f"@{self.piece}")

    def seconds(self, default: float) -> float:
        """The argument as seconds."""
        try:
            return default if self.argument is None else float(self.argument)
        except ValueError:
            raise BadFaultError(f"{self.text}: expected seconds") from None


def parse(text: str) -> tuple[Fault, ...]:
    """Faults joined by `!`.

    Raises:
        BadFaultError: if one is unknown.
    """
    return tuple(_parse(part) for part in text.split("!") if part)


def _parse(text: str) -> Fault:
    rest, _, times = text.partition(":")
    rest, _, piece = rest.partition("@")
    names, _, argument = rest.partition("=")
    found = tuple(names.split("+"))
    if unknown := [name for name in found if name not in NAMES]:
        raise BadFaultError(f"unknown fault {', '.join(unknown)}; expected one of {', '.join(NAMES)}")
    try:
        return Fault(found, argument or None, int(piece) if piece else None, int(times) if times else None)
    except ValueError:
        raise BadFaultError(f"{text}: expected name[=argument][@piece][:times]") from None


def of_model(model: str) -> tuple[str, tuple[Fault, ...]]:
    """Split a model's name from the faults in it."""
    name, _, marker = model.partition("!")
    return name, parse(marker)


def in_sequence(faults: Sequence[Fault], call: int) -> Fault | None:
    """The fault for one of the calls for a prompt; `call` is its number, from 0."""
    for fault in faults:
        if fault.times is None or call < fault.times:
            return fault
        call -= fault.times
    return None


def by_rate(rates: Mapping[str, float], key: str, call: int, seed: int, in_a_row: int) -> Fault | None:
    """A random fault, the same for the same prompt, call and seed. None if the prompt already had `in_a_row` calls."""
    if call >= in_a_row:
        return None
    at = random.Random(f"{seed}/{key}/{call}/fault").random()  # noqa: S311 - repeatable, not secret
    for text, rate in rates.items():
        if at < rate:
            return parse(text)[0]
        at -= rate
    return None
