"""Random crashes of journal writes and landing: every row lands exactly once, and no paid row is lost."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from deltatap.delta import columns
from deltatap.delta import tables as delta_tables
from deltatap.driver.landing import Landing
from deltatap.driver.merge import NewRows
from deltatap.messages import Control
from deltatap.plan_state import PlanState
from deltatap.state import RunState
from deltatap.worker.held import SUFFIX
from deltatap.worker.journal import journaled_rows, write_journal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUN = "run-1"
FINAL = ("completed", "failed")


class Crash(Exception):  # noqa: N818 - simulates the death of a process
    """The process dies here."""


class JournalAndLanding(RuleBasedStateMachine):
    """One run's state folder and captures table. The model records which rows were journaled completely."""

    spark: ClassVar[SparkSession]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.captures = str(self.folder / "captures")
        delta_tables.ensure(self.spark, self.captures, columns.CAPTURES)
        self.state = RunState(self.folder / "state" / RUN)
        self.state.prepare()
        self.state.publish(Control(epoch=1, beat=1))
        self.landing = Landing(
            self.spark, self.captures, self.state, keep_interrupted=False, new_rows=NewRows(self.state, 1), doubt_s=0.0
        )
        self.clock = datetime(2026, 11, 21, tzinfo=UTC)
        self.written: dict[int, list[tuple[str, str]]] = {}
        self.damaged: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            try:
                self.check_that_every_row_landed_once()
            finally:
                shutil.rmtree(self.folder)

    def row(self, at: int, status: str) -> dict[str, Any]:
        self.clock += timedelta(seconds=1)
        made: dict[str, Any] = dict.fromkeys(column.name for column in columns.JOURNAL)
        error = {"type": "invalid_request" if status == "failed" else "server"} if status != "completed" else None
        text = uuid.uuid4().hex
        self.written.setdefault(at, []).append((status, text))
        return made | {
            "run_id": RUN, "request_id": f"r{at}", "mode": "stream", "status": status, "error": error, "text": text,
            "retries": [], "finished_at": self.clock, "plan": 1, "part": at % 2, "row": at,
        }  # fmt: skip

    def write(self, rows: list[dict[str, Any]], suffix: str = ".parquet") -> Path:
        batch = pa.RecordBatch.from_pylist(rows, columns.arrow_schema(columns.JOURNAL))
        return write_journal(self.state.journal, uuid.uuid4().hex, [batch], suffix)

    @rule(
        rows=st.lists(
            st.tuples(st.integers(0, 30), st.sampled_from(["completed", "failed", "interrupted"])),
            min_size=1,
            max_size=6,
        )
    )
    def captures_are_journaled(self, rows: list[tuple[int, str]]) -> None:
        self.write([self.row(at, status) for at, status in rows])

    @rule(at=st.integers(0, 30))
    def a_worker_dies_while_it_writes(self, at: int) -> None:
        known = {key: list(value) for key, value in self.written.items()}
        with mock.patch.object(Path, "replace", side_effect=Crash), pytest.raises(Crash):
            self.write([self.row(at, "completed")])
        self.written = known  # a file that was not renamed does not count as written

    @rule(at=st.integers(0, 30), dies=st.booleans())
    def a_worker_checks_a_text(self, at: int, dies: bool) -> None:  # noqa: FBT001 - a strategy
        row = self.row(at, "completed")
        held = self.write([row], SUFFIX)
        if not dies:
            self.write([row])
            held.unlink()

    @rule(at=st.integers(31, 40))
    def a_file_is_cut_short(self, at: int) -> None:
        path = self.write([self.row(at, "completed")])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        self.written.pop(at)
        self.damaged.add(at)

    @rule()
    def landing_succeeds(self) -> None:
        self.landing.tick()

    @rule(
        where=st.sampled_from(
            ["before the commit", "after the commit", "before the deletions", "between the deletions"]
        )
    )
    def landing_dies(self, where: str) -> None:
        with self.crashing(where):
            died = None
            try:
                self.landing.tick()
            except Exception as error:  # noqa: BLE001 - Spark wraps it
                died = f"{type(error)} {error}"
        assert died is None or "Crash" in died
        self.a_new_driver_starts()

    @rule()
    def a_new_driver_starts(self) -> None:
        self.landing = Landing(
            self.spark, self.captures, self.state, keep_interrupted=False, new_rows=NewRows(self.state), doubt_s=0.0
        )

    @rule()
    def landing_fails_after_its_commit(self) -> None:
        """The process survives the error."""
        with self.crashing("after the commit"), suppress(Exception):
            self.landing.tick()

    @contextmanager
    def crashing(self, where: str) -> Iterator[None]:
        if where == "before the commit":
            with mock.patch("deltatap.driver.landing.one_per_key", side_effect=Crash("Crash")):
                yield
        elif where == "after the commit":
            with mock.patch.object(PlanState, "add_landed", side_effect=Crash("Crash")):
                yield
        elif where == "before the deletions":
            with mock.patch.object(Path, "unlink", side_effect=Crash("Crash")):
                yield
        else:
            deleted: list[Path] = []
            unlink = Path.unlink

            def once(path: Path, **options: Any) -> None:
                if path.parent == self.state.journal and deleted:
                    raise Crash("Crash")
                deleted.append(path)
                unlink(path, **options)

            with mock.patch.object(Path, "unlink", once):
                yield

    @invariant()
    def a_retried_task_finds_all_journaled_rows(self) -> None:
        """So that no row is paid for twice."""
        if not hasattr(self, "state"):
            return
        for part in (0, 1):
            known = {*journaled_rows(self.state.journal, 1, part), *self.state.plan(1).landed_rows(part)}
            assert {at for at in self.written if at % 2 == part} <= known

    def check_that_every_row_landed_once(self) -> None:
        self.landing.drain()
        assert not [*self.state.journal.glob("*.parquet"), *self.state.journal.glob(f"*{SUFFIX}")]
        rows = self.spark.table(delta_tables.quoted(self.captures)).collect()
        assert sorted(row["request_id"] for row in rows) == sorted(f"r{at}" for at in self.written)
        for row in rows:
            history = self.written[int(row["request_id"][1:])]
            assert (row["status"], row["text"]) in history
            if any(status in FINAL for status, _ in history):
                assert row["status"] in FINAL, "a final row is never replaced by a row that is not final"


def test_random_crashes_neither_lose_nor_duplicate_rows(spark: SparkSession) -> None:
    JournalAndLanding.spark = spark
    run_state_machine_as_test(
        JournalAndLanding,
        settings=hypothesis_settings(max_examples=12, stateful_step_count=12, deadline=None, print_blob=True),
    )
