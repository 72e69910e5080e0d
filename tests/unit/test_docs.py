"""The documentation says what the code says."""

from __future__ import annotations

from pathlib import Path

from deltatap import tables

DOCS = Path(__file__).parents[2] / "docs"


def documented() -> str:
    """docs/tables.md, from the one place where the columns stand."""
    parts = ["# The tables\n\nTimes in `_ms` are milliseconds, DOUBLE. Made from `src/deltatap/tables.py`.\n"]
    whats = {
        "captures": (tables.CAPTURES, "One row for each (run_id, request_id, mode)."),
        "runs": (tables.RUNS, "One row a run, updated as it goes."),
    }
    for name, (columns, what) in whats.items():
        parts.append(f"\n## {name}\n\n{what}\n\n| column | type | what |\n|---|---|---|\n")
        parts += [f"| {column.name} | `{column.type}` | {column.comment} |\n" for column in columns]
    return "".join(parts)


def test_the_documented_columns_are_the_tables_own() -> None:
    assert (DOCS / "tables.md").read_text() == documented(), "write documented() to docs/tables.md"
