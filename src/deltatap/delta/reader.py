"""Reads Delta tables by queries in Spark's SQL, through Spark; ``local.py`` does the same without a JVM.

Results are Arrow tables, wherever they come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from deltatap.delta import tables
from deltatap.delta.identity import Identity, resolved

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from pyspark.sql import SparkSession


class Reader(Protocol):
    """Reads tables, given by their configured names."""

    def exists(self, table: str) -> bool:
        """Whether a Delta table exists."""
        ...

    def identify(self, table: str) -> Identity:
        """The table of this name; without id and location if it does not exist."""
        ...

    def qualified(self, table: str) -> str:
        """A path as its location, and a catalog name with its catalog and schema, in lower case."""
        ...

    def schema(self, table: str) -> pa.Schema:
        """The columns of a table with their types."""
        ...

    def query(self, sql: str) -> pa.Table:
        """The result of a query in Spark's SQL, whose tables are named as :func:`deltatap.delta.tables.quoted` does."""
        ...

    def stream(self, sql: str) -> Iterator[dict[str, Any]]:
        """The rows of a query of any size. Use no other method until the iterator is at its end."""
        ...

    def close(self) -> None:
        """End the JVM, if there is one."""
        ...


class SparkReader:
    """Reads tables through Spark; a :class:`Reader`."""

    def __init__(self, spark: SparkSession) -> None:
        """Read nothing yet."""
        self._spark = spark

    def exists(self, table: str) -> bool:
        """Whether a Delta table exists."""
        return tables.exists(self._spark, table)

    def identify(self, table: str) -> Identity:
        """The table of this name; without id and location if it does not exist."""
        if not self.exists(table):
            return Identity(table)
        detail = self._spark.sql(f"DESCRIBE DETAIL {tables.quoted(table)}").collect()[0]
        return Identity(table, detail["id"], resolved(detail["location"]), detail["properties"])

    def qualified(self, table: str) -> str:
        """The location of a path, or a name with its catalog and schema."""
        if tables.is_path(table):
            return resolved(table)
        names = tables.names(table)
        if len(names) < 2:  # noqa: PLR2004 - schema and table
            names = [self._spark.catalog.currentDatabase(), *names]
        if len(names) < 3:  # noqa: PLR2004 - catalog, schema and table
            names = [self._spark.catalog.currentCatalog(), *names]
        return ".".join(names).lower()

    def schema(self, table: str) -> pa.Schema:
        """The columns of a table with their types."""
        return self.query(f"SELECT * FROM {tables.quoted(table)} LIMIT 0").schema

    def query(self, sql: str) -> pa.Table:
        """The result of a query."""
        return self._spark.sql(sql).toArrow()

    def stream(self, sql: str) -> Iterator[dict[str, Any]]:
        """The rows of a query of any size. Times have no time zone: they are local, as Spark's rows have them."""
        for row in self._spark.sql(sql).toLocalIterator():
            yield row.asDict(recursive=True)

    def close(self) -> None:
        """End the session."""
        self._spark.stop()


def rows(found: pa.Table) -> list[dict[str, Any]]:
    """The rows of a result."""
    made: list[dict[str, Any]] = found.to_pylist(maps_as_pydicts="lossy")
    return made


def identify_captures(reader: Reader, captures: str, runs: str) -> Identity:
    """The captures table of this name, with the spellings that older rows of ``runs`` have for it."""
    found = reader.identify(captures)
    if not reader.exists(runs):
        return found
    # Older versions have no locations in runs. A newer version adds the column when it captures.
    has_locations = "captures_location" in reader.schema(runs).names
    where = "WHERE captures_location IS NULL" if has_locations else ""
    names = rows(reader.query(f"SELECT DISTINCT captures FROM {tables.quoted(runs)} {where}"))
    here = reader.qualified(captures)
    same = tuple(
        row["captures"]
        for row in names
        if row["captures"] not in (None, captures) and reader.qualified(row["captures"]) in (here, found.location)
    )
    if not has_locations:
        return Identity(captures, spellings=same)
    return Identity(captures, found.id, found.location, found.properties, same)
