"""Reads charges from the exports of providers and gateways: JSON, JSON lines, CSV and Parquet.

Knows OpenAI's usage and costs exports (the API's pages, and the dashboard's CSV), Databricks' ``system.serving
.endpoint_usage``, and logs of gateways with one call in each row. Columns are found by their names, at any depth.
"""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC, datetime
from decimal import Context, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from deltatap.api.values import bounded, clean
from deltatap.errors import ConfigError
from deltatap.reconcile.charges import Charge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    Record = Mapping[str, Any]

# The names of each fact, best first. A name matches a column, or the end of the path of a nested field.
_NAMES = {
    "requests": ("num_model_requests", "n_requests", "requests_total", "num_requests", "requests", "request_count"),
    "input": (
        "input_tokens", "prompt_tokens", "input_token_count", "n_context_tokens_total", "context_tokens_total",
        "tokens_in", "total_input_tokens", "tokens_prompt",
    ),
    "cached": (
        "input_cached_tokens", "cached_input_tokens", "cached_tokens", "cache_read_input_tokens",
        "n_cached_context_tokens_total", "cached_context_tokens_total",
    ),
    "output": (
        "output_tokens", "completion_tokens", "output_token_count", "n_generated_tokens_total",
        "generated_tokens_total", "tokens_out", "total_output_tokens", "tokens_completion",
    ),
    "usd": (
        "amount.value", "amount_value", "cost_usd", "cost_in_usd", "total_cost_usd", "response_cost", "total_cost",
        "cost_total", "spend", "cost",
    ),
    "currency": ("amount.currency", "amount_currency", "currency"),
    "model": (
        "model", "model_name", "snapshot_id", "served_entity_name", "entity_name", "endpoint_name",
        "destination_model", "model_id",
    ),
    "line_item": ("line_item",),
    "run": ("run_id", "deltatap_run_id", "deltatap_run", "deltatap-run", "x-run-id"),
    "at": (
        "start_time", "start_time_iso", "starttime", "request_time", "timestamp", "created_at", "time", "usage_date",
        "date", "day", "event_time",
    ),
    "until": ("end_time", "end_time_iso"),
}  # fmt: skip
# A call can have several ids: of the response, of the HTTP request, and one that the gateway assigned.
_IDS = (
    "request_id", "response_id", "id", "databricks_request_id", "client_request_id", "x_request_id", "x-request-id",
    "server_request_id", "provider_request_id", "upstream_request_id", "openai_request_id", "call_id",
    "litellm_call_id", "generation_id",
)  # fmt: skip
_COUNTS = ("requests", "input", "cached", "output")
# The period of a bucket.
_PERIOD = ("start_time", "start_time_iso", "end_time", "end_time_iso")
# Text that can hold nested fields, such as the metadata that a gateway logs.
_OBJECT = re.compile(r"\s*[\[{]")
_DEEPEST = 6
_MOST = 2**63
# Larger or smaller numbers are not amounts.
_MOST_USD, _PLACES = Decimal(10) ** 15, 40
_LEAST_USD, _DIGITS = Decimal(1).scaleb(-_PLACES), Context(prec=60)
# Commas only between groups of three digits: in some countries, a comma is the decimal point.
_GROUPED = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?", re.ASCII)
_DELIMITERS = ",;\t"
# Longer numbers are not amounts, and longer values are cut in messages.
_LONGEST = 60


def read_charges(path: Path) -> list[Charge]:
    """The charges of an export.

    Raises:
        ConfigError: the file cannot be read, or it is not a known export.
    """
    try:
        records = [dict(_flat(record)) for record in _records(path)]
    except (OSError, ValueError, OverflowError, RecursionError, pa.ArrowException, csv.Error) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError([f"{path}: cannot be read: {why}"]) from error
    charges = [charge for number, record in enumerate(records, 1) if (charge := _charge(path, number, record))]
    known = any(_get(record, name) is not None for record in records for name in (*_COUNTS, "usd"))
    if records and not known:
        found = ", ".join(sorted({name for record in records[:100] for name in record})[:20])
        raise ConfigError([f"{path}: no column with tokens, requests or an amount; found {found or 'nothing'}"])
    return charges


def _records(path: Path) -> Iterator[Record]:
    """The rows of a file. Buckets of OpenAI's pages become rows with the bucket's start and end."""
    if path.suffix.lower() == ".parquet":
        yield from pq.read_table(path).to_pylist()
        return
    text = path.read_text(encoding="utf-8-sig")
    if _OBJECT.match(text):
        try:
            found = _loads(text)
        except json.JSONDecodeError:
            found = [_loads(line) for line in text.split("\n") if line.strip()]
        yield from _rows(found)
    else:
        yield from _table(text)


def _loads(text: str) -> Any:  # noqa: ANN401 - any JSON
    """A JSON value with exact numbers. A number that is too long or too large stays text, so that its row is named."""
    return json.loads(text, parse_float=_exact, parse_int=_whole)


def _whole(digits: str) -> int | str:
    return int(digits) if len(digits) < _LONGEST else digits


def _exact(digits: str) -> Decimal | str:
    try:
        return Decimal(digits)
    except InvalidOperation:
        return digits


def _table(text: str) -> Iterator[Record]:
    header = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1):
        if None in row:
            raise ValueError(f"row {number} has more fields than the header")
        yield row


def _rows(found: object) -> Iterator[Record]:
    if isinstance(found, list):
        for each in found:
            yield from _rows(each)
    elif isinstance(found, dict):
        inner = next((found[name] for name in ("data", "results", "rows") if isinstance(found.get(name), list)), None)
        if inner is None:
            yield found
            return
        period = {name: found[name] for name in _PERIOD if name in found}
        for row in _rows(inner):
            yield {**period, **row}
    else:
        raise ValueError(f"expected objects, found {json.dumps(found, default=str)[:40]}")  # noqa: TRY004 - the file's fault


def _flat(record: Record, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The fields of a record with their paths in lower case. JSON in text is read, too."""
    for name, given in record.items():
        value = given
        if isinstance(value, str) and depth < _DEEPEST and _OBJECT.match(value):
            try:
                value = _loads(value)
            except (ValueError, RecursionError):
                value = given
        if isinstance(value, list) and value and all(isinstance(each, tuple) for each in value):
            value = dict(value)  # a map of Parquet
        where = f"{path}{str(name).strip().lower()}"
        if isinstance(value, dict) and depth < _DEEPEST:
            yield from _flat(value, f"{where}.", depth + 1)
        elif not isinstance(value, list | dict) and value not in (None, ""):
            yield where, value


def _charge(path: Path, number: int, record: Record) -> Charge | None:
    """The charge of a row; None if the row has no charge."""
    counts = {name: _count(path, number, name, _get(record, name)) for name in _COUNTS}
    usd = _usd(path, number, _get(record, "usd"))
    if not usd and not any(counts.values()):
        return None
    currency = _get(record, "currency")
    if currency is not None and str(currency).lower() != "usd":
        raise ConfigError([f"{path}: row {number}: expected amounts in USD, found {bounded(str(currency), _LONGEST)}"])
    model = _get(record, "model")
    if model is None and (item := _get(record, "line_item")) is not None:
        # "gpt-4o-2024-08-06, cached input"
        model = str(item).rpartition(", ")[0] or str(item)
    ids = [clean(str(record[name])) for name in _IDS if name in record]
    run = _get(record, "run")
    return Charge(
        () if model is None else (clean(str(model)),),
        counts["requests"] if counts["requests"] is not None or not ids else 1,
        counts["input"],
        counts["cached"],
        counts["output"],
        usd,
        () if counts["requests"] is not None else tuple(dict.fromkeys(ids)),
        _time(_get(record, "at")),
        None if run is None else str(run),
        _time(_get(record, "until")),
    )


def _get(record: Record, fact: str) -> Any:  # noqa: ANN401 - whatever the file has
    """The first field with one of the names of this fact: a column, or else the least nested field."""
    for name in _NAMES[fact]:
        if name in record:
            return record[name]
    for name in _NAMES[fact]:
        nested = [path for path in record if path.endswith(f".{name}")]
        if nested:
            return record[min(nested, key=lambda path: (path.count("."), path))]
    return None


def _count(path: Path, number: int, name: str, value: object) -> int | None:
    if value is None:
        return None
    try:
        found = _number(str(value))
        if 0 <= found <= _MOST and found == found.to_integral_value():
            return int(found)
    except (InvalidOperation, OverflowError, ValueError):
        pass
    raise ConfigError([f"{path}: row {number}: expected a number of {name} tokens or requests, found {_shown(value)}"])


def _usd(path: Path, number: int, value: object) -> Decimal | None:
    if value is None:
        return None
    try:
        found = _number(str(value).replace("$", "", 1))
        exponent = found.as_tuple().exponent
        if isinstance(exponent, int) and abs(found) < _MOST_USD:
            # OpenAI writes amounts with up to 34 digits after the leading zeros, and zero as 0E-6176.
            kept = found if exponent >= -_PLACES else found.quantize(_LEAST_USD, context=_DIGITS)
            if kept or not found:
                return kept
    except InvalidOperation:
        pass
    raise ConfigError([f"{path}: row {number}: expected an amount in USD, found {_shown(value)}"])


def _shown(value: object) -> str:
    return bounded(repr(value) if isinstance(value, str) else str(value), _LONGEST)


def _number(text: str) -> Decimal:
    """The number in a text. Groups of digits can be separated by commas.

    Raises:
        InvalidOperation: this is not a number.
    """
    return Decimal(text.replace(",", "") if _GROUPED.fullmatch(text.strip()) else text)


def _time(value: object) -> datetime | None:
    """A time, or the day, of a charge, in UTC; None if it cannot be read."""
    text = str(value).strip().removesuffix(" UTC")
    try:
        if re.fullmatch(r"\d{9,}(\.\d+)?", text):  # fewer digits are a date
            seconds = float(text)
            return datetime.fromtimestamp(seconds / 1000 if seconds > 1e11 else seconds, UTC)  # noqa: PLR2004 - ms
        found = value if isinstance(value, datetime) else datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        return None
