"""When a captures row is final, as SQL: the plan and the landing share this one definition."""

from __future__ import annotations

from deltatap.model import ERRORS


def final_sql(row: str, *, keep_interrupted: bool) -> str:
    """The SQL condition under which a captures row is final: neither replaced nor owed again.

    Args:
        row: the table's alias.
        keep_interrupted: whether interrupted rows are final.
    """
    settled = ", ".join(f"'{name}'" for name, kind in ERRORS.items() if not kind.owed)
    final = f"{row}.status = 'completed' OR ({row}.status = 'failed' AND {row}.error.type IN ({settled}))"
    return f"({final} OR {row}.status = 'interrupted')" if keep_interrupted else f"({final})"
