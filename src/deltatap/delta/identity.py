"""Which table a name means, and which rows of ``runs`` belong to this table, however it was named. Pure.

Two names mean one table if their resolved locations or their Delta ids are equal. Two local folders with one id are
two tables: one is a copy of the other. ``reader.py`` looks tables up.
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

_LOCAL = "file:"


@dataclass(frozen=True, slots=True)
class Identity:
    """A table.

    Attributes:
        name: as configured.
        id: Delta's id; None if there is no such table.
        location: its URI, with links resolved if it is local; None as above.
        properties: of the table.
        spellings: other names of this table in ``runs`` rows of older versions, which have no location.
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
        """The SQL condition that a row of ``runs`` is about this table, as in :meth:`is_same`; never null."""
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


def resolved(location: str) -> str:
    """A location for comparison: local links are followed, and s3a: and s3n: become s3:."""
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
