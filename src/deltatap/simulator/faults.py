"""What goes wrong with a call, on demand. Pure.

A fault is ``name[=argument][@piece][:times]``. In a model's name or in the header ``x-simulate`` several are joined by
``!`` and follow one another over the calls for one prompt: ``gpt-4o-mini!429=0.2:2!cut@5:1`` is two rate limits, then a
connection cut after five pieces, then an answer. Without ``:times`` a fault stays. Harmless ones combine with ``+``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Refused before anything is streamed: status, error type, code, message.
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
# The stream breaks: what of it was sent counts.
BREAKS = ("cut", "cut_first", "stall", "drip", "error_event", "bad_json", "no_end")
# The answer is whole, but ends or looks unlike the common one.
ENDINGS = ("no_finish", "no_done", "content_filter", "length", "no_usage", "html", "slow_headers")
SHAPES = (
    "role_only", "role_with_content", "empty_choices", "comments", "crlf", "cr", "coalesce", "fragment", "bom",
)  # fmt: skip
# What one server says and another does not.
TRAITS = (
    "refusal", "reasoning", "reasoning_field", "content_parts", "filters", "late_filters", "moderation", "details",
    "usage_with_finish", "usage_each", "finish_with_content", "no_id", "float_created", "no_stream_options",
)  # fmt: skip
NAMES = (*REFUSALS, *BREAKS, *ENDINGS, *SHAPES, *TRAITS)


class BadFaultError(ValueError):
    """A fault that there is not; the message names those that there are."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, or several harmless ones at once.

    Attributes:
        names: what goes wrong.
        argument: seconds, a date, or a number, as the fault takes it.
        piece: after how many pieces of text a stream breaks; None for half of them.
        times: for how many calls; None for all from then on.
    """

    names: tuple[str, ...]
    argument: str | None = None
    piece: int | None = None
    times: int | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def text(self) -> str:
        """As it is written."""
        argument = "" if self.argument is None else f"={self.argument}"
        return "+".join(self.names) + argument + ("" if self.piece is None else f"@{self.piece}")

    def seconds(self, default: float) -> float:
        """The argument as seconds."""
        try:
            return default if self.argument is None else float(self.argument)
        except ValueError:
            raise BadFaultError(f"{self.text}: expected seconds") from None


def parse(text: str) -> tuple[Fault, ...]:
    """A sequence of faults, joined by ``!``.

    Raises:
        BadFaultError: for one that there is not.
    """
    return tuple(_parse(part) for part in text.split("!") if part)


def _parse(text: str) -> Fault:
    rest, _, times = text.partition(":")
    rest, _, piece = rest.partition("@")
    names, _, argument = rest.partition("=")
    found = tuple(names.split("+"))
    if unknown := [name for name in found if name not in NAMES]:
        raise BadFaultError(f"no fault {', '.join(unknown)}; there are {', '.join(NAMES)}")
    try:
        return Fault(found, argument or None, int(piece) if piece else None, int(times) if times else None)
    except ValueError:
        raise BadFaultError(f"{text}: expected name[=argument][@piece][:times]") from None


def of_model(model: str) -> tuple[str, tuple[Fault, ...]]:
    """A model's name without its marker, and the marker's faults."""
    name, _, marker = model.partition("!")
    return name, parse(marker)


def in_sequence(faults: Sequence[Fault], call: int) -> Fault | None:
    """The fault of the call with this number, from 0, for one prompt."""
    for fault in faults:
        if fault.times is None or call < fault.times:
            return fault
        call -= fault.times
    return None


def by_rate(rates: Mapping[str, float], key: str, call: int, seed: int, in_a_row: int) -> Fault | None:
    """A fault by chance, the same for the same prompt, call and seed; none after so many in a row for one prompt."""
    if call >= in_a_row:
        return None
    at = random.Random(f"{seed}/{key}/{call}/fault").random()  # noqa: S311 - repeatable, not secret
    for text, rate in rates.items():
        if at < rate:
            return parse(text)[0]
        at -= rate
    return None
