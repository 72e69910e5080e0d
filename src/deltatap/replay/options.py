"""The options of a replayed request: the row, the speed and the faults. Pure.

Each option is a query parameter (`cut=8`) or a header (`x-deltatap-cut: 8`). The body's `metadata` can select a row,
too. `plan.py` knows what the options do.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

PREFIX = "x-deltatap-"
# Query parameters that clients of Azure and of Anthropic add.
_OF_CLIENTS = ("api-version", "beta")
_PLACE = re.compile(r"(\d{1,9})|(\d{1,9}(?:\.\d{1,9})?)ms", re.ASCII)
_LONGEST_MS = 1e9
_FALSE, _TRUE = ("0", "false"), ("1", "true", "")


class BadOptionError(ValueError):
    """An option does not exist, or cannot have this value."""


class Place(NamedTuple):
    """A place in a stream: after a number of chunks with output, or at a time. One of the two is None."""

    chunks: int | None
    ms: float | None


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a request.

    Attributes:
        run_id, request_id: the row that the request asks for.
        speed: factor by which every wait is shortened, 0 for no waits; None for the server's.
        from_ms: everything that the server sent before this time is sent at once.
        loop: how many times the texts are sent.
        cut: where the connection breaks.
        stall, stall_ms: where the stream pauses, and for how long; without a time, until the client disconnects.
        merge: how many events are sent in one write.
        split: number of bytes that are sent in one write; None for whole events.
        bytes_per_s: speed of the network; None for no limit.
        drop_usage: whether the usage is left out.
    """

    run_id: str | None = None
    request_id: str | None = None
    speed: float | None = None
    from_ms: float = 0.0
    loop: int = 1
    cut: Place | None = None
    stall: Place | None = None
    stall_ms: float | None = None
    merge: int = 1
    split: int | None = None
    bytes_per_s: float | None = None
    drop_usage: bool = False


def options_of(
    query: Iterable[tuple[str, str]], headers: Iterable[tuple[str, str]], body: Mapping[str, Any]
) -> Options:
    """The options of a request. A query parameter takes precedence over a header, and a header over `metadata`.

    Args:
        query: names and values.
        headers: names in lower case, and values.
        body: of the request.

    Raises:
        BadOptionError: an option does not exist, or cannot have this value.
    """
    given = dict(_selected(body))
    given |= {name.removeprefix(PREFIX).replace("-", "_"): value for name, value in headers if name.startswith(PREFIX)}
    given |= {name: value for name, value in query if name not in _OF_CLIENTS}
    for name in given:
        if name not in _PARSERS:
            raise BadOptionError(f"there is no option {name}; the options are {', '.join(_PARSERS)}")
    return Options(**{name: _PARSERS[name](name, value.strip()) for name, value in given.items()})


def without_selection(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body without the metadata that selects a row. These fields were not in the captured request."""
    if not dict(_selected(body)):
        return body
    metadata = {name: value for name, value in body["metadata"].items() if name not in _METADATA}
    others = {name: value for name, value in body.items() if name != "metadata"}
    return {**others, "metadata": metadata} if metadata else others


def _selected(body: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    given = body.get("metadata")
    metadata: Mapping[str, Any] = given if isinstance(given, dict) else {}
    for key, name in _METADATA.items():
        if isinstance(metadata.get(key), str):
            yield name, metadata[key]


def _text(name: str, value: str) -> str:
    if not value:
        raise BadOptionError(f"{name}: expected an id, found nothing")
    return value


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= _LONGEST_MS:
        raise BadOptionError(f"{name}: expected a number from 0 to {_LONGEST_MS:,.0f}, found {value[:40]}")
    return number


def _count(name: str, value: str) -> int:
    number = _number(name, value)
    if number < 1 or number != int(number):
        raise BadOptionError(f"{name}: expected a whole number from 1, found {value[:40]}")
    return int(number)


def _place(name: str, value: str) -> Place:
    found = _PLACE.fullmatch(value)
    if found is None:
        raise BadOptionError(f"{name}: expected a number of chunks (8) or a time (500ms), found {value[:40]}")
    chunks, ms = found.groups()
    return Place(None if chunks is None else int(chunks), None if ms is None else float(ms))


def _flag(name: str, value: str) -> bool:
    if value.lower() not in _FALSE + _TRUE:
        raise BadOptionError(f"{name}: expected true or false, found {value[:40]}")
    return value.lower() in _TRUE


_PARSERS: Mapping[str, Callable[[str, str], Any]] = {
    "run_id": _text,
    "request_id": _text,
    "speed": _number,
    "from_ms": _number,
    "loop": _count,
    "cut": _place,
    "stall": _place,
    "stall_ms": _number,
    "merge": _count,
    "split": _count,
    "bytes_per_s": _count,
    "drop_usage": _flag,
}
_METADATA = {"deltatap_run_id": "run_id", "deltatap_request_id": "request_id"}
