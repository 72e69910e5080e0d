"""The charges of captures: one for each call of a run or a day, including retries."""

from __future__ import annotations

import math
from datetime import UTC, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from deltatap.analysis.queries import captures_sql, require_table
from deltatap.analysis.sql import in_runs
from deltatap.delta.reader import rows
from deltatap.driver.runs import used_sql
from deltatap.reconcile.charges import Charge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from deltatap.config import Settings
    from deltatap.delta.reader import Reader

# A provider's clock can differ, and a log can have the end time of a call instead of its start.
_BEFORE, _AFTER = timedelta(minutes=1), timedelta(minutes=15)
_DAY = timedelta(days=1)
_RETRY = ("started_at", "input_tokens", "output_tokens", "cost_usd", "response_id", "server_request_id")


def captured(reader: Reader, settings: Settings, run_id: str | None, day: datetime | None) -> list[Charge]:
    """The charges of a run, or of the calls that started on a day (UTC).

    Raises:
        ConfigError: there is no captures table.
    """
    require_table(reader, "captures", settings.captures.table)
    where = "true" if run_id is None else in_runs([run_id])
    if day is not None:
        # A retry can have started on the day before its row's last call.
        where += f" AND started_at >= TIMESTAMP '{day:%Y-%m-%d %H:%M:%S}Z'"
        where += f" AND started_at < TIMESTAMP '{day + 2 * _DAY:%Y-%m-%d %H:%M:%S}Z'"
    earlier = ", ".join(f"'{name}', call.{name}" for name in _RETRY)
    found = reader.query(
        f"""
        SELECT run_id, request_model, response_model, response_id, server_request_id, started_at, status, cost_basis,
          {used_sql("input_tokens")} AS input_tokens, {used_sql("output_tokens")} AS output_tokens,
          usage_reported.cached_input_tokens AS cached_tokens, cost_usd,
          transform(retries, call -> named_struct({earlier})) AS retries
        FROM ({captures_sql(reader, settings, where)}) WHERE started_at IS NOT NULL
        """
    )
    charges = [charge for row in rows(found) for charge in charges_of(row)]
    return charges if day is None else [each for each in charges if each.at and day <= each.at < day + _DAY]


def charges_of(row: Mapping[str, Any]) -> Iterator[Charge]:
    """The charges of a row: of its last call, and of its earlier ones. A call that used no tokens is not billed."""
    models = tuple(dict.fromkeys(name for name in (row["response_model"], row["request_model"]) if name))
    total = _amount(row["cost_usd"])
    for call in row["retries"] or ():
        usd = _amount(call["cost_usd"])
        total = None if total is None else total - (usd or 0)
        if call["input_tokens"] or call["output_tokens"]:
            yield _charge(row, models, call, None, usd)
    if row["cost_basis"] is not None and (row["input_tokens"] or row["output_tokens"]):
        yield _charge(row, models, row, row["cached_tokens"] or 0, total)


def _amount(usd: float | None) -> Decimal | None:
    """An amount; None also for a value that is not an amount of money, such as infinity."""
    return None if usd is None or not math.isfinite(usd) else Decimal(str(usd))


def _charge(
    row: Mapping[str, Any], models: tuple[str, ...], call: Mapping[str, Any], cached: int | None, usd: Decimal | None
) -> Charge:
    ids = tuple(call[name] for name in ("response_id", "server_request_id") if call[name])
    at = call["started_at"] and call["started_at"].astimezone(UTC)
    return Charge(models, 1, call["input_tokens"], cached, call["output_tokens"], usd, ids, at, row["run_id"])


def of_the_same(
    captures: Sequence[Charge], billed: Sequence[Charge], run_id: str | None, day: datetime | None
) -> list[Charge]:
    """The charges of a bill that belong to the same run or day, as far as the bill has this information."""
    named = [charge for charge in billed if run_id is not None and charge.run_id == run_id]
    others = [charge for charge in billed if charge.run_id is None] if named else billed
    if day is not None:
        return named + [charge for charge in others if charge.at is None or day <= charge.at < day + _DAY]
    times = [charge.at for charge in captures if charge.at is not None]
    if not times:
        return [*named, *others]
    first, last = min(times), max(times)
    return named + [charge for charge in others if _overlaps(charge, first, last)]


def _overlaps(charge: Charge, first: datetime, last: datetime) -> bool:
    """Whether a charge can belong to calls that started between two times."""
    if charge.at is None:
        return True
    if charge.ids:
        return first - _BEFORE <= charge.at <= last + _AFTER
    # A charge without ids is the sum of the calls in a period: of a day, unless the bill says otherwise.
    return charge.at <= last and (charge.at > first - _DAY if charge.until is None else charge.until > first)
