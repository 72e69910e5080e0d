"""Queries for people: the newest runs, one request, failed requests, the newest answers, the summary of a run.

Returns rows. ``terminal/`` and the report lay them out.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from deltatap.analysis.metrics import CHECKED, FAILED_CHECKS, FLAGGED, MERGED_COALESCED, PARTS, kinds_sql
from deltatap.analysis.requested import BODY, short_id
from deltatap.analysis.sql import in_runs, late_sql, measured_sql
from deltatap.delta import columns, tables
from deltatap.delta.final import final_sql
from deltatap.delta.older import rows_sql
from deltatap.delta.prepare import remembered_runs
from deltatap.delta.reader import identify_captures, rows
from deltatap.driver.lease import is_gone
from deltatap.errors import ConfigError
from deltatap.model import RunStatus
from deltatap.prices import exact_usd
from deltatap.prompt_columns import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from deltatap.config import Settings
    from deltatap.delta.reader import Reader

    Row = dict[str, Any]


# Runs with rows. A scheduled run that finds nothing to do has none.
HAS_ROWS = "coalesce(completed, 0) + coalesce(interrupted, 0) + coalesce(failed, 0) > 0"
# What to do about a run whose driver is dead. A capture of the same job continues it; a recording closes it.
NEXT = "start the same command again, which continues or closes the run and lands its answers"
# How many request ids are searched for ones similar to an id that does not exist, and how many matches a message names.
_IDS = 100_000
_NAMED = 5


def require_table(reader: Reader, name: str, table: str) -> None:
    """Check that a configured Delta table exists.

    Raises:
        ConfigError: it does not.
    """
    if not reader.exists(table):
        how = f"capture something first, or name your table with --set {name}.table=…"
        raise ConfigError([f"{name}.table: {table}: this Delta table does not exist; {how}"])


def captures_sql(reader: Reader, settings: Settings, where: str) -> str:
    """A query for the rows of ``captures`` that match the condition, even if an older version created the table."""
    return rows_sql(reader, settings.captures.table, columns.CAPTURES, where)


def newest_runs(reader: Reader, settings: Settings, limit: int, only_if: str = "true") -> list[Row]:
    """The newest runs on this captures table, newest first.

    Args:
        reader: reads the tables.
        settings: name the tables.
        limit: maximum number of runs.
        only_if: a condition on ``runs`` in SQL, such as :data:`HAS_ROWS`.

    Raises:
        ConfigError: there is no runs table.
    """
    require_table(reader, "runs", settings.runs.table)
    captures = identify_captures(reader, settings.captures.table, settings.runs.table)
    runs = f"{tables.quoted(settings.runs.table)} AS r WHERE {captures.runs_sql('r')} AND {only_if}"
    return rows(reader.query(f"SELECT * FROM {runs} ORDER BY started_at DESC, run_id LIMIT {limit}"))


def good_requests(reader: Reader, settings: Settings, run_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """How many requests of each run were good under ``analysis.slo``, and how many were sent, by run.

    Rows without a call (invalid prompts, reused answers) do not count. Empty if no bound is set.
    """
    if not run_ids or not settings.analysis.slo.bounds or not reader.exists(settings.captures.table):
        return {}
    captures = captures_sql(reader, settings, in_runs(run_ids))
    counted = reader.query(
        f"""
        SELECT run_id, count_if(good) AS good, count(*) AS sent FROM ({measured_sql(settings, captures)})
        WHERE started_at IS NOT NULL GROUP BY run_id
        """
    )
    return {row["run_id"]: (row["good"], row["sent"]) for row in rows(counted)}


def counts_of(reader: Reader, settings: Settings, run_ids: Sequence[str]) -> list[Row]:
    """The rows of runs by status, their retries and their cost, in the order of the ids."""
    counts = ", ".join(
        f"count_if(status = '{status}') AS {status}" for status in ("completed", "interrupted", "failed")
    )
    found = reader.query(
        f"""
        SELECT run_id, {counts}, coalesce(sum(size(retries)), 0) AS retries,
          CAST(sum({exact_usd("cost_usd")}) AS DOUBLE) AS cost_usd
        FROM {tables.quoted(settings.captures.table)} WHERE {in_runs(run_ids)} GROUP BY run_id
        """
    )
    by_run = {row["run_id"]: row for row in rows(found)}
    nothing = {"completed": 0, "interrupted": 0, "failed": 0, "retries": 0, "cost_usd": None}
    return [by_run.get(run_id) or {"run_id": run_id, **nothing} for run_id in run_ids]


def why_no_runs(reader: Reader, settings: Settings) -> str:
    """Why there are no runs to list: a captures table remembers the runs table that its runs are in."""
    why = f"there are no runs on captures table {settings.captures.table} in runs table {settings.runs.table}"
    where = remembered_runs(reader.identify(settings.captures.table))
    return f"{why}; they are in {where}: use it as runs.table" if where else why


def not_landed(reader: Reader, settings: Settings, run_id: str | None = None) -> str:
    """Why answers can be missing from the tables: a run has not ended. Empty if no run is open.

    Args:
        reader: reads the tables.
        settings: name the tables.
        run_id: the run; None for the newest open one.
    """
    if not reader.exists(settings.runs.table):
        return ""
    wanted = "" if run_id is None else f" AND {in_runs([run_id])}"
    if not (found := newest_runs(reader, settings, 1, f"status = '{RunStatus.RUNNING}'{wanted}")):
        return ""
    run = f"run {found[0]['run_id']}"
    if is_gone(found[0].get("driver")):
        return f"the process of {run} has ended, but the newest answers are still in its journal: {NEXT}"
    where = "its newest answers are in its journal, and land while it runs or when you start the same command again"
    return f"{run} has not ended: {where}"


def require_runs(reader: Reader, settings: Settings, run_ids: Sequence[str]) -> list[Row]:
    """The rows of runs on this captures table.

    Args:
        reader: reads the table.
        settings: name the table.
        run_ids: the ids, or their beginnings if no other id begins like this.

    Raises:
        ConfigError: a run does not exist, or several ids begin like this; the message names runs.
    """
    known = {row["run_id"]: row for row in newest_runs(reader, settings, 1_000)}
    found = {run_id: [run_id] if run_id in known else _beginning(run_id, known) for run_id in run_ids}
    newest = ", ".join(list(known)[:5]) or "none"
    problems = [
        f"runs.table: {settings.runs.table}: "
        + (
            f"several runs begin with {run_id}: {', '.join(several[:5])}"
            if several
            else f"run {run_id} does not exist on this captures table; newest: {newest}"
        )
        for run_id, several in found.items()
        if len(several) != 1
    ]
    if problems:
        raise ConfigError(problems)
    return [known[found[run_id][0]] for run_id in run_ids]


def _beginning(start: str, ids: Iterable[str]) -> list[str]:
    return [each for each in ids if start and each.startswith(start)]


def newest_capture(reader: Reader, settings: Settings, request_id: str, run_id: str | None) -> list[Row]:
    """The newest row of a request in each mode, streamed first, from one run or from any run.

    Args:
        reader: reads the table.
        settings: name the table.
        request_id: the id, or its beginning if no other id begins like this.
        run_id: the run; None for any.

    Returns:
        The rows. ``earlier`` has the run and the status of each older row, newest first.

    Raises:
        ConfigError: there is no captures table, no such row, or more than one id begins like this.
    """
    require_table(reader, "captures", settings.captures.table)
    captures = f"SELECT * FROM {tables.quoted(settings.captures.table)}"
    in_run = "" if run_id is None else f" AND {in_runs([run_id])}"
    found = rows(reader.query(f"{captures} WHERE request_id = {tables.literal(request_id)}{in_run}"))
    if not found:
        full = _full_id(reader, settings, request_id, run_id)
        found = rows(reader.query(f"{captures} WHERE request_id = {tables.literal(full)}{in_run}"))
    # A reused answer has no time, but its run has one.
    starts = _starts(reader, settings) if len(found) > 1 else {}
    by_mode: dict[str, list[Row]] = {}
    for row in sorted(found, key=lambda row: (starts.get(row["run_id"], 0.0), age(row)), reverse=True):
        by_mode.setdefault(row["mode"], []).append(row)
    return [
        {**newest, "earlier": [(row["run_id"], row["status"]) for row in older]}
        for _, (newest, *older) in sorted(by_mode.items(), reverse=True)
    ]


def full_request_ids(reader: Reader, settings: Settings, request_ids: Sequence[str]) -> list[str]:
    """The ids of requests, given by their ids, or by their beginnings if no other id begins like this.

    Raises:
        ConfigError: there is no captures table, no such request, or more than one id begins like this.
    """
    if not request_ids:
        return []
    require_table(reader, "captures", settings.captures.table)
    named = ", ".join(map(tables.literal, request_ids))
    ids = f"SELECT DISTINCT request_id FROM {tables.quoted(settings.captures.table)} WHERE request_id IN ({named})"
    known = {row["request_id"] for row in rows(reader.query(ids))}
    return [each if each in known else _full_id(reader, settings, each, None) for each in request_ids]


def _full_id(reader: Reader, settings: Settings, start: str, run_id: str | None) -> str:
    """The only request_id that begins like this.

    Raises:
        ConfigError: there is none, or more than one.
    """
    table = settings.captures.table
    ids = f"SELECT DISTINCT request_id FROM {tables.quoted(table)}"
    in_run, place = ("", "") if run_id is None else (f" AND {in_runs([run_id])}", f" in run {run_id}")
    begins = f"startswith(request_id, {tables.literal(start)})"
    begun = f"{ids} WHERE {begins}{in_run} ORDER BY request_id LIMIT {_NAMED + 1}"
    found = [row["request_id"] for row in rows(reader.query(begun))] if start else []
    if len(found) == 1:
        return str(found[0])
    if found:
        shown = found[:_NAMED] if len(set(map(short_id, found))) < len(found) else map(short_id, found[:_NAMED])
        named = [*shown, *(["…"] if len(found) > _NAMED else [])]
        why = f"several request ids begin with {start}{place}: {', '.join(named)}"
        raise ConfigError([f"captures.table: {table}: {why}"])
    known = [row["request_id"] for row in rows(reader.query(f"{ids} LIMIT {_IDS}"))]
    hint = did_you_mean(*difflib.get_close_matches(start, known))
    problem = f"captures.table: {table}: no row with request_id {start}{place}{hint}"
    raise ConfigError([problem, *filter(None, [not_landed(reader, settings, run_id)])])


def not_completed(reader: Reader, settings: Settings, run_id: str | None, limit: int) -> tuple[str, list[Row], int]:
    """The failed and interrupted rows of a run, grouped by error.

    Args:
        reader: reads the tables.
        settings: name the tables.
        run_id: the run; None for the newest run that has rows.
        limit: maximum number of rows.

    Returns:
        The run's id, the rows, and how many rows there are without the limit. ``body`` is the start of the
        request; ``final`` is whether it will not be sent again.

    Raises:
        ConfigError: there is no such run, or no run has rows.
    """
    if run_id is None:
        run_id = newest_with_rows(reader, settings)
    else:
        run_id = require_runs(reader, settings, [run_id])[0]["run_id"]
    require_table(reader, "captures", settings.captures.table)
    found = rows(
        reader.query(
            f"""
            SELECT request_id, mode, status, error.type AS type, error.code AS code, error.http_status AS http_status,
              left(error.message, 300) AS message, api, request_model AS model, left(request, {BODY}) AS body,
              {final_sql("c", keep_interrupted=settings.capture.keep_interrupted)} AS final, count(*) OVER () AS every
            FROM {tables.quoted(settings.captures.table)} AS c WHERE {in_runs([run_id])} AND status != 'completed'
            ORDER BY status, type, code, message, request_id, mode LIMIT {limit}
            """
        )
    )
    return run_id, found, found[0]["every"] if found else 0


def newest_with_rows(reader: Reader, settings: Settings) -> str:
    """The newest run that has rows.

    Raises:
        ConfigError: no run has any.
    """
    newest = newest_runs(reader, settings, 1, HAS_ROWS)
    if not newest:
        why = not_landed(reader, settings) or "capture something first, or name your table with --set runs.table=…"
        raise ConfigError([f"runs.table: {settings.runs.table}: no run has rows yet; {why}"])
    return str(newest[0]["run_id"])


def _starts(reader: Reader, settings: Settings) -> dict[str, float]:
    """The start time of each run, as a timestamp."""
    if not reader.exists(settings.runs.table):
        return {}
    runs = rows(reader.query(f"SELECT run_id, started_at FROM {tables.quoted(settings.runs.table)}"))
    return {row["run_id"]: row["started_at"].timestamp() for row in runs}


def age(row: Mapping[str, Any]) -> tuple[bool, float]:
    """Sorts rows by age, newest last. A reused answer has no time; it counts as newer than a failed call."""
    at = row["finished_at"]
    return at is None and row["status"] == "completed", at.timestamp() if at else 0.0


def newest_answers(
    reader: Reader, settings: Settings, run_ids: Sequence[str], limit: int, request_ids: Sequence[str] = ()
) -> list[Row]:
    """The newest rows with an answer or a server error, from some runs or from all runs, oldest first.

    Args:
        reader: reads the tables.
        settings: the configuration.
        run_ids: of the runs; empty for all.
        limit: maximum number of rows.
        request_ids: of the requests; empty for all.

    Raises:
        ConfigError: there is no captures table, or no such run.
    """
    captures = settings.captures.table
    require_table(reader, "captures", captures)
    run_ids = [row["run_id"] for row in require_runs(reader, settings, run_ids)] if run_ids else []
    answered = "started_at IS NOT NULL"
    if "reused_from" in reader.schema(captures).names:  # older tables do not have it
        answered = f"({answered} OR reused_from IS NOT NULL)"
    conditions = [answered, *([in_runs(run_ids)] if run_ids else ())]
    if request_ids:
        conditions.append(f"request_id IN ({', '.join(map(tables.literal, request_ids))})")
    answers = f"{tables.quoted(captures)} WHERE {' AND '.join(conditions)}"
    return rows(
        reader.query(f"SELECT * FROM {answers} ORDER BY finished_at DESC NULLS LAST, request_id LIMIT {limit}")
    )[::-1]


def summarize(reader: Reader, settings: Settings, run_id: str) -> tuple[list[Row], list[Row], list[Row]]:
    """A run's rows counted by mode, status and finish_reason, each with a request_id; its times by mode; its models.

    The times are those of completed rows. ``late`` counts the rows that the metrics leave out because the event loop
    ran late. ``kept`` counts rows that also ran on a late loop, but have the kernel's times; of their ``outputs``,
    ``merged`` have no gaps. Each model has its number of rows and their cost, the most expensive model first.
    ``checked``, ``flagged`` and ``failed_checks`` are the results of moderation.
    """
    run = f"SELECT * FROM {tables.quoted(settings.captures.table)} WHERE {in_runs([run_id])}"
    outcomes = reader.query(
        f"""
        SELECT mode, status, coalesce(finish_reason, error.type) AS why, count(*) AS rows,
          sum(size(retries)) AS retries, min(request_id) AS example, count_if({CHECKED}) AS checked,
          count_if({FLAGGED}) AS flagged, sum({FAILED_CHECKS}) AS failed_checks
        FROM (SELECT *, {PARTS["checks"]} AS checks FROM ({run}))
        GROUP BY ALL ORDER BY mode DESC, status, rows DESC, why
        """
    )
    quantiles, lag = "array(0.5, 0.9, 0.99)", settings.analysis.max_loop_lag_ms
    size = f"size(filter(chunks, c -> {kinds_sql()}))"
    times = reader.query(
        f"""
        WITH run AS (
          SELECT *, {late_sql(settings)} AS delayed, {late_sql(settings, kernel=True)} AS exact
          FROM ({run} AND status = 'completed')
        ), gaps AS (
          SELECT mode, percentile(chunk.gap_ms, {quantiles}) AS gap_ms
          FROM run LATERAL VIEW explode(chunks) AS chunk WHERE {kinds_sql(kind="chunk.kind")} GROUP BY mode
        )
        SELECT mode, percentile(ttft_ms, {quantiles}) AS ttft_ms, any_value(gaps.gap_ms) AS gap_ms,
          percentile(e2e_ms, {quantiles}) AS e2e_ms, percentile(loop_lag_ms, {quantiles}) AS lag_ms,
          count_if(delayed) AS late, count_if(exact) AS kept, sum(IF(exact, {MERGED_COALESCED}, 0)) AS merged,
          sum(IF(exact, {size}, 0)) AS outputs,
          percentile(scheduled_ms, {quantiles}) AS scheduled_ms,
          percentile(scheduled_ms + dispatch_ms + ttft_ms, {quantiles}) AS ttft_scheduled_ms,
          CAST({"NULL" if lag is None else lag} AS DOUBLE) AS max_loop_lag_ms
        FROM run LEFT JOIN gaps USING (mode) GROUP BY mode ORDER BY mode DESC
        """
    )
    models = reader.query(
        f"""
        SELECT request_model AS model, count(*) AS rows, CAST(sum({exact_usd("cost_usd")}) AS DOUBLE) AS cost_usd
        FROM ({run}) WHERE request_model IS NOT NULL GROUP BY request_model
        ORDER BY cost_usd DESC NULLS LAST, rows DESC, model
        """
    )
    return rows(outcomes), rows(times), rows(models)
