"""Reads local Delta tables without a JVM: delta-rs reads the files, DuckDB runs the queries.

Queries are written once, in Spark's SQL, and sqlglot translates them. Spark reads the tables that are not on this
machine or that delta-rs cannot read.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import sqlglot
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError, DeltaProtocolError
from sqlglot import exp

from deltatap.delta import tables
from deltatap.delta.identity import Identity, local_folder, resolved
from deltatap.delta.reader import SparkReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyspark.sql import SparkSession

# Functions of Spark that sqlglot does not translate.
_MACROS = (
    "timestamp_seconds(seconds) AS to_timestamp(seconds)",
    "get(items, place) AS CASE WHEN place >= 0 THEN items[place + 1] END",
)
# Rows per batch. A row with all chunks of a long answer takes hundreds of kB.
_BATCH = 256


class UnreadableError(Exception):
    """Delta-rs cannot read a table."""


class LocalReader:
    """Reads tables, those on this machine without a JVM; a :class:`Reader`."""

    def __init__(self, start_spark: Callable[[], SparkSession], *, whole_tables: bool = True) -> None:
        """Read nothing yet.

        Args:
            start_spark: called when a table has to be read through Spark.
            whole_tables: whether to read tables with deletion vectors. delta-rs reads such a table into memory as a
                whole.
        """
        self._start_spark, self._whole_tables = start_spark, whole_tables
        self._opened: dict[str, str] = {}

    def exists(self, table: str) -> bool:
        """Whether a Delta table exists."""
        folder = local_folder(table)
        if folder is not None:
            with suppress(DeltaError, OSError):
                return DeltaTable.is_deltatable(folder)
        return self._spark.exists(table)

    def identify(self, table: str) -> Identity:
        """The table of this name; without id and location if it does not exist."""
        folder = local_folder(table)
        if folder is None:
            return self._spark.identify(table)
        if not self.exists(table):
            return Identity(table)
        try:
            metadata = DeltaTable(folder).metadata()
        except DeltaError:
            return self._spark.identify(table)
        return Identity(table, str(metadata.id), resolved(folder), metadata.configuration)

    def qualified(self, table: str) -> str:
        """The location of a path, or a name with its catalog and schema."""
        return resolved(table) if tables.is_path(table) else table.lower()

    def schema(self, table: str) -> pa.Schema:
        """The columns of a table with their types."""
        return self.query(f"SELECT * FROM {tables.quoted(table)} LIMIT 0").schema

    def query(self, sql: str) -> pa.Table:
        """The result of a query."""
        try:
            found = self._duckdb.sql(translated(sql, self._open)).to_arrow_table()
        except (UnreadableError, duckdb.Error):  # Spark's message explains best what is wrong with a file
            return self._spark.query(sql)
        # A sum of integers is a BIGINT in Spark, and DECIMAL(38, 0) here.
        types = [
            pa.int64() if pa.types.is_decimal(each.type) and not each.type.scale else each.type for each in found.schema
        ]
        return found.cast(pa.schema(list(zip(found.column_names, types, strict=True))))

    def stream(self, sql: str) -> Iterator[dict[str, Any]]:
        """The rows of a query of any size. DuckDB runs no other query until the iterator is at its end."""
        try:
            found = self._duckdb.sql(translated(sql, self._open))
            # fetch_record_batch: the name before DuckDB 1.5.
            batches = getattr(found, "to_arrow_reader", None) or found.fetch_record_batch
            rows = (row for batch in batches(_BATCH) for row in batch.to_pylist(maps_as_pydicts="lossy"))
            first = next(rows, None)
        except (UnreadableError, duckdb.Error, pa.ArrowException):
            yield from self._spark.stream(sql)
            return
        if first is not None:
            yield first
            yield from rows

    def close(self) -> None:
        """End the JVM, if one was started."""
        if "_spark" in vars(self):
            self._spark.close()

    @cached_property
    def _spark(self) -> SparkReader:
        return SparkReader(self._start_spark())

    @cached_property
    def _duckdb(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})  # it would download them
        connection.execute("SET TimeZone = 'UTC'")
        for macro in _MACROS:
            connection.execute(f"CREATE MACRO {macro}")
        return connection

    def _open(self, path: str) -> str:
        """The name of a table for DuckDB, which reads the columns and the rows that a query needs."""
        folder = local_folder(path)
        if folder is None:
            raise UnreadableError
        if folder not in self._opened:
            name = f"table_{len(self._opened)}"
            self._duckdb.register(name, _opened(folder, whole=self._whole_tables))
            self._opened[folder] = name
        return self._opened[folder]


def translated(sql: str, open_table: Callable[[str], str]) -> str:
    """A query in Spark's SQL for DuckDB.

    Args:
        sql: the query.
        open_table: gives the name of a table for DuckDB.

    Raises:
        UnreadableError: if the query reads a table that is not given by its path.
    """
    query = sqlglot.parse_one(sql, read="spark")
    own = {each.alias for each in query.find_all(exp.CTE)}

    def translate(node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Table) and node.db == "delta":
            return exp.to_table(open_table(node.name), alias=node.args.get("alias"))
        if isinstance(node, exp.Table) and node.name not in own:
            raise UnreadableError
        if isinstance(node, exp.Cast) and isinstance(node.this, exp.HexString):  # see tables.literal
            return exp.Literal.string(bytes.fromhex(node.this.name).decode())
        if isinstance(node, exp.Quantile):  # Spark's percentile interpolates between values, percentile_approx does not
            name = "quantile_disc" if isinstance(node, exp.ApproxQuantile) else "quantile_cont"
            return exp.Anonymous(this=name, expressions=[node.this, node.args["quantile"]])
        # Spark's indexes start at 0, DuckDB's at 1. The second argument of aggregate's function is not an index.
        if isinstance(node, exp.Lambda) and len(node.expressions) > 1 and not isinstance(node.parent, exp.Reduce):
            for used in list(node.this.find_all(exp.Identifier)):
                if used.name == node.expressions[1].name and not isinstance(used.parent, exp.Column | exp.Dot):
                    used.replace(exp.paren(exp.Sub(this=used.copy(), expression=exp.Literal.number(1))))
        return _function(node)

    return query.transform(translate).sql(dialect="duckdb")


def _function(node: exp.Expr) -> exp.Expr:
    """Replace a function whose result differs in DuckDB. Any other node stays the same."""
    if isinstance(node, exp.FromJson):  # null for text that is not valid JSON
        type_ = exp.DataType.build(node.expression.name, dialect="spark")
        return exp.TryCast(this=exp.TryCast(this=node.this, to=exp.DataType.build("JSON")), to=type_)
    if isinstance(node, exp.ArrayAgg):  # Spark's collect_list leaves nulls out, DuckDB's keeps them
        return exp.func("coalesce", node, exp.Array())
    return node


def _opened(folder: str, *, whole: bool) -> Any:  # noqa: ANN401 - what DuckDB can read: a dataset or a table
    try:
        table = DeltaTable(folder)
        try:
            return table.to_pyarrow_dataset()
        except DeltaProtocolError:  # deletion vectors, v2 checkpoints
            if not whole:
                raise
            return pa.table(QueryBuilder().register("t", table).execute("SELECT * FROM t"))
    except DeltaError as error:
        raise UnreadableError from error
