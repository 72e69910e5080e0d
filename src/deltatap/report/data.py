"""What the page shows, read from Delta: a sample of the rows, counts over time, a few whole streams.

Knows how much is enough for a page, and says what it left out. Leaves what a metric is to ``metrics.py`` and how it is
drawn to ``charts.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltatap.analysis.compute import analyze, literal, measured_sql, table_of
from deltatap.delta import tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from pyspark.sql import Row, SparkSession

    from deltatap.config import Settings

ROWS = 10_000
STREAMS = 12
CHUNKS = 1_500
TEXT = 4_000
TABLE = 10
BINS = 120


@dataclass(frozen=True, slots=True)
class Stream:
    """A captured stream that the page can play.

    Attributes:
        why: what it stands for: the median, the slowest, a broken one.
        chunks: (ms, text, kind) of choice 0's output; a stream of very many chunks is cut off at its end.
        e2e_ms: when the stream ended; None when it was never written.
        whole_ms: when the whole answer came: of the same request in mode complete, else when the stream's last did.
        whole: the whole answer.
        paired: whether the whole answer is another call's.
    """

    request_id: str
    run_id: str
    why: str
    status: str
    error: str | None
    chunks: tuple[tuple[float, str, str], ...]
    e2e_ms: float | None
    whole_ms: float
    whole: str
    paired: bool


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the page shows.

    Attributes:
        runs: rows of ``runs``.
        metrics: rows of ``metrics_by_run``.
        rows: a sample of the rows with their metrics; of each run and mode at most :data:`ROWS`.
        total: how many rows there are.
        gaps: run_id, endpoint, request_model, mode, bin (of ten a decade), count: of all gaps that count.
        timeline: run_id, at (seconds since the run's first start), started, ended: of all rows that were sent.
        errors: run_id, at, type, count: of all calls that failed.
        paired: rows of ``stream_vs_complete``.
        streams: to play.
        slowest, broken: rows to read.
    """

    runs: Sequence[Row]
    metrics: Sequence[Row]
    rows: pa.Table
    total: int
    gaps: pa.Table
    timeline: pa.Table
    errors: pa.Table
    paired: Sequence[Row]
    streams: Sequence[Stream]
    slowest: Sequence[Row]
    broken: Sequence[Row]


def gather(spark: SparkSession, settings: Settings, run_ids: Sequence[str]) -> Gathered:
    """Read what the page about some runs shows; their metrics are computed where they are not."""
    analyze(spark, settings)
    captures = tables.quoted(settings.captures.table)
    ours = f"run_id IN ({', '.join(literal(run_id) for run_id in run_ids)})"
    measured = measured_sql(settings, f"SELECT * FROM {captures} WHERE {ours}")
    keys = "run_id, endpoint, request_model, mode"
    rows = spark.sql(
        f"""
        SELECT * EXCEPT (place) FROM (
          SELECT {keys}, request_id, status, counts, output_tokens, ttft_ms, tpot_ms, stall_ms, e2e_ms, loop_lag_ms,
            usage_reported.output_tokens AS reported, usage_tiktoken.output_tokens AS tiktoken,
            row_number() OVER (PARTITION BY run_id, mode ORDER BY xxhash64(request_id)) AS place
          FROM ({measured})
        ) WHERE place <= {ROWS}
        """
    ).toArrow()
    gaps = spark.sql(
        f"""
        SELECT {keys}, CAST(floor(log10(gap) * 10) AS INT) AS bin, count(*) AS count
        FROM (SELECT {keys}, explode(gaps) AS gap FROM ({measured}) WHERE counts) GROUP BY ALL ORDER BY bin
        """
    ).toArrow()
    begun = (
        f"SELECT run_id, min(started_at) AS begin, max(finished_at) AS end FROM {captures} WHERE {ours} GROUP BY run_id"
    )
    bin_s = f"greatest(timestampdiff(MICROSECOND, begin, end) / 1e6 / {BINS}, 0.001)"
    sent = f"""
        SELECT c.run_id, {bin_s} AS bin_s, timestampdiff(MICROSECOND, begin, started_at) / 1e6 AS start_s,
          timestampdiff(MICROSECOND, begin, finished_at) / 1e6 AS end_s, error, retries, begin
        FROM {captures} AS c JOIN ({begun}) USING (run_id) WHERE c.{ours} AND started_at IS NOT NULL
    """
    timeline = spark.sql(
        f"""
        SELECT run_id, floor(at / bin_s) * bin_s AS at, bin_s, sum(started) AS started, sum(ended) AS ended FROM (
          SELECT run_id, bin_s, start_s AS at, 1 AS started, 0 AS ended FROM ({sent}) UNION ALL
          SELECT run_id, bin_s, end_s AS at, 0 AS started, 1 AS ended FROM ({sent})
        ) GROUP BY ALL ORDER BY run_id, at
        """
    ).toArrow()
    errors = spark.sql(
        f"""
        SELECT run_id, floor(at / bin_s) * bin_s AS at, bin_s, type, count(*) AS count FROM (
          SELECT run_id, bin_s, start_s AS at, error.type AS type FROM ({sent}) UNION ALL
          SELECT run_id, bin_s, timestampdiff(MICROSECOND, begin, call.started_at) / 1e6, call.error_type
          FROM (SELECT *, explode(retries) AS call FROM ({sent}))
        ) WHERE type IS NOT NULL GROUP BY ALL ORDER BY run_id, at
        """
    ).toArrow()
    by_run = tables.quoted(table_of(settings, "metrics_by_run"))
    paired = tables.quoted(table_of(settings, "stream_vs_complete"))
    runs = tables.quoted(settings.runs.table)
    texts = f"""
        SELECT {keys}, request_id, status, error, ttft_ms, e2e_ms, left(text, {TEXT}) AS text, size(retries) AS retries
        FROM {captures} WHERE {ours}
    """
    return Gathered(
        runs=spark.sql(f"SELECT * FROM {runs} WHERE {ours} ORDER BY started_at").collect(),
        metrics=spark.sql(f"SELECT * FROM {by_run} WHERE {ours} ORDER BY started_at, {keys}").collect(),
        rows=rows,
        total=spark.sql(f"SELECT count(*) FROM {captures} WHERE {ours}").collect()[0][0],
        gaps=gaps,
        timeline=timeline,
        errors=errors,
        paired=spark.sql(f"SELECT * FROM {paired} WHERE {ours} ORDER BY run_id, output_tokens DESC").collect(),
        streams=_streams(spark, captures, ours),
        slowest=spark.sql(f"{texts} AND status = 'completed' ORDER BY e2e_ms DESC NULLS LAST LIMIT {TABLE}").collect(),
        broken=spark.sql(f"{texts} AND status != 'completed' ORDER BY status, request_id LIMIT {TABLE}").collect(),
    )


def _streams(spark: SparkSession, captures: str, ours: str) -> list[Stream]:
    """The median stream, the slowest to begin, those with the longest stall, the longest, some that broke."""
    stall = "array_max(transform(chunks, c -> c.gap_ms))"
    some = f"SELECT run_id, request_id, status, ttft_ms, e2e_ms, {stall} AS stall_ms FROM {captures} WHERE {ours}"
    streamed = f"{some} AND mode = 'stream' AND size(chunks) > 0"
    done = f"({streamed} AND status = 'completed')"
    wanted = {
        "the median": f"SELECT * FROM (SELECT *, percent_rank() OVER (ORDER BY e2e_ms) AS p FROM {done}) "
        "ORDER BY abs(p - 0.5), request_id LIMIT 3",
        "slow to begin": f"SELECT * FROM {done} ORDER BY ttft_ms DESC NULLS LAST, request_id LIMIT 2",
        "stalled": f"SELECT * FROM {done} ORDER BY stall_ms DESC NULLS LAST, request_id LIMIT 2",
        "long": f"SELECT * FROM {done} ORDER BY e2e_ms DESC NULLS LAST, request_id LIMIT 2",
        "broken": f"{streamed} AND status != 'completed' ORDER BY request_id LIMIT 3",
    }
    chosen: dict[tuple[str, str], str] = {}
    for why, sql in wanted.items():
        for row in spark.sql(sql).collect():
            chosen.setdefault((row["run_id"], row["request_id"]), why)
    if not chosen:
        return []
    pairs = ", ".join(f"({literal(run_id)}, {literal(request_id)})" for run_id, request_id in chosen)
    rows = spark.sql(
        f"""
        SELECT run_id, request_id, mode, status, error.type AS error, e2e_ms, last_chunk_ms, text,
          slice(filter(chunks, c -> c.choice <= 0 AND c.kind IN ('content', 'reasoning', 'refusal', 'tool_calls')),
            1, {CHUNKS}) AS chunks
        FROM {captures} WHERE (run_id, request_id) IN ({pairs})
        """
    ).collect()
    whole = {(r["run_id"], r["request_id"]): r for r in rows if r["mode"] == "complete" and r["status"] == "completed"}
    made = [
        _stream(row, whole.get((row["run_id"], row["request_id"])), chosen) for row in rows if row["mode"] == "stream"
    ]
    order = list(wanted)
    return sorted(made, key=lambda stream: (order.index(stream.why), stream.request_id))[:STREAMS]


def _stream(row: Row, whole: Row | None, chosen: dict[tuple[str, str], str]) -> Stream:
    chunks = tuple((round(chunk["ms"], 2), chunk["text"], chunk["kind"]) for chunk in row["chunks"])
    return Stream(
        request_id=row["request_id"],
        run_id=row["run_id"],
        why=chosen[row["run_id"], row["request_id"]],
        status=row["status"],
        error=row["error"],
        chunks=chunks,
        e2e_ms=row["e2e_ms"],
        whole_ms=float((whole["e2e_ms"] if whole else row["e2e_ms"] or row["last_chunk_ms"]) or 0.0),
        whole=str((whole["text"] if whole else row["text"]) or ""),
        paired=whole is not None,
    )
