"""Rewrites the generated parts of docs/*.md in place: columns of tables, definitions of metrics, simulated faults.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- /generated -->``, where NAME is a key of
:data:`PARTS`. The rest of a page is written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatap.analysis import metrics
from deltatap.analysis import tables as metrics_tables
from deltatap.delta import columns
from deltatap.simulator import faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pyarrow as pa

DOCS = Path(__file__).parents[1] / "docs"
_PART = re.compile(r"(<!-- generated: (?P<name>[^\n]*?) -->\n).*?(<!-- /generated -->\n)", re.DOTALL)
# Long structs, which the page describes once.
_NAMES: dict[Any, str] = {
    columns.CHUNK: "chunk",
    columns.RETRY: "retry",
    metrics_tables.ESTIMATE: "estimate",
    metrics_tables.DISTRIBUTION: "distribution",
}


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _columns(its_columns: Sequence[columns.Column]) -> str:
    rows = [(f"`{c.name}`", f"`{columns.sql_type(c.type, _NAMES)}`", c.comment) for c in its_columns]
    return _table(("column", "type", "description"), rows)


def _structs() -> str:
    def spelled(type_: pa.DataType) -> str:
        return columns.sql_type(type_, {other: name for other, name in _NAMES.items() if other != type_})

    return _table(("name", "type"), [(f"`{name}`", f"`{spelled(type_)}`") for type_, name in _NAMES.items()])


def _metrics() -> str:
    rows = [(f"{m.title} ({m.label})", f"`{m.name}`", m.unit, m.formula, m.null_when) for m in metrics.METRICS]
    return _table(("metric", "column", "unit", "definition", "null when"), rows)


def _metrics_sql() -> str:
    parts = [(f"`{name}`", f"`{sql}`") for name, sql in metrics.PARTS.items()]
    rows = [(m.label, f"`{m.from_chunks}`") for m in metrics.METRICS if m.from_chunks]
    return f"{_table(('name', 'SQL'), parts)}\n{_table(('metric', 'SQL'), rows)}"


def _peers() -> str:
    rows = [(p.tool, p.name, f"`{p.sql}`", p.differs) for p in metrics.PEERS]
    return _table(("tool", "its term", "SQL", "difference from ours"), rows)


def _faults() -> str:
    groups = {
        "refuses the request": faults.REFUSALS,
        "breaks the stream": faults.BREAKS,
        "changes the end, the headers or the type of the response": faults.ENDINGS,
        "changes how the stream is cut into events and bytes": faults.SHAPES,
        "adds or omits data that only some servers send": faults.TRAITS,
    }
    return _table(
        ("the fault", "names"), [(what, ", ".join(f"`{name}`" for name in names)) for what, names in groups.items()]
    )


PARTS: dict[str, Callable[[], str]] = {
    "captures": lambda: _columns(columns.CAPTURES),
    "runs": lambda: _columns(columns.RUNS),
    "metrics_by_run": lambda: _columns(metrics_tables.METRICS_BY_RUN),
    "metrics_by_hour": lambda: _columns(metrics_tables.METRICS_BY_HOUR),
    "stream_vs_complete": lambda: _columns(metrics_tables.STREAM_VS_COMPLETE),
    "metrics_changes": lambda: _columns(metrics_tables.METRICS_CHANGES),
    "structs": _structs,
    "metrics": _metrics,
    "metrics in SQL": _metrics_sql,
    "other tools": _peers,
    "faults": _faults,
}


def generated(page: str) -> str:
    """Return the page with its generated parts updated.

    Raises:
        KeyError: a marker names an unknown part.
    """
    return _PART.sub(lambda found: f"{found[1]}{PARTS[found['name']]()}{found[3]}", page)


def main() -> None:
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (new := generated(page)) != page:
            path.write_text(new, encoding="utf-8")
            print(f"{path.relative_to(DOCS.parent)}: updated")


if __name__ == "__main__":
    main()
