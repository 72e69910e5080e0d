"""Prompts tables and configurations for the tests of whole runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

SCHEMA = "request_id STRING, prompt STRING, model STRING, params STRING"


def write(spark: SparkSession, path: Path, rows: list[tuple[Any, ...]], schema: str = SCHEMA) -> None:
    """Write a prompts table. Short rows are padded with nulls."""
    width = schema.count(",") + 1 if schema == SCHEMA else 0
    filled = [(*row, *[None] * (width - len(row))) for row in rows]
    spark.createDataFrame(filled, schema).coalesce(1).write.format("delta").mode("overwrite").save(str(path))


def write_file(folder: Path, name: str, text: str) -> Path:
    """Write a file of prompts, and return its path."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def config(folder: Path, base_url: str, **sections: Any) -> dict[str, Any]:
    """Return a configuration with everything under one folder and the given sections merged in."""
    tree: dict[str, Any] = {
        "prompts": {"table": str(folder / "prompts")},
        "captures": {"table": str(folder / "captures")},
        "runs": {"table": str(folder / "runs")},
        "state": {"dir": str(folder / "state"), "flush_s": 0.5},
        "endpoint": {"name": "sim", "base_url": base_url, "api_key": None},
        "prices": None,
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return tree
