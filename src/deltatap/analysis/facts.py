"""The facts about a run that can explain a change of a metric: model, versions and configuration.

A fact has a name and a value, both text. Works on rows of ``runs`` and on counted rows of ``captures``; reads nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltatap.rates import Rates

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Facts = Mapping[str, str]

# What the endpoint says about itself, and the clock that the times are from: SQL over a row of captures.
SAID = {
    "response_model": "response_model",
    "system_fingerprint": "system_fingerprint",
    "service_tier": "service_tier",
    "region": "server_timing['x-ms-region']",
    "clock": "clock",
}
# The sections of the configuration that decide what is sent, and how.
_SECTIONS = ("prompts", "endpoint", "request", "capture", "timeouts", "limits")
# In these sections any key can be added, so a missing key is a fact. Elsewhere, it means that another version wrote the
# configuration.
_FREE = ("request.", "endpoint.headers.")
NONE = "none"
_LONGEST = 60


@dataclass(frozen=True, slots=True)
class Changed:
    """A fact that differs between two runs, or between most runs of two stretches."""

    what: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.what} {self.before} → {self.after}"


def said(counted: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The most frequent value of each fact in :data:`SAID`.

    Args:
        counted: rows with these facts as columns, and ``rows``, their number.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in SAID}
    for row in counted:
        for name in SAID:
            counts[name][row[name] or NONE] += row["rows"]
    # If two values are equally frequent, always choose the same one.
    return {name: max(sorted(count), key=count.__getitem__) for name, count in counts.items() if count}


def of_run(run: Mapping[str, Any]) -> dict[str, str]:
    """The versions, the prices and the configuration in a row of ``runs``."""
    versions = {f"{name} version": text for name, text in sorted((run["versions"] or {}).items())}
    config = json.loads(run["config"] or "{}")
    return (
        versions
        | prices_of(run)
        | {name: value for section in _SECTIONS for name, value in _flat(config.get(section, {}), section)}
    )


def prices_of(run: Mapping[str, Any]) -> dict[str, str]:
    """The prices in a row of ``runs``, by model and service tier."""
    # A table of an older version does not have this column.
    listed = json.loads(run.get("prices") or "[]")
    found: dict[str, set[str]] = {}
    for price in listed:
        tier = f" ({price['service_tier']})" if price.get("service_tier") else ""
        rates = ", ".join(f"{name} {price[name]}" for name in Rates.model_fields if name in price)
        steps = "".join(f"; above {each['above']:,} tokens: input {each['input']}" for each in price.get("steps", ()))
        # The price changed during the run, or several models answered for the requested one. Equal prices count once:
        # a call that fails names no model, so its price can have another name than the price of an answer.
        found.setdefault(f"price of {price['request_model']}{tier}", set()).add(f"{rates}{steps}")
    return {name: " and ".join(sorted(texts)) for name, texts in found.items()}


def price_changes(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, Changed]]:
    """The changes of prices over runs, oldest first: the run with the new price, and the change."""
    known: dict[str, str] = {}
    found = []
    for run in runs:
        prices = prices_of(run)
        found += [
            (run["run_id"], Changed(name, known[name], value))
            for name, value in prices.items()
            if known.get(name, value) != value
        ]
        known |= prices
    return found


def _flat(tree: Any, path: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - JSON
    if isinstance(tree, dict):
        for key in sorted(tree):
            yield from _flat(tree[key], f"{path}.{key}")
    else:
        text = tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False)
        yield path, text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def changed(before: Sequence[Facts], after: Sequence[Facts]) -> tuple[Changed, ...]:
    """The facts that differ between most runs of one stretch and most runs of another.

    A fact without a value that more than half of the runs have is left out: it says nothing about a stretch.
    """
    names = dict.fromkeys(name for facts in (*before, *after) for name in facts)
    found = []
    for name in names:
        values = [_usual(name, stretch) for stretch in (before, after)]
        if None not in values and values[0] != values[1]:
            found.append(Changed(name, str(values[0]), str(values[1])))
    return tuple(found)


def _usual(name: str, stretch: Sequence[Facts]) -> str | None:
    default = NONE if name.startswith(_FREE) else None
    (value, times), *_ = Counter(facts.get(name, default) for facts in stretch).most_common(1)
    return value if 2 * times > len(stretch) else None
