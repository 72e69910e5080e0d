"""The lease belongs to the table: other spellings, copies, replaced tables, rows of the previous version."""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.analysis.queries import newest_runs
from deltatap.delta import columns
from deltatap.delta import tables as delta_tables
from deltatap.delta.identity import Identity
from deltatap.delta.prepare import GUARD, current_sql, guard, prepare_tables
from deltatap.delta.reader import SparkReader
from deltatap.driver import lease as leases
from deltatap.errors import ConfigError, RunningError
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.runs import capture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyspark.sql import SparkSession

    from deltatap.config import Settings
    from tests.simulation import Simulation


def of(tables: Path, captures: str, runs: str | None = None) -> Settings:
    tree = prompts.config(tables, "http://127.0.0.1:9/v1")
    return load_settings({**tree, "captures": {"table": captures}, "runs": {"table": runs or str(tables / "runs")}})


@pytest.fixture
def settings(spark: SparkSession, tables: Path) -> Settings:
    """Settings whose tables exist."""
    made = of(tables, str(tables / "captures"))
    prepare_tables(spark, made)
    return made


@pytest.fixture
def schema(spark: SparkSession) -> Iterator[str]:
    name = f"s{uuid.uuid4().hex[:8]}"
    spark.sql(f"CREATE SCHEMA {name}")
    yield name
    spark.sql(f"DROP SCHEMA {name} CASCADE")


def refused(spark: SparkSession, settings: Settings) -> None:
    with pytest.raises(RunningError, match="another run is active on captures table"):
        leases.acquire(spark, settings, "other")


@pytest.mark.slow
def test_a_path_has_one_lease_in_every_spelling(spark: SparkSession, tables: Path, settings: Settings) -> None:
    (tables / "link").symlink_to(tables / "captures")
    (tables / "up").symlink_to(tables)
    leases.acquire(spark, settings, "a")
    spellings = [f"{tables}/x/../captures", f"{tables}//captures/", f"{tables}/link", f"{tables}/up/captures", f"file:{tables}/captures"]  # fmt: skip
    for spelling in spellings:
        refused(spark, of(tables, spelling))
        assert [row["run_id"] for row in newest_runs(SparkReader(spark), of(tables, spelling), 5)] == ["a"]


@pytest.mark.slow
def test_a_catalog_table_has_one_lease_in_every_spelling(spark: SparkSession, tables: Path, schema: str) -> None:
    first = of(tables, f"{schema}.captures")
    prepare_tables(spark, first)
    leases.acquire(spark, first, "a")
    location = SparkReader(spark).identify(f"{schema}.captures").folder
    before = spark.catalog.currentDatabase()
    spark.catalog.setCurrentDatabase(schema)
    try:
        for spelling in (f"{schema.upper()}.CAPTURES", "captures", f"spark_catalog.`{schema}`.Captures", location):
            refused(spark, of(tables, str(spelling)))
    finally:
        spark.catalog.setCurrentDatabase(before)


@pytest.mark.slow
def test_a_copy_of_a_table_is_another_table(spark: SparkSession, tables: Path, settings: Settings) -> None:
    guard(spark, settings)
    leases.acquire(spark, settings, "a")
    shutil.copytree(tables / "captures", tables / "copy")
    for runs in (tables / "runs", tables / "own"):
        copy = of(tables, str(tables / "copy"), str(runs))
        prepare_tables(spark, copy)
        guard(spark, copy)
        lease = leases.acquire(spark, copy, "b")
        assert (lease.run_id, lease.others) == ("b", ())
        spark.sql(f"ALTER TABLE {delta_tables.quoted(copy.captures.table)} UNSET TBLPROPERTIES ('{GUARD}')")
    refused(spark, settings)


@pytest.mark.slow
def test_a_replaced_table_is_the_same_table(spark: SparkSession, settings: Settings) -> None:
    leases.acquire(spark, settings, "a")
    name = delta_tables.quoted(settings.captures.table)
    before = SparkReader(spark).identify(settings.captures.table).id
    spark.sql(f"CREATE OR REPLACE TABLE {name} USING DELTA AS SELECT * FROM {name} LIMIT 0")
    assert SparkReader(spark).identify(settings.captures.table).id != before
    refused(spark, settings)


@pytest.mark.slow
def test_runs_of_the_previous_version_count_and_it_sees_ours(
    spark: SparkSession, tables: Path, settings: Settings
) -> None:
    leases.acquire(spark, settings, "a")
    runs = delta_tables.quoted(settings.runs.table)
    row = spark.table(runs).collect()[0]
    assert row["captures"] == settings.captures.table, "the previous version looks for this name"
    spark.sql(f"UPDATE {runs} SET captures_id = NULL, captures_location = NULL")
    refused(spark, settings)
    refused(spark, of(tables, f"{tables}/x/../captures"))
    assert leases.acquire(spark, of(tables, str(tables / "elsewhere")), "b").others == ()


def test_a_table_remembers_its_runs_table(spark: SparkSession, tables: Path, settings: Settings) -> None:
    guard(spark, settings)
    guard(spark, of(tables, str(tables / "captures"), f"{tables}/x/../runs"))
    other = of(tables, str(tables / "captures"), str(tables / "other runs"))
    prepare_tables(spark, other)
    with pytest.raises(
        ConfigError, match=f"other runs: the runs on captures table .*captures are in file:{tables}/runs"
    ):
        guard(spark, other)
    shutil.copytree(tables / "runs", tables / "copy")
    with pytest.raises(ConfigError, match="copy: the runs on captures table"):
        guard(spark, of(tables, str(tables / "captures"), str(tables / "copy")))


def test_a_view_is_no_captures_table(spark: SparkSession, tables: Path, schema: str) -> None:
    first = of(tables, f"{schema}.captures")
    prepare_tables(spark, first)
    with pytest.raises(ConfigError, match="captures_current: expected a Delta table, found a view"):
        prepare_tables(spark, of(tables, f"{schema}.captures_current"))
    spark.table(f"{schema}.captures").createOrReplaceTempView("seen")
    try:
        with pytest.raises(ConfigError, match="seen: expected a Delta table, found a view"):
            prepare_tables(spark, of(tables, "seen"))
    finally:
        spark.catalog.dropTempView("seen")


def test_a_view_of_an_older_version_gains_the_columns_of_its_table(
    spark: SparkSession, tables: Path, schema: str
) -> None:
    settings = of(tables, f"{schema}.captures")
    prepare_tables(spark, settings)
    spark.sql(f"CREATE OR REPLACE VIEW {schema}.captures_current AS SELECT run_id FROM {schema}.captures")
    prepare_tables(spark, settings)
    assert spark.table(f"{schema}.captures_current").columns == spark.table(f"{schema}.captures").columns


@pytest.mark.slow
def test_a_table_of_an_older_version_gains_the_fields_of_its_structs(
    spark: SparkSession, tables: Path, schema: str
) -> None:
    """Also the fields of structs in arrays, and in the view."""
    settings = of(tables, f"{schema}.captures")
    older = columns.ddl(columns.CAPTURES).replace(", tokens: INT", "")
    spark.sql(f"CREATE TABLE {schema}.captures ({older}) USING DELTA CLUSTER BY (run_id)")
    chunk = "named_struct('ms', 1D, 'gap_ms', 0D, 'text', 'a', 'kind', 'content', 'choice', 0, 'event', 0, 'read', 0)"
    spark.sql(f"INSERT INTO {schema}.captures (run_id, chunks) VALUES ('r', array({chunk}))")
    spark.sql(f"CREATE VIEW {schema}.captures_current AS {current_sql(settings.captures.table)}")
    prepare_tables(spark, settings)
    prepare_tables(spark, settings)
    for name in ("captures", "captures_current"):
        table = spark.table(f"{schema}.{name}")
        assert delta_tables.differences(table.schema, columns.CAPTURES) == []
        (row,) = table.select("run_id", "chunks").collect()
        assert (row["run_id"], row["chunks"][0]["text"], row["chunks"][0]["tokens"]) == ("r", "a", None)
    assert spark.sql(f"DESCRIBE HISTORY {schema}.captures").count() == 3, "the second time, there is nothing to add"


def test_the_runs_table_has_no_deletion_vectors(spark: SparkSession, settings: Settings) -> None:
    name = "delta.enableDeletionVectors"
    assert SparkReader(spark).identify(settings.runs.table).properties[name] == "false"
    spark.sql(f"ALTER TABLE {delta_tables.quoted(settings.runs.table)} SET TBLPROPERTIES ('{name}' = 'true')")
    guard(spark, settings)
    assert SparkReader(spark).identify(settings.runs.table).properties[name] == "false"


@pytest.mark.slow
def test_of_two_starts_at_once_on_two_spellings_one_runs(spark: SparkSession, tables: Path, settings: Settings) -> None:
    spellings = (str(tables / "captures"), f"{tables}/x/../captures")
    for pair in range(2):
        at_once = threading.Barrier(2)
        outcomes: list[str | None] = []

        def start(spelling: str, name: str) -> None:
            at_once.wait()  # noqa: B023 - both threads end in this round
            try:
                outcomes.append(leases.acquire(spark, of(tables, spelling), name).run_id)  # noqa: B023
            except RunningError:
                outcomes.append(None)  # noqa: B023

        threads = [threading.Thread(target=start, args=(each, f"{pair}{n}")) for n, each in enumerate(spellings)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcome is None for outcome in outcomes) == [False, True], outcomes
        driver = json.dumps({**json.loads(leases.this_driver()), "start": "0"})
        runs = delta_tables.quoted(settings.runs.table)
        spark.sql(f"UPDATE {runs} SET status = 'completed', driver = {delta_tables.literal(driver)}")


@pytest.mark.slow
def test_of_two_runs_at_once_on_two_spellings_one_calls_the_prompts(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    prompts.write(spark, tables / "prompts", [("a", "Say a"), ("b", "Say b"), ("c", "Say c")])
    # No run ends before the other one asks for the lease.
    simulator.restore(speed=1, ttft_ms=1000, ttft_sigma=0)
    for pair in range(1, 5):
        at_once = threading.Barrier(2)
        outcomes: list[str] = []

        def start(spelling: str) -> None:
            at_once.wait()  # noqa: B023 - both threads end in this round
            try:
                ended, _ = capture(spark, tables, simulator, captures={"table": spelling}, capture={"owed": "all"})
                outcomes.append(ended.row["status"])  # noqa: B023
            except RunningError:
                outcomes.append("refused")  # noqa: B023

        threads = [threading.Thread(target=start, args=(f"{tables}/{each}",)) for each in ("captures", "x/../captures")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (sorted(outcomes), simulator.counts()["calls"]) == (["completed", "refused"], 3 * pair)


@pytest.mark.parametrize(
    ("identity", "id_", "location", "same"),
    [
        (Identity("t", "1", "file:/a"), "2", "file:/a", True),
        (Identity("t", "1", "file:/a"), "1", "file:/b", False),
        (Identity("t", "1", "s3:/b/a"), "1", "dbfs:/mnt/a", True),
        (Identity("t", "1", "s3:/b/a"), "1", "file:/a", True),
        (Identity("t", "1", "s3:/b/a"), "2", "s3:/b/c", False),
        (Identity("t", "1", "file:/a'b"), None, None, False),
    ],
)
def test_the_sql_condition_agrees(
    spark: SparkSession,
    identity: Identity,
    id_: str | None,
    location: str | None,
    same: bool,  # noqa: FBT001
) -> None:
    assert identity.is_same(id_, location) is same
    rows: list[tuple[Any, ...]] = [("other", id_, location)]
    frame = spark.createDataFrame(rows, "captures STRING, captures_id STRING, captures_location STRING").alias("r")
    assert frame.where(identity.runs_sql("r")).count() == same
