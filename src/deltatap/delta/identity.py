"""Which table a name means, and which rows of ``runs`` belong to it, however it was spelled.

Two names mean one table if their resolved locations or their Delta ids are equal. Two local folders with one id are
two tables: one is a copy of the other.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from deltatap.delta import tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyspark.sql import SparkSession

_LOCAL = "file:"


@dataclass(frozen=True, slots=True)
class Identity:
    """A table.

    Attributes:
        name: as configured.
        id: Delta's id; None if there is no such table.
        location: its URI, with links resolved if it is local; None as above.
        properties: of the table.
        spellings: the names in rows of ``runs`` by older versions, which have no location, that mean this table.
    """

    name: str
    id: str | None = None
    location: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    spellings: tuple[str, ...] = ()

    def is_same(self, id_: str | None, location: str | None) -> bool:
        """Whether this is the table with this id and location."""
        if self.location == location:
            return True
        local = [(place or "").startswith(_LOCAL) for place in (self.location, location)]
        return self.id is not None and self.id == id_ and not all(local)

    def runs_sql(self, row: str) -> str:
        """The SQL condition that a row of ``runs`` is about this table, as :meth:`is_same` has it; never null."""
        named = ", ".join(tables.literal(name) for name in (self.name, *self.spellings))
        by_name = f"{row}.captures IN ({named})"
        if self.location is None:
            return by_name
        place = f"{row}.captures_location"
        alike = f"{row}.captures_id <=> {tables.literal(self.id or '')}"
        if self.location.startswith(_LOCAL):
            alike += f" AND NOT startswith({place}, '{_LOCAL}')"
        return f"IF({place} IS NULL, {by_name}, {place} = {tables.literal(self.location)} OR ({alike}))"

    @property
    def folder(self) -> str | None:
        """The path of a local table; None if it is elsewhere."""
        return _path(self.location) if self.location else None


def identify(spark: SparkSession, table: str) -> Identity:
    """The table of this name; without id and location if it does not exist."""
    if not tables.exists(spark, table):
        return Identity(table)
    detail = spark.sql(f"DESCRIBE DETAIL {tables.quoted(table)}").collect()[0]
    return Identity(table, detail["id"], resolved(detail["location"]), detail["properties"])


def identify_captures(spark: SparkSession, captures: str, runs: str) -> Identity:
    """The captures table of this name, with the spellings that older rows of ``runs`` have for it."""
    found = identify(spark, captures)
    if not tables.exists(spark, runs):
        return found
    rows = spark.table(tables.quoted(runs))
    if "captures_location" in rows.columns:
        rows = rows.where("captures_location IS NULL")
    names = [row["captures"] for row in rows.select("captures").distinct().collect()]
    here = _qualified(spark, captures)
    same = tuple(name for name in names if name != captures and (_qualified(spark, name) in (here, found.location)))
    if "captures_location" not in rows.columns:  # a runs table of an older version that is only read
        return Identity(captures, spellings=same)
    return Identity(captures, found.id, found.location, found.properties, same)


def resolved(location: str) -> str:
    """A location for comparison: local links are followed, and the names of one store's scheme are one."""
    parts = urlsplit(location)
    if parts.scheme in ("", "file"):
        path = unquote(parts.path) if parts.scheme else location
        return _LOCAL + os.path.realpath(path)
    return re.sub("^s3[an]:", "s3:", location.rstrip("/"))


def local_folder(table: str) -> str | None:
    """The folder of a table that is configured as a local path; None for other tables."""
    return _path(resolved(table)) if tables.is_path(table) else None


def _path(location: str) -> str | None:
    return location.removeprefix(_LOCAL) if location.startswith(_LOCAL) else None


def _qualified(spark: SparkSession, table: str) -> str:
    """A path as its location, and a catalog name with its catalog and schema, in lower case."""
    if tables.is_path(table):
        return resolved(table)
    names = tables.names(table)
    if len(names) < 2:  # noqa: PLR2004 - schema and table
        names = [spark.catalog.currentDatabase(), *names]
    if len(names) < 3:  # noqa: PLR2004 - catalog, schema and table
        names = [spark.catalog.currentCatalog(), *names]
    return ".".join(names).lower()
