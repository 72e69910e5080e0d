from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pyspark.sql import SparkSession

# A separate session needs a separate process, because a JVM keeps the options that it was started with.
SCRIPT = """
import sys
from collections.abc import Iterator

import pandas as pd
from pyspark.sql.functions import pandas_udf

from deltatap.shipped import CHECKOUT
from deltatap.spark.session import local_session

master, table = sys.argv[1:]
spark = local_session(master, conf={"spark.sql.warehouse.dir": table + "-warehouse"})


@pandas_udf("string")
def where(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
    import deltatap.shipped

    for batch in batches:
        yield batch.astype(str) + f" {sys.executable} {deltatap.shipped.CHECKOUT}"


spark.range(20).repartition(4).select(where("id").alias("text")).write.format("delta").save(table)
source = "(SELECT 'new' AS text)"
spark.sql(f"MERGE INTO delta.`{table}` t USING {source} s ON t.text = s.text WHEN NOT MATCHED THEN INSERT *")
rows = {row.text for row in spark.read.format("delta").load(table).collect()}
assert rows == {"new"} | {f"{id} {sys.executable} {CHECKOUT}" for id in range(20)}, rows
spark.stop()
print("done")
"""


def test_the_session_writes_and_merges_delta_tables(spark: SparkSession, tables: Path) -> None:
    table = f"delta.`{tables / 'numbers'}`"
    spark.range(3).write.format("delta").save(str(tables / "numbers"))
    spark.sql(f"MERGE INTO {table} t USING (SELECT id FROM range(5)) s ON t.id = s.id WHEN NOT MATCHED THEN INSERT *")
    assert sorted(row.id for row in spark.table(table).collect()) == [0, 1, 2, 3, 4]


def test_the_session_uses_utc_and_does_not_speculate(spark: SparkSession) -> None:
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"
    assert spark.conf.get("spark.speculation") == "false"


def test_forked_workers_have_deltatap_imported(spark: SparkSession) -> None:
    def imported(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        import sys  # noqa: PLC0415 - runs in the worker

        for batch in batches:
            yield pa.RecordBatch.from_pydict({"imported": ["deltatap.udf" in sys.modules] * batch.num_rows})

    assert [row["imported"] for row in spark.range(1).mapInArrow(imported, "imported BOOLEAN").collect()] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("master", ["local[2]", "local-cluster[2,1,1024]"])
def test_workers_find_deltatap_and_stderr_stays_empty(master: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, master, str(tmp_path / "table")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
