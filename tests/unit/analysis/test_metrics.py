from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from deltatap.analysis import tables
from deltatap.analysis.compute import by_run_rows
from deltatap.analysis.metrics import METRICS, PARTS, kinds_sql, with_parts
from deltatap.analysis.queries import captures_sql
from deltatap.analysis.sql import in_runs, measured_sql, pairs_sql
from deltatap.delta import columns
from deltatap.delta.local import LocalReader
from deltatap.delta.reader import rows
from deltatap.model import OUTPUT_KINDS
from deltatap.settings_loading import load_settings
from tests.captured import AT, BY_HAND, CHUNKS, capture_row, used
from tests.local import no_spark

if TYPE_CHECKING:
    from pathlib import Path

    from deltatap.config import Settings
    from deltatap.delta.columns import Column

# What tables of older versions lack, and the metrics that need it.
NEW_COLUMNS = {"token_source", "itl_ms", "partial_moderation"}
OF_TOKENS = {"itl_ms", "tokens_per_chunk", "burstiness"}
OF_CHECKS = {"flagged_chars", "partial_checks", "partial_checks_ms", "last_check_ms"}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_has_a_hand_computed_value(metric: object) -> None:
    name = getattr(metric, "name", "")
    assert name in BY_HAND, f"add the value of {name} for CHUNKS to BY_HAND in tests/captured.py"


def test_every_hand_computed_value_belongs_to_a_metric() -> None:
    assert set(BY_HAND) <= {metric.name for metric in METRICS}


@pytest.mark.parametrize("table", [tables.METRICS_BY_RUN, tables.METRICS_BY_HOUR], ids=["by_run", "by_hour"])
def test_metrics_tables_have_a_column_per_metric(table: tuple[Column, ...]) -> None:
    found = {column.name: column.type for column in table}
    assert all(found[metric.name] == tables.DISTRIBUTION for metric in METRICS)


def test_output_kinds_in_sql() -> None:
    assert kinds_sql() == "c.kind IN ('content', 'reasoning', 'refusal', 'tool_calls')"
    assert kinds_sql("reasoning", kind="k") == "k IN ('content', 'refusal', 'tool_calls')"
    assert kinds_sql() in PARTS["output"]


def test_the_example_has_output_of_several_kinds() -> None:
    assert len({chunk[3] for chunk in CHUNKS} & set(OUTPUT_KINDS)) > 1


def test_run_ids_are_literals() -> None:
    assert in_runs(["a'b", "c"]) == "run_id IN (CAST(X'612762' AS STRING), 'c')"


def test_pairs_are_grouped_by_length() -> None:
    assert "WHEN s.output_tokens <= 16 THEN '1-16' WHEN s.output_tokens <= 64 THEN '17-64'" in pairs_sql("rows")


def as_structs(row: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """The row with dicts in the place of tuples, as Arrow takes structs."""

    def converted(value: Any, type_: pa.DataType) -> Any:
        if isinstance(value, list):
            return [converted(item, type_.value_type) for item in value]
        if isinstance(value, tuple):
            return {field.name: item for field, item in zip(type_, value, strict=False)}
        return value

    return {field.name: converted(row[field.name], field.type) for field in schema}


def test_metrics_without_a_jvm_match_the_hand_computed_example(tmp_path: Path) -> None:
    schema = columns.arrow_schema(columns.CAPTURES)
    write_deltalake(tmp_path / "captures", pa.Table.from_pylist([as_structs(capture_row("r", "a"), schema)], schema))
    expressions = [f"{metric.sql} AS {metric.name}" for metric in METRICS]
    expressions += [f"{metric.from_chunks} AS {metric.name}_from_chunks" for metric in METRICS if metric.from_chunks]
    captures = f"delta.`{tmp_path}/captures`"
    (found,) = rows(LocalReader(no_spark).query(f"SELECT {', '.join(expressions)} FROM ({with_parts(captures)})"))
    for name, value in found.items():
        assert value == pytest.approx(BY_HAND[name.removesuffix("_from_chunks")]), name


def local_captures(folder: Path, *given: dict[str, Any]) -> Settings:
    schema = columns.arrow_schema(columns.CAPTURES)
    made = pa.Table.from_pylist([as_structs(row, schema) for row in given], schema)
    write_deltalake(folder / "captures", made)
    return load_settings({name: {"table": str(folder / name)} for name in ("captures", "runs")})


@pytest.mark.parametrize(
    ("reported", "counted", "tokens"),
    [((0, 0), (9, 5), (9, 5)), ((0, 0), None, (0, 0)), ((10, 6), (9, 5), (10, 6)), ((None, None), (9, 5), (9, 5))],
)
def test_a_count_of_zero_is_not_a_report(
    tmp_path: Path, reported: tuple[int, int], counted: tuple[int, int] | None, tokens: tuple[int, int]
) -> None:
    tiktoken = None if counted is None else ("o200k_base", *counted, sum(counted), False)
    settings = local_captures(tmp_path, capture_row("r", "a", usage_reported=used(*reported), usage_tiktoken=tiktoken))
    reader = LocalReader(no_spark)
    (found,) = rows(reader.query(measured_sql(settings, captures_sql(reader, settings, "true"))))
    assert (found["input_tokens"], found["output_tokens"]) == tokens
    assert found["tokens_per_s"] == pytest.approx(tokens[1] / 0.220)


def test_a_run_starts_with_its_first_call(tmp_path: Path) -> None:
    """Even if this call failed, and the request was sent again."""
    retries: list[tuple[Any, ...]] = [(AT + timedelta(seconds=at), 5.0, 503, "server", *[None] * 7) for at in (-9, -5)]
    never = dict.fromkeys(("started_at", "finished_at"))
    settings = local_captures(
        tmp_path, capture_row("r", "a", retries=retries), capture_row("r", "b"), capture_row("r", "unsent", **never)
    )
    write_deltalake(tmp_path / "runs", pa.Table.from_pylist([{"run_id": "r"}], columns.arrow_schema(columns.RUNS)))
    reader = LocalReader(no_spark)
    (found,) = by_run_rows(reader, settings, f"({measured_sql(settings, captures_sql(reader, settings, 'true'))})")
    assert (found["started_at"], found["requests_per_s"]) == (AT - timedelta(seconds=9), 2 / 10)


def test_a_table_of_an_older_version_has_no_metrics_of_tokens_and_checks(tmp_path: Path) -> None:
    chunk = pa.struct([field for field in columns.CHUNK if field.name != "tokens"])
    fields = [
        pa.field(field.name, pa.list_(chunk) if field.name == "chunks" else field.type)
        for field in columns.arrow_schema(columns.CAPTURES)
        if field.name not in NEW_COLUMNS
    ]
    given = [
        as_structs(capture_row("r", "a"), pa.schema(fields)),
        as_structs(capture_row("r", "b", chunks=[]), pa.schema(fields)),
    ]
    write_deltalake(tmp_path / "captures", pa.Table.from_pylist(given, pa.schema(fields)))
    settings = load_settings({"captures": {"table": str(tmp_path / "captures")}})
    reader = LocalReader(no_spark)
    measured = f"SELECT * FROM ({measured_sql(settings, captures_sql(reader, settings, 'true'))}) ORDER BY request_id"
    found, empty = rows(reader.query(measured))
    new = OF_TOKENS | OF_CHECKS
    never = {name for name, value in BY_HAND.items() if value is None}
    assert {name for name in BY_HAND if found[name] is None} == new | never
    assert {name: found[name] for name in BY_HAND if name not in new} == pytest.approx(
        {name: value for name, value in BY_HAND.items() if name not in new}
    )
    assert not found["checked"]
    assert (found["gaps"], found["outputs"], empty["outputs"]) == ([30.0, 70.0], 4, 0)
