"""Landing: merges a run's journal into ``captures``, so that each capture is there exactly once.

Knows how journal files become rows, and when a file may be deleted: after the commit, and after its rows were recorded
as landed. Every step can be repeated, because the MERGE inserts each row of the journal only once. So a step that fails
because of the storage is repeated. A file counts as damaged only if it stays unreadable. ``merge.py`` builds the MERGE
statements, and ``run.py`` decides when to land.
"""

from __future__ import annotations

import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deltatap.delta import columns, tables
from deltatap.driver.merge import NewRows, insert_sql, merge_sql, one_per_key
from deltatap.driver.trouble import UNREAD, may_pass
from deltatap.errors import LandingError
from deltatap.files import OLD_S
from deltatap.plan_state import LANDED
from deltatap.worker.held import promote
from deltatap.worker.journal import DamagedError, read_columns, readable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pyspark.sql import SparkSession

    from deltatap.config import Settings
    from deltatap.state import RunState

# While a run captures, each merge delays the streams of this machine, and merging many files costs little more than
# merging one. So a merge waits until a file is this old, or until there are enough files for one batch.
_INTERVAL_S = 30.0
_FILES_PER_BATCH = 200
# Each merge adds one or two small files. They are compacted after this many merges during a run, and at its end only if
# there were at least the smaller number of merges.
_COMPACT_EVERY, _COMPACT_AT_LEAST = 100, 20
# How long landing may fail because of the storage.
_GIVE_UP_S = 120.0
_RETRY_S = 1.0
_WHERE = pa.schema(
    [
        each
        for each in columns.arrow_schema(columns.JOURNAL)
        if each.name in ("run_id", "plan", "part", "row", "finished_at")
    ]
)


@dataclass(slots=True)
class Landing:
    """Lands one run's journal. Its caller makes sure that only one thread uses it at a time.

    Attributes:
        spark: the session.
        captures: the table.
        state: the run's state folder.
        keep_interrupted: whether interrupted rows are final.
        new_rows: knows whether the rows of a batch can be inserted without looking at all rows of the run.
        files: how many journal files have landed.
        doubt_s: a file is damaged if it cannot be read for this long. Until then, it may be incomplete.
        set_aside: journal files that could not be read; their requests are owed again.
    """

    spark: SparkSession
    captures: str
    state: RunState
    keep_interrupted: bool
    new_rows: NewRows
    files: int = 0
    doubt_s: float = OLD_S
    set_aside: list[Path] = field(default_factory=list)
    _seen: dict[Path, float] = field(default_factory=dict)
    _doubted: dict[Path, float] = field(default_factory=dict)
    _kept: dict[Path, float] = field(default_factory=dict)
    _failing_since: float | None = None
    _merges: int = 0

    @classmethod
    def of(cls, spark: SparkSession, settings: Settings, state: RunState) -> Landing:
        """The landing of a run with these settings."""
        return cls(spark, settings.captures.table, state, settings.capture.keep_interrupted, NewRows(state))

    def keep(self) -> None:
        """Land the journal if a file has waited for the interval, or if there are enough files for one batch.

        Landed files are kept for a while, because a worker may not see the record of their rows yet.
        """
        now = time.monotonic()
        try:
            self._delete(path for path, at in list(self._kept.items()) if now - at >= OLD_S)
            self._seen = {path: self._seen.get(path, now) for path in self._waiting()}
            if len(self._seen) >= _FILES_PER_BATCH or now - min(self._seen.values(), default=now) >= _INTERVAL_S:
                self._land_all()
            self._failing_since = None
        except Exception as error:
            self._failing_since = now if self._failing_since is None else self._failing_since
            if not may_pass(error) or now - self._failing_since > _GIVE_UP_S:
                raise

    def tick(self) -> int:
        """Land the files that are in the journal now, and delete them.

        Returns:
            How many files have landed.
        """
        before = self.files
        self._land_all()
        self._delete(list(self._kept))
        return self.files - before

    def drain(self) -> None:
        """Land until the journal is empty. Call this when all workers have ended.

        Raises:
            LandingError: if files do not land.
        """
        since = time.monotonic()
        before: list[Path] = []
        while True:
            failure, waiting = None, before
            try:
                promote(self.state.journal, self.state.files)
                self.tick()
                if not (waiting := self._waiting()):
                    return
            except Exception as error:
                if not may_pass(error):
                    raise
                failure = error
            if waiting != before:
                since, before = time.monotonic(), waiting
                continue
            passes = failure is not None or any(path in self._doubted for path in waiting)
            # An old listing may show files that have been deleted.
            if time.monotonic() - since >= (_GIVE_UP_S if passes else self.doubt_s):
                where = f"{self.state.journal} in table {self.captures}"
                raise failure or LandingError(f"cannot land the files of {where}; the next capture tries again")
            time.sleep(_RETRY_S)

    def finish(self) -> None:
        """Land until the journal is empty. Deleting its folder proves that it is.

        Raises:
            LandingError: if files do not land.
        """
        since = None
        while True:
            self.drain()
            now = time.monotonic()
            since = now if since is None else since
            with suppress(OSError):
                if self.state.remove_journal():
                    return
            # If something else prevents the deletion of the folder, every capture is visible by then.
            if now - since >= OLD_S:
                return
            time.sleep(_RETRY_S)

    def kept(self) -> int:
        """The number of journal files that have landed and are not deleted yet."""
        return len(self._kept)

    def compact(self) -> None:
        """Compact the small files of many merges, clustered by the columns that analysis filters on."""
        if self._merges >= _COMPACT_AT_LEAST:
            self.spark.sql(f"OPTIMIZE {tables.quoted(self.captures)}")
            self._merges = 0

    def _waiting(self) -> list[Path]:
        return [path for path in self.state.files.names(self.state.journal, ".parquet") if path not in self._kept]

    def _land_all(self) -> None:
        waiting = self._waiting()
        for at in range(0, len(waiting), _FILES_PER_BATCH):
            self._land(waiting[at : at + _FILES_PER_BATCH])

    def _land(self, files: Sequence[Path]) -> None:
        """Land a batch of files. Damaged files are set aside, and files that may be damaged are left out."""
        try:
            self._merge(files)
        except Exception as error:
            # A damaged file makes its whole batch fail, and so does a file that another driver has landed meanwhile.
            damaged = [path for path in files if not readable(path, self.state.files)]
            self._set_aside(path for path in damaged if self._is_damaged(path))
            left = [path for path in files if path not in damaged and self.state.files.exists(path)]
            if len(left) < len(files):
                if left:
                    self._land(left)
            elif len(files) > 1 and UNREAD in str(error):
                self._land_halves(files)
            else:
                raise

    def _is_damaged(self, path: Path) -> bool:
        """Whether a file has been unreadable for long enough to be damaged."""
        now = time.monotonic()
        return now - self._doubted.setdefault(path, now) >= self.doubt_s

    def _land_halves(self, files: Sequence[Path]) -> None:
        """Land a batch in which Spark cannot read a file that pyarrow can read.

        The file is set aside only if another one has landed: otherwise, Spark may be unable to read any file.
        """
        before, half = self.files, len(files) // 2
        failed: list[tuple[Sequence[Path], Exception]] = []
        for some in (files[:half], files[half:]):
            try:
                self._land(some)
            except Exception as error:  # noqa: BLE001 - raised again if its file is not set aside
                failed.append((some, error))
        for some, why in failed:
            if len(some) > 1 or self.files == before or UNREAD not in str(why):
                raise why
            self._set_aside(path for path in some if self._is_damaged(path))

    def _set_aside(self, files: Iterable[Path]) -> None:
        for path in files:
            with suppress(FileNotFoundError):  # another driver has set it aside
                self.state.files.move(path, self.state.aside / path.name)
                self.set_aside.append(path)

    def _delete(self, files: Iterable[Path]) -> None:
        for path in files:
            self.state.files.delete(path)
            self._kept.pop(path, None)

    def _merge(self, files: Sequence[Path]) -> None:
        """Merge a batch of files, then record its rows as landed. After that, the files may be deleted."""
        where = pa.concat_tables([read_columns(path, _WHERE, self.state.files) for path in files])
        if any(where[name].null_count for name in ("plan", "part", "row")):
            raise DamagedError(f"a Parquet file in {self.state.journal} does not belong to the journal")
        plans = {
            plan: _places(where.filter(pc.equal(where["plan"], plan))) for plan in pc.unique(where["plan"]).to_pylist()
        }
        if where.num_rows:
            self._commit([str(path) for path in files], where, new=self.new_rows.are_all(plans))
        for plan, places in plans.items():
            self.state.plan(plan).add_landed(places)
        self.new_rows.record(plans)
        now = time.monotonic()
        for path in files:
            self._kept[path] = now
            self._doubted.pop(path, None)
            self.files += 1
        if self._merges >= _COMPACT_EVERY:
            # Small files are slower to read, but landing must continue.
            with suppress(Exception):
                self.compact()
            self._merges = min(self._merges, _COMPACT_AT_LEAST)

    def _commit(self, files: Sequence[str], where: pa.Table, *, new: bool) -> None:
        """Merge a batch.

        Args:
            files: the files.
            where: their rows.
            new: whether no row can replace another one.
        """
        schema = columns.spark_schema(columns.JOURNAL)
        # A file that Spark cannot read must fail the merge, regardless of the session's settings.
        reader = self.spark.read.schema(schema).options(ignoreCorruptFiles="false", ignoreMissingFiles="false")
        rows, run_id = reader.parquet(*map(_escaped, files)), where["run_id"][0].as_py()
        view = f"deltatap_{uuid.uuid4().hex}"
        if new:
            sql = insert_sql(self.captures, view, run_id, where["finished_at"])
        else:
            rows = one_per_key(rows, self.keep_interrupted)
            sql = merge_sql(self.captures, view, run_id, keep_interrupted=self.keep_interrupted)
        rows.drop("plan", "part", "row").createOrReplaceTempView(view)
        self.new_rows.recorded = False
        try:
            tables.commit(self.spark, sql)
        finally:
            self.spark.catalog.dropTempView(view)
        self._merges += 1


def _places(where: pa.Table) -> np.ndarray[Any, Any]:
    """The (part, row) pairs of a batch's rows."""
    places = np.empty(where.num_rows, LANDED)
    places["part"], places["row"] = where["part"].to_numpy(), where["row"].to_numpy()
    return places


def _escaped(path: str) -> str:
    """A path for Spark's readers, which read `*`, `?`, `[`, `{` and the backslash as parts of a pattern."""
    return re.sub(r"([\\*?\[\]{}])", r"\\\1", path)


def set_aside(landing: Landing) -> list[str]:
    """Notes for the user about journal files that could not be read."""
    where = landing.state.aside
    return [f"journal file {path.name} could not be read and was set aside in {where}" for path in landing.set_aside]
