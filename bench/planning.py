"""Measures how long planning takes when most prompts are settled, compared with a bare anti-join of the same tables.

    .venv/bin/python -m bench.planning [prompts]

One prompt in a hundred is owed. Both queries write their result, and they run alternately.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation
from rich.console import Console

from bench.job import settings_in
from deltatap.delta import columns, tables
from deltatap.driver import owed as planning
from deltatap.driver import plan, source
from deltatap.spark.session import local_session
from deltatap.state import RunState

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from deltatap.config import Settings

PROMPTS = 5_000_000
ROUNDS = 3
TEXT = (
    "Summarise this review in one sentence: product ",
    " came late, but it works as described, and I would buy it again.",
)


def main(count: int) -> None:
    console = Console()
    spark = local_session("local[2]", app_name="planning")
    with tempfile.TemporaryDirectory(prefix="planning-") as name:
        folder = Path(name)
        settings = settings_in(folder)
        _make(spark, settings, count)
        bare, ours = [], []
        for number in range(ROUNDS):
            bare.append(_anti_join(spark, settings, folder / f"bare-{number}"))
            ours.append(_planning(spark, settings, RunState(folder / f"run-{number}")))
            console.print(f"bare anti-join {bare[-1]:.1f} s, planning {ours[-1]:.1f} s")
    ratio = statistics.median(ours) / statistics.median(bare)
    console.print(f"{count:,} prompts, 1 % owed: planning takes {ratio:.2f} times the bare anti-join (goal: at most 2)")
    spark.stop()


def _make(spark: SparkSession, settings: Settings, count: int) -> None:
    prompt = F.concat(F.lit(TEXT[0]), "id", F.lit(TEXT[1]))
    made = spark.range(count).select(F.concat(F.lit("r"), "id").alias("request_id"), prompt.alias("prompt"))
    made.write.format("delta").save(str(settings.prompts.table))
    tables.ensure(
        spark, settings.captures.table, columns.CAPTURES, columns.CAPTURES_PROPERTIES, columns.CAPTURES_CLUSTERED_BY
    )
    settled = planning.hashed(source.source(spark, settings), settings).where("pmod(hash(request_id), 100) > 0")
    settled.select(
        F.lit("earlier").alias("run_id"),
        "request_id",
        F.sha2("prompt", 256).alias("request_hash"),
        "source_hash",
        F.lit("stream").alias("mode"),
        F.lit("completed").alias("status"),
        F.lit(settings.endpoint.label).alias("endpoint"),
        F.current_timestamp().alias("finished_at"),
    ).write.format("delta").mode("append").save(settings.captures.table)


def _anti_join(spark: SparkSession, settings: Settings, folder: Path) -> float:
    started = time.monotonic()
    captures = spark.table(tables.quoted(settings.captures.table))
    source.source(spark, settings).join(captures, "request_id", "left_anti").write.parquet(str(folder))
    return time.monotonic() - started


def _planning(spark: SparkSession, settings: Settings, state: RunState) -> float:
    started = time.monotonic()
    with planning.owed_requests(spark, settings, "now") as owed:
        plan.write(owed, state.plan(1), 1, settings.capture, seed="now")
    return time.monotonic() - started


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else PROMPTS)
