"""The tables' columns, written once: from here come the Arrow schema, the Spark schema, the DDL and the documentation.

Knows names, types and meanings. Leaves to others how rows are made (``rows.py``) and how they land (``landing.py``).
Types are spelled as in Spark SQL; a small parser turns them into Arrow's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from deltatap.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

CHUNKS = "ARRAY<STRUCT<ms DOUBLE, gap_ms DOUBLE, text STRING, kind STRING, choice INT, event INT, read INT>>"
RETRIES = (
    "ARRAY<STRUCT<started_at TIMESTAMP, e2e_ms DOUBLE, http_status INT, error_type STRING, text STRING, "
    f"chunks {CHUNKS}, input_tokens BIGINT, output_tokens BIGINT, cost_usd DOUBLE>>"
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, its type in Spark SQL's spelling, and what it holds."""

    name: str
    type: str
    comment: str


CAPTURES: tuple[Column, ...] = (
    Column("run_id", "STRING", "the run that captured the row"),
    Column("request_id", "STRING", "of the prompts table, or derived from request_hash"),
    Column("request_hash", "STRING", "sha256 of the body's compact JSON with sorted keys, without stream options"),
    Column(
        "source_hash",
        "BIGINT",
        "of the prompts row and the defaults: the next plan sees by it that nothing changed; null where rows differ",
    ),
    Column("mode", "STRING", "stream or complete"),
    Column("status", "STRING", "completed, interrupted (something arrived, then it broke off) or failed"),
    Column("keep", "MAP<STRING, STRING>", "what prompts.keep named"),
    Column("finish_reason", "STRING", "of choice 0, as the API sent it; null when none arrived"),
    Column("text", "STRING", "of choice 0"),
    Column(
        "choices",
        "ARRAY<STRUCT<index INT, text STRING, finish_reason STRING, refusal STRING, reasoning STRING, "
        "tool_calls STRING>>",
        "all choices; tool_calls as JSON",
    ),
    Column(
        "chunks", CHUNKS, "one element per (event, choice, kind) of the last call; ms since the request was written"
    ),
    Column("retries", RETRIES, "the earlier calls for this row in this run, oldest first"),
    Column(
        "error",
        "STRUCT<type STRING, code STRING, message STRING, http_status INT, retryable BOOLEAN, retry_after_s DOUBLE>",
        "null when completed",
    ),
    Column("queued_ms", "DOUBLE", "from planned in the worker to the first call's start"),
    Column("dispatch_ms", "DOUBLE", "from the last call's start to its request written to the socket"),
    Column("headers_ms", "DOUBLE", "from written to the response's headers"),
    Column("first_chunk_ms", "DOUBLE", "from written to the first event"),
    Column("ttft_ms", "DOUBLE", "from written to the first output; reasoning counts"),
    Column("ttfot_ms", "DOUBLE", "from written to the first output that is not reasoning"),
    Column("last_chunk_ms", "DOUBLE", "from written to the last output"),
    Column("e2e_ms", "DOUBLE", "from written to the end of the stream"),
    Column("tpot_ms", "DOUBLE", "(last_chunk_ms - ttft_ms) / (output tokens - 1); null below 2 tokens"),
    Column("loop_lag_ms", "DOUBLE", "the event loop's worst delay while the stream was open"),
    Column(
        "usage_reported",
        "STRUCT<input_tokens BIGINT, output_tokens BIGINT, total_tokens BIGINT, cached_input_tokens BIGINT, "
        "reasoning_tokens BIGINT, audio_input_tokens BIGINT, audio_output_tokens BIGINT>",
        "what the server counted in the last call; null when it sent none",
    ),
    Column(
        "usage_tiktoken",
        "STRUCT<encoding STRING, input_tokens BIGINT, output_tokens BIGINT, total_tokens BIGINT, approximate BOOLEAN>",
        "what tiktoken counts, for the text that did arrive; approximate where no rule or encoding is published",
    ),
    Column("cost_usd", "DOUBLE", "of all calls of the row; null where the model has no price"),
    Column("cost_basis", "STRING", "reported, tiktoken or mixed"),
    Column("endpoint", "STRING", "the endpoint's name"),
    Column("api", "STRING", "chat, completions or responses"),
    Column("request_model", "STRING", "the model asked for"),
    Column("response_model", "STRING", "the model that answered"),
    Column("response_id", "STRING", "of the completion or the response"),
    Column("server_request_id", "STRING", "the header x-request-id"),
    Column("system_fingerprint", "STRING", "as the API sent it"),
    Column("service_tier", "STRING", "as the API sent it"),
    Column("request", "STRING", "the JSON body sent, without credentials; null when none could be built"),
    Column("content_filter", "STRING", "JSON of what filters and guardrails said, in order, where there is any"),
    Column("logprobs", "STRING", "JSON, by choice, where there is any"),
    Column("moderation", "STRING", "JSON, where it was asked for"),
    Column(
        "raw",
        "ARRAY<STRUCT<event STRING, data BINARY>>",
        "every event's type and bytes, [DONE] included, or a whole answer's body, of the last call; "
        "null unless capture.keep_raw",
    ),
    Column("started_at", "TIMESTAMP", "the last call's start; UTC"),
    Column("finished_at", "TIMESTAMP", "the last call's end; UTC"),
    Column("worker", "STRING", "host and partition"),
)

# Where a row came from: the plan's epoch, the part, the row of the part. What has landed is remembered by these.
JOURNAL: tuple[Column, ...] = (
    *CAPTURES,
    Column("plan", "INT", "epoch of the plan"),
    Column("part", "INT", "part of the plan"),
    Column("row", "INT", "row of the part"),
)

RUNS: tuple[Column, ...] = (
    Column("run_id", "STRING", "the run"),
    Column("status", "STRING", "running, completed, stopped, budget_exhausted, failed or died"),
    Column("reason", "STRING", "why it ended so, in one line"),
    Column("started_at", "TIMESTAMP", "UTC"),
    Column("finished_at", "TIMESTAMP", "UTC; null while it runs"),
    Column("heartbeat_at", "TIMESTAMP", "when the driver last said that it lives; UTC"),
    Column("owed", "BIGINT", "requests that the run had to capture"),
    Column("completed", "BIGINT", "rows"),
    Column("interrupted", "BIGINT", "rows"),
    Column("failed", "BIGINT", "rows"),
    Column("requests", "BIGINT", "calls made"),
    Column("input_tokens", "BIGINT", "of all calls: reported, else tiktoken's"),
    Column("output_tokens", "BIGINT", "of all calls: reported, else tiktoken's"),
    Column("cost_usd", "DOUBLE", "of all rows that have a price"),
    Column("labels", "MAP<STRING, STRING>", "run.labels"),
    Column("config", "STRING", "the settings as JSON; holds no secret"),
    Column("versions", "MAP<STRING, STRING>", "of deltatap, Python, Spark and the libraries that matter"),
    Column("captures", "STRING", "the captures table that the run writes: its lease is for this table"),
    Column("epoch", "BIGINT", "counts the lease's holders; the highest holds it"),
    Column("driver", "STRING", "host, boot and process of the lease's holder"),
)

REQUESTS: tuple[Column, ...] = (
    Column("request_id", "STRING", ""),
    Column("request_hash", "STRING", ""),
    Column("model", "STRING", ""),
    Column("body", "STRING", "the request's JSON body without stream options; null for a bad row"),
    Column("keep", "MAP<STRING, STRING>", ""),
    Column("error", "STRING", "what is wrong with a bad row"),
    Column("source_hash", "BIGINT", ""),
)

# What a plan's part holds: a request, and the calls that this run made for it before.
OWED: tuple[Column, ...] = (*REQUESTS, Column("mode", "STRING", ""), Column("retries", RETRIES, ""))

_QUANTILE = "STRUCT<value DOUBLE, low DOUBLE, high DOUBLE>"
TIMES = f"STRUCT<count BIGINT, mean DOUBLE, p50 {_QUANTILE}, p90 {_QUANTILE}, p95 {_QUANTILE}, p99 {_QUANTILE}>"
_COUNTS: tuple[Column, ...] = (
    Column("endpoint", "STRING", "the endpoint's name"),
    Column("request_model", "STRING", "the model asked for"),
    Column("mode", "STRING", "stream or complete"),
    Column("rows", "BIGINT", "of captures"),
    Column("completed", "BIGINT", "rows"),
    Column("interrupted", "BIGINT", "rows"),
    Column("failed", "BIGINT", "rows"),
    Column("late", "BIGINT", "completed rows left out of the times, since our own event loop ran late meanwhile"),
    Column("requests", "BIGINT", "calls made"),
    Column("errors", "MAP<STRING, BIGINT>", "calls that failed, by error type, those that were tried again included"),
    Column("finish_reasons", "MAP<STRING, BIGINT>", "rows, by finish_reason"),
    Column("input_tokens", "BIGINT", "of the rows' last calls: reported, else tiktoken's"),
    Column("output_tokens", "BIGINT", "of the rows' last calls: reported, else tiktoken's"),
    Column("reported_output_tokens", "BIGINT", "of completed rows whose server reported usage"),
    Column("tiktoken_output_tokens", "BIGINT", "of the same rows, as tiktoken counts"),
    Column("cost_usd", "DOUBLE", "of all calls; null where no row has a price"),
    Column("good", "BIGINT", "completed rows that keep analysis.slo; null without one"),
    Column("coalesced", "DOUBLE", "share of the outputs that came in one socket read with the one before"),
)
_METRICS: tuple[Column, ...] = (
    *(Column(metric.name, TIMES, f"{metric.title}; ms unless named otherwise") for metric in METRICS),
    Column(
        "inter_chunk_ms",
        "STRUCT<count BIGINT, mean DOUBLE, p50 DOUBLE, p90 DOUBLE, p95 DOUBLE, p99 DOUBLE>",
        "between two outputs of a choice, each read's first",
    ),
)
METRICS_BY_RUN: tuple[Column, ...] = (
    Column("run_id", "STRING", "the run"),
    *_COUNTS,
    Column("started_at", "TIMESTAMP", "the first row's; UTC"),
    Column("finished_at", "TIMESTAMP", "the last row's; UTC"),
    Column("requests_per_s", "DOUBLE", "completed rows by the time from the first start to the last end"),
    Column("output_tokens_per_s", "DOUBLE", "output tokens by the same time"),
    Column("good_per_s", "DOUBLE", "goodput: good rows by the same time; null without analysis.slo"),
    *_METRICS,
    Column("settings", "STRING", "the analysis settings, as JSON"),
    Column("heartbeat_at", "TIMESTAMP", "of the run, when this was computed: a later one computes it anew"),
)
METRICS_BY_HOUR: tuple[Column, ...] = (
    Column("hour", "TIMESTAMP", "in which the rows' last calls started; UTC"),
    *_COUNTS,
    *_METRICS,
)
STREAM_VS_COMPLETE: tuple[Column, ...] = (
    Column("run_id", "STRING", "the run"),
    Column("endpoint", "STRING", "the endpoint's name"),
    Column("request_model", "STRING", "the model asked for"),
    Column("output_tokens", "STRING", "of the streamed answer: a range, or all"),
    Column("pairs", "BIGINT", "requests completed in both modes"),
    Column("ttft_ms", "DOUBLE", "median TTFT of the streamed ones"),
    Column("complete_e2e_ms", "DOUBLE", "median E2E of the whole ones"),
    Column("saved_ms", _QUANTILE, "median of E2E whole - TTFT streamed, a pair at a time; bootstrap 95 % interval"),
    Column("slower_ms", _QUANTILE, "median of E2E streamed - E2E whole, a pair at a time; bootstrap 95 % interval"),
)

_PRIMITIVES = {
    "STRING": pa.string(),
    "DOUBLE": pa.float64(),
    "INT": pa.int32(),
    "BIGINT": pa.int64(),
    "BOOLEAN": pa.bool_(),
    "BINARY": pa.binary(),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
}
_TRIES = 10
_MISSING = ("DELTA_TABLE_NOT_FOUND", "DELTA_MISSING_DELTA_TABLE", "DELTA_PATH_DOES_NOT_EXIST", "[PATH_NOT_FOUND]")
_TOKEN = re.compile(r"\w+|[<>,]")


def arrow_type(ddl: str) -> pa.DataType:
    """The Arrow type of a type in Spark SQL's spelling."""
    return _parsed(iter(_TOKEN.findall(ddl)))


def _parsed(tokens: Iterator[str]) -> pa.DataType:
    name = next(tokens)
    if name in _PRIMITIVES:
        return _PRIMITIVES[name]
    next(tokens)  # <
    if name == "ARRAY":
        element = _parsed(tokens)
        next(tokens)  # >
        return pa.list_(element)
    if name == "MAP":
        key = _parsed(tokens)
        next(tokens)  # ,
        value = _parsed(tokens)
        next(tokens)  # >
        return pa.map_(key, value)
    fields = []
    while True:
        fields.append(pa.field(next(tokens), _parsed(tokens)))
        if next(tokens) == ">":
            return pa.struct(fields)


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of a table's columns."""
    return pa.schema([pa.field(column.name, arrow_type(column.type)) for column in columns])


def spark_sql(type_: str) -> str:
    """A column's type as Spark SQL reads it: a struct's fields are ``name: type`` there."""
    return re.sub(r"(\w+) (?=\w)", r"\1: ", type_)


def spark_schema(columns: Sequence[Column]) -> StructType:
    """The Spark schema of a table's columns; needs no session."""
    from pyspark.sql.pandas.types import from_arrow_schema  # noqa: PLC0415 - the core is imported without Spark

    return from_arrow_schema(arrow_schema(columns))


def ddl(columns: Sequence[Column]) -> str:
    """The columns as in ``CREATE TABLE``, with their comments."""
    comments = (column.comment.replace("'", r"\'") for column in columns)
    return ",\n  ".join(
        f"`{column.name}` {spark_sql(column.type)} COMMENT '{comment}'"
        for column, comment in zip(columns, comments, strict=True)
    )


def quoted(table: str) -> str:
    """A table as SQL names it: a catalog name in backticks, a path as ``delta.`path` ``."""
    if is_path(table):
        return f"delta.`{table}`"
    return ".".join(f"`{part}`" for part in table.split("."))


def is_path(table: str) -> bool:
    """Whether the configured table is a path: it has a ``/``."""
    return "/" in table


def exists(spark: SparkSession, table: str) -> bool:
    """Whether the Delta table is there."""
    if not is_path(table):
        return bool(spark.catalog.tableExists(table))
    try:
        # Its schema alone: `DESCRIBE DETAIL` counts files, which takes a Spark job.
        _ = spark.table(quoted(table)).schema
    except Exception as error:
        if any(name in str(error) for name in _MISSING):
            return False
        raise
    return True


# What analysis filters on. Statistics are kept of such columns, and not of the first thirty-two, mostly texts.
CAPTURES_CLUSTERED_BY = ("run_id", "mode", "endpoint", "request_model")
CAPTURES_PROPERTIES = (
    "'delta.dataSkippingStatsColumns' = 'run_id,request_id,mode,status,endpoint,request_model,started_at,finished_at'"
)


def ensure(
    spark: SparkSession, table: str, columns: Sequence[Column], properties: str = "", cluster_by: Sequence[str] = ()
) -> bool:
    """Create the table unless it is there, however its owner made it; a concurrent creator is no error.

    Returns:
        Whether it was not there.
    """
    if exists(spark, table):
        return False
    spark.sql(
        f"CREATE TABLE IF NOT EXISTS {quoted(table)} (\n  {ddl(columns)}\n) USING DELTA"
        + (f" CLUSTER BY ({', '.join(cluster_by)})" if cluster_by else "")
        + (f" TBLPROPERTIES ({properties})" if properties else "")
    )
    return True


def commit(spark: SparkSession, sql: str) -> None:
    """Commit a statement. Another commit that came first is no failure: its writer is done, and ours may go on."""
    for left in reversed(range(_TRIES)):
        try:
            spark.sql(sql)
        except Exception as error:
            if not (left and came_second(error)):
                raise
        else:
            return


def came_second(error: Exception) -> bool:
    """Whether a commit failed because another, that touched what this one read, came first."""
    return "CONCURRENT" in f"{type(error).__name__}: {error}".upper()


def differences(found: StructType, columns: Sequence[Column]) -> list[str]:
    """How an existing table's schema differs from ours; further columns of the user's are none of our business."""
    theirs = {field.name: field.dataType for field in found.fields}
    problems = []
    for field in spark_schema(columns).fields:
        if field.name not in theirs:
            added = f"{field.name} {field.dataType.simpleString()}"
            problems.append(f"column {field.name} is missing; ALTER TABLE … ADD COLUMN {added}")
        elif theirs[field.name].simpleString() != field.dataType.simpleString():
            problems.append(
                f"column {field.name}: expected {field.dataType.simpleString()}, "
                f"found {theirs[field.name].simpleString()}"
            )
    return problems
