"""The data of the report, read from Delta: samples of the rows, counts over time, errors, and a few whole streams.

Limits how much goes into a page. ``analysis`` defines the metrics, ``charts.py`` draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deltatap.analysis.compare import busy
from deltatap.analysis.compute import by_run_rows, paired_rows
from deltatap.analysis.metrics import kinds_sql
from deltatap.analysis.names import series_key
from deltatap.analysis.queries import captures_sql
from deltatap.analysis.requested import BODY, prompt_line
from deltatap.analysis.series import Measure
from deltatap.analysis.sql import FIRST_STARTED_AT, in_runs, measured_sql
from deltatap.analysis.trend import ended_runs, series_over
from deltatap.analysis.uncounted import uncounted_sql
from deltatap.delta import tables
from deltatap.delta.reader import rows as rows_of
from deltatap.report.requests import requests_sql

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from deltatap.analysis.compare import Counted
    from deltatap.analysis.series import Series
    from deltatap.config import Analysis, Settings
    from deltatap.delta.reader import Reader

    Row = dict[str, Any]

# Limits of one page: rows per run and mode, streams to replay, chunks per stream, characters per text, rows per list,
# bins per chart over time, tokens per chunk, words per error type, examples of the same words, characters of words,
# characters of a prompt in the list of streams.
ROWS = 10_000
STREAMS = 12
CHUNKS = 1_500
TEXT = 4_000
TABLE = 10
BINS = 120
SIZE = 1_000
WORDS = 3
EXAMPLES = 3
MESSAGE = 500
CHOICE = 40
# How many runs the chart of a series over weeks has: at most, and at least.
RUNS = 60
FEWEST_RUNS = 5


@dataclass(frozen=True, slots=True)
class Stream:
    """A captured stream for the page to replay.

    Attributes:
        why: why it was chosen, such as ``median`` or ``broken``.
        chunks: (ms, text, kind) of the output of choice 0, up to :data:`CHUNKS` of them.
        e2e_ms: when the stream ended; None if the request was never written.
        whole_ms: when the whole answer arrived, if the same request was captured in mode complete; else the end of the
            stream.
        whole: the text of the whole answer.
        paired: whether the whole answer comes from a separate call.
        prompt: its start.
    """

    request_id: str
    run_id: str
    why: str
    status: str
    error: str | None
    chunks: tuple[tuple[float, str, str], ...]
    e2e_ms: float | None
    whole_ms: float
    whole: str
    paired: bool
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Gathered:
    """The data of one page.

    Attributes:
        analysis: the settings that decide which rows count, and which are good.
        runs: rows of ``runs``.
        metrics: rows of ``metrics_by_run``.
        rows: a sample of the rows with their metrics, at most :data:`ROWS` per run and mode.
        total: number of all rows.
        gaps: all gaps that count, as run_id, endpoint, request_model, mode, bin (ten per decade of ms), count.
        sizes: the tokens of all outputs that count, and those of each socket read, as run_id, endpoint, request_model,
            mode, what (``chunk`` or ``read``), tokens (at most :data:`SIZE`), count.
        timeline: all rows whose request was sent, as run_id, at (seconds since the first start of the run), bin_s,
            started, ended.
        errors: all failed calls, as run_id, at, bin_s, type, count.
        paired: rows of ``stream_vs_complete``.
        streams: streams to replay.
        slowest: the slowest completed rows.
        broken: interrupted and failed rows.
        requests: rows for the table of requests.
        failures: rows of :func:`failures_sql`.
        uncounted: rows of ``uncounted.uncounted_sql``.
        history: the reported series over the newest runs of the captures table: median TTFT, or E2E without streams.
        busy: the rows during which this machine was busy, by mode and run.
    """

    analysis: Analysis
    runs: Sequence[Row]
    metrics: Sequence[Row]
    rows: pa.Table
    total: int
    gaps: pa.Table
    sizes: pa.Table
    timeline: pa.Table
    errors: pa.Table
    paired: Sequence[Row]
    streams: Sequence[Stream]
    slowest: Sequence[Row]
    broken: Sequence[Row]
    requests: pa.Table
    failures: Sequence[Row]
    uncounted: Sequence[Row]
    history: Sequence[Series] = ()
    busy: Mapping[tuple[str, str], Counted] = field(default_factory=dict)


def gather(reader: Reader, settings: Settings, run_ids: Sequence[str]) -> Gathered:
    """Read the data of a page about some runs, and compute their metrics."""
    captures = tables.quoted(settings.captures.table)
    of_runs = in_runs(run_ids)
    measured = measured_sql(settings, captures_sql(reader, settings, of_runs))
    keys = "run_id, endpoint, request_model, mode"
    rows = reader.query(
        f"""
        SELECT * EXCEPT (place) FROM (
          SELECT {keys}, request_id, status, counts, output_tokens, ttft_ms, tpot_ms, stall_ms, e2e_ms, loop_lag_ms,
            usage_reported.output_tokens AS reported, usage_tiktoken.output_tokens AS tiktoken,
            row_number() OVER (PARTITION BY run_id, mode ORDER BY md5(request_id)) AS place
          FROM ({measured})
        ) WHERE place <= {ROWS}
        """
    )
    gaps = reader.query(
        f"""
        SELECT {keys}, CAST(floor(log10(gap) * 10) AS INT) AS bin, count(*) AS count
        FROM (SELECT {keys}, explode(gaps) AS gap FROM ({measured}) WHERE counts) GROUP BY ALL ORDER BY bin
        """
    )
    starts = f"""
        SELECT run_id, min({FIRST_STARTED_AT}) AS begin, max(finished_at) AS end
        FROM {captures} WHERE {of_runs} GROUP BY run_id
    """
    bin_s = f"greatest(timestampdiff(MICROSECOND, begin, end) / 1e6 / {BINS}, 0.001)"
    sent = f"""
        SELECT c.run_id, {bin_s} AS bin_s, timestampdiff(MICROSECOND, begin, started_at) / 1e6 AS start_s,
          timestampdiff(MICROSECOND, begin, finished_at) / 1e6 AS end_s, error, retries, begin
        FROM {captures} AS c JOIN ({starts}) USING (run_id) WHERE c.{of_runs} AND started_at IS NOT NULL
    """
    timeline = reader.query(
        f"""
        SELECT run_id, floor(at / bin_s) * bin_s AS at, bin_s, sum(started) AS started, sum(ended) AS ended FROM (
          SELECT run_id, bin_s, start_s AS at, 1 AS started, 0 AS ended FROM ({sent}) UNION ALL
          SELECT run_id, bin_s, end_s AS at, 0 AS started, 1 AS ended FROM ({sent})
        ) GROUP BY ALL ORDER BY run_id, at
        """
    )
    errors = reader.query(
        f"""
        SELECT run_id, floor(at / bin_s) * bin_s AS at, bin_s, type, count(*) AS count FROM (
          SELECT run_id, bin_s, start_s AS at, error.type AS type FROM ({sent}) UNION ALL
          SELECT run_id, bin_s, timestampdiff(MICROSECOND, begin, call.started_at) / 1e6, call.error_type
          FROM (SELECT *, explode(retries) AS call FROM ({sent}))
        ) WHERE type IS NOT NULL GROUP BY ALL ORDER BY run_id, at
        """
    )
    runs = tables.quoted(settings.runs.table)
    texts = f"""
        SELECT {keys}, request_id, status, error, queued_ms, headers_ms, ttft_ms, e2e_ms, left(text, {TEXT}) AS text,
          size(retries) AS retries, api, left(request, {BODY}) AS body
        FROM {captures} WHERE {of_runs}
    """
    found = rows_of(reader.query(f"SELECT * FROM {runs} WHERE {of_runs} ORDER BY started_at, run_id"))
    order = [run["run_id"] for run in found]
    metrics = sorted(by_run_rows(reader, settings, f"({measured})"), key=lambda row: _place(row, order))
    return Gathered(
        analysis=settings.analysis,
        runs=found,
        metrics=metrics,
        rows=rows,
        total=rows_of(reader.query(f"SELECT count(*) AS rows FROM {captures} WHERE {of_runs}"))[0]["rows"],
        gaps=gaps,
        sizes=reader.query(sizes_sql(measured)),
        timeline=timeline,
        errors=errors,
        paired=sorted(paired_rows(reader, f"({measured})"), key=_shortest),
        streams=_streams(reader, captures, measured),
        slowest=_with_prompts(
            reader.query(
                f"{texts} AND status = 'completed' ORDER BY e2e_ms DESC NULLS LAST, request_id, run_id LIMIT {TABLE}"
            )
        ),
        broken=_with_prompts(
            reader.query(f"{texts} AND status != 'completed' ORDER BY status, request_id, run_id LIMIT {TABLE}")
        ),
        requests=reader.query(requests_sql(captures, run_ids)),
        failures=rows_of(reader.query(failures_sql(f"SELECT * FROM {captures} WHERE {of_runs}"))),
        uncounted=rows_of(reader.query(uncounted_sql(measured))),
        history=_history(reader, settings, metrics),
        busy=busy(reader, settings, run_ids),
    )


def _with_prompts(found: pa.Table) -> list[Row]:
    return [row | {"prompt": prompt_line(row["body"], row["api"])} for row in rows_of(found)]


def _history(reader: Reader, settings: Settings, metrics: Sequence[Row]) -> list[Series]:
    """The reported series over the newest runs, if they have enough of them."""
    streamed = any(row["mode"] == "stream" for row in metrics)
    measure = Measure("ttft_ms", "p50", "stream") if streamed else Measure("e2e_ms", "p50", "complete")
    reported = {series_key(row)[1:] for row in metrics}
    found = series_over(reader, settings, measure, ended_runs(reader, settings, RUNS, {}))
    return [
        each
        for each in found
        if (each.endpoint, each.request_model, each.mode) in reported and len(each.points) >= FEWEST_RUNS
    ]


def sizes_sql(measured: str) -> str:
    """SQL: from measured rows, the number of outputs and of socket reads by their number of tokens."""
    keys = "run_id, endpoint, request_model, mode"
    return f"""
        WITH pieces AS (
          SELECT {keys}, request_id, size.read AS read, size.tokens AS tokens
          FROM (SELECT {keys}, request_id, explode(sizes) AS size FROM ({measured}) WHERE counts)
          WHERE size.tokens IS NOT NULL
        ), found AS (
          SELECT {keys}, 'chunk' AS what, tokens FROM pieces
          UNION ALL
          SELECT {keys}, 'read' AS what, sum(tokens) AS tokens FROM pieces WHERE read IS NOT NULL
          GROUP BY {keys}, request_id, read
        )
        SELECT {keys}, what, CAST(least(tokens, {SIZE}) AS INT) AS tokens, count(*) AS count
        FROM found GROUP BY ALL ORDER BY what, tokens
    """


def failures_sql(captures: str) -> str:
    """SQL: examples of the most frequent words of each error type, from rows of captures (a query).

    A row has the error type, with its numbers of failed calls, of rows and of different words (``kinds``); the words,
    with their ``place`` within the type and how often they occurred (``same``); and one request, with its place among
    the examples. The words are known only for the last call of a row.
    """
    words = "type, code, http_status, message"
    return f"""
        WITH failed AS (
          SELECT run_id, request_id, mode, error.type AS type, error.code AS code, error.http_status AS http_status,
            left(error.message, {MESSAGE}) AS message, IF(started_at IS NULL, 0, 1) AS call, 1 AS last
          FROM ({captures}) WHERE error IS NOT NULL
          UNION ALL
          SELECT run_id, request_id, mode, retry.error_type, NULL, retry.http_status, NULL, 1, 0
          FROM (SELECT *, explode(retries) AS retry FROM ({captures})) WHERE retry.error_type IS NOT NULL
        ), requests AS (
          SELECT {words}, run_id, request_id, mode, count(*) AS times, sum(call) AS calls, sum(last) AS rows
          FROM failed GROUP BY {words}, run_id, request_id, mode
        ), counted AS (
          SELECT *, sum(calls) OVER (PARTITION BY type) AS type_calls, sum(rows) OVER (PARTITION BY type) AS type_rows,
            sum(times) OVER (PARTITION BY {words}) AS same, sum(rows) OVER (PARTITION BY {words}) AS same_rows,
            row_number() OVER (PARTITION BY {words} ORDER BY rows DESC, run_id, request_id, mode) AS example
          FROM requests
        ), placed AS (
          SELECT *, dense_rank() OVER (
              PARTITION BY type ORDER BY IF(same_rows > 0, 0, 1), same DESC, coalesce(message, ''), coalesce(code, ''),
              coalesce(http_status, 0), IF(message IS NULL, 0, 1), IF(code IS NULL, 0, 1),
              IF(http_status IS NULL, 0, 1)) AS place
          FROM counted
        ), ranked AS (
          SELECT *, max(place) OVER (PARTITION BY type) AS kinds FROM placed
        )
        SELECT type, type_calls AS calls, type_rows AS rows, kinds, place, same, code, http_status, message, example,
          run_id, request_id, mode
        FROM ranked WHERE place <= {WORDS} AND example <= {EXAMPLES} ORDER BY type, place, example
    """


def _place(row: Row, runs: Sequence[str]) -> tuple[Any, ...]:
    """Sorts rows of ``metrics_by_run``: by run, those of a run by endpoint and model, streamed before complete."""
    return runs.index(row["run_id"]), row["endpoint"] or "", row["request_model"] or "", row["mode"] != "stream"


def _shortest(row: Row) -> tuple[str, int]:
    """Sorts rows of ``stream_vs_complete``: all lengths first, then from short to long."""
    first = row["output_tokens"].replace("-", " ").split()[0]
    return row["run_id"], int(first) if first.isdecimal() else 0


def _streams(reader: Reader, captures: str, measured: str) -> list[Stream]:
    """Streams of median duration, those with the slowest start or the longest stall, the longest, and broken ones."""
    fields = f"SELECT run_id, request_id, status, ttft_ms, e2e_ms, stall_ms FROM ({measured})"
    streamed = f"{fields} WHERE mode = 'stream' AND first_chunk_ms IS NOT NULL"
    done = f"({streamed} AND status = 'completed')"
    choices = {
        "median": f"SELECT * FROM (SELECT *, percent_rank() OVER (ORDER BY e2e_ms) AS p FROM {done}) "
        "ORDER BY abs(p - 0.5), request_id, run_id LIMIT 3",
        "slow start": f"SELECT * FROM {done} ORDER BY ttft_ms DESC NULLS LAST, request_id, run_id LIMIT 2",
        "long stall": f"SELECT * FROM {done} ORDER BY stall_ms DESC NULLS LAST, request_id, run_id LIMIT 2",
        "long": f"SELECT * FROM {done} ORDER BY e2e_ms DESC NULLS LAST, request_id, run_id LIMIT 2",
        "broken": f"{streamed} AND status != 'completed' ORDER BY request_id, run_id LIMIT 3",
    }
    chosen: dict[tuple[str, str], str] = {}
    for why, sql in choices.items():
        for row in rows_of(reader.query(sql)):
            chosen.setdefault((row["run_id"], row["request_id"]), why)
    if not chosen:
        return []
    pairs = ", ".join(f"({tables.literal(run_id)}, {tables.literal(request_id)})" for run_id, request_id in chosen)
    found = reader.query(
        f"""
        SELECT run_id, request_id, mode, status, error.type AS error, e2e_ms, last_chunk_ms, text,
          api, left(request, {BODY}) AS body,
          slice(filter(chunks, c -> c.choice <= 0 AND {kinds_sql()}), 1, {CHUNKS}) AS chunks
        FROM {captures} WHERE (run_id, request_id) IN ({pairs})
        """
    )
    rows = rows_of(found)
    whole = {(r["run_id"], r["request_id"]): r for r in rows if r["mode"] == "complete" and r["status"] == "completed"}
    streams = [
        _stream(row, whole.get((row["run_id"], row["request_id"])), chosen) for row in rows if row["mode"] == "stream"
    ]
    order = list(choices)
    return sorted(streams, key=lambda stream: (order.index(stream.why), stream.request_id, stream.run_id))[:STREAMS]


def _stream(row: Row, whole: Row | None, chosen: dict[tuple[str, str], str]) -> Stream:
    chunks = tuple((round(chunk["ms"] or 0.0, 2), chunk["text"], chunk["kind"]) for chunk in row["chunks"])
    return Stream(
        request_id=row["request_id"],
        run_id=row["run_id"],
        why=chosen[row["run_id"], row["request_id"]],
        status=row["status"],
        error=row["error"],
        chunks=chunks,
        e2e_ms=row["e2e_ms"],
        whole_ms=float((whole["e2e_ms"] if whole else row["e2e_ms"] or row["last_chunk_ms"]) or 0.0),
        whole=str((whole["text"] if whole else row["text"]) or ""),
        paired=whole is not None,
        prompt=prompt_line(row["body"], row["api"], CHOICE),
    )
