"""SQL of sums that cannot overflow: in Spark, a BIGINT that overflows is an error, which fails the whole query."""

from __future__ import annotations

# The maximum of BIGINT.
MOST = 2**63 - 1


def wide(expression: str) -> str:
    """SQL that converts an integer to a type that holds every sum of integers."""
    return f"CAST({expression} AS DECIMAL(38, 0))"


def total_sql(expression: str) -> str:
    """SQL of the sum of an integer expression over rows: a BIGINT, and the maximum of BIGINT if the sum is larger."""
    total = f"sum({wide(expression)})"
    # Not least(), which takes null for infinity.
    return f"CAST(IF({total} > {MOST}, {MOST}, {total}) AS BIGINT)"
