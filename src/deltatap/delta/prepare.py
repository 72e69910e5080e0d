"""Make the captures and runs tables where they are missing, and check the columns of those that exist."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from deltatap.delta import columns, tables
from deltatap.delta.final import final_sql
from deltatap.errors import ConfigError, one_line

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from deltatap.config import Settings


def check_tables(spark: SparkSession, settings: Settings) -> frozenset[str]:
    """Make captures and runs where they are not, and look at their columns where they are.

    Returns:
        Which of the two were not there.

    Raises:
        ConfigError: when a table is not there and cannot be made, or is not what it should be.
    """

    def check(name: str) -> tuple[bool, list[str]]:
        table, columns, *options = needed[name]
        try:
            made = tables.ensure(spark, table, columns, *options)
            different = tables.differences(spark.table(tables.quoted(table)).schema, columns)
        except Exception as error:  # noqa: BLE001 - whatever the catalog says
            return False, [f"{name}.table: {table}: {one_line(error)}"]
        return made, [f"{name}.table: {table}: {problem}" for problem in different]

    needed: dict[str, Any] = {
        "captures": (
            settings.captures.table,
            columns.CAPTURES,
            columns.CAPTURES_PROPERTIES,
            columns.CAPTURES_CLUSTERED_BY,
        ),
        # Serializable: of two drivers that take the lease at once, one must fail.
        "runs": (settings.runs.table, columns.RUNS, "'delta.isolationLevel' = 'Serializable'"),
    }
    with ThreadPoolExecutor(len(needed)) as pool:
        found = dict(zip(needed, pool.map(check, needed), strict=True))
    if problems := [problem for _, told in found.values() for problem in told]:
        raise ConfigError(problems)
    if not tables.is_path(settings.captures.table):
        newest = current_sql(settings.captures.table)
        spark.sql(f"CREATE VIEW IF NOT EXISTS {tables.quoted(settings.captures.table + '_current')} AS {newest}")
    return frozenset(name for name, (made, _) in found.items() if made)


def current_sql(captures: str) -> str:
    """The newest row of each request, final ones first."""
    newest = f"struct({final_sql('c', keep_interrupted=False)}, c.finished_at)"
    return f"""
        SELECT row.* FROM (
          SELECT max_by(struct(c.*), {newest}) AS row FROM {tables.quoted(captures)} AS c
          GROUP BY c.request_id, c.request_hash, c.endpoint, c.mode)
    """
