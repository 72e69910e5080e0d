from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deltatap.analysis import tables
from deltatap.analysis.metrics import METRICS, PARTS, kinds_sql
from deltatap.analysis.sql import in_runs, pairs_sql
from deltatap.model import OUTPUT_KINDS
from tests.captured import BY_HAND, CHUNKS

if TYPE_CHECKING:
    from deltatap.delta.columns import Column


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
