"""The names of runs and series: what differs between them, so that a reader can tell them apart."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The columns that identify a series.
KEYS = ("run_id", "endpoint", "request_model", "mode")


def run_names(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The name of each run (rows of ``runs``) by its id: the labels that differ between the runs, or else its id."""
    labels = {run["run_id"]: dict(run["labels"] or {}) for run in runs}
    every = sorted({name for its in labels.values() for name in its})
    differ = [name for name in every if len({its.get(name) for its in labels.values()}) > 1]
    names = {
        run_id: ", ".join(f"{name}={its[name]}" for name in differ if its.get(name)) or run_id
        for run_id, its in labels.items()
    }
    times = Counter(names.values())
    return {run_id: name if times[name] == 1 else f"{name}, {run_id}" for run_id, name in names.items()}


def series_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The run, endpoint, model and mode of a row of ``metrics_by_run``."""
    return tuple(row[key] for key in KEYS)


def series_names(metrics: Sequence[Mapping[str, Any]], runs: Mapping[str, str]) -> dict[tuple[Any, ...], str]:
    """The name of each series (rows of ``metrics_by_run``): the parts of run, endpoint, model and mode that differ.

    Args:
        metrics: the rows.
        runs: the names of the runs by id.
    """
    keys = [series_key(row) for row in metrics]
    differ = [at for at in range(len(KEYS)) if len({key[at] for key in keys}) > 1]

    def part(key: tuple[Any, ...], at: int) -> str:
        return runs.get(key[at], key[at]) if at == 0 else str(key[at])

    return {key: ", ".join(part(key, at) for at in differ) or str(key[-1]) for key in keys}
