from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltatap.delta import columns
from deltatap.delta import tables as delta_tables
from deltatap.driver.landing import Landing
from deltatap.driver.merge import NewRows
from deltatap.errors import LandingError
from deltatap.messages import Control
from deltatap.plan_state import LANDED, PlanState
from deltatap.state import RunState
from deltatap.worker.journal import write_journal

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

RUN = "run-1"
AT = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
def landing(spark: SparkSession, empty_captures: Path, tables: Path, tmp_path: Path) -> Landing:
    shutil.copytree(empty_captures, tables / "captures")
    state = RunState(tmp_path / "state" / RUN)
    state.prepare()
    return Landing(spark, str(tables / "captures"), state, keep_interrupted=False, new_rows=NewRows(state), doubt_s=0.0)


def row(at: int, status: str = "completed", **values: Any) -> dict[str, Any]:
    error = None if status == "completed" else {"type": "server"}
    made: dict[str, Any] = dict.fromkeys(column.name for column in columns.JOURNAL)
    return made | {
        "run_id": RUN, "request_id": f"r{at}", "mode": "stream", "status": status, "error": error, "text": "t",
        "retries": [], "finished_at": AT, "plan": 1, "part": 0, "row": at, **values,
    }  # fmt: skip


def write(landing: Landing, name: str, *rows: dict[str, Any]) -> Path:
    batch = pa.RecordBatch.from_pylist(list(rows), columns.arrow_schema(columns.JOURNAL))
    return write_journal(landing.state.journal, name, [batch])


def landed(landing: Landing) -> dict[str, Any]:
    rows = landing.spark.table(delta_tables.quoted(landing.captures)).collect()
    assert len({r["request_id"] for r in rows}) == len(rows)
    return {r["request_id"]: r for r in rows}


def recorded(landing: Landing) -> list[int]:
    return sorted(landing.state.plan(1).landed_rows(0).tolist())


def test_files_are_landed_recorded_and_deleted(landing: Landing) -> None:
    write(landing, "a", row(0), row(1))
    write(landing, "b", row(2))
    assert landing.tick() == 2
    assert set(landed(landing)) == {"r0", "r1", "r2"}
    assert recorded(landing) == [0, 1, 2]
    assert list(landing.state.journal.iterdir()) == []
    assert landing.tick() == 0


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that landing commits, in order."""
    seen: list[str] = []
    commit = delta_tables.commit

    def record(spark: SparkSession, sql: str) -> None:
        seen.append(sql)
        commit(spark, sql)

    monkeypatch.setattr(delta_tables, "commit", record)
    return seen


@pytest.fixture
def first(landing: Landing) -> Landing:
    """The landing of a run's first driver."""
    landing.state.publish(Control(epoch=1, beat=1))
    landing.new_rows.epoch = 1
    return landing


def only_inserts(sql: str) -> bool:
    return "WHEN MATCHED" not in sql


def test_a_file_of_several_batches_lands_as_one(landing: Landing) -> None:
    """An answer with many copies is such a file."""
    schema = columns.arrow_schema(columns.JOURNAL)
    batches = [pa.RecordBatch.from_pylist([row(2 * at), row(2 * at + 1)], schema) for at in range(3)]
    write_journal(landing.state.journal, "a", batches)
    landing.tick()
    assert sorted(landed(landing)) == [f"r{at}" for at in range(6)]
    assert recorded(landing) == list(range(6))


def test_the_first_driver_of_a_run_only_inserts(first: Landing, merges: list[str]) -> None:
    write(first, "a", row(0), row(1, "failed", error={"type": "invalid_request"}, finished_at=None))
    first.tick()
    write(first, "b", row(2, finished_at=AT + timedelta(seconds=9)))
    first.tick()
    assert set(landed(first)) == {"r0", "r1", "r2"}
    assert all(map(only_inserts, merges))
    assert len(merges) == 2


@pytest.mark.slow
@pytest.mark.parametrize("finished_at", [AT, None])
def test_rows_committed_but_not_recorded_are_not_inserted_again(
    first: Landing, merges: list[str], monkeypatch: pytest.MonkeyPatch, finished_at: datetime | None
) -> None:
    """The process survives the error, and its next merge matches the rows that are already there."""
    write(first, "a", row(0, finished_at=finished_at))
    with monkeypatch.context() as patch:
        patch.setattr(PlanState, "add_landed", lambda *_: 1 / 0)
        with pytest.raises(Exception, match="division by zero"):
            first.tick()
    first.drain()
    assert [only_inserts(sql) for sql in merges] == [True, False]
    assert set(landed(first)) == {"r0"}
    # A merge that only inserts does not add the row again either.
    write(first, "b", row(0, finished_at=finished_at))
    monkeypatch.setattr(NewRows, "are_all", lambda *_: True)
    first.drain()
    assert only_inserts(merges[-1])
    assert set(landed(first)) == {"r0"}


@pytest.mark.slow
def test_rows_that_may_replace_others_are_merged(first: Landing, merges: list[str]) -> None:
    write(first, "a", row(0, "interrupted"))
    first.tick()
    later = AT + timedelta(seconds=5)
    write(first, "b", row(0, text="a zombie's", finished_at=later))
    first.tick()
    write(first, "c", row(1, "failed"), row(1, text="whole", finished_at=later))
    first.tick()
    write(first, "d", row(2, plan=7))
    first.tick()
    first.state.publish(Control(epoch=2, beat=1))
    write(first, "e", row(3))
    first.tick()
    assert [only_inserts(sql) for sql in merges] == [True, False, False, False, False]
    assert {key: r["text"] for key, r in landed(first).items()} == {
        "r0": "a zombie's", "r1": "whole", "r2": "t", "r3": "t",
    }  # fmt: skip


def test_a_conflicting_commit_is_retried(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses Delta's error messages. In test_faults.py another writer commits during a run."""
    errors = iter(
        ["[DELTA_CONCURRENT_DELETE_READ] ConcurrentDeleteReadException: OPTIMIZE", "ConcurrentAppendException"]
    )
    commit = type(landing.spark).sql

    def conflicting(self: SparkSession, sql: str) -> DataFrame:
        if "MERGE" in sql and (error := next(errors, None)):
            raise RuntimeError(error)
        return commit(self, sql)

    write(landing, "a", row(0))
    monkeypatch.setattr(type(landing.spark), "sql", conflicting)
    landing.tick()
    assert set(landed(landing)) == {"r0"}
    assert next(errors, None) is None


@pytest.mark.slow
def test_landing_the_same_rows_again_changes_nothing(landing: Landing) -> None:
    write(landing, "a", row(0, text="first"))
    landing.tick()
    # After a crash between commit and deletion, a new process finds the same rows again, and others.
    write(landing, "b", row(0, text="again"), row(0, text="and again"), row(1))
    again = Landing(
        landing.spark, landing.captures, landing.state, keep_interrupted=False, new_rows=NewRows(landing.state)
    )
    again.drain()
    assert {key: r["text"] for key, r in landed(landing).items()} == {"r0": "first", "r1": "t"}
    assert recorded(landing) == [0, 1]


@pytest.mark.slow
def test_only_rows_that_are_not_final_are_replaced(landing: Landing) -> None:
    later = AT + timedelta(seconds=5)
    write(
        landing,
        "a",
        row(0, "failed"),
        row(1, "interrupted"),
        row(2, "failed", error={"type": "invalid_request"}),
        row(3),
    )
    landing.tick()
    write(landing, "b", *(row(at, text="new", finished_at=later) for at in range(4)))
    landing.tick()
    assert {key: r["text"] for key, r in landed(landing).items()} == {"r0": "new", "r1": "new", "r2": "t", "r3": "t"}


def test_of_rows_with_equal_keys_a_final_row_wins_then_the_latest(landing: Landing) -> None:
    later = AT + timedelta(seconds=5)
    write(landing, "a", row(0, text="final"), row(1, "failed", text="early"))
    write(
        landing, "b", row(0, "failed", text="late", finished_at=later), row(1, "failed", text="late", finished_at=later)
    )
    landing.tick()
    assert {key: r["text"] for key, r in landed(landing).items()} == {"r0": "final", "r1": "late"}


@pytest.mark.slow
def test_a_row_that_was_held_lands_with_the_results_of_its_checks(landing: Landing) -> None:
    checked = [row(at, status, partial_moderation="[]") for at, status in ((0, "completed"), (1, "interrupted"))]
    held = [{**each, "partial_moderation": None} for each in checked]
    write(landing, "b", *checked, *held)
    landing.tick()
    write(landing, "a", *held)
    landing.tick()
    assert [landed(landing)[name]["partial_moderation"] for name in ("r0", "r1")] == ["[]", "[]"]


def test_a_truncated_file_is_set_aside_and_the_others_land(landing: Landing) -> None:
    write(landing, "a", row(0))
    broken = write(landing, "b", row(1))
    broken.write_bytes(broken.read_bytes()[:100])
    landing.drain()
    assert set(landed(landing)) == {"r0"}
    assert [path.name for path in landing.set_aside] == ["b.parquet"]
    assert (landing.state.aside / "b.parquet").exists()
    assert recorded(landing) == [0], "its requests are owed again"


def test_what_is_no_file_of_the_journal_is_set_aside_and_odd_names_land(landing: Landing) -> None:
    write(landing, "a [1] {b,c} *%20", row(0))
    (landing.state.journal / "folder.parquet").mkdir()
    pq.write_table(pa.table({"a": [1]}), landing.state.journal / "other.parquet")
    (landing.state.journal / "zero.parquet").write_bytes(b"")
    landing.drain()
    assert set(landed(landing)) == {"r0"}
    assert [path.name for path in landing.set_aside] == ["folder.parquet", "other.parquet", "zero.parquet"]
    pq.write_table(pa.table({"a": [1]}), landing.state.journal / "alone.parquet")
    landing.drain()
    assert set(landed(landing)) == {"r0"}
    assert landing.set_aside[-1].name == "alone.parquet"


def test_a_truncated_file_alone_is_set_aside(landing: Landing) -> None:
    (landing.state.journal / "only.parquet").write_bytes(b"PAR1")
    landing.drain()
    assert [path.name for path in landing.set_aside] == ["only.parquet"]


@pytest.mark.slow
def test_a_file_whose_deletion_failed_is_deleted_later(landing: Landing) -> None:
    path = write(landing, "a", row(0))
    content = path.read_bytes()
    landing.tick()
    path.write_bytes(content)  # as if its deletion had failed
    landing.drain()
    assert not path.exists()
    assert set(landed(landing)) == {"r0"}


def test_records_of_landed_rows_are_compacted(landing: Landing) -> None:
    plan = landing.state.plan(1)
    for at in range(200):
        plan.add_landed(np.array([(0, at), (1, at)], LANDED))
    assert plan.landed_rows(1).tolist() == list(range(200))
    files = list((plan.folder / "landed").iterdir())
    assert len(files) < 100
    assert sum(path.stat().st_size for path in files) < 400 * 16


@pytest.mark.slow
def test_files_of_many_small_merges_are_compacted(
    landing: Landing, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltatap.driver.landing._COMPACT_AT_LEAST", 3)
    for at in range(4):
        write(landing, f"f{at}", row(at))
        landing.tick()
    before = spark.sql(f"DESCRIBE DETAIL {delta_tables.quoted(landing.captures)}").collect()[0]["numFiles"]
    landing.compact()
    after = spark.sql(f"DESCRIBE DETAIL {delta_tables.quoted(landing.captures)}").collect()[0]
    assert (before, after["numFiles"]) == (4, 1)
    assert len(landed(landing)) == 4
    landing.compact()
    version = spark.sql(f"DESCRIBE HISTORY {delta_tables.quoted(landing.captures)}").count()
    assert version == 6, "a second compaction does nothing"


@pytest.mark.slow
def test_captures_are_clustered_by_the_columns_that_analysis_filters_on(spark: SparkSession, tables: Path) -> None:
    path = str(tables / "clustered")
    for _ in range(2):
        delta_tables.ensure(spark, path, columns.CAPTURES, columns.CAPTURES_PROPERTIES, columns.CAPTURES_CLUSTERED_BY)
    detail = spark.sql(f"DESCRIBE DETAIL {delta_tables.quoted(path)}").collect()[0]
    assert tuple(detail["clusteringColumns"]) == columns.CAPTURES_CLUSTERED_BY


@pytest.mark.slow
def test_keep_waits_and_then_lands_all_waiting_files_in_one_merge(landing: Landing, merges: list[str]) -> None:
    with mock.patch("deltatap.driver.landing.time.monotonic") as now:
        for at, name in enumerate("abc"):
            now.return_value = at * 14.0
            write(landing, name, row(ord(name)))
            landing.keep()
        assert not merges, "no file has waited for the interval"
        now.return_value = 30.0
        landing.keep()
        assert len(merges) == 1
        write(landing, "d", row(1))
        landing.keep()
        assert len(merges) == 1
    landing.drain()
    assert set(landed(landing)) == {"r97", "r98", "r99", "r1"}


@pytest.mark.slow
def test_keep_lands_at_once_when_there_are_files_for_a_batch(
    landing: Landing, merges: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltatap.driver.landing._FILES_PER_BATCH", 2)
    write(landing, "a", row(97))
    landing.keep()
    assert not merges
    for name in "bc":
        write(landing, name, row(ord(name)))
    landing.keep()
    assert len(merges) == 2
    assert set(landed(landing)) == {"r97", "r98", "r99"}


def test_files_that_another_driver_landed_meanwhile_are_left_out(landing: Landing) -> None:
    gone = write(landing, "a", row(0))
    write(landing, "b", row(1))
    files = landing._waiting()
    gone.unlink()
    landing._land(files)
    assert set(landed(landing)) == {"r1"}
    assert landing.set_aside == []


@pytest.mark.slow
def test_files_that_cannot_be_deleted_end_the_drain(landing: Landing) -> None:
    write(landing, "a", row(0))
    with mock.patch.object(Path, "unlink"), pytest.raises(LandingError, match="cannot land the files of "):
        landing.drain()
    landing.drain()
    assert set(landed(landing)) == {"r0"}


def test_a_file_without_rows_is_deleted(landing: Landing, merges: list[str]) -> None:
    write(landing, "a")
    landing.drain()
    assert not merges
