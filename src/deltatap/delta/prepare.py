"""Create the captures and runs tables if they do not exist, or check and upgrade the columns of existing ones."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatap.delta import columns, tables
from deltatap.delta.final import final_sql
from deltatap.delta.identity import local_folder
from deltatap.delta.lock import one_at_a_time
from deltatap.delta.reader import identify_captures
from deltatap.delta.readers import reader_beside
from deltatap.errors import ConfigError, one_line

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from deltatap.config import Settings
    from deltatap.delta.identity import Identity


# The property of a captures table with its runs table, as JSON.
GUARD = "deltatap.runs"
_DELETION_VECTORS = "delta.enableDeletionVectors"


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
        # Without deletion vectors, a commit replaces whole files, and two changes of one file conflict.
        "runs": (
            settings.runs.table,
            columns.RUNS,
            f"'delta.isolationLevel' = 'Serializable', '{_DELETION_VECTORS}' = 'false'",
        ),
    }

    def problems_of(name: str) -> list[str]:
        table, its_columns, *options = needed[name]
        try:
            if tables.is_view(spark, table):
                return [f"{name}.table: {table}: expected a Delta table, found a view"]
            if (why := tables.why_not_creatable(spark, table)) and not tables.exists(spark, table):
                return [f"{name}.table: {table}: {why}"]
            tables.ensure(spark, table, its_columns, *options)
            problems = tables.upgrade(spark, table, its_columns)
        except Exception as error:  # noqa: BLE001 - a catalog raises many kinds of errors
            problems = [one_line(error)]
        return [f"{name}.table: {table}: {problem}" for problem in problems]

    folders = [str(Path(folder).parent) for table, *_ in needed.values() if (folder := local_folder(table))]
    with one_at_a_time(folders), ThreadPoolExecutor(len(needed)) as pool:
        if problems := [problem for found in pool.map(problems_of, needed) for problem in found]:
            raise ConfigError(problems)
    if not tables.is_path(settings.captures.table):
        _prepare_view(spark, settings.captures.table)


def _prepare_view(spark: SparkSession, captures: str) -> None:
    """Create the view of the newest rows.

    A view keeps the columns that its table had when it was created, so an older view is replaced.
    """
    from pyspark.errors import AnalysisException  # noqa: PLC0415 - workers import this module without Spark

    view = tables.beside(captures, f"{tables.names(captures)[-1]}_current")
    types = spark.table(tables.quoted(captures)).schema.simpleString()
    try:
        found = spark.table(tables.quoted(view)).schema.simpleString()
    except AnalysisException:  # there is no view, or its types differ from those of its table
        found = None
    if found != types:
        spark.sql(f"CREATE OR REPLACE VIEW {tables.quoted(view)} AS {current_sql(captures)}")


def guard(spark: SparkSession, settings: Settings) -> Identity:
    """Check that the captures table belongs to the configured runs table, and return the captures table.

    Leases in two runs tables would not exclude each other, so a captures table remembers its runs table in a property.
    A copied table inherits the property; there it is ignored.

    Raises:
        ConfigError: if the table belongs to another runs table.
    """
    with ThreadPoolExecutor(1) as pool:
        identifying = pool.submit(reader_beside(spark).identify, settings.runs.table)
        captures = identify_captures(reader_beside(spark), settings.captures.table, settings.runs.table)
        runs = identifying.result()
    found = _guard_of(captures)
    if found is not None and not runs.is_same(found["runs_id"], found["runs_location"]):
        theirs, name = found["runs_location"], tables.quoted(settings.captures.table)
        why = f"the runs on captures table {settings.captures.table} are in {theirs}; use that table"
        how = f"or, if it no longer exists, run ALTER TABLE {name} UNSET TBLPROPERTIES ('{GUARD}')"
        raise ConfigError([f"runs.table: {settings.runs.table}: {why}, {how}"])
    if found is None:
        known = json.dumps({"captures": captures.location, "runs_id": runs.id, "runs_location": runs.location})
        set_property(spark, settings.captures.table, GUARD, known)
    if runs.properties.get(_DELETION_VECTORS) == "true":
        set_property(spark, settings.runs.table, _DELETION_VECTORS, "false")
    return captures


def remembered_runs(captures: Identity) -> str | None:
    """The location of the runs table that a captures table remembers."""
    found = _guard_of(captures)
    return None if found is None else str(found["runs_location"])


def _guard_of(captures: Identity) -> dict[str, Any] | None:
    """The runs table that a captures table remembers; None if there is none, or if the property was copied."""
    try:
        found = json.loads(captures.properties[GUARD])
    except (KeyError, ValueError):
        return None
    named = isinstance(found, dict) and {"captures", "runs_id", "runs_location"} <= found.keys()
    return found if named and found["captures"] == captures.location else None


def set_property(spark: SparkSession, table: str, name: str, value: str) -> None:
    """Set a property of a table."""
    tables.commit(spark, f"ALTER TABLE {tables.quoted(table)} SET TBLPROPERTIES ('{name}' = {_quoted(value)})")


def _quoted(value: str) -> str:
    """A string literal for TBLPROPERTIES, where the CAST of :func:`tables.literal` is not allowed."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def current_sql(captures: str) -> str:
    """A query for the newest row of each request; final rows count as newer than others."""
    newest = f"struct({final_sql('c', keep_interrupted=False)}, c.finished_at)"
    return f"""
        SELECT row.* FROM (
          SELECT max_by(struct(c.*), {newest}) AS row FROM {tables.quoted(captures)} AS c
          GROUP BY c.request_id, c.request_hash, c.endpoint, c.mode)
    """
