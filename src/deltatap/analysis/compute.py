"""From captures to metrics: by run, by hour, and streamed beside whole. Plain SQL; it runs on serverless, too.

Knows which runs have changed since they were last analyzed, and writes their rows anew in one commit a table: what runs
twice changes nothing. Leaves what a metric is to ``metrics.py``.
"""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from datetime import UTC
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from deltatap.analysis import tables as metrics_tables
from deltatap.analysis.metrics import COALESCED, GAPS, METRICS, with_parts
from deltatap.delta import tables
from deltatap.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyspark.sql import DataFrame, Row, SparkSession

    from deltatap.config import Settings
    from deltatap.delta.columns import Column

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
# Of the standard normal distribution, for intervals of 95 %.
_Z = 1.959964
# Each pair stands in a replicate as often as a Poisson variable says, whose thresholds these are.
_REPLICATES = 200
_POISSON = (0.36787944, 0.73575888, 0.91969860, 0.98101184, 0.99634015, 0.99940582, 0.99991676)
_PAIRS = 5_000
# Not date_trunc, which takes the session's time zone for the hour's begin.
_HOUR = "timestamp_seconds(floor(unix_seconds(started_at) / 3600) * 3600)"
_LENGTHS = ((16, "1-16"), (64, "17-64"), (256, "65-256"), (1024, "257-1024"))


def table_of(settings: Settings, name: str) -> str:
    """Where a metrics table is: in ``analysis.tables``, else beside captures."""
    beside = settings.analysis.tables
    if beside is None:
        captures = settings.captures.table
        beside = str(PurePosixPath(captures).parent) if tables.is_path(captures) else captures.rpartition(".")[0]
    if tables.is_path(beside):
        return f"{beside}/{name}"
    return f"{beside}.{name}" if beside else name


def analyze(spark: SparkSession, settings: Settings, *, everything: bool = False) -> list[Row]:
    """Compute the metrics of runs that are new or have changed; their rows of ``metrics_by_run``.

    Args:
        spark: the session.
        settings: whose captures, runs and analysis count.
        everything: compute all runs anew.

    Raises:
        ConfigError: when there is no captures or runs table.
    """
    for name, table in (("captures", settings.captures.table), ("runs", settings.runs.table)):
        if not tables.exists(spark, table):
            raise ConfigError([f"{name}.table: {table}: there is no such Delta table; capture something first"])
    by_run = _ensured(spark, settings, "metrics_by_run", metrics_tables.METRICS_BY_RUN)
    by_hour = _ensured(spark, settings, "metrics_by_hour", metrics_tables.METRICS_BY_HOUR)
    paired = _ensured(spark, settings, "stream_vs_complete", metrics_tables.STREAM_VS_COMPLETE)
    changed = [row["run_id"] for row in _changed(spark, settings, by_run, everything=everything).collect()]
    if not changed:
        return []
    ours = f"run_id IN ({', '.join(map(literal, changed))})"
    captures = tables.quoted(settings.captures.table)
    with _view(spark.sql(measured_sql(settings, f"SELECT * FROM {captures} WHERE {ours}"))) as rows:
        _replace(spark.sql(_pairs_sql(rows)), paired, metrics_tables.STREAM_VS_COMPLETE, ours)
        found = spark.sql(f"SELECT DISTINCT hour FROM {rows} WHERE hour IS NOT NULL ORDER BY hour").collect()
        hours = [f"TIMESTAMP '{row['hour'].astimezone(UTC):%Y-%m-%d %H:%M:%S}Z'" for row in found]
        with _view(spark.sql(_metrics_sql(rows, ("run_id",), settings))) as metrics:
            _replace(spark.sql(_by_run_sql(metrics, settings)), by_run, metrics_tables.METRICS_BY_RUN, ours)
    if hours:
        # An hour may hold rows of runs that have not changed, too. The bounds let Delta skip the files of other days.
        then = f"{_HOUR} IN ({', '.join(hours)})"
        bounds = f"started_at >= {hours[0]} AND started_at < {hours[-1]} + INTERVAL 1 HOUR"
        with _view(spark.sql(measured_sql(settings, f"SELECT * FROM {captures} WHERE {bounds} AND {then}"))) as rows:
            metrics_by_hour = spark.sql(_metrics_sql(rows, ("hour",), settings))
            _replace(metrics_by_hour, by_hour, metrics_tables.METRICS_BY_HOUR, f"hour IN ({', '.join(hours)})")
    return spark.sql(
        f"SELECT * FROM {tables.quoted(by_run)} WHERE {ours} ORDER BY started_at, endpoint, request_model, mode DESC"
    ).collect()


def counting_rows(spark: SparkSession, settings: Settings, run_id: str, most: int) -> DataFrame:
    """A run's rows whose times count, with their metrics; of each mode at most so many, the same ones each time."""
    run = f"SELECT * FROM {tables.quoted(settings.captures.table)} WHERE run_id = {literal(run_id)}"
    return spark.sql(
        f"""
        SELECT mode, {", ".join(metric.name for metric in METRICS)} FROM (
          SELECT *, row_number() OVER (PARTITION BY mode ORDER BY xxhash64(request_id)) AS place
          FROM ({measured_sql(settings, run)}) WHERE counts
        ) WHERE place <= {most}
        """
    )


def _ensured(spark: SparkSession, settings: Settings, name: str, columns: Sequence[Column]) -> str:
    table = table_of(settings, name)
    tables.ensure(spark, table, columns)
    if problems := tables.differences(spark.table(tables.quoted(table)).schema, columns):
        raise ConfigError([f"analysis.tables: {table}: {problem}" for problem in problems])
    return table


def _changed(spark: SparkSession, settings: Settings, by_run: str, *, everything: bool) -> DataFrame:
    known = f"""
        SELECT run_id, max(heartbeat_at) AS seen, max(settings) AS with FROM {tables.quoted(by_run)} GROUP BY run_id
    """
    same = "false" if everything else f"k.seen <=> r.heartbeat_at AND k.with <=> {literal(_said(settings))}"
    return spark.sql(
        f"""
        SELECT r.run_id FROM {tables.quoted(settings.runs.table)} AS r LEFT JOIN ({known}) AS k USING (run_id)
        WHERE r.captures = {literal(settings.captures.table)} AND NOT coalesce({same}, false) ORDER BY r.started_at
        """
    )


def measured_sql(settings: Settings, captures: str) -> str:
    """SQL: the rows of captures (a query) with their metrics, and whether their times count."""
    lag, slo = settings.analysis.max_loop_lag_ms, settings.analysis.slo
    late = "false" if lag is None else f"coalesce(loop_lag_ms > {lag}, false)"
    kept = [f"{name} <= {most}" for name, most in slo.model_dump().items() if most is not None]
    # A whole answer has neither TTFT nor TPOT: what it has no word on, it keeps.
    good = " AND ".join(f"coalesce({each}, true)" for each in kept) if kept else "CAST(NULL AS BOOLEAN)"
    columns = [f"{metric.sql} AS {metric.name}" for metric in METRICS]
    return f"""
        SELECT run_id, request_id, endpoint, request_model, mode, status, finish_reason, retries, error, cost_usd,
          usage_reported, usage_tiktoken, cost_basis, started_at, finished_at,
          {_HOUR} AS hour, tokens AS output_tokens,
          coalesce(usage_reported.input_tokens, usage_tiktoken.input_tokens) AS input_tokens,
          loop_lag_ms, status = 'completed' AND {late} AS late, status = 'completed' AND NOT {late} AS counts,
          status = 'completed' AND ({good}) AS good,
          {COALESCED} AS coalesced, size(output) AS outputs, {GAPS} AS gaps,
          {", ".join(columns)}
        FROM ({with_parts(f"({captures})")})
    """


def _metrics_sql(rows: str, by: tuple[str, ...], settings: Settings) -> str:
    """Counts and times of rows, by some columns and endpoint, model and mode."""
    keys = [*by, "endpoint", "request_model", "mode"]
    sent = "cost_basis IS NOT NULL"
    good = "count_if(good)" if any(settings.analysis.slo.model_dump().values()) else "CAST(NULL AS BIGINT)"
    failed = "collect_list(concat(transform(retries, r -> r.error_type), array(error.type)))"
    sorted_ = ", ".join(
        f"sort_array(collect_list(CASE WHEN counts THEN {metric.name} END)) AS {metric.name}" for metric in METRICS
    )
    on = " AND ".join(f"m.{key} <=> g.{key}" for key in keys)
    times = ", ".join(f"{_times(f'm.{metric.name}')} AS {metric.name}" for metric in METRICS)
    approximate = "percentile_approx(gap, array(0.5D, 0.9D, 0.95D, 0.99D), 10000)"
    return f"""
        WITH grouped AS (
          SELECT {", ".join(keys)}, count(*) AS rows, count_if(status = 'completed') AS completed,
            count_if(status = 'interrupted') AS interrupted, count_if(status = 'failed') AS failed,
            count_if(late) AS late, sum(size(retries) + IF(started_at IS NULL, 0, 1)) AS requests,
            {_counted(f"flatten({failed})")} AS errors, {_counted("collect_list(finish_reason)")} AS finish_reasons,
            sum(CASE WHEN {sent} THEN input_tokens ELSE 0 END) AS input_tokens,
            sum(CASE WHEN {sent} THEN output_tokens ELSE 0 END) AS output_tokens,
            sum(CASE WHEN counts_tokens THEN usage_reported.output_tokens ELSE 0 END) AS reported_output_tokens,
            sum(CASE WHEN counts_tokens THEN usage_tiktoken.output_tokens ELSE 0 END) AS tiktoken_output_tokens,
            sum(cost_usd) AS cost_usd, {good} AS good,
            sum(coalesced) / nullif(sum(outputs), 0) AS coalesced,
            min(started_at) AS started_at, max(finished_at) AS finished_at, {sorted_}
          FROM (
            SELECT *, status = 'completed' AND usage_reported.output_tokens IS NOT NULL AS counts_tokens FROM {rows}
          ) WHERE {" AND ".join(f"{key} IS NOT NULL" for key in by)} GROUP BY {", ".join(keys)}
        ), gaps AS (
          SELECT {", ".join(keys)}, count(*) AS count, avg(gap) AS mean, {approximate} AS q
          FROM (SELECT *, explode(gaps) AS gap FROM {rows} WHERE counts) GROUP BY {", ".join(keys)}
        )
        SELECT m.* EXCEPT ({", ".join(metric.name for metric in METRICS)}), {times},
          named_struct('count', coalesce(g.count, 0L), 'mean', g.mean, 'p50', get(g.q, 0), 'p90', get(g.q, 1),
            'p95', get(g.q, 2), 'p99', get(g.q, 3)) AS inter_chunk_ms
        FROM grouped AS m LEFT JOIN gaps AS g ON {on}
    """


def _by_run_sql(found: str, settings: Settings) -> str:
    span = "nullif(timestampdiff(MICROSECOND, f.started_at, f.finished_at), 0) / 1e6"
    return f"""
        SELECT f.*, f.completed / ({span}) AS requests_per_s, f.output_tokens / ({span}) AS output_tokens_per_s,
          f.good / ({span}) AS good_per_s, {literal(_said(settings))} AS settings, r.heartbeat_at
        FROM {found} AS f LEFT JOIN {tables.quoted(settings.runs.table)} AS r USING (run_id)
    """


def _times(array: str) -> str:
    """Count, mean and quantiles of a sorted array."""
    quantiles = ", ".join(f"'{name}', {quantile_sql(array, p)}" for name, p in QUANTILES.items())
    return (
        f"named_struct('count', CAST(size({array}) AS BIGINT), "
        f"'mean', aggregate({array}, 0D, (sum, x) -> sum + x) / nullif(size({array}), 0), {quantiles})"
    )


def quantile_sql(array: str, p: float) -> str:
    """A quantile of a sorted array, and its interval.

    The value is interpolated between the two nearest, as numpy's and Spark's `percentile` have it. The interval is
    distribution-free: the number of values below the true quantile is binomial, so two order statistics hold it between
    them in at least some 95 % of samples (normal approximation; Conover, Practical Nonparametric Statistics, 3.2). An
    end that would need more values than there are is null.
    """
    n, at = f"size({array})", f"({p}D * (size({array}) - 1))"
    low, high = f"get({array}, CAST(floor({at}) AS INT))", f"get({array}, CAST(ceil({at}) AS INT))"
    spread = f"{_Z}D * sqrt({n} * {p}D * (1 - {p}D))"
    below, above = f"CAST(floor({n} * {p}D - {spread}) AS INT)", f"CAST(ceil({n} * {p}D + {spread}) AS INT)"
    return (
        f"named_struct('value', {low} + ({at} - floor({at})) * ({high} - {low}), "
        f"'low', get({array}, {below} - 1), 'high', get({array}, {above}))"
    )


def _counted(values: str) -> str:
    """A map from each value of an array to how often it is there, nulls passed over."""
    there = f"filter({values}, x -> x IS NOT NULL)"
    return (
        f"aggregate({there}, CAST(map() AS MAP<STRING, BIGINT>), (seen, x) -> "
        "map_concat(map_filter(seen, (k, v) -> k != x), map(x, coalesce(seen[x], 0L) + 1L)))"
    )


def _pairs_sql(rows: str) -> str:
    """Streamed beside whole: what was saved, by the length of the answer, with bootstrap intervals."""
    lengths = " ".join(f"WHEN s.output_tokens <= {most} THEN '{name}'" for most, name in _LENGTHS)
    weights = " ".join(f"WHEN u < {threshold} THEN {times}" for times, threshold in enumerate(_POISSON))
    drawn = f"CASE {weights} ELSE {len(_POISSON)} END"
    by = "run_id, endpoint, request_model, output_tokens"
    return f"""
        WITH paired AS (
          SELECT s.run_id, s.endpoint, s.request_model, s.request_id, s.ttft_ms, c.e2e_ms AS complete_e2e_ms,
            c.e2e_ms - s.ttft_ms AS saved_ms, s.e2e_ms - c.e2e_ms AS slower_ms,
            explode(array('all', CASE {lengths} ELSE '1025 and more' END)) AS output_tokens
          FROM (SELECT * FROM {rows} WHERE mode = 'stream' AND counts AND ttft_ms IS NOT NULL) AS s
          JOIN (SELECT * FROM {rows} WHERE mode = 'complete' AND counts) AS c USING (run_id, request_id)
        ), drawn AS (
          SELECT *, row_number() OVER (PARTITION BY {by} ORDER BY xxhash64(request_id)) AS place FROM paired
        ), replicates AS (
          SELECT {by}, replicate, percentile(saved_ms, 0.5, weight) AS saved_ms,
            percentile(slower_ms, 0.5, weight) AS slower_ms
          FROM (
            SELECT *, {drawn} AS weight FROM (
              SELECT *, (xxhash64(request_id, replicate) & 1073741823) / 1073741824D AS u
              FROM drawn LATERAL VIEW explode(sequence(1, {_REPLICATES})) AS replicate WHERE place <= {_PAIRS}
            )
          ) GROUP BY {by}, replicate
        ), intervals AS (
          SELECT {by}, percentile(saved_ms, array(0.025, 0.975)) AS saved, percentile(slower_ms, array(0.025, 0.975))
            AS slower
          FROM replicates GROUP BY {by}
        ), medians AS (
          SELECT {by}, count(*) AS pairs, percentile(ttft_ms, 0.5) AS ttft_ms,
            percentile(complete_e2e_ms, 0.5) AS complete_e2e_ms, percentile(saved_ms, 0.5) AS saved_ms,
            percentile(slower_ms, 0.5) AS slower_ms
          FROM paired GROUP BY {by}
        )
        SELECT m.run_id, m.endpoint, m.request_model, m.output_tokens, m.pairs, m.ttft_ms, m.complete_e2e_ms,
          named_struct('value', m.saved_ms, 'low', get(i.saved, 0), 'high', get(i.saved, 1)) AS saved_ms,
          named_struct('value', m.slower_ms, 'low', get(i.slower, 0), 'high', get(i.slower, 1)) AS slower_ms
        FROM medians AS m JOIN intervals AS i
          ON m.run_id = i.run_id AND m.endpoint <=> i.endpoint AND m.request_model <=> i.request_model
          AND m.output_tokens = i.output_tokens
    """


def _replace(frame: DataFrame, table: str, columns: Sequence[Column], where: str) -> None:
    """Replace what is in the table by the frame, in one commit."""
    names = [column.name for column in columns]
    writer = frame.select(*names).write.format("delta").mode("overwrite").option("replaceWhere", where)
    if tables.is_path(table):
        writer.save(table)
    else:
        writer.saveAsTable(table)


def _said(settings: Settings) -> str:
    return settings.analysis.model_dump_json(exclude={"tables"})


def literal(text: str) -> str:
    """A text as SQL has it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


@contextmanager
def _view(frame: DataFrame) -> Iterator[str]:
    name = f"deltatap_{uuid.uuid4().hex}"
    frame.createOrReplaceTempView(name)
    try:
        yield name
    finally:
        frame.sparkSession.catalog.dropTempView(name)
