"""The documentation says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from deltatap import tables
from deltatap.config import load_settings

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


def test_every_configuration_of_a_provider_can_be_pasted() -> None:
    blocks = re.findall(r"```yaml\n(endpoint:\n.*?)```", (DOCS / "endpoints.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        settings = load_settings(yaml.safe_load(block))
        assert settings.endpoint.name
        # The identity stands in a block of its own, to take the key's place.
        load_settings(yaml.safe_load(block), ["endpoint.api_key={identity: azure}"])
