"""Landing: merges a run's journal into ``captures``, so that each capture is there exactly once.

Knows how journal files become rows, and when a file may be deleted: after the commit, and after its rows were recorded
as landed. One Structured Streaming query per run reads the files. Every step can be repeated: the journal and the MERGE
decide what is in the table, and the query's checkpoint is disposable. ``merge.py`` builds the MERGE statements, and
``run.py`` decides when to land.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pyarrow.compute as pc
from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

from deltatap.delta import columns, tables
from deltatap.driver.merge import NewRows, insert_sql, merge_sql, one_per_key
from deltatap.errors import LandingError
from deltatap.state import LANDED
from deltatap.worker.journal import readable

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

    from deltatap.config import Settings
    from deltatap.state import RunState

_FILES_PER_BATCH = 200
# Each merge adds one or two small files. They are compacted after this many merges during a run, and at its end only if
# there were at least the smaller number of merges.
_COMPACT_EVERY, _COMPACT_AT_LEAST = 100, 20
# The streaming source never forgets a file name. A new checkpoint after this many files keeps its list short.
_RENEW_AFTER_FILES = 20_000
# While a run captures, each merge delays the streams of this machine, and merging many files costs little more than
# merging one.
_CAPTURE_INTERVAL_S, _DRAIN_INTERVAL_S = 10, 1
_POLL_S = 0.1
_OVERDUE_S = 60.0
# If files are waiting and the query finds none for this long, it gets a new checkpoint.
_IDLE_S = 5.0


@dataclass(slots=True)
class Landing:
    """Lands one run's journal. Its caller makes sure that only one thread uses it at a time.

    Spark Connect pickles it with its merge function, so it holds nothing that cannot be pickled, such as a lock.

    Attributes:
        spark: the session.
        captures: the table.
        state: the run's state folder.
        keep_interrupted: whether interrupted rows are final.
        new_rows: knows whether the rows of a batch can be inserted without looking at all rows of the run.
        files: how many journal files have landed.
        set_aside: journal files that could not be read; their requests are owed again.
    """

    spark: SparkSession
    captures: str
    state: RunState
    keep_interrupted: bool
    new_rows: NewRows
    files: int = 0
    set_aside: list[Path] = field(default_factory=list)
    _query: StreamingQuery | None = None
    _interval_s: int = _CAPTURE_INTERVAL_S
    _seen: dict[Path, float] = field(default_factory=dict)
    _checkpoint: Path | None = None
    _in_checkpoint: int = 0
    _merges: int = 0

    @classmethod
    def of(cls, spark: SparkSession, settings: Settings, state: RunState) -> Landing:
        """The landing of a run with these settings."""
        return cls(spark, settings.captures.table, state, settings.capture.keep_interrupted, NewRows(state))

    def keep(self) -> None:
        """Make sure that new journal files land within a few seconds, without waiting for them.

        Once more files wait than one batch takes, files land as they arrive.
        """
        now = time.monotonic()
        self._seen = {path: self._seen.get(path, now) for path in self._waiting()}
        waited_s = now - min(self._seen.values(), default=now)
        broken = self._query is not None and self._query.exception() is not None
        if len(self._seen) > _FILES_PER_BATCH or waited_s > _OVERDUE_S or broken:
            self.tick()
        elif waited_s > _CAPTURE_INTERVAL_S:
            if self._in_checkpoint > _RENEW_AFTER_FILES:
                self._renew()
            self._running()

    def tick(self) -> int:
        """Land the files that are in the journal now. The query keeps running until :meth:`stop`.

        Returns:
            How many files have landed.
        """
        if self._interval_s != _DRAIN_INTERVAL_S:
            self.stop()
            self._interval_s = _DRAIN_INTERVAL_S
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
        try:
            while self._waiting():
                self.tick()
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop the query after its current batch. Captures that have not landed stay in the journal."""
        if self._query is not None:
            until = time.monotonic() + _OVERDUE_S
            while self._query.isActive and self._query.status["isTriggerActive"] and time.monotonic() < until:
                time.sleep(_POLL_S)
            self._query.stop()
            self._query = None

    def compact(self) -> None:
        """Compact the small files of many merges, clustered by the columns that analysis filters on."""
        if self._merges >= _COMPACT_AT_LEAST:
            self.spark.sql(f"OPTIMIZE {tables.quoted(self.captures)}")
            self._merges = 0

    def _waiting(self) -> list[Path]:
        return sorted(self.state.journal.glob("*.parquet"))

    def _await(self, files: list[Path]) -> None:
        renewed, idle_since = False, time.monotonic()
        while any(path.exists() for path in files):
            query = self._running()
            time.sleep(_POLL_S)
            if error := query.exception():
                self.stop()  # a query that has just failed can still be active, and would raise the same error again
                raise error
            status = query.status
            if status["isDataAvailable"] or status["isTriggerActive"]:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > _IDLE_S:
                # The query ignores a file that it has seen before. With a new checkpoint it sees the file again.
                if renewed:
                    where = f"{self.state.journal} in table {self.captures}"
                    raise LandingError(f"cannot land the files of {where}; the next start tries again")
                self._renew()
                renewed, idle_since = True, time.monotonic()

    def _renew(self) -> None:
        self.stop()
        if self._checkpoint is not None:
            shutil.rmtree(self._checkpoint, ignore_errors=True)
        self._checkpoint, self._in_checkpoint = None, 0

    def _running(self) -> StreamingQuery:
        """The query, started only if necessary: each start leaves a socket open in Python and the JVM."""
        if self._query is None or not self._query.isActive:
            if self._checkpoint is None:
                self._checkpoint = self.state.folder / f"checkpoint-{uuid.uuid4().hex}"
            journal = (
                self.spark.readStream.schema(columns.spark_schema(columns.JOURNAL))
                .option("maxFilesPerTrigger", _FILES_PER_BATCH)
                .option("maxFileAge", "36500d")
                .parquet(_escaped(self.state.journal))
                .select("*", F.col("_metadata.file_path").alias("_file"))
            )
            self._query = (
                journal.writeStream.foreachBatch(self._merge)
                .option("checkpointLocation", str(self._checkpoint))
                .trigger(processingTime=f"{self._interval_s} seconds")
                .start()
            )
        return self._query

    def _merge(self, batch: DataFrame, _batch_id: int) -> None:
        """Merge a batch, then record its rows as landed, then delete its files."""
        where = batch.select("run_id", "plan", "part", "row", "finished_at", "_file").toArrow()
        if not where.num_rows:
            return
        plans = {
            plan: _places(where.filter(pc.equal(where["plan"], plan))) for plan in pc.unique(where["plan"]).to_pylist()
        }
        rows, run_id = batch.drop("_file"), where["run_id"][0].as_py()  # a journal has one run
        view = f"deltatap_{uuid.uuid4().hex}"
        if self.new_rows.are_all(plans):
            sql = insert_sql(self.captures, view, run_id, where["finished_at"])
        else:
            rows = one_per_key(rows, self.keep_interrupted)
            sql = merge_sql(self.captures, view, run_id, keep_interrupted=self.keep_interrupted)
        rows.drop("plan", "part", "row").createOrReplaceTempView(view)
        self.new_rows.recorded = False
        try:
            tables.commit(batch.sparkSession, sql)
        finally:
            batch.sparkSession.catalog.dropTempView(view)
        self._merges += 1
        for plan, places in plans.items():
            self.state.plan(plan).add_landed(places)
        self.new_rows.recorded = True
        for file in pc.unique(where["_file"]).to_pylist():
            (self.state.journal / _name(file)).unlink(missing_ok=True)
            self.files += 1
            self._in_checkpoint += 1
        if self._merges >= _COMPACT_EVERY:
            # Small files are slower to read, but landing must continue.
            with suppress(Exception):
                self.compact()
            self._merges = min(self._merges, _COMPACT_AT_LEAST)


def _places(where: pa.Table) -> np.ndarray[Any, Any]:
    """The (part, row) pairs of a batch's rows."""
    places = np.empty(where.num_rows, LANDED)
    places["part"], places["row"] = where["part"].to_numpy(), where["row"].to_numpy()
    return places


def _escaped(folder: Path) -> str:
    """A path for Spark's readers, which read `*`, `?`, `[`, `{` and the backslash as parts of a pattern."""
    return re.sub(r"([\\*?\[\]{}])", r"\\\1", str(folder))


def _name(uri: str) -> str:
    """The name of a file from its URI in Spark: ``file:/a%20b`` locally, ``dbfs:/Volumes/…`` on Databricks."""
    return unquote(uri.rpartition("/")[2])
