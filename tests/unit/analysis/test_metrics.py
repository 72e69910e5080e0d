from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from deltatap.analysis import tables
from deltatap.analysis.metrics import METRICS, PARTS, kinds_sql, with_parts
from deltatap.analysis.queries import captures_sql
from deltatap.analysis.sql import in_runs, measured_sql, pairs_sql
from deltatap.delta import columns
from deltatap.delta.local import LocalReader
from deltatap.delta.reader import rows
from deltatap.model import OUTPUT_KINDS
from deltatap.settings_loading import load_settings
from tests.captured import BY_HAND, CHUNKS, capture_row
from tests.local import no_spark

if TYPE_CHECKING:
    from pathlib import Path

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
