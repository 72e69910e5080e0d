"""The SQL that merges a batch of captures, and the check that decides whether the cheaper statement is safe.

:func:`merge_sql` is correct for every batch, but it reads the keys of all rows of the run, and it reads the batch
twice. As long as all rows of a batch are new, :func:`insert_sql` does the same with about a fifth less CPU time. That
matters because each merge delays the streams of its machine. ``landing.py`` decides when to merge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

from deltatap.delta import columns, tables
from deltatap.delta.final import final_sql
from deltatap.plan_state import LANDED

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from pyspark.sql import DataFrame

    from deltatap.state import RunState

_KEY = ("run_id", "request_id", "mode")
_COLUMNS = tuple(column.name for column in columns.CAPTURES)


@dataclass(slots=True)
class NewRows:
    """Knows whether the rows of a batch are new.

    Attributes:
        state: the run's state folder.
        epoch: the lease's epoch, if the run had no row in ``captures`` when this driver began; None if it may have had
            some.
        recorded: whether all rows that were committed are recorded as landed.
    """

    state: RunState
    epoch: int | None = None
    recorded: bool = True
    _landed: np.ndarray[Any, Any] = field(default_factory=lambda: np.empty(0, LANDED))

    def record(self, plans: Mapping[int, np.ndarray[Any, Any]]) -> None:
        """Remember that rows are recorded as landed. The files of the record may not be visible yet."""
        self.recorded = True
        if self.epoch is not None and self.epoch in plans:
            self._landed = np.union1d(self._landed, plans[self.epoch])

    def are_all(self, plans: Mapping[int, np.ndarray[Any, Any]]) -> bool:
        """Whether no row of a batch can replace another one, in ``captures`` or in the batch.

        A driver that takes over publishes its epoch before it lands the journal. So if the epoch is still ours, that
        driver has landed none of these rows, and its MERGE will see them or conflict with ours.

        Args:
            plans: the (part, row) pairs of the batch, by the epoch of their plan.
        """
        if self.epoch is None or list(plans) != [self.epoch] or not self.recorded:
            return False
        control, places = self.state.control(), plans[self.epoch]
        if control is None or control.epoch != self.epoch or len(np.unique(places)) < len(places):
            return False
        landed = np.union1d(self._landed, self.state.plan(self.epoch).landed())
        return not np.isin(places, landed).any()


def one_per_key(rows: DataFrame, keep_interrupted: bool) -> DataFrame:  # noqa: FBT001 - a DataFrame transformation
    """Keep one row per key: the final one, else the latest. A MERGE would insert both rows of a duplicate key.

    A capture that was held is in the journal twice; the row with the results of the checks counts.
    """
    rank = F.struct(
        F.expr(f"CAST({final_sql('_row', keep_interrupted=keep_interrupted)} AS INT)").alias("final"),
        F.coalesce(F.col("_row.finished_at"), F.timestamp_seconds(F.lit(0))).alias("at"),
        F.col("_row.partial_moderation").isNotNull().alias("checked"),
    )
    return (
        rows.select(*_KEY, F.struct("*").alias("_row"))
        .groupBy(*_KEY)
        .agg(F.max_by("_row", rank).alias("_row"))
        .select("_row.*")
    )


def merge_sql(captures: str, view: str, run_id: str, *, keep_interrupted: bool) -> str:
    """The MERGE statement: insert new rows, and replace only rows that are not final.

    The condition names the run, so that Delta skips the files of other runs. A row that was held is not replaced
    by its copy without the results of its checks.
    """
    final = final_sql("t", keep_interrupted=keep_interrupted)
    held = "t.finished_at = s.finished_at AND t.partial_moderation IS NOT NULL AND s.partial_moderation IS NULL"
    updates = ", ".join(f"t.{name} = s.{name}" for name in _COLUMNS)
    replace = f"WHEN MATCHED AND NOT {final} AND NOT coalesce({held}, FALSE) THEN UPDATE SET {updates}"
    return _statement(captures, view, f"t.run_id = {tables.literal(run_id)}", replace)


def insert_sql(captures: str, view: str, run_id: str, finished_at: pa.ChunkedArray) -> str:
    """The MERGE statement for a batch of new rows, merged for the first time or again: insert the missing rows.

    A row that was merged before has the same ``finished_at`` as its copy in the batch, so Delta can use file statistics
    to skip files that are older than the batch. The statement also reads the batch only once. An append is not enough,
    because it does not conflict with another driver that lands the same files.

    Args:
        captures: the table.
        view: of the batch.
        run_id: of the run.
        finished_at: the column of the batch, which is null for rows without a call.
    """
    since = pc.min(finished_at).as_py()
    times = ["t.finished_at IS NULL"] * bool(finished_at.null_count)
    if since is not None:
        times.append(f"t.finished_at >= TIMESTAMP '{since.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}Z'")
    return _statement(captures, view, f"t.run_id = {tables.literal(run_id)} AND ({' OR '.join(times)})")


def _statement(captures: str, view: str, among: str, when_matched: str = "") -> str:
    return f"""
        MERGE INTO {tables.quoted(captures)} AS t USING {view} AS s
        ON {among} AND {" AND ".join(f"t.{key} = s.{key}" for key in _KEY)}
        {when_matched}
        WHEN NOT MATCHED THEN INSERT ({", ".join(_COLUMNS)}) VALUES ({", ".join(f"s.{name}" for name in _COLUMNS)})
    """
