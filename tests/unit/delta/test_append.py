"""Appending to a local table without a JVM."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from deltatap.delta.append import SETTLED_S, NotAppendableError, append, column_types
from deltatap.prompt_columns import ColumnType

if TYPE_CHECKING:
    from pathlib import Path


def rows(table: Path) -> list[dict[str, Any]]:
    return sorted(DeltaTable(table).to_pyarrow_table().to_pylist(), key=str)


def at_once(_: float) -> None:
    """Wait for nothing."""


def test_a_table_is_created_and_gains_columns(tmp_path: Path) -> None:
    table = tmp_path / "prompts"
    append(str(table), pa.table({"request_id": ["a"], "prompt": ["Say"]}), at_once)
    append(str(table), pa.table({"prompt": ["Tell"], "tenant": ["x"]}), at_once)
    assert rows(table) == [
        {"request_id": "a", "prompt": "Say", "tenant": None}, {"request_id": None, "prompt": "Tell", "tenant": "x"},
    ]  # fmt: skip


def test_columns_have_the_spelling_and_the_types_of_the_table(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", pa.table({"Request_ID": [1], "prompt": ["Say"]}))
    append(str(tmp_path / "t"), pa.table({"request_id": ["2", None], "prompt": ["Tell", "Ask"]}), at_once)
    assert sorted(row["Request_ID"] or 0 for row in rows(tmp_path / "t")) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"column Request_ID: .*'x'"):
        append(str(tmp_path / "t"), pa.table({"request_id": ["x"]}), at_once)
    assert DeltaTable(tmp_path / "t").version() == 1


def test_a_commit_that_spark_replaces_is_repeated(tmp_path: Path) -> None:
    table = tmp_path / "t"
    write_deltalake(table, pa.table({"prompt": ["first"]}))
    waits: list[float] = []

    def replace(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) < 3:  # as Spark does, with a commit of its own
            theirs = table / f"{len(waits)}.tmp"
            theirs.write_text(json.dumps({"commitInfo": {"operation": "WRITE"}}), encoding="utf-8")
            theirs.rename(table / f"_delta_log/{len(waits):020}.json")

    append(str(table), pa.table({"prompt": ["second"]}), replace)
    assert waits == [SETTLED_S] * 3
    assert rows(table) == [{"prompt": "first"}, {"prompt": "second"}]


@pytest.mark.parametrize(
    "columns",
    [
        {"a b": ["x"]},
        {"at": [1.5], "day": pa.array([1], pa.date32())},
        {"tags": [["x"]]},
        {"x": pa.array([1], pa.uint8())},
    ],
)
def test_what_needs_spark_is_not_written(tmp_path: Path, columns: dict[str, Any]) -> None:
    with pytest.raises(NotAppendableError):
        append(str(tmp_path / "t"), pa.table(columns), at_once)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("table", ["file", "file/t"])
def test_a_folder_that_cannot_be_written_is_left_to_spark(tmp_path: Path, table: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotAppendableError):
        append(str(tmp_path / table), pa.table({"prompt": ["x"]}), at_once)


def test_a_column_of_another_type_needs_spark(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", pa.table({"prompt": ["Say"], "tags": [["x"]]}))
    with pytest.raises(NotAppendableError):
        append(str(tmp_path / "t"), pa.table({"prompt": ["Tell"], "tags": ["x"]}), at_once)
    assert DeltaTable(tmp_path / "t").version() == 0


def test_types_of_columns_are_named_as_in_sql() -> None:
    table = pa.table({"a": ["x"], "b": [1], "c": pa.array([1], pa.int8()), "d": [1.5], "e": [True]})
    assert column_types(table.schema) == {
        "a": ColumnType.text(), "b": ColumnType("BIGINT", is_id=True), "c": ColumnType("TINYINT", is_id=True),
        "d": ColumnType("DOUBLE"), "e": ColumnType("BOOLEAN"),
    }  # fmt: skip
    for nested in (pa.table({"a": [[1]]}), pa.table({"a": [{"b": 1}]}), pa.table({"a b": [1]})):
        with pytest.raises(NotAppendableError):
            column_types(nested.schema)
