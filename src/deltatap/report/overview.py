"""The table at the top of the report: key figures of each series (run, endpoint, model and mode) side by side. Pure.

``cards.py`` makes the tiles, which sum over all series.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltatap.analysis.names import KEYS
from deltatap.prices import money

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Row = Mapping[str, Any]

_KEYS = dict(zip(KEYS, ("run", "endpoint", "model", "mode"), strict=True))


@dataclass(frozen=True, slots=True)
class Overview:
    """The table.

    Attributes:
        keys: the heads of the first columns, which name a series: those that differ between the series.
        heads: of the other columns; a column without any value is left out.
        rows: for each series, its names and its values.
    """

    keys: tuple[str, ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


def overview(metrics: Sequence[Row], runs: Mapping[str, str]) -> Overview | None:
    """The table of rows of ``metrics_by_run``; None if all of them have the same run, endpoint and model.

    Args:
        metrics: the rows, in the order of the page.
        runs: the names of the runs by id.
    """
    differ = [key for key in KEYS if len({row[key] for row in metrics}) > 1]
    if set(differ) <= {"mode"}:
        return None
    columns = {head: [value(row) for row in metrics] for head, value in _COLUMNS.items()}
    columns = {head: values for head, values in columns.items() if any(values)}
    named = [tuple(_name(row, key, runs) for key in differ) for row in metrics]
    values = zip(*columns.values(), strict=True)
    return Overview(tuple(_KEYS[key] for key in differ), tuple(columns), tuple(zip(named, values, strict=True)))


def _name(row: Row, key: str, runs: Mapping[str, str]) -> str:
    if row[key] is None:
        return f"no {_KEYS[key]}"
    return runs.get(row[key], row[key]) if key == "run_id" else row[key]


def _count(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name] or 0:,}"


def _quantile(name: str, quantile: str, digits: int = 0) -> Callable[[Row], str]:
    return lambda row: f"{row[name][quantile]['value']:,.{digits}f}" if row[name]["count"] else ""


def _share(name: str, of: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name]:,} of {row[of]:,}" if row[name] is not None and row[of] else ""


def _cost(row: Row) -> str:
    return "no price" if row["cost_usd"] is None else f"${money(row['cost_usd'])}"


def _failed_calls(row: Row) -> str:
    return f"{sum((row['errors'] or {}).values()):,}"


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "completed": lambda row: f"{row['completed']:,} of {row['rows']:,}",
    "TTFT p50": _quantile("ttft_ms", "p50"),
    "TTFT p95": _quantile("ttft_ms", "p95"),
    "TPOT p50": _quantile("tpot_ms", "p50", 1),
    "E2E p50": _quantile("e2e_ms", "p50"),
    "good": lambda row: "" if row["good"] is None else f"{row['good']:,}",
    "cached input": lambda row: f"{row['cached_share']:.1%}" if row["cached_share"] else "",
    "flagged": _share("flagged", "checked"),
    "input tokens": _count("input_tokens"),
    "output tokens": _count("output_tokens"),
    "cost": _cost,
    "failed calls": _failed_calls,
}
