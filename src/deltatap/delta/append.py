"""Appends rows to a local Delta table without a JVM, and makes sure that the commit stays.

On a local disk, Spark checks whether its next commit exists, and then renames its file to that name. If delta-rs
commits in between, Spark replaces the commit of delta-rs; the reverse cannot happen. So this module waits until Spark
can no longer replace its commit, and appends again if the commit is gone.
"""

from __future__ import annotations

import re
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from deltatap.prompt_columns import ColumnType, find

if TYPE_CHECKING:
    from collections.abc import Callable

# Between Spark's check and its rename are milliseconds.
SETTLED_S = 0.5
_TRIES = 20
_MARK = "deltatap.append"
# Spark refuses other names.
_NAME = re.compile(r"[^ ,;{}()\n\t=]+")
# The types that this module appends.
_SQL_NAMES = {
    pa.string(): "STRING",
    pa.large_string(): "STRING",
    pa.string_view(): "STRING",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INT",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
}


class NotAppendableError(Exception):
    """Delta-rs cannot append these rows, and has written nothing."""


def column_types(schema: pa.Schema) -> dict[str, ColumnType]:
    """The types of the columns, by name, as a prompts table uses them.

    Raises:
        NotAppendableError: if :func:`append` does not take these columns.
    """
    if not all(_NAME.fullmatch(field.name) and field.type in _SQL_NAMES for field in schema):
        raise NotAppendableError
    return {field.name: _column_type(field.type) for field in schema}


def _column_type(type_: pa.DataType) -> ColumnType:
    name = _SQL_NAMES[type_]
    return ColumnType.text() if name == "STRING" else ColumnType(name, is_id=pa.types.is_integer(type_))


def append(folder: str, rows: pa.Table, wait: Callable[[float], None] = time.sleep) -> None:
    """Append rows in one commit. The table is created if it does not exist, and gains columns that it lacks.

    Args:
        folder: of the table.
        rows: with columns that :func:`column_types` takes.
        wait: as ``time.sleep``.

    Raises:
        NotAppendableError: if the table or a type needs Spark. Nothing was written.
        ValueError: if a value does not fit the type of the table's column. Nothing was written.
    """
    column_types(rows.schema)
    for _ in range(_TRIES):
        mark = uuid.uuid4().hex
        try:
            version, fitting = _fitting(folder, rows)
        except (DeltaError, OSError) as error:
            raise NotAppendableError from error
        properties = CommitProperties(custom_metadata={_MARK: mark})
        try:
            write_deltalake(folder, fitting, mode="append", schema_mode="merge", commit_properties=properties)
        except (DeltaError, OSError) as error:
            # It can also fail after the commit, when it writes a checkpoint.
            if not _is_committed(folder, version, mark):
                raise NotAppendableError from error
        wait(SETTLED_S)
        if _is_committed(folder, version, mark):
            return
    raise NotAppendableError


def _fitting(folder: str, rows: pa.Table) -> tuple[int, pa.Table]:
    """The table's version, and the rows with the table's column names (their spelling) and types."""
    if not DeltaTable.is_deltatable(folder):
        return -1, rows
    table = DeltaTable(folder)
    fields = {each.name: each for each in pa.schema(table.schema())}
    for at, column in enumerate(rows.schema.names):
        name = find(column, list(fields))
        if name is not None:
            if fields[name].type not in _SQL_NAMES:
                raise NotAppendableError
            try:
                values = pc.cast(rows[column], fields[name].type)
            except pa.ArrowInvalid as error:
                raise ValueError(f"column {name}: {error}") from error
            rows = rows.set_column(at, name, values)
    return table.version(), rows


def _is_committed(folder: str, version: int, mark: str) -> bool:
    """Whether a commit after this version has the mark."""
    log = Path(folder) / "_delta_log"
    newer = (path for path in log.glob("*.json") if path.stem.isdecimal() and int(path.stem) > version)
    return any(mark in path.read_text(encoding="utf-8") for path in newer)
