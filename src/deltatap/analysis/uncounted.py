"""The rows that the time metrics leave out, and why. The report explains the reasons, ``compare`` counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# The reasons in a few words.
REASONS = {
    "interrupted": "interrupted",
    "failed": "failed",
    "late": "on a late event loop",
    "lost": "read again after a kill",
    "unsent": "not sent (invalid prompt)",
    "reused": "reused",
}


def uncounted_sql(measured: str) -> str:
    """SQL: measured rows (a query) that the time metrics leave out, counted by series and reason."""
    keys = "run_id, endpoint, request_model, mode, status, late, lost, started"
    return f"""
        SELECT {keys}, count(*) AS rows, max(loop_lag_ms) AS lag_ms
        FROM (SELECT *, started_at IS NOT NULL AS started FROM ({measured}) WHERE NOT counts)
        GROUP BY {keys} ORDER BY {keys}
    """


def reason(row: Mapping[str, Any]) -> str:
    """The reason for a row of :func:`uncounted_sql`: a key of :data:`REASONS`."""
    if row["late"]:
        return "late"
    if row.get("lost") and row["status"] == "completed":
        return "lost"
    if row["started"]:
        return str(row["status"])
    return "reused" if row["status"] == "completed" else "unsent"
