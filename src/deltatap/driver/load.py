"""``deltatap load``: appends the prompts of a file to a prompts table.

Knows the file formats: OpenAI's Batch format, JSON lines with the columns of a prompts table, CSV and Parquet. Leaves
the meaning of a row to ``prompts.py``, which a run uses, too.
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
from deltatap.prompt_columns import TEXTS
from deltatap.prompts import OURS, build_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pyspark.sql import SparkSession

    from deltatap.config import Settings

_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of a load.

    Attributes:
        rows: how many rows were appended.
        bad: the rows that are not valid requests, each as ``row N: reason``.
    """

    rows: int
    bad: list[str]


def load(spark: SparkSession, settings: Settings, path: Path) -> Loaded:
    """Append the prompts of a file to the prompts table, all or none. The table is created if it does not exist.

    Args:
        spark: the session.
        settings: name the prompts table and the API.
        path: ends in ``.jsonl``, ``.csv`` or ``.parquet``.

    Raises:
        ConfigError: if the file cannot be read, or its columns do not fit the table.
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
        writer.save(table) if tables.is_path(table) else writer.saveAsTable(tables.quoted(table))
    except Exception as error:
        raise ConfigError(
            [f"prompts.table: {table}: the columns of {path} do not fit the table: {one_line(error)}"]
        ) from error
    return Loaded(read.num_rows, list(_bad(read, settings)))


def read_prompts(path: Path, api: str) -> pa.Table:
    """The rows of a file, with the columns of a prompts table; other columns are kept for ``prompts.keep``.

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
        raise ConfigError([f"{path}: expected a file name that ends in {', '.join(readers)}"])
    try:
        found = reader()
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from error
    except pa.ArrowInvalid as error:
        raise ConfigError([f"{path}: {one_line(error)}"]) from error
    for at, field in enumerate(found.schema):
        if field.name in TEXTS and not pa.types.is_string(field.type) and not pa.types.is_nested(field.type):
            found = found.set_column(at, field.name, pc.cast(found[field.name], pa.string()))
    return found


def _csv(path: Path) -> pa.Table:
    """Read all columns as text, so that a number or a date in a prompt stays as it was written."""
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
        more = (
            [f"{path}: and {len(problems) - _SHOWN_PROBLEMS:,} more lines"] if len(problems) > _SHOWN_PROBLEMS else []
        )
        raise ConfigError([*problems[:_SHOWN_PROBLEMS], *more, f"{path}: nothing was loaded"])
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in names})


def _row(given: object, api: str) -> dict[str, str | None]:
    if not isinstance(given, dict):
        raise ValueError(f"expected a JSON object, found {type(given).__name__}")  # noqa: TRY004 - user input
    row = _of_batch(given, api) if "body" in given else given
    return {name: _text(value) for name, value in row.items()}


def _of_batch(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Convert a line of OpenAI's Batch API (platform.openai.com/docs/api-reference/batch) into a prompts row."""
    body, url, api = given["body"], given.get("url"), specification(name)
    if not isinstance(body, dict):
        raise ValueError("body: expected a JSON object")  # noqa: TRY004 - as above
    if url is not None and url != f"/v1{api.path}":
        hint = next(
            (f"; {url} is the path of {known.name}" for known in specifications() if url == f"/v1{known.path}"), ""
        )
        raise ValueError(f"url: expected /v1{api.path}, because endpoint.api is {name}, found {url}{hint}")
    rest = {key: value for key, value in body.items() if key not in (*OURS, "stream_options")}
    asked = rest.pop(api.prompt_field, None)
    system = rest.pop(api.system or "", None)
    row = {"request_id": given.get("custom_id"), "model": rest.pop("model", None), "system": system}
    row["prompt" if isinstance(asked, str) else "messages"] = asked
    return row | {"params": rest or None}


def _text(value: object) -> str | None:
    """Return text unchanged, and any other value as JSON. Keys keep their order, which can matter in a schema."""
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
