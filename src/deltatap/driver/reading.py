"""The rows of the prompts frame as Python values. A value that Python cannot read affects only its own row.

Knows how Arrow represents the columns of ``source.py``, and fills the templates. Leaves the meaning of a row to
``prompts.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from deltatap.api.prompt import BadPromptError, Json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from deltatap.template import Template

# The prompts frame has these columns in addition to those of a prompts table. They are structs with numbered fields,
# because the columns that they hold can have any name.
KEPT, TEMPLATE = "kept", "template"
# The only field of a struct that stands for a VARIANT, with its JSON.
JSON = "JSON of a VARIANT"


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A row, as :func:`deltatap.prompts.build_request` takes it.

    Attributes:
        columns: by name.
        filled: the texts of the templates, by the column that they replace.
        problem: why the row cannot be read; None if it can.
    """

    columns: dict[str, Any]
    filled: dict[str, str]
    problem: str | None


@dataclass(frozen=True, slots=True)
class _Unreadable:
    why: str


def prompt_rows(batch: pa.RecordBatch, keep: Sequence[str], templates: Mapping[str, Template]) -> Iterator[PromptRow]:
    """The rows of a batch.

    Args:
        batch: columns of the prompts frame.
        keep: the names of the fields of ``kept``.
        templates: by the column that they replace. Their columns are the fields of ``template``.
    """
    columns = {name: _values(batch[name]) for name in batch.schema.names if name not in (KEPT, TEMPLATE)}
    if keep:
        columns |= dict(zip(keep, map(_values, batch[KEPT].flatten()), strict=True))
    # Two templates can name the same column.
    fields = list(map(_values, batch[TEMPLATE].flatten())) if templates else []
    named = [name for template in templates.values() for name in template.columns]
    for at in range(batch.num_rows):
        row, values = {name: column[at] for name, column in columns.items()}, [field[at] for field in fields]
        problem = None
        for name, value in [*row.items(), *zip(named, values, strict=True)]:
            if isinstance(value, _Unreadable):
                problem = f"column {name} {value.why}"
                row[name] = None
        filled = {}
        if problem is None:
            try:
                filled = _fill(templates, values)
            except BadPromptError as error:
                problem = str(error)
        yield PromptRow(row, filled, problem)


def _fill(templates: Mapping[str, Template], values: list[Any]) -> dict[str, str]:
    filled = {}
    for column, template in templates.items():
        own, values = values[: len(template.columns)], values[len(template.columns) :]
        filled[column] = template.render(own)
    return filled


def _values(column: pa.Array) -> list[Any]:
    try:
        values = list(column.to_pylist(maps_as_pydicts="lossy"))
    except (ValueError, OverflowError, pa.ArrowException):
        values = [_value(each) for each in column]
    return [_with_json(value) for value in values] if JSON in str(column.type) else values


def _with_json(value: Any) -> Any:  # noqa: ANN401 - any value of a column
    """A value with :class:`Json` instead of the structs that stand for VARIANTs."""
    if isinstance(value, list):
        return [_with_json(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {JSON}:
            return Json.of(value[JSON])
        return {key: _with_json(item) for key, item in value.items()}
    return value


def _value(scalar: pa.Scalar) -> Any:  # noqa: ANN401 - any value of a column
    try:
        return scalar.as_py(maps_as_pydicts="lossy")
    except UnicodeDecodeError:
        return _Unreadable("is not valid UTF-8")
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return _Unreadable(f"cannot be read: {error}")
