"""The metrics against hand-computed examples, against numpy, and against the captures of real runs."""

from __future__ import annotations

import io
import json
import math
import shutil
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rich.console import Console

from deltatap.analysis.compare import compare, counted
from deltatap.analysis.compute import analyze, table_of
from deltatap.analysis.metrics import MERGED_COALESCED, MERGED_GAPS, METRICS, PEERS, with_parts
from deltatap.analysis.queries import newest_capture, newest_runs, summarize
from deltatap.analysis.sql import quantile_sql
from deltatap.delta import columns
from deltatap.delta import tables as delta_tables
from deltatap.delta.reader import SparkReader, identify_captures
from deltatap.driver import runs
from deltatap.driver.run import run
from deltatap.errors import ConfigError
from deltatap.prices import Prices
from deltatap.settings_loading import load_settings
from deltatap.terminal import show_capture, show_comparison, show_metrics, show_runs
from tests import nightly, prompts
from tests.captured import AT, BY_HAND, TIMES, capture_row, empty_tables, used, write_captures, write_runs
from tests.unit.analysis.test_late import LATE

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import Row, SparkSession

    from deltatap.config import Settings
    from tests.simulation import Simulation

PACE = {"ttft_ms": 30, "itl_ms": 3, "speed": 1}
PEERS_BY_HAND = {
    ("vLLM bench serve", "TTFT"): 80.0,
    ("vLLM bench serve", "ITL"): [20.0, 30.0, 0.0, 70.0, 10.0],
    ("vLLM bench serve", "TPOT"): (210.0 - 80.0) / 5,
    ("vLLM bench serve", "E2EL"): 210.0,
    ("guidellm", "TTFT"): 100.0,
    ("guidellm", "ITL"): 20.0,
    ("guidellm", "TPOT"): 200.0 / 6,
    ("aiperf", "TTFT"): 100.0,
    ("aiperf", "TTFO"): 130.0,
    ("aiperf", "ITL"): (215.0 - 100.0) / 5,
    ("aiperf", "ICL"): [30.0, 0.0, 70.0],
    ("aiperf", "request latency"): 215.0,
    ("inference-perf", "TTFT"): 130.0,
    ("inference-perf", "TPOT"): (200.0 - 130.0) / 5,
    ("inference-perf", "ITL"): [0.0, 70.0, 0.0],
    ("inference-perf", "NTPOT"): 220.0 / 6,
    ("OpenTelemetry", "gen_ai.client.operation.time_to_first_chunk"): 80.0,
    ("OpenTelemetry", "gen_ai.client.operation.duration"): 220.0,
    ("OpenTelemetry", "gen_ai.server.time_per_output_token"): (220.0 - 100.0) / 5,
}


@pytest.fixture
def settings(spark: SparkSession, tables: Path) -> Settings:
    return empty_tables(spark, tables)


def select_from(spark: SparkSession, row: dict[str, Any], expressions: list[str]) -> Row:
    """Evaluate expressions over captures of one row. The captures are a view, because SQL does not need a table here."""
    schema = columns.spark_schema(columns.CAPTURES)
    frame = spark.createDataFrame([tuple(row[name] for name in schema.names)], schema)
    frame.createOrReplaceTempView("captures_of_one_row")
    (found,) = spark.sql(f"SELECT {', '.join(expressions)} FROM ({with_parts('captures_of_one_row')})").collect()
    return found


def test_metrics_match_the_hand_computed_example(spark: SparkSession) -> None:
    expressions = [f"{metric.sql} AS {metric.name}" for metric in METRICS]
    expressions += [f"{metric.from_chunks} AS {metric.name}_from_chunks" for metric in METRICS if metric.from_chunks]
    for name, value in select_from(spark, capture_row("r", "a"), expressions).asDict().items():
        assert value == pytest.approx(BY_HAND[name.removesuffix("_from_chunks")]), name


def test_definitions_of_other_tools_match_the_hand_computed_example(spark: SparkSession) -> None:
    assert {(peer.tool, peer.name) for peer in PEERS} == set(PEERS_BY_HAND)
    row = select_from(spark, capture_row("r", "a"), [peer.sql for peer in PEERS])
    for peer, value in zip(PEERS, row, strict=True):
        assert value == pytest.approx(PEERS_BY_HAND[peer.tool, peer.name]), peer


def test_outputs_that_the_kernel_merged_have_no_gaps(spark: SparkSession) -> None:
    (stall_ms,) = (metric.merged_sql for metric in METRICS if metric.name == "stall_ms")
    assert stall_ms is not None
    row = capture_row("r", "a", chunks=[(*chunk.values(), 1) for chunk in LATE], loop_lag_ms=55.0)
    assert select_from(spark, row, [MERGED_GAPS, MERGED_COALESCED, stall_ms]) == ([20.0, 15.0], 4, 20.0)


def test_metrics_of_a_row_without_chunks_are_null(spark: SparkSession) -> None:
    row = capture_row("r", "a", chunks=[])
    empty = row.keys() & {*BY_HAND, "usage_reported", "usage_tiktoken", "loop_lag_ms", "partial_moderation"}
    every = [metric.sql for metric in METRICS] + [peer.sql for peer in PEERS]
    for value in select_from(spark, row | dict.fromkeys(empty), every):
        assert value is None or value == []


def test_quantiles_match_numpy_and_intervals_are_order_statistics(spark: SparkSession) -> None:
    quantiles = (0.5, 0.9, 0.95, 0.99)
    samples = [np.sort(np.random.default_rng(count).lognormal(5, 1, count)) for count in (1, 2, 3, 10, 1000)]
    frame = spark.createDataFrame([(sample.tolist(),) for sample in samples], "a ARRAY<DOUBLE>").coalesce(1)
    rows = frame.selectExpr(*(f"{quantile_sql('a', p)} AS `{p}`" for p in quantiles)).collect()
    for ordered, row in zip(samples, rows, strict=True):
        count = len(ordered)
        for p in quantiles:
            found, where = row[str(p)], (count, p)
            assert found["value"] == pytest.approx(np.quantile(ordered, p)), where
            spread = 1.959964 * math.sqrt(count * p * (1 - p))
            below, above = math.floor(count * p - spread), math.ceil(count * p + spread)
            assert found["low"] == (ordered[below - 1] if below >= 1 else None), where
            assert found["high"] == (ordered[above - 1] if above <= count else None), where


@pytest.mark.parametrize(("p", "count"), [(0.5, 8), (0.5, 101), (0.95, 73), (0.95, 200)])
def test_95_percent_of_intervals_contain_the_true_quantile(spark: SparkSession, p: float, count: int) -> None:
    """By the binomial distribution itself: the ranks are those of an interval of the first numbers."""
    frame = spark.range(1).selectExpr(f"transform(sequence(1, {count}), x -> CAST(x AS DOUBLE)) AS a")
    (found,) = frame.selectExpr(f"inline(array({quantile_sql('a', p)}))").collect()
    below = [math.comb(count, n) * p**n * (1 - p) ** (count - n) for n in range(count + 1)]
    assert 0.945 <= sum(below[int(found["low"]) : int(found["high"])]) <= 0.98


@pytest.mark.slow
def test_metrics_by_run_match_the_hand_computed_example(spark: SparkSession, settings: Settings) -> None:
    later = AT + timedelta(seconds=9)
    retried: tuple[Any, ...] = (AT - timedelta(seconds=1), 5.0, 429, "rate_limit", None, [], *[None] * 5)
    write_captures(
        spark,
        settings,
        capture_row("r", "a"),
        capture_row("r", "b", ttft_ms=300.0, e2e_ms=440.0, retries=[retried], finished_at=later),
        capture_row("r", "late", ttft_ms=9000.0, loop_lag_ms=51.0),
        capture_row("r", "cut", status="interrupted", finish_reason=None, ttft_ms=7000.0,
                    error=("connection", None, None, None, True, None)),
        capture_row("r", "bad", status="failed", finish_reason=None, started_at=None, finished_at=None, cost_usd=None,
                    cost_basis=None, chunks=[], error=("invalid_request", None, None, None, False, None)),
        capture_row("r", "reused", started_at=None, finished_at=None, cost_usd=0.0, cost_basis=None, chunks=[],
                    usage_reported=None, usage_tiktoken=None, loop_lag_ms=None, **dict.fromkeys(TIMES),
                    reused_from=("r", "a")),
        capture_row("other", "a", request_model=None),
    )  # fmt: skip
    write_runs(spark, settings, "r", "other")
    slo = load_settings({**settings.model_dump(exclude={"endpoint"}), "analysis": {"slo": {"ttft_ms": 200}}})
    rows = {row["run_id"]: row for row in analyze(spark, slo)}
    row = rows["r"]
    assert rows["other"]["rows"] == 1
    expected = {
        "endpoint": "e", "request_model": "m", "mode": "stream", "rows": 6, "completed": 4, "interrupted": 1,
        "failed": 1, "late": 1, "requests": 5, "errors": {"rate_limit": 1, "connection": 1},
        "finish_reasons": {"stop": 4}, "input_tokens": 40, "output_tokens": 24, "reported_output_tokens": 18,
        "tiktoken_output_tokens": 15, "cached_share": 0.4, "cost_usd": 1.0, "good": 1, "coalesced": 1 / 4,
        "requests_per_s": 3 / 10, "output_tokens_per_s": 24 / 10, "good_per_s": 1 / 10,
    }  # fmt: skip
    for name, value in expected.items():
        assert row[name] == (pytest.approx(value) if isinstance(value, float) else value), name
    assert (row["ttft_ms"]["count"], row["ttft_ms"]["mean"], row["ttft_ms"]["p50"]["value"]) == (2, 200.0, 200.0)
    assert row["e2e_ms"]["p50"]["value"] == 330.0
    # Each of the two streams that count has gaps of 30 and 70 ms; outputs of the same read have none.
    assert row["inter_chunk_ms"] == pytest.approx(
        {"count": 4, "mean": 50.0, "p50": 30.0, "p90": 70.0, "p95": 70.0, "p99": 70.0}
    )
    everything = load_settings({**slo.model_dump(exclude={"endpoint"}), "analysis": {"max_loop_lag_ms": None}})
    again = next(each for each in analyze(spark, everything) if each["run_id"] == "r")
    assert (again["late"], again["ttft_ms"]["count"], again["good"]) == (0, 3, None)


@pytest.mark.slow
def test_only_changed_runs_are_computed_again(spark: SparkSession, settings: Settings) -> None:
    write_captures(spark, settings, capture_row("one", "a"), capture_row("two", "a"))
    write_runs(spark, settings, "one", "two")
    assert [row["run_id"] for row in analyze(spark, settings)] == ["one", "two"]
    before = {name: contents(spark, settings, name) for name in ("metrics_by_run", "metrics_by_hour")}
    assert analyze(spark, settings) == []
    assert len(analyze(spark, settings, everything=True)) == 2
    assert {name: contents(spark, settings, name) for name in before} == before
    # Run two resumes an hour later, and run three starts.
    later = AT + timedelta(hours=1)
    write_captures(spark, settings, capture_row("two", "b", started_at=later, finished_at=later))
    write_captures(spark, settings, capture_row("three", "a"))
    write_runs(spark, settings, "one", "two", "three", heartbeat_at=later)
    spark.sql(
        f"UPDATE {delta_tables.quoted(settings.runs.table)} SET heartbeat_at = '{AT:%Y-%m-%d %H:%M}' WHERE run_id = 'one'"
    )
    spark.sql(f"UPDATE {delta_tables.quoted(table_of(settings, 'metrics_by_run'))} SET heartbeat_at = "
              f"'{AT:%Y-%m-%d %H:%M}' WHERE run_id = 'one'")  # fmt: skip
    assert {(row["run_id"], row["rows"]) for row in analyze(spark, settings)} == {("two", 2), ("three", 1)}
    hours = spark.table(delta_tables.quoted(table_of(settings, "metrics_by_hour"))).orderBy("hour").collect()
    assert [(row["hour"].astimezone(UTC), row["rows"]) for row in hours] == [
        (AT.replace(minute=0), 3), (later.replace(minute=0), 1),
    ]  # fmt: skip
    # A journal of run one lands, although this run has ended.
    write_captures(spark, settings, capture_row("one", "b"))
    captures = identify_captures(SparkReader(spark), settings.captures.table, settings.runs.table)
    runs.settle(spark, settings, captures, "one", runs.totals(spark, settings, "one"))
    assert [(row["run_id"], row["rows"]) for row in analyze(spark, settings)] == [("one", 2)]


def contents(spark: SparkSession, settings: Settings, name: str) -> list[str]:
    rows = spark.table(delta_tables.quoted(table_of(settings, name))).collect()
    return sorted(json.dumps(row.asDict(recursive=True), default=str, sort_keys=True) for row in rows)


@pytest.mark.slow
def test_changes_over_runs_are_written_to_a_table(spark: SparkSession, tables: Path) -> None:
    settings = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))
    times = nightly.times_of_nights(1, 0.5, since=7, nights=14)[:, :24]
    nightly.write_nights(tables, times, fingerprint_since=7)
    analyze(spark, settings)
    written = contents(spark, settings, "metrics_changes")
    found = {(row["metric"], row["quantile"]): row for row in map(json.loads, written)}
    assert found.keys() == {("ttft_ms", "p50"), ("e2e_ms", "p50")}, "24 rows are too few for p95"
    row = found["ttft_ms", "p50"]
    assert (row["endpoint"], row["request_model"], row["mode"], row["run_id"]) == ("e", "m", "stream", "run-07")
    assert (row["runs_before"], row["runs_after"]) == (7, 7)
    medians = np.median(times, axis=1)
    assert (row["before"], row["after"]) == pytest.approx((np.median(medians[:7]), np.median(medians[7:])))
    assert row["difference"]["low"] < row["after"] - row["before"] < row["difference"]["high"]
    assert row["changed"] == [{"what": "system_fingerprint", "before": "fp_1", "after": "fp_2"}]
    # Runs that an older version has analyzed get the table, too.
    shutil.rmtree(table_of(settings, "metrics_changes"))
    assert analyze(spark, settings) == []
    assert contents(spark, settings, "metrics_changes") == written


@pytest.mark.slow
def test_saved_time_matches_numpy(spark: SparkSession, settings: Settings) -> None:
    """In 40 pairs, the whole answer arrives about 1,000 ms after the first token of the streamed answer."""
    spread = np.random.default_rng(3).normal(0, 50, 40)
    rows = []
    for at, more in enumerate(spread):
        rows.append(capture_row("r", f"q{at}", usage_reported=used(1, 10 if at < 30 else 100, 1)))
        whole: dict[str, Any] = {
            "mode": "complete",
            "chunks": [],
            "ttft_ms": None,
            "tpot_ms": None,
            "e2e_ms": 1100.0 + float(more),
        }
        rows.append(capture_row("r", f"q{at}", **whole))
    rows.append(capture_row("r", "alone"))
    write_captures(spark, settings, *rows)
    write_runs(spark, settings, "r")
    analyze(spark, settings)
    found = {
        r["output_tokens"]: r
        for r in spark.table(delta_tables.quoted(table_of(settings, "stream_vs_complete"))).collect()
    }
    assert {name: row["pairs"] for name, row in found.items()} == {"all": 40, "1-16": 30, "65-256": 10}
    saved = found["all"]["saved_ms"]
    assert saved["value"] == pytest.approx(np.median(1000 + spread))
    # An ordinary bootstrap gives nearly the same interval.
    generator = np.random.default_rng(0)
    medians = [np.median(generator.choice(1000 + spread, 40)) for _ in range(4000)]
    assert (saved["low"], saved["high"]) == pytest.approx(np.quantile(medians, (0.025, 0.975)), abs=12)
    assert found["all"]["slower_ms"]["value"] == pytest.approx(-np.median(880 + spread))
    assert found["all"]["ttft_ms"] == 100.0


def test_analysis_without_captures_is_refused(spark: SparkSession, tables: Path) -> None:
    settings = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))
    with pytest.raises(ConfigError, match="capture something first"):
        analyze(spark, settings)


@pytest.mark.parametrize(
    ("captures", "configured", "table"),
    [
        ("/data/captures", None, "/data/t"),
        ("main.llm.captures", None, "main.llm.t"),
        ("captures", None, "t"),
        ("/data/captures", "/else/where", "/else/where/t"),
        ("/data/captures", "main.metrics", "main.metrics.t"),
    ],
)
def test_metrics_tables_are_next_to_captures_or_where_configured(
    captures: str, configured: str | None, table: str
) -> None:
    settings = load_settings({"captures": {"table": captures}, "analysis": {"tables": configured}, "prices": None})
    assert table_of(settings, "t") == table


@pytest.mark.slow
def test_two_real_runs_are_analyzed_compared_and_printed(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    """For every captured stream, the stored times equal those that SQL computes from its chunks."""
    prompts.write(spark, tables / "prompts", [(f"q{at:02d}", f"Prompt {at}?") for at in range(24)])
    runs = []
    for model in ("gpt-4o-mini", "gpt-4o"):
        capture, endpoint = {"mode": "paired", "owed": "all"}, {"model": model}
        settings = load_settings(prompts.config(tables, simulator.base_url, capture=capture, endpoint=endpoint))
        ended = run(settings, spark, Prices(), Console(file=io.StringIO()))
        runs.append(ended.row["run_id"])
    parts = with_parts(delta_tables.quoted(settings.captures.table))
    stored = [metric for metric in METRICS if metric.from_chunks and metric.sql == metric.name]
    assert len(stored) == 5
    for metric in stored:
        differ = f"NOT ({metric.sql} <=> {metric.from_chunks}) AND NOT abs({metric.sql} - {metric.from_chunks}) < 1e-9"
        assert spark.sql(f"SELECT 1 FROM ({parts}) WHERE {differ}").count() == 0, metric.name
    rows = analyze(spark, settings)
    assert {(row["run_id"], row["mode"], row["rows"]) for row in rows} == {
        (run_id, mode, 24) for run_id in runs for mode in ("stream", "complete")
    }
    captured = spark.table(delta_tables.quoted(settings.captures.table)).where("mode = 'stream'").collect()
    for row in rows:
        if row["mode"] == "stream":
            rows_of_run = [
                each
                for each in captured
                if each["run_id"] == row["run_id"] and (each["clock"] == "kernel" or each["loop_lag_ms"] <= 50)
            ]
            for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
                for quantile, p in {"p50": 0.5, "p99": 0.99}.items():
                    assert row[name][quantile]["value"] == pytest.approx(
                        np.quantile([each[name] for each in rows_of_run], p)
                    )
    out = io.StringIO()
    console = Console(file=out, width=80)
    show_metrics(console, rows)
    show_runs(console, newest_runs(SparkReader(spark), settings, 5), {}, {}, datetime.now(UTC))
    for run_id in runs:
        late = {row["mode"]: row["late"] for row in rows if row["run_id"] == run_id}
        assert {row["mode"]: row["late"] for row in summarize(SparkReader(spark), settings, run_id)[1]} == late
    (streamed, whole) = newest_capture(SparkReader(spark), settings, "q07", runs[0])
    assert (streamed["mode"], whole["mode"], streamed["run_id"]) == ("stream", "complete", runs[0])
    show_capture(console, streamed)
    first, second = runs
    row_counts = counted(SparkReader(spark), settings, first, second)
    assert {mode: [run.rows for run in runs_of_mode] for mode, runs_of_mode in row_counts.items()} == {
        mode: [sum(row["rows"] for row in rows if (row["run_id"], row["mode"]) == (run_id, mode)) for run_id in runs]
        for mode in ("stream", "complete")
    }
    show_comparison(console, (first, second), compare(SparkReader(spark), settings, first, second), row_counts)
    printed = out.getvalue()
    for expected in (*runs, "time to first token", streamed["text"].split()[0], "│", "p50", "excludes zero"):
        assert expected in printed
    with pytest.raises(ConfigError, match=r"no row with request_id nobody$"):
        newest_capture(SparkReader(spark), settings, "nobody", None)
