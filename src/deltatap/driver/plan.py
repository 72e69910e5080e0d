"""What is owed: the prompts' requests less those that have a final row, written as one immutable part a capture task.

Knows the prompts table's columns, identity, and when a row is final. The parts are files, so no shuffle feeds the UDF:
a lost shuffle file would make Spark run partitions again that are still running elsewhere. Leaves what a row means to
``prompts.py`` and who reads the parts to ``worker.py``.
"""

from __future__ import annotations

import json
import math
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import StorageLevel
from pyspark.sql import Window
from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation has it

from deltatap.delta import columns, tables
from deltatap.delta.final import final_sql
from deltatap.driver.source import _TEXTS, source
from deltatap.prices import exact_usd
from deltatap.prompts import build_request
from deltatap.spark.slots import slots

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pyspark.sql import DataFrame, SparkSession

    from deltatap.config import Settings
    from deltatap.state import PlanState

REQUESTS_SCHEMA = columns.arrow_schema(columns.REQUESTS)
_EARLIER_USD = f"""aggregate(retries, {exact_usd("0")}, (sum, call) ->
    {exact_usd(f"sum + {exact_usd('coalesce(call.cost_usd, 0)')}")})"""


def hashed(prompts: DataFrame, settings: Settings) -> DataFrame:
    """The prompts with `source_hash`: of all that a row's request is built from."""
    ours = [name for name in (*_TEXTS, "messages", "params") if name in prompts.columns]
    around = [settings.endpoint.api, settings.endpoint.model, settings.request]
    return prompts.withColumn(
        "source_hash", F.xxhash64(F.to_json(F.struct(*ours)), F.lit(json.dumps(around, sort_keys=True)))
    )


def changed(prompts: DataFrame, rows: DataFrame, settings: Settings) -> DataFrame:
    """The hashed prompts but for those that are seen to be settled without building their requests.

    Building a request takes Python some ten times as long as Spark takes to look its row up, and of most tables most
    rows are settled. Seen to be settled is the simple case: all prompts of a request_id are the same, and so are all
    rows of it in ``captures``, with a final one for each mode.

    Args:
        prompts: as from :func:`hashed`.
        rows: of ``captures``, that settle a request.
        settings: the run's.
    """
    if "request_id" not in prompts.columns:
        return prompts
    final = f"{final_sql('c', keep_interrupted=settings.capture.keep_interrupted)} AND source_hash IS NOT NULL"
    modes = settings.capture.modes
    known = (
        rows.alias("c")
        .groupBy(F.col("request_id").alias("_id"))
        .agg(
            F.min("source_hash").alias("_low"),
            F.max("source_hash").alias("_high"),
            *(F.count_if(F.expr(f"{final} AND mode = '{mode}'")).alias(f"_{mode}") for mode in modes),
        )
    )
    # A row without an id gets one when it is built: until then each is a group of its own.
    keyed = prompts.withColumn("_id", F.coalesce("request_id", F.concat(F.lit("\0"), "source_hash")))
    alike = Window.partitionBy("_id")
    settled = " AND ".join(["source_hash = _low", "source_hash = _high", *(f"_{mode} > 0" for mode in modes)])
    return (
        keyed.join(known, "_id", "left")
        .withColumn("_alike", F.min("source_hash").over(alike) == F.max("source_hash").over(alike))
        .where(~(F.col("_alike") & F.expr(f"coalesce({settled}, false)")))
        .select(*prompts.columns)
    )


def requests(prompts: DataFrame, settings: Settings) -> DataFrame:
    """The hashed prompts as requests, one for each request_id; costs nothing, so Spark may run it twice."""
    api, model, defaults = settings.endpoint.api, settings.endpoint.model, settings.request
    keep = tuple(settings.prompts.keep)

    def build(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        for batch in batches:
            built = [
                build_request(row, api=api, model=model, defaults=defaults, keep=keep) for row in batch.to_pylist()
            ]
            columns = {name: [getattr(request, name) for request in built] for name in REQUESTS_SCHEMA.names}
            columns["source_hash"] = batch["source_hash"]
            yield pa.RecordBatch.from_pydict(columns, REQUESTS_SCHEMA)

    built = prompts.mapInArrow(build, columns.spark_schema(columns.REQUESTS))
    one = F.min_by(F.struct(*REQUESTS_SCHEMA.names), "request_hash").alias("one")
    unique = built.groupBy("request_id").agg(
        one,
        F.sort_array(F.collect_set("request_hash")).alias("hashes"),
        (F.min("source_hash") == F.max("source_hash")).alias("alike"),
    )
    several = F.size("hashes") > 1
    joined = F.array_join(F.transform("hashes", lambda h: F.concat(F.lit('"'), h, F.lit('"'))), ",")
    return unique.select(
        "request_id",
        F.when(several, F.sha2(F.concat(F.lit("["), joined, F.lit("]")), 256))
        .otherwise(F.col("one.request_hash"))
        .alias("request_hash"),
        "one.model",
        F.when(~several, F.col("one.body")).alias("body"),
        "one.keep",
        F.when(
            several,
            F.concat(
                F.lit("request_id stands for "),
                F.size("hashes").cast("string"),
                F.lit(" different requests; expected one, or an id of its own for each"),
            ),
        )
        .otherwise(F.col("one.error"))
        .alias("error"),
        F.when(F.col("alike"), F.col("one.source_hash")).alias("source_hash"),
    )


def asked(spark: SparkSession, settings: Settings) -> DataFrame:
    """The requests of the prompts, once for each mode."""
    return _in_modes(requests(hashed(source(spark, settings), settings), settings), settings)


def _in_modes(found: DataFrame, settings: Settings) -> DataFrame:
    modes = F.explode(F.array(*(F.lit(mode) for mode in settings.capture.modes))).alias("mode")
    return found.select("*", modes)


class Building:
    """The requests of the prompts but for those that are seen to be settled, kept on disk while they are used.

    A cold Spark takes as long to plan their query as to commit a lease, so that begins at once, in a thread. It runs
    when it is asked for: before, its tasks would keep the lease's waiting. What has been settled meanwhile :func:`owed`
    finds; what was settled stays so.

    Attributes:
        slots: how many tasks can run at once; there with the requests, or with :meth:`wait`.
    """

    def __init__(self, spark: SparkSession, settings: Settings, run_id: str | None, *, first: bool = False) -> None:
        """Begin.

        Args:
            spark: the session.
            settings: of the run.
            run_id: the run, where it is known yet.
            first: whether ``captures`` has no row.
        """
        self._spark, self._settings, self._run_id, self._first = spark, settings, run_id, first
        self.slots = 0
        self._frame: DataFrame | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._plan, name="deltatap-building", daemon=True)
        self._thread.start()

    def wait(self) -> DataFrame:
        """Wait for their query."""
        self._thread.join()
        if self._frame is None:
            raise self._error or AssertionError
        return self._frame

    def requests(self) -> DataFrame:
        """Build them."""
        built = self.wait()
        if not self._first:
            # Now Spark knows how few they are, and looks them up without moving the rows of all others.
            built.count()
        return built

    def close(self) -> None:
        """They are not needed any more."""
        self._thread.join()
        if self._frame is not None:
            self._frame.unpersist()

    def _plan(self) -> None:
        try:
            self.slots = slots(self._spark)
            prompts = hashed(source(self._spark, self._settings), self._settings)
            if not self._first:
                prompts = changed(prompts, self._rows(), self._settings)
            frame = requests(prompts, self._settings)
            self._frame = frame if self._first else frame.persist(StorageLevel.DISK_ONLY)
        except BaseException as error:  # noqa: BLE001 - raised to whom waits
            self._error = error

    def _rows(self) -> DataFrame:
        captures = _captures(self._spark, self._settings)
        if self._settings.capture.owed == "new":
            return captures
        return captures.where(F.lit(False) if self._run_id is None else F.col("run_id") == self._run_id)


def _captures(spark: SparkSession, settings: Settings) -> DataFrame:
    return spark.table(tables.quoted(settings.captures.table)).where(F.col("endpoint") == settings.endpoint.label)


@contextmanager
def owed(
    spark: SparkSession, settings: Settings, run_id: str, building: Building | None = None, *, first: bool = False
) -> Iterator[DataFrame]:
    """The requests that have no final row in a mode that is captured, each with the calls that this run made before.

    Args:
        spark: the session.
        settings: of the run.
        run_id: the run.
        building: where it has begun before.
        first: whether ``captures`` has no row.
    """
    building = building or Building(spark, settings, run_id, first=first)
    try:
        found = building.requests()
        if first:
            left = _in_modes(found, settings).withColumn("retries", F.lit(None).cast(columns.sql_type(columns.RETRIES)))
        else:
            left = _unsettled(found, _captures(spark, settings), settings, run_id)
        left = left.select(*(column.name for column in columns.OWED))
        limit = settings.capture.limit
        yield left if limit is None else left.orderBy("request_id", "mode").limit(limit)
    finally:
        building.close()


def _unsettled(built: DataFrame, captures: DataFrame, settings: Settings, run_id: str) -> DataFrame:
    capture = settings.capture
    key = ["request_id", "request_hash", "mode"]
    ours = captures.where(F.col("run_id") == run_id)
    rows = ours if capture.owed == "all" else captures
    final = F.expr(final_sql("c", keep_interrupted=capture.keep_interrupted))
    broken = F.expr("c.status = 'interrupted' AND c.error.type != 'cancelled'")
    settled = (
        rows.join(built.select("request_id"), "request_id", "left_semi")
        .alias("c")
        .groupBy(*key)
        .agg(F.max(final).alias("final"), F.count_if(broken & (F.col("run_id") != run_id)).alias("tried"))
        .where(F.col("final") | (F.col("tried") >= capture.max_runs))
    )
    return _in_modes(built, settings).join(settled, key, "left_anti").join(_earlier(ours), key, "left")


def _earlier(ours: DataFrame) -> DataFrame:
    """What this run's rows that are not final have been through, as the `retries` of the rows that replace them."""
    last = F.struct(
        F.col("started_at"),
        F.col("e2e_ms"),
        F.col("error.http_status").alias("http_status"),
        F.col("error.type").alias("error_type"),
        F.col("text"),
        F.col("chunks"),
        _used("input_tokens"),
        _used("output_tokens"),
        F.expr(f"CAST({exact_usd('cost_usd')} - {_EARLIER_USD} AS DOUBLE)").alias("cost_usd"),
    )
    return ours.where("status != 'completed' AND started_at IS NOT NULL").select(
        "request_id",
        "request_hash",
        "mode",
        F.concat("retries", F.array(last)).cast(columns.sql_type(columns.RETRIES)).alias("retries"),
    )


def _used(name: str) -> Any:  # noqa: ANN401 - pyspark's Column has two classes
    return (
        F.coalesce(
            F.col(f"usage_reported.{name}"), F.when(F.col("cost_basis").isNotNull(), F.col(f"usage_tiktoken.{name}"))
        )
        .cast("bigint")
        .alias(name)
    )


def tasks(settings: Settings, slots: int) -> int:
    """How many capture tasks: enough for the streams, a slot fewer than there are, so that landing never starves."""
    needed = math.ceil(settings.capture.concurrency / settings.capture.streams_per_worker)
    return max(1, min(needed, slots - 1))


def write(frame: DataFrame, plan: PlanState, tasks: int, *, modes: int, seed: str) -> int:
    """Write the parts; how many requests they hold.

    Of several modes, those of one request stand together, in an order that the seed draws for each request: a worker
    makes the second call when the first has ended.
    """
    if modes == 1:
        cut = frame.repartition(tasks)
    else:
        drawn = F.xxhash64(F.lit(seed), "request_id").alias("_order")
        first = F.when(F.col("_order") % 2 == 0, F.lit("stream")).otherwise(F.lit("complete"))
        cut = (
            frame.select("*", drawn)
            .repartition(tasks, "request_id")
            .sortWithinPartitions("_order", "request_id", F.when(F.col("mode") == first, 0).otherwise(1))
            .drop("_order")
        )
    cut.write.mode("overwrite").parquet(str(plan.parts))
    return sum(pq.ParquetFile(path).metadata.num_rows for path in plan.part_files())


def models(plan: PlanState) -> list[str]:
    """The models that the plan's requests ask for."""
    found: set[str] = set()
    for path in plan.part_files():
        for batch in pq.ParquetFile(path).iter_batches(1 << 16, columns=["model"]):
            found |= {model for model in batch["model"].unique().to_pylist() if model}
    return sorted(found)
