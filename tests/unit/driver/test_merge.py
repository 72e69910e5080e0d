"""The decisions of landing, without Spark."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from deltatap.delta.final import final_sql
from deltatap.driver.landing import _escaped
from deltatap.driver.merge import NewRows, insert_sql, merge_sql
from deltatap.messages import Control
from deltatap.plan_state import LANDED
from deltatap.state import RunState

if TYPE_CHECKING:
    from pathlib import Path

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def first(tmp_path: Path) -> NewRows:
    """The state of a run that had no rows when its driver started."""
    state = RunState(tmp_path / "run")
    state.prepare()
    state.publish(Control(epoch=3, beat=1))
    return NewRows(state, epoch=3)


def rows(*places: tuple[int, int]) -> Any:
    return np.array(list(places), LANDED)


def test_rows_of_a_new_run_are_new_until_they_have_landed(first: NewRows) -> None:
    assert first.are_all({3: rows((0, 0), (0, 1))})
    first.state.plan(3).add_landed(rows((0, 1)))
    assert first.are_all({3: rows((0, 0), (1, 1))})
    assert not first.are_all({3: rows((0, 0), (0, 1))})


def test_rows_may_not_be_new_if_the_run_had_rows_before(first: NewRows) -> None:
    first.epoch = None
    assert not first.are_all({3: rows((0, 0))})


def test_rows_may_not_be_new_if_some_belong_to_another_plan(first: NewRows) -> None:
    assert not first.are_all({2: rows((0, 0))})
    assert not first.are_all({3: rows((0, 0)), 2: rows((0, 0))})


def test_duplicate_rows_in_a_batch_are_not_new(first: NewRows) -> None:
    assert not first.are_all({3: rows((0, 0), (0, 0))})


def test_rows_may_not_be_new_once_another_driver_has_taken_over(first: NewRows) -> None:
    first.state.publish(Control(epoch=4, beat=1))
    assert not first.are_all({3: rows((0, 0))})


def test_rows_may_not_be_new_after_a_commit_that_was_not_recorded(first: NewRows) -> None:
    first.recorded = False
    assert not first.are_all({3: rows((0, 0))})


def test_an_insert_reads_only_rows_as_new_as_the_batch() -> None:
    sql = insert_sql("data/captures", "view", "run-1", pa.chunked_array([[AT, AT.replace(hour=13)]]))
    assert "(t.finished_at >= TIMESTAMP '2026-11-20 12:00:00.000000Z')" in sql
    assert "WHEN MATCHED" not in sql


def test_an_insert_of_rows_without_a_call_also_reads_rows_without_a_call() -> None:
    finished = pa.chunked_array([pa.array([AT, None], pa.timestamp("us", tz="UTC"))])
    sql = insert_sql("data/captures", "view", "run-1", finished)
    assert "(t.finished_at IS NULL OR t.finished_at >= TIMESTAMP '2026-11-20 12:00:00.000000Z')" in sql
    none = insert_sql(
        "data/captures", "view", "run-1", pa.chunked_array([pa.array([None], pa.timestamp("us", tz="UTC"))])
    )
    assert "(t.finished_at IS NULL)" in none


@pytest.mark.parametrize("keep", [False, True])
def test_a_merge_replaces_only_rows_that_are_not_final(keep: bool) -> None:  # noqa: FBT001
    sql = merge_sql("data/captures", "view", "run-1", keep_interrupted=keep)
    assert "ON t.run_id = 'run-1' AND t.run_id = s.run_id AND t.request_id = s.request_id AND t.mode = s.mode" in sql
    assert f"WHEN MATCHED AND NOT {final_sql('t', keep_interrupted=keep)} AND NOT coalesce(t.finished_at = s." in sql


def test_spark_reads_a_path_literally() -> None:
    assert _escaped("/s[1]/{a,b}/*?/x\\y/a b%20#é") == r"/s\[1\]/\{a,b\}/\*\?/x\\y/a b%20#é"


def test_a_merge_names_any_run_id() -> None:
    assert "ON t.run_id = CAST(X'612762' AS STRING) AND" in merge_sql("c", "v", "a'b", keep_interrupted=False)
    nothing = pa.chunked_array([pa.array([None], pa.timestamp("us", tz="UTC"))])
    assert "ON t.run_id = CAST(X'612762' AS STRING) AND" in insert_sql("c", "v", "a'b", nothing)
