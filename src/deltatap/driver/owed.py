"""Which requests are owed: the requests of the prompts, minus those that have a final row in ``captures``.

Knows the identity of a request and when it is settled. Leaves the meaning of a prompts row to ``prompts.py``, and the
plan of the owed requests to ``plan.py``.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Window
from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

from deltatap.delta import columns, older, tables
from deltatap.delta.final import final_sql
from deltatap.delta.readers import reader_beside
from deltatap.driver.background import Background
from deltatap.driver.reading import TEMPLATE, prompt_rows
from deltatap.driver.runs import used_sql
from deltatap.driver.source import source
from deltatap.errors import ConfigError, is_of_spark, one_line
from deltatap.prices import exact_usd
from deltatap.prompt_columns import COLUMNS
from deltatap.prompts import build_request, depends_on_resume
from deltatap.spark.serverless import is_serverless
from deltatap.spark.slots import slots

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pyspark.sql import DataFrame, SparkSession

    from deltatap.config import Settings

REQUESTS_SCHEMA = columns.arrow_schema(columns.REQUESTS)
_RETRIES = columns.spark_schema(columns.OWED)["retries"].dataType
_SAMPLED_IN = 1_000_000
EARLIER_USD = f"""aggregate(retries, {exact_usd("0")}, (sum, call) ->
    {exact_usd(f"sum + {exact_usd('coalesce(call.cost_usd, 0)')}")})"""


def hashed(prompts: DataFrame, settings: Settings) -> DataFrame:
    """The prompts with ``source_hash``: a hash of everything that a row's request is built from."""
    ours = [name for name in (*COLUMNS, TEMPLATE) if name in prompts.columns]
    around: list[object] = [settings.endpoint.api, settings.endpoint.model, settings.request]
    if settings.prompts.templates:
        around.append([settings.prompts.template, settings.prompts.system_template])
    return prompts.withColumn(
        "source_hash", F.xxhash64(F.to_json(F.struct(*ours)), F.lit(json.dumps(around, sort_keys=True)))
    )


def changed(prompts: DataFrame, rows: DataFrame, settings: Settings) -> DataFrame:
    """The hashed prompts, except those that are certainly settled.

    Building a request in Python takes about ten times as long as looking up its row in Spark, and in most tables most
    requests are settled. A prompt is certainly settled if all prompts with its request_id have the same hash, all
    rows of ``captures`` with this request_id have that hash, too, and each mode has a final row.

    Args:
        prompts: from :func:`hashed`.
        rows: the rows of ``captures`` that can settle a request.
        settings: of the run.
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
    # A prompt without an id gets one when its request is built. Until then it is its own group.
    keyed = prompts.withColumn("_id", F.coalesce("request_id", F.concat(F.lit("\0"), "source_hash")))
    alike = Window.partitionBy("_id")
    settled = " AND ".join(["source_hash = _low", "source_hash = _high", *(f"_{mode} > 0" for mode in modes)])
    return (
        keyed.join(known, "_id", "left")
        .withColumn("_alike", F.min("source_hash").over(alike) == F.max("source_hash").over(alike))
        .where(~(F.col("_alike") & F.expr(f"coalesce({settled}, false)")))
        .select(*prompts.columns)
    )


def sampled(prompts: DataFrame, settings: Settings) -> DataFrame:
    """The hashed prompts of ``capture.sample``, chosen by their request ids, or by their hashes if they have none."""
    sample = settings.capture.sample
    if sample is None:
        return prompts
    identity = F.col("source_hash").cast("string")
    if "request_id" in prompts.columns:
        identity = F.coalesce("request_id", identity)
    drawn = F.pmod(F.xxhash64(F.lit(sample.seed), identity), F.lit(_SAMPLED_IN))
    return prompts.where(drawn < F.lit(sample.fraction * _SAMPLED_IN))


def requests(prompts: DataFrame, settings: Settings) -> DataFrame:
    """The requests of hashed prompts, one for each request_id. No call is made, so Spark may run this twice."""
    api, model, defaults = settings.endpoint.api, settings.endpoint.model, settings.request
    keep, templates = tuple(settings.prompts.keep), settings.prompts.templates
    resume = settings.capture.resume

    def build(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        for batch in batches:
            built = [
                build_request(
                    row.columns,
                    api=api,
                    model=model,
                    defaults=defaults,
                    keep=keep,
                    filled=row.filled,
                    problem=row.problem,
                    resume=resume,
                )
                for row in prompt_rows(batch, keep, templates)
            ]
            columns = {name: [getattr(request, name) for request in built] for name in REQUESTS_SCHEMA.names}
            # If the validity of a row depends on capture.resume, the row must be built again after the setting has
            # changed.
            columns["source_hash"] = [
                None if depends_on_resume(request, api) else source_hash
                for request, source_hash in zip(built, batch["source_hash"].to_pylist(), strict=True)
            ]
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
                F.lit("request_id is used for "),
                F.size("hashes").cast("string"),
                F.lit(" different requests; expected a unique request_id for each"),
            ),
        )
        .otherwise(F.col("one.error"))
        .alias("error"),
        F.when(F.col("alike"), F.col("one.source_hash")).alias("source_hash"),
    )


def _in_modes(found: DataFrame, settings: Settings) -> DataFrame:
    modes = F.explode(F.array(*(F.lit(mode) for mode in settings.capture.modes))).alias("mode")
    return found.select("*", modes)


class Building:
    """Builds the requests of the prompts that are not known to be settled.

    The requests are cached on disk, unless captures has no rows yet. Serverless compute has no cache, so it builds them
    again for each use.

    On a cold Spark, planning this query takes as long as committing a lease, so a thread plans it while the lease is
    acquired. The query itself runs when the requests are used, because its tasks would delay the lease. A settled
    request stays settled, and :func:`owed_requests` leaves out the requests that are settled in the meantime.

    Attributes:
        slots: how many tasks can run at once; known after :meth:`wait`, and only if the workers capture.
        after: as in :func:`owed_requests`.
    """

    def __init__(self, spark: SparkSession, settings: Settings, run_id: str | None, after: Sequence[str] = ()) -> None:
        """Begin to plan the query.

        Args:
            spark: the session.
            settings: of the run.
            run_id: the run, if it is known already.
            after: as in :func:`owed_requests`.
        """
        self._spark, self._settings, self._run_id, self.after = spark, settings, run_id, tuple(after)
        self.slots = 0
        self._frame: DataFrame | None = None
        self._thread = Background("building", self._plan)

    def wait(self) -> DataFrame:
        """Wait until the query is planned.

        Raises:
            ConfigError: if the prompts cannot be read.
        """
        self._thread.join()
        if self._frame is None:
            raise self._thread.error or AssertionError
        return self._frame

    def close(self) -> None:
        """Release the requests."""
        self._thread.join()
        if self._frame is not None and not is_serverless():
            self._frame.unpersist()

    def _plan(self) -> None:
        if self._settings.capture.where == "workers":
            self.slots = slots(self._spark)
        prompts = sampled(hashed(source(self._spark, self._settings), self._settings), self._settings)
        if _nothing_captured(self._spark, self._settings):
            self._frame = requests(prompts, self._settings)
        else:
            built = requests(changed(prompts, self._rows(), self._settings), self._settings)
            self._frame = built if is_serverless() else built.persist(StorageLevel.DISK_ONLY)

    def _rows(self) -> DataFrame:
        captures = _captures(self._spark, self._settings)
        if self._settings.capture.owed == "new":
            return captures
        known = self.after if self._run_id is None else (self._run_id, *self.after)
        return captures.where(_in_runs(known))


def _nothing_captured(spark: SparkSession, settings: Settings) -> bool:
    """Whether ``captures`` has no row or does not exist, so that there is nothing to look up."""
    table = settings.captures.table
    try:
        return not reader_beside(spark).query(f"SELECT run_id FROM {tables.quoted(table)} LIMIT 1").num_rows
    except Exception:
        if tables.exists(spark, table):
            raise
        return True  # a dry run does not create the table


def _captures(spark: SparkSession, settings: Settings) -> DataFrame:
    rows = older.frame(spark, settings.captures.table, columns.CAPTURES)
    return rows.where(F.col("endpoint") == settings.endpoint.label)


@contextmanager
def owed_requests(
    spark: SparkSession,
    settings: Settings,
    run_id: str,
    building: Building | None = None,
    *,
    settled: int = 0,
    after: Sequence[str] = (),
) -> Iterator[DataFrame]:
    """The requests without a final row in each captured mode, each with its earlier calls in this run.

    Args:
        spark: the session.
        settings: of the run.
        run_id: the run.
        building: the requests, if building them has already begun.
        settled: how many final rows the run has, from its earlier starts; ``capture.limit`` counts them.
        after: other runs. Their rows settle their requests, regardless of the status. If `building` is given, pass the
            same runs.

    Raises:
        ConfigError: if Spark cannot read the prompts, also while the caller uses the requests.
    """
    building = building or Building(spark, settings, run_id, after)
    try:
        built = building.wait()
        if _nothing_captured(spark, settings):
            retries = F.lit(None).cast(_RETRIES)
            found = _in_modes(built, settings).withColumn("retries", retries)
        else:
            if not is_serverless():
                # Once Spark knows how few requests there are, it looks them up without shuffling the rows of all other
                # requests.
                built.count()
            found = _unsettled(built, _captures(spark, settings), settings, run_id, building.after)
        found = found.select(*(column.name for column in columns.OWED))
        limit = settings.capture.limit
        yield found if limit is None else found.orderBy("request_id", "mode").limit(max(0, limit - settled))
    except Exception as error:
        if not is_of_spark(error):
            raise
        raise ConfigError([f"prompts: {settings.prompts.source}: {one_line(error)}"]) from error
    finally:
        building.close()


def _unsettled(
    built: DataFrame, captures: DataFrame, settings: Settings, run_id: str, after: Sequence[str]
) -> DataFrame:
    capture = settings.capture
    key = ["request_id", "request_hash", "mode"]
    ours = captures.where(F.col("run_id") == run_id)
    rows = captures.where(_in_runs((run_id, *after))) if capture.owed == "all" else captures
    final = F.expr(final_sql("c", keep_interrupted=capture.keep_interrupted)) | _in_runs(after)
    broken = F.expr("c.status = 'interrupted' AND NOT c.error.type <=> 'cancelled'")
    settled = (
        rows.join(built.select("request_id"), "request_id", "left_semi")
        .alias("c")
        .groupBy(*key)
        .agg(F.max(final).alias("final"), F.count_if(broken & (F.col("run_id") != run_id)).alias("tried"))
        .where(F.col("final") | (F.col("tried") >= capture.max_runs))
    )
    return _in_modes(built, settings).join(settled, key, "left_anti").join(_earlier(ours), key, "left")


def _in_runs(run_ids: Sequence[str]) -> Any:  # noqa: ANN401 - pyspark's Column has two classes
    """The condition that a row belongs to one of these runs; Spark's IN needs at least one."""
    return F.col("run_id").isin(*run_ids) if run_ids else F.lit(False)


def _earlier(ours: DataFrame) -> DataFrame:
    """The calls in this run's rows that are not final, as ``retries`` for the rows that will replace them."""
    last = F.struct(
        F.col("started_at"),
        F.col("e2e_ms"),
        F.col("error.http_status").alias("http_status"),
        F.col("error.type").alias("error_type"),
        F.col("text"),
        F.col("chunks"),
        _used("input_tokens"),
        _used("output_tokens"),
        F.expr(f"CAST({exact_usd('cost_usd')} - {EARLIER_USD} AS DOUBLE)").alias("cost_usd"),
        F.col("response_id"),
        F.col("server_request_id"),
    )
    return ours.where("status != 'completed' AND started_at IS NOT NULL").select(
        "request_id",
        "request_hash",
        "mode",
        F.concat("retries", F.array(last)).cast(_RETRIES).alias("retries"),
    )


def _used(name: str) -> Any:  # noqa: ANN401 - pyspark's Column has two classes
    return F.expr(used_sql(name)).cast("bigint").alias(name)
