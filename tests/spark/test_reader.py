"""Looks without a JVM: whatever is read through Spark is read the same by delta-rs and DuckDB."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from deltatap.analysis.compare import compare, counted
from deltatap.analysis.queries import (
    good_requests,
    newest_answers,
    newest_capture,
    newest_runs,
    not_completed,
    require_runs,
    summarize,
)
from deltatap.analysis.series import Measure
from deltatap.analysis.trend import trend
from deltatap.delta import tables as delta_tables
from deltatap.delta.local import LocalReader
from deltatap.delta.reader import Reader, SparkReader, rows
from deltatap.errors import ConfigError
from deltatap.export.captures import export
from deltatap.export.spans import Options, Span
from deltatap.report.data import gather
from deltatap.settings_loading import load_settings
from tests import captured
from tests.local import no_spark

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pyspark.sql import SparkSession

    from deltatap.config import Settings

RUNS = ("20261121T063000-abc123", "it's ${odd}\\ größe", "c")
KINDS = ("role", "content", "reasoning", "refusal", "tool_calls", "usage", "error", "finish")


def chunks(random_: random.Random) -> list[tuple[Any, ...]]:
    made, ms = [], 0.0
    for event in range(random_.choice([0, 1, 2, 7, 40])):
        gap = random_.choice([None, 0.0, random_.uniform(0.01, 90)])
        ms += gap or 0.0
        text, kind, choice = random_.choice(["", "a", "ü🙂"]), random_.choice(KINDS), random_.choice([-1, 0, 1])
        made.append((ms, gap, text, kind, choice, event, event, 1))
    return made


def capture_rows(random_: random.Random) -> list[dict[str, Any]]:
    made = []
    for at in range(300):
        run_id, mode = RUNS[at % 3], ("stream", "complete")[at // 3 % 2]
        started = random_.choice([None, captured.AT + timedelta(microseconds=random_.randrange(10**9))])
        status = random_.choice(["completed", "completed", "completed", "interrupted", "failed"])
        ms = {name: random_.choice([None, 0.0, random_.lognormvariate(4, 1)]) for name in captured.TIMES}
        failed = None if status == "completed" else {"type": "server", "message": "it's broken"}
        call = {"started_at": started, "error_type": "rate_limit", "text": "x"}
        made.append(
            captured.capture_row(run_id, f"r{at // 6}")
            | ms
            | {
                "mode": mode, "status": status, "started_at": started, "chunks": chunks(random_) if mode == "stream" else [],
                "finished_at": started and started + timedelta(seconds=random_.uniform(0, 9)), "error": failed,
                "finish_reason": random_.choice(["stop", "length", None]), "retries": [call] * random_.choice([0, 0, 2]),
                "loop_lag_ms": random_.choice([None, 0.1, 80.0]), "request_model": random_.choice(["m", "n", None]),
                "usage_reported": random_.choice([None, captured.used(10, random_.randrange(900), 16, None, 2)]),
                "cost_usd": random_.choice([None, 1e-7, 0.25]), "cost_basis": random_.choice([None, "reported"]),
                "keep": random_.choice([None, {"topic": "x", "none": None}]), "text": random_.choice([None, "", "Grüße"]),
            }
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def settings(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("a b'c")
    made = captured.empty_tables(spark, folder)
    captured.write_captures(spark, made, *capture_rows(random.Random(7)))  # noqa: S311
    captured.write_runs(spark, made, *RUNS)
    tree = made.model_dump(mode="json")
    tree["analysis"]["slo"] = {"ttft_ms": 60, "e2e_ms": 400}
    return load_settings(tree)


def plain(value: Any) -> Any:
    """A value for comparison: records as dicts, tables as sorted rows, floats of nine digits."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, pa.Table):
        return sorted(plain(rows(value)), key=str)
    return plain({name: getattr(value, name) for name in value.__slots__}) if hasattr(value, "__slots__") else value


def refused(look: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError, match="several request ids") as error:
        look()
    return str(error.value)


class Sent(list[Span]):
    """The spans that were sent."""

    def send(self, spans: Sequence[Span]) -> None:
        self.extend(spans)


def exported(reader: Reader, settings: Settings) -> tuple[Any, list[Span]]:
    sent = Sent()
    return export(reader, settings, RUNS[0], Options(content=True, chunks=0.5), sent), sorted(
        sent, key=lambda each: each.trace_id
    )


LOOKS: dict[str, Callable[[Reader, Settings], Any]] = {
    "runs": lambda reader, settings: newest_runs(reader, settings, 5),
    "good requests": lambda reader, settings: good_requests(reader, settings, RUNS),
    "show": lambda reader, settings: newest_capture(reader, settings, "r7", None),
    "show of a run": lambda reader, settings: newest_capture(reader, settings, "r7", RUNS[1]),
    "ids with the same beginning": lambda reader, settings: refused(
        lambda: newest_capture(reader, settings, "r", RUNS[1])
    ),
    "failures": lambda reader, settings: not_completed(reader, settings, RUNS[1], 20),
    "counted": lambda reader, settings: counted(reader, settings, *RUNS[:2]),
    "summary": lambda reader, settings: summarize(reader, settings, RUNS[1]),
    "replay": lambda reader, settings: newest_answers(reader, settings, RUNS[:2], 1_000),
    "compare": lambda reader, settings: compare(reader, settings, *RUNS[:2]),
    "trend": lambda reader, settings: trend(
        reader, settings, Measure("ttft_ms", "p95"), newest_runs(reader, settings, 5)
    ),
    "report": lambda reader, settings: gather(reader, settings, RUNS),
    "export": exported,
}


@pytest.mark.parametrize(
    "look", [pytest.param(look, marks=[pytest.mark.slow] if look == "report" else []) for look in LOOKS]
)
def test_a_look_without_a_jvm_shows_what_spark_shows(spark: SparkSession, settings: Settings, look: str) -> None:
    through_spark, local = (LOOKS[look](reader, settings) for reader in (SparkReader(spark), LocalReader(no_spark)))
    assert plain(local) == plain(through_spark)


def test_tables_with_deletion_vectors_are_read(spark: SparkSession, tmp_path: Path) -> None:
    table = delta_tables.quoted(str(tmp_path / "t"))
    spark.range(20).selectExpr("id", "map('k', id) AS m").coalesce(1).write.format("delta").save(str(tmp_path / "t"))
    spark.sql(f"ALTER TABLE {table} SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')")
    spark.sql(f"DELETE FROM {table} WHERE id % 3 = 0")
    assert spark.sql(f"DESCRIBE DETAIL {table}").collect()[0]["numFiles"] == 1
    query = f"SELECT * FROM {table} ORDER BY id DESC LIMIT 7"
    assert rows(LocalReader(no_spark).query(query)) == rows(SparkReader(spark).query(query))
    with pytest.raises(AssertionError, match="Spark was started"):
        LocalReader(no_spark, whole_tables=False).query(query)


def test_what_delta_rs_cannot_read_is_read_through_spark(spark: SparkSession, tmp_path: Path) -> None:
    reader = LocalReader(lambda: spark)
    assert rows(reader.query("SELECT 1 + count(*) AS n FROM (VALUES (1)) AS t(a)")) == [{"n": 2}]
    spark.range(2).write.format("delta").save(str(tmp_path / "t"))
    table = delta_tables.quoted(str(tmp_path / "t"))
    spark.sql(f"ALTER TABLE {table} SET TBLPROPERTIES ('delta.enableTypeWidening' = 'true')")
    spark.sql(f"ALTER TABLE {table} ALTER COLUMN id TYPE DECIMAL(20, 0)")
    assert rows(reader.query(f"SELECT sum(id) AS n FROM {table}")) == [{"n": 1}]


def test_names_of_tables_and_runs_without_a_jvm(spark: SparkSession, settings: Settings) -> None:
    reader = LocalReader(lambda: spark)
    captures = settings.captures.table
    assert reader.identify(captures) == SparkReader(spark).identify(captures)
    assert not reader.exists(f"{captures}/nothing")
    assert reader.identify("nowhere").id is None
    with pytest.raises(ConfigError, match="run nobody does not exist on this captures table; newest: "):
        require_runs(reader, settings, ["nobody"])
