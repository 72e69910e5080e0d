"""The analysis queries as SQL text: measured rows, their metrics by some key, quantiles, pairs of modes.

Builds text and runs nothing. ``metrics.py`` defines the metrics, ``compute.py`` writes the results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltatap.analysis.metrics import (
    CHECKED,
    COALESCED,
    FLAGGED,
    FROM_SCHEDULE,
    GAPS,
    MERGED_COALESCED,
    MERGED_GAPS,
    METRICS,
    SIZES,
    with_parts,
)
from deltatap.delta import tables
from deltatap.delta.sums import total_sql
from deltatap.prices import exact_usd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltatap.config import Settings

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
# 97.5 % quantile of the standard normal distribution, for 95 % intervals.
_Z = 1.959964
# Maximum number of pairs per group for the bootstrap.
_PAIRS = 5_000
# date_trunc would use the session's time zone.
HOUR = "timestamp_seconds(floor(unix_seconds(started_at) / 3600) * 3600)"
# The start of a row's first call; `started_at` is the start of its last call. Retries are listed oldest first.
FIRST_STARTED_AT = "least(started_at, get(retries, 0).started_at)"
# Whether a row has lost times (capture.resume).
TIMES_LOST = "coalesce(size(filter(resumed, r -> r.times_lost)) > 0, false)"
_LENGTHS = ((16, "1-16"), (64, "17-64"), (256, "65-256"), (1024, "257-1024"))


# As DOUBLE, because a server can report any number, and sums of BIGINT can overflow.
_CACHED = "least(CAST(usage_reported.cached_input_tokens AS DOUBLE), usage_reported.input_tokens)"
_CACHEABLE = "IF(usage_reported.cached_input_tokens IS NULL, NULL, CAST(usage_reported.input_tokens AS DOUBLE))"
_CACHED_SHARE = f"sum({_CACHED}) / nullif(sum({_CACHEABLE}), 0)"


def in_runs(run_ids: Iterable[str]) -> str:
    """The condition that a row belongs to one of these runs."""
    return f"run_id IN ({', '.join(map(tables.literal, run_ids))})"


def settings_json(settings: Settings) -> str:
    """The settings that change the metrics, as ``metrics_by_run.settings`` stores them."""
    return settings.analysis.model_dump_json(exclude={"tables"})


def late_sql(settings: Settings, *, kernel: bool = False) -> str:
    """SQL: whether a late event loop has distorted the times of a row.

    Args:
        settings: with the bound.
        kernel: instead, whether the loop ran late and the times come from the kernel, so the delay does not affect
            them.
    """
    lag = settings.analysis.max_loop_lag_ms
    if lag is None:
        return "false"
    return f"(coalesce(loop_lag_ms > {lag}, false) AND coalesce(clock = 'kernel', false) = {str(kernel).lower()})"


def measured_sql(settings: Settings, captures: str) -> str:
    """Rows of captures (a query) with their metrics, and whether their times count."""
    slo = settings.analysis.slo.bounds
    # A null metric is within its bound: a whole answer has neither TTFT nor TPOT. A row that reuses an answer
    # (capture.reuse) has no start and no times at all. A scheduled request is measured from its scheduled time.
    times = {name: f"coalesce({FROM_SCHEDULE[name]}, {name})" if name in FROM_SCHEDULE else name for name in slo}
    within = [f"coalesce({times[name]} <= {bound}, true)" for name, bound in slo.items()]
    good = " AND ".join(within) or "CAST(NULL AS BOOLEAN)"
    # A count would make a distribution of integers, which does not fit the tables.
    columns = [
        f"CAST({_unless_merged(metric.sql, metric.merged_sql)} AS DOUBLE) AS {metric.name}" for metric in METRICS
    ]
    late = late_sql(settings)
    return f"""
        SELECT run_id, request_id, endpoint, request_model, mode, status, finish_reason, retries, error, cost_usd,
          usage_reported, usage_tiktoken, cost_basis, started_at, finished_at,
          {HOUR} AS hour, tokens AS output_tokens,
          coalesce(nullif(usage_reported.input_tokens, 0), usage_tiktoken.input_tokens, usage_reported.input_tokens)
            AS input_tokens,
          status = 'completed' AND started_at IS NOT NULL AS answered, {TIMES_LOST} AS lost,
          answered AND NOT lost AND ({good}) AS good,
          loop_lag_ms, clock, answered AND {late} AS late, answered AND NOT lost AND NOT {late} AS counts,
          {_unless_merged(COALESCED, MERGED_COALESCED)} AS coalesced, size(output) AS outputs,
          {_unless_merged(GAPS, MERGED_GAPS)} AS gaps, {SIZES} AS sizes, {CHECKED} AS checked, {FLAGGED} AS flagged,
          {", ".join(columns)}
        FROM (SELECT *, {late_sql(settings, kernel=True)} AS merged FROM ({with_parts(f"({captures})")}))
    """


def _unless_merged(sql: str, merged_sql: str | None) -> str:
    """An expression, or another one for rows in which a late loop let the kernel merge chunks."""
    return sql if merged_sql is None else f"IF(merged, {merged_sql}, {sql})"


def metrics_sql(rows: str, by: tuple[str, ...], settings: Settings) -> str:
    """Counts and metrics of measured rows, grouped by some columns and by endpoint, model and mode."""
    columns = (*by, "endpoint", "request_model", "mode")
    keys = ", ".join(columns)
    sent = "cost_basis IS NOT NULL"
    good = "count_if(good)" if settings.analysis.slo.bounds else "CAST(NULL AS BIGINT)"
    # A row has an error but no call if its prompt was refused before sending.
    last = "IF(started_at IS NULL, NULL, error.type)"
    failed = f"collect_list(concat(transform(retries, r -> r.error_type), array({last})))"
    values = ", ".join(
        f"sort_array(collect_list(CASE WHEN {metric.rows} THEN {metric.name} END)) AS {metric.name}"
        for metric in METRICS
    )
    on = " AND ".join(f"m.{key} <=> g.{key}" for key in columns)
    distributions = ", ".join(f"{_distribution(f'm.{metric.name}')} AS {metric.name}" for metric in METRICS)
    approximate = "percentile_approx(gap, array(0.5D, 0.9D, 0.95D, 0.99D), 10000)"
    return f"""
        WITH grouped AS (
          SELECT {keys}, count(*) AS rows, count_if(status = 'completed') AS completed,
            count_if(status = 'interrupted') AS interrupted, count_if(status = 'failed') AS failed,
            count_if(late) AS late, count_if(answered) AS answered,
            sum(size(retries) + IF(started_at IS NULL, 0, 1)) AS requests,
            flatten({failed}) AS errors, collect_list(finish_reason) AS finish_reasons,
            {total_sql(f"CASE WHEN {sent} THEN input_tokens ELSE 0 END")} AS input_tokens,
            {total_sql(f"CASE WHEN {sent} THEN output_tokens ELSE 0 END")} AS output_tokens,
            {total_sql("CASE WHEN counts_tokens THEN usage_reported.output_tokens ELSE 0 END")}
              AS reported_output_tokens,
            {total_sql("CASE WHEN counts_tokens THEN usage_tiktoken.output_tokens ELSE 0 END")}
              AS tiktoken_output_tokens,
            {_CACHED_SHARE} AS cached_share,
            CAST(sum({exact_usd("cost_usd")}) AS DOUBLE) AS cost_usd, {good} AS good,
            count_if(checked) AS checked, count_if(flagged) AS flagged,
            sum(coalesced) / nullif(sum(outputs), 0) AS coalesced,
            min({FIRST_STARTED_AT}) AS started_at, max(finished_at) AS finished_at, {values}
          FROM (
            SELECT *, status = 'completed' AND usage_reported.output_tokens IS NOT NULL AS counts_tokens FROM {rows}
          ) WHERE {" AND ".join(f"{key} IS NOT NULL" for key in by)} GROUP BY {keys}
        ), gaps AS (
          SELECT {keys}, count(*) AS count, avg(gap) AS mean, {approximate} AS q
          FROM (SELECT *, explode(gaps) AS gap FROM {rows} WHERE counts) GROUP BY {keys}
        )
        SELECT m.* EXCEPT (errors, finish_reasons, {", ".join(metric.name for metric in METRICS)}),
          {_counted("m.errors")} AS errors, {_counted("m.finish_reasons")} AS finish_reasons, {distributions},
          named_struct('count', coalesce(g.count, 0L), 'mean', g.mean, 'p50', get(g.q, 0), 'p90', get(g.q, 1),
            'p95', get(g.q, 2), 'p99', get(g.q, 3)) AS inter_chunk_ms
        FROM grouped AS m LEFT JOIN gaps AS g ON {on}
    """


def by_run_sql(metrics: str, settings: Settings) -> str:
    """The rows of ``metrics_by_run``: metrics grouped by run, with rates, the settings and the run's heartbeat."""
    span = "nullif(timestampdiff(MICROSECOND, f.started_at, f.finished_at), 0) / 1e6"
    return f"""
        SELECT f.* EXCEPT (answered), f.answered / ({span}) AS requests_per_s,
          f.output_tokens / ({span}) AS output_tokens_per_s,
          f.good / ({span}) AS good_per_s, {tables.literal(settings_json(settings))} AS settings, r.heartbeat_at
        FROM {metrics} AS f LEFT JOIN {tables.quoted(settings.runs.table)} AS r USING (run_id)
    """


def _distribution(array: str) -> str:
    """Count, mean and quantiles of a sorted array."""
    quantiles = ", ".join(f"'{name}', {quantile_sql(array, p)}" for name, p in QUANTILES.items())
    return (
        f"named_struct('count', CAST(size({array}) AS BIGINT), "
        f"'mean', aggregate({array}, 0D, (sum, x) -> sum + x) / nullif(size({array}), 0), {quantiles})"
    )


def quantile_sql(array: str, p: float) -> str:
    """A quantile of a sorted array with its 95 % interval.

    The value is interpolated between the two nearest values, as in numpy and in Spark's ``percentile``. The interval
    makes no assumption about the distribution: the number of values below the true quantile is binomial, so about 95 %
    of samples have the true quantile between two order statistics (normal approximation; Conover, Practical
    Nonparametric Statistics, 3.2). An end beyond the sample is null.
    """
    n, at = f"size({array})", f"({p}D * (size({array}) - 1))"
    low, high = f"get({array}, CAST(floor({at}) AS INT))", f"get({array}, CAST(ceil({at}) AS INT))"
    spread = f"{_Z}D * sqrt({n} * {p}D * (1 - {p}D))"
    below, above = f"CAST(floor({n} * {p}D - {spread}) AS INT)", f"CAST(ceil({n} * {p}D + {spread}) AS INT)"
    return (
        f"named_struct('value', {low} + ({at} - floor({at})) * ({high} - {low}), "
        f"'low', get({array}, {below} - 1), 'high', get({array}, {above} - 1))"
    )


def _counted(values: str) -> str:
    """A map from each value of an array to its number of occurrences, without nulls."""
    present = f"filter({values}, x -> x IS NOT NULL)"
    counts = (
        f"transform(array_distinct({present}), x -> struct(x, CAST(size(filter({present}, y -> y = x)) AS BIGINT)))"
    )
    return f"map_from_entries({counts})"


def pairs_sql(rows: str) -> str:
    """Requests completed in both modes, grouped by the length of the streamed answer.

    Each group has medians, and in ``saved`` and ``slower`` the differences of single pairs. Of many pairs, these are a
    sample that is the same every time.
    """
    lengths = " ".join(f"WHEN s.output_tokens <= {most} THEN '{name}'" for most, name in _LENGTHS)
    by = "run_id, endpoint, request_model, output_tokens"
    return f"""
        WITH paired AS (
          SELECT s.run_id, s.endpoint, s.request_model, s.request_id, s.ttft_ms, c.e2e_ms AS complete_e2e_ms,
            c.e2e_ms - s.ttft_ms AS saved_ms, s.e2e_ms - c.e2e_ms AS slower_ms,
            explode(array('all', CASE {lengths} ELSE '1025 and more' END)) AS output_tokens
          FROM (SELECT * FROM {rows} WHERE mode = 'stream' AND counts AND ttft_ms IS NOT NULL) AS s
          JOIN (SELECT * FROM {rows} WHERE mode = 'complete' AND counts) AS c USING (run_id, request_id)
        )
        SELECT {by}, count(*) AS pairs, percentile(ttft_ms, 0.5) AS ttft_ms,
          percentile(complete_e2e_ms, 0.5) AS complete_e2e_ms, percentile(saved_ms, 0.5) AS saved_ms,
          percentile(slower_ms, 0.5) AS slower_ms,
          collect_list(CASE WHEN place <= {_PAIRS} THEN saved_ms END) AS saved,
          collect_list(CASE WHEN place <= {_PAIRS} THEN slower_ms END) AS slower
        FROM (SELECT *, row_number() OVER (PARTITION BY {by} ORDER BY md5(request_id)) AS place FROM paired)
        GROUP BY {by}
        ORDER BY {by}
    """
