"""Create the captures and runs tables if they do not exist, or check and upgrade the columns of existing ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from deltatap.delta import columns, tables
from deltatap.delta.final import final_sql
from deltatap.errors import ConfigError, one_line

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from deltatap.config import Settings


def prepare_tables(spark: SparkSession, settings: Settings) -> None:
    """Create the captures and runs tables if they do not exist, check their columns, and add those of newer versions.

    If captures is a catalog name, a view of the same name with ``_current`` appended is created, too.

    Raises:
        ConfigError: if a table cannot be created, or its columns are not those of deltatap.
    """
    needed: dict[str, tuple[Any, ...]] = {
        "captures": (
            settings.captures.table,
            columns.CAPTURES,
            columns.CAPTURES_PROPERTIES,
            columns.CAPTURES_CLUSTERED_BY,
        ),
        # Serializable: if two drivers take the lease at the same time, one of their commits must fail.
        "runs": (settings.runs.table, columns.RUNS, "'delta.isolationLevel' = 'Serializable'"),
    }

    def problems_of(name: str) -> list[str]:
        table, its_columns, *options = needed[name]
        try:
            tables.ensure(spark, table, its_columns, *options)
            problems = tables.upgrade(spark, table, its_columns)
        except Exception as error:  # noqa: BLE001 - a catalog raises many kinds of errors
            problems = [one_line(error)]
        return [f"{name}.table: {table}: {problem}" for problem in problems]

    with ThreadPoolExecutor(len(needed)) as pool:
        if problems := [problem for found in pool.map(problems_of, needed) for problem in found]:
            raise ConfigError(problems)
    if not tables.is_path(settings.captures.table):
        newest = current_sql(settings.captures.table)
        view = tables.beside(settings.captures.table, f"{tables.names(settings.captures.table)[-1]}_current")
        spark.sql(f"CREATE VIEW IF NOT EXISTS {tables.quoted(view)} AS {newest}")


def current_sql(captures: str) -> str:
    """A query for the newest row of each request; final rows count as newer than others."""
    newest = f"struct({final_sql('c', keep_interrupted=False)}, c.finished_at)"
    return f"""
        SELECT row.* FROM (
          SELECT max_by(struct(c.*), {newest}) AS row FROM {tables.quoted(captures)} AS c
          GROUP BY c.request_id, c.request_hash, c.endpoint, c.mode)
    """
