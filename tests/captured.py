"""Rows of captures and runs for tests, with hand-computed metrics."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from deltatap.delta import columns
from deltatap.delta import tables as delta_tables
from deltatap.settings_loading import load_settings
from tests import prompts

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from deltatap.config import Settings

AT = datetime(2026, 11, 21, 6, 30, tzinfo=UTC)

# An example stream: the role at 80 ms, then reasoning, two outputs that arrive in one socket read, a third output, the
# finish and the usage. Six output tokens as reported, five as tiktoken counts them.
CHUNKS = [
    (80.0, None, "", "role", 0, 0, 0, 0),
    (100.0, None, "Hm", "reasoning", 0, 1, 1, 1),
    (130.0, 30.0, "Say", "content", 0, 2, 2, 1),
    (130.0, 0.0, " it", "content", 0, 3, 2, 1),
    (200.0, 70.0, " all.", "content", 0, 4, 3, 2),
    (210.0, None, "stop", "finish", 0, 5, 4, 0),
    (215.0, None, "", "usage", -1, 6, 5, 0),
]
# Its content was checked after 6 characters and at its end.
CHECKS = json.dumps(
    [
        {"choice": 0, "chars": 6, "chunk": 3, "ms": 130.0, "flagged": False, "categories": [], "error": None,
         "took_ms": 40.0, "verdict_ms": 171.0, "seen": 6},
        {"choice": 0, "chars": 11, "chunk": 4, "ms": 200.0, "flagged": True, "categories": ["x"], "error": None,
         "took_ms": 12.5, "verdict_ms": 213.0, "seen": 11},
    ]
)  # fmt: skip
# The value of every metric for this stream, computed by hand.
BY_HAND = {
    "headers_ms": 70.0,
    "first_chunk_ms": 80.0,
    "ttft_ms": 100.0,
    "ttft_cached_ms": 100.0,
    "ttft_uncached_ms": None,
    "ttfot_ms": 130.0,
    "tpot_ms": (200.0 - 100.0) / 5,
    "itl_ms": (200.0 - 100.0) / 4,
    "tokens_per_chunk": 5 / 4,
    "burstiness": 100 * (5 - 3) / 5,
    "normalized_ms": 220.0 / 6,
    "stall_ms": 70.0,
    "e2e_ms": 220.0,
    "tokens_per_s": 6 / 0.220,
    "scheduled_ms": 30.0,
    "ttft_scheduled_ms": 30.0 + 5.0 + 100.0,
    "e2e_scheduled_ms": 30.0 + 5.0 + 220.0,
    "flagged_chars": 11,
    "partial_checks": 1,
    "partial_checks_ms": 40.0,
    "last_check_ms": 12.5,
}
# The metrics that are columns of captures.
TIMES = ("headers_ms", "first_chunk_ms", "ttft_ms", "ttfot_ms", "tpot_ms", "itl_ms", "e2e_ms", "scheduled_ms")


def empty_tables(spark: SparkSession, folder: Path) -> Settings:
    """Create the tables captures and runs."""
    delta_tables.ensure(spark, str(folder / "captures"), columns.CAPTURES)
    delta_tables.ensure(spark, str(folder / "runs"), columns.RUNS)
    return load_settings(prompts.config(folder, "http://127.0.0.1:1/v1"))


def used(*counts: int | None) -> tuple[int | None, ...]:
    """A value of ``usage_reported``: its first counts, the rest null."""
    reported = next(column.type for column in columns.CAPTURES if column.name == "usage_reported")
    return (*counts, *[None] * (len(reported) - len(counts)))


def capture_row(run_id: str, request_id: str, **values: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(column.name for column in columns.CAPTURES)
    return empty | {
        "run_id": run_id, "request_id": request_id, "mode": "stream", "status": "completed", "finish_reason": "stop",
        "chunks": CHUNKS, "retries": [], "loop_lag_ms": 1.0, "endpoint": "e", "request_model": "m",
        "cost_basis": "reported", "cost_usd": 0.25, "usage_reported": used(10, 6, 16, 4, 2),
        "usage_tiktoken": ("o200k_base", 9, 5, 14, False), "started_at": AT, "finished_at": AT + timedelta(seconds=1),
        "dispatch_ms": 5.0, "partial_moderation": CHECKS,
        **{name: BY_HAND[name] for name in TIMES},
        **values,
    }  # fmt: skip


def write_captures(spark: SparkSession, settings: Settings, *rows: dict[str, Any]) -> None:
    names = [column.name for column in columns.CAPTURES]
    frame = spark.createDataFrame(
        [tuple(row[name] for name in names) for row in rows], columns.spark_schema(columns.CAPTURES)
    )
    frame.coalesce(1).write.format("delta").mode("append").save(settings.captures.table)


def write_runs(spark: SparkSession, settings: Settings, *run_ids: str, heartbeat_at: datetime = AT) -> None:
    empty = dict.fromkeys(column.name for column in columns.RUNS)
    rows = [
        empty | {"run_id": run_id, "status": "completed", "started_at": AT, "heartbeat_at": heartbeat_at,
                "captures": settings.captures.table}
        for run_id in run_ids
    ]  # fmt: skip
    frame = spark.createDataFrame([tuple(row.values()) for row in rows], columns.spark_schema(columns.RUNS))
    frame.write.format("delta").mode("overwrite").save(settings.runs.table)
