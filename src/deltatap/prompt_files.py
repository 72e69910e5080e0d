"""Reads prompts from a file: OpenAI's Batch format, JSON lines with the columns of a prompts table, CSV, Parquet.

Knows the file formats, and names the line or the column of everything that is wrong. ``prompts.py`` knows the meaning
of a row, and ``driver/load.py`` writes to the prompts table.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from deltatap.api.registry import specification, specifications
from deltatap.errors import ConfigError, one_line
from deltatap.prompt_columns import COLUMNS, TEXTS, did_you_mean, find, similar
from deltatap.prompts import OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

_SHOWN_PROBLEMS = 20
_LINE_END = re.compile(rb"\r\n|\r|\n")
# The limits of pyarrow and the csv module.
_MOST_BYTES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class PromptFile:
    """The prompts of a file.

    Attributes:
        rows: with the columns of a prompts table; other columns are kept for ``prompts.keep``.
        lines: the line of each row; None if the format has no lines.
    """

    rows: pa.Table
    lines: Sequence[int] | None = None

    def place(self, row: int) -> str:
        """Where a row is, for messages."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"


def read_prompts(path: Path, api: str, named: Mapping[str, str] | None = None) -> PromptFile:
    """The rows of a file.

    Args:
        path: ends in ``.jsonl``, ``.csv`` or ``.parquet``.
        api: the name of the API.
        named: which columns of the file are ``request_id`` and ``prompt``, if they have other names.

    Raises:
        ConfigError: with the lines or columns that are wrong.
    """
    readers: dict[str, Callable[[Path, str, frozenset[str]], PromptFile]] = {
        ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError([f"{path}: expected a file name that ends in {', '.join(readers)}"])
    try:
        found = reader(path, api, frozenset((named or {}).values()))
        _raise_any([] if found.rows.num_rows else ["has no rows"])
        _raise_any(_wrong_names(found.rows.schema.names))
        rows = _typed(_in_lower_case(_renamed(found.rows, named or {})))
        found = PromptFile(rows, found.lines)
        _raise_any(_repeated(found))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or one_line(error)}"]) from error
    except UnicodeDecodeError as error:
        place = "column request_id" if reader is _parquet else f"line {_bad_line(path)}"
        raise ConfigError([f"{path}: {place}: expected UTF-8"]) from error
    except pa.ArrowException as error:
        raise ConfigError([f"{path}: {one_line(error)}"]) from error
    except _WrongFileError as error:
        more = len(error.problems) - _SHOWN_PROBLEMS
        rest = [f"and {more:,} more"] if more > 0 else []
        shown = [*error.problems[:_SHOWN_PROBLEMS], *rest]
        raise ConfigError([f"{path}: {problem}" for problem in shown]) from error
    return found


class _WrongFileError(Exception):
    """Problems with lines or columns of the file."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(*problems)
        self.problems = problems


def _raise_any(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise _WrongFileError(found)


def unused(names: Sequence[str], keep: Sequence[str]) -> list[str]:
    """The columns that no request is built from and that ``prompts.keep`` does not name."""
    used = {*COLUMNS, *(name.lower() for name in keep)}
    return [name for name in names if name.lower() not in used]


def _wrong_names(names: Sequence[str]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for at, name in enumerate(names, 1):
        if not name.strip():
            yield f"column {at} has no name"
        elif name.lower() in seen:
            yield f"column {name}: expected one column of this name, found {seen[name.lower()]}, {name}"
        seen[name.lower()] = name


def _renamed(found: pa.Table, named: Mapping[str, str]) -> pa.Table:
    """The table with the columns that the user has named."""
    names = list(found.schema.names)
    if len({name.lower() for name in named.values()}) < len(named):
        raise _WrongFileError([f"--id-column and --prompt-column name the same column, {next(iter(named.values()))}"])
    for target, given in named.items():
        option = f"--{'id' if target == 'request_id' else target}-column {given}"
        column = find(given, names)
        if column is None:
            hint = did_you_mean(similar(given, names))
            raise _WrongFileError([f"{option}: expected one of the columns {', '.join(names)}{hint}"])
        if column.lower() != target and find(target, names) is not None:
            raise _WrongFileError([f"{option}: the file also has a column {target}"])
        names[names.index(column)] = target
    return found.rename_columns(names)


def _in_lower_case(found: pa.Table) -> pa.Table:
    return found.rename_columns([name.lower() if name.lower() in COLUMNS else name for name in found.schema.names])


def _typed(found: pa.Table) -> pa.Table:
    """The table with texts as strings, and without the Arrow types that Spark does not have."""
    problems = []
    for at, field in enumerate(found.schema):
        type_ = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if (
            pa.types.is_null(type_)
            or pa.types.is_time(type_)
            or (field.name in TEXTS and not pa.types.is_nested(type_))
        ):
            target = pa.string()
        else:
            target = pa.int64() if pa.types.is_unsigned_integer(type_) else type_
        try:
            if field.name == "request_id" and (pa.types.is_floating(type_) or pa.types.is_nested(type_)):
                raise pa.ArrowInvalid("no id")
            found = found.set_column(at, field.name, pc.cast(found[field.name], target))
        except pa.ArrowException:
            expected = {"request_id": "text or integers"}.get(field.name, "text" if target == pa.string() else "BIGINT")
            problems.append(f"column {field.name}: expected {expected}, found {field.type}")
    _raise_any(problems)
    return found


def _repeated(found: PromptFile) -> Iterator[str]:
    """Rows that have the request_id of another row, but different content."""
    if "request_id" not in found.rows.schema.names:
        return
    ids = found.rows["request_id"].to_pylist()
    if len(set(ids)) == len(ids):
        return
    ours = found.rows.select([name for name in found.rows.schema.names if name in COLUMNS])
    first: dict[str, int] = {}
    for at, request_id in enumerate(ids):
        if request_id is not None and first.setdefault(request_id, at) != at:
            one, other = (ours.slice(each, 1).to_pylist() for each in (first[request_id], at))
            if one != other:
                place = found.place(first[request_id])
                yield f"{found.place(at)}: request_id {request_id} is already used for a different prompt in {place}"


def _parquet(path: Path, *_: object) -> PromptFile:
    return PromptFile(pq.ParquetFile(path).read())


def _csv(path: Path, *_: object) -> PromptFile:
    """Read all columns as text, so that a number or a date in a prompt stays as it was written."""
    names = _checked_header(path)
    stripped = [name.strip() for name in names]
    _raise_any(_wrong_names(stripped))  # pyarrow would keep the last of several columns
    whole = pa_csv.ReadOptions(block_size=min(path.stat().st_size + 1, _MOST_BYTES))  # a row must fit into a block
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, quoted_strings_can_be_null=False,
        null_values=[""],
    )  # fmt: skip
    rows = pa_csv.read_csv(path, read_options=whole, parse_options=parse, convert_options=convert)
    return PromptFile(rows.rename_columns(stripped))


def _checked_header(path: Path) -> list[str]:
    """The columns of a CSV file whose lines are right. pyarrow names no lines, and accepts a truncated file."""
    csv.field_size_limit(_MOST_BYTES)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, strict=True)
        try:
            names = next((row for row in rows if row), [])
            if not names:
                raise _WrongFileError(["is empty"])
            for row in rows:
                if row and len(row) != len(names):
                    found = f"expected {len(names)} fields as in the first line, found {len(row)}"
                    raise _WrongFileError([f"line {rows.line_num}: {found}"])
        except csv.Error as bad:
            raise _WrongFileError([f"line {rows.line_num}: {bad}"]) from bad
    return names


def _bad_line(path: Path) -> int:
    """The first line that is not UTF-8."""
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        content = content[: error.start]
    return len(_LINE_END.findall(content)) + 1


def _json_lines(path: Path, api: str, named: frozenset[str]) -> PromptFile:
    rows: dict[int, dict[str, str | None]] = {}
    problems: list[str] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    rows[number] = _row(
                        json.loads(line, object_pairs_hook=_object, parse_constant=_constant), api, named
                    )
                except RecursionError:
                    problems.append(f"line {number}: is nested too deeply")
                except json.JSONDecodeError as error:
                    problems.append(f"line {number}: expected JSON; column {error.colno}: {error.msg}")
                except ValueError as error:  # for long integers, Python adds how to read them
                    problems.append(f"line {number}: {str(error).partition('; use sys.')[0]}")
    _raise_any(problems)
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {name: pa.array([row.get(name) for row in rows.values()], pa.string()) for name in names}
    return PromptFile(pa.table(columns), list(rows))


def _constant(name: str) -> float:
    raise ValueError(f"expected JSON, which has no {name}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, if no key of it is repeated."""
    made = dict(pairs)
    if len(made) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {repeated} is set twice")
    return made


def _row(given: object, api: str, named: frozenset[str]) -> dict[str, str | None]:
    if not isinstance(given, dict):
        raise ValueError(f"expected a JSON object, found {type(given).__name__}")  # noqa: TRY004 - user input
    # A column of a prompts table can have one of these names, too.
    is_prompt = bool({"prompt", "messages"} & given.keys() or named.intersection(given))
    of_batch = not is_prompt and ("custom_id" in given or isinstance(given.get("body"), dict))
    row = _of_batch(given, api) if of_batch else given
    return {_valid("a column's name", name): _text(name, value) for name, value in row.items()}


def _of_batch(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Convert a line of OpenAI's Batch API (platform.openai.com/docs/api-reference/batch) into a prompts row."""
    body, url, api = given.get("body"), given.get("url"), specification(name)
    if not isinstance(body, dict):
        raise ValueError("body: expected a JSON object")  # noqa: TRY004 - as above
    method = given.get("method")
    if method not in (None, "POST"):
        raise ValueError(f"method: expected POST, found {method}")
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


def _text(name: str, value: object) -> str | None:
    """Return text unchanged, and any other value as JSON. Keys keep their order, which can matter in a schema."""
    if value is None:
        return value
    return _valid(
        name, value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    )


def _valid(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: expected valid Unicode, found half of a surrogate pair") from None
    return text
