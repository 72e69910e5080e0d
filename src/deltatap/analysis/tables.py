"""The columns of the analysis tables: metrics_by_run, metrics_by_hour and stream_vs_complete.

The metrics' columns are derived from ``metrics.py``.
"""

from __future__ import annotations

from deltatap.analysis.metrics import METRICS
from deltatap.delta.columns import Column

_QUANTILE = "STRUCT<value DOUBLE, low DOUBLE, high DOUBLE>"
TIMES = f"STRUCT<count BIGINT, mean DOUBLE, p50 {_QUANTILE}, p90 {_QUANTILE}, p95 {_QUANTILE}, p99 {_QUANTILE}>"
_COUNTS: tuple[Column, ...] = (
    Column("endpoint", "STRING", "the endpoint's name"),
    Column("request_model", "STRING", "the model asked for"),
    Column("mode", "STRING", "stream or complete"),
    Column("rows", "BIGINT", "of captures"),
    Column("completed", "BIGINT", "rows"),
    Column("interrupted", "BIGINT", "rows"),
    Column("failed", "BIGINT", "rows"),
    Column("late", "BIGINT", "completed rows left out of the times, since our own event loop ran late meanwhile"),
    Column("requests", "BIGINT", "calls made"),
    Column("errors", "MAP<STRING, BIGINT>", "calls that failed, by error type, those that were tried again included"),
    Column("finish_reasons", "MAP<STRING, BIGINT>", "rows, by finish_reason"),
    Column("input_tokens", "BIGINT", "of the rows' last calls: reported, else tiktoken's"),
    Column("output_tokens", "BIGINT", "of the rows' last calls: reported, else tiktoken's"),
    Column("reported_output_tokens", "BIGINT", "of completed rows whose server reported usage"),
    Column("tiktoken_output_tokens", "BIGINT", "of the same rows, as tiktoken counts"),
    Column("cost_usd", "DOUBLE", "of all calls; null where no row has a price"),
    Column("good", "BIGINT", "completed rows that keep analysis.slo; null without one"),
    Column("coalesced", "DOUBLE", "share of the outputs that came in one socket read with the one before"),
)
_METRICS: tuple[Column, ...] = (
    *(Column(metric.name, TIMES, f"{metric.title}; ms unless named otherwise") for metric in METRICS),
    Column(
        "inter_chunk_ms",
        "STRUCT<count BIGINT, mean DOUBLE, p50 DOUBLE, p90 DOUBLE, p95 DOUBLE, p99 DOUBLE>",
        "between two outputs of a choice, each read's first",
    ),
)
METRICS_BY_RUN: tuple[Column, ...] = (
    Column("run_id", "STRING", "the run"),
    *_COUNTS,
    Column("started_at", "TIMESTAMP", "the first row's; UTC"),
    Column("finished_at", "TIMESTAMP", "the last row's; UTC"),
    Column("requests_per_s", "DOUBLE", "completed rows by the time from the first start to the last end"),
    Column("output_tokens_per_s", "DOUBLE", "output tokens by the same time"),
    Column("good_per_s", "DOUBLE", "goodput: good rows by the same time; null without analysis.slo"),
    *_METRICS,
    Column("settings", "STRING", "the analysis settings, as JSON"),
    Column("heartbeat_at", "TIMESTAMP", "of the run, when this was computed: a later one computes it anew"),
)
METRICS_BY_HOUR: tuple[Column, ...] = (
    Column("hour", "TIMESTAMP", "in which the rows' last calls started; UTC"),
    *_COUNTS,
    *_METRICS,
)
STREAM_VS_COMPLETE: tuple[Column, ...] = (
    Column("run_id", "STRING", "the run"),
    Column("endpoint", "STRING", "the endpoint's name"),
    Column("request_model", "STRING", "the model asked for"),
    Column("output_tokens", "STRING", "of the streamed answer: a range, or all"),
    Column("pairs", "BIGINT", "requests completed in both modes"),
    Column("ttft_ms", "DOUBLE", "median TTFT of the streamed ones"),
    Column("complete_e2e_ms", "DOUBLE", "median E2E of the whole ones"),
    Column("saved_ms", _QUANTILE, "median of E2E whole - TTFT streamed, a pair at a time; bootstrap 95 % interval"),
    Column("slower_ms", _QUANTILE, "median of E2E streamed - E2E whole, a pair at a time; bootstrap 95 % interval"),
)
