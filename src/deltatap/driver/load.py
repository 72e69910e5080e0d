"""Prompts from a file into a prompts table: OpenAI's Batch format, JSON lines with a table's columns, CSV, Parquet.

Knows the files' forms. What a row means is for ``prompts.py``, which a run asks, too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from deltatap.api.registry import specification, specifications
from deltatap.delta import tables
from deltatap.driver.source import wrong_columns
from deltatap.errors import ConfigError, one_line
from deltatap.prompts import OURS, build_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pyspark.sql import SparkSession

    from deltatap.config import Settings

_TEXTS = ("request_id", "prompt", "system", "model")
_TOLD = 20


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded: how many rows, and which of them no request can be made of, by row and reason."""

    rows: int
    bad: list[str]


def load(spark: SparkSession, settings: Settings, path: Path) -> Loaded:
    """Append a file's prompts to the prompts table, which is made where it is not. All of the file, or nothing.

    Args:
        spark: the session.
        settings: whose prompts table, and whose endpoint's API.
        path: ``.jsonl``, ``.csv`` or ``.parquet``.

    Raises:
        ConfigError: with the file's rows that cannot be read, or why the table does not take them.
    """
    table = settings.prompts.table
    if table is None:
        raise ConfigError(["prompts.table: expected the table to load into, found prompts.sql"])
    read = read_prompts(path, settings.endpoint.api)
    frame = spark.createDataFrame(read)
    if problems := list(wrong_columns({field.name: field.dataType for field in frame.schema.fields}, [])):
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    writer = frame.write.format("delta").mode("append").option("mergeSchema", "true")
    try:
        writer.save(table) if tables.is_path(table) else writer.saveAsTable(table)
    except Exception as error:
        raise ConfigError(
            [f"prompts.table: {table}: does not take the columns of {path}: {one_line(error)}"]
        ) from error
    return Loaded(read.num_rows, list(_bad(read, settings)))


def read_prompts(path: Path, api: str) -> pa.Table:
    """A file's rows with the columns of a prompts table; others are kept for ``prompts.keep``.

    Raises:
        ConfigError: with the lines that cannot be read.
    """
    readers: dict[str, Callable[[], pa.Table]] = {
        ".jsonl": lambda: _json_lines(path, api),
        ".csv": lambda: _csv(path),
        ".parquet": lambda: pq.read_table(path),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError([f"{path}: expected a file that ends in {', '.join(readers)}"])
    try:
        found = reader()
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from error
    except pa.ArrowInvalid as error:
        raise ConfigError([f"{path}: {one_line(error)}"]) from error
    for at, field in enumerate(found.schema):
        if field.name in _TEXTS and not pa.types.is_string(field.type) and not pa.types.is_nested(field.type):
            found = found.set_column(at, field.name, pc.cast(found[field.name], pa.string()))
    return found


def _csv(path: Path) -> pa.Table:
    """All columns as text: a number or a date in a prompt stays as it was written."""
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    with pa_csv.open_csv(path, parse_options=parse) as opened:
        names = opened.schema.names
    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, quoted_strings_can_be_null=False,
        null_values=[""],
    )  # fmt: skip
    return pa_csv.read_csv(path, parse_options=parse, convert_options=convert)


def _json_lines(path: Path, api: str) -> pa.Table:
    rows: list[dict[str, str | None]] = []
    problems: list[str] = []
    with path.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        rows.append(_row(json.loads(line), api))
                    except ValueError as error:
                        problems.append(f"{path}: line {number}: {error}")
        except UnicodeDecodeError as error:
            raise ConfigError([f"{path}: expected UTF-8: {error}"]) from error
    if problems:
        more = [f"{path}: and {len(problems) - _TOLD:,} lines more"] if len(problems) > _TOLD else []
        raise ConfigError([*problems[:_TOLD], *more, f"{path}: nothing was loaded"])
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in names})


def _row(given: object, api: str) -> dict[str, str | None]:
    if not isinstance(given, dict):
        raise ValueError(f"expected a JSON object, found {type(given).__name__}")  # noqa: TRY004 - of what was given
    row = _of_batch(given, api) if "body" in given else given
    return {name: _text(value) for name, value in row.items()}


def _of_batch(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A line of OpenAI's Batch API: custom_id, method, url, body (platform.openai.com/docs/api-reference/batch)."""
    body, url, api = given["body"], given.get("url"), specification(name)
    if not isinstance(body, dict):
        raise ValueError("body: expected a JSON object")  # noqa: TRY004 - as above
    if url is not None and url != f"/v1{api.path}":
        names = (f"of {known.name}" for known in specifications() if url == f"/v1{known.path}")
        of = next(names, "of no API of deltatap's")
        raise ValueError(f"url {url}: is {of}, and endpoint.api is {name}")
    rest = {key: value for key, value in body.items() if key not in OURS}
    asked = next((rest.pop(key) for key in api.inputs if key in rest), None)
    system = rest.pop(api.system or "", None)
    row = {"request_id": given.get("custom_id"), "model": rest.pop("model", None), "system": system}
    row["prompt" if isinstance(asked, str) else "messages"] = asked
    return row | {"params": rest or None}


def _text(value: object) -> str | None:
    """Text as it is, anything else as JSON, its keys in their order, which a schema means something by."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _bad(read: pa.Table, settings: Settings) -> Iterator[str]:
    endpoint, number = settings.endpoint, 0
    for batch in read.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            number += 1
            made = build_request(row, api=endpoint.api, model=endpoint.model, defaults=settings.request, keep=())
            if made.error is not None:
                yield f"row {number}: {made.error}"
