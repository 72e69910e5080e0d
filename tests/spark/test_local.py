from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from deltatap.spark import session

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pyspark.sql import SparkSession

# A session of its own needs a process of its own: a JVM keeps the options that it was started with.
WHOLE_WAY = """
import sys
from collections.abc import Iterator

import pandas as pd
from pyspark.sql.functions import pandas_udf

from deltatap.spark.session import CHECKOUT, local_session

master, table = sys.argv[1:]
spark = local_session(master, conf={"spark.sql.warehouse.dir": table + "-warehouse"})


@pandas_udf("string")
def where(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
    import deltatap.spark.session

    for batch in batches:
        yield batch.astype(str) + f" {sys.executable} {deltatap.spark.session.CHECKOUT}"


spark.range(20).repartition(4).select(where("id").alias("text")).write.format("delta").save(table)
source = "(SELECT 'new' AS text)"
spark.sql(f"MERGE INTO delta.`{table}` t USING {source} s ON t.text = s.text WHEN NOT MATCHED THEN INSERT *")
rows = {row.text for row in spark.read.format("delta").load(table).collect()}
assert rows == {"new"} | {f"{id} {sys.executable} {CHECKOUT}" for id in range(20)}, rows
spark.stop()
print("done")
"""


def test_session_knows_delta_and_merges(spark: SparkSession, tables: Path) -> None:
    table = f"delta.`{tables / 'numbers'}`"
    spark.range(3).write.format("delta").save(str(tables / "numbers"))
    spark.sql(f"MERGE INTO {table} t USING (SELECT id FROM range(5)) s ON t.id = s.id WHEN NOT MATCHED THEN INSERT *")
    assert sorted(row.id for row in spark.table(table).collect()) == [0, 1, 2, 3, 4]


def test_session_keeps_utc_and_never_speculates(spark: SparkSession) -> None:
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"
    assert spark.conf.get("spark.speculation") == "false"


def test_workers_are_forked_with_our_imports_made(spark: SparkSession) -> None:
    def look(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        import sys  # noqa: PLC0415 - the worker's

        for batch in batches:
            yield pa.RecordBatch.from_pydict({"there": ["deltatap.udf" in sys.modules] * batch.num_rows})

    assert [row["there"] for row in spark.range(1).mapInArrow(look, "there BOOLEAN").collect()] == [True]


@pytest.mark.parametrize(
    "master",
    [
        pytest.param("local[2]", id="local"),
        pytest.param("local-cluster[2,1,1024]", id="local-cluster", marks=pytest.mark.slow),
    ],
)
def test_workers_find_deltatap_and_delta_and_the_screen_stays_empty(master: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_WAY, master, str(tmp_path / "table")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    # Where the Delta jars are not set-up's (another Spark's, as in `make matrix`), Spark fetches them and tells of it.
    said = "" if "spark.jars.packages" in session._options() else done.stderr
    assert (done.returncode, done.stdout, said) == (0, "done\n", "")
