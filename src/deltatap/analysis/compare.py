"""The comparison of two runs: how each metric's median and p95 differ, with bootstrap intervals."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from deltatap.analysis.bootstrap import Values, interval
from deltatap.analysis.metrics import METRICS
from deltatap.analysis.queries import captures_sql
from deltatap.analysis.sql import in_runs, late_sql, measured_sql
from deltatap.analysis.uncounted import reason, uncounted_sql
from deltatap.delta.reader import rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from deltatap.config import Settings
    from deltatap.delta.reader import Reader

COMPARED = {"p50": 0.5, "p95": 0.95}
# Maximum number of rows per run and mode. More rows would narrow the intervals, but slow the comparison down.
ROWS = 5_000
# If the times of more rows than this share are inexact, a p95 can be.
_SHARE_OF_P95 = 0.05
# How many runs one warning names.
_NAMED = 5
# Why inexact times matter: when runs are compared, and in the numbers of one run.
_DIFFERENCE = "so a difference can come from this machine instead of the server"
OF_ONE_RUN = "so a TTFT can be too long by the delay of the event loop"


@dataclass(frozen=True, slots=True)
class Difference:
    """A quantile in two samples, and the 95 % interval of second minus first (None if a sample is too small)."""

    first: float
    second: float
    low: float | None
    high: float | None

    @property
    def value(self) -> float:
        """Second minus first."""
        return self.second - self.first

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def difference(first: Values, second: Values, p: float) -> Difference:
    """The difference of a quantile between two independent samples."""
    return Difference(float(np.quantile(first, p)), float(np.quantile(second, p)), *interval(p, second, first))


def compare(reader: Reader, settings: Settings, first: str, second: str) -> dict[tuple[str, str, str], Difference]:
    """The differences between two runs by (mode, metric, quantile), where both runs have values."""
    return compare_each(reader, settings, first, [second])[second]


def compare_each(
    reader: Reader, settings: Settings, first: str, others: Sequence[str]
) -> dict[str, dict[tuple[str, str, str], Difference]]:
    """The differences of other runs from a first run, as in :func:`compare`, by the id of the other run."""
    before = _values(_counting_rows(reader, settings, first))
    found = {}
    for other in others:
        after = _values(_counting_rows(reader, settings, other))
        found[other] = {
            (mode, name, quantile): difference(values, after[mode, name], p)
            for (mode, name), values in before.items()
            if (mode, name) in after
            for quantile, p in COMPARED.items()
        }
    return found


@dataclass(frozen=True, slots=True)
class Counted:
    """The rows of a run in a mode.

    Attributes:
        rows: how many there are.
        left_out: how many are left out of the times, by reason.
        busy: how many count although the event loop ran late (rows with the kernel's clock).
    """

    rows: int
    left_out: Mapping[str, int]
    busy: int = 0

    @property
    def doubtful(self) -> bool:
        """Whether so many rows are busy that they can have changed a p95."""
        return self.busy > _SHARE_OF_P95 * self.rows


def counted(reader: Reader, settings: Settings, first: str, second: str) -> dict[str, list[Counted]]:
    """All rows of two runs and those left out, by mode and run. The reasons are those of ``uncounted.REASONS``."""
    measured = measured_sql(settings, captures_sql(reader, settings, in_runs([first, second])))
    left_out: dict[tuple[str, str], Counter[str]] = {}
    for row in rows(reader.query(uncounted_sql(measured))):
        left_out.setdefault((row["mode"], row["run_id"]), Counter())[reason(row)] += row["rows"]
    by_run = {
        key: replace(found, left_out=dict(left_out.get(key, {})))
        for key, found in busy(reader, settings, [first, second]).items()
    }
    modes = sorted({mode for mode, _ in by_run}, reverse=True)
    return {mode: [by_run.get((mode, run_id), Counted(0, {})) for run_id in (first, second)] for mode in modes}


def busy(reader: Reader, settings: Settings, run_ids: Sequence[str]) -> dict[tuple[str, str], Counted]:
    """The rows of runs, and those during which this machine was busy, by mode and run."""
    if not run_ids:
        return {}
    measured = measured_sql(settings, captures_sql(reader, settings, in_runs(run_ids)))
    late = f"count_if(counts AND {late_sql(settings, kernel=True)})"
    found = reader.query(
        f"SELECT run_id, mode, count(*) AS rows, {late} AS busy FROM ({measured}) GROUP BY run_id, mode"
    )
    return {(row["mode"], row["run_id"]): Counted(row["rows"], {}, row["busy"]) for row in rows(found)}


def doubts(names: Sequence[str], counted: Mapping[str, Sequence[Counted]], why: str = _DIFFERENCE) -> list[str]:
    """Warnings about runs in which this machine was busy during so many rows that it can have changed a p95.

    Args:
        names: of the runs.
        counted: by mode, for each run.
        why: the end of the sentence: why this matters.
    """
    return [
        _doubt(f"{mode}, {name}", f"{run.busy:,} of {run.rows:,} rows", why)
        for mode, runs in counted.items()
        for name, run in zip(names, runs, strict=True)
        if run.doubtful
    ]


def doubt(names: Mapping[str, str], counted: Mapping[tuple[str, str], Counted]) -> str:
    """The same about any number of runs, as one warning; empty if there is nothing to warn about.

    Args:
        names: of the runs, by their ids, in the order in which they are named.
        counted: as :func:`busy` returns it.
    """
    found = {run_id: run for (_, run_id), run in counted.items() if run.doubtful}
    listed = [name for run_id, name in names.items() if run_id in found]
    if not listed:
        return ""
    more = f" and {len(listed) - _NAMED:,} more" if len(listed) > _NAMED else ""
    return _doubt(f"{', '.join(listed[:_NAMED])}{more}", f"more than {_SHARE_OF_P95:.0%} of the rows")


def _doubt(whose: str, share: str, why: str = _DIFFERENCE) -> str:
    return f"{whose}: the machine that captured was busy during {share}, {why}"


def _counting_rows(reader: Reader, settings: Settings, run_id: str) -> pa.Table:
    """The metrics of a run's rows, null in rows that do not count. A large run always gives the same sample of rows."""
    values = ", ".join(f"CASE WHEN {metric.rows} THEN {metric.name} END AS {metric.name}" for metric in METRICS)
    run = captures_sql(reader, settings, in_runs([run_id]))
    return reader.query(
        f"""
        SELECT mode, {values} FROM (
          SELECT *, row_number() OVER (PARTITION BY mode, counts ORDER BY md5(request_id)) AS place
          FROM ({measured_sql(settings, run)})
        ) WHERE place <= {ROWS}
        """
    )


def _values(found: pa.Table) -> Mapping[tuple[str, str], Values]:
    by_mode = {mode: found.filter(pc.equal(found["mode"], mode)) for mode in ("stream", "complete")}
    return {
        (mode, metric.name): values
        for mode, its_rows in by_mode.items()
        for metric in METRICS
        if len(values := its_rows[metric.name].drop_null().to_numpy())
    }
