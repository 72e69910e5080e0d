"""When a row of ``captures`` is final, as SQL. Planning, landing and the ``_current`` view share this definition."""

from __future__ import annotations

from deltatap.model import ERRORS


def final_sql(row: str, *, keep_interrupted: bool) -> str:
    """A SQL condition that is true for a final row, which is neither replaced nor owed again.

    Args:
        row: the alias of the row.
        keep_interrupted: whether interrupted rows are final.
    """
    settled = ", ".join(f"'{name}'" for name, kind in ERRORS.items() if not kind.owed)
    final = f"{row}.status = 'completed' OR ({row}.status = 'failed' AND {row}.error.type IN ({settled}))"
    return f"({final} OR {row}.status = 'interrupted')" if keep_interrupted else f"({final})"
