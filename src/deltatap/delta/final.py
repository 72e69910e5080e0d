"""When a row of ``captures`` is final, as SQL. Planning, landing and the ``_current`` view share this definition."""

from __future__ import annotations

from deltatap.model import ERRORS, INTERNAL_COMPLETE, INTERNAL_CUT


def final_sql(row: str, *, keep_interrupted: bool) -> str:
    """A SQL condition that is true for a final row, which is neither replaced nor owed again; it is never null.

    Args:
        row: the alias of the row.
        keep_interrupted: whether interrupted rows are final.
    """
    settled = ", ".join(f"'{name}'" for name, kind in ERRORS.items() if not kind.owed and name != "internal")
    type_, code = f"{row}.error.type", f"coalesce({row}.error.code, '')"
    # A fault of deltatap is final unless it cut the answer.
    failed = f"{type_} IN ({settled}) OR ({type_} = 'internal' AND {code} != '{INTERNAL_CUT}')"
    broken = f"{type_} = 'content_policy' OR ({type_} = 'internal' AND {code} = '{INTERNAL_COMPLETE}')"
    # Without an error, the types are null. A condition that is null would neither keep nor replace the row.
    return (
        f"coalesce({row}.status = 'completed' OR ({row}.status = 'failed' AND ({failed}))"
        f" OR ({row}.status = 'interrupted' AND ({'TRUE' if keep_interrupted else broken})), FALSE)"
    )
