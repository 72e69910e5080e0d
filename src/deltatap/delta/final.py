"""When a row of ``captures`` is final, as SQL. Planning, landing and the ``_current`` view share this definition."""

from __future__ import annotations

from deltatap.model import ERRORS, INTERNAL_COMPLETE


def final_sql(row: str, *, keep_interrupted: bool) -> str:
    """A SQL condition that is true for a final row, which is neither replaced nor owed again.

    Args:
        row: the alias of the row.
        keep_interrupted: whether interrupted rows are final.
    """
    settled = ", ".join(f"'{name}'" for name, kind in ERRORS.items() if not kind.owed)
    paid = f"({row}.error.type = 'internal' AND {row}.error.code = '{INTERNAL_COMPLETE}')"
    interrupted = "TRUE" if keep_interrupted else f"({row}.error.type = 'content_policy' OR {paid})"
    return (
        f"({row}.status = 'completed' OR ({row}.status = 'failed' AND {row}.error.type IN ({settled}))"
        f" OR ({row}.status = 'interrupted' AND {interrupted}))"
    )
