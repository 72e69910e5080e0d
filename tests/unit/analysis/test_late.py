"""Rows whose event loop ran late: what their times are still good for, by the clock that they are from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from deltatap.analysis.queries import summarize
from deltatap.analysis.sql import measured_sql
from deltatap.delta import columns
from deltatap.delta.local import LocalReader
from deltatap.delta.reader import rows
from deltatap.delta.tables import quoted
from deltatap.settings_loading import load_settings
from tests.captured import capture_row
from tests.local import no_spark

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [field.name for field in columns.CHUNK]


def stream(*chunks: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(NAMES, chunk, strict=False)) for chunk in chunks]


# Two outputs in reads of their own; three that arrived while the loop was late, with the time of the last; the finish,
# which came together with the last output.
LATE = stream(
    (80.0, None, "", "role", 0, 0, 0),
    (100.0, None, "a", "content", 0, 1, 1),
    (120.0, 20.0, "b", "content", 0, 2, 2),
    (180.0, 60.0, "c", "content", 0, 3, 3),
    (180.0, 0.0, "d", "content", 0, 4, 3),
    (180.0, 0.0, "e", "content", 0, 5, 3),
    (195.0, 15.0, "f", "content", 0, 6, 4),
    (220.0, 25.0, "g", "content", 0, 7, 5),
    (220.0, None, "stop", "finish", 0, 8, 5),
)
# A server that pauses for half a second and then sends everything: the pause is found in spite of the late loop.
PAUSE = stream(
    (10.0, None, "a", "content", 0, 0, 0),
    (510.0, 500.0, "b", "content", 0, 1, 1),
    (510.0, 0.0, "c", "content", 0, 2, 1),
)
# Several elements of one event are not merged.
ONE_EVENT = stream(
    (10.0, None, "a", "content", 0, 0, 0),
    (30.0, 20.0, "b", "content", 0, 1, 1),
    (30.0, 20.0, "stop", "finish", 0, 1, 1),
)


def measured(folder: Path, chunks: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    """The row that analysis makes of a capture."""
    usage = {"encoding": "e", "input_tokens": 1, "output_tokens": 7, "total_tokens": 8, "approximate": False}
    row = capture_row("r", "a", chunks=chunks, **values) | {"usage_reported": None, "usage_tiktoken": usage}
    table = str(folder / "captures")
    write_deltalake(table, pa.Table.from_pylist([row], columns.arrow_schema(columns.CAPTURES)))
    settings = load_settings({"endpoint": {"model": "m"}, "captures": {"table": table}})
    reader = LocalReader(no_spark)
    (made,) = rows(reader.query(measured_sql(settings, f"SELECT * FROM {quoted(table)}")))
    _, (times,), _ = summarize(reader, settings, "r")
    late = made["loop_lag_ms"] is not None and made["loop_lag_ms"] > 50
    kept = late and made["clock"] == "kernel"
    expected = (made["late"], kept, made["coalesced"] if kept else 0, made["outputs"] if kept else 0)
    assert tuple(times[name] for name in ("late", "kept", "merged", "outputs")) == expected, "the summary says the same"
    return made


@pytest.mark.parametrize(
    ("clock", "lag_ms", "counts"),
    [
        (None, 70.0, False),
        ("process", 70.0, False),
        ("process", 30.0, True),
        ("kernel", 30.0, True),
        ("kernel", None, True),
    ],
)
def test_a_row_counts_as_a_whole_or_not_at_all(
    tmp_path: Path, clock: str | None, lag_ms: float | None, *, counts: bool
) -> None:
    row = measured(tmp_path, LATE, clock=clock, loop_lag_ms=lag_ms)
    assert (row["counts"], row["late"]) == (counts, not counts)
    assert (row["gaps"], row["coalesced"], row["outputs"], row["stall_ms"]) == ([20.0, 60.0, 15.0, 25.0], 2, 7, 60.0)


@pytest.mark.parametrize(
    ("chunks", "gaps", "merged", "stall_ms"),
    [
        (LATE, [20.0, 15.0], 4, 20.0),
        # The pause of the server is found in spite of the late loop; what the loop may have added is not part of it.
        (PAUSE, [], 2, 445.0),
        (ONE_EVENT, [20.0], 0, 20.0),
        (LATE[:2], [], 0, None),
    ],
)
def test_with_the_clock_of_the_kernel_only_what_was_merged_is_left_out(
    tmp_path: Path, chunks: list[dict[str, Any]], gaps: list[float], merged: int, stall_ms: float | None
) -> None:
    row = measured(tmp_path, chunks, clock="kernel", loop_lag_ms=55.0)
    assert (row["counts"], row["late"]) == (True, False)
    assert (row["gaps"], row["coalesced"], row["stall_ms"]) == (gaps, merged, stall_ms)
