"""The journal lands in ``captures``, once each: one Structured Streaming query a run, whose batches are merged.

Knows how journal files become rows and when a file may go: after the commit and after its rows are remembered. Every
step may be repeated; the journal and the MERGE are the truth, the query's checkpoint is disposable. Leaves to others
when to land (``run.py``).
"""

from __future__ import annotations

import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow.compute as pc
from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation has it

from deltatap.delta import columns, tables
from deltatap.delta.final import final_sql
from deltatap.errors import LandingError
from deltatap.state import LANDED
from deltatap.worker.journal import readable

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

    from deltatap.state import RunState

_KEY = ("run_id", "request_id", "mode")
_FILES_A_BATCH = 200
# Each merge adds a small file or two: after so many they are put together.
_COMPACT_AFTER = 100
_WORTH_COMPACTING = 20
# The streaming source remembers every file name for ever; a new checkpoint now and then keeps that short.
_RENEW_AFTER_FILES = 20_000
# While a run captures, each merge holds up the streams of this machine; what lands together costs little more than a
# file alone.
_SELDOM_S, _OFTEN_S = 10, 1
_LOOK_S = 0.1
_OVERDUE_S = 60.0
# So many triggers in a row that found nothing.
_IDLE_S = 5.0


@dataclass(slots=True)
class Landing:
    """Lands one run's journal.

    Attributes:
        spark: the session.
        captures: the table.
        state: the run's folder.
        keep_interrupted: whether interrupted rows are final.
        fresh: the epoch of this run's first plan: while no other driver has taken over, what is not remembered as
            landed has no row. Unknown (None), every row is looked for among all of the run's.
        files: how many journal files have landed.
        set_aside: journal files that could not be read; their requests are owed again.
    """

    spark: SparkSession
    captures: str
    state: RunState
    keep_interrupted: bool
    fresh: int | None = None
    files: int = 0
    set_aside: list[Path] = field(default_factory=list)
    _query: StreamingQuery | None = None
    _every_s: int = _SELDOM_S
    _seen: dict[Path, float] = field(default_factory=dict)
    _checkpoint: Path | None = None
    _in_checkpoint: int = 0
    _merges: int = 0
    _committed: bool = True

    def keep(self) -> None:
        """See that what comes into the journal lands some seconds later; does not wait for it.

        Where more files come than a batch takes, from then on they land as they come.
        """
        now = time.monotonic()
        self._seen = {path: self._seen.get(path, now) for path in self._waiting()}
        waited_s = now - min(self._seen.values(), default=now)
        broken = self._query is not None and self._query.exception() is not None
        if len(self._seen) > _FILES_A_BATCH or waited_s > _OVERDUE_S or broken:
            self.tick()
        elif waited_s > _SELDOM_S:
            if self._in_checkpoint > _RENEW_AFTER_FILES:
                self._renew()
            self._running()

    def tick(self) -> int:
        """Land what is in the journal now; how many files that were. The query goes on until it is stopped."""
        if self._every_s != _OFTEN_S:
            self.stop()
            self._every_s = _OFTEN_S
        before, waiting = self.files, self._waiting()
        if not waiting:
            return 0
        try:
            self._await(waiting)
        except Exception:
            # One file that is cut short blocks its whole batch.
            damaged = [path for path in self._waiting() if not readable(path)]
            if not damaged:
                raise
            for path in damaged:
                path.replace(self.state.aside / path.name)
            self.set_aside += damaged
            self._renew()
            return self.tick()
        if self._in_checkpoint > _RENEW_AFTER_FILES:
            self._renew()
        return self.files - before

    def drain(self) -> None:
        """Land until the journal is empty, and stop.

        Raises:
            LandingError: when files stay that the query does not take.
        """
        while self._waiting():
            self.tick()
        self.stop()

    def stop(self) -> None:
        """Stop the query once its batch is through; what has not landed stays in the journal."""
        if self._query is not None:
            until = time.monotonic() + _OVERDUE_S
            while self._query.isActive and self._query.status["isTriggerActive"] and time.monotonic() < until:
                time.sleep(_LOOK_S)
            self._query.stop()
            self._query = None

    def compact(self) -> None:
        """Put the small files of many merges together, clustered by what analysis filters on."""
        if self._merges >= _WORTH_COMPACTING:
            self.spark.sql(f"OPTIMIZE {tables.quoted(self.captures)}")
            self._merges = 0

    def _waiting(self) -> list[Path]:
        return sorted(self.state.journal.glob("*.parquet"))

    def _await(self, files: list[Path]) -> None:
        renewed, idle_since = False, time.monotonic()
        while any(path.exists() for path in files):
            query = self._running()
            time.sleep(_LOOK_S)
            if error := query.exception():
                raise error
            status = query.status
            if status["isDataAvailable"] or status["isTriggerActive"]:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > _IDLE_S:
                # A file that this checkpoint's query has seen, and that is still there, needs another to be seen again.
                if renewed:
                    raise LandingError(f"{self.state.journal}: its files do not land in {self.captures}")
                self._renew()
                renewed, idle_since = True, time.monotonic()

    def _renew(self) -> None:
        self.stop()
        if self._checkpoint is not None:
            shutil.rmtree(self._checkpoint, ignore_errors=True)
        self._checkpoint, self._in_checkpoint = None, 0

    def _running(self) -> StreamingQuery:
        """The query. One goes on for the whole run: each start of one leaves a socket open in Python and in the JVM."""
        if self._query is None or not self._query.isActive:
            if self._checkpoint is None:
                self._checkpoint = self.state.folder / f"checkpoint-{uuid.uuid4().hex}"
            journal = (
                self.spark.readStream.schema(columns.spark_schema(columns.JOURNAL))
                .option("maxFilesPerTrigger", _FILES_A_BATCH)
                .option("maxFileAge", "36500d")
                .parquet(str(self.state.journal))
                .select("*", F.col("_metadata.file_path").alias("_file"))
            )
            self._query = (
                journal.writeStream.foreachBatch(self._merge)
                .option("checkpointLocation", str(self._checkpoint))
                .trigger(processingTime=f"{self._every_s} seconds")
                .start()
            )
        return self._query

    def _merge(self, batch: DataFrame, _batch_id: int) -> None:
        """Merge a batch, remember its rows, delete its files; in this order."""
        where = batch.select("plan", "part", "row", "finished_at", "_file").toArrow()
        if not where.num_rows:
            return
        plans = {
            plan: _places(where.filter(pc.equal(where["plan"], plan))) for plan in pc.unique(where["plan"]).to_pylist()
        }
        rows = batch.drop("_file")
        view = f"deltatap_{uuid.uuid4().hex}"
        if self._are_new(plans):
            sql = insert_sql(self.captures, view, self.state.folder.name, where["finished_at"])
        else:
            rows = one_a_key(rows, self.keep_interrupted)
            sql = merge_sql(self.captures, view, self.state.folder.name, keep_interrupted=self.keep_interrupted)
        rows.drop("plan", "part", "row").createOrReplaceTempView(view)
        self._committed = False
        try:
            tables.commit(batch.sparkSession, sql)
        finally:
            batch.sparkSession.catalog.dropTempView(view)
        self._merges += 1
        for plan, places in plans.items():
            self.state.plan(plan).add_landed(places)
        self._committed = True
        for file in pc.unique(where["_file"]).to_pylist():
            _local(file).unlink(missing_ok=True)
            self.files += 1
            self._in_checkpoint += 1
        if self._merges >= _COMPACT_AFTER:
            # Small files are slower to read; that is no reason to land nothing more.
            with suppress(Exception):
                self.compact()
            self._merges = min(self._merges, _WORTH_COMPACTING)

    def _are_new(self, plans: dict[int, np.ndarray[Any, Any]]) -> bool:
        """Whether no row of a batch replaces one in ``captures`` or beside it.

        Who has taken over tells so before landing what is in the journal: not yet told, so these rows, at least, are
        seen by both.
        """
        if self.fresh is None or list(plans) != [self.fresh] or not self._committed:
            return False
        control, places = self.state.control(), plans[self.fresh]
        alone = len(np.unique(places)) == len(places)
        landed = self.state.plan(self.fresh).landed()
        return alone and control is not None and control.epoch == self.fresh and not np.isin(places, landed).any()


def one_a_key(rows: DataFrame, keep_interrupted: bool) -> DataFrame:  # noqa: FBT001 - a DataFrame transformation
    """One row a key: the final one, else the latest. A MERGE would insert both of two equal keys in its source."""
    rank = F.struct(
        F.expr(f"CAST({final_sql('_row', keep_interrupted=keep_interrupted)} AS INT)").alias("final"),
        F.coalesce(F.col("_row.finished_at"), F.to_timestamp(F.lit("1970-01-01"))).alias("at"),
    )
    return (
        rows.select(*_KEY, F.struct("*").alias("_row"))
        .groupBy(*_KEY)
        .agg(F.max_by("_row", rank).alias("_row"))
        .select("_row.*")
    )


def merge_sql(captures: str, view: str, run_id: str, *, keep_interrupted: bool) -> str:
    """The MERGE: insert what is new, replace only a row that is not final.

    Naming the run lets Delta skip the files of others.
    """
    final = final_sql("t", keep_interrupted=keep_interrupted)
    names = [column.name for column in columns.CAPTURES]
    return f"""
        MERGE INTO {tables.quoted(captures)} AS t USING {view} AS s
        ON t.run_id = '{run_id}' AND {" AND ".join(f"t.{key} = s.{key}" for key in _KEY)}
        WHEN MATCHED AND NOT {final} THEN UPDATE SET {", ".join(f"t.{name} = s.{name}" for name in names)}
        WHEN NOT MATCHED THEN INSERT ({", ".join(names)}) VALUES ({", ".join(f"s.{name}" for name in names)})
    """


def insert_sql(captures: str, view: str, run_id: str, finished_at: pa.ChunkedArray) -> str:
    """The MERGE of rows that can be there only when this very batch was merged before: insert what is not.

    Such a row finished when the batch's did, so Delta looks at the files of the last seconds only, by their statistics,
    and reads the source once. It is no append: that would not conflict with another driver that lands the same files.

    Args:
        captures: the table.
        view: of the batch.
        run_id: of the run.
        finished_at: of the batch's rows; null where none was sent.
    """
    since = pc.min(finished_at).as_py()
    then = ["t.finished_at IS NULL"] * bool(finished_at.null_count)
    if since is not None:
        then.append(f"t.finished_at >= TIMESTAMP '{since.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}Z'")
    names = [column.name for column in columns.CAPTURES]
    return f"""
        MERGE INTO {tables.quoted(captures)} AS t USING {view} AS s
        ON t.run_id = '{run_id}' AND ({" OR ".join(then)}) AND {" AND ".join(f"t.{key} = s.{key}" for key in _KEY)}
        WHEN NOT MATCHED THEN INSERT ({", ".join(names)}) VALUES ({", ".join(f"s.{name}" for name in names)})
    """


def _places(where: pa.Table) -> np.ndarray[Any, Any]:
    """The (part, row) pairs of rows."""
    places = np.empty(where.num_rows, LANDED)
    places["part"], places["row"] = where["part"].to_numpy(), where["row"].to_numpy()
    return places


def _local(uri: str) -> Path:
    """The path of a file as Spark names it: ``file:/a%20b`` here, ``dbfs:/Volumes/…`` on Databricks."""
    return Path(unquote(urlsplit(uri).path))
