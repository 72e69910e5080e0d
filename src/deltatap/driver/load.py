"""``deltatap load``: appends the prompts of a file to a local prompts table, without Spark where that is possible.

Knows the checks before a load, and what a load reports. ``prompt_files.py`` reads the file, ``prompts.py`` (as in a
run) knows the meaning of a row, and ``load_spark.py`` writes everything that only Spark can write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from deltatap.delta import tables
from deltatap.delta.identity import local_folder
from deltatap.driver.reading import prompt_rows
from deltatap.errors import ConfigError, one_line
from deltatap.prompt_columns import COLUMNS, find, wrong_columns
from deltatap.prompt_files import read_prompts, unused
from deltatap.prompts import build_request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pyspark.sql import SparkSession

    from deltatap.config import Settings
    from deltatap.delta.local import LocalReader
    from deltatap.prompt_columns import ColumnType
    from deltatap.prompt_files import PromptFile

# Characters of a request_id in a message.
_ID = 100


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of a load.

    Attributes:
        rows: how many rows were loaded.
        bad: the rows that are not valid requests, each with its place in the file, its request_id and the reason.
        known: how many of the file's request ids were in the table before.
        has_ids: whether the file has a column request_id.
        unused: the columns that no request is built from and that ``prompts.keep`` does not name.
    """

    rows: int
    bad: list[str]
    known: int = 0
    has_ids: bool = False
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """A file to load into a prompts table.

    Attributes:
        settings: name the prompts table and the API.
        path: the file.
        table: the prompts table.
        read: the file's content.
        rows: to load.
    """

    settings: Settings
    path: Path
    table: str
    read: PromptFile
    rows: pa.Table

    @classmethod
    def of(
        cls, settings: Settings, path: Path, named: Mapping[str, str] | None = None, *, replace: bool = False
    ) -> Load:
        """Read the file.

        Args:
            settings: as above.
            path: ends in ``.jsonl``, ``.csv`` or ``.parquet``.
            named: which columns of the file are ``request_id`` and ``prompt``, if they have other names.
            replace: whether rows with the same request_id will be replaced.

        Raises:
            ConfigError: if the file cannot be read.
        """
        table = settings.prompts.table
        if table is None:
            raise ConfigError(["prompts.table: expected the table to load into, found prompts.sql"])
        read = read_prompts(path, settings.endpoint.api, named)
        names = read.rows.schema.names
        if replace and "request_id" not in names:
            raise ConfigError([f"{path}: --replace: expected a column request_id, found {', '.join(names)}"])
        return cls(settings, path, table, read, _one_per_id(read.rows) if replace else read.rows)

    def check(self, types: Mapping[str, ColumnType]) -> None:
        """Check the types of the file's columns.

        Raises:
            ConfigError: if no request can be built from them.
        """
        templates = self.settings.prompts.templates
        if problems := list(wrong_columns(types, templates, self.rows.schema.names)):
            how = (
                []
                if {"prompt", "messages"} & {*types, *templates}
                else ["name it with --prompt-column, and a column of ids with --id-column, or set prompts.template"]
            )
            raise ConfigError([f"{self.path}: {'; '.join([problem, *how])}" for problem in problems])

    def loaded(self, known: int) -> Loaded:
        """The result of the load.

        Args:
            known: how many of the file's request ids were in the table before.
        """
        names, prompts = self.rows.schema.names, self.settings.prompts
        used = [*prompts.keep, *(column for each in prompts.templates.values() for column in each.columns)]
        return Loaded(self.rows.num_rows, list(self._bad()), known, "request_id" in names, tuple(unused(names, used)))

    def refused(self, why: str) -> ConfigError:
        """The error for a table that does not take the rows."""
        return ConfigError([f"prompts.table: {self.table}: cannot load {self.path}: {why}"])

    def _bad(self) -> Iterator[str]:
        """The rows that are not valid requests. Templates are filled when a run reads the table."""
        endpoint, number = self.settings.endpoint, 0
        filled = dict.fromkeys(self.settings.prompts.templates, "filled later")
        ours = self.read.rows.select([name for name in self.read.rows.schema.names if name in COLUMNS])
        for batch in ours.to_batches(max_chunksize=10_000):
            for row in prompt_rows(batch, (), {}):
                made = build_request(
                    row.columns, api=endpoint.api, model=endpoint.model, defaults=self.settings.request, keep=(),
                    filled=filled, problem=row.problem, resume=self.settings.capture.resume,
                )  # fmt: skip
                if made.error is not None:
                    request_id = row.columns.get("request_id")
                    named = "" if request_id is None else f" (request_id {' '.join(str(request_id).split())[:_ID]})"
                    yield f"{self.read.place(number)}{named}: {made.error}"
                number += 1


def load_locally(settings: Settings, path: Path, *, named: Mapping[str, str] | None = None) -> Loaded | None:
    """Append the prompts of a file to a table on this machine, all or none, without Spark.

    The table is created if it does not exist.

    Returns:
        The result; None if only Spark can load the file, and then nothing was written.

    Raises:
        ConfigError: if the file cannot be read, or its columns do not fit the table.
    """
    from deltatap.delta.append import NotAppendableError, append, column_types  # noqa: PLC0415 - the extra local
    from deltatap.delta.local import LocalReader, UnreadableError  # noqa: PLC0415

    folder = local_folder(settings.prompts.table or "")
    if folder is None:
        return None

    def no_spark() -> SparkSession:
        raise UnreadableError

    load = Load.of(settings, path, named)
    try:
        load.check(column_types(load.rows.schema))
        # Counted before the append, so that no error follows it.
        loaded = load.loaded(_known(LocalReader(no_spark), load))
        append(folder, load.rows)
    except (UnreadableError, NotAppendableError):
        return None
    except ValueError as error:
        raise load.refused(one_line(error)) from error
    return loaded


def _known(reader: LocalReader, load: Load) -> int:
    """How many request ids of the file are in the table."""
    if "request_id" not in load.rows.schema.names or not reader.exists(load.table):
        return 0
    column = find("request_id", reader.schema(load.table).names)
    if column is None:
        return 0
    ids = f"SELECT DISTINCT CAST({tables.backticked(column)} AS STRING) AS id FROM {tables.quoted(load.table)}"
    return len(set(load.rows["request_id"].to_pylist()) & set(reader.query(ids)["id"].to_pylist()) - {None})


def _one_per_id(rows: pa.Table) -> pa.Table:
    """The rows without repetitions: a MERGE takes one row for each request_id."""
    seen: set[str] = set()
    first = []
    for request_id in rows["request_id"].to_pylist():
        first.append(request_id is None or request_id not in seen)
        seen.add(request_id)
    return rows.filter(pa.array(first))
