"""Landing: merges a run's journal into ``captures``, so that each capture is there exactly once.

Knows how journal files become rows, and when a file may be deleted: after the commit, and after its rows were recorded
as landed. One Structured Streaming query per run reads the files. Every step can be repeated: the journal and the MERGE
decide what is in the table, and the query's checkpoint is disposable. Leaves to ``run.py`` when to land.
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

    from deltatap.config import Settings
    from deltatap.state import RunState

_KEY = ("run_id", "request_id", "mode")
_FILES_A_BATCH = 200
# Each merge adds one or two small files. After this many merges the files are compacted.
_COMPACT_AFTER = 100
_WORTH_COMPACTING = 20
# The streaming source never forgets a file name. A new checkpoint after this many files keeps its list short.
_RENEW_AFTER_FILES = 20_000
# While a run captures, each merge delays the streams of this machine, and merging many files costs little more than
# merging one.
_SELDOM_S, _OFTEN_S = 10, 1
_LOOK_S = 0.1
_OVERDUE_S = 60.0
# How long the query may find nothing although files wait.
_IDLE_S = 5.0


@dataclass(slots=True)
class Landing:
    """Lands one run's journal.

    Attributes:
        spark: the session.
        captures: the table.
        state: the run's state folder.
        keep_interrupted: whether interrupted rows are final.
        first_epoch: the lease's epoch, if the run had no row in ``captures`` when this driver began: as long as no
            other driver takes over, a row that is not recorded as landed is not in the table. None if unknown.
        files: how many journal files have landed.
        set_aside: journal files that could not be read; their requests are owed again.
    """

    spark: SparkSession
    captures: str
    state: RunState
    keep_interrupted: bool
    first_epoch: int | None = None
    files: int = 0
    set_aside: list[Path] = field(default_factory=list)
    _query: StreamingQuery | None = None
    _every_s: int = _SELDOM_S
    _seen: dict[Path, float] = field(default_factory=dict)
    _checkpoint: Path | None = None
    _in_checkpoint: int = 0
    _merges: int = 0
    _committed: bool = True

    @classmethod
    def of(cls, spark: SparkSession, settings: Settings, state: RunState) -> Landing:
        """The landing of a run with these settings."""
        return cls(spark, settings.captures.table, state, settings.capture.keep_interrupted)

    def keep(self) -> None:
        """Make sure that new journal files land within some seconds; does not wait for them.

        Once more files wait than one batch takes, files land as they arrive.
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
        """Land what is in the journal now. The query keeps running until :meth:`stop`.

        Returns:
            How many files have landed.
        """
        if self._every_s != _OFTEN_S:
            self.stop()
            self._every_s = _OFTEN_S
        before, waiting = self.files, self._waiting()
        if not waiting:
            return 0
        try:
            self._await(waiting)
        except Exception:
            # One truncated file blocks its whole batch.
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
        """Land until the journal is empty, then stop.

        Raises:
            LandingError: if the query does not take some files.
        """
        while self._waiting():
            self.tick()
        self.stop()

    def stop(self) -> None:
        """Stop the query after its current batch. What has not landed stays in the journal."""
        if self._query is not None:
            until = time.monotonic() + _OVERDUE_S
            while self._query.isActive and self._query.status["isTriggerActive"] and time.monotonic() < until:
                time.sleep(_LOOK_S)
            self._query.stop()
            self._query = None

    def compact(self) -> None:
        """Compact the small files of many merges, clustered by the columns that analysis filters on."""
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
                # The query ignores a file that it has seen before. With a new checkpoint it sees the file again.
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
        """The query, started if necessary. Each start leaves a socket open in Python and the JVM, so a run has one."""
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
        """Merge a batch, then record its rows as landed, then delete its files."""
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
            # Small files are slower to read, but landing must continue.
            with suppress(Exception):
                self.compact()
            self._merges = min(self._merges, _WORTH_COMPACTING)

    def _are_new(self, plans: dict[int, np.ndarray[Any, Any]]) -> bool:
        """Whether no row of a batch can replace another one, in ``captures`` or in the batch.

        A driver that takes over publishes its epoch before it lands the journal. So if the epoch is still ours, that
        driver has landed none of these rows, and its MERGE will see them or conflict with ours.
        """
        epoch = self.first_epoch
        if epoch is None or list(plans) != [epoch] or not self._committed:
            return False
        control, places = self.state.control(), plans[epoch]
        unique = len(np.unique(places)) == len(places)
        landed = self.state.plan(epoch).landed()
        return unique and control is not None and control.epoch == epoch and not np.isin(places, landed).any()


def one_a_key(rows: DataFrame, keep_interrupted: bool) -> DataFrame:  # noqa: FBT001 - a DataFrame transformation
    """Keep one row for each key: the final one, else the latest. A MERGE would insert both rows of a duplicate key."""
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
    """The MERGE statement: insert new rows, and replace only rows that are not final.

    The condition names the run, so that Delta skips the files of other runs.
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
    """The MERGE statement for rows that are new, unless this very batch was merged before: insert missing rows.

    A row that was merged before finished at the same time as its copy in the batch. So Delta reads only files of the
    last seconds, by their statistics, and it reads the source once. An append would not do: it would not conflict with
    another driver that lands the same files.

    Args:
        captures: the table.
        view: of the batch.
        run_id: of the run.
        finished_at: the batch's column; null where no call was made.
    """
    since = pc.min(finished_at).as_py()
    times = ["t.finished_at IS NULL"] * bool(finished_at.null_count)
    if since is not None:
        times.append(f"t.finished_at >= TIMESTAMP '{since.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}Z'")
    names = [column.name for column in columns.CAPTURES]
    return f"""
        MERGE INTO {tables.quoted(captures)} AS t USING {view} AS s
        ON t.run_id = '{run_id}' AND ({" OR ".join(times)}) AND {" AND ".join(f"t.{key} = s.{key}" for key in _KEY)}
        WHEN NOT MATCHED THEN INSERT ({", ".join(names)}) VALUES ({", ".join(f"s.{name}" for name in names)})
    """


def _places(where: pa.Table) -> np.ndarray[Any, Any]:
    """The (part, row) pairs of a batch's rows."""
    places = np.empty(where.num_rows, LANDED)
    places["part"], places["row"] = where["part"].to_numpy(), where["row"].to_numpy()
    return places


def _local(uri: str) -> Path:
    """The path of a file from its URI in Spark: ``file:/a%20b`` locally, ``dbfs:/Volumes/…`` on Databricks."""
    return Path(unquote(urlsplit(uri).path))
