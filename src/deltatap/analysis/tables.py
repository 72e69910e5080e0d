"""The columns of the analysis tables.

The tables are metrics_by_run, metrics_by_hour, stream_vs_complete and metrics_changes. The columns of the metrics come
from ``metrics.py``.
"""

from __future__ import annotations

import pyarrow as pa

from deltatap.analysis.metrics import METRICS
from deltatap.delta.columns import BIGINT, DOUBLE, STRING, TIMESTAMP, Column

COUNTS = pa.map_(STRING, BIGINT)
ESTIMATE = pa.struct({"value": DOUBLE, "low": DOUBLE, "high": DOUBLE})
DISTRIBUTION = pa.struct(
    {"count": BIGINT, "mean": DOUBLE, "p50": ESTIMATE, "p90": ESTIMATE, "p95": ESTIMATE, "p99": ESTIMATE}
)
GAPS = pa.struct({"count": BIGINT, "mean": DOUBLE, "p50": DOUBLE, "p90": DOUBLE, "p95": DOUBLE, "p99": DOUBLE})
CHANGED = pa.list_(pa.struct({"what": STRING, "before": STRING, "after": STRING}))

_COUNTS: tuple[Column, ...] = (
    Column("endpoint", STRING, "name of the endpoint"),
    Column("request_model", STRING, "the model requested"),
    Column("mode", STRING, "stream or complete"),
    Column("rows", BIGINT, "rows of captures"),
    Column("completed", BIGINT, "completed rows"),
    Column("interrupted", BIGINT, "interrupted rows"),
    Column("failed", BIGINT, "failed rows"),
    Column(
        "late",
        BIGINT,
        "completed rows left out of the latencies because the worker's own event loop ran late and delayed them",
    ),
    Column("requests", BIGINT, "calls made, including retries"),
    Column("errors", COUNTS, "failed calls by error type, including retried calls"),
    Column("finish_reasons", COUNTS, "rows by finish_reason"),
    Column(
        "input_tokens",
        BIGINT,
        "input tokens of the last call of each row: as reported, or else as tiktoken counts them",
    ),
    Column(
        "output_tokens",
        BIGINT,
        "output tokens of the last call of each row: as reported, or else as tiktoken counts them",
    ),
    Column(
        "reported_output_tokens", BIGINT, "output tokens of completed rows whose server reported usage, as reported"
    ),
    Column("tiktoken_output_tokens", BIGINT, "output tokens of the same rows, as tiktoken counts them"),
    Column(
        "cached_share",
        DOUBLE,
        "cached input tokens / input tokens, of the rows whose server reported both; null when there are none",
        added=True,
    ),
    Column("cost_usd", DOUBLE, "cost of all calls; null when no row has a price"),
    Column(
        "good",
        BIGINT,
        "completed rows within every bound of analysis.slo, reused answers left out; null when no bound is set",
    ),
    Column("checked", BIGINT, "rows whose text was checked by moderation, with a result", added=True),
    Column("flagged", BIGINT, "rows whose text was flagged by a check; the share is flagged / checked", added=True),
    Column(
        "coalesced",
        DOUBLE,
        "share of outputs left out of inter_chunk_ms because they arrived in one socket read with others",
    ),
)
_METRICS: tuple[Column, ...] = (
    # A table of an older version lacks the metrics that are newer.
    *(Column(metric.name, DISTRIBUTION, f"{metric.title}, {metric.unit}", added=True) for metric in METRICS),
    Column(
        "inter_chunk_ms",
        GAPS,
        "inter-chunk latency: time between two outputs of a choice; only the first output of a socket read counts",
    ),
)
METRICS_BY_RUN: tuple[Column, ...] = (
    Column("run_id", STRING, "id of the run"),
    *_COUNTS,
    Column("started_at", TIMESTAMP, "start of the first call, UTC"),
    Column("finished_at", TIMESTAMP, "end of the last call, UTC"),
    Column("requests_per_s", DOUBLE, "completed calls per second between started_at and finished_at"),
    Column("output_tokens_per_s", DOUBLE, "output tokens per second in the same time"),
    Column("good_per_s", DOUBLE, "goodput: good rows per second in the same time; null when good is null"),
    *_METRICS,
    Column("settings", STRING, "the analysis settings as JSON; if they change, the metrics are computed again"),
    Column(
        "heartbeat_at",
        TIMESTAMP,
        "heartbeat of the run when its metrics were computed; after a later heartbeat, they are computed again",
    ),
)
METRICS_BY_HOUR: tuple[Column, ...] = (
    Column("hour", TIMESTAMP, "the hour in which the last call of the rows started, UTC"),
    *_COUNTS,
    *_METRICS,
)
STREAM_VS_COMPLETE: tuple[Column, ...] = (
    Column("run_id", STRING, "id of the run"),
    Column("endpoint", STRING, "name of the endpoint"),
    Column("request_model", STRING, "the model requested"),
    Column("output_tokens", STRING, "range of output tokens in the streamed answer, or all"),
    Column("pairs", BIGINT, "requests completed in both modes"),
    Column("ttft_ms", DOUBLE, "median TTFT of the streamed answers"),
    Column("complete_e2e_ms", DOUBLE, "median E2E of the whole answers"),
    Column(
        "saved_ms", ESTIMATE, "median of (E2E whole - TTFT streamed) over all pairs, with its 95 % bootstrap interval"
    ),
    Column(
        "slower_ms", ESTIMATE, "median of (E2E streamed - E2E whole) over all pairs, with its 95 % bootstrap interval"
    ),
)
METRICS_CHANGES: tuple[Column, ...] = (
    Column("endpoint", STRING, "name of the endpoint"),
    Column("request_model", STRING, "the model requested"),
    Column("mode", STRING, "stream or complete"),
    Column("metric", STRING, "name of the metric, as in metrics_by_run"),
    Column("quantile", STRING, "p50 or p95"),
    Column("run_id", STRING, "the first run at the new level"),
    Column("started_at", TIMESTAMP, "start of this run, UTC"),
    Column("runs_before", BIGINT, "runs at the old level"),
    Column("runs_after", BIGINT, "runs at the new level"),
    Column("before", DOUBLE, "the old level: median of the quantile over its runs"),
    Column("after", DOUBLE, "the new level: median of the quantile over its runs"),
    Column("difference", ESTIMATE, "after minus before, with its 95 % bootstrap interval"),
    Column("p", DOUBLE, "p-value of the permutation test"),
    Column(
        "changed",
        CHANGED,
        "facts that changed: what most runs at the old level had, and what most runs at the new level have",
    ),
)
