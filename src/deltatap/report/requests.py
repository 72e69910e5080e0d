"""The table of requests: which rows a page holds, and how they are packed for ``requests.js``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from deltatap.analysis.metrics import PARTS
from deltatap.analysis.requested import BODY, prompt_line
from deltatap.analysis.sql import FIRST_STARTED_AT, in_runs
from deltatap.delta.reader import rows as rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

# Limits of the table: rows of all runs together, characters per answer, characters per error message.
ROWS = 10_000
TEXT = 400
MESSAGE = 300
_COST_DIGITS = 4
_TIMES = ("queued_ms", "headers_ms", "ttft_ms", "e2e_ms", "loop_lag_ms", "at_s")


def requests_sql(captures: str, run_ids: Sequence[str]) -> str:
    """SQL: at most :data:`ROWS` rows, divided equally between the runs. Interrupted and failed rows come first.

    Args:
        captures: the table, as ``tables.quoted`` gives it.
        run_ids: the runs.
    """
    most = max(1, ROWS // max(1, len(run_ids)))
    at_s = f"timestampdiff(MICROSECOND, min({FIRST_STARTED_AT}) OVER (PARTITION BY run_id), started_at) / 1e6"
    return f"""
        SELECT * EXCEPT (place) FROM (
          SELECT run_id, request_id, mode, status, endpoint, request_model, finish_reason, error.type AS error,
            error.code AS code, error.http_status AS http_status, left(error.message, {MESSAGE}) AS message,
            queued_ms, headers_ms, ttft_ms, e2e_ms, loop_lag_ms, cost_usd, {PARTS["tokens"]} AS output_tokens,
            size(retries) AS retries, {at_s} AS at_s,
            left(text, {TEXT}) AS text, length(text) AS length, api, left(request, {BODY}) AS body,
            row_number() OVER (
              PARTITION BY run_id ORDER BY status = 'completed', started_at NULLS LAST, request_id, mode) AS place
          FROM {captures} WHERE {in_runs(run_ids)}
        ) WHERE place <= {most} ORDER BY run_id, place
    """


def packed(rows: pa.Table, names: Mapping[str, str]) -> str:
    """The rows as JSON: one list per column, runs by their place in ``runs``.

    Args:
        rows: the result of :func:`requests_sql`.
        names: the names of the runs by id.
    """
    runs = list(names)
    shown = [name for name in rows.column_names if name not in ("run_id", "api", "body")]
    columns: dict[str, list[Any]] = {name: rows[name].to_pylist() for name in shown}
    asked = zip(rows["body"].to_pylist(), rows["api"].to_pylist(), strict=True)
    columns["prompt"] = [prompt_line(body, api) for body, api in asked]
    for name in _TIMES:
        columns[name] = [None if value is None else round(value, 1) for value in columns[name]]
    columns["cost_usd"] = [
        None if value is None else float(f"{value:.{_COST_DIGITS}g}") for value in columns["cost_usd"]
    ]
    places = {run_id: at for at, run_id in enumerate(runs)}
    columns["run"] = [places[run_id] for run_id in rows["run_id"].to_pylist()]
    found = {"runs": [{"id": run_id, "name": names[run_id]} for run_id in runs], "columns": columns}
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


def keys(rows: pa.Table) -> set[tuple[str, str, str]]:
    """The (run, request, mode) of each row: the requests that a link can open."""
    return {
        (row["run_id"], row["request_id"], row["mode"])
        for row in rows_of(rows.select(["run_id", "request_id", "mode"]))
    }
