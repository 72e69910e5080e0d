"""The types of single settings: what a path, a table, a run id or a request body may be, and the base of a section.

Describes the problem with a value, and makes paths absolute. Leaves the keys to ``endpoint.py`` and ``config.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

URI = re.compile("[A-Za-z][A-Za-z0-9+.-]*:/")
_PART = r"(?:`(?:[^`]|``)+`|[^.`/\s](?:[^.`/]*[^.`/\s])?)"
_CATALOG_NAME = re.compile(rf"{_PART}(?:\.{_PART})*")
# As in SQL: delta.`/a/path`.
_DELTA_PATH = re.compile(r"delta\.`([^`]*/[^`]*)`", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Section(BaseModel):
    """A section of the settings. Unknown keys and wrong types are refused, and messages contain no values."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        hide_input_in_errors=True,
        validate_default=True,
        allow_inf_nan=False,  # no SQL and no JSON has them; null means "no limit"
    )


def _file(path: str) -> str:
    """An absolute path. A URI would become a folder of this name."""
    if URI.match(path):
        local = re.sub("^(dbfs|file):/+", "/", path)
        hint = f", such as {local}" if local != path else ""
        raise PydanticCustomError("path", "a path on this machine or under /Volumes{hint}", {"hint": hint})
    return _absolute(path)


def _absolute(path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:
        raise PydanticCustomError("path", "a path whose ~ stands for a home folder that exists") from None


def _location(table: str) -> str:
    """Make a path absolute, so that a table has one name. Catalog names and URIs stay as they are."""
    if found := _DELTA_PATH.fullmatch(table):
        table = found[1]
    if "/" not in table or table.startswith("`"):
        if not _CATALOG_NAME.fullmatch(table):
            raise PydanticCustomError("table", "a path with a /, or a name such as catalog.schema.table")
        return table
    if URI.match(table):
        return table.rstrip("/")
    return _absolute(table)


def _one_line(run_id: str) -> str:
    if _CONTROL.search(run_id):
        raise PydanticCustomError("one_line", "text without line breaks and control characters")
    return run_id


def _json(value: object, path: str = "") -> object:
    """A value of a request body as JSON: keys become text, dates become ISO 8601.

    Raises:
        PydanticCustomError: if JSON cannot express it; the message names the place.
    """
    if isinstance(value, Mapping):
        return {str(key): _json(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item, f"{path}[{at}]") for at, item in enumerate(value)]
    if isinstance(value, date):
        return value.isoformat()
    found = "" if value is None or isinstance(value, str | int | float) else type(value).__name__
    if isinstance(value, float) and not math.isfinite(value):
        found = str(value)
    if isinstance(value, str) and _SURROGATE.search(value):
        found = "text with half of a surrogate pair"
    if found:
        raise PydanticCustomError(
            "json",
            "a JSON value{path}, found {found}",
            {"path": path and f" in {path[1:]}", "found": found},
        )
    return value


File = Annotated[str, Field(min_length=1), AfterValidator(_file)]
Location = Annotated[str, Field(min_length=1), AfterValidator(_location)]
Body = Annotated[dict[str, Any], BeforeValidator(_json)]
PositiveInt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, le=1)]
RunId = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
